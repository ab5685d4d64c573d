//! Two of a large mesh whose paths to each other differ, and between whom there is no traffic.

use std::time::Duration;

use podmesh_engine::config::Thresholds;
use podmesh_proto::datagram::DatagramKind;

use crate::nat::NatKind::N0;
use crate::walk::ASLEEP_WHY;
use crate::whole::{is_direct, view};
use crate::world::World;

const STEP: Duration = Duration::from_millis(100);

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn chat(world: &mut World, span: Duration) {
    let until = world.net.now + span;
    world.talk(0, 1, STEP / 2, until);
    world.talk(1, 0, STEP / 2, until);
    world.run_for(span);
}

#[test]
fn echoes_keep_nobody_awake() {
    for seed in 0..4 {
        falls_asleep(seed);
    }
}

/// What one sends directly gets lost, until the other has gone over to the relay, and will not come back for a
/// minute. Both are idle then: neither asks for an echo because of the other's.
pub fn falls_asleep(seed: u64) {
    let mut world = World::new(seed, 1);
    for _ in 0..3 {
        let site = world.site(N0);
        let node = world.node(site, N0);
        world.nodes[node].thresholds = Thresholds {
            eager_peers: 1,
            idle: seconds(20),
            in_vain: seconds(10),
        };
    }
    world.links(|_, _, _| Duration::from_millis(10 + 5 * seed));
    world.start_planet(0);
    for node in 0..3 {
        world.start(node);
        world.run_for(seconds(1));
    }
    chat(&mut world, seconds(20));
    assert!(is_direct(&world, 0, 1) && is_direct(&world, 1, 0), "{seed}");
    world.loses = Some(|node, bytes| node == 1 && DatagramKind::of(bytes) != DatagramKind::Relay);
    for _ in 0..100 {
        if is_direct(&world, 0, 1) {
            chat(&mut world, STEP);
        }
    }
    // What was on its way is heard, and lost, before nobody talks.
    world.run_for(STEP);
    world.loses = None;
    let differ = is_direct(&world, 1, 0) && !is_direct(&world, 0, 1);
    assert!(differ, "{seed}: both have the same path");
    world.run_for(seconds(40));
    for (from, to) in [(0, 1), (1, 0)] {
        let why = view(&world, from, to).and_then(|view| view.why);
        assert_eq!(why.as_deref(), Some(ASLEEP_WHY), "{seed}: {from} to {to}");
    }
}
