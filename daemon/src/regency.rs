//! The meshd that was replaced serves its tunnels for a moment longer.
//!
//! Tunnels can't be handed over: their keys never leave the process that made them. So, until the peers
//! have made sessions with the new meshd, what comes in for the old sessions is passed to the old one,
//! which opens it; and what has no session yet in the new one is sealed there and sent. Nobody but the
//! two of them notices.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use podmesh_engine::forwarding::ForwardingTable;
use podmesh_engine::inbound::{Arrived, InboundBatch, open_batch};
use podmesh_engine::outbound::{OutboundBatch, seal_batch};
use podmesh_engine::path_id::SocketId;
use podmesh_kernel::messages::MessageSocket;
use podmesh_kernel::tun::{TunQueue, WriteCounts};
use podmesh_kernel::udp::Blocked;

use crate::shard::{runs_for, write_runs};
use crate::sockets::Sockets;

/// How long the old tunnels are served: peers far away have new ones after a few round trips.
const REIGN: Duration = Duration::from_secs(2);
/// First byte of a message.
const OPEN: u8 = 0;
const SEAL: u8 = 1;
const LONGEST: usize = 65_536;
const NOBODY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// The meshd before this one, as long as it serves.
pub(crate) struct Regent {
    socket: MessageSocket,
    until: Instant,
    gone: AtomicBool,
}

impl Regent {
    /// At the other end of this descriptor.
    pub(crate) fn new(descriptor: OwnedFd) -> Self {
        Self {
            socket: descriptor.into(),
            until: Instant::now() + REIGN,
            gone: AtomicBool::new(false),
        }
    }

    /// Passes a message of a tunnel that this meshd doesn't know; false if there is nobody.
    pub(crate) fn open(&self, message: &[u8]) -> bool {
        self.pass(OPEN, message)
    }

    /// Passes an inner packet for which there is no session yet; false if there is nobody.
    pub(crate) fn seal(&self, packet: &[u8]) -> bool {
        self.pass(SEAL, packet)
    }

    fn pass(&self, verb: u8, bytes: &[u8]) -> bool {
        if self.gone.load(Ordering::Relaxed) {
            return false;
        }
        let message = [&[verb], bytes].concat();
        match self.socket.send(&message) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Instant::now() < self.until,
            Err(_) => {
                self.gone.store(true, Ordering::Relaxed);
                false
            }
        }
    }
}

/// The end of the new meshd that this one keeps.
pub(crate) struct Successor(MessageSocket);

impl Successor {
    /// This meshd's end, and the one to be handed over.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn pair() -> io::Result<(Self, MessageSocket)> {
        let (mine, theirs) = MessageSocket::pair()?;
        Ok((Self(mine), theirs))
    }

    /// Serves the tunnels of `table` until the new meshd has its own.
    pub(crate) fn serve(&self, table: &ForwardingTable, queue: &TunQueue, sockets: &Sockets) {
        let mut opened = InboundBatch::merging(runs_for(queue));
        let mut sealed = OutboundBatch::default();
        let mut buffer = vec![0; LONGEST];
        let end = Instant::now() + REIGN;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let length = match self.0.receive(&mut buffer, left) {
                Ok(0) | Err(_) => return,
                Ok(length) => length,
            };
            let Some((verb, bytes)) = buffer
                .get_mut(..length)
                .and_then(|all| all.split_first_mut())
            else {
                return;
            };
            if *verb == OPEN {
                let arrived = Arrived {
                    socket: SocketId::MAIN,
                    from: NOBODY,
                    segment: bytes.len(),
                    bytes,
                    ecn: 0,
                };
                open_batch(table, &[arrived], &mut opened);
                // A device that is gone is the new meshd's to notice.
                let _ = write_runs(queue, &opened, &mut WriteCounts::default());
            } else {
                seal_batch(table, &mut [bytes.into()], &mut sealed);
                // The planet sends to whichever life of a node it has heard of last.
                let relays = table.relays();
                let direct = sealed
                    .runs()
                    .filter(|run| relays.iter().all(|leg| leg.endpoint != run.to));
                sockets.send(0, direct, Blocked::default());
            }
        }
    }
}

/// The name under which the descriptor is handed over.
pub(crate) const NAME: &str = "regent";

/// What is handed over.
pub(crate) fn named(theirs: &MessageSocket) -> (String, BorrowedFd<'_>) {
    (NAME.to_owned(), theirs.as_fd())
}
