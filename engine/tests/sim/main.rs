//! The simulator: nodes, NATs and planets in virtual time.

#![allow(
    unreachable_pub,
    reason = "one crate of tests; every module is private"
)]
#![allow(clippy::indexing_slicing, reason = "tests")]

mod authority;
mod fake;
mod grid;
mod nat;
mod net;
mod random;
mod scenarios;
mod watch;
mod whole;
mod world;
