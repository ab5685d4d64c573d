use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use podmesh_proto::id::NodeId;
use podmesh_proto::key::SecretKey;

use super::*;
use crate::drops::Drops;
use crate::offload::{Cut, Offload, SegmentKind, Segments};
use crate::outbound::{InnerPacket, OutboundBatch, seal_batch};
use crate::packet::control_packet;
use crate::testing::{nets, packet4};
use crate::tunnel::{Sealed, TunnelKeys};

const OWN6: &str = "fd00::1";
const PEER6: &str = "fd00::2";

/// A node (10.77.0.1, 10.42.1.0/24), an honest peer with a /32 inside the /16 of a rogue one, and
/// the rogue's own end of its tunnel.
struct Scene {
    table: ForwardingTable,
    rogue: Arc<PeerLink>,
    far_end: Tunnel,
    from: SocketAddr,
}

fn link(index: u32, overlay6: &str) -> Arc<PeerLink> {
    let relay = Some(NodeId([u8::try_from(index).unwrap(); 32]).relay_address());
    let overlay6: Ipv6Addr = overlay6.parse().unwrap();
    Arc::new(PeerLink::new(PeerIndex(index), relay, Some(overlay6)))
}

impl Scene {
    fn new() -> Self {
        let (near, far) = (
            SecretKey::from_bytes([1; 32]),
            SecretKey::from_bytes([2; 32]),
        );
        let (near_keys, far_keys) = (TunnelKeys::new(&near), TunnelKeys::new(&far));
        let mut here = Tunnel::new(&near_keys, &far.public(), 7).unwrap();
        let mut far_end = Tunnel::new(&far_keys, &near.public(), 8).unwrap();
        let (mut a, mut b) = (vec![0; 4_096], vec![0; 4_096]);
        let initiation = far_end.initiate(&mut a).unwrap();
        let Ok(Opened::Reply(response)) = here.open(None, &a[..initiation], &mut b) else {
            panic!("no response");
        };
        let Ok(Opened::Reply(first)) = far_end.open(None, &b[..response], &mut a) else {
            panic!("no first message");
        };
        assert_eq!(here.open(None, &a[..first], &mut b), Ok(Opened::Keepalive));
        let from: SocketAddr = "198.51.100.2:7002".parse().unwrap();
        let rogue = link(7, PEER6);
        let socket = SocketId::MAIN;
        *rogue.lock() = LinkState {
            tunnel: Some(here),
            path: Some(PathId::Direct {
                socket,
                endpoint: from,
            }),
            session: true,
            ..LinkState::default()
        };
        let own = nets(&[
            "10.77.0.1/32",
            "10.42.1.0/24",
            "fd00::1/128",
            "fd01:0:0:1::/64",
        ]);
        let owned = nets(&[
            "10.77.0.2/32",
            "10.42.0.0/16",
            "fd00::2/128",
            "fd01:0:0:2::/64",
        ]);
        let honest = nets(&[
            "10.77.0.3/32",
            "10.42.3.0/24",
            "10.42.2.3/32",
            "fd00::3/128",
        ]);
        let peers = vec![(Arc::clone(&rogue), owned), (link(9, "fd00::3"), honest)];
        let table = ForwardingTable::new(own, peers, Vec::new(), Arc::new(Drops::default()));
        Self {
            table,
            rogue,
            far_end,
            from,
        }
    }

    /// What becomes of a packet that the rogue seals.
    fn open(&mut self, packet: &[u8]) -> InboundBatch {
        let mut sealed = vec![0; buffer_for(packet.len())];
        let Ok(Sealed::Data(length)) = self.far_end.seal(packet, &mut sealed) else {
            panic!("not sealed");
        };
        self.arrive(&sealed[..length])
    }

    fn arrive(&self, bytes: &[u8]) -> InboundBatch {
        let mut batch = InboundBatch::default();
        let (socket, from) = (SocketId::MAIN, self.from);
        open_batch(
            &self.table,
            &[Arrived {
                socket,
                from,
                bytes,
                segment: bytes.len(),
                ecn: 0,
            }],
            &mut batch,
        );
        batch
    }
}

