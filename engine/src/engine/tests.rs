mod bounds;
mod ending;
mod joins;
mod later_lives;
mod leaving;
mod reborn;
mod standing;
mod walk;

use std::net::SocketAddr;
use std::time::Duration;

use podmesh_proto::candidate::EndpointRecord;
use podmesh_proto::certificate::Grant;
use podmesh_proto::key::{PublicKey, SecretKey, SigningKey, digest};
use podmesh_proto::local_api::{NodeState, PathView, PeerState, RouteView};
use podmesh_proto::network::{ExternalPeer, RootStatement};
use podmesh_proto::planet_api::{
    DirectoryCursor, DirectoryRecord, DirectoryUpdate, PlanetMessage, Refusal, RefusalCode,
};
use podmesh_proto::signed::Signed;

use crate::drops::DropReason;
use crate::error::RequestError;
use crate::limits;
use crate::output::{Output, PlanetEvent, Received};
use crate::path_id::SocketId;
use crate::testing::{Draft, Keys, START, World, name, nets, packet4};
use crate::tunnel::{Opened, Sealed, Tunnel, TunnelKeys};

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
    let routes = world.engines[0].routes();
    let of_peers = routes.iter().filter(|route| route.peer.is_some());
    let known = |route: &RouteView| route.mtu > Some(u32::from(limits::MIN_MTU));
    assert!(of_peers.clone().count() > 0 && of_peers.clone().all(known));
    world.restart(0);
    // The routes have what the paths carry from the start: no sender learns anything less. Nor does it if
    // this life ends before it has found a path.
    assert_eq!(world.engines[0].routes(), routes);
    world.run(Duration::from_millis(1));
    world.restart(0);
    assert_eq!(world.engines[0].routes(), routes);
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

#[test]
fn a_flood_of_handshakes_gets_no_answer_and_hurts_nobody_else() {
    let mut world = World::new(2);
    world.join_all();
    let stranger = TunnelKeys::new(&Keys::new(99).wireguard);
    let target = Keys::new(1).wireguard.public();
    let mut tunnel = Tunnel::new(&stranger, &target, 5).unwrap();
    let mut out = [0; 200];
    for _ in 0..1_000 {
        let length = tunnel.initiate(&mut out).unwrap();
        let received = Received {
            socket: SocketId::MAIN,
            from: "203.0.113.66:1".parse().unwrap(),
            relay: None,
            bytes: out[..length].to_vec(),
        };
        let now = world.now;
        world.engines[0].handle_datagram(received, now);
        assert!(
            world.engines[0].poll_output().is_none(),
            "an answer to a stranger"
        );
    }
    let drops = |reason| world.engines[0].drops.of(reason);
    assert_eq!(drops(DropReason::HandshakeLimit), 995);
    assert_eq!(drops(DropReason::UnknownInitiator), 5);
    world.restart(1);
    world.run(Duration::from_secs(8));
    let views = world.engines[0].peers(world.now);
    assert_eq!(views[0].state, PeerState::Up, "{views:#?}");
    let packet = packet4("10.42.2.5", "10.42.1.9", b"through the flood");
    world.send_packet(1, &packet);
    world.run(Duration::from_millis(50));
    assert_eq!(world.delivered[0].last(), Some(&packet));
}

fn laptop(world: &World, keys: &Keys) -> Signed<RootStatement> {
    world.authority.say(&RootStatement::External(ExternalPeer {
        network: world.authority.network.id,
        name: name("laptop"),
        wireguard: keys.wireguard.public(),
        prefixes: nets(&["10.77.0.200/32"]),
        endpoint: None,
        issued: START,
    }))
}

#[test]
fn an_operator_can_replace_nothing_under_its_number_and_give_nobodys_place_away() {
    let mut world = World::new(2);
    world.join_all();
    let now = world.now;
    let edition = |version, address: &str| {
        let mut network = world.authority.network.clone();
        network.version = version;
        network.planets[0].address = address.to_owned();
        world.authority.say(&RootStatement::Network(network))
    };
    let (two, other, old) = (
        edition(2, "192.0.2.9:7077"),
        edition(2, "192.0.2.8:7077"),
        edition(1, "192.0.2.7:7077"),
    );
    let thief = world.authority.say(&RootStatement::External(ExternalPeer {
        network: world.authority.network.id,
        name: name("phone"),
        wireguard: Keys::new(60).wireguard.public(),
        prefixes: nets(&["10.77.0.0/24"]),
        endpoint: None,
        issued: START,
    }));
    let engine = &mut world.engines[0];
    let told = engine.handle_statement(two.clone(), now).unwrap();
    assert!(
        told.news && told.planets == 1 && told.peers == 1,
        "{told:?}"
    );
    let told = engine.handle_statement(two.clone(), now).unwrap();
    assert!(!told.news && told.planets == 1, "{told:?}");
    let refused = engine.handle_statement(other, now);
    assert_eq!(refused, Err(RequestError::OtherEdition { edition: 2 }));
    let refused = engine.handle_statement(old, now);
    assert_eq!(refused, Err(RequestError::Older { given: 1, known: 2 }));
    assert_eq!(engine.network_statement(), Some(two));
    let refused = engine.handle_statement(thief, now).unwrap_err();
    assert!(refused.to_string().contains("has it"), "{refused}");
    assert!(engine.status(now).health.is_empty());
}

