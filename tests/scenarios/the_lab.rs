//! The laboratory itself: what it measures must be right before it may judge anything.

mod cleanup;
mod links;
mod nat_kinds;
mod watching;
