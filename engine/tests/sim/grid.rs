//! Every kind of NAT against every other, and N5 against N5 two hundred times.

use std::time::Duration;

use crate::fake::Fake;
use crate::nat::NatKind;
use crate::random::Random;

use NatKind::{N0, N1, N2, N4, N5, N8};

/// The 21 pairs, and whether a direct path is possible between the two.
pub const PAIRS: [(NatKind, NatKind, bool); 21] = [
    (N0, N0, true),
    (N0, N1, true),
    (N0, N2, true),
    (N0, N4, true),
    (N0, N5, true),
    (N0, N8, true),
    (N1, N1, true),
    (N1, N2, true),
    (N1, N4, true),
    (N1, N5, true),
    (N1, N8, true),
    (N2, N2, true),
    (N2, N4, true),
    (N2, N5, true),
    (N2, N8, true),
    (N4, N4, true),
    (N4, N5, true),
    (N4, N8, false),
    (N5, N5, true),
    (N5, N8, false),
    (N8, N8, false),
];

pub fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Two nodes of these kinds, a planet, the second node joining when the first is settled.
pub fn pair(kinds: (NatKind, NatKind), seed: u64, delays: [[u64; 3]; 3]) -> Fake {
    let mut fake = Fake::new(seed);
    fake.planet();
    let (a, b) = (fake.node(kinds.0), fake.node(kinds.1));
    fake.all_links(|a, b| millis(delays[a][b]));
    fake.start(a);
    fake.run_for(Duration::from_secs(3));
    fake.start(b);
    fake
}

pub fn both_direct(fake: &Fake) -> bool {
    fake.is_direct(0, 1) && fake.is_direct(1, 0)
}

#[test]
fn every_pair_of_nats_gets_the_best_path_that_is_possible() {
    let delays = [[0, 20, 30], [20, 0, 40], [30, 40, 0]];
    for (a, b, direct) in PAIRS {
        let mut fake = pair((a, b), 7, delays);
        let joined = fake.net.now;
        let end = joined + Duration::from_secs(10);
        let reached = fake.run(end, both_direct);
        let took = fake.net.now.since(joined);
        fake.run(end, |_| false);
        let why = fake.paths(1, 0).why(fake.now());
        let took = if reached {
            format!("{took:.1?}")
        } else {
            "-".to_owned()
        };
        let why = why.as_deref();
        println!(
            "{a:?} x {b:?}: direct after {took:>8}, bound {:?} {}",
            bound(&delays),
            why.unwrap_or_default()
        );
        assert_eq!(reached, direct, "{a:?} x {b:?}");
        assert!(
            fake.is_connected(0, 1) && fake.is_connected(1, 0),
            "{a:?} x {b:?}"
        );
        assert_eq!(why.is_some(), !direct);
    }
}

/// From the second node's start: it greets the planet, learns its endpoint and publishes it; then
/// a handshake over the relay, then an echo over the direct path.
fn bound(delays: &[[u64; 3]; 3]) -> Duration {
    let [_, a, b] = delays[0];
    let known = 3 * b + a.max(b);
    millis(known + 2 * (a + b) + 2 * delays[1][2])
}

/// What leaves the one router is at the other at once, and machines are slower than that.
#[test]
fn two_poisonable_nats_next_door_find_each_other_at_the_first_try() {
    for seed in 0..200 {
        let mut fake = pair((N5, N5), seed, [[0; 3]; 3]);
        for link in fake.net.links.values_mut() {
            link.delay = Duration::from_micros(20);
            link.jitter = Duration::from_millis(2);
        }
        for (one, other) in [(1, 2), (2, 1)] {
            let link = fake.net.links.get_mut(&(one, other)).unwrap();
            (link.jitter, link.next_door) = (Duration::ZERO, true);
        }
        let joined = fake.net.now;
        let reached = fake.run(joined + Duration::from_secs(1), both_direct);
        assert!(reached, "seed {seed}");
    }
}

#[test]
fn two_poisonable_nats_always_find_each_other() {
    let seeds = 200;
    let (mut times, mut failed) = (Vec::new(), Vec::new());
    let only = std::env::var("SIM_SEED")
        .ok()
        .and_then(|seed| seed.parse::<u64>().ok());
    for seed in only.map_or(0..seeds, |seed| seed..seed + 1) {
        let mut random = Random(seed);
        let delays = std::array::from_fn(|_| std::array::from_fn(|_| random.range(1, 150)));
        let mut fake = pair((N5, N5), seed, delays);
        let joined = fake.net.now;
        if fake.run(joined + Duration::from_secs(10), both_direct) {
            times.push(fake.net.now.since(joined));
        } else {
            failed.push(seed);
        }
    }
    times.sort();
    println!(
        "median {:?}, last {:?}",
        times.get(times.len() / 2),
        times.last()
    );
    assert!(failed.is_empty(), "relayed with seeds {failed:?}");
}
