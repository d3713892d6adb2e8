//! The real program against real stores and a stand-in Kubernetes API server.

#![expect(
    unreachable_pub,
    reason = "modules of one test binary: nothing is exported"
)]

mod main_job;
mod reach;
mod scenarios;
mod stores;
mod support;
mod weather;
