//! What the host should hold: the one computation behind addresses, routes, the node file and
//! `meshctl routes`.

use std::net::IpAddr;

use ipnet::IpNet;

use podmesh_proto::certificate::Member;
use podmesh_proto::id::{Name, NetworkId};
use podmesh_proto::local_api::RouteView;
use podmesh_proto::mark::Mark;
use podmesh_proto::network::Network;
use podmesh_proto::node_file::{NODE_FILE_SCHEMA, NodeFile};

/// What the kernel of a node should hold for the mesh. Empty for a node that isn't a member.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostPlan {
    /// Name of the interface.
    pub device: String,
    /// Its MTU, bytes.
    pub mtu: u32,
    /// The network and this node's name in it; `None` before the join and after the leave.
    pub member: Option<(NetworkId, Name)>,
    /// Overlay addresses of the interface, as single-address prefixes.
    pub addresses: Vec<IpNet>,
    /// Ranges of the mesh: packets to them leave by the interface or not at all.
    pub protected: Vec<IpNet>,
    /// Prefixes that lead to peers, sorted.
    pub peer_routes: Vec<PeerRoute>,
    /// This node's own pod CIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// This node's own overlay addresses.
    pub overlay_addresses: Vec<IpAddr>,
    /// Service ranges of the cluster.
    pub service_ranges: Vec<IpNet>,
}

/// A prefix that leads to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerRoute {
    /// Destination.
    pub prefix: IpNet,
    /// The peer.
    pub peer: Name,
    /// Bytes, if less than the interface carries.
    pub mtu: Option<u32>,
}

/// The plan of a member with these peers: each with the prefixes that lead to it, and the bytes of the
/// longest packet that its path carries.
#[must_use]
pub fn host_plan<'a>(
    own: &Member,
    peers: impl IntoIterator<Item = (&'a Name, &'a [IpNet], u32)>,
    network: &Network,
    device: &str,
    mtu: u32,
) -> HostPlan {
    let overlay_addresses: Vec<IpAddr> = own
        .overlay4
        .map(IpAddr::V4)
        .into_iter()
        .chain([IpAddr::V6(own.overlay6)])
        .collect();
    let mut peer_routes: Vec<PeerRoute> = peers
        .into_iter()
        .flat_map(|(peer, prefixes, carried)| {
            prefixes.iter().map(move |prefix| PeerRoute {
                prefix: prefix.trunc(),
                peer: peer.clone(),
                mtu: Some(carried).filter(|carried| *carried < mtu),
            })
        })
        .collect();
    peer_routes.sort_by_key(|route| route.prefix);
    HostPlan {
        device: device.to_owned(),
        mtu,
        member: Some((network.id, own.name.clone())),
        addresses: overlay_addresses.iter().copied().map(IpNet::from).collect(),
        protected: network.protected(),
        peer_routes,
        pod_cidrs: own.pod_cidrs.clone(),
        overlay_addresses,
        service_ranges: network.ranges.services.clone(),
    }
}

impl HostPlan {
    /// The plan of a node that is no member: nothing of ours on the host but the interface.
    #[must_use]
    pub fn empty(device: &str, mtu: u32) -> Self {
        Self {
            device: device.to_owned(),
            mtu,
            ..Self::default()
        }
    }

    /// The plan of a node that the root or the time has put out: it has nothing of the mesh, and
    /// nothing for the mesh leaves it in plaintext.
    #[must_use]
    pub fn closed(device: &str, mtu: u32, network: &Network) -> Self {
        Self {
            protected: network.protected(),
            service_ranges: network.ranges.services.clone(),
            ..Self::empty(device, mtu)
        }
    }

    /// What the CNI plugin has to know; `None` for a node that is no member. `local_devices` are
    /// the host's other container interfaces and `mark` is the underlay's, which the engine doesn't
    /// know, as little as it does former memberships.
    #[must_use]
    pub fn node_file(&self, local_devices: Vec<String>, mark: Mark) -> Option<NodeFile> {
        let (network, name) = self.member.as_ref()?;
        Some(NodeFile {
            schema: NODE_FILE_SCHEMA.to_owned(),
            network: network.to_string(),
            node: name.as_str().to_owned(),
            device: self.device.clone(),
            mtu: self.mtu,
            pod_cidrs: self.pod_cidrs.clone(),
            overlay_addresses: self.overlay_addresses.clone(),
            protected: self.protected.clone(),
            service_ranges: self.service_ranges.clone(),
            local_devices,
            mark,
            closed: Vec::new(),
            former_pod_cidrs: Vec::new(),
        })
    }

    /// The routes as `meshctl routes` shows them, sorted by prefix.
    #[must_use]
    pub fn routes(&self) -> Vec<RouteView> {
        let to_peers = self.peer_routes.iter().map(|route| RouteView {
            prefix: route.prefix,
            via: self.device.clone(),
            peer: Some(route.peer.clone()),
            mtu: route.mtu.or(Some(self.mtu)),
        });
        let backstops = self.protected.iter().map(|range| RouteView {
            prefix: *range,
            via: "unreachable".to_owned(),
            peer: None,
            mtu: None,
        });
        let mut routes: Vec<RouteView> = to_peers.chain(backstops).collect();
        routes.sort_by_key(|route| route.prefix);
        routes
    }
}
