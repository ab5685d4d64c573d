//! The plugin's program in throw-away namespaces, called as a container runtime calls it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod attach;
mod detach;
mod disk;
mod guard;
mod mend;
mod namespaces;
mod node;
mod second;
mod storm;
mod words;
