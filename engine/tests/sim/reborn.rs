//! A peer that begins a new life by an earlier clock: its handshakes are older than those of its former life.

use std::time::Duration;

use crate::nat::NatKind::N0;
use crate::nonces::{INITIATION, carried};
use crate::whole::is_up;
use crate::world::World;

/// Seconds.
const HOURS: i64 = 3 * 3_600;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn initiates(bytes: &[u8]) -> bool {
    let whole = bytes.first() == Some(&INITIATION);
    whole || carried(bytes).is_some_and(|inner| inner.first() == Some(&INITIATION))
}

#[test]
fn a_peer_in_a_new_life_can_renew_the_session_that_the_other_has_begun() {
    for seed in 0..4 {
        renews(seed);
    }
}

/// A peer whose clock was ahead has begun a session. In its next life, by the right clock, the other one begins,
/// and all is well. Then nothing comes to the peer for so long that it tries to renew the session: the other one
/// answers, and doesn't refuse it for what it said by the wrong clock.
pub fn renews(seed: u64) {
    let mut world = mesh(seed, 2);
    begin(&mut world);
    world.stop(1);
    world.run_for(seconds(1));
    world.nodes[1].clock = HOURS;
    world.loses = Some(|node, bytes| node == 0 && initiates(bytes));
    world.start(1);
    world.run_for(seconds(20));
    assert!(is_up(&world, 0, 1), "{seed}: the peer has not begun");
    world.stop(1);
    world.run_for(seconds(1));
    world.nodes[1].clock = 0;
    world.loses = Some(|node, bytes| node == 1 && initiates(bytes));
    world.start(1);
    chat(&mut world, seconds(20));
    assert!(is_up(&world, 0, 1), "{seed}: the other has not begun");
    let before = world.watch.handshakes_answered(0);
    world.loses = Some(|node, _| node == 0);
    chat(&mut world, seconds(25));
    let answered = world.watch.handshakes_answered(0) - before;
    assert!(answered > 0, "{seed}: it seems older than the former life");
    world.loses = None;
    chat(&mut world, seconds(10));
    assert!(is_up(&world, 0, 1) && is_up(&world, 1, 0), "{seed}");
}

/// Machines that are reached by anybody; the handshakes of one follow its clock.
fn mesh(seed: u64, nodes: usize) -> World {
    let mut world = World::new(seed, 1);
    for _ in 0..nodes {
        let site = world.site(N0);
        world.node(site, N0);
    }
    // boringtun's don't, here.
    world.nodes[1].keys = world.nodes[1].keys.batched();
    world.links(|_, _, _| Duration::from_millis(10 + 5 * seed));
    world.start_planet(0);
    world
}

fn begin(world: &mut World) {
    for node in 0..world.nodes.len() {
        world.start(node);
        world.run_for(seconds(1));
    }
    world.run_for(seconds(100));
}

fn chat(world: &mut World, span: Duration) {
    let until = world.net.now + span;
    for (from, to) in [(0, 1), (1, 0)] {
        world.talk(from, to, Duration::from_millis(100), until);
    }
    world.run_for(span);
}
