//! Messages between a node and a planet, on one bidirectional QUIC stream.
//!
//! The node opens the stream and says [`NodeMessage::Hello`]; the planet's key is pinned by the
//! connection itself, the node's identity is proven by a signature over the connection's exported
//! keying material (RFC 5705, label [`EXPORTER_LABEL`]), so that every later message is authorised by
//! the key proven in this connection and ids in a message's body are never trusted.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::candidate::EndpointRecord;
use crate::certificate::{
    AdmissionReceipt, Application, Claim, ClaimReceipt, Departure, Membership,
};
use crate::id::{NetworkId, NodeId, PlanetId};
use crate::key::Signature;
use crate::network::RootStatement;
use crate::relayed::RelayGrant;
use crate::renewal::{RenewalReceipt, RenewalRequest};
use crate::signed::Signed;
use crate::statements::{Held, Summary};
use crate::time::UnixSeconds;

/// The newest version of this protocol. In version 2 statements of the root are compared before they
/// are told, and a relay has a new place of a node prove itself. A planet hears nodes of all versions
/// from [`OLDEST_PROTOCOL`] on; a node that is refused for its version falls back to the oldest.
pub const PROTOCOL: u16 = 2;
/// The oldest version that is still spoken: statements go one by one.
pub const OLDEST_PROTOCOL: u16 = 1;
/// QUIC application protocol (RFC 7301).
pub const ALPN: &[u8] = b"podmesh/1";
/// Label of the keying material that a node signs.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-podmesh-node";
/// Signature context of that signature.
pub const HELLO_CONTEXT: &str = "podmesh hello v1";

/// From node to planet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeMessage {
    /// First on every connection.
    Hello(Hello),
    /// Let me in. Answered by `Admitted` or `Refused`.
    Join(Box<Application>),
    /// These are mine. Answered by `Claimed` or `Refused`.
    Claim(Signed<Claim>),
    /// Where I may be reached.
    Publish(Signed<EndpointRecord>),
    /// Tell both of us when to punch.
    Introduce {
        /// With whom.
        peer: NodeId,
        /// Grows with each try towards this peer.
        attempt: u32,
    },
    /// Something the root said, to be stored and passed on.
    Statement(Box<Signed<RootStatement>>),
    /// Answers `Relearn`: memberships that this node holds. The last message of a report is empty.
    Report {
        /// At most [`crate::limits::MAX_RECORDS_PER_UPDATE`] of them.
        memberships: Vec<Membership>,
    },
    /// I am leaving this network: free my name and leases. A member may pass on another node's word,
    /// which no planet has heard.
    Leave(Signed<Departure>),
    /// Still here. Sent each 15 s.
    Heartbeat,
    /// Let my membership go on, or my keys change. Answered by `Renewed` or `NotRenewed`.
    Renew(Box<RenewalRequest>),
    /// What I am by now, after another planet's receipt; or what a member is of which the planet has told
    /// an older state.
    Membership(Box<Membership>),
    /// What I hold in buckets in which the planet's `Summary` differs, or which it named by `Held`. Since
    /// version 2.
    Held(Vec<Held>),
    /// Statements of the root that the planet's `Held` lacks; an empty list ends them. Since version 2.
    Statements(Vec<Signed<RootStatement>>),
}

/// The first message of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The version that the node speaks, [`PROTOCOL`] at best.
    pub protocol: u16,
    /// The network.
    pub network: NetworkId,
    /// The node.
    pub node: NodeId,
    /// By the node's newest identity, over the exported keying material.
    pub proof: Signature,
    /// Start of the node's process, Unix seconds.
    pub incarnation: u64,
    /// Absent before the node has joined.
    pub membership: Option<Box<Membership>>,
    /// What of the directory the node has already.
    pub cursor: Option<DirectoryCursor>,
    /// The highest receipt number the node has seen, of any node: shows a planet that it has
    /// forgotten something.
    pub sequence: u64,
    /// Version of the network document that the node has.
    pub network_version: u64,
    /// Program and version, for people.
    pub software: String,
}

