//! The simulator: nodes, NATs and planets in virtual time.

#![allow(
    unreachable_pub,
    reason = "one crate of tests; every module is private"
)]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "in a simulation every surprise is a failure, wherever it is; figures are for reading"
)]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests may ask for seeds and the time"
)]

mod asleep;
mod authority;
mod bounds;
mod fake;
mod faults;
mod grid;
mod lies;
mod life;
mod lives;
mod moves;
mod nat;
mod net;
mod nonces;
mod random;
mod reborn;
mod returns;
mod scale;
mod scenarios;
mod trial;
mod twins;
mod walk;
mod watch;
mod well;
mod whole;
mod world;
