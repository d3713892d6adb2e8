//! Keeps an external load balancer pointed at the live pods of a Kubernetes cluster.
//!
//! One run lists the store, then the pods, decides, and prints or applies: see [`run`].

pub mod apply;
pub mod config;
pub mod connect;
pub mod kube;
pub mod layout;
pub mod logging;
pub mod metrics;
pub mod model;
pub mod net;
pub mod reconcile;
pub mod report;
pub mod run;
pub mod signals;
pub mod store;
pub mod text;
