//! Connections: HTTP, TLS, and the deadline of every wait.

pub(crate) mod deadline;
pub(crate) mod http;
pub(crate) mod pem;
pub(crate) mod tls;
