//! meshd, the node of a podmesh network.

mod cli;
mod config;
mod identity;
mod local_socket;
mod node_file;
mod overlap;
mod planet_link;
mod random;
#[cfg(test)]
mod scratch;
mod shard;
mod sockets;
mod state;
fn main() {}
