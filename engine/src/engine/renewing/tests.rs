use std::time::Duration;

use podmesh_proto::candidate::EndpointRecord;
use podmesh_proto::local_api::NodeState;
use podmesh_proto::planet_api::{
    DirectoryCursor, DirectoryRecord, PlanetMessage, Refusal, RefusalCode,
};
use podmesh_proto::time::Moment;

use super::*;
use crate::membership::lies::Lie;
use crate::testing::{Fault, Keys, START, World, packet4};

const LIFE: u64 = 600;

fn joined(nodes: u8, life: Option<u64>) -> World {
    let mut world = World::new(nodes);
    world.life = life;
    world.join_all();
    world
}

/// Time passes with a planet that is alive.
fn pass(world: &mut World, span: Duration) {
    const STEP: Duration = Duration::from_secs(10);
    let end = world.now.moment + span;
    while world.now.moment < end {
        beat(world);
        world.run(STEP.min(end.since(world.now.moment)));
    }
}

fn beat(world: &mut World) {
    let cursor = DirectoryCursor {
        epoch: 7,
        version: 1,
    };
    for node in 0..world.engines.len() {
        world.planet_says(node, PlanetMessage::Heartbeat { cursor });
    }
}

/// Sends a packet each way in each interval, and counts those that don't arrive.
fn lost(world: &mut World, span: Duration, interval: Duration) -> usize {
    let before: Vec<usize> = world.delivered.iter().map(Vec::len).collect();
    let rounds = usize::try_from(span.as_millis() / interval.as_millis()).unwrap();
    for _ in 0..rounds {
        world.send_packet(0, &packet4("10.42.1.5", "10.42.2.9", b"there"));
        world.send_packet(1, &packet4("10.42.2.9", "10.42.1.5", b"back"));
        world.run(interval);
        if interval >= Duration::from_secs(1) {
            beat(world);
        }
    }
    world.run(Duration::from_millis(100));
    let arrived = world.delivered.iter().map(Vec::len).zip(before);
    let arrived: usize = arrived.map(|(after, before)| after - before).sum();
    2 * rounds - arrived
}

/// What node `of` knows of node `number`: serial, WireGuard key and identity.
fn known(world: &World, of: usize, number: u8) -> (u64, [u8; 32], [u8; 32]) {
    let node = world.engines[usize::from(number) - 1].node_id();
    let members = world.engines[of].members.as_ref().unwrap();
    let member = &members.known(&node).unwrap().member;
    (member.renewal, member.wireguard.0, member.identity().0)
}

fn codes(world: &World, node: usize) -> Vec<String> {
    let status = world.engines[node].status(world.now);
    status.health.into_iter().map(|entry| entry.code).collect()
}

#[test]
fn short_lives_go_on_under_traffic() {
    let mut world = joined(2, Some(LIFE));
    let span = Duration::from_secs(4 * LIFE);
    assert_eq!(lost(&mut world, span, Duration::from_secs(2)), 0);
    for node in 0..2 {
        assert!(
            known(&world, node, 1).0 >= 5,
            "{:?}",
            known(&world, node, 1)
        );
        assert_eq!(codes(&world, node), Vec::<String>::new());
        let own = world.engines[node].status(world.now).node.unwrap();
        assert!(own.serial >= 5 && own.expires.is_some() && own.renews.is_some());
    }
}

/// It says so, and its host is closed: nothing of the mesh is on it, and nothing for the mesh leaves it.
fn is_out(world: &World, node: usize) {
    assert_eq!(
        world.engines[node].status(world.now).state,
        NodeState::Ended
    );
    assert!(!world.engines[node].ready().ready);
    let plan = world.plans[node].as_ref().unwrap();
    assert!(plan.member.is_none() && plan.addresses.is_empty() && plan.peer_routes.is_empty());
    assert!(!plan.protected.is_empty());
}

