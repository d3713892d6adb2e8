#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vulcanized_fuzz::pods_json(data));
