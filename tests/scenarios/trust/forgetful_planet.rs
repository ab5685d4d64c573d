//! The planet's store is lost, or restored from a day before.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use podmesh_lab::{Lab, Mesh, Node, process, wait};

use super::health;

#[test]
fn a_planet_restored_from_yesterday_leases_nothing_twice_and_loses_nobody() {
    let lab = five_nodes("restored-planet");
    let mesh = Mesh::found(&lab, "planet-1").unwrap();
    let planet = lab.planet("planet-1").unwrap();
    let yesterday = lab.folder().join("yesterday").display().to_string();
    join(&mesh, &lab, &["one", "two"]);
    let state = planet.state_dir().display().to_string();
    let runtime = planet.runtime_dir().display().to_string();
    let dirs = ["--state-dir", &state, "--runtime-dir", &runtime];
    command(&lab, &[["backup", &yesterday].as_slice(), &dirs].concat());
    join(&mesh, &lab, &["three", "four"]);
    everybody_is_there(&lab, &["one", "two", "three", "four"]);

    planet.kill();
    command(
        &lab,
        &["restore", &yesterday, "--yes", "--state-dir", &state],
    );
    planet.start().unwrap();
    join(&mesh, &lab, &["five"]);
    everybody_is_there(&lab, &NAMES);
}

#[test]
fn a_planet_whose_disk_is_a_day_old_leases_nothing_twice_and_loses_nobody() {
    let lab = five_nodes("old-planet");
    let mesh = Mesh::found(&lab, "planet-1").unwrap();
    let planet = lab.planet("planet-1").unwrap();
    let yesterday = lab.folder().join("yesterday");
    join(&mesh, &lab, &["one", "two"]);
    planet.stop().unwrap();
    copy(&planet.state_dir(), &yesterday);
    planet.start().unwrap();
    join(&mesh, &lab, &["three", "four"]);
    everybody_is_there(&lab, &["one", "two", "three", "four"]);

    planet.kill();
    fs::remove_dir_all(planet.state_dir()).unwrap();
    copy(&yesterday, &planet.state_dir());
    planet.start().unwrap();
    join(&mesh, &lab, &["five"]);
    everybody_is_there(&lab, &NAMES);
}

#[test]
fn a_planet_whose_store_is_wiped_relearns_before_it_leases() {
    let lab = five_nodes("wiped-planet");
    let mesh = Mesh::found(&lab, "planet-1").unwrap();
    let planet = lab.planet("planet-1").unwrap();
    join(&mesh, &lab, &["one", "two", "three", "four"]);
    everybody_is_there(&lab, &["one", "two", "three", "four"]);

    planet.kill();
    for file in fs::read_dir(planet.state_dir()).unwrap() {
        let file = file.unwrap();
        if file.file_name() != "planet.key" {
            fs::remove_file(file.path()).unwrap();
        }
    }
    planet.adopt(&mesh.operator().document()).unwrap();
    planet.start().unwrap();
    join(&mesh, &lab, &["five"]);
    everybody_is_there(&lab, &NAMES);
}

const NAMES: [&str; 5] = ["one", "two", "three", "four", "five"];

fn five_nodes(name: &str) -> Lab {
    let mut plan = Lab::plan(name);
    plan.planet("planet-1");
    plan.site("cloud");
    for name in NAMES {
        plan.node(name).at("cloud");
    }
    plan.delay("cloud", "planet-1", Duration::from_millis(5));
    plan.up().unwrap()
}

/// Lets nodes join. A planet that relearns makes them wait, so there is more time than usual.
fn join(mesh: &Mesh<'_>, lab: &Lab, names: &[&str]) {
    for name in names {
        let node = lab.node(name).unwrap();
        let token = mesh.operator().token(name, &[]).unwrap();
        node.start().unwrap();
        let words = ["join", token.to_str().unwrap(), "--timeout", "170s"];
        let output = node
            .meshctl_output(&words, Duration::from_secs(180))
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {said}");
        node.wait_online(Duration::from_secs(15)).unwrap();
    }
}

/// Everybody knows everybody, and nobody has what another one has.
fn everybody_is_there(lab: &Lab, names: &[&str]) {
    let nodes: Vec<&Node> = names.iter().map(|name| lab.node(name).unwrap()).collect();
    for node in &nodes {
        node.wait_online(Duration::from_secs(60)).unwrap();
        wait::until("all members to be known", Duration::from_secs(60), || {
            let peers = node.peers()?;
            Ok(if peers.len() + 1 == names.len() {
                wait::Now(())
            } else {
                wait::NotYet(format!("{} knows {} peers", node.name(), peers.len()))
            })
        })
        .unwrap();
    }
    let mut leased = BTreeSet::new();
    let mut count = 0;
    for node in &nodes {
        let status = health::status(node).unwrap();
        let own = status.node.unwrap();
        assert_eq!(own.addresses.len(), 2, "{own:?}");
        assert_eq!(own.pod_cidrs.len(), 2, "{own:?}");
        let prefixes = own.addresses.iter().map(ToString::to_string);
        for prefix in prefixes.chain(own.pod_cidrs.iter().map(ToString::to_string)) {
            assert!(leased.insert(prefix.clone()), "{prefix} was leased twice");
            count += 1;
        }
        let trust = status
            .health
            .iter()
            .filter(|view| view.code.starts_with("MESH-TRUST-002"));
        assert_eq!(trust.count(), 0, "{:?}", status.health);
    }
    println!("figure {} nodes hold {count} different leases", nodes.len());
}

fn copy(from: &Path, to: &Path) {
    let mut copying = std::process::Command::new("cp");
    let copied = copying.arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

/// A command of the planet's own.
fn command(lab: &Lab, words: &[&str]) {
    let planet = lab.planet("planet-1").unwrap();
    let program = podmesh_lab::node::program("planet").unwrap();
    let mut command = planet.namespace().command(program);
    process::succeed(command.args(words), b"").unwrap();
}