#[test]
fn who_is_not_renewed_is_told_in_time_and_let_go() {
    let mut world = joined(2, Some(LIFE));
    world.planet_silent = true;
    pass(&mut world, Duration::from_secs(LIFE - 100));
    assert_eq!(codes(&world, 0), ["MESH-NODE-004"]);
    let refusal = Refusal {
        code: RefusalCode::TokenRevoked,
        reason: "because".to_owned(),
        retry_in: None,
    };
    world.planet_says(0, PlanetMessage::NotRenewed(refusal));
    let health = world.engines[0].status(world.now).health;
    assert!(
        health[0].message.ends_with("not renewed: because"),
        "{health:?}"
    );
    pass(&mut world, Duration::from_secs(100 + 200));
    assert_eq!(
        world.engines[0].peers(world.now).len(),
        1,
        "a clock may differ"
    );
    pass(&mut world, Duration::from_secs(110));
    for node in 0..2 {
        assert!(world.engines[node].peers(world.now).is_empty());
        assert_eq!(codes(&world, node), ["MESH-NODE-002"]);
        is_out(&world, node);
    }
    // A restart doesn't make it forget who it was.
    world.restart(0);
    assert_eq!(codes(&world, 0), ["MESH-NODE-002"]);
    is_out(&world, 0);
    assert!(world.engines[0].status(world.now).node.is_some());
}

#[test]
fn a_renewal_that_was_dated_too_early_is_in_vain_and_told_at_once() {
    let mut world = joined(2, Some(LIFE));
    world.planet_silent = true;
    let mut then = world.now;
    then.unix = then.unix.minus(2 * LIFE);
    let request = world.engines[0].successor(None, then).unwrap();
    world.engines[0].renewing.request = Some(request);
    assert_eq!(codes(&world, 0), Vec::<String>::new());
    let refusal = Refusal {
        code: RefusalCode::Unproven,
        reason: "the renewed membership would be over".to_owned(),
        retry_in: None,
    };
    world.planet_says(0, PlanetMessage::NotRenewed(refusal));
    let health = &world.engines[0].status(world.now).health[0];
    let next = health.next.as_deref().unwrap_or_default();
    assert!(next.starts_with("leave and join"), "{health:?}");
}

#[test]
fn keys_change_under_traffic_and_the_old_ones_are_dead() {
    // An odd number leaves the identity, an even one doesn't.
    for to in [51, 52] {
        let mut world = joined(3, None);
        let interval = Duration::from_millis(3);
        assert_eq!(lost(&mut world, Duration::from_millis(300), interval), 0);
        let before = known(&world, 1, 1);
        let id = world.engines[0].node_id();
        world.rotate(0, to);
        assert_eq!(
            lost(&mut world, Duration::from_secs(2), interval),
            0,
            "to {to}"
        );
        let keys = Keys::moved(1, to);
        let after = (1, keys.wireguard.public().0, keys.identity.public().0);
        for node in 0..3 {
            assert_eq!(known(&world, node, 1), after);
            assert_eq!(codes(&world, node), Vec::<String>::new());
        }
        assert_eq!(world.engines[0].node_id(), id);
        assert_eq!(world.moved.get(&1), Some(&to));
        assert_eq!(before.2 == after.2, to == 51);
        let peer = world.engines[1].peers.get(&id).unwrap();
        assert!(
            peer.link.lock().coming.is_none(),
            "the new tunnel has taken over"
        );
        // Nothing of the former keys is left, and both ends make new sessions by the new ones.
        let interval = Duration::from_millis(500);
        assert_eq!(lost(&mut world, Duration::from_secs(400), interval), 0);
        assert!(
            world.engines[1]
                .peers
                .get(&id)
                .unwrap()
                .link
                .lock()
                .former
                .is_none()
        );
        let members = world.engines[1].members.as_ref().unwrap();
        let old = Keys::new(1).wireguard.public();
        assert_eq!(members.holdings().with_key(&old), None);
        // Over a restart of both.
        world.restart(0);
        world.restart(1);
        world.run(Duration::from_secs(10));
        assert_eq!(lost(&mut world, Duration::from_secs(2), interval), 0);
        assert_eq!(world.engines[0].node_id(), id);
        assert_eq!(known(&world, 1, 1), after);
    }
}

