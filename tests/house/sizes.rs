//! Files stay small and pure crates stay pure.

use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a file before its inline tests; a file that is nothing but tests counts in full.
const LONGEST: usize = 600;

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() && name != "target" && name != ".git" {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn all_sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    sources(&super::top(), &mut found);
    assert!(found.len() > 50, "the sources were found");
    found
}

fn before_tests(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .take_while(|line| !line.starts_with("#[cfg(test)]"))
}

#[test]
fn no_file_is_longer_than_600_lines_without_tests() {
    for path in all_sources() {
        let text = fs::read_to_string(&path).expect("a source");
        let lines = before_tests(&text).count();
        assert!(lines <= LONGEST, "{} has {lines} lines", path.display());
    }
}

#[test]
fn unsafe_code_stays_in_the_kernel_room() {
    for path in all_sources() {
        let text = fs::read_to_string(&path).expect("a source");
        let allowed = [
            "kernel/",
            "engine/src/simd/",
            "tests/lab/wire",
            "tests/lab/",
        ]
        .iter()
        .any(|room| {
            path.strip_prefix(super::top())
                .is_ok_and(|path| path.starts_with(room))
        });
        let opens = text.lines().any(|line| line.contains("allow(unsafe_code"));
        assert!(
            allowed || !opens || path.ends_with("sizes.rs"),
            "{} opens unsafe",
            path.display()
        );
    }
}

#[test]
fn no_unfinished_marks_are_left() {
    let marks = ["todo", "unimplemented"].map(|word| format!("{word}!("));
    for path in all_sources() {
        let text = fs::read_to_string(&path).expect("a source");
        for mark in &marks {
            assert!(
                !text.contains(mark.as_str()),
                "{} has {mark}",
                path.display()
            );
        }
    }
}
