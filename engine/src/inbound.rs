//! The fast half, inbound: datagrams in, inner packets out.
//!
//! Stages: tell the kind by the first byte, take relay frames off, find the tunnel by its index, sort
//! by peer, then per peer (one lock) open and judge the inner packet, and put packets of one flow
//! together. Whatever isn't plain data of a known tunnel goes to the slow half. No I/O, no clock, no allocation per packet once the batch's
//! buffers have grown.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::Ordering;

use podmesh_proto::datagram::DatagramKind;
use podmesh_proto::relayed::{RelayHeader, RelayKind};
use podmesh_proto::time::Moment;

use crate::drops::DropReason;
use crate::ecn;
use crate::forwarding::{
    Allowance, ForwardingTable, LinkState, Owned, PeerIndex, PeerLink, RelayLeg,
};
use crate::mutation::{self, Mutant};
use crate::offload::{Merge, Merged, Merger};
use crate::output::{Received, RelayOrigin, SlowItem};
use crate::packet::Header;
use crate::path_id::{PathId, SocketId};
use crate::tunnel::{Opened, Tunnel, TunnelError, buffer_for, receiver_of};

/// A datagram as a socket gave it, or several that came from one sender in one piece.
#[derive(Debug, Clone, Copy)]
pub struct Arrived<'a> {
    /// On this socket.
    pub socket: SocketId,
    /// From here, in canonical form (IPv4-mapped addresses folded).
    pub from: SocketAddr,
    /// The datagrams, one behind the other.
    pub bytes: &'a [u8],
    /// Bytes of each but the last, which may be shorter.
    pub segment: usize,
    /// The congestion marking of the outer header, two bits.
    pub ecn: u8,
}

/// What a batch of datagrams became. Kept and used again by its thread.
#[derive(Debug, Default)]
pub struct InboundBatch {
    merger: Merger,
    /// For the slow half.
    pub items: Vec<SlowItem>,
    arena: Vec<u8>,
    used: usize,
    order: Vec<Data>,
    strays: Vec<(usize, Range<usize>)>,
}

impl InboundBatch {
    /// A batch that puts packets of one flow together, as far as the device takes that.
    #[must_use]
    pub fn merging(merge: Merge) -> Self {
        Self {
            merger: Merger::new(merge),
            ..Self::default()
        }
    }

    /// The inner packets for the TUN, in an order that keeps each peer's: how the kernel has to look
    /// at several in one piece, and the parts that they are gathered from.
    pub fn runs(&self) -> impl Iterator<Item = (Option<Merged>, impl Iterator<Item = &[u8]>)> {
        self.merger.runs().map(|run| {
            let parts = run.parts();
            let bytes = parts.map(|part| self.arena.get(part).unwrap_or_default());
            (run.merged(), bytes)
        })
    }

    /// Data messages of tunnels that the table doesn't know, among those that were `arrived`: of an
    /// earlier life of this node, perhaps.
    pub fn strays<'a>(&'a self, arrived: &'a [Arrived<'_>]) -> impl Iterator<Item = &'a [u8]> {
        self.strays.iter().filter_map(|(piece, message)| {
            let arrived = arrived.get(*piece)?;
            arrived.bytes.get(message.clone())
        })
    }

    /// Forgets what the batch holds, and gives the memory that it works in: its content counts for
    /// nothing until the next use.
    pub fn idle_memory(&mut self) -> &mut [u8] {
        self.clear();
        &mut self.arena
    }

    /// The peer answers at the other end of a path.
    fn reached(&mut self, link: &PeerLink, path: PathId, since: Moment) {
        let peer = link.index;
        self.items.push(SlowItem::Reached { peer, path, since });
    }

    fn clear(&mut self) {
        self.strays.clear();
        self.merger.clear();
        self.items.clear();
        self.order.clear();
        self.used = 0;
    }
}

/// A data message of a known tunnel.
#[derive(Debug, Clone)]
struct Data {
    peer: u32,
    number: u32,
    piece: usize,
    message: Range<usize>,
    path: PathId,
}

/// A datagram within its piece.
#[derive(Clone, Copy)]
struct Place<'a> {
    piece: usize,
    start: usize,
    arrived: &'a Arrived<'a>,
}

