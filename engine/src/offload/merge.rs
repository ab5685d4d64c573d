//! Putting packets of one flow together again.
//!
//! The rules are nearly those of the kernel's own receive offload: nothing is merged that a cut wouldn't
//! make the very packets of again, but for the identification of IPv4 packets, which need not count up
//! here, and for checksums. Those aren't looked at, as the tunnel's seal covers every byte; the kernel's
//! own WireGuard does the same.

use std::ops::Range;

use super::checksum::{Sum, pseudo_header};
use super::{IPV4_HEADER, IPV6_HEADER, SegmentKind, TCP, UDP, UDP_HEADER};

/// Packets that one run has at most, as many as the kernel cuts one into.
const MAX_COUNT: usize = 64;
/// Bytes of a run with its headers, as many as an IPv4 header can say.
const MAX_BYTES: usize = 65_535;
/// Flows that are looked at at once; a packet of one more begins a run of its own.
const MAX_OPEN: usize = 16;

const ACK: u8 = 0x10;
const PUSH: u8 = 0x08;
const TCP_HEADER: usize = 20;

/// What a batch of packets becomes on its way to the TUN. Kept and used again by its thread.
#[derive(Debug, Default)]
pub struct Merger {
    parts: Vec<Part>,
    runs: Vec<Building>,
    /// Runs that may grow, the one that grew last at the end.
    open: Vec<usize>,
    merge: Merge,
}

/// What a device takes in one piece.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Merge {
    /// TCP.
    pub tcp: bool,
    /// UDP.
    pub udp: bool,
}

/// One write to the TUN.
#[derive(Debug)]
pub struct Run<'a> {
    merger: &'a Merger,
    building: &'a Building,
}

/// How the kernel has to look at a run of several packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merged {
    /// What it is made of.
    pub kind: SegmentKind,
    /// Bytes of payload in each packet but the last.
    pub size: u16,
    /// Bytes before the transport header.
    pub transport: u16,
    /// Bytes before the payload.
    pub headers: u16,
}

#[derive(Debug)]
struct Part {
    bytes: Range<usize>,
    next: Option<usize>,
}

#[derive(Debug)]
struct Building {
    first: usize,
    last: usize,
    count: usize,
    bytes: usize,
    /// None if nothing can join it.
    shape: Option<Shape>,
}

/// What the packets of a run have in common, and how the next one has to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    flow: Flow,
    transport: usize,
    headers: usize,
    size: usize,
    /// Where the next packet has to begin; that of a new packet's end.
    sequence: u32,
    push: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flow {
    is_v4: bool,
    protocol: u8,
    ports: [u8; 4],
    addresses: [u8; 32],
}

/// What becomes of a packet.
enum Kind {
    /// Of no flow that could be merged.
    Alone,
    /// Of this flow, but nothing joins it and it joins nothing.
    Apart(Flow),
    Data(Shape),
}

impl Merger {
    /// For a device that takes this.
    #[must_use]
    pub fn new(merge: Merge) -> Self {
        Self {
            merge,
            ..Self::default()
        }
    }

    /// Forgets the batch before.
    pub fn clear(&mut self) {
        self.parts.clear();
        self.runs.clear();
        self.open.clear();
    }

    /// Takes the next packet, which is that range of `arena`. Packets of a flow keep their order.
    pub fn push(&mut self, arena: &[u8], packet: Range<usize>) {
        let bytes = arena.get(packet.clone()).unwrap_or_default();
        let part = self.parts.len();
        self.parts.push(Part {
            bytes: packet,
            next: None,
        });
        let shape = match kind(bytes, self.merge) {
            Kind::Alone => {
                self.close_between(bytes);
                None
            }
            Kind::Apart(flow) => {
                self.close(&flow);
                None
            }
            Kind::Data(shape) => {
                if self.join(arena, part, &shape, bytes) {
                    return;
                }
                self.close(&shape.flow);
                Some(shape).filter(|shape| !shape.push)
            }
        };
        if shape.is_some() {
            if self.open.len() == MAX_OPEN {
                self.open.remove(0);
            }
            self.open.push(self.runs.len());
        }
        self.runs.push(Building {
            first: part,
            last: part,
            count: 1,
            bytes: bytes.len(),
            shape,
        });
    }

    /// Writes the headers of runs of several packets. After this, [`Self::runs`] may be written.
    pub fn finish(&mut self, arena: &mut [u8]) {
        for run in self.runs.iter().filter(|run| run.count > 1) {
            let range = self.parts.get(run.first).map(|part| part.bytes.clone());
            let packet = range.and_then(|range| arena.get_mut(range));
            if let (Some(packet), Some(shape)) = (packet, &run.shape) {
                // The lengths were checked when the packets were taken.
                let _ = shape.mend(packet, run.bytes);
            }
        }
    }

