//! One identity on two machines: who notices, and who is reached when one of them is left.

use std::time::Duration;

use podmesh_proto::local_api::NodeState;

use crate::nat::NatKind::{self, N0, N4, N5};
use crate::whole::is_up;
use crate::world::World;

const TWIN: &str = "MESH-IDENTITY-002";
/// Seconds.
const HOUR: i64 = 3_600;
const LOST_KEYS: &str = "MESH-NODE-003";

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn mesh(seed: u64, kinds: &[NatKind]) -> World {
    let mut world = World::new(seed, 1);
    for kind in kinds {
        let site = world.site(*kind);
        world.node(site, *kind);
    }
    world.add_spare();
    world.links(|a, b, _| Duration::from_millis(10 + 5 * (a + b) as u64));
    world.start_planet(0);
    for node in 0..kinds.len() {
        world.start(node);
        world.run_for(seconds(1));
    }
    world.run_for(seconds(20));
    world
}

fn says(world: &World, machine: usize, code: &str) -> bool {
    let engine = world.nodes[machine].engine.as_ref().unwrap();
    let health = engine.status(world.now_of(machine)).health;
    health.iter().any(|entry| entry.code == code)
}

/// How long until a packet came through each way; all ask ten times a second.
fn until_heard(world: &mut World, (a, b): (usize, usize), most: Duration) -> Duration {
    let from = world.net.now;
    let heard = |world: &World, pair| {
        let last = world.watch.last_packet.get(&pair);
        last.is_some_and(|at| *at > from)
    };
    while !heard(world, (a, b)) || !heard(world, (b, a)) {
        let took = world.net.now.since(from);
        assert!(took < most, "{a} and {b} are apart for {took:?}");
        let until = world.net.now + Duration::from_millis(50);
        world.talk(a, b, Duration::from_millis(100), until);
        world.talk(b, a, Duration::from_millis(100), until);
        world.run_for(Duration::from_millis(100));
    }
    world.net.now.since(from)
}

fn chatter(world: &mut World, (a, b): (usize, usize), span: Duration) -> (u64, u64) {
    let before = world.watch.counts.clone();
    let until = world.net.now + span;
    for pair in [(a, b), (b, a)] {
        world.talk(pair.0, pair.1, Duration::from_millis(100), until);
    }
    world.run_for(span + seconds(1));
    let count = |pair| world.watch.counts[&pair] - before.get(&pair).copied().unwrap_or(0);
    (count((a, b)), count((b, a)))
}

#[test]
fn both_machines_of_one_identity_say_so_and_the_one_that_is_left_is_reached() {
    for (seed, live) in [(1, false), (2, true), (3, false), (4, true)] {
        let mut world = mesh(seed, &[N0, N4, N5]);
        if !live {
            world.stop(0);
            world.run_for(seconds(3));
            world.start(0);
        }
        world.copy_machine(0);
        let (there, back) = chatter(&mut world, (1, 2), seconds(60));
        assert!(there >= 595 && back >= 595, "others lost: {there}, {back}");
        let spare = world.twin(0).unwrap();
        assert!(says(&world, 0, TWIN) && says(&world, spare, TWIN), "{seed}");
        assert!(!says(&world, 1, TWIN) && !says(&world, 2, TWIN));
        world.stop(spare);
        let took = until_heard(&mut world, (0, 1), seconds(25));
        let also = until_heard(&mut world, (0, 2), seconds(5));
        println!("the original is reached after {took:.1?}, and {also:.1?}");
        assert!(says(&world, 0, TWIN), "{seed}");
        world.run_for(seconds(660));
        assert!(!says(&world, 0, TWIN), "said for ever");
        assert!(is_up(&world, 0, 1) && is_up(&world, 1, 0));
    }
}

/// The two go beyond each other in turns, each once in so many seconds: the last word may be the copy's,
/// said when the other had just had its turn.
#[test]
fn whenever_the_copy_goes_the_one_that_is_left_is_believed() {
    for seed in 0..50 {
        copy_goes(seed);
    }
}

