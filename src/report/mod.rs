//! Everything that people and programs read: diff, lines, JSON, metrics, `status`, `explain`.

pub(crate) mod diff;
pub(crate) mod etcdctl;
pub(crate) mod explain;
pub(crate) mod json;
pub(crate) mod metrics;
mod notes;
pub(crate) mod reasons;
mod reporter;
pub(crate) mod status;
mod style;
mod table;
#[cfg(test)]
mod tests;

pub use etcdctl::Etcdctl;
use notes::Note;
pub(crate) use notes::no_backends;
pub use notes::notes;
pub(crate) use reporter::Reporter;
pub use style::Style;
