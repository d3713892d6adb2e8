//! What the tests share: the program under test, servers, certificates.

pub mod api;
pub mod certs;
pub mod etcd;
pub mod front;
pub mod golden;
pub mod program;
pub mod proxy;
pub mod traefik;
