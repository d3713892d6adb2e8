//! What should be, what is, and what to do about it. No network, no files, no clock.

pub mod batch;
pub mod desired;
pub mod evidence;
pub mod findings;
pub mod plan;
mod planner;
mod proof;
pub mod template;

#[cfg(test)]
mod tests;
