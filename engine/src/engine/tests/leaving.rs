//! How this node's membership ends, and how it hears that it has.

use std::collections::BTreeMap;
use std::time::Duration;

use podmesh_proto::certificate::Departure;
use podmesh_proto::local_api::NodeState;
use podmesh_proto::network::RootStatement;
use podmesh_proto::planet_api::{
    DirectoryCursor, DirectoryRecord, DirectoryUpdate, PlanetMessage, Refusal, RefusalCode, Welcome,
};
use podmesh_proto::signed::Signed;

use super::standing::{joined, pass, reaches_all, says, state};
use crate::membership::lies::Source;
use crate::output::PlanetEvent;
use crate::testing::{Keys, START, World, name};

const THREE_HOURS: i64 = 3 * 3_600;

fn left(world: &World, node: usize) -> Departure {
    let left = world.engines[node].left.as_ref();
    left.unwrap().unverified().unwrap()
}

fn hears(world: &mut World, node: usize, record: DirectoryRecord) {
    let update = DirectoryUpdate {
        cursor: DirectoryCursor {
            epoch: 7,
            version: 0,
        },
        from_start: false,
        records: vec![record],
    };
    world.planet_says(node, PlanetMessage::Directory(update));
}

/// The first node has left, and its disk has gone back to before that.
fn forgetful() -> (World, Signed<Departure>) {
    let mut world = joined(3);
    let before = world.stored[0].clone();
    let now = world.now;
    world.engines[0].handle_leave(now).unwrap();
    world.drain(0);
    pass(&mut world, 10);
    let departure = world.engines[0].left.clone().unwrap();
    world.stored[0] = before;
    world.restart(0);
    (world, departure)
}

#[test]
fn who_leaves_names_what_it_was_admitted_to_whatever_its_clock_says() {
    for wrong in [-THREE_HOURS, 0, THREE_HOURS] {
        let mut world = joined(2);
        let own = world.engines[0].members.as_ref().unwrap().own().unwrap();
        let admitted = own.member.admitted;
        pass(&mut world, 100);
        world.clocks.insert(0, wrong);
        let now = world.now_of(0);
        world.engines[0].handle_leave(now).unwrap();
        world.drain(0);
        pass(&mut world, 10);
        assert_eq!(left(&world, 0).time, admitted, "{wrong} s ahead");
        assert!(world.engines[1].peers(world.now).is_empty(), "{wrong} s");
    }
}

#[test]
fn who_hears_that_it_has_left_says_so_until_it_joins_anew() {
    let (mut world, departure) = forgetful();
    let before = world.reconnections;
    for life in ["first", "second"] {
        pass(&mut world, 300);
        assert_eq!(state(&world, 0), NodeState::Ended, "{life} life");
        assert!(says(&world, 0, "MESH-NODE-005"), "{life} life");
        assert!(world.engines[0].peers(world.now).is_empty());
        assert!(!world.plans[0].as_ref().unwrap().protected.is_empty());
        assert_eq!(world.engines[0].astray(), None);
        world.restart(0);
    }
    assert_eq!(world.reconnections, before, "no planet will take it");
    let now = world.now;
    world.engines[0].handle_leave(now).unwrap();
    world.drain(0);
    assert_eq!(world.engines[0].left.as_ref(), Some(&departure));
    assert!(!says(&world, 0, "MESH-NODE-005"));
    let token = world.authority.token(9);
    world.engines[0]
        .handle_join(&token, name("n1"), now)
        .unwrap();
    world.drain(0);
    world.connect(0);
    pass(&mut world, 30);
    assert_eq!(state(&world, 0), NodeState::Online);
    assert!(reaches_all(&world, 0));
}

#[test]
fn neither_a_forged_nor_a_former_departure_ends_a_membership() {
    let mut world = joined(2);
    let own = world.engines[0].members.as_ref().unwrap().own().unwrap();
    let word = |time| Departure {
        network: world.authority.network.id,
        node: own.member.node,
        successions: Vec::new(),
        time,
    };
    let former = Signed::seal(&word(own.member.admitted.minus(1)), &Keys::new(1).identity);
    let forged = Signed::seal(&word(START.plus(9_999)), &Keys::new(2).identity);
    for departure in [former.unwrap(), forged.unwrap()] {
        hears(&mut world, 0, DirectoryRecord::Left(departure));
        pass(&mut world, 10);
        assert_eq!(state(&world, 0), NodeState::Online);
        assert!(reaches_all(&world, 0));
    }
}

/// What an ended node knows of others is not its own departure.
#[test]
fn who_was_put_out_keeps_the_departures_of_others() {
    let mut world = joined(3);
    let now = world.now;
    world.engines[1].handle_leave(now).unwrap();
    world.drain(1);
    pass(&mut world, 10);
    let statement = world.authority.say(&RootStatement::RevokeNode {
        network: world.authority.network.id,
        node: world.engines[0].node_id(),
        issued: START,
    });
    world.engines[0].handle_statement(statement, now).unwrap();
    world.drain(0);
    world.restart(0);
    let members = world.engines[0].members.as_ref().unwrap();
    assert_eq!(members.departures().count(), 1);
    assert!(world.engines[0].left.is_none());
}

