//! What can go wrong, in words for people.

use podmesh_proto::error::{CertificateError, DecodeError};
use podmesh_proto::id::Name;
use podmesh_proto::planet_api::RefusalCode;

use crate::engine::printable;

/// Why an engine can't start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The stored network document doesn't hold.
    #[error("the stored network document is not usable: {0}")]
    Network(CertificateError),
    /// The stored membership is another node's: the state folder was copied.
    #[error("the stored membership belongs to another identity; the state folder mixes two nodes")]
    OtherNode,
    /// The stored state is of a newer program.
    #[error("the stored state has version {found}, this program reads up to {supported}")]
    Version {
        /// Found.
        found: u16,
        /// Supported.
        supported: u16,
    },
}

/// Why a join is not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// Member already.
    #[error("this node is already a member of network {network}; leave it first")]
    AlreadyMember {
        /// Of this network.
        network: Name,
    },
    /// Put out, for good.
    #[error("the root of network {network} revoked this node")]
    Revoked {
        /// By this network.
        network: Name,
    },
    /// Another join is going on.
    #[error("this node is already joining network {network}")]
    InProgress {
        /// This network.
        network: Name,
    },
    /// The token doesn't hold.
    #[error("the join token is not valid: {0}")]
    Token(#[from] CertificateError),
    /// The certificate can't be made.
    #[error("the certificate can not be made: {0}")]
    Encode(#[from] DecodeError),
    /// The token's time is over.
    #[error("the join token expired at {at}, and the clock of this machine says {now}")]
    TokenExpired {
        /// When.
        at: podmesh_proto::time::UnixSeconds,
        /// By the node's clock.
        now: podmesh_proto::time::UnixSeconds,
    },
    /// The token is for another name.
    #[error("the join token is for a node named {wanted}, not {given}")]
    TokenName {
        /// In the token.
        wanted: Name,
        /// Asked for.
        given: Name,
    },
    /// The planet said no, for good.
    #[error("the planet refused: {}", printable(reason))]
    Refused {
        /// Kind.
        code: RefusalCode,
        /// The planet's sentence.
        reason: String,
    },
    /// The node left before it was admitted.
    #[error("the join was cancelled by a leave")]
    Cancelled,
}

/// What a node does that the root has revoked: it can only come back as another one.
pub(crate) const COME_BACK: &str =
    "`meshctl leave --forget-keys`, then `meshctl join` with a new token";

impl JoinError {
    /// What to do next.
    #[must_use]
    pub const fn next(&self) -> Option<&'static str> {
        Some(match self {
            Self::Refused { code, .. } => after(*code),
            Self::Token(_) => "ask for a new token: `meshctl token create`",
            Self::TokenExpired { .. } => {
                "put the clock right if it is wrong; else ask for a new token: `meshctl token create`"
            }
            Self::TokenName { .. } => {
                "`meshctl join --name` with the name that the token is for, or ask for another token: \
                 `meshctl token create`"
            }
            Self::Revoked { .. } => COME_BACK,
            Self::AlreadyMember { .. } | Self::InProgress { .. } => "`meshctl leave` ends it",
            Self::Encode(_) | Self::Cancelled => return None,
        })
    }
}

const fn after(code: RefusalCode) -> &'static str {
    match code {
        RefusalCode::Protocol => "update the older of the two programs",
        RefusalCode::OtherNetwork => "use a token of the network that this planet serves",
        RefusalCode::NodeRevoked | RefusalCode::Unproven => COME_BACK,
        RefusalCode::TokenExpired | RefusalCode::TokenUsedUp | RefusalCode::TokenRevoked => {
            "`meshctl join` with a new token, which `meshctl token create` makes"
        }
        RefusalCode::Conflict => {
            "`meshctl join --name` with another name, or with a token that lets this one take over"
        }
        RefusalCode::Exhausted => "the network's ranges are full; free leases or widen them",
        RefusalCode::Relearning | RefusalCode::Busy => "nothing; the node asks again by itself",
        RefusalCode::NotArbiter => "the network's first planet has to be reachable",
        RefusalCode::NotMember => "`meshctl join` with a new token",
        RefusalCode::Invalid => {
            "compare the clocks and versions of both machines, and join again; else it is a bug of one program"
        }
    }
}

/// Why something that the operator asked for is not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// Not a member.
    #[error("this node has not joined a network")]
    NotJoined,
    /// Member, or about to be.
    #[error("this node is in a network, or joins one; leave it first")]
    Joined,
    /// A statement that doesn't hold.
    #[error("the statement is not valid: {0}")]
    Statement(#[from] CertificateError),
    /// A statement that is older than what the node has.
    #[error("this is edition {given} of the network, and the node has edition {known} already")]
    Older {
        /// Given.
        given: u64,
        /// Known.
        known: u64,
    },
    /// Another document than the node's under the same number.
    #[error(
        "the node has another edition {edition} of the network, which the root has signed as well; \
         nothing was changed"
    )]
    OtherEdition {
        /// Of both.
        edition: u64,
    },
    /// A later word about the same subject, or one that is final, says the opposite.
    #[error("it changes nothing: what the root said at {at} about the same one counts")]
    Overtaken {
        /// When the other was said.
        at: podmesh_proto::time::UnixSeconds,
    },
    /// An external peer that wants what somebody has.
    #[error("external peer {peer} can't have {wanted}: {holder} has it")]
    Held {
        /// The external peer.
        peer: Name,
        /// What it wants.
        wanted: String,
        /// Who has it.
        holder: String,
    },
    /// Can't be signed.
    #[error("the document can not be made: {0}")]
    Encode(#[from] DecodeError),
    /// Revoked, expired, or without its keys.
    #[error("this node is no member in good standing")]
    NotActive,
    /// Two successors of one document would be a lie.
    #[error("a renewal of this node is under way; try again when a planet has receipted it")]
    Renewing,
    /// The chain would not end.
    #[error("this node's identity has changed as often as it may; leave and join again")]
    TooManyIdentities,
}

/// Why a ping has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PingError {
    /// This node has no peers.
    #[error("this node has not joined a network")]
    NotJoined,
    /// The target is this node itself.
    #[error("'{target}' is this node itself")]
    Own {
        /// As given.
        target: String,
    },
    /// No such peer.
    #[error("no peer is named, numbered or addressed '{target}'")]
    NotFound {
        /// As given.
        target: String,
    },
    /// No way to it.
    #[error("no path to {peer}: {reason}")]
    NoPath {
        /// The peer.
        peer: Name,
        /// Why.
        reason: String,
    },
    /// No answer in time.
    #[error("{peer} did not answer in time")]
    Timeout {
        /// The peer.
        peer: Name,
    },
    /// Too many at once.
    #[error("too many pings are under way; wait for one to end")]
    TooMany,
    /// A stock WireGuard machine doesn't answer in-tunnel echoes.
    #[error("{peer} is an external WireGuard machine; ping its address instead")]
    External {
        /// The peer.
        peer: Name,
    },
}
