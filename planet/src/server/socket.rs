//! One UDP socket for two protocols: QUIC, and the frames of nodes' data sockets.
//!
//! Datagrams are told apart by their first byte. Frames go through the relay's rules right here, where
//! they are received, and never reach QUIC; everything else is QUIC's. Both share the socket's batches:
//! a buffer may hold several datagrams of one sender, so each is judged by itself.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use podmesh_proto::datagram::{OBSERVE, OBSERVED, RELAY_UP};
use podmesh_proto::relayed::OVERHEAD;
use podmesh_proto::time::Moment;
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use tokio::io::Interest;
use tokio::time::Instant;

use crate::rules::relaying::{Place, Relaying};

/// First byte from which on a datagram is QUIC's.
const QUIC: u8 = 0x40;
/// Bytes that the kernel may hold for us in each direction.
const BUFFER: usize = 4 * 1024 * 1024;

/// The planet's socket.
pub struct SharedSocket {
    io: tokio::net::UdpSocket,
    state: UdpSocketState,
    ipv6: bool,
    started: Instant,
    relay: Mutex<Relay>,
    counters: SocketCounters,
}

/// Bytes of a frame that fits every path of IPv6, and every one of IPv4 that matters, in one piece.
const UNCUT: usize = 1_232;
/// Bytes of a frame with the least inner packet that every path has to carry, in fragments if need be:
/// 1,280, and what the tunnel (32) and the relay add. Longer ones are sent after a probe has passed, and
/// probes must not be fragmented.
const LEAST: usize = 1_280 + 32 + OVERHEAD;

struct Relay {
    rules: Relaying,
    /// Reused for every frame.
    out: Vec<u8>,
}

/// Datagrams and bytes since the start.
#[derive(Debug, Default)]
pub struct SocketCounters {
    /// Bytes received.
    pub received_bytes: AtomicU64,
    /// Bytes sent.
    pub sent_bytes: AtomicU64,
    /// Datagrams that were neither QUIC nor a relay frame.
    pub unknown: AtomicU64,
    /// Relay frames that the kernel didn't take at that moment.
    pub unsent: AtomicU64,
}

impl SharedSocket {
    /// Takes a bound socket over. `started` is the zero of the moments that the rules are told.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn new(socket: UdpSocket, rules: Relaying, started: Instant) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let state = UdpSocketState::new((&socket).into())?;
        // As much as the system allows.
        let _ = state.set_recv_buffer_size((&socket).into(), BUFFER);
        let _ = state.set_send_buffer_size((&socket).into(), BUFFER);
        let ipv6 = socket.local_addr()?.is_ipv6();
        Ok(Self {
            io: tokio::net::UdpSocket::from_std(socket)?,
            state,
            ipv6,
            started,
            relay: Mutex::new(Relay {
                rules,
                out: Vec::with_capacity(2_048),
            }),
            counters: SocketCounters::default(),
        })
    }

    /// Changes or reads the relay's rules.
    pub fn relaying<T>(&self, work: impl FnOnce(&mut Relaying) -> T) -> T {
        work(&mut self.relay().rules)
    }

    /// What went through the socket.
    pub fn counters(&self) -> &SocketCounters {
        &self.counters
    }

    fn relay(&self) -> MutexGuard<'_, Relay> {
        self.relay.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes everything that isn't QUIC's out of a received buffer, and returns what is left of it.
    fn sift(&self, buffer: &mut [u8], meta: &RecvMeta) -> usize {
        let Some(received) = buffer.get_mut(..meta.len) else {
            return 0;
        };
        let stride = meta.stride.max(1);
        let foreign = |datagram: &[u8]| datagram.first().is_none_or(|byte| *byte < QUIC);
        if !received.chunks(stride).any(foreign) {
            return meta.len;
        }
        let mut kept = 0;
        let mut start = 0;
        while start < meta.len {
            let end = meta.len.min(start.saturating_add(stride));
            let Some(datagram) = received.get(start..end) else {
                break;
            };
            if foreign(datagram) {
                self.frame(datagram, meta);
            } else {
                // Those that stay keep their stride: only the last of a buffer may be shorter.
                received.copy_within(start..end, kept);
                kept += end - start;
            }
            start = end;
        }
        kept
    }

    fn frame(&self, datagram: &[u8], meta: &RecvMeta) {
        let Some(RELAY_UP..=OBSERVED) = datagram.first() else {
            self.counters.unknown.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let now = Moment::from_start(self.started.elapsed());
        let from = Place {
            endpoint: meta.addr,
            local: meta.dst_ip,
        };
        let mut relay = self.relay();
        let Relay { rules, out } = &mut *relay;
        out.clear();
        if let Some(to) = rules.handle(datagram, from, now, out) {
            let may_be_cut = UNCUT < out.len() && out.len() <= LEAST;
            let send = || self.send_frame(out, to, meta.ecn);
            if may_be_cut {
                self.fragmenting(send);
            } else {
                send();
            }
        }
        if let Some((to, question)) = rules.take_question() {
            self.send_frame(&question, to, None);
        }
    }

    /// Lets the network fragment what `send` sends. There is no such flag for a single datagram, so
    /// whatever else goes out in that moment is treated alike.
    fn fragmenting(&self, send: impl FnOnce()) {
        let set = |v4, v6| {
            let v4 = sockopt::set_ip_mtu_discover(&self.io, v4);
            if self.ipv6 {
                return v4.and(sockopt::set_ipv6_mtu_discover(&self.io, v6));
            }
            v4
        };
        // Where the kernel refuses, it is as if the path were too narrow.
        let _ = set(Ipv4PathMtuDiscovery::OMIT, Ipv6PathMtuDiscovery::OMIT);
        send();
        let _ = set(Ipv4PathMtuDiscovery::PROBE, Ipv6PathMtuDiscovery::PROBE);
    }

    /// The congestion mark is carried on, as by a router.
    fn send_frame(&self, frame: &[u8], to: Place, ecn: Option<EcnCodepoint>) {
        let transmit = Transmit {
            destination: self.reachable(to.endpoint),
            ecn,
            contents: frame,
            segment_size: None,
            src_ip: to.local,
        };
        if self.try_send(&transmit).is_err() {
            self.counters.unsent.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// An IPv6 socket reaches IPv4 by mapped addresses.
    fn reachable(&self, endpoint: SocketAddr) -> SocketAddr {
        match endpoint.ip() {
            IpAddr::V4(address) if self.ipv6 => {
                SocketAddr::new(address.to_ipv6_mapped().into(), endpoint.port())
            }
            _ => endpoint,
        }
    }
}

impl AsyncUdpSocket for SharedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable {
            socket: self,
            waiting: Mutex::new(None),
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.io.try_io(Interest::WRITABLE, || {
            self.state.try_send((&self.io).into(), transmit)
        })?;
        let bytes = u64::try_from(transmit.contents.len()).unwrap_or(u64::MAX);
        self.counters.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.io.poll_recv_ready(cx))?;
            let received = self.io.try_io(Interest::READABLE, || {
                self.state.recv((&self.io).into(), bufs, meta)
            });
            let Ok(count) = received else {
                continue;
            };
            for (buffer, meta) in bufs.iter_mut().zip(meta.iter_mut()).take(count) {
                let bytes = u64::try_from(meta.len).unwrap_or(u64::MAX);
                self.counters
                    .received_bytes
                    .fetch_add(bytes, Ordering::Relaxed);
                // QUIC passes over a buffer of no bytes.
                meta.len = self.sift(buffer, meta);
            }
            return Poll::Ready(Ok(count));
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

impl fmt::Debug for SharedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedSocket({:?})", self.io.local_addr())
    }
}