fn packets(batch: &InboundBatch) -> Vec<Vec<u8>> {
    batch
        .runs()
        .map(|(_, parts)| parts.flatten().copied().collect())
        .collect()
}

fn packet6(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let (source, destination): (Ipv6Addr, Ipv6Addr) =
        (source.parse().unwrap(), destination.parse().unwrap());
    let mut packet = control_packet(source, destination, payload);
    packet[6] = protocol;
    packet
}

#[test]
fn the_longest_prefix_owner_over_all_peers_may_speak_for_a_source_and_nobody_else() {
    let mut scene = Scene::new();
    for (source, passes) in [
        ("10.77.0.2", true),
        ("10.42.2.9", true),
        ("10.42.255.1", true),
        // Inside the rogue's /16, but more specifically somebody else's.
        ("10.42.2.3", false),
        ("10.42.3.77", false),
        ("10.77.0.3", false),
        // This node's own.
        ("10.42.1.5", false),
        ("10.77.0.1", false),
        // Nobody's.
        ("10.77.0.99", false),
        ("8.8.8.8", false),
    ] {
        let packet = packet4(source, "10.42.1.5", b"data");
        let batch = scene.open(&packet);
        assert_eq!(packets(&batch).len(), usize::from(passes), "{source}");
    }
    assert_eq!(scene.table.drops().of(DropReason::InnerForeignSource), 7);
}

/// Packets that no member may put into a tunnel, with the reason by which each is dropped.
fn bad_packets() -> Vec<Bad> {
    [malformed(), with_forbidden_addresses(), for_others()].concat()
}

type Bad = (String, Vec<u8>, DropReason);

fn malformed() -> Vec<Bad> {
    let good4 = packet4("10.77.0.2", "10.42.1.5", b"0123456789");
    let good6 = packet6("fd01:0:0:2::9", "fd01:0:0:1::5", 17, b"0123456789");
    let mut all = Vec::new();
    let mut add = |what: String, packet: Vec<u8>| {
        all.push((what, packet, DropReason::InnerMalformed));
    };
    for version in [0_u8, 1, 2, 3, 5, 7, 8, 15] {
        let mut packet = good4.clone();
        packet[0] = version << 4 | 5;
        add(format!("version {version}"), packet);
    }
    for length in [1, 4, 10, 19] {
        add(format!("cut to {length}"), good4[..length].to_vec());
        add(format!("v6 cut to {length}"), good6[..length].to_vec());
    }
    for words in [0, 1, 4, 15] {
        let mut packet = good4.clone();
        packet[0] = 0x40 | words;
        add(format!("header of {words} words"), packet);
    }
    for total in [0_u16, 19, 31, 1_500, 65_535] {
        let mut packet = good4.clone();
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        add(format!("total length {total}"), packet);
    }
    for total in [11_u16, 1_500, 65_535] {
        let mut packet = good6.clone();
        packet[4..6].copy_from_slice(&total.to_be_bytes());
        add(format!("payload length {total}"), packet);
    }
    all
}

fn with_forbidden_addresses() -> Vec<Bad> {
    const BAD4: [&str; 7] = [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "169.254.169.254",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
    ];
    const BAD6: [&str; 6] = [
        "::",
        "::1",
        "fe80::1",
        "ff02::1",
        "::ffff:10.77.0.2",
        "::10.77.0.2",
    ];
    let mut all = Vec::new();
    let mut add = |what: String, packet: Vec<u8>| {
        all.push((what, packet, DropReason::InnerNotRoutable));
    };
    for bad in BAD4 {
        add(format!("from {bad}"), packet4(bad, "10.42.1.5", b"x"));
        add(format!("to {bad}"), packet4("10.77.0.2", bad, b"x"));
    }
    for bad in BAD6 {
        add(
            format!("from {bad}"),
            packet6(bad, "fd01:0:0:1::5", 17, b"x"),
        );
        add(format!("to {bad}"), packet6(PEER6, bad, 17, b"x"));
    }
    all
}

