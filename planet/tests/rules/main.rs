//! The planet's rules, played without sockets or disk.

#![allow(
    clippy::unwrap_used,
    reason = "a test that can't set its scene fails there"
)]
#![allow(clippy::too_many_lines, reason = "tables are read top to bottom")]

#[path = "../story/mod.rs"]
mod story;

mod coming_back;
mod connections;
mod flooding;
mod grouping;
mod holding;
mod joining;
mod leaving;
mod relearning;
mod renewals;
mod spent;
mod statements;
mod telling;

use ipnet::IpNet;
use podmesh_planet::rules::leases::overlap;
use podmesh_proto::planet_api::{PlanetMessage, RefusalCode};

use crate::story::{Node, Told};

fn code(answers: &[Told]) -> Option<RefusalCode> {
    answers.iter().rev().find_map(|told| match told {
        Told::Message(PlanetMessage::Refused(refusal)) => Some(refusal.code),
        _ => None,
    })
}

fn closed(answers: &[Told]) -> bool {
    answers.iter().any(|told| matches!(told, Told::Closed(_)))
}

/// Every lease and claim of `nodes`, checked to have one owner each.
fn assert_single_owners(nodes: &[&Node]) {
    let held: Vec<(usize, IpNet)> = nodes
        .iter()
        .enumerate()
        .flat_map(|(index, node)| {
            let mut prefixes = node.receipt.as_ref().map_or_else(Vec::new, |receipt| {
                receipt.unverified().unwrap().leases.prefixes()
            });
            if let Some((claim, _)) = &node.claim {
                prefixes.extend(claim.unverified().unwrap().pod_cidrs);
            }
            prefixes.into_iter().map(move |prefix| (index, prefix))
        })
        .collect();
    for (owner, prefix) in &held {
        for (other, taken) in &held {
            assert!(
                owner == other || !overlap(prefix, taken),
                "{prefix} and {taken}"
            );
        }
    }
}

#[test]
fn the_rules_touch_no_clock_no_disk_no_network_and_no_chance() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/rules");
    let root = std::path::PathBuf::from(format!("{folder}.rs"));
    let mut left = vec![root, folder.into()];
    let mut read = 0;
    while let Some(path) = left.pop() {
        if path.is_dir() {
            let inside = std::fs::read_dir(&path).unwrap();
            left.extend(inside.map(|entry| entry.unwrap().path()));
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for word in [
            "Instant",
            "SystemTime",
            "tokio",
            "quinn",
            "std::fs",
            "std::env",
            "std::thread",
            "std::io",
            "HashMap",
            "HashSet",
            "UdpSocket",
            "SystemRandom",
            "async ",
            "tracing",
        ] {
            assert!(!text.contains(word), "{} names {word}", path.display());
        }
        read += 1;
    }
    assert!(read > 15);
}
