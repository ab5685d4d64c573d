//! Random faults of a host, one after the other, on a node full of pods: after each all pods talk again
//! within five seconds, or Health names the cause; nothing leaves in plaintext, and nothing is left over.

mod faults;
mod talk;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use podmesh_lab::{Lab, Mesh, Node, mesh, wait};

use crate::world;
use faults::{Fault, Kind, Random};
use talk::Talk;

/// For all pods to talk again, or for Health to say why they don't.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longer, so that a slow machine is told from one that never gets well.
const LIMIT: Duration = Duration::from_secs(20);
/// Descriptors that a meshd has more or fewer from one moment to the next.
const MOVING: usize = 6;

#[test]
fn a_node_full_of_pods_gets_over_whatever_is_done_to_its_host() {
    let lab = two_nodes();
    let (node, far) = (lab.node("cloud-1").unwrap(), lab.node("cloud-2").unwrap());
    let pods: Vec<_> = (0..world::times(8, 20))
        .map(|number| node.add_pod(&format!("p{number}")).unwrap())
        .collect();
    let far = far.add_pod("far").unwrap();
    let talk = Talk::among(&far, &pods);
    talk.wait(LIMIT).unwrap();
    let (before, descriptors_before) = (holdings(node), descriptors(node));

    let seed = seed();
    println!("figure seed {seed} (HOST_FAULTS_SEED)");
    let mut random = Random::new(seed);
    let count = number("HOST_FAULTS").unwrap_or(world::times(15, 1_000) as u64);
    let mut times = BTreeMap::<Kind, Vec<Duration>>::new();
    for round in 0..count {
        let fault = Fault::any(&mut random, &pods);
        let said = format!("seed {seed}, fault {round}: {fault:?}");
        let committed = fault.commit(node);
        committed.unwrap_or_else(|error| panic!("{said}: {error:#}"));
        if fault.kind.is_named() {
            wait_for_words(node, &fault).unwrap_or_else(|error| panic!("{said}: {error:#}"));
            fault.undo(node).unwrap();
        }
        let took = talk
            .wait(LIMIT)
            .unwrap_or_else(|error| panic!("{said}: {error:#}"));
        let whole = compare(node, &before).unwrap_or_else(|error| panic!("{said}: {error:#}"));
        times.entry(fault.kind).or_default().push(took.max(whole));
        if (round + 1) % 100 == 0 {
            println!("{} faults are over", round + 1);
        }
        if fault.kind.takes_files() {
            wait_for_files(node).unwrap_or_else(|error| panic!("{said}: {error:#}"));
        }
    }
    let (lines, longest) = report(&times);
    for line in lines {
        println!("figure {line}");
    }
    lab.capture().must_be_clean().unwrap();
    compare(node, &before).unwrap();
    // A leak of one per fault would show.
    let (first, last) = (descriptors_before, descriptors(node));
    println!("figure {first} descriptors at the start, {last} at the end");
    assert!(last <= first + MOVING, "{last} descriptors");
    assert!(longest <= bound(), "{longest:?}");
}

fn two_nodes() -> Lab {
    let mut plan = Lab::plan("host-faults");
    plan.planet("planet-1").ipv6();
    plan.site("cloud").ipv6();
    plan.node("cloud-1").at("cloud");
    plan.node("cloud-2").at("cloud");
    let lab = plan.up().unwrap();
    let mesh = Mesh::found(&lab, "planet-1").unwrap();
    mesh.join_all().unwrap();
    let limit = Duration::from_secs(20);
    mesh.wait_for(&world::nodes(&lab), "direct paths", limit, mesh::is_direct)
        .unwrap();
    lab
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// The short form plays the same faults each time.
fn seed() -> u64 {
    let fresh = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(1, |now| now.as_secs())
    };
    number("HOST_FAULTS_SEED").unwrap_or_else(|| {
        if std::env::var_os("LAB_LONG").is_some() {
            fresh()
        } else {
            1
        }
    })
}

fn there(is_there: bool) -> wait::Look<()> {
    if is_there {
        wait::Now(())
    } else {
        wait::NotYet("not there".to_owned())
    }
}

/// Until what others need of the runtime folder is there and can be read.
fn wait_for_files(node: &Node) -> anyhow::Result<()> {
    let begin = Instant::now();
    let folder = node.runtime_dir();
    wait::until("socket and node file", LIMIT, || {
        let mode = fs::metadata(folder.join("meshd.sock")).map(|found| found.mode());
        let file = fs::read_to_string(folder.join("node.json")).unwrap_or_default();
        let is_whole = serde_json::from_str::<serde_json::Value>(&file).is_ok();
        Ok(there(
            mode.is_ok_and(|mode| mode & 0o600 == 0o600) && is_whole,
        ))
    })?;
    let took = begin.elapsed();
    anyhow::ensure!(took <= bound(), "back after {took:?}");
    Ok(())
}