fn for_others() -> Vec<Bad> {
    use DropReason::{InnerForeignDestination, InnerForeignSource};
    let mut all = Vec::new();
    for other in ["10.42.2.9", "10.77.0.3", "198.51.100.1", "10.42.3.1"] {
        let packet = packet4("10.77.0.2", other, b"x");
        all.push((format!("to {other}"), packet, InnerForeignDestination));
    }
    for other in ["fd01:0:0:2::5", "fd00::3", "2001:db8::1"] {
        let packet = packet6(PEER6, other, 17, b"x");
        all.push((format!("to {other}"), packet, InnerForeignDestination));
    }
    // The tunnel's own messages come from the overlay address and nothing else of the peer's.
    for other in ["fd01:0:0:2::9", "fd00::3"] {
        let packet = packet6(other, OWN6, 253, b"x");
        all.push((format!("control from {other}"), packet, InnerForeignSource));
    }
    all
}

#[test]
fn sixty_bad_packets_of_an_authenticated_peer_go_nowhere() {
    let mut scene = Scene::new();
    let bad = bad_packets();
    assert!(bad.len() >= 60, "{} packets", bad.len());
    for (what, packet, reason) in bad {
        let before = scene.table.drops().of(reason);
        let batch = scene.open(&packet);
        assert_eq!(packets(&batch).len(), 0, "{what}");
        assert!(batch.items.is_empty(), "{what}: {:?}", batch.items);
        assert_eq!(scene.table.drops().of(reason), before + 1, "{what}");
    }
    let good = packet4("10.77.0.2", "10.42.1.5", b"still fine");
    assert_eq!(packets(&scene.open(&good)), [good]);
    let echo = control_packet(PEER6.parse().unwrap(), OWN6.parse().unwrap(), b"echo");
    assert!(matches!(
        scene.open(&echo).items[..],
        [SlowItem::Control { .. }]
    ));
}

#[test]
fn trailing_bytes_after_a_packet_are_cut() {
    let mut scene = Scene::new();
    let good = packet4("10.77.0.2", "10.42.1.5", b"data");
    let padded = [good.clone(), vec![0; 12]].concat();
    assert_eq!(packets(&scene.open(&padded)), [good]);
}

#[test]
fn replays_and_counters_at_the_end_of_their_range_are_refused() {
    let mut scene = Scene::new();
    let packet = packet4("10.77.0.2", "10.42.1.5", b"once");
    let mut sealed = vec![0; buffer_for(packet.len())];
    let Ok(Sealed::Data(length)) = scene.far_end.seal(&packet, &mut sealed) else {
        panic!("not sealed");
    };
    assert_eq!(packets(&scene.arrive(&sealed[..length])).len(), 1);
    assert_eq!(packets(&scene.arrive(&sealed[..length])).len(), 0);
    for counter in [u64::MAX, u64::MAX - 1, u64::MAX - 1_024, u64::MAX - 8_000] {
        sealed[8..16].copy_from_slice(&counter.to_le_bytes());
        assert_eq!(packets(&scene.arrive(&sealed[..length])).len(), 0);
    }
    assert_eq!(scene.table.drops().of(DropReason::NotAuthentic), 5);
}

#[test]
fn any_datagram_of_any_length_is_survived() {
    let scene = Scene::new();
    let mut state = 0x5eed_u64;
    for length in (0..200).chain([1_500, 9_000, 65_507]) {
        for first in [0_u8, 1, 2, 3, 4, 0x20, 0x30, 0x31, 0x32, 0x33, 0x40, 0xff] {
            let mut bytes: Vec<u8> = (0..length)
                .map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    u8::try_from(state >> 56).unwrap()
                })
                .collect();
            if let Some(byte) = bytes.first_mut() {
                *byte = first;
            }
            if length >= 8 && first <= 4 {
                bytes[1..8].copy_from_slice(&[0, 0, 0, 1, 7, 0, 0]);
            }
            assert_eq!(packets(&scene.arrive(&bytes)).len(), 0);
        }
    }
}

