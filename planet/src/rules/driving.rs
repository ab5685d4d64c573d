//! What goes in and what comes out: the whole surface between the rules and whoever drives them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use podmesh_proto::id::{Name, NodeId};
use podmesh_proto::network::RootStatement;
use podmesh_proto::planet_api::{NodeMessage, PlanetMessage, Refusal};
use podmesh_proto::relayed::RelayGrant;
use podmesh_proto::signed::Signed;

use crate::rules::records::Change;

/// Names one control connection for as long as the planet runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// What a planet is told.
#[derive(Debug)]
pub enum Input {
    /// Somebody connected; its address is proven (QUIC's Retry), its identity is not.
    Connected {
        /// A new number.
        connection: ConnectionId,
        /// From where.
        remote: SocketAddr,
        /// Measured by the connection.
        rtt: Duration,
        /// The connection's keying material, exported with
        /// [`EXPORTER_LABEL`](podmesh_proto::planet_api::EXPORTER_LABEL) and no context.
        exported: Vec<u8>,
    },
    /// A new measurement.
    Rtt {
        /// Of which connection.
        connection: ConnectionId,
        /// Measured by the connection.
        rtt: Duration,
    },
    /// A message arrived.
    Message {
        /// Over which connection.
        connection: ConnectionId,
        /// What it says.
        message: Box<NodeMessage>,
    },
    /// A connection is gone, whoever ended it.
    Disconnected {
        /// Which.
        connection: ConnectionId,
    },
    /// The operator brings a statement of the root.
    Statement {
        /// Repeated by [`Action::Answer`].
        request: u64,
        /// The statement.
        statement: Box<Signed<RootStatement>>,
    },
    /// The operator says that nothing is missing in the books, or that what is missing is gone for
    /// good.
    TrustEmpty {
        /// Repeated by [`Action::Answer`].
        request: u64,
    },
    /// The planet is about to stop: sends everybody off.
    Drain,
    /// The moment of [`Planet::poll_timeout`](crate::rules::Planet::poll_timeout) has come.
    Tick,
}

/// What has to be done.
#[derive(Debug)]
pub enum Action {
    /// Make this durable, all or nothing, then call [`Planet::committed`](crate::rules::Planet::committed).
    /// Inputs are welcome meanwhile.
    Commit(Vec<Change>),
    /// Send this.
    Send {
        /// Over which connection.
        connection: ConnectionId,
        /// What.
        message: Box<PlanetMessage>,
    },
    /// Close a connection after everything that was sent before. No [`Input::Disconnected`] is needed
    /// any more, and none harms.
    Close {
        /// Which.
        connection: ConnectionId,
        /// Why, for the log and the other end.
        reason: &'static str,
    },
    /// Relay for a node.
    OpenRelay {
        /// Number and key of the session.
        grant: RelayGrant,
        /// The node.
        node: NodeId,
        /// The address of its control connection.
        home: IpAddr,
    },
    /// Relay no more.
    CloseRelay {
        /// Number of the session.
        session: u32,
    },
    /// Answers a request of the operator.
    Answer {
        /// Of the input.
        request: u64,
        /// One sentence, good or bad.
        result: Result<String, String>,
    },
    /// Something that people may want to read in the log.
    Happened(Event),
}

/// Something for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A node became a member, or changed what it claims.
    Member(NodeId, Name),
    /// A node left by its own word.
    Left(NodeId, Name),
    /// A node was put out by the root's word.
    Out(NodeId),
    /// A member connected.
    Online(NodeId, Name),
    /// A member's connection ended.
    Offline(NodeId, Name),
    /// Two machines with the identity of one member: a sentence.
    Twins(NodeId, String),
    /// A request was refused.
    Refused(NodeId, Refusal),
    /// A membership that a node showed was not taken into the books.
    NotLearned(NodeId, String),
    /// The root said something new.
    Statement(&'static str),
    /// Grants are refused: why, and for how long at the most, if that ends by itself.
    Relearning(String, Option<Duration>),
    /// Grants are given again.
    Granting,
}
