//! The house rules, checked by machine: which crate may know which, where the crates of others come from,
//! sizes of files, and that documents name only what exists.

mod arrows;
mod documents;
mod installed;
mod programs;
mod sizes;
mod supply;

use std::path::PathBuf;

/// The project's top folder.
fn top() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A file of the project.
fn read(path: &str) -> String {
    std::fs::read_to_string(top().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}
