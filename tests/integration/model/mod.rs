//! A model of the world around the program, and what it must never do in it: random stories of pods,
//! jobs, hands and faults, told to the real core with the real file store (20,000), and to the program
//! itself with real etcds (250). The model keeps its own truth and its own reading of the rules of proof;
//! it asks the program for neither.
//!
//! These bugs were made in the program on purpose, one at a time. `stories` are both tests of
//! `in_process`, `whole` those of `whole`, `unit` the tests of `reconcile::tests`, of which one is named.
//!
//! | bug | failed |
//! |---|---|
//! | deletes go first | stories; whole; unit: `puts_come_before_deletes` |
//! | `deletionTimestamp` ignored | stories; unit: `terminating_but_ready_is_deleted` |
//! | comparisons skipped | stories; `reconcile::batch::tests::whole_backends_are_packed_together` |
//! | delete by prefix, in the file store | stories |
//! | creates held | stories; unit: `created_with_the_mark` |
//! | scope ignored | stories; unit: `another_scope_or_namespace_is_not_ours` |
//! | absent under a selector taken as proof | stories; unit: `few_absent_under_a_selector` |
//! | the last one under a selector goes without a second look | stories; unit: `the_last_one_under_a_selector_is_looked_for_without_it` |
//! | URLs compared as bytes | stories; unit: `completed_with_its_address_reused` |
//! | marks ignored | stories; unit: `what_others_wrote_is_never_touched` |
//! | undefined backend evicts | stories; unit: `a_frozen_backend_keeps_what_is_not_proved_dead` |
//! | 403 treated as an empty list | whole; `kube::every_recorded_error` |
//! | pods listed before the store | `main_job::a_server_registered_after_our_pods_were_listed_is_not_deleted` |
//!
//! The last one no story sees: it takes a pod that comes between the two listings of one run.

mod in_process;
mod judge;
mod whole;
mod world;

use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Tells the same stories each time, so that what failed fails again; others with another
/// `VULCANIZED_MODEL_SEED`, a number. The seed is printed.
#[expect(clippy::print_stdout, reason = "a test says its seed")]
fn runner(cases: u32, max_shrink_iters: u32) -> TestRunner {
    let seed = std::env::var("VULCANIZED_MODEL_SEED").ok();
    let seed = seed.map_or(1, |text| text.parse::<u64>().expect("a number"));
    println!("VULCANIZED_MODEL_SEED={seed}");
    let config = Config {
        failure_persistence: None,
        max_shrink_iters,
        ..Config::with_cases(cases)
    };
    let seed = [seed.to_le_bytes(); 4].concat();
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed))
}
