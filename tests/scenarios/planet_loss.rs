//! A planet that can't be reached any more.

use std::time::{Duration, Instant};

use podmesh_lab::{Lab, Link, Mesh, Nat, Node};

/// A question every 5 s, 10 s for its answer, and a look at the status.
const NOTICED: Duration = Duration::from_secs(17);
const BACK: Duration = Duration::from_secs(15);

#[test]
fn a_planet_that_is_gone_is_noticed_within_seconds_and_so_is_its_return() {
    let mut plan = Lab::plan("planet-loss");
    plan.planet("planet-1");
    plan.site("home").nat(Nat::PortRestricted);
    plan.node("home-1").at("home");
    let lab = plan.up().unwrap();
    let mesh = Mesh::found(&lab, "planet-1").unwrap();
    let node = lab.node("home-1").unwrap();
    mesh.join(node).unwrap();
    for (from, to) in [("home", "planet-1"), ("planet-1", "home")] {
        lab.link(from, to, Link::CUT).unwrap();
    }
    let noticed = until(node, "planets-down", NOTICED);
    let health = node.meshctl(&["status"]).unwrap();
    assert!(health.contains("no planet is connected"), "{health}");
    lab.delay("home", "planet-1", Duration::from_millis(10))
        .unwrap();
    let back = until(node, "online", BACK);
    println!("figure a lost planet is noticed after {noticed:.1?}, and back after {back:.1?}");
}

fn until(node: &Node, state: &str, limit: Duration) -> Duration {
    let start = Instant::now();
    loop {
        let status = node.meshctl_json(&["status"]).unwrap();
        if status["state"] == state {
            return start.elapsed();
        }
        assert!(start.elapsed() < limit, "not {state}: {status}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
