//! The built meshctl, run as a person or a script runs it, against folders and sockets of the test.
#![allow(clippy::unwrap_used, reason = "a test that can't go on has failed")]

mod book;
mod decisions;
mod desk;
mod editions;
mod fake_daemon;
mod joining;
mod refusals;
mod root_side;
mod views;