    /// What has to be written, in order.
    pub fn runs(&self) -> impl Iterator<Item = Run<'_>> {
        self.runs.iter().map(|building| Run {
            merger: self,
            building,
        })
    }

    /// Nothing of any flow between the two ends of `packet` may overtake it: it can be a fragment, whose
    /// flow it doesn't tell.
    fn close_between(&mut self, packet: &[u8]) {
        let Some((_, addresses)) = addresses_of(packet) else {
            return;
        };
        let runs = &self.runs;
        let of = |run: &usize| runs.get(*run).and_then(|run| run.shape.as_ref());
        self.open
            .retain(|run| of(run).is_none_or(|shape| shape.flow.addresses != addresses));
    }

    fn close(&mut self, flow: &Flow) {
        let runs = &self.runs;
        let of = |run: &usize| runs.get(*run).and_then(|run| run.shape.as_ref());
        self.open
            .retain(|run| of(run).is_none_or(|shape| shape.flow != *flow));
    }

    /// Whether a packet has joined the open run of its flow.
    fn join(&mut self, arena: &[u8], part: usize, next: &Shape, bytes: &[u8]) -> bool {
        let of = |run: &usize| {
            let shape = self.runs.get(*run).and_then(|run| run.shape.as_ref());
            shape.is_some_and(|shape| shape.flow == next.flow)
        };
        let Some(place) = self.open.iter().rposition(of) else {
            return false;
        };
        let number = self.open.get(place).copied().unwrap_or_default();
        let Some(run) = self.runs.get_mut(number) else {
            return false;
        };
        let Some(shape) = run.shape.as_mut() else {
            return false;
        };
        let first = self.parts.get(run.first).map(|part| part.bytes.clone());
        let first = first.and_then(|range| arena.get(range)).unwrap_or_default();
        let payload = bytes.len() - next.headers;
        let begin = next.sequence.wrapping_sub(length_of(payload));
        let fits = payload <= shape.size
            && next.transport == shape.transport
            && next.headers == shape.headers
            && run.count < MAX_COUNT
            && run.bytes + payload <= MAX_BYTES
            && (shape.flow.protocol == UDP || begin == shape.sequence)
            && shape.same_headers(first, bytes);
        if !fits {
            return false;
        }
        let ends = payload < shape.size || next.push;
        shape.sequence = next.sequence;
        shape.push |= next.push;
        run.count += 1;
        run.bytes += payload;
        let before = std::mem::replace(&mut run.last, part);
        if let Some(before) = self.parts.get_mut(before) {
            before.next = Some(part);
        }
        let number = self.open.remove(place);
        if !ends {
            // What is in use is what is given up last.
            self.open.push(number);
        }
        true
    }
}

impl<'a> Run<'a> {
    /// How the kernel has to look at it; none for a packet as it came.
    #[must_use]
    pub fn merged(&self) -> Option<Merged> {
        let shape = self.building.shape.filter(|_| self.building.count > 1)?;
        let kind = match (shape.flow.protocol, shape.flow.is_v4) {
            (TCP, true) => SegmentKind::Tcp4,
            (TCP, false) => SegmentKind::Tcp6,
            _ => SegmentKind::Udp,
        };
        Some(Merged {
            kind,
            size: u16::try_from(shape.size).ok()?,
            transport: u16::try_from(shape.transport).ok()?,
            headers: u16::try_from(shape.headers).ok()?,
        })
    }

    /// The ranges of the arena that it is gathered from: the first packet whole, and the payload of
    /// the others.
    pub fn parts(&self) -> impl Iterator<Item = Range<usize>> + use<'a> {
        let merger = self.merger;
        let headers = self.building.shape.map_or(0, |shape| shape.headers);
        let mut next = Some(self.building.first);
        let mut skip = 0;
        std::iter::from_fn(move || {
            let part = merger.parts.get(next?)?;
            next = part.next;
            let bytes = part.bytes.start + skip..part.bytes.end;
            skip = headers;
            Some(bytes)
        })
    }
}

impl Shape {
    /// Whether two packets of a flow differ only in what the cut makes anew: lengths, checksums, the
    /// IPv4 identification, the sequence number and PSH.
    fn same_headers(&self, one: &[u8], other: &[u8]) -> bool {
        let same = |range: Range<usize>| one.get(range.clone()) == other.get(range);
        let network = if self.flow.is_v4 {
            // Type of service; flags and fragment; time to live.
            same(1..2) && same(6..9)
        } else {
            // Class and flow label; hop limit.
            same(0..4) && same(7..8)
        };
        let at = self.transport;
        let transport = self.flow.protocol == UDP
            // Acknowledgement and offset; window; urgent pointer and options. The flags were looked at before.
            || (same(at + 8..at + 13) && same(at + 14..at + 16) && same(at + 18..self.headers));
        network && transport
    }

