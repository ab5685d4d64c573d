//! The end of a life: for good, or in favour of another meshd.

use std::io;
use std::sync::Arc;

use podmesh_engine::forwarding::ForwardingTable;
use podmesh_kernel::descriptors::Descriptors;
use podmesh_kernel::tun::TunQueue;
use tokio::signal::unix::Signal;
use tokio::time::{sleep, timeout};

use super::{LAST_WORDS, LAST_WRITE, Node};
use crate::clock;
use crate::handover::{self, Heir};
use crate::regency::{self, Successor};
use crate::shard::Shards;
use crate::sockets::Sockets;
use crate::state::StateDir;

/// What moves packets while nobody decides any more.
struct FastHalf {
    shards: Shards,
    queues: Vec<Arc<TunQueue>>,
    table: Arc<ForwardingTable>,
    sockets: Arc<Sockets>,
    dir: StateDir,
    is_written: bool,
}

impl Node {
    /// Ends in order. Interface, addresses, routes, rules and the guard stay in place.
    pub(super) async fn stop(self) {
        let fast = self.end_slow_half().await;
        fast.shards.stop();
    }

    /// Gives everything away and ends; or gives it back, if the heir fails and nobody asks this meshd
    /// to end meanwhile.
    pub(super) async fn hand_over(
        self,
        mut heir: Heir,
        terminate: &mut Signal,
    ) -> Option<Descriptors> {
        let fast = self.end_slow_half().await;
        let done = tokio::select! {
            _ = terminate.recv() => Ok(()),
            outcome = fast.give(&mut heir) => outcome,
        };
        let Err(error) = done else {
            return None;
        };
        heir.turn_away().await;
        tracing::warn!(reason = %error, "the other meshd didn't take over; this one goes on");
        fast.take_back(terminate).await
    }

    /// Packets move to the last moment: what else there is to do comes first.
    async fn end_slow_half(mut self) -> FastHalf {
        self.engine.handle_stop(clock::now());
        self.do_outputs();
        let Self {
            links,
            shards,
            writer,
            doors,
            host,
            queues,
            dir,
            ..
        } = self;
        doors.close().await;
        drop(links);
        sleep(LAST_WORDS).await;
        let (done, written) = tokio::sync::oneshot::channel();
        // A disk or a kernel that hangs must not keep meshd from ending.
        std::thread::spawn(move || {
            host.end();
            writer.finish();
            let _ = done.send(());
        });
        let is_written = timeout(LAST_WRITE, written).await.is_ok();
        FastHalf {
            sockets: Arc::clone(&shards.shared().sockets),
            table: shards.shared().table.load_full(),
            shards,
            queues,
            dir,
            is_written,
        }
    }
}

impl FastHalf {
    /// Gives everything away, and serves the tunnels until the heir has its own.
    async fn give(&self, heir: &mut Heir) -> io::Result<()> {
        if !self.is_written {
            return Err(io::Error::other("the state is not on disk"));
        }
        let (successor, theirs) = Successor::pair()?;
        self.dir.unlock()?;
        let mut all = handover::inventory(&self.queues, &self.sockets);
        all.push(regency::named(&theirs));
        heir.bequeath(&all)?;
        drop(all);
        drop(theirs);
        if !heir.is_ready().await {
            return Err(io::Error::other("it failed while it started"));
        }
        self.shards.halt();
        heir.let_go().await?;
        if let Some(queue) = self.queues.first() {
            successor.serve(&self.table, queue, &self.sockets);
        }
        Ok(())
    }

    /// Waits until the state is free again; packets move meanwhile.
    async fn take_back(self, terminate: &mut Signal) -> Option<Descriptors> {
        while self.dir.lock().is_err() {
            tokio::select! {
                _ = terminate.recv() => return None,
                () = sleep(LAST_WORDS) => {}
            }
        }
        let kept = handover::keep(&handover::inventory(&self.queues, &self.sockets));
        self.shards.stop();
        kept.inspect_err(|error| tracing::error!(reason = %error, "the sockets are lost"))
            .ok()
    }
}
