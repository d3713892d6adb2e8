//! Connections: HTTP, TLS, and the deadline that every wait obeys.

pub(crate) mod deadline;
pub(crate) mod http;
pub(crate) mod pem;
pub(crate) mod tls;
