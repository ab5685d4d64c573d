//! One shard's loop.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::Cache;
use podmesh_engine::drops::DropReason;
use podmesh_engine::forwarding::ForwardingTable;
use podmesh_engine::inbound::{Arrived, InboundBatch, open_batch};
use podmesh_engine::offload::Merge;
use podmesh_engine::outbound::{InnerPacket, OutboundBatch, seal_batch};
use podmesh_engine::output::SlowItem;
use podmesh_engine::path_id::SocketId;
use podmesh_kernel::tun::{Offloads, TunBatch, TunIoError, TunQueue, WriteCounts};
use podmesh_kernel::udp::{BATCH_SLOTS, ReceiveBatch, UdpSocket};
use podmesh_kernel::wait::{Source, Waiter};

use super::virtio;
use super::{Seat, Shared};

/// Packets taken from the TUN before the network is looked at again: single ones, and such as may be
/// 64 KiB long.
const TUN_SLOTS: (usize, usize) = (32, 8);
/// The same for datagrams from the network.
const UDP_SLOTS: (usize, usize) = (64, 16);
/// Bytes of what the kernel hands over in one piece.
const LONGEST_PIECE: usize = 65_535;
/// Bytes. Underlays with long frames exist.
const LONGEST_DATAGRAM: usize = 9_216;
/// Parts that one write is gathered from.
const MAX_PARTS: usize = 64;
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
    sealed: OutboundBatch,
}

/// Whether a turn found anything to do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Busy,
    Idle,
}

impl Worker {
    pub(super) fn new(number: usize, shared: Arc<Shared>, seat: Arc<Seat>) -> Self {
        let received = if shared.sockets.merges() {
            ReceiveBatch::new(UDP_SLOTS.1, LONGEST_PIECE)
        } else {
            ReceiveBatch::new(UDP_SLOTS.0, LONGEST_DATAGRAM)
        };
        Self {
            number,
            queue: None,
            received,
            opened: InboundBatch::default(),
            read: TunBatch::new(TUN_SLOTS.0, shared.mtu),
            sealed: OutboundBatch::default(),
            shared,
            seat,
        }
    }

    /// Makes the buffers fit what the queue's kernel leaves to us.
    fn seat_queue(&mut self, queue: Arc<TunQueue>) {
        let Offloads { tcp, udp } = queue.offloads();
        self.opened = InboundBatch::merging(Merge { tcp, udp });
        self.read = if tcp || udp {
            TunBatch::new(TUN_SLOTS.1, LONGEST_PIECE)
        } else {
            TunBatch::new(TUN_SLOTS.0, self.shared.mtu)
        };
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
            if let Err(error) = waiter.wait(None) {
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
        for (id, socket) in shared.sockets.of_shard(self.number) {
            if self.receive(table, id, socket) == Turn::Busy {
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
        let mut count = 0;
        for (slot, datagram) in arrived.iter_mut().zip(self.received.datagrams()) {
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
        self.write();
        Turn::Busy
    }

    /// Writes what was opened to the TUN.
    fn write(&mut self) {
        let Some(queue) = &self.queue else { return };
        let mut counts = WriteCounts::default();
        let written = write_runs(queue, &self.opened, &mut counts);
        self.shared.counters.add_written(&counts);
        match written {
            Ok(()) => {}
            Err(TunIoError::DeviceLost) => self.lose_device(),
            Err(error) => tracing::debug!(reason = %error, "can't write to the TUN"),
        }
    }

    /// TUN to network, one batch.
    fn outbound(&mut self, table: &ForwardingTable) -> Turn {
        let Some(queue) = &self.queue else {
            return Turn::Idle;
        };
        let before = self.read.oversized();
        match queue.read_batch(&mut self.read) {
            Ok(_) => {}
            Err(TunIoError::DeviceLost) => self.lose_device(),
            Err(error) => tracing::debug!(reason = %error, "can't read from the TUN"),
        }
        self.shared
            .counters
            .add_oversized(self.read.oversized() - before, 0);
        if self.read.is_empty() {
            return Turn::Idle;
        }
        let mut packets: [InnerPacket<'_>; TUN_SLOTS.0] =
            std::array::from_fn(|_| InnerPacket::default());
        let mut count = 0;
        for (slot, packet) in packets.iter_mut().zip(self.read.packets()) {
            let Some(offload) = virtio::offload(packet.header) else {
                table.drops().count(DropReason::Malformed);
                continue;
            };
            let bytes = packet.bytes;
            *slot = InnerPacket { bytes, offload };
            count += 1;
        }
        seal_batch(
            table,
            packets.get_mut(..count).unwrap_or_default(),
            &mut self.sealed,
        );
        hand_over(&self.shared, table, &mut self.sealed.items);
        let sent = self.shared.sockets.send(self.number, self.sealed.runs());
        self.shared.counters.add_sent(&sent);
        Turn::Busy
    }
}

pub(crate) fn write_runs(
    queue: &TunQueue,
    batch: &InboundBatch,
    counts: &mut WriteCounts,
) -> Result<(), TunIoError> {
    for (merged, parts) in batch.runs() {
        let mut gathered = [IoSlice::new(&[]); MAX_PARTS];
        let mut count = 0;
        for (slot, part) in gathered.iter_mut().zip(parts) {
            *slot = IoSlice::new(part);
            count += 1;
        }
        let header = merged.map(virtio::header).unwrap_or_default();
        queue.write_gathered(header, gathered.get(..count).unwrap_or_default(), counts)?;
    }
    Ok(())
}

/// Gives items to the slow half, and counts those for which its queue has no room.
fn hand_over(shared: &Shared, table: &ForwardingTable, items: &mut Vec<SlowItem>) {
    for item in items.drain(..) {
        if let (SlowItem::Wanted { packet, .. }, Some(regent)) = (&item, &shared.regent)
            && regent.seal(packet)
        {
            continue;
        }
        if shared.items.try_send(item).is_err() {
            table.drops().count(DropReason::SlowHalfBusy);
        }
    }
}
