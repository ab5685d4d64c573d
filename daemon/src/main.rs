//! meshd, the node of a podmesh network.

mod cli;
mod config;
fn main() {}
