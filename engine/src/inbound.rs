//! The fast half, inbound: datagrams in, inner packets out.
//!
//! Stages: tell the kind by the first byte, take relay frames off, find the tunnel by its index, sort
//! by peer, then per peer (one lock) open and judge the inner packet. Whatever isn't plain data of a
//! known tunnel goes to the slow half. No I/O, no clock, no allocation per packet once the batch's
//! buffers have grown.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::Ordering;

use podmesh_proto::datagram::DatagramKind;
use podmesh_proto::relayed::{RelayHeader, RelayKind};

use crate::drops::DropReason;
use crate::forwarding::{ForwardingTable, LinkState, Owned, PeerIndex, PeerLink, RelayLeg};
use crate::mutation::{self, Mutant};
use crate::output::{Received, RelayOrigin, SlowItem};
use crate::packet::Header;
use crate::path_id::{PathId, SocketId};
use crate::tunnel::{Opened, Tunnel, TunnelError, buffer_for, receiver_of};

/// A datagram as a socket gave it.
#[derive(Debug, Clone, Copy)]
pub struct Arrived<'a> {
    /// On this socket.
    pub socket: SocketId,
    /// From here, in canonical form (IPv4-mapped addresses folded).
    pub from: SocketAddr,
    /// The datagram.
    pub bytes: &'a [u8],
}

/// What a batch of datagrams became. Kept and used again by its thread.
#[derive(Debug, Default)]
pub struct InboundBatch {
    packets: Vec<Range<usize>>,
    /// For the slow half.
    pub items: Vec<SlowItem>,
    arena: Vec<u8>,
    used: usize,
    order: Vec<Data>,
}

impl InboundBatch {
    /// The inner packets for the TUN, in an order that keeps each peer's.
    pub fn packets(&self) -> impl Iterator<Item = &[u8]> {
        self.packets
            .iter()
            .map(|range| self.arena.get(range.clone()).unwrap_or_default())
    }

    fn clear(&mut self) {
        self.packets.clear();
        self.items.clear();
        self.order.clear();
        self.used = 0;
    }
}

/// A data message of a known tunnel.
#[derive(Debug, Clone)]
struct Data {
    peer: u32,
    datagram: usize,
    message: Range<usize>,
    path: PathId,
}

