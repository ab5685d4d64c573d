//! A membership that ends goes on as long as the root doesn't mind, and keys change, without anybody
//! who uses the mesh noticing.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use podmesh_lab::ping::{PairReport, PingMatrix};
use podmesh_lab::{Lab, Mesh, Nat, Node, Pod, mesh, wait};
use podmesh_proto::local_api::{HealthView, NodeState, PeerDetail, SelfView, StatusView};

use crate::ended;

/// A membership of the test lasts this long, in seconds.
const LIFE: u64 = 30;
/// Clocks may differ by this, so an ended membership is let go this much later.
const SKEW: u64 = podmesh_proto::limits::CLOCK_SKEW;
const SOON: Duration = Duration::from_secs(15);

#[test]
fn short_memberships_go_on_and_keys_change_under_traffic() {
    let lab = two_sites("renewals");
    let mesh = Mesh::found(&lab, "planet-1").unwrap();
    let nodes = ["home-1", "cloud-1"].map(|name| lab.node(name).unwrap());
    join(&mesh, &nodes);
    let [home, cloud] = nodes;
    let pods = nodes.map(|node| node.add_pod(&format!("{}-a", node.name())).unwrap());
    let pings = PingMatrix::start().unwrap();
    for pod in &pods {
        pings.add_pod(pod).unwrap();
    }
    pings.wait_for_all(5, Duration::from_secs(10)).unwrap();

    let start = Instant::now();
    for node in nodes {
        serial_reaches(node, 3, Duration::from_secs(4 * LIFE));
    }
    let sent = lost_none(&pings, start);
    println!("figure none of {sent} pings lost during renewals");

    let start = Instant::now();
    for (node, peer, words) in [
        (home, cloud, &["node", "rotate-keys"][..]),
        (cloud, home, &["node", "rotate-keys", "--identity"]),
    ] {
        let [done, known] = rotate(node, peer, words);
        let name = node.name();
        println!("figure new keys of {name} after {done:?}, known after {known:?}");
    }
    // And the renewals after a rotation.
    for node in nodes {
        let serial = own(node).serial;
        serial_reaches(node, serial + 1, Duration::from_secs(2 * LIFE));
    }
    let sent = lost_none(&pings, start);
    println!("figure none of {sent} pings lost during rotations");
    assert!(health(home).is_empty() && health(cloud).is_empty());

    // The keys of the next life are the new ones.
    let [before, id] = [own(cloud).wireguard.to_string(), own(cloud).id.to_string()];
    cloud.kill();
    cloud.start().unwrap();
    mesh.wait_for(&nodes, "a direct path again", SOON, mesh::is_direct)
        .unwrap();
    let after = own(cloud);
    assert_eq!(
        [after.wireguard.to_string(), after.id.to_string()],
        [before, id]
    );
}

#[test]
#[ignore = "waits for the tolerance between clocks, six minutes; `make soak` plays it"]
fn who_is_not_renewed_lives_to_its_end_and_is_out_then() {
    let lab = two_sites("not-renewed");
    let mesh = Mesh::found(&lab, "planet-1").unwrap();
    let [stays, goes] = ["home-1", "cloud-1"].map(|name| lab.node(name).unwrap());
    mesh.join(stays).unwrap();
    let life = format!("{LIFE}s");
    let token = mesh
        .operator()
        .token("short", &["--membership", &life])
        .unwrap();
    goes.start().unwrap();
    goes.meshctl(&["join", token.to_str().unwrap()]).unwrap();
    mesh.wait_for(&[stays, goes], "a path", SOON, mesh::is_up)
        .unwrap();
    let pods = [stays, goes].map(|node| node.add_pod(&format!("{}-a", node.name())).unwrap());
    let pings = PingMatrix::start().unwrap();
    for (node, pod) in [stays, goes].into_iter().zip(&pods) {
        let addresses = own(node).addresses;
        pings
            .add(node.name(), &node.namespace(), &addresses)
            .unwrap();
        pings.add_pod(pod).unwrap();
    }
    revoke_short_token(&lab, &mesh);
    let end = Instant::now() + Duration::from_secs(LIFE + SKEW);

    let refused = told(goes, "MESH-NODE-004", Duration::from_secs(LIFE)).message;
    assert!(refused.contains("revoked the join token"), "{refused}");
    assert_eq!(own(goes).serial, 0);
    thread::sleep((end - Duration::from_secs(20)).saturating_duration_since(Instant::now()));
    assert!(
        mesh.reach(&[stays, goes])
            .unwrap()
            .iter()
            .all(|reach| reach.view.is_some())
    );
    let patience = end.saturating_duration_since(Instant::now()) + SOON;
    wait::until("the peer to let it go", patience, || {
        let peers = stays.peers()?;
        Ok(match peers.is_empty() {
            true => wait::Now(()),
            false => wait::NotYet(format!("{peers:?}")),
        })
    })
    .unwrap();
    let late = Instant::now().saturating_duration_since(end);
    println!("figure let go {late:?} after the end of its life and the clocks' tolerance");
    let next = told(goes, "MESH-NODE-002", SOON).next.unwrap();
    assert!(next.contains("meshctl leave"), "{next}");
    assert_eq!(status(stays).state, NodeState::Online);
    let [_, of_goes] = pods;
    what_stands_is_kept_in(goes, &pings, of_goes);
}

