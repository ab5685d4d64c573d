use std::time::Duration;

use podmesh_proto::local_api::{NodeState, PathView, PeerState};
use podmesh_proto::network::RootStatement;
use podmesh_proto::planet_api::PlanetMessage;

use crate::testing::{START, World, packet4};

#[test]
fn two_nodes_join_and_reach_each_other_directly() {
    let mut world = World::new(2);
    world.join_all();
    assert_eq!(world.notes, ["join 0 Ok(())", "join 1 Ok(())"]);
    for node in 0..2 {
        let views = world.engines[node].peers(world.now);
        assert_eq!(views.len(), 1, "{views:#?}");
        assert_eq!(views[0].state, PeerState::Up, "{views:#?}");
        assert!(
            matches!(views[0].path, Some(PathView::Direct4 { .. })),
            "{views:#?}"
        );
        let status = world.engines[node].status(world.now);
        assert_eq!(status.state, NodeState::Online);
        assert_eq!(status.peers.direct, 1);
        assert!(status.health.is_empty(), "{:#?}", status.health);
        assert!(world.engines[node].ready().ready);
    }
    let packet = packet4("10.42.1.5", "10.42.2.9", b"hello");
    world.send_packet(0, &packet);
    world.send_packet(1, &packet4("10.77.0.2", "10.77.0.1", b"back"));
    world.run(Duration::from_millis(50));
    assert_eq!(world.delivered[1], [packet]);
    assert_eq!(world.delivered[0].len(), 1);
    let (now, target) = (world.now, "10.42.2.9");
    world.engines[0].start_ping(target, 5, now);
    world.drain(0);
    world.run(Duration::from_millis(50));
    assert_eq!(world.notes.last().unwrap(), "ping n2 20");
}

#[test]
fn a_pair_that_cant_be_direct_is_relayed_and_says_why() {
    let mut world = World::new(2);
    world.direct_blocked = true;
    world.join_all();
    for node in 0..2 {
        let views = world.engines[node].peers(world.now);
        assert_eq!(
            views[0].path,
            Some(PathView::Relay {
                planet: "p1".to_owned()
            }),
            "{views:#?}"
        );
        assert!(views[0].why.is_some(), "{views:#?}");
    }
    let packet = packet4("10.42.1.5", "10.42.2.9", b"hello");
    world.send_packet(0, &packet);
    world.run(Duration::from_millis(50));
    assert_eq!(world.delivered[1], [packet]);
}

#[test]
fn a_node_comes_back_from_its_disk_while_every_planet_is_dead() {
    let mut world = World::new(3);
    world.join_all();
    world.run(Duration::from_secs(40));
    world.kill_planet();
    world.run(Duration::from_secs(5));
    world.restart(0);
    assert_eq!(
        world.engines[0].status(world.now).state,
        NodeState::PlanetsDown
    );
    let plan = world.plans[0].as_ref().unwrap();
    assert_eq!(plan.peer_routes.len(), 8, "{plan:#?}");
    world.run(Duration::from_secs(15));
    for node in 0..3 {
        let views = world.engines[node].peers(world.now);
        assert!(
            views.iter().all(|view| view.state == PeerState::Up),
            "{node}: {views:#?}"
        );
    }
    let packet = packet4("10.42.1.5", "10.42.3.9", b"still here");
    world.send_packet(0, &packet);
    world.run(Duration::from_millis(50));
    assert_eq!(world.delivered[2].last(), Some(&packet));
}

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
    let packet = packet4("10.42.1.5", "10.42.3.9", b"too late");
    crate::outbound::seal_batch(&old_table, &[packet.clone()], &mut batch);
    assert_eq!(batch.datagrams().count() + batch.items.len(), 0);
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
fn a_planet_that_forgot_hears_of_every_member() {
    let mut world = World::new(2);
    world.join_all();
    world.planet_says(0, PlanetMessage::Relearn);
    world.run(Duration::from_secs(1));
    let reports: Vec<&String> = world
        .notes
        .iter()
        .filter(|note| note.starts_with("report"))
        .collect();
    assert_eq!(reports, ["report 2", "report 0"]);
}

#[test]
fn a_silent_planet_is_given_up() {
    let mut world = World::new(1);
    world.join_all();
    assert_eq!(world.engines[0].status(world.now).state, NodeState::Online);
    world.run(Duration::from_secs(70));
    let status = world.engines[0].status(world.now);
    assert_eq!(status.state, NodeState::PlanetsDown);
    assert_eq!(status.planets[0].id, world.planet_id());
    assert!(
        status.planets[0]
            .error
            .as_ref()
            .unwrap()
            .contains("nothing heard")
    );
}
