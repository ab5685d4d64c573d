//! One shard's loop.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arc_swap::Cache;
use podmesh_engine::drops::DropReason;
use podmesh_engine::forwarding::ForwardingTable;
use podmesh_engine::inbound::{Arrived, InboundBatch, open_batch};
use podmesh_engine::offload::Merge;
use podmesh_engine::outbound::{InnerPacket, OutboundBatch, seal_batch};
use podmesh_engine::output::SlowItem;
use podmesh_engine::path_id::SocketId;
use podmesh_kernel::tun::{MAX_PARTS, Offloads, TunBatch, TunIoError, TunQueue, WriteCounts};
use podmesh_kernel::udp::{BATCH_SLOTS, Blocked, ReceiveBatch, SendCounts, UdpSocket};
use podmesh_kernel::wait::{Source, Waiter};

use super::virtio;
use super::{Seat, Shared};
use crate::sockets::Stop;

/// Packets taken from the TUN before the network is looked at again: single ones, and such as may be
/// 64 KiB long.
const TUN_SLOTS: (usize, usize) = (32, 8);
/// Pieces taken from the network, once some of them are several datagrams.
const MERGED_SLOTS: usize = 16;
/// Bytes of what the kernel hands over in one piece.
const LONGEST_PIECE: usize = 65_535;
/// Bytes. Underlays with long frames exist.
const LONGEST_DATAGRAM: usize = 9_216;
/// Sockets of a shard at most.
const SOCKETS: usize = 4;
/// A socket that had nothing so often is looked at every so many turns, while others are busy.
const SILENT: u8 = 16;
const SELDOM: u32 = 4;
/// Segments that are sealed before the network is looked at again, but for a single super-packet of more.
const MOST_SEGMENTS: usize = 512;
/// How long what is sealed may wait for room in a socket.
const BACKLOG_AGE: Duration = Duration::from_millis(250);
/// How long nothing is merged after the kernel has refused a run.
const REFUSED: Duration = Duration::from_secs(3_600);
/// After an error that says nothing about its end.
const PAUSE: Duration = Duration::from_millis(100);
const NOBODY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// A shard with its buffers.
pub(super) struct Worker {
    number: usize,
    shared: Arc<Shared>,
    seat: Arc<Seat>,
    queue: Option<Arc<TunQueue>>,
    received: ReceiveBatch,
    opened: InboundBatch,
    read: TunBatch,
    /// Packets of it that are dealt with.
    taken: usize,
    sealed: OutboundBatch,
    backlog: Option<Backlog>,
    turns: u32,
    /// For how many looks in a row each socket had nothing.
    silence: [u8; SOCKETS],
    /// Nothing is merged until then, as the kernel has refused a run.
    alone_until: Option<Instant>,
    /// The socket that is watched for room.
    watched: Option<(SocketId, bool)>,
}

/// What is sealed and waits for room in a socket. Until it is gone nothing more is read from the TUN,
/// whose own queue then tells senders to slow down.
#[derive(Clone, Copy)]
struct Backlog {
    stop: Stop,
    since: Instant,
}

/// Whether a turn found anything to do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Busy,
    Idle,
}

impl Worker {
    pub(super) fn new(number: usize, shared: Arc<Shared>, seat: Arc<Seat>) -> Self {
        let longest = if shared.sockets.merges() {
            LONGEST_PIECE
        } else {
            LONGEST_DATAGRAM
        };
        Self {
            number,
            queue: None,
            received: ReceiveBatch::new(BATCH_SLOTS, longest),
            opened: InboundBatch::default(),
            read: TunBatch::new(TUN_SLOTS.0, shared.mtu),
            taken: 0,
            sealed: OutboundBatch::default(),
            backlog: None,
            turns: 0,
            silence: [0; SOCKETS],
            alone_until: None,
            watched: None,
            shared,
            seat,
        }
    }

