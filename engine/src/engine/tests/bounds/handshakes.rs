//! What handshakes that seem to come from somewhere else send there.

use super::*;

/// Initiations of somebody whom node 0 has never heard of.
fn stranger() -> impl FnMut() -> Vec<u8> {
    let target = Keys::new(1).wireguard.public();
    let keys = TunnelKeys::new(&Keys::new(99).wireguard);
    let mut tunnel = Tunnel::new(&keys, &target, 5).unwrap();
    move || {
        let mut out = vec![0; limits::MIN_TUNNEL_BUFFER];
        let length = tunnel.initiate(&mut out).unwrap();
        out[..length].to_vec()
    }
}

/// The next initiation of node 1, which it doesn't send to anybody else.
fn initiation(world: &mut World) -> Vec<u8> {
    let to = world.engines[0].node_id();
    let endpoint = "192.0.2.99:9".parse().unwrap();
    let path = PathId::Direct {
        socket: SocketId::MAIN,
        endpoint,
    };
    let now = world.now;
    world.engines[1].start_handshake(&to, path, now);
    let mut found = None;
    while let Some(output) = world.engines[1].poll_output() {
        match output {
            Output::Transmit(transmit) if transmit.to == endpoint => found = Some(transmit.bytes),
            _ => {}
        }
    }
    found.expect("an initiation")
}

#[test]
fn responses_to_a_members_handshakes_from_places_that_it_was_never_seen_at_are_few() {
    let mut world = World::new(2);
    world.join_all();
    arrive_from_nowhere(&mut world, 5_000, |world, _| initiation(world));
    let sent = bytes_to_victim(&world);
    assert!(sent > 0, "a member that moves is answered");
    assert!(sent < 12_000, "{sent} bytes in 5 s");
    assert!(world.engines[0].drops.of(DropReason::AnswerLimit) >= 100);
    // Where it is it begins a session at any time.
    world.restart(1);
    world.run(Duration::from_secs(3));
    let views = world.engines[0].peers(world.now);
    assert_eq!(views[0].state, PeerState::Up, "{views:#?}");
}

#[test]
fn cookies_to_a_network_that_no_member_has_answered_from_are_few() {
    let mut world = World::new(2);
    world.join_all();
    let mut next = stranger();
    for _ in 0..5 {
        for number in 0..2_000 {
            let received = Received {
                socket: SocketId::MAIN,
                from: victim(number % 250),
                relay: None,
                bytes: next(),
            };
            let now = world.now;
            world.engines[0].handle_datagram(received, now);
            world.drain(0);
        }
        world.run(Duration::from_secs(1));
    }
    let sent = bytes_to_victim(&world);
    assert!(sent > 0, "somebody there may be honest");
    assert!(sent < 5 * BEARABLE, "{sent} bytes in 5 s");
}

#[test]
fn an_external_peer_that_moves_is_answered_and_aims_little_at_others() {
    let mut world = World::new(1);
    world.join_all();
    let keys = Keys::new(77);
    let (statement, now) = (laptop(&world, &keys), world.now);
    world.engines[0].handle_statement(statement, now).unwrap();
    world.drain(0);
    let target = Keys::new(1).wireguard.public();
    let peer = TunnelKeys::new(&keys.wireguard);
    let mut tunnel = Tunnel::new(&peer, &target, 5).unwrap();
    arrive_from_nowhere(&mut world, 5_000, |world, _| {
        peer.tell(world.now);
        let mut out = vec![0; limits::MIN_TUNNEL_BUFFER];
        let length = tunnel.initiate(&mut out).unwrap();
        out[..length].to_vec()
    });
    let sent = bytes_to_victim(&world);
    assert!(sent > 0, "it may be anywhere");
    assert!(sent < 12_000, "{sent} bytes in 5 s");
}

#[test]
fn strangers_who_flood_with_initiations_are_asked_for_a_cookie_and_members_get_through() {
    let mut world = World::new(2);
    world.join_all();
    let target = Keys::new(1).wireguard.public();
    let stranger = TunnelKeys::new(&Keys::new(99).wireguard);
    let mut tunnel = Tunnel::new(&stranger, &target, 5).unwrap();
    let mut out = vec![0; limits::MIN_TUNNEL_BUFFER];
    let mut initiate = |number: u32| {
        let length = tunnel.initiate(&mut out).unwrap();
        let [.., high, low] = number.to_be_bytes();
        Received {
            socket: SocketId::MAIN,
            from: SocketAddr::from(([11, high, low, 1], 4_000)),
            relay: None,
            bytes: out[..length].to_vec(),
        }
    };
    let now = world.now;
    let most = u32::try_from(limits::INITIATIONS_BEFORE_COOKIES).unwrap();
    let mut cookies = 0;
    for number in 0..most + 300 {
        world.engines[0].handle_datagram(initiate(number), now);
        while let Some(output) = world.engines[0].poll_output() {
            let Output::Transmit(reply) = output else {
                continue;
            };
            assert_eq!((reply.bytes[0], reply.bytes.len()), (3, 64));
            cookies += 1;
        }
    }
    // The handshake between the two nodes may have been in the same second.
    assert!(
        (300..=302).contains(&cookies),
        "{cookies} of them cost no key agreement"
    );
    // A member that starts anew in the middle of it is back with its second try.
    world.restart(1);
    for second in 0..3 {
        for number in 0..most {
            let (message, now) = (initiate(number + second * 1_000), world.now);
            world.engines[0].handle_datagram(message, now);
            world.drain(0);
        }
        world.run(Duration::from_millis(1_000));
    }
    for node in 0..2 {
        let views = world.engines[node].peers(world.now);
        assert_eq!(views[0].state, PeerState::Up, "{views:#?}");
    }
    assert!(world.engines[0].drops.of(DropReason::CookieWanted) >= 300);
}