#[test]
fn an_external_peer_talks_to_members_and_roams() {
    let mut world = World::new(1);
    world.join_all();
    let outside = Keys::new(60);
    let now = world.now;
    let statement = laptop(&world, &outside);
    world.engines[0].handle_statement(statement, now).unwrap();
    world.drain(0);
    let node = Keys::new(1).wireguard.public();
    let mut tunnel = Tunnel::new(&TunnelKeys::new(&outside.wireguard), &node, 5).unwrap();
    let mut out = vec![0; 70_000];
    let length = tunnel.initiate(&mut out).unwrap();
    let mut to_node = out[..length].to_vec();
    for (turn, port) in [(0, 5_000), (1, 5_000), (2, 6_000)] {
        let from = SocketAddr::new([203, 0, 113, 5].into(), port);
        let received = Received {
            socket: SocketId::MAIN,
            from,
            relay: None,
            bytes: to_node,
        };
        world.engines[0].handle_datagram(received, now);
        if turn == 0 {
            let Some(Output::Transmit(response)) = world.engines[0].poll_output() else {
                panic!("no response");
            };
            assert_eq!(response.to, from);
            let opened = tunnel.open(None, &response.bytes, &mut out).unwrap();
            assert!(matches!(opened, Opened::Reply(_)));
        }
        world.drain(0);
        let packet = packet4("10.77.0.200", "10.77.0.1", b"hello");
        let Ok(Sealed::Data(length)) = tunnel.seal(&packet, &mut out) else {
            panic!("no session");
        };
        to_node = out[..length].to_vec();
    }
    assert_eq!(world.delivered[0].len(), 2);
    let views = world.engines[0].peers(world.now);
    let endpoint = "203.0.113.5:6000".parse().unwrap();
    assert_eq!(
        views[0].path,
        Some(PathView::Direct4 { endpoint }),
        "{views:#?}"
    );
    assert!(views[0].external && views[0].state == PeerState::Up);
    // And the other way round, to where it moved.
    world.engines[0].handle_pod_packet(&packet4("10.42.1.7", "10.77.0.200", b"x"), now);
    let Some(Output::Transmit(data)) = world.engines[0].poll_output() else {
        panic!("nothing sent");
    };
    assert_eq!(data.to, endpoint);
    assert!(matches!(
        tunnel.open(None, &data.bytes, &mut out),
        Ok(Opened::Packet(_))
    ));
}

/// A machine whose clock went back with its restart makes handshakes that look like replays.
#[test]
fn a_peer_whose_clock_went_back_gets_through_once_its_new_life_is_known() {
    let mut world = World::new(2);
    world.join_all();
    let (node, peer) = (Keys::new(1), Keys::new(2));
    let keys = TunnelKeys::new(&peer.wireguard);
    let mut initiations: Vec<Vec<u8>> = (0..2)
        .map(|_| {
            world.run(Duration::from_millis(5));
            let mut tunnel = Tunnel::new(&keys, &node.wireguard.public(), 5).unwrap();
            let mut out = [0; 200];
            let length = tunnel.initiate(&mut out).unwrap();
            out[..length].to_vec()
        })
        .collect();
    let answers = |world: &mut World, bytes: Vec<u8>| {
        let from = "198.51.100.2:7002".parse().unwrap();
        let (socket, relay) = (SocketId::MAIN, None);
        let now = world.now;
        let received = Received {
            socket,
            from,
            relay,
            bytes,
        };
        world.engines[0].handle_datagram(received, now);
        let mut responses = 0;
        while let Some(output) = world.engines[0].poll_output() {
            let Output::Transmit(sent) = output else {
                continue;
            };
            responses += usize::from(sent.bytes.first() == Some(&2));
        }
        responses
    };
    let (early, late) = (initiations.remove(0), initiations.remove(0));
    assert_eq!(answers(&mut world, late.clone()), 1);
    assert_eq!(answers(&mut world, early.clone()), 0, "older than the last");
    let record = EndpointRecord {
        network: world.authority.network.id,
        node: peer.id(),
        incarnation: START.0 + 1_000,
        sequence: 1,
        candidates: Vec::new(),
        planets: vec![world.planet_id()],
    };
    let signed = Signed::seal(&record, &peer.identity).unwrap();
    world.tell_all(DirectoryRecord::Endpoints(signed));
    assert_eq!(answers(&mut world, late.clone()), 0, "a thief has it");
    let overtaken = answers(&mut world, early.clone());
    assert_eq!(overtaken, 0, "it may have come a longer way");
    world.run(Duration::from_secs(3));
    assert_eq!(answers(&mut world, early.clone()), 1, "a new life");
    for again in [early, late] {
        assert_eq!(answers(&mut world, again), 0, "a replay in the new life");
    }
}

