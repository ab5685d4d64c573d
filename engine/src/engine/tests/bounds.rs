//! What one member, planet or stranger can make this node do.

mod handshakes;

use podmesh_proto::candidate::{Candidate, CandidateKind};
use podmesh_proto::id::{NodeId, PlanetId};
use podmesh_proto::network::PlanetEntry;
use podmesh_proto::planet_api::{NodeMessage, Welcome};
use podmesh_proto::probe::{Probe, ProbeBody};
use podmesh_proto::relayed::RelayGrant;

use super::*;
use crate::control::ControlMessage;
use crate::packet::control_packet;
use crate::path_id::PathId;

/// What two nodes of a mesh of ten or so may send together to a network that never asked, in bytes per
/// second and with headers: ten of them 10 kB/s.
const BEARABLE: usize = 2_000;
/// Bytes of the IP and UDP headers of a datagram.
const HEADERS: usize = 28;

fn victim(number: u32) -> SocketAddr {
    let [.., host] = number.to_be_bytes();
    SocketAddr::from(([203, 0, 113, host], 4_000))
}

fn record(world: &World, node: usize, sequence: u64, places: &[SocketAddr]) -> EndpointRecord {
    let candidate = |endpoint: &SocketAddr| Candidate {
        kind: CandidateKind::Host,
        endpoint: *endpoint,
    };
    EndpointRecord {
        network: world.authority.network.id,
        node: world.engines[node].node_id(),
        incarnation: START.0,
        sequence,
        candidates: places.iter().map(candidate).collect(),
        planets: vec![world.planet_id()],
    }
}

fn publish(world: &mut World, node: usize, record: &EndpointRecord) {
    let keys = Keys::new(world.keys[node]);
    let signed = Signed::seal(record, &keys.identity).unwrap();
    world.tell_all(DirectoryRecord::Endpoints(signed));
}

fn bytes_to_victim(world: &World) -> usize {
    let strays = world.strays.iter();
    let there =
        strays.filter(|(to, _)| victim(0).ip().to_string()[..10] == to.ip().to_string()[..10]);
    there.map(|(_, length)| length + HEADERS).sum()
}

#[test]
fn a_storm_of_records_sends_little_to_a_network_that_never_asked() {
    let mut world = World::new(3);
    world.join_all();
    world.off.insert(2);
    for edition in 0..600_u32 {
        let places: Vec<SocketAddr> = (0..16).map(|n| victim(edition * 16 + n)).collect();
        let record = record(&world, 2, 1_000 + u64::from(edition), &places);
        publish(&mut world, 2, &record);
        world.run(Duration::from_millis(50));
    }
    let sent = bytes_to_victim(&world);
    assert!(sent > 0, "the record doesn't count at all");
    assert!(sent < 30 * BEARABLE, "{sent} bytes in 30 s from two nodes");
}

#[test]
fn the_first_editions_of_a_record_count_at_once_and_of_a_storm_the_last_one() {
    let mut world = World::new(2);
    world.join_all();
    world.run(Duration::from_secs(25));
    let node = world.engines[1].node_id();
    let known = |world: &World| {
        let peer = world.engines[0].peers.get(&node).unwrap();
        peer.record.as_ref().unwrap().0.sequence
    };
    for sequence in 1_000..1_008 {
        let record = record(&world, 1, sequence, &[victim(1)]);
        publish(&mut world, 1, &record);
        assert_eq!(known(&world), sequence, "a start or a move needs several");
    }
    for sequence in 1_008..1_100 {
        let record = record(&world, 1, sequence, &[victim(1)]);
        publish(&mut world, 1, &record);
        world.run(Duration::from_millis(10));
        assert_eq!(known(&world), 1_007);
    }
    world.run(Duration::from_secs(6));
    assert_eq!(known(&world), 1_099, "the last one is not lost");
}

