//! The API of meshd's local socket, spoken by meshctl and by the CNI plugin.
//!
//! One JSON object per line in each direction, a [`Request`] answered by one [`Response`]. The views
//! in the answers are also what `meshctl --json` prints, with the schema names of [`schema`]: fields
//! are only ever added within one version, durations and sizes carry their unit in the name, times
//! are RFC 3339 in UTC.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::id::{Name, NetworkId, NodeId, PlanetId};
use crate::key::PublicKey;

mod registry;

pub use self::registry::{RegisteredExternal, RegisteredNode, RegistryView, TokenUse};

/// Names of the versioned schemas.
pub mod schema {
    /// Of [`super::StatusView`].
    pub const STATUS: &str = "podmesh.status/v1";
    /// Of a list of [`super::PeerView`].
    pub const PEERS: &str = "podmesh.peers/v1";
    /// Of [`super::PeerDetail`].
    pub const PEER: &str = "podmesh.peer/v1";
    /// Of a list of [`super::RouteView`].
    pub const ROUTES: &str = "podmesh.routes/v1";
    /// Of [`super::PingView`].
    pub const PING: &str = "podmesh.ping/v1";
    /// Of [`super::ReadyView`].
    pub const READY: &str = "podmesh.ready/v1";
}

/// A request to meshd.
#[derive(Serialize, Deserialize)]
#[serde(tag = "request", deny_unknown_fields)]
pub enum Request {
    /// The node as a whole. Anybody in the socket's group.
    Status,
    /// All peers, one line each. Anybody in the socket's group.
    Peers,
    /// One peer in full. Anybody in the socket's group.
    Peer {
        /// Name, overlay address, pod address or node id.
        target: String,
    },
    /// What the host should hold, from the computation that makes it so. Anybody in the group.
    Routes,
    /// Whether pods can be attached and reach others. Anybody in the socket's group.
    Ready,
    /// One in-tunnel echo to a peer. Anybody in the socket's group.
    Ping {
        /// Name, overlay address, pod address or node id.
        target: String,
        /// Milliseconds to wait for the answer, at most 10,000.
        timeout_ms: u64,
    },
    /// Join a network. Root only.
    Join {
        /// The join token's text.
        token: String,
        /// The node's name; the machine's host name if absent.
        name: Option<Name>,
    },
    /// Leave the network: certificate and peers are removed. Root only.
    Leave {
        /// Also replace all keys of the node, which makes it another node; then it need not be a
        /// member.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        forget_keys: bool,
    },
    /// Take a root-signed statement and pass it on. Root only.
    Statement {
        /// As [`crate::signed::Signed::to_base64`] makes it.
        statement: String,
    },
    /// The network as this node knows it, as its root signed it. Anybody in the socket's group.
    Network,
    /// Whether the CNI plugin can write its ledger, which meshd itself may not see. Root only.
    Ledger {
        /// Why not, if not: one sentence.
        trouble: Option<String>,
    },
    /// Names, keys, addresses and uses of tokens, for whoever holds the root key. Anybody in the
    /// socket's group.
    Registry,
    /// Take new keys for tunnels and probes. Root only.
    RotateKeys {
        /// Take a new identity key, too; the node's id stays.
        identity: bool,
    },
}

/// The answer of meshd.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "response")]
pub enum Response {
    /// Answers [`Request::Status`].
    Status(Box<StatusView>),
    /// Answers [`Request::Peers`].
    Peers {
        /// Sorted by site, then name.
        items: Vec<PeerView>,
    },
    /// Answers [`Request::Peer`].
    Peer(Box<PeerDetail>),
    /// Answers [`Request::Routes`].
    Routes {
        /// Sorted by prefix.
        items: Vec<RouteView>,
    },
    /// Answers [`Request::Ready`].
    Ready(ReadyView),
    /// Answers [`Request::Ping`].
    Ping(PingView),
    /// Answers [`Request::Network`].
    Network {
        /// As [`crate::signed::Signed::to_base64`] makes it.
        statement: String,
        /// Its hash, short.
        id: NetworkId,
        /// Its version.
        version: u64,
    },
    /// Answers [`Request::Registry`].
    Registry(Box<RegistryView>),
    /// Done: answers [`Request::Join`], [`Request::Leave`], [`Request::Statement`],
    /// [`Request::RotateKeys`], [`Request::Ledger`].
    Done {
        /// One sentence for people.
        message: String,
    },
    /// Not done.
    Failed(Failure),
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For programs.
    pub code: FailureCode,
    /// One sentence with the cause.
    pub message: String,
    /// What to do next, if there is something.
    pub next: Option<String>,
}

