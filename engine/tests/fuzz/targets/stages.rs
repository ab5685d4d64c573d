//! The stages of the fast half: what comes out is what a slow twin says, and nothing that should not.

use std::net::{IpAddr, SocketAddr};

use podmesh_engine::forwarding::PeerIndex;
use podmesh_engine::inbound::{Arrived, InboundBatch, open_batch};
use podmesh_engine::limits;
use podmesh_engine::offload::{
    ChecksumGap, Cut, Merge, Merged, Merger, Offload, SegmentKind, Segments,
};
use podmesh_engine::outbound::InnerPacket;
use podmesh_engine::packet::Header;
use podmesh_engine::path_id::SocketId;
use podmesh_engine::tunnel::{Sealed, TunnelKind, buffer_for};

use super::Bytes;
use super::twin::{self, plain};
use crate::pair::Pair;

/// What the tables of a [`Pair`] say of its ends.
const NEAR: [u8; 3] = [10, 42, 1];
const FAR: [u8; 3] = [10, 42, 2];

const KINDS: [SegmentKind; 3] = [SegmentKind::Tcp4, SegmentKind::Tcp6, SegmentKind::Udp];

/// Any packet cut by any description: what comes of it has right lengths and sums, and all of the payload.
pub(crate) fn cut(input: &[u8]) {
    let mut bytes = Bytes(input);
    let offload = offload(&mut bytes);
    let packet = packet(&mut bytes);
    let mut given = packet.clone();
    let Ok(segments) = collect(&mut given, offload) else {
        assert!(!must_be_cut(&packet, offload), "a plain packet is refused");
        return;
    };
    let Some(cut) = offload.cut else {
        assert_eq!(segments.len(), 1);
        return;
    };
    let Some(of) = segments.first().and_then(|first| plain(first)) else {
        return;
    };
    let headers = of.start
        + if of.protocol == 6 {
            usize::from(packet[of.start + 12] >> 4).max(5) * 4
        } else {
            8
        };
    let payload: Vec<u8> = segments
        .iter()
        .flat_map(|one| &one[headers..])
        .copied()
        .collect();
    assert_eq!(payload, packet[headers..]);
    for (number, segment) in segments.iter().enumerate() {
        let is_last = number + 1 == segments.len();
        assert!(is_last || segment.len() == headers + usize::from(cut.size));
        assert!(segment.len() <= headers + usize::from(cut.size));
        assert!(plain(segment) == Some(of));
        assert_eq!(twin::transport_sum(segment, of), 0xffff);
    }
}

/// Whether nothing at all is wrong with a description and its packet.
fn must_be_cut(packet: &[u8], offload: Offload) -> bool {
    let (Some(of), Some(cut)) = (plain(packet), offload.cut) else {
        return false;
    };
    let kind = match (of.protocol, of.is_v4) {
        (6, true) => SegmentKind::Tcp4,
        (6, false) => SegmentKind::Tcp6,
        _ => SegmentKind::Udp,
    };
    let headers = of.start
        + if of.protocol == 6 {
            usize::from(packet[of.start + 12] >> 4).max(5) * 4
        } else {
            8
        };
    let size = usize::from(cut.size);
    cut.kind == kind
        && size > 0
        && packet.len() > headers
        && (packet.len() - headers).div_ceil(size) <= 1_000
}

/// Any packets, put together and cut again, are the packets that they were.
pub(crate) fn merge(input: &[u8]) {
    let mut bytes = Bytes(input);
    let which = bytes.byte();
    let mut merger = Merger::new(Merge {
        tcp: which & 1 == 0,
        udp: which & 2 == 0,
    });
    let packets = packets(&mut bytes);
    let mut arena = Vec::new();
    for packet in &packets {
        let start = arena.len();
        arena.extend(packet);
        merger.push(&arena, start..arena.len());
    }
    merger.finish(&mut arena);
    let runs = merger.runs().map(|run| {
        let parts = run.parts().map(|part| arena[part].to_vec());
        (run.merged(), parts.collect::<Vec<_>>().concat())
    });
    let out: Vec<Vec<u8>> = runs.flat_map(|(merged, run)| apart(merged, run)).collect();
    twin::assert_same(&out, &packets);
}

