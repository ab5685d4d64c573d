//! What a peer believes of a later life of a node that is over: a copy's that was switched off.

use super::standing::{joined, pass, reaches_all};
use super::*;
use crate::control::ControlMessage;
use podmesh_proto::probe::{Probe, ProbeBody};

/// The record of a copy of node 0 that began later than node 0 itself.
fn of_a_copy(world: &World) -> (EndpointRecord, Signed<EndpointRecord>) {
    let (present, _) = world.engines[0].record.clone().unwrap();
    let copys = EndpointRecord {
        incarnation: present.incarnation + 500,
        sequence: 1,
        ..present
    };
    let signed = Signed::seal(&copys, &world.engines[0].keys().identity).unwrap();
    (copys, signed)
}

/// Node 1 hears from the copy.
fn hears_the_copy(world: &mut World) {
    let (copys, signed) = of_a_copy(world);
    let now = world.now;
    world.engines[1].take_record(copys, signed, now);
}

/// Node 1 tells node 0 of its later life.
fn tells(world: &mut World, incarnation: u64) {
    let (node, now) = (world.engines[0].node_id(), world.now);
    let message = ControlMessage::LaterLife { incarnation };
    world.engines[1].send_control(&node, &message, now);
    world.drain(1);
    world.run(Duration::from_millis(100));
}

fn believed(world: &World) -> Option<u64> {
    let node = world.engines[0].node_id();
    world.engines[1].life_of(&node)
}

/// Probes come before records: of the life that the peer has named it knows the proof only later, or what it
/// showed was lost. As the node speaks to it as a still later one, nothing else would make it say that again.
#[test]
fn who_was_told_of_a_later_life_and_not_shown_it_asks_until_it_is() {
    let mut world = joined(2);
    let life = of_a_copy(&world).0.incarnation;
    tells(&mut world, life);
    assert!(
        world.engines[0].edition().0 < life,
        "of that there is no proof"
    );
    hears_the_copy(&mut world);
    pass(&mut world, 30);
    assert_eq!(world.engines[0].edition().0, life + 1);
    assert_eq!(believed(&world), Some(life + 1));
    assert!(reaches_all(&world, 0) && reaches_all(&world, 1));
}

/// Whoever knew that life by probes alone believes the record that it is shown, and is left in peace then.
#[test]
fn who_asks_in_vain_stops() {
    let mut world = joined(2);
    let (node, life) = (world.engines[1].node_id(), of_a_copy(&world).0.incarnation);
    tells(&mut world, life);
    let is_due = |world: &World| {
        let later = world.now.moment + Duration::from_secs(60);
        let peer = world.engines[0].peers.get(&node).unwrap();
        peer.asking.is_due(later)
    };
    pass(&mut world, 200);
    assert!(is_due(&world));
    pass(&mut world, 150);
    assert!(!is_due(&world));
    assert!(world.engines[0].edition().0 < life);
    tells(&mut world, life);
    assert!(is_due(&world), "until the peer says it again");
}

/// What could not be sent, or was lost, is said again.
#[test]
fn a_later_life_is_shown_as_soon_as_there_is_a_path() {
    let mut world = joined(2);
    let life = of_a_copy(&world).0.incarnation;
    hears_the_copy(&mut world);
    let (node, now) = (world.engines[0].node_id(), world.now);
    let peer = world.engines[1].peers.get(&node).unwrap();
    let link = std::sync::Arc::clone(&peer.link);
    let path = link.lock().path.take();
    world.engines[1].show_later_life(&node, now);
    link.lock().path = path;
    world.run(Duration::from_secs(2));
    assert_eq!(believed(&world), Some(life + 1));
    assert_eq!(world.engines[0].edition().0, life + 1);
}

/// All goes well, so that neither of the two has a reason for a probe or a record.
#[test]
fn a_copy_that_was_on_for_a_moment_is_told_of_with_the_next_session() {
    let mut world = joined(2);
    let life = of_a_copy(&world).0.incarnation;
    hears_the_copy(&mut world);
    pass(&mut world, 200);
    assert_eq!(believed(&world), Some(life + 1));
    assert_eq!(world.engines[0].edition().0, life + 1);
    assert!(reaches_all(&world, 0) && reaches_all(&world, 1));
    let node = world.engines[0].node_id();
    pass(&mut world, 600);
    let peer = world.engines[1].peers.get(&node).unwrap();
    assert_eq!(peer.naming, 0, "then no more");
    assert_eq!(world.engines[0].edition().0, life + 1);
}

/// Whoever stole the key, or runs a copy, could outlive the node for good with an identity that it has replaced.
#[test]
fn the_later_life_of_a_former_identity_counts_against_nothing() {
    let mut world = joined(2);
    let life = of_a_copy(&world).0.incarnation;
    hears_the_copy(&mut world);
    assert_eq!(believed(&world), Some(life));
    world.rotate(0, 52);
    pass(&mut world, 10);
    let present = world.engines[0].record.clone().unwrap();
    let node = world.engines[0].node_id();
    let known = world.engines[1].peers.get(&node).unwrap().record.clone();
    assert_eq!(known, Some(present));
    assert!(reaches_all(&world, 0) && reaches_all(&world, 1));
}