/// A place in a planet's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryCursor {
    /// Random number of the planet's process: versions of another don't compare.
    pub epoch: u64,
    /// Everything up to this version is known.
    pub version: u64,
}

/// From planet to node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlanetMessage {
    /// Answers `Hello`.
    Welcome(Welcome),
    /// Answers `Join`.
    Admitted(Signed<AdmissionReceipt>),
    /// Answers `Claim`.
    Claimed(Signed<ClaimReceipt>),
    /// Answers any request that is not granted.
    Refused(Refusal),
    /// What changed among the members.
    Directory(DirectoryUpdate),
    /// Both ends of a pair get this at once.
    Punch {
        /// With whom.
        peer: NodeId,
        /// As in `Introduce`.
        attempt: u32,
        /// Wait this long, then fire: made so that both ends fire at the same instant.
        fire_in: Duration,
    },
    /// Something the root said.
    Statement(Box<Signed<RootStatement>>),
    /// I have forgotten: send me every membership that you hold.
    Relearn,
    /// Still here. Sent each 15 s.
    Heartbeat {
        /// The directory as it is now.
        cursor: DirectoryCursor,
    },
    /// I am going away on purpose; come back after this long.
    Draining {
        /// Spread over all nodes, so that they don't return at once.
        retry_in: Duration,
    },
    /// Answers `Renew`.
    Renewed(Signed<RenewalReceipt>),
    /// Answers `Renew` that is not granted.
    NotRenewed(Refusal),
    /// What the root said, as far as the planet knows: to compare with. Since version 2.
    Summary(Summary),
    /// What the planet holds in buckets in which the node says to hold more. Since version 2.
    Held(Vec<Held>),
    /// Statements of the root. Since version 2.
    Statements(Vec<Signed<RootStatement>>),
    /// The planet's wall clock says something else than it would by what was said before. Since version 2.
    Clock(UnixSeconds),
}

/// A planet's greeting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The planet.
    pub planet: PlanetId,
    /// Where this connection comes from, as the planet sees it.
    pub observed: SocketAddr,
    /// Only for members.
    pub relay: Option<RelayGrant>,
    /// Its wall clock.
    pub time: UnixSeconds,
    /// The directory's present state; the updates that lead there follow.
    pub cursor: DirectoryCursor,
}

/// Changes among the members. A node applies the records in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryUpdate {
    /// The directory after this update.
    pub cursor: DirectoryCursor,
    /// Whether this update starts from nothing: nodes that no update of this series names are
    /// unknown to the planet (which never removes a member that a node knows).
    pub from_start: bool,
    /// At most [`crate::limits::MAX_RECORDS_PER_UPDATE`].
    pub records: Vec<DirectoryRecord>,
}

/// One member as the planet knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DirectoryRecord {
    /// New or changed.
    Member(Box<Membership>),
    /// Where it may be reached.
    Endpoints(Signed<EndpointRecord>),
    /// Whether its control connection is up.
    Presence {
        /// The node.
        node: NodeId,
        /// Connected to this planet.
        online: bool,
    },
    /// It left, by its own word.
    Left(Signed<Departure>),
}

/// Why something was not granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people: one sentence.
    pub reason: String,
    /// When trying again makes sense.
    pub retry_in: Option<Duration>,
}

/// Kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalCode {
    /// Another version of the protocol.
    Protocol,
    /// Another network.
    OtherNetwork,
    /// The proof of identity or a signature doesn't hold.
    Unproven,
    /// The token has expired.
    TokenExpired,
    /// All uses of the token are spent.
    TokenUsedUp,
    /// The root revoked the token.
    TokenRevoked,
    /// The root revoked the node.
    NodeRevoked,
    /// Another node has the name, key or range.
    Conflict,
    /// No free lease is left.
    Exhausted,
    /// The planet is relearning and grants nothing yet.
    Relearning,
    /// This planet doesn't arbitrate leases; ask the network's first planet.
    NotArbiter,
    /// Too many requests.
    Busy,
    /// Only members may ask this.
    NotMember,
    /// The request itself makes no sense.
    Invalid,
}
