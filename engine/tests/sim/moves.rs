//! How long a pair is out when one of the two gets another address while it talks.

use std::net::IpAddr;
use std::time::Duration;

use crate::nat::NatKind::{self, N0, N4};
use crate::watch::Gap;
use crate::whole::is_direct;
use crate::world::World;

/// Between two packets of a pod.
const EVERY: Duration = Duration::from_millis(20);
/// The peer hears of the new address from a planet or through the tunnel, has proven the path to it by then, and waits
/// for one answer from the former one.
const SOON: Duration = Duration::from_millis(1_500);

/// What is alike in the addresses of one turn.
const PLACES: [(NatKind, [u8; 3]); 2] = [(N0, [192, 0, 2]), (N4, [192, 168, 7])];

#[test]
fn a_peer_that_gets_another_address_is_found_there_at_once() {
    for seed in 0..4 {
        moves(seed);
    }
}

pub fn moves(seed: u64) {
    for (kind, net) in PLACES {
        for planet in [true, false] {
            let mut world = pair(seed, kind);
            if !planet {
                world.stop_planet(0);
            }
            for turn in 0..5 {
                world.run_for(Duration::from_secs(5));
                let until = world.net.now + Duration::from_secs(9);
                world.talk(0, 1, EVERY, until);
                world.talk(1, 0, EVERY, until);
                world.run_for(Duration::from_secs(1));
                let [a, b, c] = net;
                world.set_address(1, IpAddr::from([a, b, c, 70 + turn]));
                for pair in [(0, 1), (1, 0)] {
                    let since = world.net.now;
                    let gap = Gap {
                        since,
                        longest: Duration::ZERO,
                    };
                    world.watch.gaps.insert(pair, gap);
                }
                world.run_for(Duration::from_secs(7));
                for pair in [(0, 1), (1, 0)] {
                    let longest = world.watch.gaps[&pair].longest;
                    let since = world.net.now.since(world.watch.gaps[&pair].since);
                    assert!(
                        longest.max(since) <= SOON,
                        "{seed}: {kind:?}, planet {planet}, turn {turn}: {pair:?} is out for {longest:?}"
                    );
                }
                world.watch.gaps.clear();
                assert!(is_direct(&world, 0, 1) && is_direct(&world, 1, 0), "{seed}");
            }
        }
    }
}

fn pair(seed: u64, kind: NatKind) -> World {
    let mut world = World::new(seed, 1);
    for kind in [N0, kind] {
        let site = world.site(kind);
        world.node(site, kind);
    }
    world.links(|_, _, random| random.millis(5, 40));
    world.start_planet(0);
    for node in 0..2 {
        world.start(node);
        world.run_for(Duration::from_secs(1));
    }
    world.run_for(Duration::from_secs(40));
    assert!(is_direct(&world, 0, 1) && is_direct(&world, 1, 0), "{seed}");
    world
}
