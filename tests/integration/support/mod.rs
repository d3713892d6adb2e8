//! What the tests share: the program under test, servers, certificates.

pub mod certs;
pub mod program;