type Waiting = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// One task's wait for room in the socket.
struct Writable {
    socket: Arc<SharedSocket>,
    waiting: Mutex<Option<Waiting>>,
}

impl UdpPoller for Writable {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let waiting = this
            .waiting
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        let future = waiting.get_or_insert_with(|| {
            let socket = Arc::clone(&this.socket);
            Box::pin(async move { socket.io.writable().await })
        });
        let result = ready!(future.as_mut().poll(cx));
        *waiting = None;
        Poll::Ready(result)
    }
}

impl fmt::Debug for Writable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Writable")
    }
}

// The first byte alone decides, so QUIC's range and ours must not meet.
const _: () = assert!(OBSERVE < QUIC && OBSERVED < QUIC && RELAY_UP <= OBSERVE);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::relaying::RelayQuota;

    #[tokio::test]
    async fn a_mixed_batch_is_sifted_datagram_by_datagram() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let rules = Relaying::new(RelayQuota::default(), [7; 32]);
        let shared = SharedSocket::new(socket, rules, Instant::now()).unwrap();
        let datagram = |first: u8, length: usize| {
            let mut datagram = vec![0x11; length];
            datagram[0] = first;
            datagram
        };
        let (quic, relay, unknown) = (
            datagram(0xc3, 100),
            datagram(RELAY_UP, 100),
            datagram(9, 100),
        );
        let (short_quic, short_relay) = (datagram(0x41, 40), datagram(OBSERVE, 40));
        for (batch, expected) in [
            (
                vec![&quic, &quic, &short_quic],
                vec![&quic, &quic, &short_quic],
            ),
            (
                vec![&quic, &relay, &quic, &short_quic],
                vec![&quic, &quic, &short_quic],
            ),
            (vec![&relay, &unknown, &quic, &short_relay], vec![&quic]),
            (vec![&relay, &unknown, &short_relay], vec![]),
            (vec![&short_quic], vec![&short_quic]),
        ] {
            let mut buffer: Vec<u8> = batch.iter().copied().flatten().copied().collect();
            let meta = RecvMeta {
                len: buffer.len(),
                stride: batch[0].len(),
                ..RecvMeta::default()
            };
            buffer.resize(1_000, 0xff);
            let kept = shared.sift(&mut buffer, &meta);
            let expected: Vec<u8> = expected.into_iter().flatten().copied().collect();
            assert_eq!(buffer[..kept], expected);
        }
        assert_eq!(shared.counters().unknown.load(Ordering::Relaxed), 2);
        let unproven = shared.relaying(|rules| rules.counters().dropped_unproven);
        assert_eq!(unproven, 5);
    }
}