#[test]
fn both_ends_may_change_their_keys_at_once() {
    let mut world = joined(2, None);
    let interval = Duration::from_millis(3);
    assert_eq!(lost(&mut world, Duration::from_millis(100), interval), 0);
    world.rotate(0, 51);
    world.rotate(1, 54);
    assert_eq!(lost(&mut world, Duration::from_secs(2), interval), 0);
    assert_eq!(
        known(&world, 0, 2).1,
        Keys::moved(2, 54).wireguard.public().0
    );
    assert_eq!(lost(&mut world, Duration::from_secs(20), interval * 100), 0);
    for node in 0..2 {
        let engine = &world.engines[node];
        let peer = engine.peers.nodes().next().unwrap();
        let state = peer.link.lock();
        assert!(state.coming.is_none() && state.former.is_none());
    }
}

#[test]
fn a_rotation_that_no_planet_answers_is_completed_by_the_next_life() {
    let mut world = joined(2, None);
    world.planet_silent = true;
    world.rotate(0, 52);
    world.run(Duration::from_secs(3));
    let pending = world.engines[0].renewing.request.clone();
    assert!(world.engines[0].renewal_waits().is_some());
    let again = world.engines[0].handle_rotation(Keys::moved(1, 53), world.now);
    assert_eq!(again, Err(RequestError::Renewing));
    assert_eq!(
        lost(
            &mut world,
            Duration::from_secs(1),
            Duration::from_millis(10)
        ),
        0
    );
    world.restart(0);
    assert_eq!(world.engines[0].renewing.request, pending, "word for word");
    assert_eq!(world.moved.get(&1), None);
    world.planet_silent = false;
    world.run(limits::RENEW_RETRY + Duration::from_secs(5));
    assert_eq!(world.moved.get(&1), Some(&52));
    assert_eq!(known(&world, 1, 1).0, 1);
    assert_eq!(
        lost(
            &mut world,
            Duration::from_secs(1),
            Duration::from_millis(10)
        ),
        0
    );
}

#[test]
fn without_planets_a_renewal_passes_from_member_to_member() {
    let mut world = joined(2, Some(LIFE));
    world.planet_silent = true;
    pass(&mut world, Duration::from_secs(LIFE * 2 / 3 + 5));
    let now = world.now;
    let request = world.engines[0].renewing.request.clone().unwrap();
    world.kill_planet();
    // The receipt of a planet that only node 1 could reach.
    let receipt = RenewalReceipt {
        network: world.authority.network.id,
        planet: world.planet_id(),
        node: world.engines[0].node_id(),
        renewal: request.renewal.hash(),
        time: now.unix,
    };
    let receipt = Signed::seal(&receipt, &world.authority.planet).unwrap();
    let planet = world.planet_id();
    world.engines[0].renewed(planet, receipt, now);
    world.engines[0].settle(now);
    world.drain(0);
    world.run(Duration::from_secs(1));
    assert_eq!(known(&world, 1, 1).0, 1);
}

#[test]
fn what_a_former_identity_says_of_endpoints_is_refused_and_named() {
    let mut world = joined(2, None);
    let id = world.engines[0].node_id();
    let old = world.engines[0].record.clone().unwrap();
    world.rotate(0, 52);
    world.run(Duration::from_secs(1));
    // In good faith: a planet that is a little behind.
    world.tell_all(DirectoryRecord::Endpoints(old.1.clone()));
    world.run(Duration::from_secs(1));
    assert_eq!(codes(&world, 1), Vec::<String>::new());
    let lure = EndpointRecord {
        sequence: old.0.sequence + 100,
        ..old.0
    };
    let before = world.engines[1].peers.get(&id).unwrap().record.clone();
    let lure = Signed::seal(&lure, &Keys::new(1).identity).unwrap();
    world.tell_all(DirectoryRecord::Endpoints(lure));
    world.run(Duration::from_secs(1));
    assert_eq!(
        codes(&world, 1),
        Vec::<String>::new(),
        "it may not have heard"
    );
    world.run(limits::LATE + Duration::from_secs(limits::DOUBT));
    assert_eq!(codes(&world, 1), [Lie::Superseded.code()]);
    assert_eq!(world.engines[1].peers.get(&id).unwrap().record, before);
}

