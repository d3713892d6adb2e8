#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vulcanized_fuzz::mapping_of_pods(data));
