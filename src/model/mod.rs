//! What the program talks about: pods as Kubernetes lists them, servers as the proxy knows them,
//! and the reads and writes of a store. Plain values, converted at the border and checked there.

mod id;
mod pod;
mod scope;
mod transaction;
mod url;

pub(crate) use id::*;
pub use pod::*;
pub use scope::*;
pub use transaction::*;
pub use url::*;