/// A copy that began in the same second has said more: all that the node says seems to be former.
fn hears_a_copy_of_the_same_second(world: &mut World) {
    let (present, _) = world.engines[0].record.clone().unwrap();
    let copys = EndpointRecord {
        sequence: present.sequence + 600,
        ..present
    };
    let signed = Signed::seal(&copys, &world.engines[0].keys().identity).unwrap();
    let now = world.now;
    world.engines[1].take_record(copys, signed, now);
}

#[test]
fn who_greets_as_the_lesser_of_one_second_is_shown_the_other() {
    let mut world = joined(2);
    let before = world.engines[0].edition();
    hears_a_copy_of_the_same_second(&mut world);
    let (node, now) = (world.engines[1].node_id(), world.now);
    world.engines[0].greet_peer(&node, now);
    world.drain(0);
    world.run(Duration::from_secs(1));
    let own = world.engines[0].edition();
    assert!(own.0 > before.0 && own.1 > before.1 + 600, "{own:?}");
    assert_eq!(believed(&world), Some(own.0));
}

/// A probe of node 0, or of its copy, comes to node 1.
fn probes(world: &mut World, counter: u64) {
    let (node, now) = (world.engines[1].node_id(), world.now);
    let peer = world.engines[0].peers.get(&node).unwrap();
    let probe = Probe {
        incarnation: world.engines[0].edition().0,
        counter,
        body: ProbeBody::Ping { transaction: 5 },
        known: 0,
    };
    let bytes = peer.probes.seal(&probe, &[5; 24]);
    let received = Received {
        socket: SocketId::MAIN,
        from: "198.51.100.1:7001".parse().unwrap(),
        relay: None,
        bytes,
    };
    world.engines[1].handle_datagram(received, now);
    world.drain(1);
    world.run(Duration::from_millis(100));
}

#[test]
fn who_counts_as_another_of_the_same_second_has_is_shown_it() {
    let mut world = joined(2);
    let before = world.engines[0].edition();
    hears_a_copy_of_the_same_second(&mut world);
    probes(&mut world, 100_000);
    assert_eq!(world.engines[0].edition(), before, "that was the copy's");
    let node = world.engines[1].node_id();
    let peer = world.engines[0].peers.get_mut(&node).unwrap();
    let number = peer.next_probe();
    probes(&mut world, number);
    let own = world.engines[0].edition();
    assert!(own.0 > before.0, "{own:?}");
    assert_eq!(believed(&world), Some(own.0));
    pass(&mut world, 60);
    assert!(reaches_all(&world, 0) && reaches_all(&world, 1));
}

/// A probe of node 1, which knows of this life of node 0, comes to node 0.
fn says_by_a_probe(world: &mut World, known: u64) {
    let (node, now) = (world.engines[0].node_id(), world.now);
    let incarnation = world.engines[1].edition().0;
    let peer = world.engines[1].peers.get_mut(&node).unwrap();
    let probe = Probe {
        incarnation,
        counter: peer.next_probe(),
        body: ProbeBody::Ping { transaction: 6 },
        known,
    };
    let bytes = peer.probes.seal(&probe, &[6; 24]);
    let received = Received {
        socket: SocketId::MAIN,
        from: "198.51.100.2:7002".parse().unwrap(),
        relay: None,
        bytes,
    };
    world.engines[0].handle_datagram(received, now);
}

/// Where there is no other way to say it.
#[test]
fn a_peer_without_a_path_says_by_its_probes_which_life_it_listens_to() {
    let mut world = joined(2);
    let (own, life) = (
        world.engines[0].edition().0,
        of_a_copy(&world).0.incarnation,
    );
    says_by_a_probe(&mut world, life);
    assert_eq!(world.engines[0].latest_life(), own, "it may say so");
    let node = world.engines[1].node_id();
    let link = &world.engines[0].peers.get(&node).unwrap().link;
    link.lock().path = None;
    for former in [0, own - 1, own] {
        says_by_a_probe(&mut world, former);
        assert_eq!(world.engines[0].latest_life(), own);
    }
    says_by_a_probe(&mut world, life);
    assert_eq!(world.engines[0].latest_life(), life + 1);
    assert_eq!(
        world.engines[0].edition().0,
        own,
        "of that there is no proof"
    );
    says_by_a_probe(&mut world, life + 10);
    assert_eq!(world.engines[0].latest_life(), life + 1, "so soon after");
    world.now.moment = world.now.moment + Duration::from_secs(6);
    says_by_a_probe(&mut world, life + 10);
    assert_eq!(world.engines[0].latest_life(), life + 11);
}
