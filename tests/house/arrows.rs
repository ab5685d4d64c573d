//! Which crate may depend on which.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Our crates and the crates of ours that each may name.
const OURS: &[(&str, &[&str])] = &[
    ("podmesh-proto", &[]),
    ("podmesh-engine", &["podmesh-proto"]),
    ("podmesh-kernel", &[]),
    ("podmesh-service", &[]),
    (
        "podmesh-daemon",
        &[
            "podmesh-proto",
            "podmesh-engine",
            "podmesh-kernel",
            "podmesh-service",
        ],
    ),
    (
        "podmesh-planet",
        &["podmesh-proto", "podmesh-kernel", "podmesh-service"],
    ),
    ("podmesh-ctl", &["podmesh-proto"]),
    ("podmesh-cni-plugin", &["podmesh-proto", "podmesh-kernel"]),
    ("podmesh-tests", &["podmesh-proto"]),
];

/// Crates that only the named ones of ours may depend on.
const ROOMS: &[(&str, &[&str])] = &[
    ("boringtun", &["podmesh-engine", "podmesh-tests"]),
    ("snow", &["podmesh-engine"]),
    ("rtnetlink", &["podmesh-kernel"]),
    ("netlink-packet-route", &["podmesh-kernel"]),
    ("netlink-packet-core", &["podmesh-kernel"]),
    ("netlink-sys", &["podmesh-kernel"]),
    ("libc", &["podmesh-kernel", "podmesh-tests"]),
    (
        "quinn",
        &["podmesh-daemon", "podmesh-planet", "podmesh-tests"],
    ),
    ("quinn-udp", &["podmesh-planet"]),
    (
        "rustls",
        &["podmesh-daemon", "podmesh-planet", "podmesh-tests"],
    ),
    ("redb", &["podmesh-planet"]),
    (
        "tokio",
        &[
            "podmesh-daemon",
            "podmesh-planet",
            "podmesh-kernel",
            "podmesh-cni-plugin",
            "podmesh-tests",
        ],
    ),
];

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(super::top())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("cargo prints JSON")
}

/// Direct dependencies of each of our crates; `engine`'s use of the planet's rules in its simulator
/// is a dev-dependency and not an arrow.
fn arrows(metadata: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages = metadata["packages"].as_array().expect("packages");
    packages
        .iter()
        .filter(|package| text(&package["name"]).starts_with("podmesh-"))
        .map(|package| {
            let needed = package["dependencies"].as_array().expect("dependencies");
            let shipped = needed
                .iter()
                .filter(|needed| text(&needed["kind"]) != "dev");
            (
                text(&package["name"]),
                shipped.map(|needed| text(&needed["name"])).collect(),
            )
        })
        .collect()
}

#[test]
fn crates_know_only_whom_they_may() {
    let arrows = arrows(&metadata());
    for (name, allowed) in OURS {
        let found = &arrows[*name];
        for needed in found.iter().filter(|needed| needed.starts_with("podmesh-")) {
            assert!(
                allowed.contains(&needed.as_str()),
                "{name} must not depend on {needed}"
            );
        }
    }
    assert_eq!(
        arrows.len(),
        OURS.len(),
        "every crate of ours is in the table"
    );
    for (room, owners) in ROOMS {
        for (name, found) in &arrows {
            let allowed = owners.contains(&name.as_str());
            assert!(
                allowed || !found.contains(*room),
                "{name} must not depend on {room}"
            );
        }
    }
}

#[test]
fn the_fake_clock_is_in_no_shipped_program() {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--workspace",
            "--locked",
            "-e",
            "normal,features",
            "-i",
            "boringtun",
        ])
        .current_dir(super::top())
        .output()
        .expect("cargo runs");
    let tree = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && tree.contains("boringtun"),
        "{tree}"
    );
    assert!(
        !tree.contains("mock"),
        "boringtun's fake clock is switched on:\n{tree}"
    );
}
