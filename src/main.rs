//! The program: arguments, logging, one run, an exit code.

fn main() {}