/// Opens `datagrams` into `batch`, whose former content is gone.
pub fn open_batch(table: &ForwardingTable, datagrams: &[Arrived<'_>], batch: &mut InboundBatch) {
    batch.clear();
    for (number, arrived) in datagrams.iter().enumerate() {
        if let Err(reason) = classify(table, number, arrived, batch) {
            table.drops().count(reason);
        }
    }
    batch
        .order
        .sort_unstable_by_key(|data| (data.peer, data.datagram));
    let order = std::mem::take(&mut batch.order);
    for run in order.chunk_by(|a, b| a.peer == b.peer) {
        if let Some(link) = run.first().and_then(|data| table.peer_at(data.peer)) {
            open_run(table, link, run, datagrams, batch);
        }
    }
    batch.order = order;
}

fn classify(
    table: &ForwardingTable,
    number: usize,
    arrived: &Arrived<'_>,
    batch: &mut InboundBatch,
) -> Result<(), DropReason> {
    if DatagramKind::of(arrived.bytes) == DatagramKind::Relay {
        let (header, leg, payload) = open_frame(table, arrived.bytes)?;
        if header.kind == RelayKind::Observed {
            // The slow half opens it again: it has to match its own question.
            batch.items.push(whole(arrived, None));
            return Ok(());
        }
        if !leg.seen().accept(header.counter) {
            return Err(DropReason::RelayReplay);
        }
        let origin = RelayOrigin {
            planet: leg.planet,
            sender: header.peer,
        };
        let start = arrived.bytes.len() - payload.len() - SEAL_AFTER_PAYLOAD;
        return classify_plain(
            table,
            (number, start..start + payload.len(), Some(origin)),
            arrived,
            batch,
        );
    }
    classify_plain(
        table,
        (number, 0..arrived.bytes.len(), None),
        arrived,
        batch,
    )
}

/// Bytes of a relay frame after its payload.
const SEAL_AFTER_PAYLOAD: usize = 16;

fn open_frame<'a, 't>(
    table: &'t ForwardingTable,
    frame: &'a [u8],
) -> Result<(RelayHeader, &'t RelayLeg, &'a [u8]), DropReason> {
    let header = RelayHeader::parse(frame).map_err(|_| DropReason::RelayFrame)?;
    if !matches!(header.kind, RelayKind::Down | RelayKind::Observed) {
        return Err(DropReason::RelayFrame);
    }
    table
        .relays()
        .iter()
        .find_map(|leg| Some((header, leg.as_ref(), leg.open(&header, frame)?)))
        .ok_or(DropReason::RelayFrame)
}

fn classify_plain(
    table: &ForwardingTable,
    (number, message, origin): (usize, Range<usize>, Option<RelayOrigin>),
    arrived: &Arrived<'_>,
    batch: &mut InboundBatch,
) -> Result<(), DropReason> {
    let bytes = arrived.bytes.get(message.clone()).unwrap_or_default();
    match DatagramKind::of(bytes) {
        DatagramKind::WireGuardData => {
            let index = receiver_of(bytes).ok_or(DropReason::UnknownTunnel)?;
            let (peer, _) = table
                .by_index(PeerIndex(index))
                .ok_or(DropReason::UnknownTunnel)?;
            batch.order.push(Data {
                peer,
                datagram: number,
                message,
                path: path_of(arrived, origin),
            });
            Ok(())
        }
        DatagramKind::WireGuardHandshake | DatagramKind::Probe => {
            let inner = Arrived { bytes, ..*arrived };
            batch.items.push(whole(&inner, origin));
            Ok(())
        }
        // A relay frame inside a relay frame, too.
        DatagramKind::Relay | DatagramKind::Quic | DatagramKind::Unknown => {
            Err(DropReason::UnknownDatagram)
        }
    }
}

fn path_of(arrived: &Arrived<'_>, origin: Option<RelayOrigin>) -> PathId {
    origin.map_or(
        PathId::Direct {
            socket: arrived.socket,
            endpoint: arrived.from,
        },
        |origin| PathId::Relay {
            planet: origin.planet,
        },
    )
}

fn whole(arrived: &Arrived<'_>, relay: Option<RelayOrigin>) -> SlowItem {
    SlowItem::Datagram(Received {
        socket: arrived.socket,
        from: arrived.from,
        relay,
        bytes: arrived.bytes.to_vec(),
    })
}

fn open_run(
    table: &ForwardingTable,
    link: &PeerLink,
    run: &[Data],
    datagrams: &[Arrived<'_>],
    batch: &mut InboundBatch,
) {
    let mut state = link.lock();
    let (mut packets, mut bytes, mut on_path) = (0, 0, 0);
    for data in run {
        let message = datagrams
            .get(data.datagram)
            .and_then(|arrived| arrived.bytes.get(data.message.clone()))
            .unwrap_or_default();
        match open_one(table, link, &mut state, (data.path, message), batch) {
            Ok(length) => {
                packets += u64::from(length > 0);
                bytes += u64::try_from(length).unwrap_or(0);
                if state.path == Some(data.path) {
                    on_path += 1;
                } else if state.elsewhere != Some(data.path) {
                    state.elsewhere = Some(data.path);
                    if link.is_external() {
                        batch.items.push(SlowItem::Moved {
                            peer: link.index,
                            path: data.path,
                        });
                    }
                }
            }
            Err(reason) => table.drops().count(reason),
        }
    }
    // An empty first message on a session that the peer made tells that it can be used.
    let news = |tunnel: &Tunnel| tunnel.can_flush() || (!state.session && tunnel.has_session());
    let coming = state.coming.as_ref().is_some_and(Tunnel::has_session);
    if coming || state.tunnel.as_ref().is_some_and(news) {
        batch.items.push(SlowItem::Session { peer: link.index });
    }
    let counters = &link.counters;
    counters
        .received_packets
        .fetch_add(packets, Ordering::Relaxed);
    counters.received_bytes.fetch_add(bytes, Ordering::Relaxed);
    counters
        .received_on_path
        .fetch_add(on_path, Ordering::Relaxed);
}

/// Opens one message; gives the length of the pod packet inside, which is zero for a keepalive or a
/// control packet.
fn open_one(
    table: &ForwardingTable,
    link: &PeerLink,
    state: &mut LinkState,
    (path, message): (PathId, &[u8]),
    batch: &mut InboundBatch,
) -> Result<usize, DropReason> {
    if state.closed || state.tunnel.is_none() {
        return Err(DropReason::UnknownTunnel);
    }
    let start = batch.used;
    let need = start + buffer_for(message.len());
    if batch.arena.len() < need {
        batch.arena.resize(need, 0);
    }
    let space = batch.arena.get_mut(start..need).unwrap_or_default();
    let length = match state.open(message, space) {
        Ok(Opened::Packet(length)) => length,
        Ok(Opened::Keepalive | Opened::Reply(_)) => return Ok(0),
        Err(TunnelError::NotIp) => return Err(DropReason::InnerMalformed),
        Err(_) => return Err(DropReason::NotAuthentic),
    };
    let packet = batch.arena.get(start..start + length).unwrap_or_default();
    if judge(table, link, packet)? == Verdict::Control {
        batch.items.push(SlowItem::Control {
            peer: link.index,
            path,
            packet: packet.to_vec(),
        });
        return Ok(0);
    }
    batch.packets.push(start..start + length);
    batch.used = start + length;
    Ok(length)
}

/// What an inner packet of a peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// For the TUN.
    Pod,
    /// A message of the tunnel's own.
    Control,
}

/// Whether `link`'s peer may have sent this: it owns the source, by longest prefix over this node and
/// all peers, and the destination is this node's.
pub(crate) fn judge(
    table: &ForwardingTable,
    link: &PeerLink,
    packet: &[u8],
) -> Result<Verdict, DropReason> {
    let header = Header::parse(packet).ok_or(DropReason::InnerMalformed)?;
    if !header.is_routable() {
        return Err(DropReason::InnerNotRoutable);
    }
    match table.owner(header.source) {
        Owned::By(_, owner) if owner.index == link.index => {}
        _ if mutation::is(Mutant::NoOwnerCheck) => {}
        _ => return Err(DropReason::InnerForeignSource),
    }
    if !matches!(table.owner(header.destination), Owned::Mine) {
        return Err(DropReason::InnerForeignDestination);
    }
    if !header.is_control() {
        return Ok(Verdict::Pod);
    }
    if link.overlay6.map(std::net::IpAddr::V6) == Some(header.source) {
        Ok(Verdict::Control)
    } else {
        Err(DropReason::InnerForeignSource)
    }
}

#[cfg(test)]
mod tests;
