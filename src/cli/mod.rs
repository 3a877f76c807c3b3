//! What an operator can ask for on the command line.

pub mod args;
