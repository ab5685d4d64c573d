//! What the crate asks of Linux, checked against Linux: each test runs in a network namespace that
//! it makes for itself and that disappears with its thread. They need root.
#![allow(clippy::print_stdout, reason = "a skipped test says so")]

mod allocations;
mod host;
mod obstacles;
mod runs;
mod sandbox;
mod sysctl;
mod tables;
mod tun;
mod udp;
mod watch;
mod xfrm;
