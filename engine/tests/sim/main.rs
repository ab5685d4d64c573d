//! The simulator: nodes, NATs and planets in virtual time.

#![allow(
    unreachable_pub,
    reason = "one crate of tests; every module is private"
)]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests may ask for seeds and the time"
)]

mod authority;
mod fake;
mod grid;
mod life;
mod nat;
mod net;
mod random;
mod scenarios;
mod watch;
mod whole;
mod world;