/// Kinds of failure; each has one exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureCode {
    /// Anything without a kind of its own.
    Failed,
    /// Not ready (yet).
    NotReady,
    /// The request or its argument makes no sense.
    Usage,
    /// The caller may not do this.
    Permission,
    /// No such peer.
    NotFound,
    /// No answer in time.
    Timeout,
}

impl FailureCode {
    /// Exit code of a command that ends with this failure.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::NotReady => 2,
            Self::Usage => 3,
            Self::Permission => 5,
            Self::NotFound => 6,
            Self::Timeout => 7,
        }
    }
}

/// State of a node, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// Has no certificate.
    NotJoined,
    /// Asks a planet to be admitted.
    Joining,
    /// Member; at least one planet connected.
    Online,
    /// Member; no planet reachable. Tunnels go on.
    PlanetsDown,
    /// The root revoked this node.
    Revoked,
    /// Its membership holds no more: its time is over, or it names keys that this node doesn't have.
    Ended,
}

/// The node as a whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusView {
    /// State.
    pub state: NodeState,
    /// meshd's version.
    pub version: String,
    /// RFC 3339.
    pub generated: String,
    /// Seconds since meshd started.
    pub uptime_s: u64,
    /// Absent before the join.
    pub network: Option<NetworkView>,
    /// Absent before the join.
    pub node: Option<SelfView>,
    /// Planets of the network.
    pub planets: Vec<PlanetView>,
    /// The interface.
    pub interface: InterfaceView,
    /// Number of peers per state.
    pub peers: PeerCounts,
    /// Candidates that this node publishes.
    pub candidates: Vec<CandidateView>,
    /// Dropped packets and datagrams by reason.
    pub drops: Vec<DropView>,
    /// What somebody should look at, worst first; empty when all is well.
    pub health: Vec<HealthView>,
    /// Of meshd itself.
    #[serde(default)]
    pub memory: MemoryView,
    /// How many pods stand on this node; `None` where nobody counts them.
    #[serde(default)]
    pub pods: Option<usize>,
}

/// Memory that meshd holds; zeroes where the kernel doesn't tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryView {
    /// Bytes.
    pub resident: u64,
    /// The most that it has been, in bytes.
    pub peak: u64,
}

/// The network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkView {
    /// Id.
    pub id: NetworkId,
    /// Name.
    pub name: Name,
    /// Edition of the network document.
    pub version: u64,
    /// Overlay ranges.
    pub overlay: Vec<IpNet>,
    /// Pod ranges.
    pub pods: Vec<IpNet>,
    /// Service ranges.
    pub services: Vec<IpNet>,
}

/// This node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfView {
    /// Id.
    pub id: NodeId,
    /// Name.
    pub name: Name,
    /// Site.
    pub site: Option<Name>,
    /// Groups: carried and shown; not enforced.
    pub groups: Vec<Name>,
    /// Overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// Pod CIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// WireGuard public key.
    pub wireguard: PublicKey,
    /// UDP port of tunnels and probes.
    pub port: u16,
    /// RFC 3339; absent when valid until revoked.
    pub expires: Option<String>,
    /// Serial of the newest renewal or rotation of keys; 0 as admitted.
    #[serde(default)]
    pub serial: u64,
    /// RFC 3339: when the node asks for its next renewal; absent when valid until revoked.
    #[serde(default)]
    pub renews: Option<String>,
}

/// A planet as this node sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanetView {
    /// Id.
    pub id: PlanetId,
    /// Name.
    pub name: Name,
    /// `host:port` of the network document.
    pub address: String,
    /// Whether the control connection is up.
    pub connected: bool,
    /// Milliseconds to the planet and back.
    pub rtt_ms: Option<f64>,
    /// Where the planet sees this node's data socket.
    pub observed: Option<SocketAddr>,
    /// Why it is not connected.
    pub error: Option<String>,
}

/// The interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceView {
    /// Name.
    pub name: String,
    /// Kernel's index; absent while the device is missing.
    pub index: Option<u32>,
    /// Bytes.
    pub mtu: u32,
    /// Data threads.
    pub shards: usize,
    /// Offloads in use.
    pub offloads: Vec<String>,
    /// What seals and opens, as the configuration calls it.
    #[serde(default)]
    pub tunnel: String,
}

/// Peers per state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PeerCounts {
    /// All.
    pub total: usize,
    /// Up over a direct path.
    pub direct: usize,
    /// Up over a relay.
    pub relayed: usize,
    /// Neither.
    pub down: usize,
}

/// State of a peer, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerState {
    /// A proven path carries data.
    Up,
    /// Looking for a first path.
    Probing,
    /// The path went silent; another one is being taken.
    Degraded,
    /// No path.
    Down,
    /// Its claims collide with a known holder's; not routed to.
    Quarantined,
}

