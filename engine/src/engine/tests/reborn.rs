//! A peer in a new life, by whose clock it is earlier than it was in the former one.

use super::*;

/// What comes from node 1 besides what the world itself sends.
fn is_answered(world: &mut World, bytes: Vec<u8>) -> bool {
    let received = Received {
        socket: SocketId::MAIN,
        from: "198.51.100.2:7002".parse().unwrap(),
        relay: None,
        bytes,
    };
    let now = world.now;
    world.engines[0].handle_datagram(received, now);
    let mut is_answered = false;
    while let Some(output) = world.engines[0].poll_output() {
        if let Output::Transmit(sent) = output {
            is_answered |= sent.bytes.first() == Some(&2);
        }
    }
    is_answered
}

/// An initiation of node 1 to node 0, made by a tunnel that nobody else knows.
fn initiation(world: &mut World) -> Vec<u8> {
    world.run(Duration::from_millis(5));
    let keys = TunnelKeys::new(&Keys::new(2).wireguard);
    let mut tunnel = Tunnel::new(&keys, &Keys::new(1).wireguard.public(), 5).unwrap();
    let mut out = [0; limits::MIN_TUNNEL_BUFFER];
    let length = tunnel.initiate(&mut out).unwrap();
    out[..length].to_vec()
}

fn begins_a_new_life(world: &mut World) {
    let peer = Keys::new(2);
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
}

/// The other end of a session that this node has begun can renew it, too. It could not, for as long as the clock
/// had been ahead, and gave the session up after a minute and a half in vain.
#[test]
fn whoever_begins_a_session_with_a_peer_in_a_new_life_forgets_the_former_one() {
    let mut world = World::new(2);
    world.join_all();
    let (early, late) = (initiation(&mut world), initiation(&mut world));
    assert!(is_answered(&mut world, late.clone()));
    assert!(
        !is_answered(&mut world, early.clone()),
        "older than the last"
    );
    begins_a_new_life(&mut world);
    // Node 0 begins a session, and something is said on it.
    for _ in 0..40 {
        world.send_packet(0, &packet4("10.77.0.1", "10.77.0.2", b"hello"));
        world.run(Duration::from_secs(1));
        let views = world.engines[0].peers(world.now);
        assert!(views[0].path.is_some(), "{views:#?}");
    }
    assert!(
        is_answered(&mut world, early),
        "it seems older than the former life"
    );
    assert!(!is_answered(&mut world, late), "a thief has it");
}

/// The answer to the first handshake of a new life may be lost, or it is a thief who repeats that handshake.
#[test]
fn a_session_goes_on_until_the_peer_has_that_of_its_new_life() {
    let mut world = World::new(2);
    world.join_all();
    let (early, late) = (initiation(&mut world), initiation(&mut world));
    assert!(is_answered(&mut world, late));
    world.run(limits::OVERTAKEN + Duration::from_secs(1));
    begins_a_new_life(&mut world);
    assert!(is_answered(&mut world, early), "nobody hears the answer");
    let packet = packet4("10.77.0.2", "10.77.0.1", b"hello");
    world.send_packet(1, &packet);
    world.run(Duration::from_millis(50));
    assert_eq!(world.delivered[0], [packet]);
}
