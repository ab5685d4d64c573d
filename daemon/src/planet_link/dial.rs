//! From a planet's `host:port` to a connection: names, addresses, sockets.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use podmesh_kernel::udp::{Options, UdpSocket};
use podmesh_proto::candidate::canonical;
use podmesh_proto::id::Name;
use podmesh_proto::network::PlanetEntry;
use quinn::{ConnectError, Connection, ConnectionError, Endpoint, EndpointConfig, TokioRuntime};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::last_good::LastGood;
use super::tls::Pinned;

/// For a planet's name to become addresses, as long as none are known.
const FIRST_LOOKUP: Duration = Duration::from_secs(5);
/// The same when the last good addresses can be tried instead.
const LOOKUP: Duration = Duration::from_secs(1);
/// For all addresses together to give a connection.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(10);
/// Between the starts of two addresses (RFC 8305 §5).
const STAGGER: Duration = Duration::from_millis(250);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 6;
/// Bytes. Control messages are few and small.
const SOCKET_BUFFER: usize = 256 << 10;
/// The name in the handshake; planets don't look at it.
const SERVER_NAME: &str = "planet";

/// A connection and the socket it lives on.
pub(super) struct Dialed {
    /// The connection.
    pub(super) connection: Connection,
    /// Its socket's owner; the connection dies with it.
    pub(super) endpoint: Endpoint,
}

/// Connects to one planet, again and again.
pub(super) struct Dialer {
    entry: PlanetEntry,
    /// The addresses that its name had last, maybe in a former life of the node.
    known: Vec<SocketAddr>,
    last_good: LastGood,
    /// Of its sockets.
    mark: u32,
    /// A question to the resolver that has no answer yet: there is never more than one.
    lookup: Option<JoinHandle<io::Result<Vec<SocketAddr>>>>,
}

impl Dialer {
    pub(super) fn new(entry: &PlanetEntry, last_good: LastGood, mark: u32) -> Self {
        Self {
            entry: entry.clone(),
            known: last_good.of(entry),
            last_good,
            mark,
            lookup: None,
        }
    }

    /// The planet's name.
    pub(super) fn name(&self) -> &Name {
        &self.entry.name
    }

    /// Tries all addresses of the planet; the first that proves the planet's key wins. Each try has
    /// a socket and so a port of its own: a router that has lost a mapping makes a new one.
    ///
    /// # Errors
    /// One sentence.
    pub(super) async fn dial(&mut self) -> Result<Dialed, String> {
        let address = self.entry.address.clone();
        let addresses = self.resolve().await?;
        let pinned = Arc::new(Pinned::new(self.entry.id)?);
        let mut tries = JoinSet::new();
        for (position, remote) in (0_u32..).zip(addresses) {
            let (pinned, mark) = (Arc::clone(&pinned), self.mark);
            tries.spawn(async move {
                sleep(STAGGER * position).await;
                connect(remote, &pinned, mark).await
            });
        }
        let mut reason = format!("no answer from {address}");
        let first = timeout(HANDSHAKE, async {
            while let Some(outcome) = tries.join_next().await {
                match outcome {
                    Ok(Ok(dialed)) => return Some(dialed),
                    Ok(Err(error)) => reason = format!("{address}: {error}"),
                    Err(_) => {}
                }
            }
            None
        });
        match first.await {
            Ok(Some(dialed)) => {
                self.remember(dialed.connection.remote_address());
                Ok(dialed)
            }
            _ if pinned.met_another_key() => Err(format!(
                "whoever answers at {address} has another key than the network says; check the address, or have the root sign the new planet"
            )),
            _ => Err(reason),
        }
    }

    /// The planet has proven its key at this one of the addresses.
    fn remember(&mut self, good: SocketAddr) {
        let good = canonical(good);
        let others = self.known.iter().copied();
        let mut endpoints: Vec<SocketAddr> = others.filter(|other| *other != good).collect();
        // An address that is no name needs no memory.
        if endpoints.len() < self.known.len() {
            endpoints.insert(0, good);
            self.last_good.note(&self.entry, endpoints);
        }
    }

    async fn resolve(&mut self) -> Result<Vec<SocketAddr>, String> {
        let address = self.entry.address.clone();
        if let Ok(endpoint) = address.parse() {
            return Ok(vec![endpoint]);
        }
        // No resolver has an answer for a slip of the finger.
        if !PlanetEntry::is_address(&address) {
            return Err(format!(
                "{address} is neither an address nor a name; name the right one with `meshctl network add-planet \
                 NAME=KEY@HOST:PORT --replaces {}`",
                self.entry.name
            ));
        }
        let patience = if self.known.is_empty() {
            FIRST_LOOKUP
        } else {
            LOOKUP
        };
        let lookup = self.lookup.get_or_insert_with(|| {
            let address = address.clone();
            tokio::spawn(async move {
                Ok(tokio::net::lookup_host(address)
                    .await?
                    .take(MAX_ADDRESSES)
                    .collect())
            })
        });
        let reason = match timeout(patience, lookup).await {
            Err(_) => "the resolver does not answer".to_owned(),
            Ok(outcome) => {
                self.lookup = None;
                match outcome.unwrap_or_else(|error| Err(io::Error::other(error))) {
                    Ok(found) if !found.is_empty() => {
                        self.known = found;
                        return Ok(self.known.clone());
                    }
                    Ok(_) => "the name has no address".to_owned(),
                    Err(error) => error.to_string(),
                }
            }
        };
        if self.known.is_empty() {
            Err(format!("can't resolve {address}: {reason}"))
        } else {
            Ok(self.known.clone())
        }
    }
}

async fn connect(remote: SocketAddr, pinned: &Pinned, mark: u32) -> Result<Dialed, DialError> {
    let remote = canonical(remote);
    let options = Options {
        mark: Some(mark),
        receive_buffer: SOCKET_BUFFER,
        send_buffer: SOCKET_BUFFER,
        // QUIC answers strangers with resets, by which a scanner would find the node.
        only_from: Some(remote),
        ..Options::default()
    };
    let socket = UdpSocket::bind_any(remote.ip(), 0, &options)?.into_std();
    let mut config = EndpointConfig::default();
    // Planets tell QUIC from other datagrams by this bit.
    config.grease_quic_bit(false);
    let endpoint = Endpoint::new(config, None, socket, Arc::new(TokioRuntime))?;
    let connecting = endpoint.connect_with(pinned.config.clone(), remote, SERVER_NAME)?;
    let connection = connecting.await?;
    Ok(Dialed {
        connection,
        endpoint,
    })
}

#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error(transparent)]
    Bind(#[from] podmesh_kernel::udp::BindError),
    #[error("can't start QUIC: {0}")]
    Endpoint(#[from] io::Error),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
}