#[test]
fn outbound_packets_need_an_own_source_a_member_to_go_to_and_no_trick() {
    let scene = Scene::new();
    let cases = [
        (packet4("10.42.1.5", "10.42.2.9", b"x"), None),
        (packet6("fd01:0:0:1::5", "fd01:0:0:2::9", 17, b"x"), None),
        (
            packet4("192.168.1.2", "10.42.2.9", b"x"),
            Some(DropReason::ForeignSource),
        ),
        (
            packet4("10.42.2.1", "10.42.2.9", b"x"),
            Some(DropReason::ForeignSource),
        ),
        (
            packet4("10.42.1.5", "10.42.1.9", b"x"),
            Some(DropReason::NoRoute),
        ),
        (
            packet4("10.42.1.5", "8.8.8.8", b"x"),
            Some(DropReason::NoRoute),
        ),
        (
            packet4("10.42.1.5", "224.0.0.251", b"x"),
            Some(DropReason::NotRoutable),
        ),
        (
            packet6("fe80::1", "ff02::2", 58, b"x"),
            Some(DropReason::NotRoutable),
        ),
        (
            packet6(OWN6, PEER6, 253, b"x"),
            Some(DropReason::ControlFromHost),
        ),
        (vec![0x45; 12], Some(DropReason::Malformed)),
        (Vec::new(), Some(DropReason::Malformed)),
    ];
    for (mut packet, reason) in cases {
        let mut batch = OutboundBatch::default();
        let before = reason.map(|reason| scene.table.drops().of(reason));
        seal_batch(
            &scene.table,
            &mut [packet.as_mut_slice().into()],
            &mut batch,
        );
        assert_eq!(
            batch.runs().flat_map(|run| run.datagrams()).count(),
            usize::from(reason.is_none()),
            "{packet:02x?}"
        );
        assert!(batch.items.is_empty());
        let after = reason.map(|reason| scene.table.drops().of(reason));
        assert_eq!(after, before.map(|count| count + 1), "{packet:02x?}");
    }
}

#[test]
fn a_batch_keeps_each_peers_order_and_counts_what_it_carries() {
    let mut scene = Scene::new();
    let mut datagrams = Vec::new();
    for number in 0..20_u8 {
        let packet = packet4("10.77.0.2", "10.42.1.5", &[number]);
        let mut sealed = vec![0; buffer_for(packet.len())];
        let Ok(Sealed::Data(length)) = scene.far_end.seal(&packet, &mut sealed) else {
            panic!("not sealed");
        };
        datagrams.push(sealed[..length].to_vec());
    }
    let arrived: Vec<Arrived<'_>> = datagrams
        .iter()
        .map(|bytes| Arrived {
            socket: SocketId::MAIN,
            from: scene.from,
            bytes,
            segment: bytes.len(),
            ecn: 0,
        })
        .collect();
    let mut batch = InboundBatch::default();
    open_batch(&scene.table, &arrived, &mut batch);
    let numbers: Vec<u8> = packets(&batch).iter().map(|packet| packet[20]).collect();
    assert_eq!(numbers, (0..20).collect::<Vec<u8>>());
    let counters = &scene.rogue.counters;
    assert_eq!(counters.received_packets.load(Ordering::Relaxed), 20);
    assert_eq!(counters.received_bytes.load(Ordering::Relaxed), 20 * 21);
    assert_eq!(counters.received_on_path.load(Ordering::Relaxed), 20);
    let owner: IpAddr = "10.42.2.3".parse().unwrap();
    let prefix: IpNet = owner.into();
    assert!(matches!(scene.table.owner(prefix.addr()), Owned::By(1, _)));
}

/// An IPv4 TCP packet of `length` bytes of payload; its checksums are left to the stages.
fn tcp(source: [u8; 4], destination: [u8; 4], length: usize) -> Vec<u8> {
    let total = u16::try_from(40 + length).unwrap();
    let mut packet = vec![0x45, 2];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 1, 0x40, 0, 64, 6, 0, 0]);
    packet.extend(source);
    packet.extend(destination);
    packet.extend([
        0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 4, 0, 0, 0, 0, 0,
    ]);
    packet.extend((0..length).map(|n| n.to_le_bytes()[0]));
    packet
}

