//! One UDP port for QUIC and for the relay.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use podmesh_proto::datagram::DatagramKind;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;

use super::relay::Relay;

/// The port.
#[derive(Debug)]
pub(super) struct Shared {
    socket: UdpSocket,
    relay: Arc<Relay>,
}

impl Shared {
    /// Takes QUIC from `socket` and gives the rest to `relay`.
    pub(super) fn new(socket: UdpSocket, relay: Arc<Relay>) -> Self {
        Self { socket, relay }
    }
}

impl AsyncUdpSocket for Shared {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller(self))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket
            .try_send_to(transmit.contents, transmit.destination)
            .map(drop)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let (Some(buffer), Some(meta)) = (bufs.first_mut(), meta.first_mut()) else {
            return Poll::Ready(Ok(0));
        };
        loop {
            let mut read = ReadBuf::new(buffer);
            let from: SocketAddr = ready!(self.socket.poll_recv_from(cx, &mut read))?;
            let datagram = read.filled();
            match DatagramKind::of(datagram) {
                DatagramKind::Quic => {
                    let length = datagram.len();
                    *meta = RecvMeta {
                        addr: from,
                        len: length,
                        stride: length,
                        ..RecvMeta::default()
                    };
                    return Poll::Ready(Ok(1));
                }
                DatagramKind::Relay => {
                    if let Some((to, frame)) = self.relay.answer(datagram, from) {
                        // A full socket loses it, as any network may.
                        let _ = self.socket.try_send_to(&frame, to);
                    }
                }
                _ => {}
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

struct Poller(Arc<Shared>);

impl UdpPoller for Poller {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.socket.poll_send_ready(cx)
    }
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Poller")
    }
}
