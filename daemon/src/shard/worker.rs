//! One shard's loop.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::Cache;
use podmesh_engine::drops::DropReason;
use podmesh_engine::forwarding::ForwardingTable;
use podmesh_engine::inbound::{Arrived, InboundBatch, open_batch};
use podmesh_engine::outbound::{OutboundBatch, seal_batch};
use podmesh_engine::output::SlowItem;
use podmesh_engine::path_id::SocketId;
use podmesh_kernel::tun::{TunBatch, TunIoError, TunQueue};
use podmesh_kernel::udp::{BATCH_SLOTS, ReceiveBatch, UdpSocket};
use podmesh_kernel::wait::{Source, Waiter};

use super::{Seat, Shared};
use crate::sockets::Outbox;

/// Packets taken from the TUN before the network is looked at again.
const TUN_SLOTS: usize = 32;
/// Bytes that tunnel, relay frame and rounding add to an inner packet, generously.
const OVERHEAD: usize = 160;
/// Bytes. Underlays with long frames exist.
const LONGEST_DATAGRAM: usize = 9_216;
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
    outbox: Outbox,
}

/// Whether a turn found anything to do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Busy,
    Idle,
}

impl Worker {
    pub(super) fn new(number: usize, shared: Arc<Shared>, seat: Arc<Seat>) -> Self {
        let longest = (shared.mtu + OVERHEAD).max(LONGEST_DATAGRAM);
        Self {
            number,
            queue: None,
            received: ReceiveBatch::new(longest),
            opened: InboundBatch::default(),
            read: TunBatch::new(TUN_SLOTS, shared.mtu),
            sealed: OutboundBatch::default(),
            outbox: Outbox::new(number, shared.mtu + OVERHEAD),
            shared,
            seat,
        }
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
            self.queue = Some(queue);
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
        }; BATCH_SLOTS];
        let mut count = 0;
        for (slot, datagram) in arrived.iter_mut().zip(self.received.datagrams()) {
            (slot.from, slot.bytes) = (datagram.from, datagram.bytes);
            count += 1;
        }
        open_batch(
            table,
            arrived.get(..count).unwrap_or_default(),
            &mut self.opened,
        );
        hand_over(&self.shared, table, &mut self.opened.items);
        self.write();
        Turn::Busy
    }

    /// Writes what was opened to the TUN.
    fn write(&mut self) {
        let Some(queue) = &self.queue else { return };
        match queue.write_batch(self.opened.packets()) {
            Ok(counts) => self.shared.counters.add_written(&counts),
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
        let mut packets: [&[u8]; TUN_SLOTS] = [&[]; TUN_SLOTS];
        let mut count = 0;
        for (slot, packet) in packets.iter_mut().zip(self.read.packets()) {
            *slot = packet.bytes;
            count += 1;
        }
        seal_batch(
            table,
            packets.get(..count).unwrap_or_default(),
            &mut self.sealed,
        );
        hand_over(&self.shared, table, &mut self.sealed.items);
        for outgoing in self.sealed.datagrams() {
            let way = (outgoing.socket, outgoing.to);
            self.outbox
                .push(&self.shared.sockets, way, None, outgoing.bytes);
        }
        let sent = self.outbox.flush(&self.shared.sockets);
        self.shared.counters.add_sent(&sent);
        Turn::Busy
    }
}

/// Gives items to the slow half, and counts those for which its queue has no room.
fn hand_over(shared: &Shared, table: &ForwardingTable, items: &mut Vec<SlowItem>) {
    for item in items.drain(..) {
        if shared.items.try_send(item).is_err() {
            table.drops().count(DropReason::SlowHalfBusy);
        }
    }
}
