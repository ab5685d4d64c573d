use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;

/// xorshift64*: enough to scatter test packets.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next().to_le_bytes()[7]).collect()
    }
}

/// A flow that packets are made of.
#[derive(Clone)]
struct Source {
    v4: bool,
    protocol: u8,
    port: u16,
    sequence: u32,
    acknowledged: u32,
    id: u16,
    options: usize,
}

impl Source {
    fn new(v4: bool, protocol: u8, port: u16) -> Self {
        Self {
            v4,
            protocol,
            port,
            sequence: u32::MAX - 3_000,
            acknowledged: 77,
            id: 65_530,
            options: 12,
        }
    }

    /// The next packet; its checksums are right, whatever its length.
    fn packet(&mut self, payload: &[u8], flags: u8) -> Vec<u8> {
        let transport = if self.protocol == TCP {
            let offset = u8::try_from((20 + self.options) / 4).unwrap() << 4;
            let mut header = Vec::new();
            header.extend(self.port.to_be_bytes());
            header.extend(443_u16.to_be_bytes());
            header.extend(self.sequence.to_be_bytes());
            header.extend(self.acknowledged.to_be_bytes());
            header.extend([offset, flags, 1, 2, 0, 0, 0, 0]);
            header.extend(vec![1; self.options]);
            self.sequence = self
                .sequence
                .wrapping_add(u32::try_from(payload.len()).unwrap());
            header
        } else {
            let length = u16::try_from(8 + payload.len()).unwrap();
            [self.port, 53, length, 0]
                .iter()
                .flat_map(|n| n.to_be_bytes())
                .collect()
        };
        let inner = transport.len() + payload.len();
        let mut packet = if self.v4 {
            let total = u16::try_from(20 + inner).unwrap();
            let mut header = vec![0x45, 2];
            header.extend(total.to_be_bytes());
            header.extend(self.id.to_be_bytes());
            header.extend([0x40, 0, 63, self.protocol, 0, 0]);
            header.extend(Ipv4Addr::new(10, 42, 0, 5).octets());
            header.extend(Ipv4Addr::new(10, 42, 1, 9).octets());
            self.id = self.id.wrapping_add(1);
            let sum = slow_checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            header
        } else {
            let length = u16::try_from(inner).unwrap();
            let mut header = vec![0x60, 0, 0, 9];
            header.extend(length.to_be_bytes());
            header.extend([self.protocol, 63]);
            header.extend("fd00::1".parse::<Ipv6Addr>().unwrap().octets());
            header.extend("fd00::2".parse::<Ipv6Addr>().unwrap().octets());
            header
        };
        let at = packet.len();
        packet.extend(transport);
        packet.extend(payload);
        let field = at + if self.protocol == TCP { 16 } else { 6 };
        let sum = transport_checksum(&packet);
        packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    fn kind(&self) -> SegmentKind {
        match (self.protocol, self.v4) {
            (UDP, _) => SegmentKind::Udp,
            (_, true) => SegmentKind::Tcp4,
            (_, false) => SegmentKind::Tcp6,
        }
    }
}

/// As RFC 1071 §4.1 writes it down.
fn slow_checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u64;
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !u16::try_from(sum).unwrap()
}

/// The sum over pseudo header and transport; zero for a packet whose checksum is right.
fn transport_checksum(packet: &[u8]) -> u16 {
    let (addresses, at, protocol) = match packet[0] >> 4 {
        4 => (&packet[12..20], 20, packet[9]),
        _ => (&packet[8..40], 40, packet[6]),
    };
    let inner = &packet[at..];
    let mut all = addresses.to_vec();
    all.extend(u32::try_from(inner.len()).unwrap().to_be_bytes());
    all.extend([0, 0, 0, protocol]);
    all.extend(inner);
    slow_checksum(&all)
}

fn cut(packet: &[u8], offload: Offload) -> Vec<Vec<u8>> {
    let mut packet = packet.to_vec();
    let mut segments = Segments::new(&mut packet, offload).unwrap();
    std::iter::from_fn(|| segments.next_segment().map(<[u8]>::to_vec)).collect()
}

fn cut_into(packet: &[u8], kind: SegmentKind, size: u16) -> Vec<Vec<u8>> {
    let cut_at = Some(Cut { kind, size });
    cut(
        packet,
        Offload {
            cut: cut_at,
            checksum: None,
        },
    )
}