fn many_members(world: &World, number: u32) -> Vec<DirectoryRecord> {
    (0..number)
        .map(|number| {
            let seed = |salt: &str| digest(salt, &number.to_le_bytes());
            let [.., third, fourth] = (number + 600).to_be_bytes();
            let mut draft = Draft::new(&world.authority, 7);
            draft.keys.identity = SigningKey::from_seed(seed("identity"));
            draft.keys.wireguard = SecretKey::from_bytes(seed("wireguard"));
            draft.keys.probe = SecretKey::from_bytes(seed("probe"));
            draft.name = name(&format!("m{number}"));
            draft.grant.uses = 5_000;
            draft.use_number = number + 600;
            draft.overlay4 = Some([10, 77, third, fourth].into());
            draft.pod_cidrs = nets(&[&format!(
                "10.42.{}.{}/30",
                100 + number / 64,
                number % 64 * 4
            )]);
            DirectoryRecord::Member(Box::new(draft.build(&world.authority)))
        })
        .collect()
}

/// Everything that a directory of many members costs stays in proportion to their number.
#[test]
fn a_thousand_members_in_one_directory_are_one_table_and_one_plan() {
    let mut world = World::new(1);
    world.join_all();
    let records = many_members(&world, 1_000);
    let now = world.now;
    let mut counts = [0; 3];
    for (part, chunk) in records.chunks(16).enumerate() {
        let update = DirectoryUpdate {
            cursor: DirectoryCursor {
                epoch: 7,
                version: 100 + u64::try_from(part).unwrap(),
            },
            from_start: false,
            records: chunk.to_vec(),
        };
        let planet = world.planet_id();
        let message = PlanetEvent::Message(Box::new(PlanetMessage::Directory(update)));
        world.engines[0].handle_planet(planet, message, now);
        while let Some(output) = world.engines[0].poll_output() {
            match output {
                Output::Forwarding(_) => counts[0] += 1,
                Output::HostPlan(_) => counts[1] += 1,
                Output::Persist(_) => counts[2] += 1,
                _ => {}
            }
        }
    }
    assert!(
        counts.iter().all(|count| *count <= 3),
        "{counts:?} of table, plan, state"
    );
    world.run(Duration::from_secs(2));
    let status = world.engines[0].status(world.now);
    assert_eq!(
        (status.peers.total, status.health.len()),
        (1_000, 0),
        "{:#?}",
        status.health
    );
    assert_eq!(world.tables[0].as_ref().unwrap().len(), 1_000);
    assert_eq!(world.stored[0].as_ref().unwrap().members.len(), 1_000);
    // Nobody is knocked for without need, and the first packet is enough of a need.
    let awake = |world: &World| {
        let views = world.engines[0].peers(world.now);
        views
            .iter()
            .filter(|view| view.why.as_deref() != Some("no traffic wants it"))
            .count()
    };
    let before = awake(&world);
    assert!(before <= 256, "{before}");
    world.send_packet(0, &packet4("10.42.1.5", "10.42.114.201", b"x"));
    assert_eq!(awake(&world), before + 1);
}

#[cfg(feature = "virtual-time")]
#[test]
fn traffic_between_engines_flows_over_rekeys_without_a_loss() {
    let mut world = World::new(2);
    world.join_all();
    for second in 0..600_u32 {
        let payload = second.to_be_bytes();
        world.send_packet(0, &packet4("10.42.1.5", "10.42.2.9", &payload));
        world.send_packet(1, &packet4("10.42.2.9", "10.42.1.5", &payload));
        world.run(Duration::from_secs(1));
        // The stub planet sends no heartbeats; a node that lost it would be connected again.
        if second % 40 == 0 {
            for node in 0..2 {
                world.connect(node);
            }
        }
    }
    for node in 0..2 {
        assert_eq!(world.delivered[node].len(), 600, "node {node}");
        let views = world.engines[node].peers(world.now);
        assert!(views[0].handshake_s.unwrap() <= 130, "{views:#?}");
    }
}

#[test]
fn a_report_of_long_memberships_goes_in_parts_that_fit_a_message() {
    let mut world = World::new(1);
    world.join_all();
    let planet = crate::membership::lies::Source::Planet(world.planet_id());
    let (now, authority) = (world.now.unix, &world.authority);
    let members = world.engines[0].members.as_mut().unwrap();
    for number in 10..26 {
        let mut membership = Draft::new(authority, number).build(authority);
        let mut receipt = membership.claim_receipt.unverified().unwrap();
        receipt.settles = (0..256).map(|at| (u64::MAX - at, u64::MAX - at)).collect();
        membership.claim_receipt = Signed::seal(&receipt, &authority.planet).unwrap();
        members.learn(membership, planet, now);
    }
    world.notes.clear();
    world.planet_says(0, PlanetMessage::Relearn);
    world.run(Duration::from_secs(2));
    let parts = world
        .notes
        .iter()
        .filter_map(|it| it.strip_prefix("report "));
    let parts: Vec<usize> = parts.map(|part| part.parse().unwrap()).collect();
    assert_eq!(parts.iter().sum::<usize>(), 17, "{parts:?}");
    assert!(parts.iter().all(|part| *part < 10), "{parts:?}");
    assert_eq!(parts.last(), Some(&0));
}