/// Datagrams of node 1 that node 0 takes for good, as `of` makes them.
fn arrive_from_nowhere(
    world: &mut World,
    count: u32,
    mut of: impl FnMut(&mut World, u32) -> Vec<u8>,
) {
    for number in 0..count {
        let bytes = of(world, number);
        let now = world.now;
        let received = Received {
            socket: SocketId::MAIN,
            from: victim(number % 50),
            relay: None,
            bytes,
        };
        world.engines[0].handle_datagram(received, now);
        world.drain(0);
        world.run(Duration::from_millis(1));
    }
}

/// The next datagram of node 1's that isn't for anybody else.
fn sealed(world: &mut World, message: &ControlMessage, length: u16) -> Vec<u8> {
    let (to, now) = (world.engines[0].node_id(), world.now);
    let endpoint = "192.0.2.99:9".parse().unwrap();
    let path = PathId::Direct {
        socket: SocketId::MAIN,
        endpoint,
    };
    world.engines[1].send_control_over(&to, path, (message, length), now);
    let mut found = None;
    while let Some(output) = world.engines[1].poll_output() {
        match output {
            Output::Transmit(transmit) if transmit.to == endpoint => found = Some(transmit.bytes),
            _ => {}
        }
    }
    found.expect("a sealed message")
}

#[test]
fn answers_and_proofs_to_places_that_nobody_was_seen_at_are_few() {
    let echo = ControlMessage::EchoRequest { id: 5 };
    let size = ControlMessage::SizeRequest { id: 5 };
    for message in [&echo, &size] {
        let mut world = World::new(2);
        world.join_all();
        arrive_from_nowhere(&mut world, 5_000, |world, _| sealed(world, message, 1_280));
        let sent = bytes_to_victim(&world);
        assert!(sent < 12_000, "{sent} bytes in 5 s after {message:?}");
    }
    let mut world = World::new(2);
    world.join_all();
    arrive_from_nowhere(&mut world, 5_000, |world, number| {
        let to = world.engines[0].node_id();
        let peer = world.engines[1].peers.get_mut(&to).unwrap();
        let probe = Probe {
            incarnation: START.0,
            counter: peer.next_probe(),
            body: ProbeBody::Ping {
                transaction: number.into(),
            },
            known: 0,
        };
        peer.probes.seal(
            &probe,
            &digest("nonce", &number.to_le_bytes())[..24]
                .try_into()
                .unwrap(),
        )
    });
    let sent = bytes_to_victim(&world);
    assert!(sent < 16_000, "{sent} bytes in 5 s after pings");
    let direct = world.engines[0].status(world.now).peers.direct;
    assert_eq!(direct, 1, "the path in use is not touched");
}

/// It shows that somebody has the answer, but not that it is there.
#[test]
fn a_handshake_that_was_answered_elsewhere_speaks_for_no_place() {
    let mut world = World::new(2);
    world.join_all();
    let keys = TunnelKeys::new(&Keys::new(2).wireguard);
    let target = Keys::new(1).wireguard.public();
    let mut tunnel = Tunnel::new(&keys, &target, 5).unwrap();
    let mut out = vec![0; 2_000];
    for number in 0..200 {
        world.run(Duration::from_millis(25));
        let length = tunnel.initiate(&mut out).unwrap();
        let now = world.now;
        let received = |from, bytes: &[u8]| Received {
            socket: SocketId::MAIN,
            from,
            relay: None,
            bytes: bytes.to_vec(),
        };
        let home = SocketAddr::from(([198, 51, 100, 2], 7_002));
        let initiation = received(home, &out[..length]);
        world.engines[0].handle_datagram(initiation, now);
        while let Some(output) = world.engines[0].poll_output() {
            if let Output::Transmit(sent) = output
                && sent.bytes.first() == Some(&2)
            {
                assert_eq!(sent.to, home);
                tunnel.open(None, &sent.bytes, &mut out).unwrap();
            }
        }
        // The first word on the new session, and what would be answered by as much.
        for _ in 0..4 {
            let echo = ControlMessage::EchoRequest { id: number };
            let peers = [1, 0].map(|node| {
                let members = world.engines[node].members.as_ref().unwrap();
                members.own().unwrap().member.overlay6
            });
            let packet = control_packet(peers[0], peers[1], &echo.encode(1_240).unwrap());
            let Ok(Sealed::Data(length)) = tunnel.seal(&packet, &mut out) else {
                panic!("no session");
            };
            let told = received(victim(1), &out[..length]);
            world.engines[0].handle_datagram(told, now);
            world.drain(0);
        }
    }
    let sent = bytes_to_victim(&world);
    assert!((1..12_000).contains(&sent), "{sent} bytes in 5 s");
}

