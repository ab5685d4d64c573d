//! The plugin's program in throw-away namespaces, called as a container runtime calls it.

mod attach;
mod detach;
mod guard;
mod namespaces;
mod node;
mod storm;
mod words;
