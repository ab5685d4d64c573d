//! Who is put out is out: at once where the root's word arrives, and for good.

mod counter;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podmesh_lab::node::program;
use podmesh_lab::ping::{PairReport, PingMatrix};
use podmesh_lab::process::{self, Process};
use podmesh_lab::{Lab, Mesh, Nat, Node, Planet, Pod, mesh, story, wait};
use podmesh_proto::local_api::{NodeState, StatusView};

use crate::world;
use counter::Counter;

/// The root's word must have reached everybody who is online.
const AT_ONCE: Duration = Duration::from_secs(5);
/// How long silence is listened to.
const SILENCE: Duration = Duration::from_secs(4);

#[test]
fn a_revoked_node_is_silenced_under_traffic_and_stays_so_for_whoever_was_away() {
    let lab = story::three_sites("revoked").up().unwrap();
    let mesh = Mesh::found(&lab, "planet-1").unwrap();
    mesh.join_all().unwrap();
    let [home, away, cloud, gone] = story::NODES.map(|name| lab.node(name).unwrap());
    let limit = Duration::from_secs(20);
    mesh.wait_for(&world::nodes(&lab), "paths", limit, mesh::is_direct)
        .unwrap();
    let pods = [home, cloud, gone].map(|node| node.add_pod(&format!("{}-a", node.name())).unwrap());
    let [home_pod, cloud_pod, gone_pod] = &pods;
    let pings = PingMatrix::start().unwrap();
    for pod in [home_pod, cloud_pod] {
        pings.add_pod(pod).unwrap();
    }
    away.power_cut().unwrap();
    let counters = both_ways(home_pod, gone_pod);
    let _traffic = iperf3(gone_pod, home_pod).unwrap();
    thread::sleep(Duration::from_secs(3));
    let before = counters.each_ref().map(Counter::packets);
    assert!(before.iter().all(|count| *count > 100), "{before:?}");

    let start = Instant::now();
    revoke(&mesh, cloud, gone.name()).unwrap();
    let last = last_packet(&counters, start);
    println!("figure the last packet came {last:?} after the revocation");
    assert!(last <= AT_ONCE, "{last:?}");
    let pairs = pings.report(start, Instant::now());
    assert_eq!(PairReport::lost_in(&pairs), 0, "members: {pairs:?}");
    assert_eq!(status(gone).unwrap().state, NodeState::Revoked);

    lab.planet("planet-1").unwrap().kill();
    comes_back_and_refuses((away, gone), &[home, cloud], gone_pod).unwrap();
}

#[test]
fn a_revoked_node_is_relayed_no_more() {
    let lab = behind_hard_nats();
    let mesh = Mesh::found(&lab, "planet-1").unwrap();
    mesh.join_all().unwrap();
    let nodes = ["left-1", "right-1"].map(|name| lab.node(name).unwrap());
    let limit = Duration::from_secs(15);
    mesh.wait_for(&nodes, "a relayed path", limit, mesh::is_relayed)
        .unwrap();
    let [left, right] = nodes.map(|node| node.add_pod(&format!("{}-a", node.name())).unwrap());
    let relayed = Counter::relayed(lab.planet("planet-1").unwrap()).unwrap();
    let [to_left, to_right] = both_ways(&left, &right);
    let _traffic = iperf3(&left, &right).unwrap();
    thread::sleep(Duration::from_secs(3));
    assert!(relayed.packets() > 100 && to_left.packets() > 100);

    let start = Instant::now();
    revoke(&mesh, nodes[1], "left-1").unwrap();
    let last = last_packet(&[relayed, to_left, to_right], start);
    println!("figure the planet relayed for {last:?} after the revocation");
    assert!(last <= AT_ONCE, "{last:?}");
}

#[test]
fn a_node_that_leaves_is_let_go_and_may_come_back_as_itself() {
    let lab = three_in_a_cloud("leaving");
    let mesh = Mesh::found(&lab, "planet-1").unwrap();
    mesh.join_all().unwrap();
    let [one, two, leaver] = ["cloud-1", "cloud-2", "cloud-3"].map(|name| lab.node(name).unwrap());
    let limit = Duration::from_secs(15);
    let all = [one, two, leaver];
    mesh.wait_for(&all, "paths", limit, mesh::is_direct)
        .unwrap();
    let before = status(leaver).unwrap().node.unwrap();

    leaver.meshctl(&["leave", "--yes"]).unwrap();
    let left = status(leaver).unwrap();
    assert_eq!((left.state, left.node), (NodeState::NotJoined, None));
    for peer in [one, two] {
        has_no_path_to(peer, leaver.name(), Duration::from_secs(10)).unwrap();
    }
    mesh.wait_for(&[one, two], "paths", limit, mesh::is_direct)
        .unwrap();

    let token = mesh.operator().token("again", &[]).unwrap();
    leaver.meshctl(&["join", token.to_str().unwrap()]).unwrap();
    mesh.wait_for(&all, "paths", limit, mesh::is_direct)
        .unwrap();
    let after = status(leaver).unwrap().node.unwrap();
    assert_eq!((after.id, after.addresses), (before.id, before.addresses));
}