/// A copy lives for half a second more than with the seed before, up to 25 s; then the one that is left must be
/// believed.
pub fn copy_goes(seed: u64) {
    let mut world = mesh(seed, &[N0, N4]);
    world.copy_machine(0);
    world.run_for(Duration::from_millis(500 * (seed % 50 + 1)));
    world.stop(world.twin(0).unwrap());
    world.run_for(seconds(30));
    let [one, other] = [0, 1].map(|node| world.nodes[node].engine.as_ref().unwrap());
    let (own, believed) = (one.edition(), other.edition_of(&world.nodes[0].id));
    let lives = (believed.map(|believed| believed.0), Some(own.0));
    assert!(
        lives.0 == lives.1 && believed <= Some(own),
        "{believed:?} is believed, not {own:?}"
    );
}

/// Only a peer has heard of the copy that was, and tells the machine that is left.
#[test]
fn whatever_was_lost_or_changed_the_one_that_is_left_is_believed() {
    for seed in 0..48 {
        left_behind(seed);
    }
}

/// A copy lives while the original is off, and no planet remembers it. Then the original is switched on with a
/// clock that is behind: in the very life in which the copy was, and it says less; or where much of what is
/// sent gets lost; or it takes another identity before the peer hears of it.
pub fn left_behind(seed: u64) {
    let mut world = mesh(seed, &[N0, N0]);
    let (case, spare) = (seed % 3, world.count());
    world.stop(0);
    if case == 0 {
        world.nodes[spare].clock = -HOUR;
    }
    world.copy_machine(0);
    world.run_for(Duration::from_millis(5_000 + 500 * (seed / 3 % 50)));
    for n in 1..=10 {
        world.set_address(spare, [198, 18, 7, n].into());
        world.run_for(Duration::from_millis(200));
    }
    world.stop(spare);
    world.stop_planet(0);
    world.run_for(seconds(1));
    world.start_planet(0);
    world.nodes[0].clock = -HOUR;
    match case {
        0 => world.start(0),
        1 => {
            world.lose(30.0);
            world.start(0);
        }
        _ => {
            world.isolate(1, true);
            world.start(0);
            world.run_for(seconds(10));
            world.rotate(0, true);
            world.run_for(seconds(10));
            assert!(world.nodes[0].next.is_none(), "the keys have not changed");
            world.isolate(1, false);
        }
    }
    world.run_for(seconds(15));
    world.nodes[0].clock = 0;
    world.lose(0.0);
    world.run_for(seconds(90));
    let [one, other] = [0, 1].map(|node| world.nodes[node].engine.as_ref().unwrap());
    let (own, believed) = (one.edition(), other.edition_of(&world.nodes[0].id));
    assert!(
        believed <= Some(own),
        "{believed:?} is believed, not {own:?}"
    );
    assert!(is_up(&world, 0, 1) && is_up(&world, 1, 0), "{seed}");
}

#[test]
fn the_copy_that_is_left_is_reached_as_well() {
    let mut world = mesh(5, &[N0, N4, N5]);
    world.copy_machine(0);
    world.run_for(seconds(45));
    world.stop(0);
    let spare = world.twin(0).unwrap();
    let image = world.image(spare);
    world.stop(spare);
    world.write_image(0, image);
    world.start(0);
    let took = until_heard(&mut world, (0, 1), seconds(15));
    println!("reached after {took:.1?}");
}

#[test]
fn without_a_planet_peers_tell_the_one_that_is_left() {
    let mut world = mesh(6, &[N0, N0, N4]);
    world.stop_planet(0);
    world.run_for(seconds(60));
    world.copy_machine(0);
    world.run_for(seconds(40));
    world.stop(world.twin(0).unwrap());
    let took = until_heard(&mut world, (0, 1), seconds(40));
    let also = until_heard(&mut world, (0, 2), seconds(40));
    println!("reached after {took:.1?}, and {also:.1?}");
}

#[test]
fn a_machine_put_back_to_before_its_keys_changed_says_so_and_comes_back() {
    let mut world = mesh(7, &[N0, N4]);
    let image = world.image(0);
    world.rotate(0, false);
    world.run_for(seconds(10));
    assert!(world.nodes[0].next.is_none(), "the keys have not changed");
    world.stop(0);
    world.write_image(0, image);
    world.start(0);
    world.run_for(seconds(10));
    assert!(says(&world, 0, LOST_KEYS));
    world.leave(0);
    world.run_for(seconds(2));
    world.join(0);
    let took = until_heard(&mut world, (0, 1), seconds(20));
    assert_eq!(world.state(0), Some(NodeState::Online));
    println!("reached after {took:.1?}");
}