/// Node 1's membership was renewed when its clock and the planet's were ahead.
fn dated_ahead() -> World {
    const AHEAD: i64 = 450;
    let mut world = joined(2, Some(LIFE));
    world.planet_silent = true;
    world.clocks.insert(0, AHEAD);
    pass(&mut world, Duration::from_secs(2));
    let request = world.engines[0].renewing.request.clone().unwrap();
    let at = world.now_of(0);
    let receipt = RenewalReceipt {
        network: world.authority.network.id,
        planet: world.planet_id(),
        node: world.engines[0].node_id(),
        renewal: request.renewal.hash(),
        time: at.unix,
    };
    let receipt = Signed::seal(&receipt, &world.authority.planet).unwrap();
    world.planet_says(0, PlanetMessage::Renewed(receipt));
    let members = world.engines[0].members.as_ref().unwrap();
    world.planet_took(members.own().unwrap().membership.as_ref().clone());
    assert_eq!((known(&world, 0, 1).0, known(&world, 1, 1).0), (1, 0));
    world.planet_silent = false;
    world
}

fn issued(world: &World, node: usize) -> u64 {
    let own = world.engines[node].members.as_ref().unwrap().own().unwrap();
    own.member.issued.0
}

#[test]
fn a_life_that_is_dated_ahead_begins_as_soon_as_the_clocks_are_right() {
    for behind in [0, 1_000] {
        let mut world = dated_ahead();
        // A clock that is as wrong as before shows nothing, whoever is right.
        pass(&mut world, Duration::from_secs(20));
        assert_eq!(known(&world, 0, 1).0, 1);
        world.clocks.insert(0, -behind);
        pass(&mut world, Duration::from_secs(20));
        assert_eq!(
            (known(&world, 0, 1).0, known(&world, 1, 1).0),
            (2, 2),
            "{behind}"
        );
        let age = world.now.unix.0 - issued(&world, 0);
        assert!(age <= 20, "{behind}: by the planet's clock, {age} s ago");
        assert_eq!(known(&world, 0, 1).0, 2, "once");
    }
}

#[test]
fn keys_that_change_in_a_life_that_is_dated_ahead_are_in_force_at_once() {
    let mut world = dated_ahead();
    world.clocks.clear();
    world.rotate(0, 51);
    world.run(Duration::from_millis(900));
    assert_eq!(world.moved.get(&1), Some(&51));
    assert_eq!(known(&world, 1, 1).0, 2);
    assert!(issued(&world, 0) <= world.now.unix.0);
}

/// The planet was off meanwhile, or was put back to yesterday's books.
#[test]
fn a_planet_that_was_away_is_told_the_newer_and_accused_by_nobody() {
    for (learns, to) in [(true, 51), (true, 52), (false, 51), (false, 52)] {
        let mut world = joined(3, None);
        world.planet_learns = learns;
        let id = world.engines[0].node_id();
        let members = world.engines[1].members.as_ref().unwrap();
        let old = Box::new((*members.known(&id).unwrap().membership).clone());
        world.rotate(0, to);
        pass(&mut world, Duration::from_secs(10));
        let newest = known(&world, 1, 1);
        world.tell_all(DirectoryRecord::Member(old.clone()));
        for (span, named) in [(1, false), (20, !learns), (3_600, !learns)] {
            pass(&mut world, Duration::from_secs(span));
            let lie = if to == 51 {
                Lie::OldState
            } else {
                Lie::Superseded
            };
            let expected = if named { vec![lie.code()] } else { Vec::new() };
            assert_eq!(codes(&world, 1), expected, "{learns} {to} {span}");
            assert_eq!(known(&world, 1, 1), newest);
        }
        // It knows better.
        world.tell_all(DirectoryRecord::Member(old));
        world.run(Duration::from_secs(1));
        assert_eq!(codes(&world, 1).len(), 1, "{learns} {to}");
    }
}