#[test]
fn a_node_that_leaves_with_every_planet_dead_is_let_go_by_whoever_hears_of_it() {
    let lab = three_in_a_cloud("leaving-in-silence");
    let mesh = Mesh::found(&lab, "planet-1").unwrap();
    mesh.join_all().unwrap();
    let [one, away, leaver] = ["cloud-1", "cloud-2", "cloud-3"].map(|name| lab.node(name).unwrap());
    let limit = Duration::from_secs(15);
    let all = [one, away, leaver];
    mesh.wait_for(&all, "paths", limit, mesh::is_direct)
        .unwrap();
    let before = status(leaver).unwrap().node.unwrap();
    let planet = lab.planet("planet-1").unwrap();

    planet.kill();
    away.power_cut().unwrap();
    let start = Instant::now();
    leaver.meshctl(&["leave", "--yes"]).unwrap();
    knows_not(one, leaver.name()).unwrap();
    println!(
        "figure a peer let the leaver go after {:?}",
        start.elapsed()
    );
    leaver.stop().unwrap();
    away.power_on().unwrap();
    away.start().unwrap();
    reaches(away, one.name()).unwrap();
    knows_not(away, leaver.name()).unwrap();
    one.kill();
    one.start().unwrap();
    knows_not(one, leaver.name()).unwrap();

    planet.start().unwrap();
    for node in [one, away] {
        node.wait_online(limit).unwrap();
    }
    planet_lets_go(planet, leaver.name()).unwrap();
    leaver.start().unwrap();
    let token = mesh.operator().token("again", &[]).unwrap();
    leaver.meshctl(&["join", token.to_str().unwrap()]).unwrap();
    mesh.wait_for(&all, "paths", limit, mesh::is_direct)
        .unwrap();
    assert_eq!(status(leaver).unwrap().node.unwrap().id, before.id);
    thread::sleep(SILENCE);
    mesh.wait_for(&all, "paths", Duration::ZERO, mesh::is_direct)
        .unwrap();
}

#[test]
fn a_revoked_token_admits_nobody_more_and_hurts_no_member() {
    let lab = three_in_a_cloud("token");
    let mesh = Mesh::found(&lab, "planet-1").unwrap();
    let [one, two, late] = ["cloud-1", "cloud-2", "cloud-3"].map(|name| lab.node(name).unwrap());
    let token = mesh.operator().token("many", &["--uses", "9"]).unwrap();
    let join = ["join", token.to_str().unwrap()];
    for node in [one, two] {
        node.start().unwrap();
        node.meshctl(&join).unwrap();
    }
    let limit = Duration::from_secs(15);
    mesh.wait_for(&[one, two], "a path", limit, mesh::is_direct)
        .unwrap();
    let listed = mesh
        .operator()
        .meshctl(&["token", "list", "--json"])
        .unwrap();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let id = listed["items"][0]["id"].as_str().unwrap();
    let socket = lab.planet("planet-1").unwrap().runtime_dir();
    let socket = socket.join("planet.sock");
    let to_planet = ["--planet-socket", socket.to_str().unwrap()];
    let revoke = [&["token", "revoke", &id[..8], "--yes"], &to_planet[..]].concat();
    mesh.operator().meshctl(&revoke).unwrap();

    late.start().unwrap();
    let refused = late.meshctl_output(&join, process::SHORT).unwrap();
    let words = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{words}");
    assert!(
        words.contains("revoked this join token") && words.contains("new token"),
        "{words}"
    );
    assert_eq!(status(late).unwrap().state, NodeState::NotJoined);
    thread::sleep(SILENCE);
    mesh.wait_for(&[one, two], "a path", Duration::ZERO, mesh::is_direct)
        .unwrap();
}

/// The node that was away starts from its old cache, with the planet dead: its peers tell it. From
/// then on it needs nobody to remember.
fn comes_back_and_refuses(
    (away, gone): (&Node, &Node),
    peers: &[&Node],
    gone_pod: &Pod,
) -> Result<()> {
    away.power_on()?;
    away.start()?;
    let pod = away.add_pod("home-2-a")?;
    let counters = both_ways(&pod, gone_pod);
    let pings = PingMatrix::start()?;
    pings.add_pod(&pod)?;
    pings.add_pod(gone_pod)?;
    for peer in peers {
        reaches(away, peer.name())?;
    }
    let last = last_packet(&counters, Instant::now());
    ensure!(
        last <= AT_ONCE,
        "packets {last:?} after its peers could tell it"
    );
    has_no_path_to(away, gone.name(), Duration::ZERO)?;

    for node in peers {
        node.kill();
    }
    for node in [away, gone] {
        node.kill();
        node.start()?;
    }
    let restarted = Instant::now();
    let last = last_packet(&counters, restarted);
    ensure!(last.is_zero(), "a packet {last:?} after the restart");
    has_no_path_to(away, gone.name(), Duration::ZERO)
}

