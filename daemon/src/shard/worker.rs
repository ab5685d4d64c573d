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
use podmesh_engine::outbound::{OutboundBatch, seal_batch};
use podmesh_engine::output::SlowItem;
use podmesh_engine::path_id::SocketId;
use podmesh_kernel::memory;
use podmesh_kernel::tun::{MAX_PARTS, Offloads, TunIoError, TunQueue, VnetHeader, WriteCounts};
use podmesh_kernel::udp::{BATCH_SLOTS, Blocked, ReceiveBatch, SendCounts};
use podmesh_kernel::wait::{Source, Waiter};

use super::load::Load;
use super::queued::{First, Lost, Queued, Which};
use super::vigil::Vigil;
use super::virtio;
use super::{Seat, Shared};
use crate::sockets::Stop;

/// Pieces taken from the network, once some of them are several datagrams.
const MERGED_SLOTS: usize = 8;
/// Bytes of what the kernel hands over in one piece.
const LONGEST_PIECE: usize = 65_535;
/// Bytes. Underlays with long frames exist.
const LONGEST_DATAGRAM: usize = 9_216;
/// Sockets of a shard at most.
const SOCKETS: usize = 4;
/// Pieces taken from the network at least.
const FEW_SLOTS: usize = 4;
/// How long what is sealed may wait for room in a socket.
const BACKLOG_AGE: Duration = Duration::from_millis(250);
/// How long a shard that ends waits for it.
const DRAIN: Duration = Duration::from_millis(20);
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
    queued: Queued,
    sealed: OutboundBatch,
    backlog: Option<Backlog>,
    load: Load,
    vigil: Vigil,
    sources: Sources,
    ready: Ready,
    /// Nothing was left to do before this turn.
    rested: bool,
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

/// What the waiter watches.
#[derive(Default)]
struct Sources {
    /// In the order of [`Sockets::of_shard`](crate::sockets::Sockets::of_shard).
    sockets: [Option<Source>; SOCKETS],
    tun: Option<Source>,
}

/// What may have something for us: because the kernel said so, or because it had as much as we would take.
#[derive(Clone, Copy, Default)]
struct Ready {
    sockets: [bool; SOCKETS],
    tun: bool,
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
        let mut received = ReceiveBatch::new(BATCH_SLOTS, longest);
        received.set_limit(FEW_SLOTS);
        Self {
            number,
            queue: None,
            received,
            opened: InboundBatch::default(),
            queued: Queued::new(shared.mtu),
            sealed: OutboundBatch::default(),
            backlog: None,
            load: Load::default(),
            vigil: Vigil::new(Instant::now()),
            sources: Sources::default(),
            ready: Ready::default(),
            rested: true,
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
        let longest = if tcp || udp {
            LONGEST_PIECE
        } else {
            self.shared.mtu
        };
        self.queued = Queued::new(longest);
        self.queue = Some(queue);
    }

    /// Moves packets until the shards are stopped. Nothing is asked that has nothing: a packet that comes
    /// after a silence is on its way again before anything else is looked at.
    pub(super) fn run(mut self, mut waiter: Waiter) {
        let mut table = Cache::new(Arc::clone(&self.shared.table));
        self.watch(&mut waiter);
        loop {
            let table = table.load();
            if self.shared.stop.load(Ordering::Acquire) {
                self.drain(table);
                return;
            }
            // What is written to the TUN often has its answer at once.
            let answers = self.inbound(table) == Turn::Busy;
            let asks = self.ready.tun;
            if answers || asks || self.backlog.is_some() {
                self.outbound(table);
            }
            if self.watched != self.backlog.map(|backlog| backlog.stop.way) {
                self.watch(&mut waiter);
            }
            if let Err(error) = self.wait(&mut waiter, answers || asks) {
                tracing::error!(shard = self.number, reason = %error, "a shard can't wait");
                std::thread::sleep(PAUSE);
            }
            self.look(&waiter);
            if !self.has_work() && self.load.is_over() {
                self.give_back();
            }
            if self.sources.tun.is_some_and(|tun| waiter.has_failed(tun)) {
                self.lose_device();
                self.watch(&mut waiter);
            }
            if waiter.woken() || self.queue.is_none() {
                self.watch(&mut waiter);
            }
        }
    }

