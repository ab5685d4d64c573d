//! How memberships end: by the root's word, by the node's own, and what outlives them.

use super::*;

#[test]
fn a_revoked_node_loses_its_tunnels_at_once_and_for_good() {
    let mut world = World::new(3);
    world.join_all();
    let gone = world.engines[2].node_id();
    let statement = world.authority.say(&RootStatement::RevokeNode {
        network: world.authority.network.id,
        node: gone,
        issued: START.plus(100),
    });
    let old_table = world.tables[0].clone().unwrap();
    let now = world.now;
    world.engines[0].handle_statement(statement, now).unwrap();
    world.drain(0);
    // A thread that still holds the former table can't send either.
    let mut batch = crate::outbound::OutboundBatch::default();
    let mut packet = packet4("10.42.1.5", "10.42.3.9", b"too late");
    crate::outbound::seal_batch(&old_table, &mut [packet.as_mut_slice().into()], &mut batch);
    assert_eq!(batch.runs().count() + batch.items.len(), 0);
    world.run(Duration::from_millis(100));
    let before = world.delivered[2].len();
    for node in 0..2 {
        world.send_packet(
            node,
            &packet4(&format!("10.42.{}.5", node + 1), "10.42.3.9", b"x"),
        );
        assert_eq!(
            world.engines[node].peers(world.now).len(),
            1,
            "told by the planet"
        );
    }
    world.send_packet(2, &packet4("10.42.3.5", "10.42.1.9", b"x"));
    world.run(Duration::from_secs(2));
    assert_eq!(world.delivered[2].len(), before);
    assert!(world.delivered[0].is_empty());
    assert_eq!(world.engines[2].status(world.now).state, NodeState::Revoked);
    world.restart(0);
    world.run(Duration::from_secs(2));
    assert_eq!(world.engines[0].peers(world.now).len(), 1, "kept on disk");
}

#[test]
fn a_revocation_travels_through_tunnels_when_planets_are_dead() {
    let mut world = World::new(3);
    world.join_all();
    world.kill_planet();
    let statement = world.authority.say(&RootStatement::RevokeNode {
        network: world.authority.network.id,
        node: world.engines[2].node_id(),
        issued: START.plus(100),
    });
    let now = world.now;
    world.engines[0].handle_statement(statement, now).unwrap();
    world.drain(0);
    world.run(Duration::from_millis(500));
    assert_eq!(world.engines[1].peers(world.now).len(), 1);
}

/// The root may name an external peer with an address that a member holds; the refusal must outlive
/// a restart of the holder and of its peers.
#[test]
fn an_external_peer_that_was_refused_takes_nothing_after_a_restart() {
    let mut world = World::new(2);
    world.join_all();
    let thief = ExternalPeer {
        network: world.authority.network.id,
        name: name("legacy"),
        wireguard: PublicKey([77; 32]),
        prefixes: nets(&["10.42.1.5/32"]),
        endpoint: None,
        issued: START.plus(100),
    };
    let statement = world.authority.say(&RootStatement::External(thief));
    for node in 0..2 {
        let now = world.now;
        let _ = world.engines[node].handle_statement(statement.clone(), now);
        world.drain(node);
    }
    for node in [1, 0] {
        world.restart(node);
        world.run(Duration::from_secs(5));
        world.restart(node);
        world.run(Duration::from_secs(5));
    }
    assert!(world.stored[0].as_ref().unwrap().membership.is_some());
    let peers = world.engines[1].peers(world.now);
    let holder = peers.iter().find(|view| view.name == name("n1")).unwrap();
    assert_ne!(holder.state, PeerState::Quarantined, "{peers:?}");
}

/// Its pods may still stand, and what they send for the mesh must not leave in plaintext.
#[test]
fn the_host_of_a_revoked_node_stays_closed_also_after_a_restart() {
    let mut world = World::new(2);
    world.join_all();
    let protected = world.plans[0].as_ref().unwrap().protected.clone();
    let statement = world.authority.say(&RootStatement::RevokeNode {
        network: world.authority.network.id,
        node: world.engines[0].node_id(),
        issued: START.plus(100),
    });
    let now = world.now;
    world.engines[0].handle_statement(statement, now).unwrap();
    world.drain(0);
    for life in ["first", "second"] {
        let plan = world.plans[0].clone().unwrap();
        assert_eq!(plan.protected, protected, "{life} life");
        assert!(plan.member.is_none() && plan.peer_routes.is_empty() && plan.addresses.is_empty());
        let state = world.engines[0].status(world.now).state;
        assert_eq!(state, NodeState::Revoked, "{life} life");
        world.plans[0] = None;
        world.restart(0);
    }
    let now = world.now;
    world.engines[0].handle_leave(now).unwrap();
    world.drain(0);
    assert!(world.plans[0].as_ref().unwrap().protected.is_empty());
}

#[test]
fn leaving_forgets_the_network_and_tells_the_others() {
    let mut world = World::new(2);
    world.join_all();
    let now = world.now;
    world.engines[0].handle_leave(now).unwrap();
    world.drain(0);
    world.run(Duration::from_secs(1));
    assert_eq!(
        world.engines[0].status(world.now).state,
        NodeState::NotJoined
    );
    assert!(world.plans[0].as_ref().unwrap().member.is_none());
    assert!(world.stored[0].as_ref().unwrap().membership.is_none());
    assert!(world.engines[1].peers(world.now).is_empty());
    assert!(world.engines[0].handle_leave(now).is_err());
}

#[test]
fn a_revoked_node_comes_back_with_new_keys_as_another_one() {
    let mut world = World::new(2);
    world.join_all();
    let before = world.engines[0].node_id();
    let statement = world.authority.say(&RootStatement::RevokeNode {
        network: world.authority.network.id,
        node: before,
        issued: START.plus(100),
    });
    let now = world.now;
    world.engines[0].handle_statement(statement, now).unwrap();
    let health = world.engines[0].status(now).health;
    let next = health.iter().find_map(|entry| entry.next.clone()).unwrap();
    assert!(next.contains("`meshctl leave --forget-keys`"), "{next}");
    let token = world.authority.token(1);
    let refused = world.engines[0]
        .handle_join(&token, name("n1"), now)
        .unwrap_err();
    assert!(
        refused.next().unwrap().contains("--forget-keys"),
        "{refused}"
    );
    assert!(
        world.engines[0]
            .handle_new_keys(Keys::moved(1, 50), now)
            .is_err(),
        "a member keeps its keys"
    );
    world.engines[0].handle_leave(now).unwrap();
    world.engines[0]
        .handle_new_keys(Keys::moved(1, 50), now)
        .unwrap();
    world.drain(0);
    assert_ne!(world.engines[0].node_id(), before);
    let stored = world.stored[0].as_ref().unwrap();
    assert!(stored.membership.is_none() && stored.departures.is_empty());
    let token = world.authority.token(9);
    world.engines[0]
        .handle_join(&token, name("n1"), now)
        .unwrap();
    world.drain(0);
    world.connect(0);
    world.run(Duration::from_secs(2));
    assert_eq!(world.engines[0].status(world.now).state, NodeState::Online);
}