/// Waits until a node that has started has a path to the peer of this name.
fn reaches(node: &Node, name: &str) -> Result<()> {
    wait::until(
        &format!("a path to {name}"),
        Duration::from_secs(15),
        || {
            let peers = node.peers()?;
            let peer = peers.iter().find(|peer| peer.name.as_str() == name);
            Ok(match peer.filter(|peer| mesh::is_up(peer)) {
                Some(_) => wait::Now(()),
                None => wait::NotYet(format!("{peer:?}")),
            })
        },
    )
}

/// Waits until a node does not know the peer of this name at all.
fn knows_not(node: &Node, name: &str) -> Result<()> {
    wait::until(
        &format!("{} to forget {name}", node.name()),
        Duration::from_secs(5),
        || {
            let peers = node.peers()?;
            let peer = peers.into_iter().find(|peer| peer.name.as_str() == name);
            Ok(match peer {
                None => wait::Now(()),
                Some(peer) => wait::NotYet(format!("{peer:?}")),
            })
        },
    )
}

/// Waits until a planet has been told that this node left, and has freed what it held.
fn planet_lets_go(planet: &Planet, name: &str) -> Result<()> {
    let runtime = planet.runtime_dir().display().to_string();
    wait::until("the planet to hear of it", Duration::from_secs(10), || {
        let mut command = planet.namespace().command(program("planet")?);
        command.args(["status", "--runtime-dir", &runtime]);
        let shown = process::succeed(&mut command, b"")?;
        Ok(if shown.contains(name) {
            wait::NotYet(shown)
        } else {
            wait::Now(())
        })
    })
}

/// Three places for nodes with public addresses.
fn three_in_a_cloud(name: &str) -> Lab {
    let mut plan = Lab::plan(name);
    plan.planet("planet-1");
    plan.site("cloud");
    for node in ["cloud-1", "cloud-2", "cloud-3"] {
        plan.node(node).at("cloud");
    }
    plan.up().unwrap()
}

/// Two sites that no hole can be punched between.
fn behind_hard_nats() -> Lab {
    let mut plan = Lab::plan("relayed-and-revoked");
    plan.planet("planet-1");
    for (site, node) in [("left", "left-1"), ("right", "right-1")] {
        plan.site(site).nat(Nat::Symmetric);
        plan.node(node).at(site);
    }
    plan.up().unwrap()
}

fn revoke(mesh: &Mesh<'_>, at: &Node, name: &str) -> Result<()> {
    let folder = mesh.operator().folder();
    let folder = folder.to_str().context("the lab's folder is not UTF-8")?;
    at.meshctl(&["node", "revoke", name, "--yes", "--dir", folder])
        .map(drop)
}

/// Counts what arrives at each of two pods from the other one.
fn both_ways<'lab>(one: &'lab Pod, other: &'lab Pod) -> [Counter<'lab>; 2] {
    [(one, other), (other, one)].map(|(at, from)| Counter::from_pod(at, from).unwrap())
}

/// iperf3 in both directions until it is dropped.
fn iperf3(from: &Pod, to: &Pod) -> Result<Process> {
    to.serve_iperf3()?;
    let mut command = from.namespace().command("iperf3");
    command.args(["--client", &to.address(false)?.to_string(), "--bidir"]);
    command.args(["--time", "120", "--bitrate", "20M"]);
    let log = std::env::temp_dir().join(format!("{}.log", from.namespace().name()));
    let client = Process::start("iperf3", command, &log)?;
    // The open file is enough for the client; its name would only be litter.
    let _ = std::fs::remove_file(&log);
    Ok(client)
}

/// When the last packet was seen, after `start`; listens until there is silence.
fn last_packet(counters: &[Counter<'_>], start: Instant) -> Duration {
    let count = || counters.iter().map(Counter::packets).sum::<u64>();
    let (mut seen, mut last) = (count(), start);
    while Instant::now() < last.max(start) + AT_ONCE + SILENCE && last < start + 3 * AT_ONCE {
        thread::sleep(Duration::from_millis(50));
        let now = count();
        if now != seen {
            (seen, last) = (now, Instant::now());
        }
    }
    last - start
}

/// Waits until `node` has no path to the peer of this name, and whatever it says of it isn't "up".
fn has_no_path_to(node: &Node, name: &str, patience: Duration) -> Result<()> {
    wait::until(
        &format!("{} to let {name} go", node.name()),
        patience,
        || {
            let peers = node.peers()?;
            let peer = peers.iter().find(|peer| peer.name.as_str() == name);
            Ok(match peer.filter(|peer| mesh::is_up(peer)) {
                None => wait::Now(()),
                Some(peer) => wait::NotYet(format!("{peer:?}")),
            })
        },
    )
}

fn status(node: &Node) -> Result<StatusView> {
    Ok(serde_json::from_value(node.meshctl_json(&["status"])?)?)
}
