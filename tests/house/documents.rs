//! Documents name only what exists, and stay short.

use std::fs;

#[test]
fn every_path_in_the_architecture_page_exists() {
    let page = fs::read_to_string(super::top().join("ARCHITECTURE.md")).expect("the page");
    assert!(
        page.lines().count() <= 150,
        "the page has {} lines",
        page.lines().count()
    );
    let paths = page.split('`').skip(1).step_by(2).filter(|word| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-');
        word.contains('/') && word.chars().all(plain) && !word.starts_with('/')
    });
    let mut count = 0;
    for path in paths {
        count += 1;
        assert!(
            super::top().join(path).exists(),
            "ARCHITECTURE.md names {path}, which is not there"
        );
    }
    assert!(count > 20, "the page names files");
}

#[test]
fn the_readme_gives_the_two_commands() {
    let readme = fs::read_to_string(super::top().join("README.md")).expect("the README");
    for command in ["make demo", "make test"] {
        assert!(readme.contains(command), "README.md lacks '{command}'");
    }
}

#[test]
fn every_kept_input_is_of_a_fuzz_target_that_make_fuzz_plays() {
    let makefile = super::read("Makefile");
    let line = makefile
        .lines()
        .find_map(|line| line.strip_prefix("FUZZ_TARGETS ?= "));
    let targets: Vec<&str> = line.expect("the targets").split(' ').collect();
    let kept = super::top().join("tests/fuzz/kept");
    for folder in kept.read_dir().expect("the kept inputs") {
        let name = folder.expect("a folder").file_name();
        assert!(
            targets.iter().any(|target| name == **target),
            "{name:?} is no target"
        );
    }
}
