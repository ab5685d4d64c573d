//! The slow and simple twin of what the fast half does to packets.

use std::collections::BTreeMap;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Where a packet with plain headers has what; `None` for options, extension headers, fragments, and
/// lengths that don't fit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plain {
    pub(crate) is_v4: bool,
    pub(crate) protocol: u8,
    /// Of the transport header.
    pub(crate) start: usize,
}

pub(crate) fn plain(packet: &[u8]) -> Option<Plain> {
    let word = |at: usize| {
        Some(usize::from(u16::from_be_bytes([
            *packet.get(at)?,
            *packet.get(at + 1)?,
        ])))
    };
    let is_v4 = packet.first()? >> 4 == 4;
    let (start, protocol) = if is_v4 {
        let fits = packet[0] == 0x45 && word(2)? == packet.len() && word(6)? & 0xbfff == 0;
        (20, *packet.get(9).filter(|_| fits)?)
    } else {
        let fits = packet[0] >> 4 == 6 && 40 + word(4)? == packet.len();
        (40, *packet.get(6).filter(|_| fits)?)
    };
    let least = match protocol {
        TCP => 20,
        UDP => 8,
        _ => return None,
    };
    (packet.len() >= start + least).then_some(Plain {
        is_v4,
        protocol,
        start,
    })
}

/// Both addresses.
pub(crate) fn ends(packet: &[u8]) -> &[u8] {
    if packet[0] >> 4 == 4 {
        &packet[12..20]
    } else {
        &packet[8..40]
    }
}

/// The sum that RFC 1071 §4.1 asks for, over a plain packet's pseudo header and what is behind the IP header:
/// all ones if its checksum is right.
pub(crate) fn transport_sum(packet: &[u8], of: Plain) -> u16 {
    let inner = &packet[of.start..];
    let length = u32::try_from(inner.len())
        .expect("a short packet")
        .to_be_bytes();
    let words = [ends(packet), &[0, of.protocol], &length, inner];
    let mut sum = 0_u64;
    for bytes in words {
        for pair in bytes.chunks(2) {
            sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("a folded sum")
}

/// Writes the right checksum of a plain packet.
pub(crate) fn fill(packet: &mut [u8], of: Plain) {
    let field = of.start + if of.protocol == TCP { 16 } else { 6 };
    packet[field..field + 2].fill(0);
    let sum = !transport_sum(packet, of);
    let sum = if sum == 0 && of.protocol == UDP {
        0xffff
    } else {
        sum
    };
    packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

/// A packet without what merging and cutting may change: the identification of IPv4 packets and the
/// checksums of plain ones.
pub(crate) fn bare(packet: &[u8]) -> Vec<u8> {
    let mut bare = packet.to_vec();
    if let Some(of) = plain(packet) {
        if of.is_v4 {
            bare[4..6].fill(0);
            bare[10..12].fill(0);
        }
        let field = of.start + if of.protocol == TCP { 16 } else { 6 };
        bare[field..field + 2].fill(0);
    }
    bare
}

/// Both addresses; packets of no flow before; protocol and ports.
type Key = (Vec<u8>, usize, Vec<u8>);

/// What must not change: for each flow the packets in their order, and on which side of each packet of no
/// flow between the same ends they are.
fn in_order<'a>(packets: impl IntoIterator<Item = &'a Vec<u8>>) -> BTreeMap<Key, Vec<Vec<u8>>> {
    let mut lone = BTreeMap::<Vec<u8>, usize>::new();
    let mut flows = BTreeMap::<_, Vec<Vec<u8>>>::new();
    for packet in packets {
        let ends = ends(packet).to_vec();
        let before = lone.entry(ends.clone()).or_default();
        let flow =
            plain(packet).map(|of| [&[of.protocol], &packet[of.start..of.start + 4]].concat());
        if flow.is_none() {
            *before += 1;
        }
        let key = (ends, *before, flow.unwrap_or_default());
        flows.entry(key).or_default().push(bare(packet));
    }
    flows
}

/// Both are the same packets in an order that nobody minds.
pub(crate) fn assert_same(out: &[Vec<u8>], given: &[Vec<u8>]) {
    let (out, given) = (in_order(out), in_order(given));
    for (key, packets) in &given {
        let came = out.get(key).map(Vec::as_slice).unwrap_or_default();
        for (number, packet) in packets.iter().enumerate() {
            assert_eq!(came.get(number), Some(packet), "packet {number} of {key:?}");
        }
    }
    assert_eq!(out.len(), given.len(), "more flows come out than go in");
    let count = |flows: &BTreeMap<Key, Vec<Vec<u8>>>| flows.values().map(Vec::len).sum::<usize>();
    assert_eq!(count(&out), count(&given), "more comes out than goes in");
}