    /// Waits until there is something to do, for a moment awake if a little was done just now.
    fn wait(&mut self, waiter: &mut Waiter, moved: bool) -> std::io::Result<()> {
        let patience = self.patience();
        self.rested = patience != Some(Duration::ZERO);
        if !moved || !self.rested || self.load.is_on() {
            return waiter.wait(patience);
        }
        let began = Instant::now();
        if let Some(end) = self.vigil.until(began) {
            let (mut before, mut now) = (began, began);
            while now < end && self.vigil.goes_on(before, now) {
                waiter.wait(Some(Duration::ZERO))?;
                if waiter.has_any() {
                    self.vigil.spent(began, Instant::now());
                    return Ok(());
                }
                std::thread::yield_now();
                (before, now) = (now, Instant::now());
            }
            self.vigil.spent(began, now);
        }
        waiter.wait(patience)
    }

    /// How long there is nothing to do unless something comes.
    fn patience(&self) -> Option<Duration> {
        let Ready { sockets, tun } = self.ready;
        if sockets.contains(&true) || (tun && self.backlog.is_none()) {
            return Some(Duration::ZERO);
        }
        let Some(backlog) = &self.backlog else {
            return self.load.patience();
        };
        Some(BACKLOG_AGE.saturating_sub(backlog.since.elapsed()))
    }

    /// Whether anything waits to be dealt with.
    fn has_work(&self) -> bool {
        let Ready { sockets, tun } = self.ready;
        sockets.contains(&true) || tun || self.has_unsent()
    }

    /// Whether anything was taken from the TUN and is not on its way.
    fn has_unsent(&self) -> bool {
        self.backlog.is_some() || !self.queued.is_empty()
    }

    /// Lets the machine have the memory that only much traffic needs.
    fn give_back(&mut self) {
        self.received.give_back();
        self.queued.give_back();
        memory::give_back(self.opened.idle_memory());
        for part in self.sealed.idle_memory() {
            memory::give_back(part);
        }
    }

    /// Sees what the last wait has found.
    fn look(&mut self, waiter: &Waiter) {
        let is_ready = |source: Option<Source>| source.is_some_and(|it| waiter.is_ready(it));
        for (ready, source) in self.ready.sockets.iter_mut().zip(self.sources.sockets) {
            *ready |= is_ready(source);
        }
        self.ready.tun |= is_ready(self.sources.tun);
    }

    /// Takes the queue that the slow half has given, if it has, and watches all descriptors.
    fn watch(&mut self, waiter: &mut Waiter) {
        if let Some(queue) = self.seat.take() {
            self.seat.lost.store(false, Ordering::Release);
            self.seat_queue(queue);
        }
        waiter.clear();
        self.sources = Sources::default();
        let sockets = self.shared.sockets.of_shard(self.number);
        for (source, (_, socket)) in self.sources.sockets.iter_mut().zip(sockets) {
            *source = Some(waiter.watch(socket));
        }
        self.watched = self.backlog.map(|backlog| backlog.stop.way);
        let full = self
            .watched
            .and_then(|(id, v4)| self.shared.sockets.sender(self.number, id, v4));
        if let Some(socket) = full {
            waiter.watch_for_room(socket);
        }
        self.sources.tun = self.queue.as_deref().map(|queue| {
            if full.is_some() {
                waiter.watch_for_failure(queue)
            } else {
                waiter.watch(queue)
            }
        });
    }

    fn lose_device(&mut self) {
        self.queue = None;
        self.seat.lost.store(true, Ordering::Release);
    }

