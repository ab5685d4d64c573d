//! What an engine needs to come back after a restart, with every planet dead.
//!
//! All of it is verified again when it is loaded: a torn or edited file can make the node forget,
//! never believe. Secrets are not in here; they have files of their own.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use podmesh_proto::candidate::EndpointRecord;
use podmesh_proto::certificate::{AdmissionReceipt, Application, Departure, Membership};
use podmesh_proto::id::NodeId;
use podmesh_proto::network::RootStatement;
use podmesh_proto::renewal::RenewalRequest;
use podmesh_proto::signed::Signed;

use crate::path_id::SocketId;

/// The version that this program writes, and the highest that it reads.
pub const STORED_VERSION: u16 = 2;

/// The engine's memory on disk.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StoredState {
    /// [`STORED_VERSION`].
    pub version: u16,
    /// The network as its root signed it.
    pub network: Option<Signed<RootStatement>>,
    /// This node's own membership.
    pub membership: Option<Membership>,
    /// A join that is under way.
    pub joining: Option<Joining>,
    /// The claim that this node made last, until it is receipted: its serial is spent.
    pub claim_serial: u64,
    /// The known holders, in no particular order: none of them collides with another.
    pub members: Vec<Membership>,
    /// Members that collide with a holder or with each other, and are not routed to.
    pub quarantined: Vec<Membership>,
    /// Every other statement of the root that still matters.
    pub statements: Vec<Signed<RootStatement>>,
    /// Nodes that left by their own word; after this node has left itself, its own.
    pub departures: Vec<Signed<Departure>>,
    /// The last endpoint record of each peer.
    pub endpoints: Vec<Signed<EndpointRecord>>,
    /// The last path to each peer that worked.
    pub paths: Vec<CachedPath>,
    /// This node's incarnation never goes below this again, whatever its clock says.
    pub incarnation_floor: u64,
    /// Where planets saw this node's sockets.
    pub reflexive: Vec<(SocketId, SocketAddr)>,
    /// A renewal that no planet has receipted yet. A node that forgot it might sign another one with
    /// the same serial, which nobody would take.
    pub renewing: Option<RenewalRequest>,
    /// The paths that were in use.
    pub active: Vec<ActivePath>,
}

impl StoredState {
    /// Reads what [`postcard`] has written, also before [`Self::active`] was there.
    ///
    /// # Errors
    /// The content is no state.
    pub fn read(content: &[u8]) -> Result<Self, postcard::Error> {
        postcard::from_bytes(content).or_else(|error| match error {
            // An empty list is one byte of zero.
            postcard::Error::DeserializeUnexpectedEnd => {
                postcard::from_bytes(&[content, &[0]].concat())
            }
            error => Err(error),
        })
    }
}

/// A join that a planet has not completed yet. The token's key is not part of it: it is not needed
/// any more once the application is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joining {
    /// What was signed by the token's key and this node's.
    pub application: Application,
    /// The planet's answer, if it is there.
    pub receipt: Option<Signed<AdmissionReceipt>>,
}

/// A direct path that worked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedPath {
    /// To this node.
    pub node: NodeId,
    /// From this socket.
    pub socket: SocketId,
    /// To this endpoint.
    pub endpoint: SocketAddr,
}

/// What the path in use to a peer was like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivePath {
    /// To this node.
    pub node: NodeId,
    /// Bytes of an inner packet.
    pub mtu: u16,
    /// Whether no relay was on it.
    pub direct: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_ends_before_the_newest_list_is_read() {
        let state = StoredState {
            version: STORED_VERSION,
            claim_serial: 7,
            ..StoredState::default()
        };
        let content = postcard::to_allocvec(&state).unwrap();
        let (last, former) = content.split_last().unwrap();
        assert_eq!(*last, 0);
        assert_eq!(StoredState::read(&content).unwrap(), state);
        assert_eq!(StoredState::read(former).unwrap(), state);
        assert!(StoredState::read(former.split_last().unwrap().1).is_err());
    }
}
