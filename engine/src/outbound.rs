//! The fast half, outbound: inner packets in, sealed datagrams out.
//!
//! Stages: read the header, find the owner of the destination, sort by peer, then per peer (one lock)
//! cut super-packets, seal (one by one or many at once), and wrap where the path is a relay. What one peer gets lies in one piece
//! of memory, as the kernel wants it for sending many datagrams at once. No I/O, no clock, no
//! allocation per packet once the batch's buffers have grown.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::drops::DropReason;
use crate::ecn;
use crate::forwarding::{ForwardingTable, LinkState, Owned, PeerLink, RelayLeg};
use crate::limits;
use crate::mutation;
use crate::offload::{Offload, Segments};
use crate::output::SlowItem;
use crate::packet::Header;
use crate::path_id::{PathId, SocketId};
use crate::tunnel::{Sealed, TunnelError, buffer_for};

/// What a batch of inner packets became. Kept and used again by its thread.
#[derive(Debug, Default)]
pub struct OutboundBatch {
    runs: Vec<Placed>,
    /// For the slow half.
    pub items: Vec<SlowItem>,
    sealed: Vec<u8>,
    used: usize,
    relayed: Vec<u8>,
    order: Vec<(u32, u32)>,
    /// Where messages of the present peer are that are still to be sealed.
    staged: Vec<(usize, usize)>,
}

/// An inner packet as the TUN gave it.
#[derive(Debug, Default)]
pub struct InnerPacket<'a> {
    /// The packet, which is used up.
    pub bytes: &'a mut [u8],
    /// What the kernel has left undone.
    pub offload: Offload,
}

impl<'a> From<&'a mut [u8]> for InnerPacket<'a> {
    fn from(bytes: &'a mut [u8]) -> Self {
        Self {
            bytes,
            offload: Offload::default(),
        }
    }
}

/// Datagrams ready to be sent, all to one endpoint, one behind the other, and of one length but the
/// last, which may be shorter.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// From this socket.
    pub socket: SocketId,
    /// To this endpoint.
    pub to: SocketAddr,
    /// The datagrams.
    pub bytes: &'a [u8],
    /// Bytes of each.
    pub segment: usize,
    /// The congestion marking that all inner packets have (RFC 6040 §4.1), two bits.
    pub ecn: u8,
}

impl<'a> Outgoing<'a> {
    /// The datagrams one by one.
    pub fn datagrams(self) -> impl Iterator<Item = &'a [u8]> {
        self.bytes.chunks(self.segment.max(1))
    }
}

/// Datagrams of one send at most, and their bytes: what the kernel takes at once.
const MAX_SEGMENTS: usize = 64;
const MAX_RUN: usize = 65_507;

#[derive(Debug)]
struct Placed {
    socket: SocketId,
    to: SocketAddr,
    relayed: bool,
    bytes: Range<usize>,
    segment: usize,
    count: usize,
    ecn: u8,
}

impl Placed {
    /// Whether a datagram that lies right behind this run could be its next.
    fn takes(&self, next: &Self) -> bool {
        let last_is_full = self.bytes.len() == self.segment * self.count;
        (self.socket, self.to, self.relayed, self.ecn)
            == (next.socket, next.to, next.relayed, next.ecn)
            && self.bytes.end == next.bytes.start
            && last_is_full
            && next.segment <= self.segment
            && self.count < MAX_SEGMENTS
            && self.bytes.len() + next.segment <= MAX_RUN
    }
}

impl OutboundBatch {
    /// What is to be sent, in an order that keeps each peer's.
    pub fn runs(&self) -> impl Iterator<Item = Outgoing<'_>> {
        self.runs.iter().map(|placed| {
            let arena = if placed.relayed {
                &self.relayed
            } else {
                &self.sealed
            };
            Outgoing {
                socket: placed.socket,
                to: placed.to,
                bytes: arena.get(placed.bytes.clone()).unwrap_or_default(),
                segment: placed.segment,
                ecn: placed.ecn,
            }
        })
    }

    /// Forgets what the batch holds, and gives the memory that it works in: its content counts for
    /// nothing until the next use.
    pub fn idle_memory(&mut self) -> [&mut [u8]; 2] {
        self.clear();
        let most = self.relayed.capacity();
        self.relayed.resize(most, 0);
        [&mut self.sealed, &mut self.relayed]
    }

    fn clear(&mut self) {
        self.runs.clear();
        self.items.clear();
        self.relayed.clear();
        self.order.clear();
        self.staged.clear();
        self.used = 0;
    }

    fn place(&mut self, next: Placed) {
        match self.runs.last_mut().filter(|last| last.takes(&next)) {
            Some(last) => {
                last.bytes.end = next.bytes.end;
                last.count += 1;
            }
            None => self.runs.push(next),
        }
    }
}

