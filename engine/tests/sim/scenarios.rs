//! What can go wrong with a path, one thing at a time.

use std::net::IpAddr;
use std::time::Duration;

use podmesh_engine::paths::SwitchReason;
use podmesh_proto::time::Moment;

use crate::fake::Fake;
use crate::grid::{both_direct, millis, pair};
use crate::nat::NatKind::{self, N0, N4, N5, N8};

const DELAYS: [[u64; 3]; 3] = [[0, 20, 30], [20, 0, 40], [30, 40, 0]];

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A pair that has been direct for a while and talks both ways, ten packets a second.
fn talking(kinds: (NatKind, NatKind), seed: u64) -> Fake {
    let mut fake = pair(kinds, seed, DELAYS);
    fake.run_for(seconds(15));
    let until = fake.net.now + seconds(3_600);
    fake.talk(0, 1, millis(100), until);
    fake.talk(1, 0, millis(100), until);
    fake.run_for(seconds(10));
    fake
}

/// Runs until data has arrived at both again after `from`; how long that took.
fn until_data(fake: &mut Fake, from: Moment, limit: Duration) -> Option<Duration> {
    let arrived = |fake: &Fake, a: usize, b: usize| {
        let last = fake.nodes[a]
            .peers
            .get(&b)
            .and_then(|peer| peer.last_delivery);
        last.is_some_and(|last| last > from + millis(300))
    };
    fake.run(from + limit, |fake| {
        arrived(fake, 0, 1) && arrived(fake, 1, 0)
    })
    .then(|| fake.net.now.since(from))
}

fn switches(fake: &Fake, from: usize, to: usize, since: Moment) -> usize {
    let switches = &fake.nodes[from].peers[&to].switches;
    switches.iter().filter(|(at, ..)| *at >= since).count()
}

#[test]
fn a_nat_that_forgets_costs_seconds_and_the_path_is_direct_again() {
    for (kinds, seed) in [
        ((N4, N4), 1),
        ((N5, N5), 2),
        ((N5, N5), 3),
        ((N0, N5), 4),
        ((N0, N8), 5),
    ] {
        let mut fake = talking(kinds, seed);
        assert!(both_direct(&fake), "{kinds:?}");
        let from = fake.net.now;
        let site = fake.net.hosts[fake.nodes[1].host].site;
        fake.net.sites[site].nat.as_mut().unwrap().reboot();
        let gap = until_data(&mut fake, from, seconds(7));
        let direct = fake.run(from + seconds(20), both_direct);
        println!(
            "{kinds:?}: data after {gap:?}, direct {direct} after {:?}",
            fake.net.now.since(from)
        );
        assert!(gap.is_some() && direct, "{kinds:?}");
    }
}

#[test]
fn a_lost_relay_is_left_for_the_other() {
    let mut fake = Fake::new(3);
    let (one, _two) = (fake.planet(), fake.planet());
    let (a, b) = (fake.node(N8), fake.node(N8));
    fake.all_links(|_, _| millis(25));
    fake.start(a);
    fake.start(b);
    fake.run_for(seconds(30));
    assert!(fake.is_connected(a, b) && fake.is_connected(b, a));
    let until = fake.net.now + seconds(60);
    fake.talk(a, b, millis(100), until);
    fake.talk(b, a, millis(100), until);
    fake.run_for(seconds(5));
    let from = fake.net.now;
    fake.kill_planet(one);
    let gap = until_data(&mut fake, from, seconds(7));
    println!("data after {gap:?}");
    assert!(gap.is_some_and(|gap| gap <= seconds(5)));
}

#[test]
fn a_moved_node_is_found_again() {
    for (kinds, seed) in [((N0, N0), 1), ((N4, N0), 2), ((N5, N0), 3)] {
        let mut fake = talking(kinds, seed);
        let from = fake.net.now;
        fake.set_address(1, IpAddr::from([192, 0, 2, 77]));
        let gap = until_data(&mut fake, from, seconds(7));
        let direct = fake.run(from + seconds(15), both_direct);
        println!("{kinds:?}: data after {gap:?}, direct {direct}");
        assert!(
            gap.is_some_and(|gap| gap <= seconds(3)) && direct,
            "{kinds:?}"
        );
    }
}

#[test]
fn a_path_that_works_one_way_is_left_by_both() {
    let mut fake = talking((N4, N5), 9);
    assert!(both_direct(&fake));
    let from = fake.net.now;
    fake.net.links.get_mut(&(2, 1)).unwrap().cut = true;
    let gap = until_data(&mut fake, from, seconds(10));
    println!("data after {gap:?}");
    assert!(gap.is_some());
    fake.run_for(seconds(600));
    assert!(!fake.is_direct(0, 1) && !fake.is_direct(1, 0));
    for (a, b) in [(0, 1), (1, 0)] {
        assert!(switches(&fake, a, b, from) <= 2);
    }
}

#[test]
fn a_node_comes_back_with_every_planet_dead() {
    for (kinds, seed) in [((N4, N5), 1), ((N5, N5), 2), ((N5, N0), 3), ((N0, N8), 4)] {
        for dark in [5, 50, 200, 2_000] {
            let mut fake = talking(kinds, seed);
            assert!(both_direct(&fake), "{kinds:?}");
            fake.kill_planet(0);
            fake.run_for(seconds(60));
            assert!(both_direct(&fake), "{kinds:?}: tunnels don't need planets");
            fake.stop(0);
            fake.run_for(seconds(dark));
            let from = fake.net.now;
            fake.start(0);
            let back = fake.run(from + seconds(15), both_direct);
            println!(
                "{kinds:?} dark for {dark} s: back {back} after {:?}",
                fake.net.now.since(from)
            );
            assert!(back, "{kinds:?} dark for {dark} s");
        }
    }
}

#[test]
fn nothing_flaps_when_one_packet_in_five_is_lost() {
    let mut switched = 0;
    for seed in 0..20 {
        let mut fake = talking((N4, N4), seed);
        for link in fake.net.links.values_mut() {
            link.loss = 20.0;
        }
        let from = fake.net.now;
        fake.run_for(seconds(600));
        switched += switches(&fake, 0, 1, from) + switches(&fake, 1, 0, from);
    }
    println!("{switched} switches in 20 x 10 min with 20 % loss each way");
    assert!(switched <= 20);
}

#[test]
fn an_idle_pair_is_nearly_silent() {
    let mut fake = pair((N4, N4), 1, DELAYS);
    fake.run_for(seconds(60));
    let (before, probes) = (fake.net.delivered, fake.nodes[0].probes);
    fake.run_for(seconds(600));
    let packets = fake.net.delivered - before;
    println!("{packets} datagrams in 10 min between two idle nodes");
    assert!(packets < 700);
    let sent = fake.nodes[0].probes - probes;
    assert!(sent <= 12, "{sent} probes though the best path is found");
    assert_eq!(switches(&fake, 0, 1, fake.net.now - seconds(600)), 0);
}

#[test]
fn a_silent_peer_is_knocked_for_without_end_and_without_haste() {
    let mut fake = talking((N5, N5), 6);
    fake.stop(1);
    fake.run_for(seconds(60));
    assert_eq!(
        fake.nodes[0].peers[&1]
            .switches
            .last()
            .map(|(_, path, reason)| (*path, *reason)),
        Some((None, SwitchReason::Lost))
    );
    let probes = fake.nodes[0].probes;
    fake.run_for(seconds(6_000));
    let sent = fake.nodes[0].probes - probes;
    println!("{sent} probes in 100 min");
    assert!((200..4_000).contains(&sent));
}
