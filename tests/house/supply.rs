//! Where the crates of others come from, what they allow, and how old they may be: `deny.toml` is the list,
//! which `cargo deny` reads as well (`make audit`); here `cargo metadata` is held against it, which needs no
//! network.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

use super::{read, top};

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Versions below which something can be broken from outside, by an advisory that was published.
const FLOORS: &[(&str, &str)] = &[
    ("quinn-proto", "0.11.15"),
    ("rustls", "0.23.18"),
    ("rustls-webpki", "0.103.13"),
    ("ring", "0.17.12"),
    ("curve25519-dalek", "4.1.3"),
    ("bytes", "1.11.1"),
    ("snow", "0.9.6"),
    ("tokio", "1.44.2"),
    ("tracing-subscriber", "0.3.20"),
];

/// The workspaces of the project: what is shipped, and what drives the fuzz targets.
const WORKSPACES: [&str; 2] = ["Cargo.toml", "tests/fuzz/Cargo.toml"];

/// Everything that a workspace may link, whichever features are on.
fn packages(manifest: &str) -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(["--all-features", "--manifest-path"])
        .arg(top().join(manifest))
        .output()
        .expect("cargo runs");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    packages
        .iter()
        .filter(|package| !text(package, "name").starts_with("podmesh-"))
        .cloned()
        .collect()
}

fn text<'a>(package: &'a Value, field: &str) -> &'a str {
    package[field].as_str().unwrap_or_default()
}

/// The words of a list in `deny.toml`: `key = ["a", "b"]`, or tables with `crate = "a"`.
fn denied(key: &str) -> Vec<String> {
    let page = read("deny.toml");
    let begin = format!("\n{key} = [");
    let (_, rest) = page.split_once(&begin).expect("the list");
    let (list, _) = rest.split_once(']').expect("its end");
    let lines = list
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default());
    let words = lines.flat_map(|line| line.split('"').skip(1).step_by(2));
    words.map(str::to_owned).collect()
}

#[test]
fn everything_of_others_comes_from_the_registry_and_none_of_it_is_banned() {
    let banned = denied("deny");
    assert!(banned.iter().any(|name| name == "openssl"), "{banned:?}");
    for workspace in WORKSPACES {
        for package in packages(workspace) {
            let name = text(&package, "name");
            assert_eq!(text(&package, "source"), REGISTRY, "{name} of {workspace}");
            let used = banned.iter().any(|banned| banned == name);
            assert!(
                !used,
                "{name} is banned by deny.toml, and {workspace} links it"
            );
        }
    }
}

#[test]
fn everything_that_is_shipped_is_under_a_licence_of_the_list() {
    let allowed = denied("allow");
    assert!(
        allowed.iter().any(|licence| licence == "MIT"),
        "{allowed:?}"
    );
    let packages = packages("Cargo.toml");
    for package in &packages {
        let licence = text(package, "license");
        let fits = fits(licence, &|word| {
            allowed.iter().any(|allowed| allowed == word)
        });
        assert!(fits, "{} is under '{licence}'", text(package, "name"));
    }
    // A licence that nothing has any more is one that nobody has thought about.
    for licence in &allowed {
        let mut used = packages.iter().map(|package| text(package, "license"));
        assert!(
            used.any(|used| used.contains(licence.as_str())),
            "nothing is under {licence}"
        );
    }
}

/// Whether a licence expression (SPDX; `/` is an old form of OR) can be met by licences that are `allowed`.
fn fits(expression: &str, allowed: &dyn Fn(&str) -> bool) -> bool {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    let met = any(&mut rest, allowed);
    met && rest.is_empty()
}

fn any(rest: &mut &[&str], allowed: &dyn Fn(&str) -> bool) -> bool {
    let mut met = all(rest, allowed);
    while let ["OR", behind @ ..] = *rest {
        *rest = behind;
        met |= all(rest, allowed);
    }
    met
}

fn all(rest: &mut &[&str], allowed: &dyn Fn(&str) -> bool) -> bool {
    let mut met = one(rest, allowed);
    while let ["AND", behind @ ..] = *rest {
        *rest = behind;
        met &= one(rest, allowed);
    }
    met
}

fn one(rest: &mut &[&str], allowed: &dyn Fn(&str) -> bool) -> bool {
    match *rest {
        ["(", behind @ ..] => {
            *rest = behind;
            let met = any(rest, allowed);
            if let [")", behind @ ..] = *rest {
                *rest = behind;
            }
            met
        }
        // An exception only gives.
        [licence, "WITH", _, behind @ ..] | [licence, behind @ ..] => {
            *rest = behind;
            allowed(licence)
        }
        [] => false,
    }
}

#[test]
fn licence_expressions_are_understood() {
    let allowed = |word: &str| matches!(word, "MIT" | "Zlib");
    for (expression, wanted) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("GPL-3.0 AND MIT", false),
        ("(GPL-3.0 OR MIT) AND Zlib", true),
        ("(GPL-3.0 OR MIT) AND BSL-1.0", false),
        ("GPL-3.0 OR MIT AND Zlib", true),
        ("MIT WITH LLVM-exception", true),
        ("", false),
    ] {
        assert_eq!(fits(expression, &allowed), wanted, "{expression}");
    }
}

/// A version as numbers, without what is behind a dash or plus.
fn numbers(version: &str) -> Vec<u64> {
    let plain = version.split(['-', '+']).next().unwrap_or_default();
    let parts = plain.split('.').map(|part| part.parse().expect("a number"));
    parts.collect()
}

#[test]
fn nothing_is_older_than_the_last_advisory_about_it() {
    for workspace in WORKSPACES {
        let packages = packages(workspace);
        for (name, floor) in FLOORS {
            let versions = packages
                .iter()
                .filter(|package| text(package, "name") == *name);
            let versions: Vec<&str> = versions.map(|package| text(package, "version")).collect();
            assert!(
                !versions.is_empty() || workspace != "Cargo.toml",
                "{name} is linked no more; take it off the list"
            );
            for version in versions {
                let good = numbers(version) >= numbers(floor);
                assert!(
                    good,
                    "{name} {version} of {workspace} is older than {floor}"
                );
            }
        }
    }
}

#[test]
fn the_stated_rust_version_is_enough_for_everything_that_is_linked() {
    let manifest = read("Cargo.toml");
    let stated = manifest
        .lines()
        .find_map(|line| line.strip_prefix("rust-version = \""));
    let stated = stated
        .and_then(|rest| rest.split('"').next())
        .expect("a version");
    let mut needed: BTreeMap<Vec<u64>, Vec<String>> = BTreeMap::new();
    for package in packages("Cargo.toml") {
        if let Some(version) = package["rust_version"].as_str() {
            let mut version = numbers(version);
            version.resize(3, 0);
            let name = text(&package, "name").to_owned();
            needed.entry(version).or_default().push(name);
        }
    }
    let mut have = numbers(stated);
    have.resize(3, 0);
    let beyond: Vec<_> = needed
        .iter()
        .filter(|(version, _)| **version > have)
        .collect();
    assert!(
        beyond.is_empty(),
        "rust-version = {stated}, but: {beyond:?}"
    );
}
