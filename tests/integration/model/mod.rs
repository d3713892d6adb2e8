//! A model of the world around the program, and what it must never do in it.

mod in_process;
mod judge;
mod whole;
mod world;