/// The record overtakes the renewal which explains it: by a member as by a planet.
#[test]
fn a_record_by_an_identity_not_heard_of_yet_waits_for_its_renewal() {
    for (patience, by_planet) in [(1, false), (1, true), (60, false)] {
        let mut world = joined(3, None);
        let id = world.engines[0].node_id();
        let old = world.engines[0].record.clone().unwrap().0;
        let coming = EndpointRecord {
            sequence: old.sequence + 100,
            ..old
        };
        let signed = Signed::seal(&coming, &Keys::moved(1, 52).identity).unwrap();
        let forged = Signed::seal(&coming, &Keys::moved(1, 54).identity).unwrap();
        let now = world.now;
        if by_planet {
            world.tell_all(DirectoryRecord::Endpoints(signed));
        } else {
            let message = ControlMessage::Endpoints(Box::new(signed));
            world.engines[1].heard_news(id, message, now);
        }
        let thief = world.engines[2].node_id();
        let message = ControlMessage::Endpoints(Box::new(forged));
        world.engines[1].heard_news(thief, message, now);
        assert_eq!(codes(&world, 1), Vec::<String>::new());
        pass(&mut world, Duration::from_secs(patience));
        let named = usize::from(patience > limits::DOUBT) * 2;
        assert_eq!(codes(&world, 1), vec![Lie::Forged.code(); named]);
        world.rotate(0, 52);
        pass(&mut world, Duration::from_secs(limits::DOUBT + 1));
        // Who told what nothing explains stays named.
        let health = world.engines[1].status(world.now).health;
        assert_eq!(codes(&world, 1), [Lie::Forged.code()], "{health:?}");
        assert!(
            health[0].message.starts_with("member n3: about n1"),
            "{health:?}"
        );
        // It counts; the node itself, which has not said it, is shown it and goes beyond.
        let peer = world.engines[1].peers.get(&id).unwrap();
        assert!(!coming.is_newer_than(&peer.record.as_ref().unwrap().0));
    }
}

#[test]
fn a_node_whose_keys_were_taken_says_so_and_stops() {
    let mut world = joined(2, None);
    world.rotate(1, 52);
    world.run(Duration::from_secs(1));
    // Its disk is replaced by an old copy of itself.
    world.moved.clear();
    let mut stored = world.stored[1].clone().unwrap();
    stored.membership.as_mut().unwrap().renewed = None;
    world.stored[1] = Some(stored);
    world.restart(1);
    let newest = world.engines[0].members.as_ref().unwrap();
    let newest = newest.known(&world.engines[1].node_id()).unwrap();
    let newest = (*newest.membership).clone();
    world.tell_all(DirectoryRecord::Member(Box::new(newest)));
    world.run(Duration::from_secs(1));
    // No planet lets this identity in, nor takes its word that it leaves.
    for alive in [true, false] {
        if !alive {
            world.kill_planet();
        }
        assert_eq!(codes(&world, 1), ["MESH-NODE-003"], "{alive}");
        let next = world.engines[1].status(world.now).health.remove(0).next;
        let next = next.unwrap();
        assert!(
            next.starts_with("put the disk with the newer keys back"),
            "{next}"
        );
        assert!(
            next.contains("`meshctl node revoke n2`, then `meshctl leave --forget-keys`"),
            "{next}"
        );
    }
    is_out(&world, 1);
    assert!(world.engines[1].peers(world.now).is_empty());
    assert!(world.now.moment > Moment::ZERO && world.now.unix > START);
}

/// The next life would not know the new keys, and peers would know no others.
#[test]
fn keys_don_t_change_while_the_disk_refuses_and_do_so_afterwards() {
    let mut world = joined(2, None);
    world.disks.insert(0, Fault::Full);
    world.rotate(0, 51);
    pass(&mut world, Duration::from_secs(30));
    assert_eq!(
        world.engines[0].renewal_waits().as_deref(),
        Some("the state can't be written to disk")
    );
    assert_eq!((known(&world, 1, 1).0, world.moved.get(&1)), (0, None));
    // A crash in between: nothing has changed, and it isn't forgotten.
    world.restart(0);
    pass(&mut world, Duration::from_secs(10));
    assert_eq!(world.engines[0].status(world.now).state, NodeState::Online);
    assert_eq!(world.engines[0].peers(world.now).len(), 1);
    assert!(world.engines[0].renewal_waits().is_some());
    assert_eq!((known(&world, 1, 1).0, world.moved.get(&1)), (0, None));
    world.disks.clear();
    world.drain(0);
    pass(&mut world, Duration::from_secs(10));
    assert_eq!((known(&world, 1, 1).0, world.moved.get(&1)), (1, Some(&51)));
}

