//! The fast half, outbound: inner packets in, sealed datagrams out.
//!
//! Stages: read the header, find the owner of the destination, sort by peer, then per peer (one lock)
//! seal, and wrap where the path is a relay. No I/O, no clock, no allocation per packet once the
//! batch's buffers have grown.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::drops::DropReason;
use crate::forwarding::{ForwardingTable, LinkState, Owned, PeerLink, RelayLeg};
use crate::mutation;
use crate::output::SlowItem;
use crate::packet::Header;
use crate::path_id::{PathId, SocketId};
use crate::tunnel::{Sealed, TunnelError, buffer_for};

/// What a batch of inner packets became. Kept and used again by its thread.
#[derive(Debug, Default)]
pub struct OutboundBatch {
    datagrams: Vec<Placed>,
    /// For the slow half.
    pub items: Vec<SlowItem>,
    sealed: Vec<u8>,
    used: usize,
    relayed: Vec<u8>,
    order: Vec<(u32, u32)>,
}

/// A datagram ready to be sent.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// From this socket.
    pub socket: SocketId,
    /// To this endpoint.
    pub to: SocketAddr,
    /// The datagram.
    pub bytes: &'a [u8],
}

#[derive(Debug)]
struct Placed {
    socket: SocketId,
    to: SocketAddr,
    relayed: bool,
    bytes: Range<usize>,
}

impl OutboundBatch {
    /// The datagrams, in an order that keeps each peer's.
    pub fn datagrams(&self) -> impl Iterator<Item = Outgoing<'_>> {
        self.datagrams.iter().map(|placed| {
            let arena = if placed.relayed {
                &self.relayed
            } else {
                &self.sealed
            };
            Outgoing {
                socket: placed.socket,
                to: placed.to,
                bytes: arena.get(placed.bytes.clone()).unwrap_or_default(),
            }
        })
    }

    fn clear(&mut self) {
        self.datagrams.clear();
        self.items.clear();
        self.relayed.clear();
        self.order.clear();
        self.used = 0;
    }
}

/// Seals `packets` (as read from the TUN) into `batch`, whose former content is gone.
pub fn seal_batch<P: AsRef<[u8]>>(
    table: &ForwardingTable,
    packets: &[P],
    batch: &mut OutboundBatch,
) {
    batch.clear();
    for (packet, number) in packets.iter().zip(0_u32..) {
        match route(table, packet.as_ref()) {
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
        let packets = run
            .iter()
            .filter_map(|(_, number)| packets.get(usize::try_from(*number).ok()?))
            .map(AsRef::as_ref);
        seal_run(table, link, packets, batch);
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

fn seal_run<'a>(
    table: &ForwardingTable,
    link: &Arc<PeerLink>,
    packets: impl Iterator<Item = &'a [u8]>,
    batch: &mut OutboundBatch,
) {
    let mut state = link.lock();
    if state.closed {
        let number = packets.map(|_| 1).sum();
        table.drops().add(DropReason::PeerClosed, number);
        return;
    }
    let (Some(path), true) = (state.path, state.tunnel.is_some()) else {
        drop(state);
        batch.items.extend(packets.map(|packet| SlowItem::Wanted {
            peer: link.index,
            packet: packet.to_vec(),
        }));
        return;
    };
    let leg = match path {
        PathId::Direct { .. } => None,
        PathId::Relay { planet } => table.relay(&planet),
    };
    if leg.is_none() && !path.is_direct() {
        let number = packets.map(|_| 1).sum();
        table.drops().add(DropReason::RelayDown, number);
        return;
    }
    let (mut count, mut bytes) = (0, 0);
    for packet in packets {
        match seal_one(&mut state, link, (path, leg), packet, batch) {
            Ok(()) => {
                count += 1;
                bytes += packet.len();
            }
            Err(TunnelError::Full) => table.drops().count(DropReason::QueueFull),
            Err(_) => table.drops().count(DropReason::Malformed),
        }
    }
    let counters = &link.counters;
    counters.sent_packets.fetch_add(count, Ordering::Relaxed);
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    counters.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
}

fn seal_one(
    state: &mut LinkState,
    link: &PeerLink,
    (path, leg): (PathId, Option<&Arc<RelayLeg>>),
    packet: &[u8],
    batch: &mut OutboundBatch,
) -> Result<(), TunnelError> {
    let Some(tunnel) = state.tunnel.as_mut() else {
        return Ok(());
    };
    // The header's length is at most the buffer's; a longer buffer would carry foreign bytes.
    let length = Header::parse(packet).map_or(0, |header| header.length);
    let packet = packet.get(..length).unwrap_or(packet);
    let start = batch.used;
    let need = start + buffer_for(packet.len());
    if batch.sealed.len() < need {
        batch.sealed.resize(need, 0);
    }
    let space = batch.sealed.get_mut(start..need).unwrap_or_default();
    let length = match tunnel.seal(packet, space)? {
        Sealed::Data(length) | Sealed::Initiation(length) => length,
        Sealed::Waiting => return Ok(()),
    };
    let bytes = start..start + length;
    let placed = match (path, leg, link.relay_address) {
        (PathId::Direct { socket, endpoint }, _, _) => {
            batch.used = bytes.end;
            Placed {
                socket,
                to: endpoint,
                relayed: false,
                bytes,
            }
        }
        (PathId::Relay { .. }, Some(leg), Some(address)) => {
            let start = batch.relayed.len();
            let message = batch.sealed.get(bytes).unwrap_or_default();
            leg.wrap(address, message, &mut batch.relayed);
            Placed {
                socket: SocketId::MAIN,
                to: leg.endpoint,
                relayed: true,
                bytes: start..batch.relayed.len(),
            }
        }
        _ => return Ok(()),
    };
    batch.datagrams.push(placed);
    Ok(())
}