/// What the kernel gives to one node's TUN comes out of the other's.
pub(crate) fn through(input: &[u8]) {
    let mut bytes = Bytes(input);
    let mut pair = Pair::of_kind(kind(&mut bytes), 1);
    let mut given = Vec::new();
    while !bytes.is_empty() && given.len() < 32 {
        let offload = offload(&mut bytes);
        given.push((packet(&mut bytes), offload));
    }
    let mut expected = Vec::new();
    for (packet, offload) in &given {
        let segments = collect(&mut packet.clone(), *offload);
        let is_ours = |packet: &Vec<u8>| {
            Header::parse(packet).is_some_and(|header| {
                of(header.source, NEAR) && of(header.destination, FAR) && !header.is_control()
            })
        };
        if is_ours(packet) {
            expected.extend(segments.unwrap_or_default());
        }
    }
    let mut packets: Vec<InnerPacket<'_>> = given
        .iter_mut()
        .map(|(bytes, offload)| InnerPacket {
            bytes,
            offload: *offload,
        })
        .collect();
    pair.seal(&mut packets);
    let runs: Vec<_> = pair.sealed.runs().collect();
    for run in &runs {
        assert!(run.bytes.len() <= 65_507 && run.bytes.len().div_ceil(run.segment) <= 64);
    }
    let arrived: Vec<Arrived<'_>> = runs
        .iter()
        .map(|run| Arrived {
            socket: SocketId::MAIN,
            from: somewhere(),
            bytes: run.bytes,
            segment: run.segment,
            ecn: run.ecn,
        })
        .collect();
    open_batch(&pair.far, &arrived, &mut pair.opened);
    twin::assert_same(&inner(&pair.opened), &expected);
}

/// Whatever arrives, in pieces cut anyhow: only what the peer has sealed comes out, once, and only from its
/// addresses to ours.
pub(crate) fn arrive(input: &[u8]) {
    let mut bytes = Bytes(input);
    let mut pair = Pair::of_kind(kind(&mut bytes), 1);
    let (mut pieces, mut sealed) = (Vec::new(), Vec::new());
    while !bytes.is_empty() && pieces.len() < 32 {
        let kind = bytes.byte();
        let segment = usize::from(bytes.word()).max(1);
        let mut piece = Vec::new();
        match kind % 4 {
            0 => {
                let count = usize::from(bytes.word());
                piece.extend(bytes.take(count));
            }
            1 => piece.extend(
                pieces
                    .last()
                    .map(|(piece, _): &(Vec<u8>, usize)| piece.clone())
                    .unwrap_or_default(),
            ),
            // As the peer would, and damaged at one place.
            kind => {
                let packet = packet(&mut bytes);
                piece = seal(&pair, &packet);
                if kind == 3 {
                    let at = usize::from(bytes.word()) % piece.len();
                    piece[at] ^= bytes.byte().max(1);
                } else {
                    sealed.push(packet);
                }
            }
        }
        pieces.push((piece, segment));
    }
    let ecn = bytes.byte() % 4;
    let arrived: Vec<Arrived<'_>> = pieces
        .iter()
        .map(|(bytes, segment)| Arrived {
            socket: SocketId::MAIN,
            from: somewhere(),
            bytes,
            segment: *segment,
            ecn,
        })
        .collect();
    open_batch(&pair.far, &arrived, &mut pair.opened);
    let out = inner(&pair.opened);
    for packet in out {
        // Each comes once, as it was sealed but for its congestion mark.
        let same = sealed
            .iter()
            .position(|sealed| unmarked(sealed, packet.len()) == unmarked(&packet, packet.len()));
        sealed.swap_remove(same.expect("a packet that the peer has sealed"));
        let header = Header::parse(&packet).expect("an IP packet");
        assert!(of(header.source, NEAR) && of(header.destination, FAR));
        assert_eq!(header.length, packet.len());
    }
}

/// A packet's first bytes without congestion mark and IPv4 checksum, and without what cutting makes anew.
fn unmarked(packet: &[u8], length: usize) -> Vec<u8> {
    let mut bytes = packet.get(..length).unwrap_or_default().to_vec();
    if bytes.first().is_some_and(|first| first >> 4 == 4) && bytes.len() >= 20 {
        bytes[1] &= !3;
    }
    if bytes.is_empty() {
        bytes
    } else {
        twin::bare(&bytes)
    }
}

fn seal(pair: &Pair, packet: &[u8]) -> Vec<u8> {
    let mut out = vec![0; buffer_for(packet.len()).max(limits::MIN_TUNNEL_BUFFER)];
    let (_, link) = pair.near.by_index(PeerIndex(8)).expect("the peer");
    let mut state = link.lock();
    let tunnel = state.tunnel.as_mut().expect("a tunnel");
    let Ok(Sealed::Data(length)) = tunnel.seal(packet, &mut out) else {
        panic!("no session");
    };
    out.truncate(length);
    out
}

fn kind(bytes: &mut Bytes<'_>) -> TunnelKind {
    match bytes.byte() % 3 {
        0 => TunnelKind::Boringtun,
        number => TunnelKind::Batched { wide: number == 1 },
    }
}

fn somewhere() -> SocketAddr {
    "192.0.2.1:7001".parse().expect("an address")
}

fn of(address: IpAddr, net: [u8; 3]) -> bool {
    matches!(address, IpAddr::V4(address) if address.octets().starts_with(&net))
}

/// What was opened, each packet by itself.
fn inner(opened: &InboundBatch) -> Vec<Vec<u8>> {
    let runs = opened
        .runs()
        .map(|(merged, parts)| (merged, parts.collect::<Vec<_>>().concat()));
    runs.flat_map(|(merged, run)| apart(merged, run)).collect()
}

