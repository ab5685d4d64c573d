//! Names of sockets and paths.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use podmesh_proto::id::PlanetId;

/// One of the node's UDP ports; each is open for IPv4 and IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SocketId(pub u8);

impl SocketId {
    /// The node's main port, kept over restarts.
    pub const MAIN: Self = Self(0);
    /// The spare port: a fresh mapping on the node's NAT, for second rounds of hole punching.
    pub const SPARE: Self = Self(1);
    /// Every socket of a node.
    pub const ALL: [Self; 2] = [Self::MAIN, Self::SPARE];
}

/// One way to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PathId {
    /// Straight to an endpoint of the peer, from one of this node's sockets.
    Direct {
        /// From here.
        socket: SocketId,
        /// To there, in canonical form.
        endpoint: SocketAddr,
    },
    /// By way of a planet.
    Relay {
        /// The planet.
        planet: PlanetId,
    },
}

impl PathId {
    /// Which of this node's ports it leaves from, in one word.
    #[must_use]
    pub fn port_word(&self) -> &'static str {
        match self {
            Self::Direct {
                socket: SocketId::SPARE,
                ..
            } => "spare",
            _ => "main",
        }
    }

    /// Whether no relay is in between.
    #[must_use]
    pub const fn is_direct(&self) -> bool {
        matches!(self, Self::Direct { .. })
    }
}

impl fmt::Display for PathId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct {
                socket: SocketId(0),
                endpoint,
            } => write!(f, "direct {endpoint}"),
            Self::Direct { endpoint, .. } => write!(f, "direct {endpoint} from the spare port"),
            Self::Relay { planet } => write!(f, "relay {}", planet.short()),
        }
    }
}
