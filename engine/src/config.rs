//! What an engine is started with.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use podmesh_proto::certificate::Member;
use podmesh_proto::key::{SecretKey, SigningKey};

use crate::limits;
use crate::stored::StoredState;
use crate::tunnel::TunnelKind;

/// The secrets of a node.
pub struct NodeKeys {
    /// The node's identity.
    pub identity: SigningKey,
    /// The node's WireGuard key.
    pub wireguard: SecretKey,
    /// The key that probes are sealed with.
    pub probe: SecretKey,
}

impl NodeKeys {
    /// Whether these are the keys that a membership names.
    #[must_use]
    pub fn are_of(&self, member: &Member) -> bool {
        self.identity.public() == member.identity()
            && self.wireguard.public() == member.wireguard
            && self.probe.public() == member.probe
    }
}

/// From which size of the mesh on a node doesn't keep a path to everybody, and its patience then. Programs
/// take the default; the simulator has small meshes behave as large ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Peers up to which a node keeps a path to each of them. With more, a path is made when there is
    /// traffic for it.
    pub eager_peers: usize,
    /// A peer without traffic for this long is let go, if there are more than [`Self::eager_peers`].
    pub idle: Duration,
    /// The same of one that hasn't answered at all.
    pub in_vain: Duration,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            eager_peers: limits::EAGER_PEERS,
            idle: limits::IDLE,
            in_vain: limits::IN_VAIN,
        }
    }
}

/// Everything that doesn't come from planets or peers.
pub struct EngineConfig {
    /// The node's keys.
    pub keys: NodeKeys,
    /// The keys that take their place once a planet has receipted that, if a rotation is under way.
    pub next: Option<NodeKeys>,
    /// What the last life of this node wrote by `Output::Persist`.
    pub stored: Option<Box<StoredState>>,
    /// UDP ports of the main and the spare socket.
    pub ports: [u16; 2],
    /// Endpoints that the operator names, a forwarded port for example.
    pub configured: Vec<SocketAddr>,
    /// Pod CIDRs to claim instead of the leased ones; empty to take the leases.
    pub pod_cidrs: Vec<IpNet>,
    /// Inner MTU of the interface, bytes.
    pub mtu: u32,
    /// Name of the interface.
    pub device: String,
    /// What makes tunnels.
    pub tunnel: TunnelKind,
    /// What changes with the size of the mesh.
    pub thresholds: Thresholds,
    /// Version of meshd, for people.
    pub version: String,
}

impl fmt::Debug for EngineConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineConfig")
            .field("node", &self.keys.identity.node_id())
            .field("ports", &self.ports)
            .field("mtu", &self.mtu)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}
