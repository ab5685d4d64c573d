//! Cutting a super-packet.

use super::checksum::{Sum, pseudo_header};
use super::{
    ChecksumGap, Cut, IPV4_HEADER, IPV6_HEADER, Offload, SegmentKind, TCP, UDP, UDP_HEADER,
};
use crate::packet::Header;

const FIN: u8 = 0x01;
const PUSH: u8 = 0x08;
/// Congestion window reduced: only the first segment says it (RFC 3168 §6.1.2).
const CWR: u8 = 0x80;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
/// Both addresses, in the IP header.
const ADDRESSES: (std::ops::Range<usize>, std::ops::Range<usize>) = (12..20, 8..40);

/// The kernel's description doesn't fit the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the packet can't be cut as its description says")]
pub struct NotCuttable;

/// Segments of one packet at most: what 64 KiB are with the least segment size that Linux lets a TCP peer
/// ask for, with some room.
const MAX_SEGMENTS: usize = 2_048;
/// Bytes of the headers of a packet that can be cut, at most.
const MAX_HEADERS: usize = 256;

/// The packets that a packet from the kernel stands for, one after the other.
///
/// They are made where they lie: the headers of each are written in front of its payload, over the end
/// of the payload before, which its caller has done with.
#[derive(Debug)]
pub struct Segments<'a> {
    packet: &'a mut [u8],
    work: Work,
    /// As the kernel gave them.
    headers: [u8; MAX_HEADERS],
}

#[derive(Debug)]
enum Work {
    Done,
    /// Nothing to be done.
    Whole,
    Fill(ChecksumGap),
    Cut(Shape),
}

/// How far a cut is.
#[derive(Debug, Clone, Copy)]
struct Shape {
    is_v4: bool,
    protocol: u8,
    /// Bytes before the transport header, and before the payload.
    transport: usize,
    headers: usize,
    size: usize,
    /// Payload that is cut already.
    done: usize,
    number: u16,
}

impl<'a> Segments<'a> {
    /// Of a packet as the kernel gave it, which is used up. What lies behind the end that its IP header
    /// names is left out.
    ///
    /// # Errors
    /// The description contradicts the packet.
    pub fn new(packet: &'a mut [u8], offload: Offload) -> Result<Self, NotCuttable> {
        let mut headers = [0; MAX_HEADERS];
        let (work, length) = match offload {
            // A super-packet's own length fields may not be able to hold its length.
            Offload { cut: Some(cut), .. } => {
                let shape = Shape::new(packet, cut)?;
                let kept = headers.get_mut(..shape.headers).ok_or(NotCuttable)?;
                kept.copy_from_slice(packet.get(..shape.headers).ok_or(NotCuttable)?);
                (Work::Cut(shape), packet.len())
            }
            Offload { checksum, .. } => {
                let header = Header::parse(packet).ok_or(NotCuttable)?;
                let length = header.length;
                let transport = if header.source.is_ipv4() {
                    IPV4_HEADER
                } else {
                    IPV6_HEADER
                };
                let work = match checksum {
                    Some(gap) => {
                        let field = usize::from(gap.start) + usize::from(gap.offset);
                        // What was looked at before, the addresses, stays as it is.
                        if field + 2 > length || usize::from(gap.start) < transport {
                            return Err(NotCuttable);
                        }
                        Work::Fill(gap)
                    }
                    None => Work::Whole,
                };
                (work, length)
            }
        };
        let packet = packet.get_mut(..length).ok_or(NotCuttable)?;
        Ok(Self {
            packet,
            work,
            headers,
        })
    }

    /// The next packet.
    pub fn next_segment(&mut self) -> Option<&[u8]> {
        match std::mem::replace(&mut self.work, Work::Done) {
            Work::Done => None,
            Work::Whole => Some(self.packet),
            Work::Fill(gap) => fill(self.packet, gap),
            Work::Cut(shape) => {
                let headers = self.headers.get(..shape.headers)?;
                let (segment, rest) = shape.cut(self.packet, headers)?;
                if let Some(rest) = rest {
                    self.work = Work::Cut(rest);
                }
                Some(segment)
            }
        }
    }
}

fn fill(packet: &mut [u8], gap: ChecksumGap) -> Option<&[u8]> {
    let start = usize::from(gap.start);
    let sum = Sum::default().add(packet.get(start..)?).checksum();
    let field = start + usize::from(gap.offset);
    let is_udp = usize::from(gap.offset) == UDP_CHECKSUM;
    packet
        .get_mut(field..field + 2)?
        .copy_from_slice(&if is_udp { never_zero(sum) } else { sum });
    Some(packet)
}

/// Zero means "no checksum" in UDP (RFC 768).
fn never_zero(sum: [u8; 2]) -> [u8; 2] {
    if sum == [0, 0] { [0xff, 0xff] } else { sum }
}

