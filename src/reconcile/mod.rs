//! What should be, what is, and what to do about it. No network, no files, no clock.

pub mod batch;
pub mod classify;
pub mod evidence;
pub mod findings;
pub mod hold;
pub mod map;
pub mod plan;
mod planner;
pub mod template;

#[cfg(test)]
mod tests;
