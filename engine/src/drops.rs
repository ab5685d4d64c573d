//! Why packets and datagrams are dropped, and how many.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $words:literal,)*) => {
        /// Why a packet or datagram went no further.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum DropReason {
            $($(#[$doc])* $name,)*
        }

        impl DropReason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// In words.
            #[must_use]
            pub const fn words(self) -> &'static str {
                match self {
                    $(Self::$name => $words,)*
                }
            }
        }
    };
}

reasons! {
    /// Outbound: not an IP packet, or its lengths don't fit.
    Malformed = "malformed packet",
    /// Outbound: the source belongs to somebody else.
    ForeignSource = "source is not this node's",
    /// Outbound: loopback, multicast, link-local and the like.
    NotRoutable = "destination or source is never routed",
    /// Outbound: no member owns the destination.
    NoRoute = "no member owns the destination",
    /// Outbound: the host used the protocol number of the tunnels' own messages.
    ControlFromHost = "host used the tunnel control protocol",
    /// Outbound: the peer was removed.
    PeerClosed = "peer is no longer a member",
    /// Outbound: too many packets wait for a path or session.
    QueueFull = "too many packets wait for a path",
    /// Outbound: the relay of the path has no session.
    RelayDown = "relay is not connected",
    /// Inbound: a first byte that means nothing.
    UnknownDatagram = "unknown kind of datagram",
    /// Inbound: a `WireGuard` message for no tunnel of ours.
    UnknownTunnel = "no such tunnel",
    /// Inbound: a `WireGuard` message that doesn't open, or a replay.
    NotAuthentic = "not authentic or replayed",
    /// Inbound: a relay frame that no relay of ours sealed.
    RelayFrame = "relay frame is not authentic",
    /// Inbound: a relay frame seen before.
    RelayReplay = "relay frame was replayed",
    /// Inbound: the packet in the tunnel is no IP packet.
    InnerMalformed = "malformed packet inside a tunnel",
    /// Inbound: its source belongs to another peer, or nobody.
    InnerForeignSource = "peer used a source that is not its own",
    /// Inbound: it isn't for this node.
    InnerForeignDestination = "peer sent to a destination that is not this node's",
    /// Inbound: its outer header carries a congestion mark, and its sender doesn't know marks (RFC
    /// 6040 §4.2).
    Congested = "a router on the way wanted to drop the packet",
    /// Inbound: loopback, multicast, link-local and the like.
    InnerNotRoutable = "packet inside a tunnel has a forbidden address",
    /// Inbound: a handshake by somebody who doesn't know this node's key.
    HandshakeMac = "handshake without this node's key",
    /// Inbound: too many handshakes of one source.
    HandshakeLimit = "too many handshakes from one source",
    /// Inbound: a handshake while there were many, from where nobody has shown yet to be.
    CookieWanted = "handshake was answered by a cookie, there were many",
    /// Inbound: a handshake, like many, from a place at which nobody has answered yet.
    AnswerLimit = "too many handshakes to answer to one place",
    /// Inbound: a handshake by somebody who is no member.
    UnknownInitiator = "handshake of a stranger",
    /// Inbound: a probe by somebody who is no member.
    UnknownProbe = "probe of a stranger",
    /// Inbound: a probe that is a replay or an answer to nothing.
    StaleProbe = "probe was replayed or is not awaited",
    /// Inbound: more control packets than a peer has any use for.
    ControlLimit = "too many control packets from one peer",
    /// Inbound: a control packet that can't be read.
    Control = "malformed control packet",
    /// Handed to the slow half while its queue was full.
    SlowHalfBusy = "slow half was busy",
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

/// A counter per reason, shared by both halves.
#[derive(Debug, Default)]
pub struct Drops {
    counts: [AtomicU64; DropReason::ALL.len()],
}

impl Drops {
    /// Counts one.
    pub fn count(&self, reason: DropReason) {
        self.add(reason, 1);
    }

    /// Counts `number` of them.
    pub fn add(&self, reason: DropReason, number: u64) {
        if let Some(counter) = self.counts.get(reason as usize) {
            counter.fetch_add(number, Ordering::Relaxed);
        }
    }

    /// How many for this reason.
    #[must_use]
    pub fn of(&self, reason: DropReason) -> u64 {
        self.counts
            .get(reason as usize)
            .map_or(0, |counter| counter.load(Ordering::Relaxed))
    }
}