/// Until Health names the cause of a fault that meshd has no right to mend.
fn wait_for_words(node: &Node, fault: &Fault) -> anyhow::Result<()> {
    let begin = Instant::now();
    wait::until("Health to name the cause", LIMIT, || {
        let status = node.meshctl_json(&["status"])?;
        let health = status["health"].to_string();
        Ok(
            if fault.kind.words().iter().any(|word| health.contains(word)) {
                wait::Now(())
            } else {
                wait::NotYet(health)
            },
        )
    })?;
    let took = begin.elapsed();
    anyhow::ensure!(took <= bound(), "named after {took:?}");
    Ok(())
}

/// The long form has the machine to itself; on one that is busy with other things everything takes its
/// time.
fn bound() -> Duration {
    let is_long = std::env::var_os("LAB_LONG").is_some();
    if is_long { PATIENCE } else { PATIENCE * 2 }
}

/// The figures, and the longest time.
fn report(times: &BTreeMap<Kind, Vec<Duration>>) -> (Vec<String>, Duration) {
    let mut all: Vec<_> = times.values().flatten().copied().collect();
    all.sort();
    let mut lines: Vec<_> = times
        .iter()
        .map(|(kind, times)| {
            let longest = times.iter().max().copied().unwrap_or_default();
            format!("{kind:?}: {} times, {longest:?} at most", times.len())
        })
        .collect();
    let at = |share: usize| all[(all.len() * share / 100).min(all.len() - 1)];
    let late = all.iter().filter(|took| **took > PATIENCE).count();
    lines.push(format!(
        "{} faults: all pods talk again, and the host is as before, after {:?} (median), {:?} (p95), {:?} at most; {late} beyond {PATIENCE:?}",
        all.len(),
        at(50),
        at(95),
        at(100)
    ));
    (lines, at(100))
}

/// What a node holds, by name; numbers that differ from one moment to the next are left out.
fn holdings(node: &Node) -> BTreeMap<&'static str, String> {
    let lines = |words: &[&str]| {
        let shown = node.namespace().run(words).unwrap();
        // What a path carries depends on which of two families was faster.
        let lines = shown.lines().map(|line| match line.split_once(" mtu ") {
            Some((route, rest)) => format!("{route}{}", rest.trim_start_matches(char::is_numeric)),
            None => line.to_owned(),
        });
        let mut lines: Vec<_> = lines.map(|line| line.trim_end().to_owned()).collect();
        lines.sort_unstable();
        lines.join("\n")
    };
    let names = |folder: std::path::PathBuf| {
        // One that somebody has taken away has none.
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names.join("\n")
    };
    let links = lines(&["ip", "-br", "link"]);
    let links = links
        .lines()
        .filter_map(|line| line.split(['@', ' ']).next());
    BTreeMap::from([
        ("links", links.collect::<Vec<_>>().join("\n")),
        (
            "addresses of mesh0",
            lines(&[
                "sh",
                "-c",
                "ip -br addr show mesh0 | tr ' ' '\\n' | grep -v fe80",
            ]),
        ),
        (
            "rules",
            lines(&["ip", "rule"]) + &lines(&["ip", "-6", "rule"]),
        ),
        ("routes", lines(&["ip", "route", "show", "table", "7077"])),
        (
            "routes of IPv6",
            lines(&["ip", "-6", "route", "show", "table", "7077"]),
        ),
        ("nftables", lines(&["nft", "-s", "list", "ruleset"])),
        ("ledger", names(node.ledger_dir())),
        ("runtime folder", names(node.runtime_dir())),
    ])
}

fn descriptors(node: &Node) -> usize {
    let folder = format!("/proc/{}/fd", node.meshd().unwrap().pid());
    fs::read_dir(folder).unwrap().count()
}

/// Waits until everything of the host is as it was; how long that took.
fn compare(node: &Node, before: &BTreeMap<&'static str, String>) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    wait::until("the host to be as before", LIMIT, || {
        let after = holdings(node);
        let differs = before
            .iter()
            .find(|(name, what)| after.get(*name) != Some(what));
        Ok(match differs {
            None => wait::Now(begin.elapsed()),
            Some((name, what)) => wait::NotYet(format!("{name}:\n{what}\nthen:\n{}", after[name])),
        })
    })
}
