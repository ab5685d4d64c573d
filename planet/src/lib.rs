//! The planet of a podmesh network: admits nodes, tells them about each other, introduces and relays.
//!
//! [`rules`] decides everything, without I/O; the simulator plays it in virtual time. [`store`] keeps
//! what must not be forgotten, [`server`] is the planet on the wire, [`run`] puts them together.

pub mod admin;
pub mod cli;
pub mod config;
pub mod identity;
mod memory;
pub mod problem;
pub mod restore;
pub mod rules;
pub mod run;
pub mod server;
pub mod store;
