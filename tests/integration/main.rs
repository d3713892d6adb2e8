//! The real program against real stores and a stand-in Kubernetes API server.

mod store;
mod support;