    /// Makes the headers of one packet those of a run of `length` bytes in all.
    fn mend(&self, packet: &mut [u8], length: usize) -> Option<()> {
        let (network, transport) = packet.split_at_mut_checked(self.transport)?;
        if self.flow.is_v4 {
            let total = u16::try_from(length).ok()?;
            network.get_mut(2..4)?.copy_from_slice(&total.to_be_bytes());
            network.get_mut(10..12)?.fill(0);
            let sum = Sum::default().add(network).checksum();
            network.get_mut(10..12)?.copy_from_slice(&sum);
        } else {
            let payload = u16::try_from(length - IPV6_HEADER).ok()?;
            network
                .get_mut(4..6)?
                .copy_from_slice(&payload.to_be_bytes());
        }
        let inner = length - self.transport;
        let field = if self.flow.protocol == TCP {
            if self.push {
                *transport.get_mut(13)? |= PUSH;
            }
            16
        } else {
            let inner = u16::try_from(inner).ok()?;
            transport
                .get_mut(4..6)?
                .copy_from_slice(&inner.to_be_bytes());
            6
        };
        let addresses = if self.flow.is_v4 { 12..20 } else { 8..40 };
        let sum = pseudo_header(network.get(addresses)?, self.flow.protocol, inner);
        transport
            .get_mut(field..field + 2)?
            .copy_from_slice(&sum.folded());
        Some(())
    }
}

fn kind(packet: &[u8], merge: Merge) -> Kind {
    shape_of(packet, merge).unwrap_or(Kind::Alone)
}

/// Whether it is an IPv4 packet, and both its addresses.
fn addresses_of(packet: &[u8]) -> Option<(bool, [u8; 32])> {
    let mut addresses = [0; 32];
    let is_v4 = packet.first()? >> 4 == 4;
    if is_v4 {
        let header = packet.first_chunk::<IPV4_HEADER>()?;
        addresses
            .first_chunk_mut::<8>()?
            .copy_from_slice(header.last_chunk::<8>()?);
    } else {
        let header = packet.first_chunk::<IPV6_HEADER>()?;
        addresses.copy_from_slice(header.last_chunk::<32>()?);
    }
    Some((is_v4, addresses))
}

/// Only plain headers are merged: no IP options, fragments or extension headers, and lengths that
/// name the packet's own.
fn shape_of(packet: &[u8], merge: Merge) -> Option<Kind> {
    let (is_v4, addresses) = addresses_of(packet)?;
    let (transport, protocol) = if is_v4 {
        let header = packet.first_chunk::<IPV4_HEADER>()?;
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let fragment = u16::from_be_bytes([header[6], header[7]]) & 0xbfff;
        if header[0] != 0x45 || length != packet.len() || fragment != 0 {
            return None;
        }
        (IPV4_HEADER, header[9])
    } else {
        let header = packet.first_chunk::<IPV6_HEADER>()?;
        let length = IPV6_HEADER + usize::from(u16::from_be_bytes([header[4], header[5]]));
        if header[0] >> 4 != 6 || length != packet.len() {
            return None;
        }
        (IPV6_HEADER, header[6])
    };
    let inner = packet.get(transport..)?;
    let flow = Flow {
        is_v4,
        protocol,
        ports: *inner.first_chunk()?,
        addresses,
    };
    match protocol {
        TCP if merge.tcp => tcp(flow, transport, inner),
        UDP if merge.udp => datagram(flow, transport, inner),
        _ => None,
    }
}

fn tcp(flow: Flow, transport: usize, inner: &[u8]) -> Option<Kind> {
    let header = inner.first_chunk::<TCP_HEADER>()?;
    let length = usize::from(header[12] >> 4) * 4;
    let flags = header[13];
    let size = inner.len().checked_sub(length)?;
    if size == 0 || length < TCP_HEADER || flags & !PUSH != ACK {
        return Some(Kind::Apart(flow));
    }
    let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    Some(Kind::Data(Shape {
        flow,
        transport,
        headers: transport + length,
        size,
        sequence: sequence.wrapping_add(length_of(size)),
        push: flags & PUSH != 0,
    }))
}

fn datagram(flow: Flow, transport: usize, inner: &[u8]) -> Option<Kind> {
    let header = inner.first_chunk::<UDP_HEADER>()?;
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let no_checksum = header[6] == 0 && header[7] == 0;
    if length != inner.len() || length == UDP_HEADER || no_checksum {
        return Some(Kind::Apart(flow));
    }
    Some(Kind::Data(Shape {
        flow,
        transport,
        headers: transport + UDP_HEADER,
        size: length - UDP_HEADER,
        sequence: 0,
        push: false,
    }))
}

fn length_of(payload: usize) -> u32 {
    u32::try_from(payload).unwrap_or(u32::MAX)
}
