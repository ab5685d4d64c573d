//! How long a pair is out after one of the two was away and comes back with the same keys, again and again.

use std::time::Duration;

use podmesh_proto::time::Moment;

use crate::nat::NatKind::N0;
use crate::whole::is_direct;
use crate::world::World;

/// Between two packets of a pod.
const EVERY: Duration = Duration::from_millis(20);
/// A round trip takes 2 ms here, and the first handshake of a new life may get lost with what was under way.
const SOON: Duration = Duration::from_millis(350);
/// Both have to find their planet first, and to try the former path; handshakes of both may cross.
const RELAYED: Duration = Duration::from_secs(3);

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn a_peer_that_was_away_is_reached_at_once_each_time() {
    for seed in 0..4 {
        comes_back_often(seed);
        starts_in_vain(seed);
    }
}

/// A process that dies soon after its start, until it doesn't.
fn starts_in_vain(seed: u64) {
    for lives in [1, 3, 20] {
        let mut world = pair(seed, false);
        world.stop(1);
        world.run_for(millis(8_000));
        for life in 0..lives {
            world.start(1);
            world.run_for(millis(3 + 7 * (life % 3)));
            world.stop(1);
            world.run_for(millis(100));
        }
        starts_well(&mut world, &format!("{seed}: after {lives} lives"));
    }
}

pub fn comes_back_often(seed: u64) {
    for away in [2_300, 8_300, 9_000, 12_000, 31_000, 250_000] {
        for planet in [true, false] {
            comes_back(seed, millis(away), planet);
        }
    }
}

fn comes_back(seed: u64, away: Duration, planet: bool) {
    let mut world = pair(seed, true);
    for turn in 0..12 {
        world.stop(1);
        if !planet {
            world.stop_planet(0);
        }
        world.run_for(away);
        starts_well(&mut world, &format!("{seed}: turn {turn} after {away:?}"));
        if !planet {
            world.start_planet(0);
        }
        world.run_for(millis(1_000));
    }
}

/// Both were away, and start while the direct path that they had is dead.
#[test]
fn two_that_start_at_once_get_through_over_a_relay() {
    for seed in 0..4 {
        start_at_once(seed);
    }
}

pub fn start_at_once(seed: u64) {
    for apart in [0, 5, 40, 150, 290, 310, 900] {
        let mut world = pair(seed, true);
        world.links(|_, _, random| random.millis(10, 80));
        for node in 0..2 {
            world.stop(node);
        }
        let sites = [0, 1].map(|node: usize| world.net.hosts[world.nodes[node].host].site);
        for ((from, to), link) in &mut world.net.links {
            link.cut = sites.contains(from) && sites.contains(to) && from != to;
        }
        world.run_for(millis(3_000));
        let until = world.net.now + Duration::from_secs(10);
        world.talk(0, 1, EVERY, until);
        world.talk(1, 0, EVERY, until);
        let begin = world.net.now;
        world.start(0);
        world.run_for(millis(apart));
        world.start(1);
        world.run_for(RELAYED);
        is_heard(&world, begin, RELAYED, &format!("{seed}: {apart} ms apart"));
    }
}

fn pair(seed: u64, planet: bool) -> World {
    let mut world = World::new(seed, 1);
    for _ in 0..2 {
        let site = world.site(N0);
        world.node(site, N0);
    }
    // It is looked for by both, and asks back each time.
    let host = world.nodes[0].host;
    world.net.hosts[host]
        .addresses
        .push([198, 51, 101, 200].into());
    world.links(|_, _, _| millis(1));
    world.start_planet(0);
    for node in 0..2 {
        world.start(node);
        world.run_for(millis(1_000));
    }
    world.run_for(millis(30_000));
    assert!(is_direct(&world, 0, 1) && is_direct(&world, 1, 0), "{seed}");
    if !planet {
        world.stop_planet(0);
    }
    world
}

/// Both talk from before the start.
fn starts_well(world: &mut World, title: &str) {
    let until = world.net.now + SOON * 2;
    world.talk(0, 1, EVERY, until);
    world.talk(1, 0, EVERY, until);
    world.run_for(SOON / 2);
    let begin = world.net.now;
    world.start(1);
    world.run_for(SOON);
    is_heard(world, begin, SOON, title);
}

fn is_heard(world: &World, begin: Moment, bound: Duration, title: &str) {
    for pair in [(0, 1), (1, 0)] {
        let last = world.watch.last_packet.get(&pair);
        let heard = last.is_some_and(|at| *at > begin);
        assert!(heard, "{title}: {pair:?} is out for more than {bound:?}");
    }
}
