//! What should be, what is, and what to do about it. No network, no files, no clock.

pub(crate) mod batch;
pub(crate) mod classify;
pub(crate) mod evidence;
pub(crate) mod findings;
pub(crate) mod hold;
pub(crate) mod map;
pub(crate) mod plan;
pub(crate) mod planner;
pub(crate) mod template;

#[cfg(test)]
mod tests;
