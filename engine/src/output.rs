//! What goes into the slow half and what comes out of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use podmesh_proto::id::{PlanetId, RelayAddress};
use podmesh_proto::local_api::PingView;
use podmesh_proto::network::PlanetEntry;
use podmesh_proto::planet_api::{NodeMessage, PlanetMessage};
use podmesh_proto::time::Moment;

use crate::error::{JoinError, PingError};
use crate::forwarding::{ForwardingTable, PeerIndex};
use crate::host_plan::HostPlan;
use crate::path_id::{PathId, SocketId};
use crate::reach::Passage;
use crate::stored::StoredState;

/// What the shell has to do.
#[derive(Debug)]
pub enum Output {
    /// Send a datagram.
    Transmit(Transmit),
    /// Send a message on the control connection to a planet. Dropped if it isn't connected.
    Planet {
        /// To this planet.
        planet: PlanetId,
        /// The message.
        message: Box<NodeMessage>,
    },
    /// The planets to stay connected to, from now on.
    Planets(Vec<PlanetEntry>),
    /// Close the connection to this planet, which has gone silent, and connect anew.
    Reconnect(PlanetId),
    /// The table of the fast half, from now on.
    Forwarding(Arc<ForwardingTable>),
    /// What the host should hold, from now on.
    HostPlan(Box<HostPlan>),
    /// Write this to disk. Planets hear what the engine says next only when that is done, or has failed;
    /// [`crate::engine::Engine::handle_persisted`] tells the engine.
    Persist(Box<StoredState>),
    /// Write an inner packet to the TUN.
    PodPacket(Vec<u8>),
    /// A join has ended, one way or the other.
    JoinDone(Result<(), JoinError>),
    /// A ping has ended.
    PingDone {
        /// As given to `start_ping`.
        id: u64,
        /// The answer.
        result: Result<PingView, PingError>,
    },
}

/// A datagram to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// From this socket.
    pub socket: SocketId,
    /// To this endpoint.
    pub to: SocketAddr,
    /// How.
    pub passage: Passage,
    /// The datagram.
    pub bytes: Vec<u8>,
}

/// A datagram as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// On this socket.
    pub socket: SocketId,
    /// From here, in canonical form.
    pub from: SocketAddr,
    /// The relay that the datagram came out of; `from` is the relay's endpoint then.
    pub relay: Option<RelayOrigin>,
    /// The datagram, without the relay's frame.
    pub bytes: Vec<u8>,
}

/// Who sent a relayed datagram, by the relay's sealed word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayOrigin {
    /// The relay.
    pub planet: PlanetId,
    /// The sender.
    pub sender: RelayAddress,
}

impl Received {
    /// The path it came by.
    #[must_use]
    pub fn path(&self) -> PathId {
        self.relay.map_or(
            PathId::Direct {
                socket: self.socket,
                endpoint: self.from,
            },
            |origin| PathId::Relay {
                planet: origin.planet,
            },
        )
    }
}

/// What the fast half hands to the slow half, over a bounded queue that may drop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlowItem {
    /// A probe, a handshake, a cookie, an answer of a planet.
    Datagram(Received),
    /// A control packet that came through a tunnel.
    Control {
        /// Whose tunnel.
        peer: PeerIndex,
        /// The path that it came by.
        path: PathId,
        /// The inner packet.
        packet: Vec<u8>,
    },
    /// A packet for a peer to which there is no path yet.
    Wanted {
        /// The peer.
        peer: PeerIndex,
        /// The inner packet.
        packet: Vec<u8>,
    },
    /// The tunnel has a session now; packets that waited for it can go.
    Session {
        /// The peer.
        peer: PeerIndex,
    },
    /// The peer has answered from the other end of a path, over which a handshake went there.
    Reached {
        /// The peer.
        peer: PeerIndex,
        /// The path.
        path: PathId,
        /// When the handshake went there.
        since: Moment,
    },
    /// Data came by another path than the one in use: an external peer may have moved.
    Moved {
        /// The peer.
        peer: PeerIndex,
        /// The path.
        path: PathId,
    },
}

/// What happens on the control connection to a planet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlanetEvent {
    /// Connected, with the planet's key proven; the shell has sent `Engine::hello`.
    Connected {
        /// The planet's endpoint, which is also where its relay listens.
        remote: SocketAddr,
        /// Round trip time of the connection.
        rtt: Duration,
    },
    /// A new measurement.
    Rtt(Duration),
    /// A message.
    Message(Box<PlanetMessage>),
    /// Gone, or not reached.
    Disconnected {
        /// One sentence.
        reason: String,
    },
}
