//! The world of the demo: a home and two clouds, as a person with one cluster over them has it.

use std::time::Duration;

use crate::lab::{Lab, Plan};
use crate::nat::Nat;

/// The nodes of the story, as they join.
pub const NODES: [&str; 4] = ["home-1", "home-2", "cloud-a-1", "cloud-b-1"];

/// Milliseconds from one place to another, one way.
pub const DISTANCES: [(&str, &str, u64); 6] = [
    ("home", "cloud-a", 20),
    ("home", "cloud-b", 40),
    ("cloud-a", "cloud-b", 20),
    ("home", "planet-1", 15),
    ("cloud-a", "planet-1", 10),
    ("cloud-b", "planet-1", 25),
];

/// A planet in the public net; two nodes at home behind a masquerading router; a public node in
/// cloud A; a node in cloud B behind a router that accepts inbound packets.
pub fn three_sites(name: &str) -> Plan {
    let mut plan = Lab::plan(name);
    plan.planet("planet-1");
    plan.site("home").nat(Nat::PortRestricted);
    plan.site("cloud-a").nat(Nat::Open);
    plan.site("cloud-b").nat(Nat::Poisonable);
    plan.node("home-1").at("home");
    plan.node("home-2").at("home");
    plan.node("cloud-a-1").at("cloud-a");
    plan.node("cloud-b-1").at("cloud-b");
    for (one, other, milliseconds) in DISTANCES {
        plan.delay(one, other, Duration::from_millis(milliseconds));
    }
    plan
}