/// What the kernel would make of the runs.
fn written(arena: &mut [u8], merger: &mut Merger) -> Vec<(Option<Merged>, Vec<u8>)> {
    merger.finish(arena);
    let bytes = |run: &Run<'_>| run.parts().flat_map(|part| arena[part].to_vec()).collect();
    merger
        .runs()
        .map(|run| (run.merged(), bytes(&run)))
        .collect()
}

fn merge(packets: &[Vec<u8>]) -> Vec<(Option<Merged>, Vec<u8>)> {
    let mut arena: Vec<u8> = Vec::new();
    let mut merger = Merger::new(Merge {
        tcp: true,
        udp: true,
    });
    let mut ranges = Vec::new();
    for packet in packets {
        // As in the tunnel's arena, where packets don't touch each other.
        arena.extend([0xbb; 32]);
        ranges.push(arena.len()..arena.len() + packet.len());
        arena.extend(packet);
    }
    for range in ranges {
        merger.push(&arena, range);
    }
    written(&mut arena, &mut merger)
}

/// Cuts runs again, as the kernel would on their way to a wire.
fn expand(runs: &[(Option<Merged>, Vec<u8>)]) -> Vec<Vec<u8>> {
    runs.iter()
        .flat_map(|(merged, bytes)| match merged {
            Some(merged) => cut_into(bytes, merged.kind, merged.size),
            None => vec![bytes.clone()],
        })
        .collect()
}

#[test]
fn a_super_packet_is_cut_into_what_its_sender_would_have_sent() {
    let mut random = Random(7);
    for (v4, protocol) in [(true, TCP), (false, TCP), (true, UDP), (false, UDP)] {
        for length in [1, 999, 1_000, 1_001, 5_000, 47_999] {
            let payload = random.bytes(length);
            let mut source = Source::new(v4, protocol, 9_000);
            let mut whole = source.clone();
            let wanted: Vec<_> = payload
                .chunks(1_000)
                .enumerate()
                .map(|(number, chunk)| {
                    let last = (number + 1) * 1_000 >= length;
                    let flags =
                        0x10 | if last { 0x09 } else { 0 } | if number == 0 { 0x80 } else { 0 };
                    source.packet(chunk, flags)
                })
                .collect();
            let packet = whole.packet(&payload, 0x99);
            let segments = cut_into(&packet, whole.kind(), 1_000);
            assert_eq!(segments.len(), length.div_ceil(1_000));
            assert!(segments == wanted, "{v4} {protocol} {length}");
            assert!(
                segments
                    .iter()
                    .all(|segment| transport_checksum(segment) == 0)
            );
        }
    }
}

#[test]
fn a_missing_checksum_is_filled_in() {
    for (v4, protocol) in [(true, TCP), (false, UDP)] {
        let mut packet = Source::new(v4, protocol, 1).packet(b"odd", 0x10);
        let right = packet.clone();
        let start = if v4 { 20 } else { 40 };
        let offset = if protocol == TCP { 16 } else { 6 };
        let addresses = if v4 { 12..20 } else { 8..40 };
        let half = checksum::pseudo_header(&packet[addresses], protocol, packet.len() - start);
        packet[start + offset..start + offset + 2].copy_from_slice(&half.folded());
        let gap = ChecksumGap {
            start: u16::try_from(start).unwrap(),
            offset: u16::try_from(offset).unwrap(),
        };
        packet.extend(b"padding");
        let offload = Offload {
            checksum: Some(gap),
            cut: None,
        };
        let padded = packet.len();
        packet.truncate(padded - 7);
        assert_eq!(cut(&packet, offload), [right]);
    }
}

#[test]
fn what_was_cut_is_put_together_again() {
    let mut random = Random(11);
    for (v4, protocol) in [(true, TCP), (false, TCP), (true, UDP), (false, UDP)] {
        let payload = random.bytes(60_000);
        let mut source = Source::new(v4, protocol, 9_000);
        let packet = source.packet(&payload, 0x18);
        let segments = cut_into(&packet, source.kind(), 1_368);
        let runs = merge(&segments);
        assert_eq!(runs.len(), 1);
        let (merged, bytes) = &runs[0];
        assert_eq!(merged.unwrap().size, 1_368);
        assert_eq!(bytes.len(), packet.len());
        assert!(expand(&runs) == segments);
        // The field holds what the kernel wants to begin with.
        let at = usize::from(merged.unwrap().transport) + if protocol == TCP { 16 } else { 6 };
        let addresses = if v4 { 12..20 } else { 8..40 };
        let inner = bytes.len() - usize::from(merged.unwrap().transport);
        let half = checksum::pseudo_header(&bytes[addresses], protocol, inner).folded();
        assert_eq!(bytes[at..at + 2], half);
    }
}

