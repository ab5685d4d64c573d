//! Sessions are renewed every two minutes, and nobody who uses them notices.

use std::thread;
use std::time::{Duration, Instant};

use podmesh_lab::ping::{PairReport, PingMatrix};
use podmesh_lab::{Lab, Mesh, Nat, Node, mesh};

use crate::restarts::Stream;
use crate::world;

/// A TCP stream that carries something every 10 ms may stand still for this long: a lost segment,
/// sent again after a second at the earliest, would show.
const STILL: Duration = Duration::from_millis(900);

#[test]
fn traffic_in_both_directions_flows_through_every_rekey() {
    let lab = two_sites();
    let mesh = Mesh::found(&lab, "planet-1").unwrap();
    mesh.join_all().unwrap();
    let nodes = ["home-1", "cloud-1"].map(|name| lab.node(name).unwrap());
    let limit = Duration::from_secs(15);
    mesh.wait_for(&nodes, "a direct path", limit, mesh::is_direct)
        .unwrap();
    let pods = nodes.map(|node| node.add_pod(&format!("{}-a", node.name())).unwrap());
    let pings = PingMatrix::start().unwrap();
    for pod in &pods {
        pings.add_pod(pod).unwrap();
    }
    pings.wait_for_all(5, Duration::from_secs(10)).unwrap();
    let streams = [(0, 1), (1, 0)].map(|(from, to)| Stream::between(&pods[from], &pods[to]));

    let start = Instant::now();
    // Four rekeys fit in, should the first come late.
    let end = start + Duration::from_secs(world::times(20, 500) as u64);
    let rekeys = count_rekeys(nodes, end);
    let gaps = streams
        .each_ref()
        .map(|stream| stream.longest_gap_since(start));
    let pairs = pings.report(start, Instant::now());
    println!("figure rekeys seen by {rekeys:?}, longest stillness of the streams {gaps:?}");
    let (lost, sent) = (PairReport::lost_in(&pairs), PairReport::sent_in(&pairs));
    println!(
        "figure {lost} of {sent} pings lost in {:?}",
        start.elapsed()
    );
    assert_eq!(lost, 0, "{pairs:?}");
    assert!(gaps.iter().all(|gap| *gap < STILL), "{gaps:?}");
    let enough = world::times(0, 3);
    assert!(rekeys.iter().all(|(_, seen)| *seen >= enough), "{rekeys:?}");
    streams.into_iter().for_each(Stream::end);
}

fn two_sites() -> Lab {
    let mut plan = Lab::plan("rekeys");
    plan.planet("planet-1");
    plan.site("home").nat(Nat::PortRestricted);
    plan.site("cloud");
    plan.node("home-1").at("home");
    plan.node("cloud-1").at("cloud");
    plan.delay("home", "cloud", Duration::from_millis(20));
    plan.up().unwrap()
}

/// Looks at the age of the session on both sides until `end`; each time it has become younger there
/// was a new one.
fn count_rekeys(nodes: [&Node; 2], end: Instant) -> [(&str, usize); 2] {
    let mut counts = nodes.map(|node| (node.name(), 0));
    let mut ages = nodes.map(age_of_session);
    while Instant::now() < end {
        thread::sleep(Duration::from_secs(1));
        for ((node, age), (_, count)) in nodes.iter().zip(&mut ages).zip(&mut counts) {
            // A look that comes late on a busy machine is no verdict; the pings are.
            if let Some(now) = age_of_session(node) {
                *count += usize::from(age.is_some_and(|age| now < age));
                *age = Some(now);
            }
        }
    }
    counts
}

/// Seconds since the handshake with the only peer.
fn age_of_session(node: &Node) -> Option<u64> {
    node.peers().ok()?.first()?.handshake_s
}
