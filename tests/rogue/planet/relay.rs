//! Relays as a planet does: a stolen one that stopped serving would be believed less.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use podmesh_proto::candidate::canonical;
use podmesh_proto::id::NodeId;
use podmesh_proto::relayed::{RelayGrant, RelayHeader, RelayKind, RelaySeal};

use crate::random;

/// All sessions.
#[derive(Default)]
pub(crate) struct Relay {
    sessions: Mutex<BTreeMap<u32, Session>>,
}

struct Session {
    node: NodeId,
    seal: RelaySeal,
    endpoint: Option<SocketAddr>,
    next: u64,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Relay")
    }
}

impl Relay {
    /// Opens a session in the place of the node's former ones.
    pub(crate) fn open(&self, node: NodeId) -> Result<RelayGrant> {
        let grant = RelayGrant {
            session: u32::from_le_bytes(random::bytes()?),
            key: random::bytes()?,
        };
        let session = Session {
            node,
            seal: RelaySeal::new(&grant.key),
            endpoint: None,
            next: 0,
        };
        let mut sessions = self.sessions();
        sessions.retain(|_, other| other.node != node);
        sessions.insert(grant.session, session);
        Ok(grant)
    }

    /// What to send where, because of a frame that came from somewhere.
    pub(crate) fn answer(&self, frame: &[u8], from: SocketAddr) -> Option<(SocketAddr, Vec<u8>)> {
        let from = canonical(from);
        let header = RelayHeader::parse(frame).ok()?;
        let mut sessions = self.sessions();
        let session = sessions.get_mut(&header.session)?;
        let payload = session.seal.open(&header, frame).ok()?;
        session.endpoint = Some(from);
        let mut out = Vec::new();
        match header.kind {
            RelayKind::Observe => {
                let seal = &session.seal;
                seal.formerly_observed(header.session, header.counter, from, &mut out);
                Some((from, out))
            }
            RelayKind::Up => {
                let sender = session.node.relay_address();
                let (id, receiver) = sessions
                    .iter_mut()
                    .find(|(_, other)| other.node.relay_address() == header.peer)?;
                let down = RelayHeader {
                    kind: RelayKind::Down,
                    session: *id,
                    counter: receiver.next,
                    peer: sender,
                };
                receiver.next += 1;
                receiver.seal.seal(&down, payload, &mut out);
                Some((receiver.endpoint?, out))
            }
            RelayKind::Down | RelayKind::Observed => None,
        }
    }

    fn sessions(&self) -> MutexGuard<'_, BTreeMap<u32, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
