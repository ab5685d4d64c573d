//! One node: the slow half's inputs, outputs and views.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use podmesh_proto::candidate::EndpointRecord;
use podmesh_proto::certificate::{Claim, Departure};
use podmesh_proto::id::{Name, NodeId, PlanetId};
use podmesh_proto::local_api::RouteView;
use podmesh_proto::network::RootStatement;
use podmesh_proto::planet_api::NodeMessage;
use podmesh_proto::signed::Signed;
use podmesh_proto::time::{Moment, Now};
use podmesh_proto::token::JoinToken;

use crate::config::EngineConfig;
use crate::drops::{DropReason, Drops};
use crate::error::{JoinError, RequestError, StartError};
use crate::forwarding::ForwardingTable;
use crate::host_plan::HostPlan;
use crate::inbound::{Arrived, InboundBatch, open_batch};
use crate::join::Join;
use crate::limiter::HandshakeLimiter;
use crate::limits;
use crate::membership::Members;
use crate::mutation::{self, Mutant};
use crate::outbound::{OutboundBatch, seal_batch};
use crate::output::{Output, PlanetEvent, Received, SlowItem, Transmit};
use crate::paths::ProbeBudget;
use crate::peers::Peers;
use crate::planets::Planets;
use crate::publishing::OwnEndpoints;
use crate::random::Random;
use crate::reach::Passage;
use crate::timers::{Timer, Timers};
use crate::tunnel::{TunnelKeys, buffer_for};

mod arrivals;
#[cfg(any(test, feature = "virtual-time"))]
mod astray;
mod departures;
mod directory;
mod durable;
mod gossip;
mod joining;
mod late;
mod peer_work;
mod pings;
mod planet_work;
mod record;
mod renewing;
mod start;
mod statements;
mod syncing;
mod tunnel_work;
mod twins;

pub use self::directory::Told;
use self::durable::Disk;
pub(crate) use self::joining::printable;
use self::pings::Ping;
use self::renewing::Renewing;
use self::statements::Comparing;
use self::twins::Twins;

/// The slow half of a node.
pub struct Engine {
    pub(crate) config: EngineConfig,
    pub(crate) started: Now,
    pub(crate) members: Option<Members>,
    pub(crate) join: Option<Join>,
    pub(crate) planets: Planets,
    pub(crate) peers: Peers,
    pub(crate) endpoints: OwnEndpoints,
    pub(crate) drops: Arc<Drops>,
    pub(crate) plan: HostPlan,
    pub(crate) record: Option<(EndpointRecord, Signed<EndpointRecord>)>,
    outputs: VecDeque<Output>,
    random: Random,
    timers: Timers,
    keys: TunnelKeys,
    /// This node's id: its first identity.
    node: NodeId,
    pub(crate) renewing: Renewing,
    comparing: Comparing,
    limiter: HandshakeLimiter,
    budget: ProbeBudget,
    /// Peers whose last endpoint record waits until it counts.
    held_editions: BTreeSet<NodeId>,
    table: Arc<ForwardingTable>,
    presence: BTreeMap<(NodeId, PlanetId), bool>,
    pings: BTreeMap<u64, Ping>,
    claim: Option<Signed<Claim>>,
    /// This node's own departure, until it has joined anew.
    left: Option<Signed<Departure>>,
    claim_serial: u64,
    incarnation: u64,
    twins: Twins,
    sequence: u64,
    waiting_bytes: usize,
    rebuilt: Option<Moment>,
    /// When a handshake was under way last.
    stirred: Option<Moment>,
    persisted: Option<Moment>,
    disk: Disk,
    dirty: bool,
    scratch: Vec<u8>,
}

impl Engine {
    /// A node as its last life left it. `seed` is from a cryptographic random source.
    ///
    /// # Errors
    /// What was stored is of another node or a newer program.
    pub fn new(mut config: EngineConfig, seed: [u8; 32], now: Now) -> Result<Self, StartError> {
        let stored = config.stored.take();
        let drops = Arc::new(Drops::default());
        let mut engine = Self {
            started: now,
            members: None,
            join: None,
            planets: Planets::default(),
            peers: Peers::default(),
            endpoints: OwnEndpoints::new(config.ports, config.configured.clone()),
            plan: HostPlan::empty(&config.device, config.mtu),
            record: None,
            outputs: VecDeque::new(),
            random: Random::new(if mutation::is(Mutant::SeedRepeats) {
                config.keys.identity.node_id().0
            } else {
                seed
            }),
            timers: Timers::default(),
            node: config.keys.identity.node_id(),
            renewing: Renewing::default(),
            comparing: Comparing::default(),
            keys: TunnelKeys::of_kind(&config.keys.wireguard, config.tunnel),
            limiter: HandshakeLimiter::default(),
            budget: ProbeBudget::new(now.moment),
            held_editions: BTreeSet::new(),
            table: Arc::new(ForwardingTable::empty(Arc::clone(&drops))),
            presence: BTreeMap::new(),
            pings: BTreeMap::new(),
            claim: None,
            left: None,
            claim_serial: 0,
            incarnation: now.unix.0,
            twins: Twins::default(),
            sequence: 0,
            waiting_bytes: 0,
            rebuilt: None,
            stirred: None,
            persisted: None,
            disk: Disk::default(),
            dirty: false,
            scratch: vec![0; buffer_for(limits::MAX_PACKET)],
            drops,
            config,
        };
        engine.keys.tell(now);
        engine.timers.set(Timer::Second, now.moment);
        if let Some(stored) = stored {
            engine.restore(*stored, now)?;
        }
        engine.settle(now);
        Ok(engine)
    }

