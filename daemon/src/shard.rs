//! The fast half: plain threads that move packets and decide nothing.
//!
//! Each shard owns one queue of the TUN and its sockets on the node's port, and does everything for a
//! packet itself: receive a batch, open it, write to the TUN; read the TUN, seal, send. It looks things
//! up in the [`ForwardingTable`] that the slow half published last, and hands over what it can't do by a
//! bounded queues that drop and count when they are full. It never waits for the slow half, and sleeps
//! only when the network and the TUN were both empty.

mod counters;
mod lanes;
mod load;
mod queued;
mod vigil;
mod virtio;
mod worker;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use arc_swap::ArcSwap;
use podmesh_engine::forwarding::ForwardingTable;
use podmesh_kernel::tun::TunQueue;
use podmesh_kernel::wait::{Waiter, Waker};

pub(crate) use self::counters::Counters;
pub(crate) use self::lanes::{Lanes, Queues, lanes};
use self::worker::Worker;
pub(crate) use self::worker::{runs_for, write_runs};
use crate::regency::Regent;
use crate::sockets::Sockets;

/// Between two looks whether the threads have ended.
const LOOK: Duration = Duration::from_micros(50);

/// All shards.
pub(crate) struct Shards {
    shared: Arc<Shared>,
    shards: Vec<Shard>,
}

/// What all shards see.
pub(crate) struct Shared {
    /// The table in force.
    pub(crate) table: Arc<ArcSwap<ForwardingTable>>,
    /// The sockets.
    pub(crate) sockets: Arc<Sockets>,
    /// To the slow half.
    pub(crate) items: Lanes,
    /// What was lost between us and the kernel.
    pub(crate) counters: Counters,
    /// Bytes of the longest packet of the TUN.
    pub(crate) mtu: usize,
    /// The meshd before this one, while it serves its tunnels.
    pub(crate) regent: Option<Regent>,
    begun: AtomicBool,
    stop: AtomicBool,
}

struct Shard {
    seat: Arc<Seat>,
    waker: Waker,
    thread: JoinHandle<()>,
}

/// Where a shard finds its TUN queue.
struct Seat {
    /// Given by the slow half, taken by the shard.
    queue: Mutex<Option<Arc<TunQueue>>>,
    /// Whether the shard has found its queue dead.
    lost: AtomicBool,
}

impl Shared {
    /// What the shards of a node share. `mtu` is the TUN's; `regent`
    /// the meshd before this one, if it serves on.
    pub(crate) fn new(
        table: Arc<ForwardingTable>,
        sockets: Arc<Sockets>,
        items: Lanes,
        (mtu, regent): (usize, Option<Regent>),
    ) -> Self {
        Self {
            table: Arc::new(ArcSwap::new(table)),
            sockets,
            items,
            counters: Counters::default(),
            mtu,
            regent,
            begun: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        }
    }

    fn wait_for_begin(&self) {
        while !self.begun.load(Ordering::Acquire) {
            thread::park();
        }
    }
}

impl Shards {
    /// One thread per queue, which move nothing yet.
    ///
    /// # Errors
    /// The system has no thread or descriptor left.
    pub(crate) fn start(shared: Arc<Shared>, queues: &[Arc<TunQueue>]) -> io::Result<Self> {
        let mut shards = Vec::with_capacity(queues.len());
        for (number, queue) in queues.iter().enumerate() {
            let seat = Arc::new(Seat {
                queue: Mutex::new(Some(Arc::clone(queue))),
                lost: AtomicBool::new(false),
            });
            let waiter = Waiter::new()?;
            let waker = waiter.waker();
            let thread = thread::Builder::new()
                .name(format!("shard-{number}"))
                .spawn({
                    let (shared, seat) = (Arc::clone(&shared), Arc::clone(&seat));
                    move || {
                        shared.wait_for_begin();
                        Worker::new(number, shared, seat).run(waiter);
                    }
                })?;
            shards.push(Shard {
                seat,
                waker,
                thread,
            });
        }
        Ok(Self { shared, shards })
    }

    /// From now on packets move. What waits in the queues meets the table in force, so that has to be a
    /// good one by now.
    pub(crate) fn begin(&self) {
        self.shared.begun.store(true, Ordering::Release);
        for shard in &self.shards {
            shard.thread.thread().unpark();
        }
    }

    /// Puts a new table in force.
    pub(crate) fn publish(&self, table: Arc<ForwardingTable>) {
        self.shared.table.store(table);
    }

    /// What the shards share.
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Whether a shard has found that its TUN device is gone.
    pub(crate) fn lost_device(&self) -> bool {
        self.shards
            .iter()
            .any(|shard| shard.seat.lost.load(Ordering::Acquire))
    }

    /// Gives each shard a queue of a new device.
    pub(crate) fn replace_queues(&self, queues: &[Arc<TunQueue>]) {
        for (shard, queue) in self.shards.iter().zip(queues) {
            shard.seat.lost.store(false, Ordering::Release);
            shard.seat.give(Arc::clone(queue));
            shard.waker.wake();
        }
    }

    /// Ends all threads after the batch they are at.
    pub(crate) fn stop(self) {
        self.halt();
        for shard in self.shards {
            let _ = shard.thread.join();
        }
    }

    /// Waits until no thread moves packets any more.
    pub(crate) fn halt(&self) {
        self.shared.stop.store(true, Ordering::Release);
        self.begin();
        for shard in &self.shards {
            shard.waker.wake();
        }
        while self.shards.iter().any(|shard| !shard.thread.is_finished()) {
            thread::sleep(LOOK);
        }
    }
}

impl Seat {
    fn give(&self, queue: Arc<TunQueue>) {
        *self.queue.lock().unwrap_or_else(PoisonError::into_inner) = Some(queue);
    }

    fn take(&self) -> Option<Arc<TunQueue>> {
        self.queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}
