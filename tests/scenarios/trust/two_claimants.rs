//! Two members claim one pod CIDR, both with a planet's receipt: who knew one of them keeps it, who
//! knew neither routes to neither, and the root decides for everybody.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use podmesh_lab::ping::{PairReport, PingMatrix};
use podmesh_lab::{Lab, Mesh, Node, Pod, mesh, wait};
use podmesh_proto::local_api::PeerState;
use serde_json::{Value, json};

use super::health::{self, must_name};
use crate::puppet::{Puppet, loot_of, strings};

/// A newcomer wants what a known member holds.
const CONFLICT: &[&str] = &["MESH-TRUST-002"];
/// Two that were not known before want the same.
const CONTESTED: &[&str] = &["MESH-TRUST-003"];
/// For the root's word, and for paths.
const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn a_newcomer_routes_to_neither_of_two_claimants_until_the_root_decides() {
    let lab = four_sites();
    let mesh = Mesh::found(&lab, "planet-1").unwrap();
    let token = mesh.operator().token("mallory", &[]).unwrap();
    let rival = lab.node("mallory").unwrap();
    let _rival = Puppet::member(rival, &token).unwrap();
    let [alice, bob, dave] = ["alice", "bob", "dave"].map(|name| lab.node(name).unwrap());
    for node in [alice, bob] {
        mesh.join(node).unwrap();
    }
    mesh.wait_for(&[alice, bob], "a path", LIMIT, mesh::is_direct)
        .unwrap();
    let pods = [alice, bob].map(|node| node.add_pod(&format!("{}-a", node.name())).unwrap());
    let pings = PingMatrix::start().unwrap();
    for pod in &pods {
        pings.add_pod(pod).unwrap();
    }
    pings.wait_for_all(5, Duration::from_secs(10)).unwrap();
    let start = Instant::now();

    let thief = steal(&lab, &mesh, &[alice, bob]);
    let claim = json!({ "do": "claim", "victim": "alice", "prey": "pod-cidr", "kept": true });
    let claimed = thief.order(&claim).unwrap();
    let words = ["mallory", "alice"].map(str::to_owned);
    let named = must_name(bob, (CONFLICT, &words), &[]).unwrap();
    println!("figure who knew the holder says {named}");

    mesh.join(dave).unwrap();
    let named = must_name(dave, (CONTESTED, &words), &[]).unwrap();
    println!("figure who knew neither says {named}");
    for one in &words {
        let state = state_of(dave, one).unwrap();
        assert_eq!(state, Some(PeerState::Quarantined), "{one}");
    }
    mesh.wait_for(&[bob, dave], "a path", LIMIT, mesh::is_direct)
        .unwrap();
    let newcomer = dave.add_pod("dave-a").unwrap();
    must_reach(&newcomer, &pods[1]).unwrap();
    assert!(!reaches(&newcomer, &pods[0]), "routed to a contested one");
    routes_to_none_of(dave, &strings(&claimed["pod_cidrs"])).unwrap();
    let pairs = pings.report(start, Instant::now());
    assert_eq!(PairReport::lost_in(&pairs), 0, "{pairs:?}");

    // The planet withholds it: the nodes tell each other.
    resolve(&mesh, bob, "alice").unwrap();
    holds(dave, "alice").unwrap();
    must_reach(&newcomer, &pods[0]).unwrap();
    let pairs = pings.report(start, Instant::now());
    assert_eq!(PairReport::lost_in(&pairs), 0, "{pairs:?}");
    let all = [alice, bob, dave];
    drop(thief);
    restart(&all);
    for node in [bob, dave] {
        holds(node, "alice").unwrap();
    }
    must_reach(&newcomer, &pods[0]).unwrap();

    the_other_one_it_is(&mesh, all, [&pods[0], &pods[1], &newcomer]);
}

/// The root has been wrong.
fn the_other_one_it_is(mesh: &Mesh<'_>, nodes: [&Node; 3], pods: [&Pod; 3]) {
    let ([_, bob, dave], [of_alice, of_bob, of_dave]) = (nodes, pods);
    resolve(mesh, dave, "mallory").unwrap();
    for restarted in [false, true] {
        if restarted {
            restart(&nodes);
        }
        for node in [bob, dave] {
            gave_way(node, "alice", "mallory").unwrap();
        }
        assert!(!reaches(of_dave, of_alice) && !reaches(of_bob, of_alice));
        must_reach(of_dave, of_bob).unwrap();
    }
}

