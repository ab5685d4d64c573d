//! The plugin's program in throw-away namespaces, called as a container runtime calls it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod attach;
mod detach;
mod guard;
mod namespaces;
mod node;
mod storm;
mod words;
