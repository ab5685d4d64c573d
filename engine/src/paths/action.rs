//! What the paths of a peer ask for.

use std::fmt;
use std::net::SocketAddr;

use podmesh_proto::id::NodeId;
use podmesh_proto::probe::ProbeBody;
use podmesh_proto::time::{Moment, UnixSeconds};

use super::budget::{Evidence, ProbeBudget};
use crate::path_id::{PathId, SocketId};
use crate::reach::Reach;

/// Something to be done for the paths to one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathAction {
    /// Seal this probe and send it.
    SendProbe {
        /// Over this path.
        path: PathId,
        /// Its words.
        body: ProbeBody,
        /// As an opener, which gets no farther than this.
        reach: Option<Reach>,
        /// What has shown that the peer is there: ask the [`ProbeBudget`](super::ProbeBudget), and drop
        /// the probe if that refuses.
        evidence: Evidence,
    },
    /// Send an echo, or the answer to one, through the tunnel.
    SendEcho {
        /// Over this path, whichever is in use.
        path: PathId,
        /// Tells the answer.
        id: u64,
        /// Whether this is an answer.
        reply: bool,
        /// Bytes of the inner packet, at least what an echo needs.
        length: u16,
        /// As with a probe.
        evidence: Evidence,
    },
    /// Ask through the tunnel whether an inner packet of this length arrives, in a datagram that may
    /// not be fragmented.
    SendSizeProbe {
        /// Over this path, which is in use.
        path: PathId,
        /// Tells the answer.
        id: u64,
        /// Bytes of the inner packet.
        length: u16,
    },
    /// Ask a planet in common to tell both ends when to punch. After the record that was given to
    /// `set_local` is published: the planet must know it first.
    Introduce {
        /// Number of the try.
        attempt: u32,
    },
    /// The peer answered a probe or an echo over this path, which is direct.
    Answered {
        /// The path.
        path: PathId,
    },
    /// Start a `WireGuard` handshake over this path, even if one is under way.
    Handshake {
        /// Over this path.
        path: PathId,
    },
    /// Data goes this way from now on.
    Select {
        /// The path; none means that no path works.
        path: Option<PathId>,
        /// Why.
        reason: SwitchReason,
    },
    /// The peer sees this node's socket there. Two answers that differ in their port show a NAT that
    /// gives every destination a port of its own.
    Observed {
        /// The socket.
        socket: SocketId,
        /// Where it is seen.
        endpoint: SocketAddr,
    },
}

impl PathAction {
    /// Whether the budget has room for what this sends on behalf of `member`; takes it, if so.
    pub fn is_granted(&self, member: NodeId, budget: &mut ProbeBudget, now: Moment) -> bool {
        let (path, evidence, length) = match self {
            Self::SendProbe {
                path: PathId::Direct { endpoint, .. },
                body: ProbeBody::Ping { .. },
                evidence,
                ..
            } => return budget.take(member, endpoint.ip(), *evidence, now),
            Self::SendProbe { path, evidence, .. } => (path, evidence, 0),
            Self::SendEcho {
                path,
                evidence,
                length,
                ..
            } => (path, evidence, *length),
            _ => return true,
        };
        match path {
            PathId::Direct { endpoint, .. } => {
                budget.take_answer(member.into(), (endpoint.ip(), length), *evidence, now)
            }
            // A relay sends to members alone.
            PathId::Relay { .. } => true,
        }
    }
}

/// Why another path carries the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwitchReason {
    /// There was none before.
    First,
    /// Shorter by kind: direct instead of relayed, or inside one local network.
    Closer,
    /// The same kind, with a clearly shorter round trip.
    Faster,
    /// The path before went silent.
    Silent,
    /// The path before is gone: its endpoint was withdrawn or its planet lost.
    Withdrawn,
    /// Nothing answers any more.
    Lost,
    /// The tunnel has no session any more.
    SessionEnded,
}

impl fmt::Display for SwitchReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First => "first path that proved itself",
            Self::Closer => "a shorter kind of path proved itself",
            Self::Faster => "a path with a shorter round trip proved itself",
            Self::Silent => "the path before stopped answering",
            Self::Withdrawn => "the path before is gone",
            Self::Lost => "no path answers",
            Self::SessionEnded => "the tunnel's session ended",
        })
    }
}

/// A change of the path that carries data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch {
    /// When.
    pub time: UnixSeconds,
    /// Path before.
    pub from: Option<PathId>,
    /// Path after.
    pub to: Option<PathId>,
    /// Why.
    pub reason: SwitchReason,
}
