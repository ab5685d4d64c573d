//! The planet on the wire: one UDP port, one task that thinks, two loops per connection.

pub mod clock;
pub mod connection;
pub mod doorway;
pub mod keeping;
pub mod mind;
pub mod socket;
pub mod tls;

mod writing;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use podmesh_proto::key::SigningKey;
use quinn::{Endpoint, Incoming, TokioRuntime, VarInt};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::identity;
use crate::rules::relaying::{RelayQuota, Relaying};
use crate::rules::{ConnectionId, Planet};
use crate::server::clock::Clock;
use crate::server::doorway::Doorway;
use crate::server::mind::{BackupStore, Message, Mind};
use crate::server::socket::SharedSocket;

/// Inputs that may wait for the mind; who reads from a connection waits when they are so many.
const INPUTS: usize = 1_024;
/// For everybody to hear that the planet is going.
const GOODBYE: Duration = Duration::from_secs(2);

/// Numbers that the operator can change.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time that have spoken, members' or not.
    pub connections: usize,
    /// What each node may have relayed.
    pub relay: RelayQuota,
}

/// A planet that is serving.
pub struct Server {
    endpoint: Endpoint,
    socket: Arc<SharedSocket>,
    mind: mpsc::Sender<Message>,
    thinking: JoinHandle<()>,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Serves on a bound socket. Has to be called on a runtime with more than one thread.
    ///
    /// # Errors
    /// The system refuses something.
    pub fn start(
        socket: UdpSocket,
        key: &SigningKey,
        (planet, store): (Planet, Box<dyn BackupStore>),
        limits: Limits,
        clock: Clock,
    ) -> io::Result<Self> {
        let secret = identity::random().map_err(|error| io::Error::other(error.to_string()))?;
        let relaying = Relaying::new(limits.relay, secret);
        let socket = Arc::new(SharedSocket::new(socket, relaying, clock.started())?);
        let config = tls::server_config(key).map_err(io::Error::other)?;
        let endpoint = Endpoint::new_with_abstract_socket(
            tls::endpoint_config(key),
            Some(config),
            Arc::clone(&socket) as Arc<dyn quinn::AsyncUdpSocket>,
            Arc::new(TokioRuntime),
        )?;
        let (mind, messages) = mpsc::channel(INPUTS);
        let thinking = Mind::new(planet, store, Arc::clone(&socket), clock).run(messages);
        let accepting = accept(endpoint.clone(), mind.clone(), limits.connections);
        Ok(Self {
            endpoint,
            socket,
            mind,
            thinking: tokio::spawn(thinking),
            accepting: tokio::spawn(accepting),
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system doesn't say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// The socket, for its counters.
    #[must_use]
    pub fn socket(&self) -> &SharedSocket {
        &self.socket
    }

    /// The way to the mind.
    #[must_use]
    pub fn mind(&self) -> mpsc::Sender<Message> {
        self.mind.clone()
    }

    /// Ends when the mind does, which it never should by itself.
    pub async fn ended(&mut self) {
        let _ = (&mut self.thinking).await;
    }

    /// Says goodbye to everybody and stops, within five seconds.
    pub async fn stop(self) {
        self.accepting.abort();
        let (done, drained) = oneshot::channel();
        if self.mind.send(Message::Drain(done)).await.is_ok() {
            let _ = timeout(GOODBYE, drained).await;
        }
        let _ = timeout(GOODBYE, self.endpoint.wait_idle()).await;
        self.endpoint.close(VarInt::from_u32(0), b"draining");
        let _ = timeout(Duration::from_millis(500), self.endpoint.wait_idle()).await;
    }
}

/// Binds the planet's port. `[::]` means every IPv6 and IPv4 address, whatever the system's default is,
/// and every IPv4 address where there is no IPv6.
///
/// # Errors
/// The port can't be had.
pub fn bind(listen: SocketAddr) -> io::Result<UdpSocket> {
    let SocketAddr::V6(every) = listen else {
        return UdpSocket::bind(listen);
    };
    if !every.ip().is_unspecified() {
        return UdpSocket::bind(listen);
    }
    match bind_both(every) {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, listen.port())).map_err(|_| error)
        }
        bound => bound,
    }
}

fn bind_both(every: SocketAddrV6) -> io::Result<UdpSocket> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
    let (family, kind) = (AddressFamily::INET6, SocketType::DGRAM);
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    sockopt::set_ipv6_v6only(&socket, false)?;
    rustix::net::bind(&socket, &every)?;
    Ok(UdpSocket::from(socket))
}

async fn accept(endpoint: Endpoint, mind: mpsc::Sender<Message>, connections: usize) {
    let places = Arc::new(Semaphore::new(connections));
    let doorway = Doorway::default();
    let mut next = 0;
    while let Some(incoming) = endpoint.accept().await {
        let Some(incoming) = proven(incoming) else {
            continue;
        };
        let passage = doorway.enter(incoming.remote_address().ip(), Instant::now());
        let Some(passage) = passage.filter(|_| places.available_permits() > 0) else {
            incoming.refuse();
            continue;
        };
        next += 1;
        let entry = (passage, Arc::clone(&places));
        let serve = connection::serve(incoming, ConnectionId(next), mind.clone(), entry);
        tokio::spawn(serve);
    }
}

/// Whoever hasn't shown that it receives at its address is asked to, by a packet that is smaller than
/// its own.
fn proven(incoming: Incoming) -> Option<Incoming> {
    if incoming.remote_address_validated() {
        return Some(incoming);
    }
    // Can only fail for an address that was validated.
    let _ = incoming.retry();
    None
}
