//! One node: the slow half's inputs, outputs and views.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use podmesh_proto::id::{Name, NodeId, PlanetId};
use podmesh_proto::local_api::{
    InterfaceView, NodeState, PeerCounts, PeerDetail, PeerView, ReadyView, RouteView, StatusView,
};
use podmesh_proto::network::RootStatement;
use podmesh_proto::planet_api::NodeMessage;
use podmesh_proto::signed::Signed;
use podmesh_proto::time::{Moment, Now};
use podmesh_proto::token::JoinToken;

use crate::config::EngineConfig;
use crate::drops::Drops;
use crate::error::{JoinError, PingError, RequestError, StartError};
use crate::forwarding::ForwardingTable;
use crate::host_plan::HostPlan;
use crate::inbound::{Arrived, InboundBatch, open_batch};
use crate::outbound::{OutboundBatch, seal_batch};
use crate::output::{Output, PlanetEvent, Received, SlowItem, Transmit};

/// The slow half of a node.
pub struct Engine {
    config: EngineConfig,
    outputs: VecDeque<Output>,
    table: Arc<ForwardingTable>,
    plan: HostPlan,
}

impl Engine {
    /// A node as its last life left it. `seed` is from a cryptographic random source.
    ///
    /// # Errors
    /// What was stored is of another node or a newer program.
    pub fn new(config: EngineConfig, _seed: [u8; 32], _now: Now) -> Result<Self, StartError> {
        let table = Arc::new(ForwardingTable::empty(Arc::new(Drops::default())));
        let plan = HostPlan::empty(&config.device, config.mtu);
        Ok(Self {
            config,
            outputs: VecDeque::new(),
            table,
            plan,
        })
    }

    /// This node's id.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        self.config.identity.node_id()
    }

    /// What to do next; `None` until something happens again.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Begins to join the network of `token` as `name`. The outcome comes as `Output::JoinDone`; until
    /// then the node keeps trying, also over restarts.
    ///
    /// # Errors
    /// The token can't be used, or the node is a member already.
    pub fn handle_join(
        &mut self,
        token: &JoinToken,
        _name: Name,
        _now: Now,
    ) -> Result<(), JoinError> {
        let (network, _) = token.verify()?;
        self.outputs.push_back(Output::Planets(network.planets));
        Ok(())
    }

    /// Leaves the network: tells the planets, forgets members and paths, keeps keys.
    ///
    /// # Errors
    /// Not a member.
    pub fn handle_leave(&mut self, _now: Now) -> Result<(), RequestError> {
        Err(RequestError::NotJoined)
    }

    /// Takes something that the root said, and passes it on.
    ///
    /// # Errors
    /// Not a member, or the root of this network didn't say it.
    pub fn handle_statement(
        &mut self,
        _statement: Signed<RootStatement>,
        _now: Now,
    ) -> Result<(), RequestError> {
        Err(RequestError::NotJoined)
    }

    /// Something happened on the control connection to a planet.
    pub fn handle_planet(&mut self, _planet: PlanetId, _event: PlanetEvent, _now: Now) {}

    /// The first message on a new control connection to `planet`, whose exported keying material is
    /// `exported`.
    #[must_use]
    pub fn hello(&self, _planet: PlanetId, _exported: &[u8]) -> Option<NodeMessage> {
        None
    }

    /// Something that the fast half couldn't do.
    pub fn handle_item(&mut self, _item: SlowItem, _now: Now) {}

    /// A datagram of any kind, for a shell without a fast half.
    pub fn handle_datagram(&mut self, received: Received, now: Now) {
        let arrived = Arrived {
            socket: received.socket,
            from: received.from,
            bytes: &received.bytes,
        };
        let mut batch = InboundBatch::default();
        open_batch(&self.table, &[arrived], &mut batch);
        let packets = batch.packets().map(<[u8]>::to_vec);
        self.outputs.extend(packets.map(Output::PodPacket));
        for item in batch.items {
            self.handle_item(item, now);
        }
    }

    /// A packet that the host sent into the TUN, for a shell without a fast half.
    pub fn handle_pod_packet(&mut self, packet: &[u8], now: Now) {
        let mut batch = OutboundBatch::default();
        seal_batch(&self.table, &[packet], &mut batch);
        let datagrams = batch.datagrams().map(|outgoing| Transmit {
            socket: outgoing.socket,
            to: outgoing.to,
            ttl: None,
            bytes: outgoing.bytes.to_vec(),
        });
        self.outputs.extend(datagrams.map(Output::Transmit));
        for item in batch.items {
            self.handle_item(item, now);
        }
    }

    /// The underlay addresses that others might reach this node by have changed: all of them.
    pub fn handle_underlay(&mut self, _addresses: Vec<IpAddr>, _now: Now) {}

    /// The time that [`Self::poll_timeout`] gave has come.
    pub fn handle_timeout(&mut self, _now: Now) {}

    /// When to call [`Self::handle_timeout`] next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Moment> {
        None
    }

    /// Sends one in-tunnel echo; `Output::PingDone` with the same `id` follows.
    pub fn start_ping(&mut self, target: &str, id: u64, _now: Now) {
        let target = target.to_owned();
        let result = Err(PingError::NotFound { target });
        self.outputs.push_back(Output::PingDone { id, result });
    }

    /// The node as a whole. The shell fills in the interface's index, shards and offloads.
    #[must_use]
    pub fn status(&self, now: Now) -> StatusView {
        StatusView {
            state: NodeState::NotJoined,
            version: self.config.software.clone(),
            generated: now.unix.to_string(),
            uptime_s: 0,
            network: None,
            node: None,
            planets: Vec::new(),
            interface: InterfaceView {
                name: self.plan.device.clone(),
                index: None,
                mtu: self.plan.mtu,
                shards: 0,
                offloads: Vec::new(),
            },
            peers: PeerCounts::default(),
            candidates: Vec::new(),
            drops: Vec::new(),
            health: Vec::new(),
        }
    }

    /// All peers, sorted by site, then name.
    #[must_use]
    pub fn peers(&self, _now: Now) -> Vec<PeerView> {
        Vec::new()
    }

    /// One peer by name, id, overlay or pod address.
    #[must_use]
    pub fn peer(&self, _target: &str, _now: Now) -> Option<PeerDetail> {
        None
    }

    /// What the host should hold, sorted by prefix.
    #[must_use]
    pub fn routes(&self) -> Vec<RouteView> {
        self.plan.routes()
    }

    /// Whether this node is a member with addresses, and whether any peer can be reached. The shell
    /// adds what it knows of the host.
    #[must_use]
    pub fn ready(&self) -> ReadyView {
        ReadyView {
            ready: false,
            connected: false,
            reason: Some("this node has not joined a network".to_owned()),
        }
    }

    /// The network as its root signed it.
    #[must_use]
    pub fn network_statement(&self) -> Option<Signed<RootStatement>> {
        None
    }
}
