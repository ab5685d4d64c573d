//! The house rules, checked by machine: which crate may know which, sizes of files, and that
//! documents name only what exists.
//!
//! `deny.toml` says the same about crates for `cargo deny`; this test needs nothing but cargo.

mod arrows;
mod documents;
mod installed;
mod sizes;

use std::path::PathBuf;

/// The project's top folder.
fn top() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}
