//! Pods from a Kubernetes API server, or from a file that `kubectl` wrote.

mod config;
mod exec;
pub mod file;
mod list;
mod wire;

pub use config::Options;
pub use list::{Api, Error, Selection};
