//! The planet of a podmesh network: admits nodes, tells them about each other, introduces and relays.
//!
//! [`rules`] decides everything, without I/O; the simulator plays it in virtual time. The rest puts
//! sockets, a disk and a clock around it.

pub mod rules;
pub mod store;