/// How a peer is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum PathView {
    /// Directly, over an endpoint in a network that this node is attached to.
    Lan {
        /// Of the peer.
        endpoint: SocketAddr,
    },
    /// Directly over IPv4.
    Direct4 {
        /// Of the peer.
        endpoint: SocketAddr,
    },
    /// Directly over IPv6.
    Direct6 {
        /// Of the peer.
        endpoint: SocketAddr,
    },
    /// By a relay.
    Relay {
        /// Name of the planet that relays.
        planet: String,
    },
}

impl PathView {
    /// Whether no relay is in between.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        !matches!(self, Self::Relay { .. })
    }
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerView {
    /// Id; absent for an external peer.
    pub id: Option<NodeId>,
    /// Name.
    pub name: Name,
    /// Site.
    pub site: Option<Name>,
    /// Overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// Pod CIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// Whether this is a stock WireGuard machine.
    pub external: bool,
    /// State.
    pub state: PeerState,
    /// Present path; absent when there is none.
    pub path: Option<PathView>,
    /// Milliseconds, of the last echo over the present path.
    pub rtt_ms: Option<f64>,
    /// Share of the last echoes that got no answer, in percent.
    pub loss_percent: Option<f64>,
    /// Largest inner packet, bytes.
    pub mtu: Option<u32>,
    /// Seconds since the last handshake.
    pub handshake_s: Option<u64>,
    /// Bytes of inner packets received.
    pub rx_bytes: u64,
    /// Bytes of inner packets sent.
    pub tx_bytes: u64,
    /// Why the path is what it is; never empty when it is not direct.
    pub why: Option<String>,
}

/// One peer in full.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerDetail {
    /// As in the list.
    pub peer: PeerView,
    /// WireGuard public key.
    pub wireguard: PublicKey,
    /// Groups: carried and shown; not enforced.
    pub groups: Vec<Name>,
    /// RFC 3339: when its membership ends unless it is renewed; absent when valid until revoked.
    #[serde(default)]
    pub expires: Option<String>,
    /// Serial of its newest renewal or rotation of keys; 0 as admitted.
    #[serde(default)]
    pub serial: u64,
    /// Candidates and what became of them.
    pub candidates: Vec<CandidateTrial>,
    /// The last path switches, newest first.
    pub history: Vec<PathSwitch>,
}

/// A candidate of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CandidateView {
    /// `host`, `reflexive`, `configured`.
    pub kind: String,
    /// Where.
    pub endpoint: SocketAddr,
}

/// A candidate of a peer and what became of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CandidateTrial {
    /// `host`, `reflexive`, `configured`, `peer-reflexive`, `cached`, `relay`.
    pub kind: String,
    /// Where; absent for a relay.
    pub endpoint: Option<SocketAddr>,
    /// From which of this node's two ports it is tried: `main` or `spare`.
    pub from: String,
    /// `waiting`, `probing`, `answers`, `proven`, `active`, `silent`.
    pub state: String,
    /// Milliseconds.
    pub rtt_ms: Option<f64>,
}

/// A change of the path that carries data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathSwitch {
    /// RFC 3339.
    pub time: String,
    /// Path before.
    pub from: String,
    /// Path after.
    pub to: String,
    /// Why.
    pub reason: String,
}

/// Packets dropped for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropView {
    /// The reason.
    pub reason: String,
    /// How many since the start.
    pub count: u64,
}

/// Something to look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthView {
    /// Stable code, such as `MESH-TRUST-001`.
    pub code: String,
    /// One sentence.
    pub message: String,
    /// What to do.
    pub next: Option<String>,
}

/// One route the host should hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteView {
    /// Destination.
    pub prefix: IpNet,
    /// Device, or `unreachable`.
    pub via: String,
    /// The peer it leads to.
    pub peer: Option<Name>,
    /// Bytes, if the route carries one.
    pub mtu: Option<u32>,
}

/// Whether pods can be attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadyView {
    /// Both layers against plaintext stand, the interface forwards, addresses are leased.
    pub ready: bool,
    /// Whether any peer can be reached (true when there are none).
    pub connected: bool,
    /// Why not, if not.
    pub reason: Option<String>,
    /// Whether nothing is missing but a ledger that the CNI plugin can write, by its own last word.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waits_for_ledger: bool,
}

/// One answered in-tunnel echo.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PingView {
    /// The peer.
    pub name: Name,
    /// The address that was asked for.
    pub address: Option<IpAddr>,
    /// The path that carried it.
    pub path: PathView,
    /// Milliseconds there and back.
    pub rtt_ms: f64,
}