#[test]
fn control_packets_beyond_a_peers_share_are_dropped_before_anybody_reads_them() {
    let mut world = World::new(3);
    world.join_all();
    world.run(Duration::from_secs(10));
    let echo = ControlMessage::EchoReply { id: 77 };
    arrive_from_nowhere(&mut world, 3_000, |world, _| sealed(world, &echo, 0));
    let dropped = world.engines[0].drops.of(DropReason::ControlLimit);
    // A burst, and fifty in each of the three seconds.
    assert!((2_500..2_750).contains(&dropped), "{dropped}");
    let health = world.engines[0].status(world.now).health;
    assert_eq!(health.len(), 1, "{health:?}");
    assert_eq!(health[0].code, "MESH-DATA-002");
    let next = health[0].next.as_deref().unwrap();
    assert!(next.contains("meshctl node revoke n2"), "{next}");
    // Another peer's are its own, and this one's come back with the time.
    let now = world.now;
    world.engines[0].start_ping("n3", 1, now);
    world.drain(0);
    world.run(Duration::from_secs(12));
    assert!(
        world.notes.contains(&"ping n3 20".to_owned()),
        "{:?}",
        world.notes
    );
    let now = world.now;
    world.engines[0].start_ping("n2", 2, now);
    world.drain(0);
    world.run(Duration::from_secs(1));
    assert!(
        world.notes.contains(&"ping n2 20".to_owned()),
        "{:?}",
        world.notes
    );
}

/// A second planet beside the world's, connected to node 0.
fn second_planet(world: &mut World) -> PlanetId {
    let honest = world.authority.network.planets[0].clone();
    let liar = SigningKey::from_seed([103; 32]).planet_id();
    let entry = PlanetEntry {
        id: liar,
        name: name("p2"),
        address: "192.0.2.2:7077".to_owned(),
    };
    let now = world.now;
    world.engines[0].planets.set(&[honest, entry]);
    let remote = "192.0.2.2:7077".parse().unwrap();
    let rtt = Duration::from_millis(5);
    let welcome = Welcome {
        planet: liar,
        observed: remote,
        relay: Some(RelayGrant {
            session: 900,
            key: [9; 32],
        }),
        time: now.unix,
        cursor: DirectoryCursor {
            epoch: 1,
            version: 0,
        },
    };
    let welcome = PlanetEvent::Message(Box::new(PlanetMessage::Welcome(welcome)));
    world.engines[0].handle_planet(liar, PlanetEvent::Connected { remote, rtt }, now);
    world.engines[0].handle_planet(liar, welcome, now);
    world.drain(0);
    liar
}

/// How often node 0 hands its renewal to each planet, if `liar` refuses each time at once.
fn renewals(world: &mut World, liar: PlanetId, span: Duration) -> (usize, usize) {
    let (mut honest, mut lied) = (0, 0);
    let end = world.now.moment + span;
    while world.now.moment < end {
        let refusal = Refusal {
            code: RefusalCode::Busy,
            reason: "not yet".to_owned(),
            retry_in: Some(Duration::ZERO),
        };
        let message = Box::new(PlanetMessage::NotRenewed(refusal));
        let now = world.now;
        world.engines[0].handle_planet(liar, PlanetEvent::Message(message), now);
        world.engines[0].handle_timeout(now);
        while let Some(output) = world.engines[0].poll_output() {
            if let Output::Planet { planet, message } = output
                && matches!(*message, NodeMessage::Renew(_))
            {
                *(if planet == liar {
                    &mut lied
                } else {
                    &mut honest
                }) += 1;
            }
        }
        world.run(Duration::from_millis(10));
    }
    (honest, lied)
}