#[test]
fn flows_that_are_mixed_keep_their_order_and_every_byte() {
    for seed in 1..=300 {
        let mut random = Random(seed);
        let mut sources: Vec<_> = (0..1 + random.below(24))
            .map(|n| {
                let protocol = if random.below(4) == 0 { UDP } else { TCP };
                Source::new(random.below(2) == 0, protocol, u16::try_from(n).unwrap())
            })
            .collect();
        let mut sent: Vec<(usize, Vec<u8>)> = Vec::new();
        for _ in 0..200 {
            let number = random.below(sources.len());
            let source = &mut sources[number];
            match random.below(30) {
                0 => source.sequence = source.sequence.wrapping_add(7),
                1 => source.acknowledged += 1,
                2 => source.options = 4 * random.below(4),
                _ => {}
            }
            let length = [0, 1, 500, 500, 500, 500, 499, 1_300][random.below(8)];
            let flags = [0x10, 0x10, 0x10, 0x18, 0x11, 0x02, 0x90][random.below(7)];
            for _ in 0..1 + random.below(5) {
                let payload = random.bytes(length);
                sent.push((number, source.packet(&payload, flags)));
            }
        }
        let packets: Vec<_> = sent.iter().map(|(_, packet)| packet.clone()).collect();
        let runs = merge(&packets);
        assert!(runs.len() <= packets.len());
        for (merged, bytes) in &runs {
            let count = merged.map_or(1, |merged| {
                (bytes.len() - usize::from(merged.headers)).div_ceil(usize::from(merged.size))
            });
            assert!(bytes.len() <= 65_535 && count <= 64, "seed {seed}");
        }
        let arrived = expand(&runs);
        for number in 0..sources.len() {
            let of = |packet: &&Vec<u8>| {
                let at = if packet[0] >> 4 == 4 { 20 } else { 40 };
                packet[at..at + 2] == u16::try_from(number).unwrap().to_be_bytes()
            };
            let sent: Vec<_> = packets.iter().filter(of).collect();
            let arrived: Vec<_> = arrived.iter().filter(of).collect();
            assert!(sent == arrived, "seed {seed}, flow {number}");
        }
    }
}

#[test]
fn nothing_is_merged_that_differs() {
    let mut source = Source::new(true, TCP, 5);
    let first = source.packet(&[1; 100], 0x10);
    let next = source.packet(&[2; 100], 0x10);
    let mend = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut other = next.clone();
        change(&mut other);
        merge(&[first.clone(), other]).len()
    };
    assert_eq!(mend(&|_| ()), 1);
    for (what, byte) in [
        ("type of service", 1),
        ("don't fragment", 6),
        ("time to live", 8),
        ("source", 15),
        ("port", 21),
        ("sequence", 27),
        ("acknowledgement", 31),
        ("flags", 33),
        ("window", 35),
        ("options", 45),
    ] {
        assert_eq!(mend(&|packet| packet[byte] ^= 0x40), 2, "{what}");
    }
    assert_eq!(mend(&|packet| packet.truncate(packet.len() - 1)), 2, "cut");
    assert_eq!(mend(&|packet| packet.push(0)), 2, "padded");
}

#[test]
fn garbage_is_survived() {
    let mut random = Random(3);
    for _ in 0..20_000 {
        let length = random.below(120);
        let mut packet = random.bytes(length);
        if let Some(first) = packet.first_mut() {
            *first = [0x45, 0x60, 0x4f, *first][random.below(4)];
        }
        let kind = [SegmentKind::Tcp4, SegmentKind::Tcp6, SegmentKind::Udp][random.below(3)];
        let size = u16::try_from(random.below(70)).unwrap();
        let offload = Offload {
            cut: (random.below(2) == 0).then_some(Cut { kind, size }),
            checksum: (random.below(2) == 0).then_some(ChecksumGap {
                start: u16::try_from(random.below(130)).unwrap(),
                offset: u16::try_from(random.below(30)).unwrap(),
            }),
        };
        if let Ok(mut segments) = Segments::new(&mut packet, offload) {
            let mut count = 0;
            while segments.next_segment().is_some() {
                count += 1;
                assert!(count <= 120);
            }
        }
        merge(&[packet.clone(), packet]);
    }
}
