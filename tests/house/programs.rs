//! Tests leave programs alone that they run.

use std::fs;
use std::path::Path;

fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            let hidden = path
                .file_name()
                .is_some_and(|name| name == "target" || name.to_string_lossy().starts_with('.'));
            if !hidden {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = fs::read_to_string(&path).expect("a source file");
            found.push((path.display().to_string(), text));
        }
    }
}

/// Whoever has a file open for writing passes it on to every process that another thread starts meanwhile,
/// and until that one has become something else the file can't be run: "Text file busy". So a program is
/// copied by a process that does nothing else.
#[test]
fn no_test_copies_a_program_itself() {
    let mut found = Vec::new();
    sources(&super::top(), &mut found);
    assert!(found.len() > 300, "{}", found.len());
    let copies = ["fs::copy(", "fs::write(", "File::create("];
    for (path, text) in found
        .iter()
        .filter(|(path, _)| !path.ends_with("house/programs.rs"))
    {
        let lines: Vec<&str> = text.lines().collect();
        for (number, around) in lines.windows(4).enumerate() {
            let copied = copies.iter().any(|copy| around[0].contains(copy));
            let program = around
                .iter()
                .any(|line| line.contains("CARGO_BIN_EXE") || line.contains("current_exe()"));
            let before = number > 0 && lines[number - 1].contains("current_exe()");
            assert!(!(copied && (program || before)), "{path}:{}", number + 1);
        }
    }
}