#[test]
fn a_planets_reason_is_said_and_it_is_asked_ever_less_often() {
    let mut world = joined(2);
    world.reconnects = false;
    let planet = world.planet_id();
    let says_why = |world: &World| {
        let health = world.engines[0].status(world.now).health;
        let of = |code: &str| health.iter().find(|one| one.code == code).cloned();
        of("MESH-PLANET-003").is_some_and(|one| one.message.contains("n1 has the name of"))
    };
    let refuses = |world: &mut World| {
        let (remote, rtt) = ("192.0.2.1:7077".parse().unwrap(), Duration::from_millis(20));
        let now = world.now;
        let connected = PlanetEvent::Connected { remote, rtt };
        world.engines[0].handle_planet(planet, connected, now);
        let refusal = Refusal {
            code: RefusalCode::NotMember,
            reason: "n1 has the name of another".to_owned(),
            retry_in: None,
        };
        world.planet_says(0, PlanetMessage::Refused(refusal));
        let welcome = Welcome {
            planet,
            observed: "192.0.2.1:9".parse().unwrap(),
            relay: None,
            time: world.now.unix,
            cursor: DirectoryCursor {
                epoch: 7,
                version: 0,
            },
        };
        world.planet_says(0, PlanetMessage::Welcome(welcome));
    };
    let before = world.reconnections;
    let mut last = before;
    refuses(&mut world);
    assert!(says_why(&world), "at once, and the welcome changes nothing");
    for _ in 0..360 {
        pass(&mut world, 10);
        if world.reconnections > last {
            last = world.reconnections;
            refuses(&mut world);
        }
        assert!(says_why(&world));
    }
    let times = world.reconnections - before;
    assert!((3..=7).contains(&times), "{times} times in an hour");
    world.reconnects = true;
    world.connect(0);
    assert!(!says(&world, 0, "MESH-PLANET-003"));
    assert!(reaches_all(&world, 0));
}

/// How many identities the departure of a node names, and whether another member believes it.
fn word(world: &mut World, node: usize, other: usize) -> (usize, bool) {
    let left = world.engines[node].left.clone().unwrap();
    let verified = Departure::verify(&left, world.authority.network.id);
    let (departure, identities) = verified.unwrap();
    let now = world.now;
    world.engines[other].take_departure(&left, Source::Operator, now);
    let members = world.engines[other].members.as_ref().unwrap();
    (identities.len(), members.known(&departure.node).is_none())
}

/// The disk has the request for the keys that are in force since, and the membership of before.
#[test]
fn who_has_a_new_identity_and_an_older_disk_leaves_by_the_new_one() {
    let mut world = joined(2);
    world.planet_silent = true;
    world.rotate(0, 52);
    world.run(Duration::from_secs(1));
    let older = world.stored[0].clone();
    world.planet_silent = false;
    pass(&mut world, 60);
    assert_eq!(world.moved.get(&1), Some(&52));
    world.stored[0] = older;
    world.kill_planet();
    world.restart(0);
    let now = world.now;
    world.engines[0].handle_leave(now).unwrap();
    assert_eq!(word(&mut world, 0, 1), (2, true));
}

/// A planet may have receipted the new one: those who have heard that believe no other, and the rest believes
/// it by its steps.
#[test]
fn who_leaves_while_its_identity_changes_is_believed_by_everybody() {
    for receipted in [false, true] {
        let mut world = joined(2);
        world.planet_silent = true;
        world.rotate(0, 52);
        world.run(Duration::from_secs(1));
        let pending = world.stored[0].clone();
        if receipted {
            world.planet_silent = false;
            pass(&mut world, 60);
            world.stored[0] = pending;
            (world.moved, world.next) = (BTreeMap::new(), BTreeMap::from([(1, 52)]));
            world.restart(0);
        }
        world.kill_planet();
        world.restart(0);
        let now = world.now;
        world.engines[0].handle_leave(now).unwrap();
        assert_eq!(word(&mut world, 0, 1), (2, true), "{receipted}");
        // It comes back by the identity that it has, and says so before.
        let said = format!("left {}", Keys::new(1).id().short());
        assert!(!world.notes.contains(&said));
        (world.planet_alive, world.next) = (true, BTreeMap::new());
        let token = world.authority.token(9);
        world.engines[0]
            .handle_join(&token, name("n1"), now)
            .unwrap();
        world.drain(0);
        world.connect(0);
        pass(&mut world, 30);
        assert!(world.notes.contains(&said), "{:?}", world.notes);
        assert_eq!(state(&world, 0), NodeState::Online, "{receipted}");
    }
}

/// Its request is on disk, or the disk has gone back to before that one, too.
#[test]
fn who_forgot_that_it_had_left_and_changed_its_identity_leaves_by_the_new_one() {
    for asked in [true, false] {
        let mut world = joined(2);
        world.kill_planet();
        let (before, now) = (world.stored[0].clone(), world.now);
        world.engines[0].handle_leave(now).unwrap();
        let departure = world.engines[0].left.clone().unwrap();
        world.stored[0] = before;
        world.restart(0);
        if asked {
            world.rotate(0, 52);
        }
        world.engines[0].take_departure(&departure, Source::Operator, now);
        world.drain(0);
        if !asked {
            world.next = BTreeMap::from([(1, 52)]);
        }
        world.restart(0);
        assert!(says(&world, 0, "MESH-NODE-005"), "{asked}");
        world.engines[0].handle_leave(now).unwrap();
        let left = world.engines[0].left.clone().unwrap();
        let verified = Departure::verify(&left, world.authority.network.id);
        let (again, identities) = verified.unwrap();
        assert_eq!(identities.len(), 2, "{asked}");
        assert_eq!(again.time, departure.unverified().unwrap().time);
    }
}