#[test]
fn a_planet_that_asks_for_no_patience_gets_some_and_the_others_are_left_alone() {
    let mut world = World::new(1);
    world.join_all();
    let liar = second_planet(&mut world);
    world.planet_silent = true;
    let now = world.now;
    world.next.insert(1, 51);
    world.engines[0]
        .handle_rotation(Keys::moved(1, 51), now)
        .unwrap();
    while world.engines[0].poll_output().is_some() {}
    let (honest, lied) = renewals(&mut world, liar, Duration::from_secs(15));
    assert_eq!(honest, 0, "the honest planet has not said a word");
    assert!(lied <= 15, "{lied} requests in 15 s");
}

#[test]
fn patience_has_a_floor_and_a_ceiling_whoever_asks_for_it() {
    let mut world = World::new(1);
    let otherwise = Duration::from_secs(20);
    for (asked, least, most) in [(0, 1, 2), (7, 7, 9), (1 << 40, 60, 75)] {
        let asked = Some(Duration::from_secs(asked));
        let waits: Vec<Duration> = (0..50)
            .map(|_| world.engines[0].patience(asked, otherwise))
            .collect();
        let within = |wait: &Duration| (least..=most).contains(&wait.as_secs());
        assert!(waits.iter().all(within), "{waits:?}");
        assert!(waits.iter().any(|wait| *wait != waits[0]), "no jitter");
    }
    let wait = world.engines[0].patience(None, otherwise);
    assert!(wait >= otherwise && wait < Duration::from_secs(25));
}

#[test]
fn departures_of_nobody_neither_travel_nor_silence_real_ones() {
    let mut world = World::new(4);
    world.join_all();
    world.kill_planet();
    let network = world.authority.network.id;
    let rogue = world.engines[3].node_id();
    let departure = |number: u8, time| podmesh_proto::certificate::Departure {
        network,
        node: Keys::new(number).id(),
        successions: Vec::new(),
        time,
    };
    for number in 100..200 {
        let ahead = START.plus(1 << 40);
        for time in [ahead, world.now.unix] {
            let signed = Signed::seal(&departure(number, time), &Keys::new(number).identity);
            let message = ControlMessage::Left(Box::new(signed.unwrap()));
            let now = world.now;
            world.engines[0].heard_news(rogue, message, now);
            world.drain(0);
        }
    }
    let members = world.engines[0].members.as_ref().unwrap();
    assert_eq!(members.departures().count(), 0, "nothing on disk");
    assert!(members.last_departures(32, None).is_empty());
    // A real one is told to who was away, however many others there were.
    world.off.insert(2);
    let now = world.now;
    world.engines[1].handle_leave(now).unwrap();
    world.drain(1);
    world.run(Duration::from_millis(500));
    world.off.insert(1);
    world.off.remove(&2);
    world.restart(2);
    world.run(Duration::from_secs(20));
    let views = world.engines[2].peers(world.now);
    let names: Vec<String> = views.iter().map(|view| view.name.to_string()).collect();
    assert_eq!(names, ["n1", "n4"]);
    let gone: NodeId = Keys::new(2).id();
    let kept = world.stored[2].as_ref().unwrap().departures.clone();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].unverified().unwrap().node, gone);
}

/// Two ends may use different paths, one IPv4 and one IPv6, say. Each hears the other's echoes elsewhere than on
/// its own path, which says nothing as long as nobody talks.
#[test]
fn echoes_over_another_path_call_for_no_more_of_them() {
    let mut world = World::new(2);
    world.join_all();
    world.run(Duration::from_secs(60));
    let relay = PathId::Relay {
        planet: world.planet_id(),
    };
    let counted = |world: &World| world.engines[1].peers.nodes().next().unwrap().counted();
    let mut heard = Vec::new();
    for elsewhere in [None, Some(relay)] {
        let before = counted(&world).on_path;
        for _ in 0..40 {
            let peer = world.engines[0].peers.nodes().next().unwrap();
            peer.link.lock().elsewhere = elsewhere;
            world.run(Duration::from_millis(500));
        }
        heard.push(counted(&world).on_path - before);
    }
    assert!(heard[1] <= heard[0] + 2, "{heard:?}");
}