const IN_THOUSANDS: Offload = Offload {
    checksum: None,
    cut: Some(Cut {
        kind: SegmentKind::Tcp4,
        size: 1_000,
    }),
};

#[test]
fn a_super_packet_leaves_as_runs() {
    let mut scene = Scene::new();
    let packet = tcp([10, 42, 1, 5], [10, 42, 2, 9], 60_500);
    let (mut first, mut second) = (packet.clone(), packet.clone());
    let [first, second] = [&mut first, &mut second].map(|bytes| InnerPacket {
        bytes,
        offload: IN_THOUSANDS,
    });
    let mut sealed = OutboundBatch::default();
    let mut plain = packet4("10.42.1.5", "10.42.2.9", b"alone");
    let alone = plain.len() + 32;
    let three = &mut [first, plain.as_mut_slice().into(), second];
    seal_batch(&scene.table, three, &mut sealed);
    let runs: Vec<_> = sealed
        .runs()
        .map(|run| (run.bytes.len(), run.segment, run.ecn))
        .collect();
    // 61 segments of 1,000 bytes, the last of 500, with 40 of their own header and 32 of the tunnel's.
    let whole = 60 * 1_072 + 572;
    assert_eq!(
        runs,
        [(whole, 1_072, 2), (alone, alone, 0), (whole, 1_072, 2)]
    );
    let sent = &scene.rogue.counters.sent_packets;
    assert_eq!(sent.load(Ordering::Relaxed), 123);
    let mut arena = vec![0; 70_000];
    let first = sealed.runs().next().unwrap();
    let mut payload: Vec<u8> = Vec::new();
    for datagram in first.datagrams() {
        let Ok(Opened::Packet(length)) = scene.far_end.open(None, datagram, &mut arena) else {
            panic!("not opened");
        };
        payload.extend(&arena[40..length]);
    }
    assert!(payload == packet[40..]);
}

#[test]
fn runs_arrive_as_super_packets() {
    let mut scene = Scene::new();
    // What the peer seals comes in two pieces, one of them marked as congested.
    let back = tcp([10, 42, 2, 9], [10, 42, 1, 5], 30_500);
    let mut whole = back.clone();
    let mut segments = Segments::new(&mut whole, IN_THOUSANDS).unwrap();
    let mut pieces = [Vec::new(), Vec::new()];
    let mut number = 0;
    while let Some(segment) = segments.next_segment() {
        let mut out = vec![0; buffer_for(segment.len())];
        let Ok(Sealed::Data(length)) = scene.far_end.seal(segment, &mut out) else {
            panic!("not sealed");
        };
        pieces[number / 20].extend(&out[..length]);
        number += 1;
    }
    let arrived = [(0, 0), (1, 3)].map(|(piece, ecn)| Arrived {
        socket: SocketId::MAIN,
        from: scene.from,
        bytes: &pieces[piece],
        segment: 1_072,
        ecn,
    });
    let mut batch = InboundBatch::merging(Merge {
        tcp: true,
        udp: true,
    });
    open_batch(&scene.table, &arrived, &mut batch);
    let runs: Vec<(Option<u16>, usize)> = batch
        .runs()
        .map(|(merged, parts)| (merged.map(|merged| merged.size), parts.count()))
        .collect();
    // Marked and unmarked packets are not mixed.
    assert_eq!(runs, [(Some(1_000), 20), (Some(1_000), 11)]);
    let bytes: Vec<Vec<u8>> = packets(&batch);
    let joined: Vec<u8> = bytes.iter().flat_map(|run| run[40..].to_vec()).collect();
    assert!(joined == back[40..]);
    assert_eq!((bytes[0][1] & 3, bytes[1][1] & 3), (2, 3));
    assert_eq!(
        scene
            .rogue
            .counters
            .received_packets
            .load(Ordering::Relaxed),
        31
    );
}