/// The disk has gone back to when the membership was to be renewed by the keys of before.
#[test]
fn keys_made_after_a_renewal_that_the_disk_takes_for_pending_are_asked_for() {
    let mut world = joined(2, Some(LIFE));
    world.planet_silent = true;
    pass(&mut world, Duration::from_secs(LIFE * 2 / 3 + 5));
    let before = world.stored[0].clone();
    world.planet_silent = false;
    pass(&mut world, limits::RENEW_RETRY + Duration::from_secs(10));
    assert_eq!(known(&world, 0, 1).0, 1);
    world.planet_silent = true;
    world.rotate(0, 51);
    world.stored[0] = before;
    world.restart(0);
    world.planet_silent = false;
    pass(&mut world, limits::RENEW_RETRY + Duration::from_secs(10));
    assert_eq!((known(&world, 1, 1).0, world.moved.get(&1)), (2, Some(&51)));
    assert_eq!(known(&world, 0, 1), known(&world, 1, 1));
}

/// The disk fails between the request and its receipt: whichever life comes next has the keys that its
/// state names.
#[test]
fn old_keys_stay_until_the_membership_that_names_the_new_ones_is_on_disk() {
    for fault in [Fault::Full, Fault::Hangs] {
        let mut world = joined(2, None);
        world.planet_silent = true;
        world.rotate(0, 51);
        world.disks.insert(0, fault);
        world.planet_silent = false;
        pass(&mut world, limits::RENEW_RETRY + Duration::from_secs(10));
        assert_eq!(known(&world, 0, 1).0, 1, "the new keys are in force");
        assert_eq!(
            world.moved.get(&1),
            None,
            "and the old ones are still there"
        );
        // What a full disk can't keep is in memory alone; a crash brings the old keys back, and the
        // planet's word the new ones.
        world.restart(0);
        pass(&mut world, Duration::from_secs(10));
        assert_eq!(world.engines[0].status(world.now).state, NodeState::Online);
        assert_eq!(known(&world, 0, 1), known(&world, 1, 1));
        world.disks.clear();
        world.drain(0);
        assert_eq!(world.moved.get(&1), Some(&51));
        assert_eq!(world.engines[0].peers(world.now).len(), 1);
    }
}

#[test]
fn peers_hear_of_a_renewal_when_the_disk_has_it() {
    let mut world = joined(2, Some(LIFE));
    world.planet_silent = true;
    pass(&mut world, Duration::from_secs(LIFE * 2 / 3 + 5));
    let now = world.now;
    let request = world.engines[0].renewing.request.clone().unwrap();
    world.kill_planet();
    world.disks.insert(0, Fault::Hangs);
    let receipt = RenewalReceipt {
        network: world.authority.network.id,
        planet: world.planet_id(),
        node: world.engines[0].node_id(),
        renewal: request.renewal.hash(),
        time: now.unix,
    };
    let receipt = Signed::seal(&receipt, &world.authority.planet).unwrap();
    let planet = world.planet_id();
    world.engines[0].renewed(planet, receipt, now);
    world.engines[0].settle(now);
    world.drain(0);
    world.run(Duration::from_secs(1));
    assert_eq!((known(&world, 0, 1).0, known(&world, 1, 1).0), (1, 0));
    // A disk that can't is no reason to leave them without it.
    world.disks.insert(0, Fault::Full);
    world.drain(0);
    world.run(Duration::from_secs(1));
    assert_eq!(known(&world, 1, 1).0, 1);
}