/// Seals `packets` (as read from the TUN) into `batch`, whose former content is gone.
pub fn seal_batch(
    table: &ForwardingTable,
    packets: &mut [InnerPacket<'_>],
    batch: &mut OutboundBatch,
) {
    batch.clear();
    for (packet, number) in packets.iter().zip(0_u32..) {
        match route(table, packet.bytes) {
            Ok(position) => batch.order.push((position, number)),
            Err(reason) => table.drops().count(reason),
        }
    }
    batch.order.sort_unstable();
    let order = std::mem::take(&mut batch.order);
    for run in order.chunk_by(|a, b| a.0 == b.0) {
        let Some(link) = run.first().and_then(|(peer, _)| table.peer_at(*peer)) else {
            continue;
        };
        seal_run(table, link, (run, packets), batch);
    }
    batch.order = order;
}

/// The position of the peer that a packet goes to.
fn route(table: &ForwardingTable, packet: &[u8]) -> Result<u32, DropReason> {
    let header = Header::parse(packet).ok_or(DropReason::Malformed)?;
    if !header.is_routable() {
        return Err(DropReason::NotRoutable);
    }
    if header.is_control() {
        return Err(DropReason::ControlFromHost);
    }
    if !matches!(table.owner(header.source), Owned::Mine) && !mutation::is_rogue() {
        return Err(DropReason::ForeignSource);
    }
    match table.owner(header.destination) {
        Owned::By(position, _) => Ok(position),
        Owned::Mine | Owned::Nobody => Err(DropReason::NoRoute),
    }
}

/// Seals the packets of one peer, which `run` names.
fn seal_run(
    table: &ForwardingTable,
    link: &Arc<PeerLink>,
    (run, packets): (&[(u32, u32)], &mut [InnerPacket<'_>]),
    batch: &mut OutboundBatch,
) {
    let number = u64::try_from(run.len()).unwrap_or(u64::MAX);
    let mut state = link.lock();
    if state.closed {
        table.drops().add(DropReason::PeerClosed, number);
        return;
    }
    let (Some(path), true) = (state.path, state.tunnel.is_some()) else {
        drop(state);
        let mut room = limits::MAX_WAITING;
        for (_, number) in run {
            if let Some(packet) = at(packets, *number) {
                want(table, (link, &mut room), packet, batch);
            }
        }
        return;
    };
    let leg = match path {
        PathId::Direct { .. } => None,
        PathId::Relay { planet } => table.relay(&planet),
    };
    if leg.is_none() && !path.is_direct() {
        table.drops().add(DropReason::RelayDown, number);
        return;
    }
    let (mut count, mut bytes) = (0, 0);
    for (_, place) in run {
        let Some(packet) = at(packets, *place) else {
            continue;
        };
        let ecn = ecn::of(packet.bytes);
        let Ok(mut segments) = Segments::new(packet.bytes, packet.offload) else {
            table.drops().count(DropReason::Malformed);
            continue;
        };
        while let Some(segment) = segments.next_segment() {
            match seal_one(&mut state, link, (path, leg), (segment, ecn), batch) {
                Ok(()) => {
                    count += 1;
                    bytes += segment.len();
                }
                Err(TunnelError::Full) => table.drops().count(DropReason::QueueFull),
                Err(_) => table.drops().count(DropReason::Malformed),
            }
        }
    }
    if let Some(tunnel) = &state.tunnel {
        tunnel.seal_staged(&mut batch.sealed, &batch.staged);
    }
    batch.staged.clear();
    let counters = &link.counters;
    counters.sent_packets.fetch_add(count, Ordering::Relaxed);
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    counters.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
}

fn at<'p, 'a>(packets: &'p mut [InnerPacket<'a>], number: u32) -> Option<&'p mut InnerPacket<'a>> {
    packets.get_mut(usize::try_from(number).ok()?)
}

/// A packet for which there is no tunnel yet: the slow half makes one. Of a super-packet it gets the
/// segments, but no more than it would keep: it has other things to hear of just then.
fn want(
    table: &ForwardingTable,
    (link, room): (&PeerLink, &mut usize),
    packet: &mut InnerPacket<'_>,
    batch: &mut OutboundBatch,
) {
    let Ok(mut segments) = Segments::new(packet.bytes, packet.offload) else {
        table.drops().count(DropReason::Malformed);
        return;
    };
    while let Some(segment) = segments.next_segment() {
        let Some(left) = room.checked_sub(1) else {
            table.drops().count(DropReason::QueueFull);
            return;
        };
        *room = left;
        batch.items.push(SlowItem::Wanted {
            peer: link.index,
            packet: segment.to_vec(),
        });
    }
}

fn seal_one(
    state: &mut LinkState,
    link: &PeerLink,
    (path, leg): (PathId, Option<&Arc<RelayLeg>>),
    (packet, ecn): (&[u8], u8),
    batch: &mut OutboundBatch,
) -> Result<(), TunnelError> {
    let Some(tunnel) = state.tunnel.as_mut() else {
        return Ok(());
    };
    let start = batch.used;
    let need = start + buffer_for(packet.len());
    if batch.sealed.len() < need {
        batch.sealed.resize(need, 0);
    }
    let space = batch.sealed.get_mut(start..need).unwrap_or_default();
    // What goes into a frame has to be sealed before.
    let staged = if path.is_direct() {
        tunnel.stage(packet, space)
    } else {
        None
    };
    let length = match staged {
        Some(length) => {
            batch.staged.push((start, start + length));
            length
        }
        None => match tunnel.seal(packet, space)? {
            Sealed::Data(length) | Sealed::Initiation(length) => length,
            Sealed::Waiting => return Ok(()),
        },
    };
    let bytes = start..start + length;
    let (socket, to, relayed, bytes) = match (path, leg, link.relay_address) {
        (PathId::Direct { socket, endpoint }, _, _) => {
            batch.used = bytes.end;
            (socket, endpoint, false, bytes)
        }
        (PathId::Relay { .. }, Some(leg), Some(address)) => {
            let start = batch.relayed.len();
            let message = batch.sealed.get(bytes).unwrap_or_default();
            leg.wrap(address, message, &mut batch.relayed);
            let frame = start..batch.relayed.len();
            (SocketId::MAIN, leg.endpoint, true, frame)
        }
        _ => return Ok(()),
    };
    batch.place(Placed {
        socket,
        to,
        relayed,
        segment: bytes.len(),
        bytes,
        count: 1,
        ecn,
    });
    Ok(())
}