/// Opens `datagrams` into `batch`, whose former content is gone.
pub fn open_batch(table: &ForwardingTable, datagrams: &[Arrived<'_>], batch: &mut InboundBatch) {
    batch.clear();
    for (piece, several) in datagrams.iter().enumerate() {
        let mut start = 0;
        for bytes in several.bytes.chunks(several.segment.max(1)) {
            let arrived = &Arrived { bytes, ..*several };
            let place = Place {
                piece,
                start,
                arrived,
            };
            start += bytes.len();
            if let Err(reason) = classify(table, place, batch) {
                table.drops().count(reason);
            }
        }
    }
    batch
        .order
        .sort_unstable_by_key(|data| (data.peer, data.number));
    let order = std::mem::take(&mut batch.order);
    for run in order.chunk_by(|a, b| a.peer == b.peer) {
        if let Some(link) = run.first().and_then(|data| table.peer_at(data.peer)) {
            open_run(table, link, run, datagrams, batch);
        }
    }
    batch.order = order;
    batch.merger.finish(&mut batch.arena);
}

fn classify(
    table: &ForwardingTable,
    place: Place<'_>,
    batch: &mut InboundBatch,
) -> Result<(), DropReason> {
    let arrived = place.arrived;
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
        let message = start..start + payload.len();
        return classify_plain(table, (message, Some(origin)), place, batch);
    }
    classify_plain(table, (0..arrived.bytes.len(), None), place, batch)
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
    (message, origin): (Range<usize>, Option<RelayOrigin>),
    place: Place<'_>,
    batch: &mut InboundBatch,
) -> Result<(), DropReason> {
    let arrived = place.arrived;
    let bytes = arrived.bytes.get(message.clone()).unwrap_or_default();
    match DatagramKind::of(bytes) {
        DatagramKind::WireGuardData => {
            let index = receiver_of(bytes).ok_or(DropReason::UnknownTunnel)?;
            let message = place.start + message.start..place.start + message.end;
            let Some((peer, _)) = table.by_index(PeerIndex(index)) else {
                batch.strays.push((place.piece, message));
                return Ok(());
            };
            batch.order.push(Data {
                peer,
                number: u32::try_from(batch.order.len()).unwrap_or(u32::MAX),
                piece: place.piece,
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
    let mut tally = Tally::default();
    let mut judge = Judge::new(table, link);
    judge.control = state.control;
    if state.opens_many() {
        for some in run.chunks(MANY) {
            open_many(
                &mut judge,
                &mut state,
                (some, datagrams),
                (batch, &mut tally),
            );
        }
    } else {
        for data in run {
            let (ecn, message) = message_of(data, datagrams);
            let outcome = open_one(&mut judge, &mut state, (data.path, ecn, message), batch);
            tally.add(&judge, &mut state, (data, outcome), batch);
        }
    }
    state.control = judge.control;
    // An empty first message on a session that the peer made tells that it can be used.
    let news = |tunnel: &Tunnel| tunnel.can_flush() || (!state.session && tunnel.has_session());
    let coming = state.coming.as_ref().is_some_and(Tunnel::has_session);
    if coming || state.tunnel.as_ref().is_some_and(news) {
        batch.items.push(SlowItem::Session { peer: link.index });
    }
    let counters = &link.counters;
    let packets = &counters.received_packets;
    packets.fetch_add(tally.packets, Ordering::Relaxed);
    counters
        .received_bytes
        .fetch_add(tally.bytes, Ordering::Relaxed);
    counters
        .received_on_path
        .fetch_add(tally.on_path, Ordering::Relaxed);
}

/// What a peer's messages were.
#[derive(Default)]
struct Tally {
    packets: u64,
    bytes: u64,
    on_path: u64,
}

impl Tally {
    fn add(
        &mut self,
        judge: &Judge<'_>,
        state: &mut LinkState,
        (data, outcome): (&Data, Result<usize, DropReason>),
        batch: &mut InboundBatch,
    ) {
        let length = match outcome {
            Ok(length) => length,
            Err(reason) => {
                judge.table.drops().count(reason);
                return;
            }
        };
        self.packets += u64::from(length > 0);
        self.bytes += u64::try_from(length).unwrap_or(0);
        if state.path == Some(data.path) {
            self.on_path += 1;
        } else if state.elsewhere != Some(data.path) {
            state.elsewhere = Some(data.path);
            if judge.link.is_external() {
                batch.items.push(SlowItem::Moved {
                    peer: judge.link.index,
                    path: data.path,
                });
            }
        }
    }
}

/// Messages that are opened together at most.
const MANY: usize = 64;
/// Bytes of a data message before its content.
const DATA_HEADER: usize = 16;

/// A message, and the marking of what it came in.
fn message_of<'a>(data: &Data, datagrams: &'a [Arrived<'_>]) -> (u8, &'a [u8]) {
    let Some(arrived) = datagrams.get(data.piece) else {
        return (0, &[]);
    };
    let message = arrived.bytes.get(data.message.clone());
    (arrived.ecn, message.unwrap_or_default())
}

/// Copies messages to where they are opened in place.
fn gather(
    some: &[Data],
    datagrams: &[Arrived<'_>],
    (places, batch): (&mut [(usize, usize); MANY], &mut InboundBatch),
) {
    for (data, place) in some.iter().zip(places) {
        let (_, message) = message_of(data, datagrams);
        let start = batch.used;
        batch.used += message.len();
        if batch.arena.len() < batch.used {
            batch.arena.resize(batch.used, 0);
        }
        if let Some(space) = batch.arena.get_mut(start..batch.used) {
            space.copy_from_slice(message);
        }
        *place = (start, batch.used);
    }
}

/// Opens many messages at once.
fn open_many(
    judge: &mut Judge<'_>,
    state: &mut LinkState,
    (some, datagrams): (&[Data], &[Arrived<'_>]),
    (batch, tally): (&mut InboundBatch, &mut Tally),
) {
    let (mut places, mut outcomes) = ([(0, 0); MANY], [Err(TunnelError::NotAuthentic); MANY]);
    gather(some, datagrams, (&mut places, batch));
    let places = places.get(..some.len()).unwrap_or_default();
    if let Some(tunnel) = state.tunnel.as_mut() {
        tunnel.open_many(&mut batch.arena, places, &mut outcomes);
    }
    for ((data, (start, _)), outcome) in some.iter().zip(places).zip(outcomes) {
        let (ecn, message) = message_of(data, datagrams);
        if let (Ok(_), Some(tunnel)) = (outcome, state.tunnel.as_mut())
            && let Some(since) = tunnel.reached(message, data.path)
        {
            batch.reached(judge.link, data.path, since);
        }
        let start = start + DATA_HEADER;
        let outcome = match outcome {
            // A keepalive.
            Ok(0) => Ok(0),
            Ok(length) => admit(judge, (data.path, ecn), batch, start..start + length),
            Err(error) => Err(reason_of(error)),
        };
        tally.add(judge, state, (data, outcome), batch);
    }
}

fn reason_of(error: TunnelError) -> DropReason {
    match error {
        TunnelError::NotIp => DropReason::InnerMalformed,
        _ => DropReason::NotAuthentic,
    }
}

/// Opens one message; gives the length of the pod packet inside, which is zero for a keepalive or a
/// control packet.
fn open_one(
    judge: &mut Judge<'_>,
    state: &mut LinkState,
    (path, ecn, message): (PathId, u8, &[u8]),
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
    let (opened, reached) = state.open((path, message), space);
    if let Some(since) = reached {
        batch.reached(judge.link, path, since);
    }
    let length = match opened {
        Ok(Opened::Packet(length)) => length,
        Ok(Opened::Keepalive | Opened::Reply(_)) => return Ok(0),
        Err(error) => return Err(reason_of(error)),
    };
    let admitted = admit(judge, (path, ecn), batch, start..start + length)?;
    batch.used = start + admitted;
    Ok(admitted)
}

/// Judges an inner packet in the arena and takes it for the TUN or the slow half; gives the length of a pod
/// packet.
fn admit(
    judge: &mut Judge<'_>,
    (path, ecn): (PathId, u8),
    batch: &mut InboundBatch,
    range: Range<usize>,
) -> Result<usize, DropReason> {
    let length = range.len();
    let packet = batch.arena.get_mut(range.clone()).unwrap_or_default();
    if judge.verdict(packet)? == Verdict::Control {
        if !judge.control.take() {
            let dropped = &judge.link.counters.control_dropped;
            dropped.fetch_add(1, Ordering::Relaxed);
            return Err(DropReason::ControlLimit);
        }
        batch.items.push(SlowItem::Control {
            peer: judge.link.index,
            path,
            packet: packet.to_vec(),
        });
        return Ok(0);
    }
    if !ecn::combine(packet, ecn) {
        return Err(DropReason::Congested);
    }
    batch.merger.push(&batch.arena, range);
    Ok(length)
}

/// Judges the packets of one peer; the next packet of a flow costs no look-up.
struct Judge<'a> {
    table: &'a ForwardingTable,
    link: &'a PeerLink,
    /// Addresses of the last pod packet.
    known: Option<(IpAddr, IpAddr)>,
    /// Control packets that the peer may send.
    control: Allowance,
}

impl<'a> Judge<'a> {
    fn new(table: &'a ForwardingTable, link: &'a PeerLink) -> Self {
        Self {
            table,
            link,
            known: None,
            control: Allowance::default(),
        }
    }

    fn verdict(&mut self, packet: &[u8]) -> Result<Verdict, DropReason> {
        let header = Header::parse(packet).ok_or(DropReason::InnerMalformed)?;
        let addresses = (header.source, header.destination);
        if self.known == Some(addresses) && !header.is_control() {
            return Ok(Verdict::Pod);
        }
        let verdict = judge(self.table, self.link, packet)?;
        if verdict == Verdict::Pod {
            self.known = Some(addresses);
        }
        Ok(verdict)
    }
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
    if link.overlay6.map(IpAddr::V6) == Some(header.source) {
        Ok(Verdict::Control)
    } else {
        Err(DropReason::InnerForeignSource)
    }
}

#[cfg(test)]
mod tests;
