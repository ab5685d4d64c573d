//! A peer that begins a new life by an earlier clock: its handshakes are older than those of its former life.

use std::time::Duration;

use crate::nat::NatKind::N0;
use crate::nonces::{INITIATION, carried};
use crate::whole::is_up;
use crate::world::World;

/// Seconds.
const HOURS: i64 = 3 * 3_600;
const BEHIND: i64 = 250;

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

/// A machine is put back to an earlier copy of its disk, by a clock that is behind, and there is no planet. It
/// speaks as a former life, and its handshakes are older than those of the later one.
fn put_back(world: &mut World, others: &[usize], moves: bool) {
    begin(world);
    let image = world.image(1);
    world.stop(1);
    for other in others {
        world.stop(*other);
    }
    world.run_for(seconds(60));
    world.start(1);
    world.run_for(seconds(20));
    world.stop_planet(0);
    world.run_for(seconds(60));
    world.stop(1);
    world.write_image(1, image);
    world.nodes[1].clock = -BEHIND;
    if moves {
        world.set_address(1, [198, 18, 7, 1].into());
    }
    for other in others {
        world.start(*other);
        world.run_for(seconds(20));
    }
    world.start(1);
}

fn is_believed(world: &World, node: usize) -> bool {
    let own = world.nodes[node].engine.as_ref().unwrap().life();
    let others = world.nodes.iter().filter_map(|other| other.engine.as_ref());
    let mut lives = others.filter_map(|other| other.life_of(&world.nodes[node].id));
    lives.all(|life| life <= own)
}

#[test]
fn without_a_planet_probes_tell_a_machine_of_its_later_life() {
    for seed in 0..4 {
        tells_by_probes(seed);
    }
}

/// Its peer listens to none of its probes.
pub fn tells_by_probes(seed: u64) {
    let mut world = mesh(seed, 2);
    put_back(&mut world, &[], false);
    world.run_for(seconds(40));
    assert!(is_up(&world, 0, 1) && is_up(&world, 1, 0), "{seed}");
    world.run_for(seconds(60));
    assert!(is_believed(&world, 1), "{seed}");
}

#[test]
fn without_a_planet_others_tell_a_machine_of_its_later_life() {
    for seed in 0..4 {
        tells_by_others(seed);
    }
}

/// The peer looks for it where it was in its later life, of which a third member has heard nothing.
pub fn tells_by_others(seed: u64) {
    let mut world = mesh(seed, 3);
    put_back(&mut world, &[2], true);
    world.run_for(seconds(60));
    assert!(is_up(&world, 0, 1) && is_up(&world, 1, 0), "{seed}");
    assert!(is_believed(&world, 1), "{seed}");
}

fn chat(world: &mut World, span: Duration) {
    let until = world.net.now + span;
    for (from, to) in [(0, 1), (1, 0)] {
        world.talk(from, to, Duration::from_millis(100), until);
    }
    world.run_for(span);
}