    /// Makes the buffers fit what the queue's kernel leaves to us.
    fn seat_queue(&mut self, queue: Arc<TunQueue>) {
        let Offloads { tcp, udp } = queue.offloads();
        self.opened = InboundBatch::merging(runs_for(&queue));
        self.alone_until = None;
        self.read = if tcp || udp {
            TunBatch::new(TUN_SLOTS.1, LONGEST_PIECE)
        } else {
            TunBatch::new(TUN_SLOTS.0, self.shared.mtu)
        };
        self.taken = 0;
        self.queue = Some(queue);
    }

    /// Moves packets until the shards are stopped.
    pub(super) fn run(mut self, mut waiter: Waiter) {
        let mut table = Cache::new(Arc::clone(&self.shared.table));
        let mut tun = self.watch(&mut waiter);
        loop {
            if self.shared.stop.load(Ordering::Acquire) {
                return;
            }
            let table = table.load();
            let inbound = self.inbound(table);
            let outbound = self.outbound(table);
            if inbound == Turn::Busy || outbound == Turn::Busy {
                continue;
            }
            // Whatever wakes us may be on any of them.
            self.silence = [0; SOCKETS];
            if self.watched != self.backlog.map(|backlog| backlog.stop.way) {
                tun = self.watch(&mut waiter);
            }
            let age = self.backlog.map(|backlog| backlog.since.elapsed());
            let patience = age.map(|age| BACKLOG_AGE.saturating_sub(age));
            if let Err(error) = waiter.wait(patience) {
                tracing::error!(shard = self.number, reason = %error, "a shard can't wait");
                std::thread::sleep(PAUSE);
            }
            if tun.is_some_and(|source| waiter.has_failed(source)) {
                self.lose_device();
                tun = self.watch(&mut waiter);
            }
            if waiter.woken() || self.queue.is_none() {
                tun = self.watch(&mut waiter);
            }
        }
    }

    /// Takes the queue that the slow half has given, if it has, and watches all descriptors.
    fn watch(&mut self, waiter: &mut Waiter) -> Option<Source> {
        if let Some(queue) = self.seat.take() {
            self.seat.lost.store(false, Ordering::Release);
            self.seat_queue(queue);
        }
        waiter.clear();
        for (_, socket) in self.shared.sockets.of_shard(self.number) {
            waiter.watch(socket);
        }
        self.watched = self.backlog.map(|backlog| backlog.stop.way);
        let full = self
            .watched
            .and_then(|(id, v4)| self.shared.sockets.sender(self.number, id, v4));
        if let Some(socket) = full {
            waiter.watch_for_room(socket);
            return self
                .queue
                .as_deref()
                .map(|queue| waiter.watch_for_failure(queue));
        }
        self.queue.as_deref().map(|queue| waiter.watch(queue))
    }

    fn lose_device(&mut self) {
        self.queue = None;
        self.seat.lost.store(true, Ordering::Release);
    }

    /// Network to TUN, one batch of each socket.
    fn inbound(&mut self, table: &ForwardingTable) -> Turn {
        let mut turn = Turn::Idle;
        let shared = Arc::clone(&self.shared);
        self.turns = self.turns.wrapping_add(1);
        for (place, (id, socket)) in shared.sockets.of_shard(self.number).enumerate() {
            let silent = self.silence.get(place).copied().unwrap_or(0);
            if silent >= SILENT && !self.turns.is_multiple_of(SELDOM) {
                continue;
            }
            let outcome = self.receive(table, id, socket);
            let silent = match outcome {
                Turn::Busy => 0,
                Turn::Idle => silent.saturating_add(1),
            };
            if let Some(slot) = self.silence.get_mut(place) {
                *slot = silent;
            }
            if outcome == Turn::Busy {
                turn = Turn::Busy;
            }
        }
        turn
    }