    /// Network to TUN, one batch of each socket that has something.
    fn inbound(&mut self, table: &ForwardingTable) -> Turn {
        let mut turn = Turn::Idle;
        let shared = Arc::clone(&self.shared);
        let ready = std::mem::take(&mut self.ready.sockets);
        let sockets = shared.sockets.of_shard(self.number).zip(ready).enumerate();
        for (place, ((id, socket), _)) in sockets.filter(|(_, (_, ready))| *ready) {
            let before = self.received.oversized();
            let count = match socket.receive_batch(&mut self.received) {
                Ok(0) => continue,
                Ok(count) => count,
                // What the network said about an earlier datagram; the next call goes on.
                Err(error) => {
                    tracing::trace!(reason = %error, "the socket reports an error");
                    continue;
                }
            };
            turn = Turn::Busy;
            self.shared
                .counters
                .add_oversized(0, self.received.oversized() - before);
            if let Some(more) = self.ready.sockets.get_mut(place) {
                *more = count == self.received.limit();
            }
            // What is prepared is touched whole.
            if count <= FEW_SLOTS {
                self.open::<FEW_SLOTS>(table, id, count);
            } else {
                self.open::<BATCH_SLOTS>(table, id, count);
            }
        }
        turn
    }

    /// Opens what was received, and writes it to the TUN.
    fn open<const MOST: usize>(&mut self, table: &ForwardingTable, id: SocketId, filled: usize) {
        let mut arrived = [Arrived {
            socket: id,
            from: NOBODY,
            bytes: &[],
            segment: 0,
            ecn: 0,
        }; MOST];
        let (mut count, mut merged, mut bytes) = (0, false, 0);
        for (slot, datagram) in arrived.iter_mut().zip(self.received.datagrams()) {
            merged |= datagram.bytes.len() > datagram.segment;
            (slot.from, slot.bytes) = (datagram.from, datagram.bytes);
            (slot.segment, slot.ecn) = (datagram.segment, datagram.ecn);
            count += 1;
            bytes += slot.bytes.len();
        }
        self.load.note(bytes);
        open_batch(
            table,
            arrived.get(..count).unwrap_or_default(),
            &mut self.opened,
        );
        report(&self.shared, table, &mut self.opened.items);
        let regent = self.shared.regent.as_ref();
        for stray in self.opened.strays(arrived.get(..count).unwrap_or_default()) {
            if !regent.is_some_and(|regent| regent.open(stray)) {
                table.drops().count(DropReason::UnknownTunnel);
            }
        }
        // Whether the device merges is known by its works alone.
        let most = if merged { MERGED_SLOTS } else { BATCH_SLOTS };
        let next = (filled * 2).max(self.received.limit() / 2);
        self.received.set_limit(next.clamp(FEW_SLOTS, most));
        self.write();
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

    /// TUN to network: all that is little, and some of the rest.
    fn outbound(&mut self, table: &ForwardingTable) {
        if let Some(backlog) = self.backlog {
            self.go_on(backlog);
            return;
        }
        self.take_and_send(table);
        let Lost {
            oversized,
            malformed,
        } = self.queued.take_lost();
        self.shared.counters.add_oversized(oversized, 0);
        if malformed > 0 {
            table.drops().add(DropReason::Malformed, malformed);
        }
    }

    fn take_and_send(&mut self, table: &ForwardingTable) {
        let first = self.rested && !self.load.is_on() && self.queued.is_empty();
        if first && self.first(table) == Turn::Idle {
            self.ready.tun = false;
            return;
        }
        self.ready.tun = true;
        if self.backlog.is_none() {
            let is_full = self.fill();
            self.send_some(table);
            self.ready.tun = is_full || !self.queued.is_empty();
        }
    }

    /// Sends a packet that comes after a silence before others are looked for.
    fn first(&mut self, table: &ForwardingTable) -> Turn {
        let Some(queue) = &self.queue else {
            return Turn::Idle;
        };
        match self.queued.first(queue) {
            Ok(First::Nothing) => return Turn::Idle,
            Ok(First::Single(packet)) => {
                seal_batch(table, &mut [packet], &mut self.sealed);
                self.send_sealed(table);
            }
            Ok(First::Other) => {}
            Err(error) => self.cannot_read(error),
        }
        Turn::Busy
    }

    /// Sends what was taken from the TUN: others take over its queue.
    fn drain(&mut self, table: &ForwardingTable) {
        let began = Instant::now();
        while began.elapsed() < DRAIN && self.has_unsent() {
            match self.backlog {
                None => self.send_some(table),
                Some(backlog) => {
                    self.go_on(backlog);
                    if self.backlog.is_some() {
                        std::thread::sleep(DRAIN / 20);
                    }
                }
            }
        }
    }

    fn send_some(&mut self, table: &ForwardingTable) {
        for which in [Which::Little, Which::Much] {
            let (queued, sealed) = (&mut self.queued, &mut self.sealed);
            let some = queued.take(which, |packets| seal_batch(table, packets, sealed));
            if !some {
                continue;
            }
            self.send_sealed(table);
            if self.backlog.is_some() {
                break;
            }
        }
    }

    fn send_sealed(&mut self, table: &ForwardingTable) {
        report(&self.shared, table, &mut self.sealed.items);
        self.load
            .note(self.sealed.runs().map(|run| run.bytes.len()).sum());
        self.send(Blocked::default());
    }

    /// Takes what waits in the TUN; whether there may be more than there was room for.
    fn fill(&mut self) -> bool {
        let Some(queue) = &self.queue else {
            return false;
        };
        self.queued.fill(queue).unwrap_or_else(|error| {
            self.cannot_read(error);
            false
        })
    }

    fn cannot_read(&mut self, error: TunIoError) {
        match error {
            TunIoError::DeviceLost => self.lose_device(),
            error => tracing::debug!(reason = %error, "can't read from the TUN"),
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

    fn go_on(&mut self, backlog: Backlog) {
        self.send(backlog.stop.at);
        let Some(still) = self.backlog else {
            return;
        };
        if still.since.elapsed() < BACKLOG_AGE {
            return;
        }
        let Blocked { run, bytes } = still.stop.at;
        let mut left = self.sealed.runs().skip(run);
        let begun = left.next().map_or(0, |run| {
            let rest = run.bytes.len().saturating_sub(bytes);
            rest.div_ceil(run.segment.max(1))
        });
        let would_block = begun + left.map(|run| run.datagrams().count()).sum::<usize>();
        self.shared.counters.add_sent(&SendCounts {
            would_block,
            ..SendCounts::default()
        });
        self.backlog = None;
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
        let written = match merged {
            None => parts.take(1).try_for_each(|packet| {
                let packet = [IoSlice::new(packet)];
                queue.write_gathered(VnetHeader::default(), &packet, counts)
            }),
            Some(merged) => {
                let mut gathered = [IoSlice::new(&[]); MAX_PARTS];
                let mut count = 0;
                for (slot, part) in gathered.iter_mut().zip(parts) {
                    *slot = IoSlice::new(part);
                    count += 1;
                }
                let parts = gathered.get(..count).unwrap_or_default();
                queue.write_gathered(virtio::header(merged), parts, counts)
            }
        };
        match written {
            Err(TunIoError::DeviceLost) => return Err(TunIoError::DeviceLost),
            Err(error) => outcome = Err(error),
            Ok(()) => {}
        }
    }
    outcome
}

/// Gives items to the slow half, and counts those for which its queue has no room.
fn report(shared: &Shared, table: &ForwardingTable, items: &mut Vec<SlowItem>) {
    for item in items.drain(..) {
        if let (SlowItem::Wanted { peer, packet }, Some(regent)) = (&item, &shared.regent)
            && let Some((_, link)) = table.by_index(*peer)
            && link.resumes.load(Ordering::Relaxed)
            && regent.seal(packet)
        {
            continue;
        }
        if !shared.items.push(item) {
            table.drops().count(DropReason::SlowHalfBusy);
        }
    }
}