/// The capture judges what its pod and the node itself send for the mesh.
fn what_stands_is_kept_in(node: &Node, pings: &PingMatrix, pod: Arc<Pod>) {
    for end in [Node::kill, |node: &Node| node.stop().unwrap()] {
        ended::is_out(node, NodeState::Ended);
        ended::is_closed(node);
        ended::is_refused(node);
        thread::sleep(Duration::from_secs(5));
        end(node);
        ended::is_guarded(node);
        node.start().unwrap();
    }
    for name in [node.name(), pod.name()] {
        pings.remove(name).unwrap();
    }
    // It holds on to the machine's namespace.
    drop(pod);
    node.power_cut().unwrap();
    node.power_on().unwrap();
    node.start().unwrap();
    ended::is_out(node, NodeState::Ended);
    ended::is_closed(node);
    ended::is_refused(node);
    node.meshctl(&["leave", "--yes"]).unwrap();
    ended::is_bare(node);
}

fn two_sites(name: &str) -> Lab {
    let mut plan = Lab::plan(name);
    plan.planet("planet-1");
    plan.site("home").nat(Nat::PortRestricted);
    plan.site("cloud").ipv6();
    plan.node("home-1").at("home");
    plan.node("cloud-1").at("cloud");
    plan.delay("home", "cloud", Duration::from_millis(20));
    plan.up().unwrap()
}

/// Lets them join for [`LIFE`].
fn join(mesh: &Mesh<'_>, nodes: &[&Node]) {
    let life = format!("{LIFE}s");
    let token = mesh
        .operator()
        .token("short", &["--membership", &life, "--uses", "9"])
        .unwrap();
    for node in nodes {
        node.start().unwrap();
        node.meshctl(&["join", token.to_str().unwrap()]).unwrap();
    }
    mesh.wait_for(nodes, "a direct path", SOON, mesh::is_direct)
        .unwrap();
}

fn revoke_short_token(lab: &Lab, mesh: &Mesh<'_>) {
    let listed = mesh
        .operator()
        .meshctl(&["token", "list", "--json"])
        .unwrap();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let items = listed["items"].as_array().unwrap();
    let short = items.iter().find(|item| item["membership_s"] == LIFE);
    let id = short.unwrap()["id"].as_str().unwrap();
    let socket = lab.planet("planet-1").unwrap().runtime_dir();
    let socket = socket.join("planet.sock");
    let to_planet = ["--planet-socket", socket.to_str().unwrap()];
    let revoke = [&["token", "revoke", &id[..8], "--yes"], &to_planet[..]].concat();
    mesh.operator().meshctl(&revoke).unwrap();
}

fn status(node: &Node) -> StatusView {
    let value = node.meshctl_json(&["status"]).unwrap();
    serde_json::from_value(value).unwrap()
}

fn own(node: &Node) -> SelfView {
    status(node).node.unwrap()
}

fn health(node: &Node) -> Vec<HealthView> {
    status(node).health
}

/// Waits until the node's status has an entry with this code.
fn told(node: &Node, code: &str, patience: Duration) -> HealthView {
    wait::until("the node to say it", patience, || {
        let health = health(node);
        match health.iter().find(|entry| entry.code == code) {
            Some(entry) => Ok(wait::Now(entry.clone())),
            None => Ok(wait::NotYet(format!("{health:?}"))),
        }
    })
    .unwrap()
}

fn detail(node: &Node, peer: &Node) -> PeerDetail {
    let value = node.meshctl_json(&["peer", peer.name()]).unwrap();
    serde_json::from_value(value).unwrap()
}

fn serial_reaches(node: &Node, serial: u64, patience: Duration) {
    wait::until("the membership to go on", patience, || {
        let own = own(node);
        if own.serial >= serial {
            return Ok(wait::Now(()));
        }
        Ok(wait::NotYet(format!(
            "serial {} until {:?}",
            own.serial, own.expires
        )))
    })
    .unwrap();
}

/// Changes the keys of `node`; gives how long that took, and how long until `peer` knew.
fn rotate(node: &Node, peer: &Node, words: &[&str]) -> [Duration; 2] {
    let before = own(node);
    let asked = Instant::now();
    node.meshctl(words).unwrap();
    let done = asked.elapsed();
    let after = own(node);
    assert_eq!((before.id, &before.name), (after.id, &after.name));
    assert_eq!(before.addresses, after.addresses);
    assert_ne!(before.wireguard, after.wireguard);
    assert!(after.serial > before.serial && after.expires.is_some());
    let known = wait::until("the peer to know the new key", SOON, || {
        let known = detail(peer, node);
        if known.wireguard == after.wireguard && known.serial >= after.serial {
            return Ok(wait::Now(asked.elapsed()));
        }
        Ok(wait::NotYet(format!("serial {}", known.serial)))
    });
    thread::sleep(Duration::from_secs(3));
    let session = detail(peer, node).peer.handshake_s;
    assert!(
        session.is_some_and(|age| age <= 5),
        "no new session: {session:?}"
    );
    [done, known.unwrap()]
}

/// Fails if a ping was lost since `start`; gives the number of those that were sent.
fn lost_none(pings: &PingMatrix, start: Instant) -> usize {
    let pairs = pings.report(start, Instant::now());
    assert_eq!(PairReport::lost_in(&pairs), 0, "{pairs:?}");
    PairReport::sent_in(&pairs)
}