    fn receive(&mut self, table: &ForwardingTable, id: SocketId, socket: &UdpSocket) -> Turn {
        let before = self.received.oversized();
        match socket.receive_batch(&mut self.received) {
            Ok(0) => return Turn::Idle,
            Ok(_) => {}
            // What the network said about an earlier datagram; the next call goes on.
            Err(error) => {
                tracing::trace!(reason = %error, "the socket reports an error");
                return Turn::Idle;
            }
        }
        self.shared
            .counters
            .add_oversized(0, self.received.oversized() - before);
        let mut arrived = [Arrived {
            socket: id,
            from: NOBODY,
            bytes: &[],
            segment: 0,
            ecn: 0,
        }; BATCH_SLOTS];
        let (mut count, mut merged) = (0, false);
        for (slot, datagram) in arrived.iter_mut().zip(self.received.datagrams()) {
            merged |= datagram.bytes.len() > datagram.segment;
            (slot.from, slot.bytes) = (datagram.from, datagram.bytes);
            (slot.segment, slot.ecn) = (datagram.segment, datagram.ecn);
            count += 1;
        }
        open_batch(
            table,
            arrived.get(..count).unwrap_or_default(),
            &mut self.opened,
        );
        hand_over(&self.shared, table, &mut self.opened.items);
        let regent = self.shared.regent.as_ref();
        for stray in self.opened.strays(arrived.get(..count).unwrap_or_default()) {
            if !regent.is_some_and(|regent| regent.open(stray)) {
                table.drops().count(DropReason::UnknownTunnel);
            }
        }
        // Whether the device merges is known by its works alone.
        let slots = if merged { MERGED_SLOTS } else { BATCH_SLOTS };
        self.received.set_limit(slots);
        self.write();
        Turn::Busy
    }

    /// Writes what was opened to the TUN.
    fn write(&mut self) {
        let Some(queue) = &self.queue else { return };
        let mut counts = WriteCounts::default();
        let written = write_runs(queue, &self.opened, &mut counts);
        self.shared.counters.add_written(&counts);
        if counts.refused_runs > 0 {
            tracing::warn!(
                "the kernel refuses packets in one piece; they are written one by one for an hour"
            );
            self.opened = InboundBatch::default();
            self.alone_until = Some(Instant::now() + REFUSED);
        } else if self
            .alone_until
            .is_some_and(|until| Instant::now() >= until)
        {
            self.opened = InboundBatch::merging(runs_for(queue));
            self.alone_until = None;
        }
        match written {
            Ok(()) => {}
            Err(TunIoError::DeviceLost) => self.lose_device(),
            Err(error) => tracing::debug!(reason = %error, "can't write to the TUN"),
        }
    }

