//! The built meshctl, run as a person or a script runs it, against folders and sockets of the test.
#![allow(clippy::unwrap_used, reason = "a test that can't go on has failed")]

mod desk;
mod fake_daemon;
mod joining;
mod refusals;
mod root_side;
mod views;
