//! Connections: HTTP, TLS, and the deadline that every wait obeys.

pub mod deadline;
pub mod http;
pub mod tls;