/// As the kernel cuts what it gets in one piece.
fn apart(merged: Option<Merged>, mut run: Vec<u8>) -> Vec<Vec<u8>> {
    let Some(Merged { kind, size, .. }) = merged else {
        return vec![run];
    };
    let cut = Some(Cut { kind, size });
    let segments = collect(
        &mut run,
        Offload {
            checksum: None,
            cut,
        },
    )
    .expect("a run that can be cut");
    for segment in &segments {
        let of = plain(segment).expect("plain headers");
        assert_eq!(twin::transport_sum(segment, of), 0xffff);
    }
    segments
}

fn collect(packet: &mut [u8], offload: Offload) -> Result<Vec<Vec<u8>>, ()> {
    let mut segments = Segments::new(packet, offload).map_err(|_| ())?;
    let mut all = Vec::new();
    while let Some(segment) = segments.next_segment() {
        all.push(segment.to_vec());
    }
    Ok(all)
}

fn offload(bytes: &mut Bytes<'_>) -> Offload {
    let kind = bytes.byte();
    let cut = KINDS.get(usize::from(kind % 4)).map(|kind| Cut {
        kind: *kind,
        size: bytes.word(),
    });
    let checksum = (kind & 4 != 0).then(|| ChecksumGap {
        start: bytes.word(),
        offset: bytes.word(),
    });
    Offload { checksum, cut }
}

/// Packets of few flows, mostly such as follow on each other.
fn packets(bytes: &mut Bytes<'_>) -> Vec<Vec<u8>> {
    let mut sequences = [0_u32; 4];
    let mut packets = Vec::new();
    while !bytes.is_empty() && packets.len() < 96 {
        let flow = usize::from(bytes.byte() % 4);
        let (mut packet, headers) = flow_packet(bytes, flow, sequences[flow]);
        let payload = u32::try_from(packet.len() - headers).expect("a short packet");
        sequences[flow] = sequences[flow].wrapping_add(payload);
        damage(bytes, &mut packet);
        let length = Header::parse(&packet).map(|header| header.length);
        // Anything else never gets so far.
        if let Some(length) = length {
            packet.truncate(length);
            packets.push(packet);
        }
    }
    packets
}

/// One packet: any bytes, or one of a flow, perhaps damaged.
fn packet(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let kind = bytes.byte();
    if kind == 0 {
        let count = usize::from(bytes.word());
        return bytes.take(count).to_vec();
    }
    let (mut packet, _) = flow_packet(bytes, usize::from(kind % 4), 7);
    damage(bytes, &mut packet);
    packet
}

fn damage(bytes: &mut Bytes<'_>, packet: &mut [u8]) {
    let kind = bytes.byte();
    if kind % 8 == 7 {
        let at = usize::from(bytes.word()) % packet.len().min(64);
        packet[at] ^= bytes.byte();
    }
}

/// A right packet of flow 0 or 1 (TCP), 2 or 3 (UDP), of IPv4 if that number is even; and the bytes of its
/// headers.
fn flow_packet(bytes: &mut Bytes<'_>, flow: usize, sequence: u32) -> (Vec<u8>, usize) {
    let (is_v4, protocol) = (flow.is_multiple_of(2), if flow < 2 { 6 } else { 17 });
    let (flags, size) = (bytes.byte(), bytes.byte());
    let options = if protocol == 6 {
        usize::from(flags >> 7) * 12
    } else {
        0
    };
    let size = usize::from(size) * if flags & 0x40 == 0 { 1 } else { 97 };
    let ports = [0x30, 0x39, 0x01, 0xbb];
    let mut inner = ports.to_vec();
    if protocol == 6 {
        inner.extend(sequence.to_be_bytes());
        let offset = if options == 0 { 0x50 } else { 0x80 };
        let flags = if flags & 0x20 == 0 {
            0x10
        } else {
            flags & 0x1f
        };
        inner.extend([0, 0, 0, 9, offset, flags, 1, 2, 0, 0, 0, 0]);
        inner.extend(vec![1; options]);
    } else {
        let length = u16::try_from(8 + size).expect("a short packet");
        inner.extend(length.to_be_bytes());
        inner.extend([0, 0]);
    }
    let headers = inner.len();
    inner.extend(std::iter::repeat_n(flags, size));
    let mut packet = Vec::new();
    if is_v4 {
        let length = u16::try_from(20 + inner.len()).expect("a short packet");
        packet.extend([0x45, flags & 3]);
        packet.extend(length.to_be_bytes());
        packet.extend([0, 1, 0x40, 0, 63, protocol, 0, 0]);
        packet.extend(NEAR.iter().chain(&[9]).chain(&FAR).chain(&[9]));
    } else {
        let length = u16::try_from(inner.len()).expect("a short packet");
        packet.extend([0x60, 0, 0, 0]);
        packet.extend(length.to_be_bytes());
        packet.extend([protocol, 63]);
        packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    }
    let headers = packet.len() + headers;
    packet.extend(inner);
    if let Some(of) = plain(&packet) {
        twin::fill(&mut packet, of);
    }
    (packet, headers)
}