impl Shape {
    fn new(packet: &[u8], cut: Cut) -> Result<Self, NotCuttable> {
        let version = packet.first().ok_or(NotCuttable)? >> 4;
        let is_v4 = match (cut.kind, version) {
            (SegmentKind::Tcp4 | SegmentKind::Udp, 4) => true,
            (SegmentKind::Tcp6 | SegmentKind::Udp, 6) => false,
            _ => return Err(NotCuttable),
        };
        let (transport, protocol) = transport_of(packet, is_v4).ok_or(NotCuttable)?;
        let headers = match (cut.kind, protocol) {
            (SegmentKind::Udp, UDP) => transport + UDP_HEADER,
            (SegmentKind::Tcp4 | SegmentKind::Tcp6, TCP) => {
                let offset = packet.get(transport + 12).ok_or(NotCuttable)? >> 4;
                transport + usize::from(offset.max(5)) * 4
            }
            _ => return Err(NotCuttable),
        };
        if cut.size == 0 || packet.len() <= headers {
            return Err(NotCuttable);
        }
        if (packet.len() - headers).div_ceil(cut.size.into()) > MAX_SEGMENTS {
            return Err(NotCuttable);
        }
        Ok(Self {
            is_v4,
            protocol,
            transport,
            headers,
            size: usize::from(cut.size),
            done: 0,
            number: 0,
        })
    }

    /// Makes the next segment; gives what remains after it.
    fn cut<'p>(self, packet: &'p mut [u8], headers: &[u8]) -> Option<(&'p [u8], Option<Self>)> {
        let left = packet.len().checked_sub(self.headers + self.done)?;
        let is_last = left <= self.size;
        let length = self.headers + left.min(self.size);
        let segment = packet.get_mut(self.done..self.done + length)?;
        segment.get_mut(..self.headers)?.copy_from_slice(headers);
        self.mend_network(segment)?;
        self.mend_transport(segment, is_last)?;
        let rest = Self {
            done: self.done + self.size,
            number: self.number.wrapping_add(1),
            ..self
        };
        Some((segment, (!is_last).then_some(rest)))
    }

    fn mend_network(&self, segment: &mut [u8]) -> Option<()> {
        let length = segment.len();
        if !self.is_v4 {
            let length = u16::try_from(length - IPV6_HEADER).ok()?;
            segment
                .get_mut(4..6)?
                .copy_from_slice(&length.to_be_bytes());
            return Some(());
        }
        let header = segment.get_mut(..self.transport)?;
        let length = u16::try_from(length).ok()?;
        header.get_mut(2..4)?.copy_from_slice(&length.to_be_bytes());
        let id = header.get_mut(4..6)?.first_chunk_mut::<2>()?;
        *id = u16::from_be_bytes(*id)
            .wrapping_add(self.number)
            .to_be_bytes();
        header.get_mut(10..12)?.fill(0);
        let sum = Sum::default().add(header).checksum();
        header.get_mut(10..12)?.copy_from_slice(&sum);
        Some(())
    }

    fn mend_transport(&self, segment: &mut [u8], is_last: bool) -> Option<()> {
        let (network, transport) = segment.split_at_mut_checked(self.transport)?;
        let length = transport.len();
        let field = if self.protocol == TCP {
            let sequence = transport.get_mut(4..8)?.first_chunk_mut::<4>()?;
            let before = u32::try_from(self.done).ok()?;
            *sequence = u32::from_be_bytes(*sequence)
                .wrapping_add(before)
                .to_be_bytes();
            let flags = transport.get_mut(13)?;
            if !is_last {
                *flags &= !(FIN | PUSH);
            }
            if self.number > 0 {
                *flags &= !CWR;
            }
            TCP_CHECKSUM
        } else {
            let length = u16::try_from(length).ok()?;
            transport
                .get_mut(4..6)?
                .copy_from_slice(&length.to_be_bytes());
            UDP_CHECKSUM
        };
        transport.get_mut(field..field + 2)?.fill(0);
        let addresses = addresses_of(network, self.is_v4)?;
        let sum = pseudo_header(addresses, self.protocol, length).add(transport);
        let sum = match self.protocol {
            UDP => never_zero(sum.checksum()),
            _ => sum.checksum(),
        };
        transport.get_mut(field..field + 2)?.copy_from_slice(&sum);
        Some(())
    }
}

/// Where the transport header begins, and its protocol. IPv6 extension headers are stepped over;
/// fragments have none.
fn transport_of(packet: &[u8], is_v4: bool) -> Option<(usize, u8)> {
    if is_v4 {
        let length = usize::from(packet.first()? & 0x0f) * 4;
        let fragment = u16::from_be_bytes(*packet.get(6..8)?.first_chunk()?) & 0x3fff;
        return (length >= IPV4_HEADER && fragment == 0).then_some((length, *packet.get(9)?));
    }
    let (mut next, mut at) = (*packet.get(6)?, IPV6_HEADER);
    // Hop-by-hop options, routing and destination options (RFC 8200 §4.1).
    while matches!(next, 0 | 43 | 60) {
        // On its way over others the packet's destination isn't the one that its checksum knows.
        if next == 43 && *packet.get(at + 3)? != 0 {
            return None;
        }
        let length = usize::from(*packet.get(at + 1)?) * 8 + 8;
        (next, at) = (*packet.get(at)?, at + length);
    }
    Some((at, next))
}

fn addresses_of(network: &[u8], is_v4: bool) -> Option<&[u8]> {
    network.get(if is_v4 { ADDRESSES.0 } else { ADDRESSES.1 })
}