    /// This node's id.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        self.node
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
        name: Name,
        now: Now,
    ) -> Result<(), JoinError> {
        self.begin_join(token, name, now)?;
        self.settle(now);
        Ok(())
    }

    /// Leaves the network: tells the planets, forgets members and paths, keeps keys.
    ///
    /// # Errors
    /// Neither a member nor joining.
    pub fn handle_leave(&mut self, now: Now) -> Result<(), RequestError> {
        self.keys.tell(now);
        self.leave(now)?;
        self.settle(now);
        Ok(())
    }

    /// Forgets the network, members and paths and says so to nobody: another machine goes on with this
    /// identity. The keys have to go, too.
    ///
    /// # Errors
    /// Neither a member nor joining.
    pub fn handle_abandon(&mut self, now: Now) -> Result<(), RequestError> {
        self.keys.tell(now);
        self.abandon(now)?;
        self.settle(now);
        Ok(())
    }

    /// Takes something that the root said, and passes it on.
    ///
    /// # Errors
    /// Not a member, or the root of this network didn't say it.
    pub fn handle_statement(
        &mut self,
        statement: Signed<RootStatement>,
        now: Now,
    ) -> Result<Told, RequestError> {
        let told = self.take_operators_statement(&statement, now)?;
        self.settle(now);
        Ok(told)
    }

    /// Something happened on the control connection to a planet.
    pub fn handle_planet(&mut self, planet: PlanetId, event: PlanetEvent, now: Now) {
        self.keys.tell(now);
        match event {
            PlanetEvent::Connected { remote, rtt } => {
                self.planet_connected(planet, (remote, rtt), now);
            }
            PlanetEvent::Rtt(rtt) => {
                if let Some(connection) = self.planets.connection(&planet) {
                    connection.rtt = rtt;
                }
            }
            PlanetEvent::Message(message) => self.planet_said(planet, *message, now),
            PlanetEvent::Disconnected { reason } => self.planet_lost(planet, reason, now),
        }
        self.settle(now);
    }

    /// The first message on a new control connection to `planet`, whose exported keying material is
    /// `exported`; `None` for a node that neither is a member nor wants to be.
    #[must_use]
    pub fn hello(&self, planet: PlanetId, exported: &[u8]) -> Option<NodeMessage> {
        self.hello_to(&planet, exported)
    }

    /// Something that the fast half couldn't do.
    pub fn handle_item(&mut self, item: SlowItem, now: Now) {
        self.keys.tell(now);
        self.take_item(item, now);
        self.settle(now);
    }

    /// A datagram of any kind, for a shell without a fast half.
    pub fn handle_datagram(&mut self, received: Received, now: Now) {
        self.keys.tell(now);
        let arrived = Arrived {
            socket: received.socket,
            from: received.from,
            bytes: &received.bytes,
            segment: received.bytes.len(),
            ecn: 0,
        };
        let mut batch = InboundBatch::default();
        open_batch(&self.table, &[arrived], &mut batch);
        for _ in batch.strays(&[arrived]) {
            self.drops.count(DropReason::UnknownTunnel);
        }
        let packets = batch
            .runs()
            .map(|(_, parts)| parts.flatten().copied().collect());
        self.outputs.extend(packets.map(Output::PodPacket));
        for item in batch.items {
            self.take_item(item, now);
        }
        self.settle(now);
    }

    /// A packet that the host sent into the TUN, for a shell without a fast half.
    pub fn handle_pod_packet(&mut self, packet: &[u8], now: Now) {
        self.keys.tell(now);
        self.send_pod_packets(&[packet], now);
        self.settle(now);
    }

    /// The underlay addresses that others might reach this node by have changed: all of them.
    pub fn handle_underlay(&mut self, addresses: Vec<IpAddr>, now: Now) {
        self.keys.tell(now);
        if self.endpoints.set_addresses(addresses) {
            self.underlay_changed(now);
        }
        self.settle(now);
    }

    /// The system refused to send a datagram to `to` from `socket`: no route, or not permitted.
    pub fn handle_unreachable(
        &mut self,
        socket: crate::path_id::SocketId,
        to: std::net::SocketAddr,
        now: Now,
    ) {
        self.keys.tell(now);
        self.paths_unreachable(socket, to, now);
        self.settle(now);
    }

    /// Fresh bytes of a cryptographic random source: wanted now and then, and whenever the machine may have
    /// been copied while it ran, so that the copies don't go on with the same nonces.
    pub fn handle_entropy(&mut self, fresh: [u8; 32]) {
        self.random.mix(fresh);
    }

    /// The time that [`Self::poll_timeout`] gave has come.
    pub fn handle_timeout(&mut self, now: Now) {
        self.keys.tell(now);
        for timer in self.timers.take_due(now.moment) {
            self.run(timer, now);
        }
        // Bounded, so that paths that are always due can't keep the engine in here.
        for _ in 0..=self.peers.len() {
            let Some(node) = self.peers.due(now.moment) else {
                break;
            };
            self.with_paths(&node, now, |paths| paths.handle_timeout(now));
        }
        self.settle(now);
    }

    /// When to call [`Self::handle_timeout`] next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Moment> {
        let next = [self.timers.next(), self.peers.next_deadline()];
        next.into_iter().flatten().min()
    }

    /// Sends one in-tunnel echo; `Output::PingDone` with the same `id` follows.
    pub fn start_ping(&mut self, target: &str, id: u64, now: Now) {
        self.keys.tell(now);
        self.begin_ping(target, id, now);
        self.settle(now);
    }

    /// What the host should hold, sorted by prefix.
    #[must_use]
    pub fn routes(&self) -> Vec<RouteView> {
        self.plan.routes()
    }

    /// The network as its root signed it.
    #[must_use]
    pub fn network_statement(&self) -> Option<Signed<RootStatement>> {
        let joined = self.members.as_ref().map(Members::network_statement);
        joined.or(self.join.as_ref().map(Join::statement)).cloned()
    }

    fn run(&mut self, timer: Timer, now: Now) {
        match timer {
            Timer::Second => self.each_second(now),
            Timer::Tunnels => self.tick_tunnels(now),
            Timer::Traffic => self.sample_traffic(now),
            Timer::Heartbeat(planet) => self.heartbeat(planet, now),
            Timer::Observe(planet) => self.observe(planet, now),
            Timer::Report(planet) => self.report(planet, now),
            Timer::Late(planet) => self.tell_late_planet(planet, now),
            Timer::Statements => self.tell_statements(now),
            Timer::Join(planet) => self.ask_again(planet, now),
            Timer::Departures(planet) => self.tell_departures(planet),
            Timer::Renew(planet) => self.renew_again(planet, now),
            Timer::Rebuild => self.rebuild(now),
            Timer::Persist => self.persist(now),
        }
    }

    fn each_second(&mut self, now: Now) {
        let next = now.moment.after_on_grid(limits::SECOND);
        self.timers.set(Timer::Second, next);
        self.keys.start_second();
        if let Some(members) = &mut self.members {
            members.expire(now.unix);
        }
        self.ask_planets_again(now);
        self.resume_rotation(now);
        self.renew_when_due(now);
        self.forget_spent_revocations(now);
        self.take_held_editions(now);
        self.look_for_twins(now);
        self.settle_lives(now);
        self.end_pings(now);
        self.forget_waiting(now);
    }

    /// This life ends in good order: what makes the next one begin quickly goes to disk.
    pub fn handle_stop(&mut self, now: Now) {
        self.keys.tell(now);
        if self.members.is_some() {
            self.persist(now);
        }
    }

    /// Gives packets of the host to the fast half's stage.
    fn send_pod_packets(&mut self, packets: &[&[u8]], now: Now) {
        let mut batch = OutboundBatch::default();
        let mut packets: Vec<Vec<u8>> = packets.iter().map(|packet| packet.to_vec()).collect();
        let mut packets: Vec<_> = packets
            .iter_mut()
            .map(|packet| packet.as_mut_slice().into())
            .collect();
        seal_batch(&self.table, &mut packets, &mut batch);
        let datagrams = batch.runs().flat_map(|run| {
            run.datagrams().map(move |bytes| Transmit {
                socket: run.socket,
                to: run.to,
                passage: Passage::Ordinary,
                bytes: bytes.to_vec(),
            })
        });
        self.outputs.extend(datagrams.map(Output::Transmit));
        for item in batch.items {
            self.take_item(item, now);
        }
    }

    fn say(&mut self, planet: PlanetId, message: NodeMessage) {
        self.outputs.push_back(Output::Planet {
            planet,
            message: Box::new(message),
        });
    }
}

#[cfg(test)]
mod tests;