    /// TUN to network, one batch.
    fn outbound(&mut self, table: &ForwardingTable) -> Turn {
        if let Some(backlog) = self.backlog {
            return self.go_on(backlog);
        }
        if self.taken >= self.read.len() && self.read() == Turn::Idle {
            return Turn::Idle;
        }
        let mut packets: [InnerPacket<'_>; TUN_SLOTS.0] =
            std::array::from_fn(|_| InnerPacket::default());
        let (mut count, mut segments) = (0, 0);
        for packet in self.read.packets().skip(self.taken) {
            let offload = virtio::offload(packet.header);
            let number = offload.map_or(0, |offload| offload.segments(packet.bytes.len()));
            if segments > 0 && segments + number > MOST_SEGMENTS {
                break;
            }
            self.taken += 1;
            let (Some(offload), Some(slot)) = (offload, packets.get_mut(count)) else {
                table.drops().count(DropReason::Malformed);
                continue;
            };
            let bytes = packet.bytes;
            *slot = InnerPacket { bytes, offload };
            count += 1;
            segments += number;
        }
        seal_batch(
            table,
            packets.get_mut(..count).unwrap_or_default(),
            &mut self.sealed,
        );
        hand_over(&self.shared, table, &mut self.sealed.items);
        self.send(Blocked::default());
        Turn::Busy
    }

    /// Reads what waits in the TUN.
    fn read(&mut self) -> Turn {
        let Some(queue) = &self.queue else {
            return Turn::Idle;
        };
        let before = self.read.oversized();
        self.taken = 0;
        match queue.read_batch(&mut self.read) {
            Ok(_) => {}
            Err(TunIoError::DeviceLost) => self.lose_device(),
            Err(error) => tracing::debug!(reason = %error, "can't read from the TUN"),
        }
        self.shared
            .counters
            .add_oversized(self.read.oversized() - before, 0);
        if self.read.is_empty() {
            Turn::Idle
        } else {
            Turn::Busy
        }
    }

    /// Sends what is sealed, beginning there.
    fn send(&mut self, from: Blocked) {
        let runs = self.sealed.runs();
        let (sent, stop) = self.shared.sockets.send(self.number, runs, from);
        self.shared.counters.add_sent(&sent);
        self.backlog = stop.map(|stop| Backlog {
            stop,
            since: self
                .backlog
                .filter(|before| before.stop.at == stop.at)
                .map_or_else(Instant::now, |before| before.since),
        });
    }

    fn go_on(&mut self, backlog: Backlog) -> Turn {
        self.send(backlog.stop.at);
        let Some(still) = self.backlog else {
            return Turn::Busy;
        };
        if still.since.elapsed() < BACKLOG_AGE {
            return Turn::Idle;
        }
        let left = self.sealed.runs().skip(still.stop.at.run);
        let would_block = left.map(|run| run.datagrams().count()).sum();
        self.shared.counters.add_sent(&SendCounts {
            would_block,
            ..SendCounts::default()
        });
        self.backlog = None;
        Turn::Busy
    }
}

/// What may be written to a queue in one piece.
pub(crate) fn runs_for(queue: &TunQueue) -> Merge {
    Merge {
        tcp: queue.offloads().tcp,
        udp: queue.takes_udp_runs(),
    }
}

/// Writes what was opened; an error is the last one, and stops nothing but on a device that is gone.
pub(crate) fn write_runs(
    queue: &TunQueue,
    batch: &InboundBatch,
    counts: &mut WriteCounts,
) -> Result<(), TunIoError> {
    let mut outcome = Ok(());
    for (merged, parts) in batch.runs() {
        let mut gathered = [IoSlice::new(&[]); MAX_PARTS];
        let mut count = 0;
        for (slot, part) in gathered.iter_mut().zip(parts) {
            *slot = IoSlice::new(part);
            count += 1;
        }
        let header = merged.map(virtio::header).unwrap_or_default();
        let parts = gathered.get(..count).unwrap_or_default();
        match queue.write_gathered(header, parts, counts) {
            Err(TunIoError::DeviceLost) => return Err(TunIoError::DeviceLost),
            Err(error) => outcome = Err(error),
            Ok(()) => {}
        }
    }
    outcome
}

/// Gives items to the slow half, and counts those for which its queue has no room.
fn hand_over(shared: &Shared, table: &ForwardingTable, items: &mut Vec<SlowItem>) {
    for item in items.drain(..) {
        let is_wanted = matches!(item, SlowItem::Wanted { .. });
        if is_wanted && shared.items.capacity() < shared.items.max_capacity() / 2 {
            // The rest of its queue is for what may bring a tunnel about.
            table.drops().count(DropReason::SlowHalfBusy);
            continue;
        }
        if let (SlowItem::Wanted { peer, packet }, Some(regent)) = (&item, &shared.regent)
            && let Some((_, link)) = table.by_index(*peer)
            && link.resumes.load(Ordering::Relaxed)
            && regent.seal(packet)
        {
            continue;
        }
        if shared.items.try_send(item).is_err() {
            table.drops().count(DropReason::SlowHalfBusy);
        }
    }
}