fn four_sites() -> Lab {
    let mut plan = Lab::plan("two-claimants");
    plan.planet("planet-1");
    for (site, node) in [
        ("east", "alice"),
        ("west", "bob"),
        ("north", "dave"),
        ("den", "mallory"),
    ] {
        plan.site(site);
        plan.node(node).at(site);
        plan.delay(site, "planet-1", Duration::from_millis(5));
    }
    plan.up().unwrap()
}

/// Puts a thief in the place of the planet, and waits until these nodes trust it.
fn steal(lab: &Lab, mesh: &Mesh<'_>, nodes: &[&Node]) -> Puppet {
    lab.planet("planet-1").unwrap().stop().unwrap();
    let loot = loot_of(lab.node("mallory").unwrap());
    let document = mesh.operator().document();
    let thief = Puppet::planet(lab, (&document, &loot), &[]).unwrap();
    wait::until(
        "the nodes to trust the thief",
        Duration::from_secs(60),
        || {
            let look = thief.order(&json!({ "do": "look" }))?;
            let listeners = strings(&look["listeners"]);
            let trusts = |node: &&Node| listeners.iter().any(|name| name == node.name());
            Ok(if nodes.iter().all(trusts) {
                wait::Now(())
            } else {
                wait::NotYet(look.to_string())
            })
        },
    )
    .unwrap();
    thief
}

fn resolve(mesh: &Mesh<'_>, at: &Node, name: &str) -> Result<()> {
    let desk = mesh.operator().folder().display().to_string();
    at.meshctl(&["node", "resolve", name, "--dir", &desk])
        .map(drop)
}

fn restart(nodes: &[&Node]) {
    for node in nodes {
        node.kill();
    }
    for node in nodes {
        node.start().unwrap();
    }
}

fn state_of(node: &Node, peer: &str) -> Result<Option<PeerState>> {
    let peers = node.peers()?;
    let found = peers.iter().find(|view| view.name.as_str() == peer);
    Ok(found.map(|view| view.state))
}

/// Waits until a node has a path to the peer and contests nothing.
fn holds(node: &Node, peer: &str) -> Result<()> {
    let what = format!("{} to hold {peer}", node.name());
    wait::until(&what, LIMIT, || {
        let complaints = health::complaints(node)?;
        let contested = complaints
            .iter()
            .any(|view| CONTESTED.contains(&view.code.as_str()));
        let state = state_of(node, peer)?;
        Ok(if state == Some(PeerState::Up) && !contested {
            wait::Now(())
        } else {
            wait::NotYet(format!("{state:?}, {complaints:?}"))
        })
    })
}

/// Waits until a node routes to the peer no more, because the root decided for another one, which
/// it has as a peer.
fn gave_way(node: &Node, peer: &str, other: &str) -> Result<()> {
    let what = format!("{} to give up {peer} for {other}", node.name());
    wait::until(&what, LIMIT, || {
        let states = (state_of(node, peer)?, state_of(node, other)?);
        let done = states.0 == Some(PeerState::Quarantined)
            && states
                .1
                .is_some_and(|state| state != PeerState::Quarantined);
        Ok(if done {
            wait::Now(())
        } else {
            wait::NotYet(format!("{states:?}, {:?}", health::complaints(node)?))
        })
    })
}

fn reaches(from: &Pod, to: &Pod) -> bool {
    let target = to.address(false).unwrap().to_string();
    let ping = ["ping", "-c", "2", "-i", "0.2", "-W", "1", &target];
    from.namespace().run(&ping).is_ok()
}

fn must_reach(from: &Pod, to: &Pod) -> Result<()> {
    wait::until("an echo between two pods", LIMIT, || {
        Ok(if reaches(from, to) {
            wait::Now(())
        } else {
            wait::NotYet("no echo".to_owned())
        })
    })
}

/// The node has no route for any of these prefixes but its own and the mesh's.
fn routes_to_none_of(node: &Node, prefixes: &[String]) -> Result<()> {
    let routes: Value = node.meshctl_json(&["routes"])?;
    for prefix in prefixes {
        ensure!(!routes.to_string().contains(prefix), "{prefix}: {routes}");
    }
    Ok(())
}
