//! Pods from a Kubernetes API server, or from a file that `kubectl` wrote.

mod config;
mod exec;
pub mod file;
mod list;
mod wire;

pub use config::Options;
pub use list::{Api, Error, Selection};

use crate::model::Pod;

/// One page in JSON to its pods: what benchmarks and fuzz targets of the decoder call.
///
/// # Errors
/// What is no whole page of pods.
#[doc(hidden)]
pub fn pods_from_json(page: &[u8]) -> anyhow::Result<Vec<Pod>> {
    wire::json(page)?.pods().collect()
}

/// The same in protobuf.
///
/// # Errors
/// What is no whole page of pods.
#[doc(hidden)]
pub fn pods_from_protobuf(page: Vec<u8>) -> anyhow::Result<Vec<Pod>> {
    wire::protobuf(page)?.pods().collect()
}
