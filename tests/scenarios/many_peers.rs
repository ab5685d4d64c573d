//! What a node pays for members that it doesn't talk to.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use podmesh_lab::{Lab, Mesh, Node, process, wait};

use crate::world;

/// KiB of memory for each.
const MEMORY: f64 = 64.0;
/// Share of one processor for all of them.
const SHARE: f64 = 0.003;
/// How often any of its threads wakes in a second: tunnels and traffic are looked at twice, planets
/// and peers now and then.
const WAKES: f64 = 12.0;

#[test]
fn members_that_nobody_talks_to_cost_next_to_nothing() {
    // More than a node looks after unasked.
    let number = world::times(300, 1_000);
    let lab = one_cloud();
    // So that a thousand of them fit the range of pods.
    let mesh = Mesh::found_with(&lab, "planet-1", &["--pod-block", "27"]).unwrap();
    let nodes = ["cloud-1", "cloud-2"].map(|name| lab.node(name).unwrap());
    for node in nodes {
        mesh.join(node).unwrap();
    }
    thread::sleep(Duration::from_secs(2));
    let before = memory(nodes[0]);
    let begin = Instant::now();
    let token = mesh
        .operator()
        .token("crowd", &["--uses", &number.to_string()])
        .unwrap();
    let mut crowd = lab
        .node("bystander")
        .unwrap()
        .namespace()
        .command(podmesh_lab::node::program("rogue").unwrap());
    crowd.args(["crowd", "--count", &number.to_string(), "--token"]);
    let output = process::output(crowd.arg(token), b"", Duration::from_secs(500)).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    wait::until("the crowd to be known", Duration::from_secs(20), || {
        let known = nodes[0].peers()?.len();
        Ok(if known > number {
            wait::Now(())
        } else {
            wait::NotYet(format!("{known} peers"))
        })
    })
    .unwrap();
    println!(
        "figure {number} members joined and known after {:?}",
        begin.elapsed()
    );
    // What the joins themselves have cost settles, and is written. The short form watches while those
    // that were called in vain, when they were few, are still awake: they cost nothing, either.
    thread::sleep(Duration::from_secs(world::times(10, 60) as u64));
    let each = (memory(nodes[0]) - before) / number as f64;
    let watched = Duration::from_secs(world::times(30, 60) as u64);
    let (worked, woken) = (processor_time(nodes[0]), wakes(nodes[0]));
    thread::sleep(watched);
    let share = (processor_time(nodes[0]) - worked) / watched.as_secs_f64();
    let wakes = (wakes(nodes[0]) - woken) as f64 / watched.as_secs_f64();
    println!("figure {wakes:.1} times per second something of it wakes (bound {WAKES})");
    println!("figure {each:.1} KiB for each of {number} idle peers (bound {MEMORY})");
    println!(
        "figure {:.2} % of a processor for all of them (bound {:.2})",
        share * 100.0,
        SHARE * 100.0
    );
    assert!(each <= MEMORY, "{each} KiB");
    assert!(share <= SHARE, "{share}");
    assert!(wakes <= WAKES, "{wakes}");
}

fn one_cloud() -> Lab {
    let mut plan = Lab::plan("many-peers");
    plan.planet("planet-1");
    plan.site("cloud");
    for name in ["cloud-1", "cloud-2", "bystander"] {
        plan.node(name).at("cloud");
    }
    plan.up().unwrap()
}

/// KiB that meshd holds.
fn memory(node: &Node) -> f64 {
    let pid = node.meshd().unwrap().pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.unwrap().parse().unwrap()
}

/// Seconds that meshd's threads have been on a processor. The times in /proc/*/stat are guessed by
/// whether a thread runs when the clock ticks, which says nothing about so little.
fn processor_time(node: &Node) -> f64 {
    let pid = node.meshd().unwrap().pid();
    let mut nanos = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        let spent = text
            .split(' ')
            .next()
            .and_then(|field| field.parse::<u64>().ok());
        nanos += spent.unwrap_or(0);
    }
    Duration::from_nanos(nanos).as_secs_f64()
}

/// How often meshd's threads have gone to sleep so far.
fn wakes(node: &Node) -> u64 {
    let pid = node.meshd().unwrap().pid();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let counts = tasks.map(|task| {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let mut lines = status.lines();
        let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count.map_or(0, |count| count.trim().parse::<u64>().unwrap())
    });
    counts.sum()
}
