//! A network in memory for the tests of this crate: an operator, one planet's behaviour towards
//! nodes, and engines on a wire with 10 ms of delay.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use podmesh_proto::certificate::{
    AdmissionReceipt, Application, Claim, ClaimReceipt, Grant, Leases, Membership, NodeCertificate,
};
use podmesh_proto::id::{Name, NodeId, PlanetId, RelayAddress, TokenId};
use podmesh_proto::key::{SecretKey, SigningKey};
use podmesh_proto::network::{Network, PlanetEntry, Ranges, RootStatement};
use podmesh_proto::planet_api::{
    DirectoryCursor, DirectoryRecord, DirectoryUpdate, NodeMessage, PlanetMessage, Welcome,
};
use podmesh_proto::relayed::{RelayGrant, RelayHeader, RelayKind, RelaySeal};
use podmesh_proto::signed::Signed;
use podmesh_proto::time::{Moment, Now, UnixSeconds};
use podmesh_proto::token::JoinToken;

use crate::config::EngineConfig;
use crate::engine::Engine;
use crate::forwarding::ForwardingTable;
use crate::host_plan::HostPlan;
use crate::output::{Output, PlanetEvent, Received, Transmit};
use crate::path_id::SocketId;
use crate::stored::StoredState;

pub(crate) const START: UnixSeconds = UnixSeconds(1_800_000_000);
const DELAY: Duration = Duration::from_millis(10);

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// The keys of everybody but the nodes.
pub(crate) struct Authority {
    pub(crate) root: SigningKey,
    pub(crate) planet: SigningKey,
    pub(crate) network: Network,
    pub(crate) statement: Signed<RootStatement>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let root = SigningKey::from_seed([101; 32]);
        let planet = SigningKey::from_seed([102; 32]);
        let id = Network::id_of(&root.public());
        let network = Network {
            id,
            name: name("lab"),
            root: root.public(),
            second_root: None,
            version: 1,
            issued: START,
            ranges: Ranges::default_of(&id),
            planets: vec![PlanetEntry {
                id: planet.planet_id(),
                name: name("p1"),
                address: "192.0.2.1:7077".to_owned(),
            }],
            retired: Vec::new(),
        };
        let statement = RootStatement::Network(network.clone());
        let statement = Signed::seal(&statement, &root).unwrap();
        Self {
            root,
            planet,
            network,
            statement,
        }
    }

    pub(crate) fn grant(&self, number: u8) -> (Grant, SigningKey) {
        let key = SigningKey::from_seed([number; 32]);
        let grant = Grant {
            network: self.network.id,
            token: TokenId([number; 16]),
            token_key: key.public(),
            issued: START.minus(1),
            expires: START.plus(100_000),
            uses: 10,
            site: None,
            groups: Vec::new(),
            relay: false,
            ranges: Vec::new(),
            membership: None,
            for_name: None,
            replaces: None,
        };
        (grant, key)
    }

    pub(crate) fn token(&self, number: u8) -> JoinToken {
        let (grant, key) = self.grant(number);
        JoinToken {
            network: self.statement.clone(),
            grant: Signed::seal(&grant, &self.root).unwrap(),
            key,
        }
    }

    pub(crate) fn say(&self, statement: &RootStatement) -> Signed<RootStatement> {
        Signed::seal(statement, &self.root).unwrap()
    }
}

/// A node's keys, made of one number.
pub(crate) struct Keys {
    pub(crate) identity: SigningKey,
    pub(crate) wireguard: SecretKey,
    pub(crate) probe: SecretKey,
}

impl Keys {
    pub(crate) fn new(number: u8) -> Self {
        Self {
            identity: SigningKey::from_seed([number; 32]),
            wireguard: SecretKey::from_bytes([number.wrapping_add(80); 32]),
            probe: SecretKey::from_bytes([number.wrapping_add(160); 32]),
        }
    }

    pub(crate) fn id(&self) -> NodeId {
        self.identity.node_id()
    }
}

/// What a membership of a test says; every field can be spoiled.
pub(crate) struct Draft {
    pub(crate) keys: Keys,
    pub(crate) name: Name,
    pub(crate) grant: Grant,
    pub(crate) token_key: SigningKey,
    pub(crate) use_number: u32,
    pub(crate) sequence: u64,
    pub(crate) serial: u64,
    pub(crate) admitted: UnixSeconds,
    pub(crate) expires: Option<UnixSeconds>,
    pub(crate) overlay4: Option<Ipv4Addr>,
    pub(crate) pod_cidrs: Vec<IpNet>,
}

impl Draft {
    /// Node `number`, with use `number` of token 1, address .number and block number.
    pub(crate) fn new(authority: &Authority, number: u8) -> Self {
        let (grant, token_key) = authority.grant(1);
        Self {
            keys: Keys::new(number),
            name: name(&format!("n{number}")),
            grant: Grant { uses: 255, ..grant },
            token_key,
            use_number: u32::from(number),
            sequence: u64::from(number) * 2,
            serial: 1,
            admitted: START,
            expires: None,
            overlay4: Some(Ipv4Addr::new(10, 77, 0, number)),
            pod_cidrs: nets(&[&format!("10.42.{number}.0/24")]),
        }
    }

    pub(crate) fn build(&self, authority: &Authority) -> Membership {
        let network = authority.network.id;
        let node = self.keys.id();
        let grant = Signed::seal(&self.grant, &authority.root).unwrap();
        let certificate = NodeCertificate {
            network,
            node,
            name: self.name.clone(),
            wireguard: self.keys.wireguard.public(),
            probe: self.keys.probe.public(),
            site: self.grant.site.clone(),
            groups: self.grant.groups.clone(),
            relay: false,
            issued: self.admitted,
            expires: self.expires,
        };
        let application =
            Application::new(grant, &certificate, &self.token_key, &self.keys.identity).unwrap();
        let receipt = AdmissionReceipt {
            network,
            planet: authority.planet.planet_id(),
            token: self.grant.token,
            use_number: self.use_number,
            node,
            name: self.name.clone(),
            certificate: application.certificate.hash(),
            leases: Leases::default(),
            sequence: self.sequence,
            time: self.admitted,
        };
        let claim = Claim {
            network,
            node,
            serial: self.serial,
            overlay4: self.overlay4,
            pod_cidrs: self.pod_cidrs.clone(),
        };
        let claim = Signed::seal(&claim, &self.keys.identity).unwrap();
        let claim_receipt = ClaimReceipt {
            network,
            planet: authority.planet.planet_id(),
            node,
            claim: claim.hash(),
            settles: Vec::new(),
            sequence: self.sequence + 1,
            time: self.admitted,
        };
        Membership {
            application,
            receipt: Signed::seal(&receipt, &authority.planet).unwrap(),
            claim,
            claim_receipt: Signed::seal(&claim_receipt, &authority.planet).unwrap(),
        }
    }
}

struct Session {
    node: usize,
    seal: RelaySeal,
    sent: u64,
    endpoint: Option<SocketAddr>,
}

/// What a planet does for its nodes, without any judgement.
#[derive(Default)]
struct PlanetStub {
    sessions: BTreeMap<u32, Session>,
    connected: BTreeMap<usize, NodeId>,
    members: BTreeMap<NodeId, Membership>,
    receipts: BTreeMap<NodeId, Signed<AdmissionReceipt>>,
    applications: BTreeMap<NodeId, Application>,
    log: Vec<DirectoryRecord>,
    next: u8,
}

pub(crate) struct World {
    pub(crate) authority: Authority,
    pub(crate) engines: Vec<Engine>,
    pub(crate) keys: Vec<u8>,
    pub(crate) stored: Vec<Option<Box<StoredState>>>,
    pub(crate) tables: Vec<Option<std::sync::Arc<ForwardingTable>>>,
    pub(crate) plans: Vec<Option<HostPlan>>,
    pub(crate) delivered: Vec<Vec<Vec<u8>>>,
    pub(crate) notes: Vec<String>,
    pub(crate) now: Now,
    /// Pairs that can't reach each other directly.
    pub(crate) direct_blocked: bool,
    pub(crate) planet_alive: bool,
    pub(crate) off: BTreeSet<usize>,
    planet: PlanetStub,
    wire: Vec<(Moment, u64, usize, Received)>,
    order: u64,
}

const PLANET: &str = "192.0.2.1:7077";

impl World {
    pub(crate) fn new(nodes: u8) -> Self {
        let mut world = Self {
            authority: Authority::new(),
            engines: Vec::new(),
            keys: Vec::new(),
            stored: Vec::new(),
            tables: Vec::new(),
            plans: Vec::new(),
            delivered: Vec::new(),
            notes: Vec::new(),
            now: Now {
                moment: Moment::from_start(Duration::from_secs(1_000)),
                unix: START,
            },
            direct_blocked: false,
            planet_alive: true,
            off: BTreeSet::new(),
            planet: PlanetStub::default(),
            wire: Vec::new(),
            order: 0,
        };
        for number in 1..=nodes {
            world.add(number);
        }
        world
    }

    fn engine(&self, number: u8, stored: Option<Box<StoredState>>) -> Engine {
        let keys = Keys::new(number);
        let config = EngineConfig {
            identity: keys.identity,
            wireguard: keys.wireguard,
            probe: keys.probe,
            stored,
            ports: [7_000 + u16::from(number), 7_100 + u16::from(number)],
            configured: Vec::new(),
            pod_cidrs: Vec::new(),
            mtu: 1_380,
            device: "mesh0".to_owned(),
            software: "test".to_owned(),
        };
        Engine::new(config, [number; 32], self.now).unwrap()
    }

    fn add(&mut self, number: u8) {
        let engine = self.engine(number, None);
        self.engines.push(engine);
        self.keys.push(number);
        self.stored.push(None);
        self.tables.push(None);
        self.plans.push(None);
        self.delivered.push(Vec::new());
        let node = self.engines.len() - 1;
        let address = address_of(number);
        let now = self.now;
        self.engines[node].handle_underlay(vec![address], now);
    }

    /// Joins all nodes, one after the other, and lets them find each other.
    pub(crate) fn join_all(&mut self) {
        for node in 0..self.engines.len() {
            let number = self.keys[node];
            let token = self.authority.token(1);
            let now = self.now;
            self.engines[node]
                .handle_join(&token, name(&format!("n{number}")), now)
                .unwrap();
            self.drain(node);
            self.connect(node);
            self.run(Duration::from_millis(200));
        }
        self.run(Duration::from_secs(10));
    }

    /// The node's process dies and starts again from its disk.
    pub(crate) fn restart(&mut self, node: usize) {
        let stored = self.stored[node].clone();
        self.engines[node] = self.engine(self.keys[node], stored);
        self.planet.connected.remove(&node);
        let address = address_of(self.keys[node]);
        let now = self.now;
        self.engines[node].handle_underlay(vec![address], now);
        self.drain(node);
        self.connect(node);
    }

    pub(crate) fn kill_planet(&mut self) {
        self.planet_alive = false;
        for node in 0..self.engines.len() {
            let reason = "connection lost".to_owned();
            self.planet_event(node, PlanetEvent::Disconnected { reason });
        }
        self.planet = PlanetStub::default();
    }

    pub(crate) fn connect(&mut self, node: usize) {
        if !self.planet_alive {
            return;
        }
        let planet = self.authority.planet.planet_id();
        self.planet_event(
            node,
            PlanetEvent::Connected {
                remote: PLANET.parse().unwrap(),
                rtt: DELAY * 2,
            },
        );
        let hello = self.engines[node].hello(planet, b"exported").unwrap();
        self.planet_hears(node, hello);
    }

    fn planet_event(&mut self, node: usize, event: PlanetEvent) {
        let planet = self.authority.planet.planet_id();
        let now = self.now;
        self.engines[node].handle_planet(planet, event, now);
        self.drain(node);
    }

    pub(crate) fn planet_says(&mut self, node: usize, message: PlanetMessage) {
        self.planet_event(node, PlanetEvent::Message(Box::new(message)));
    }

    fn planet_hears(&mut self, node: usize, message: NodeMessage) {
        if !self.planet_alive {
            return;
        }
        let id = self.engines[node].node_id();
        match message {
            NodeMessage::Hello(hello) => {
                self.planet.connected.insert(node, id);
                if let Some(membership) = hello.membership {
                    self.planet.members.insert(id, *membership);
                }
                self.greet(node);
            }
            NodeMessage::Join(application) => self.admit(node, *application),
            NodeMessage::Claim(claim) => self.receipt_claim(node, &claim),
            NodeMessage::Publish(record) => self.tell_all(DirectoryRecord::Endpoints(record)),
            NodeMessage::Introduce { peer, attempt } => {
                let other = self.planet.connected.iter().find(|(_, id)| **id == peer);
                let Some((&other, _)) = other else {
                    return;
                };
                let fire_in = DELAY;
                for (at, peer) in [(node, peer), (other, id)] {
                    self.planet_says(
                        at,
                        PlanetMessage::Punch {
                            peer,
                            attempt,
                            fire_in,
                        },
                    );
                }
            }
            NodeMessage::Statement(statement) => {
                let others: Vec<usize> = self.planet.connected.keys().copied().collect();
                for other in others.into_iter().filter(|other| *other != node) {
                    self.planet_says(other, PlanetMessage::Statement(statement.clone()));
                }
            }
            NodeMessage::Leave(departure) => self.tell_all(DirectoryRecord::Left(departure)),
            NodeMessage::Report { memberships } => {
                self.notes.push(format!("report {}", memberships.len()));
            }
            NodeMessage::Heartbeat => {}
        }
    }

    fn greet(&mut self, node: usize) {
        let id = self.engines[node].node_id();
        let member = self.planet.members.contains_key(&id);
        let relay = member.then(|| {
            let session = u32::try_from(self.order).unwrap() + 1;
            self.order += 1;
            let key = [u8::try_from(session % 251).unwrap(); 32];
            let seal = RelaySeal::new(&key);
            self.planet
                .sessions
                .retain(|_, session| session.node != node);
            self.planet.sessions.insert(
                session,
                Session {
                    node,
                    seal,
                    sent: 0,
                    endpoint: None,
                },
            );
            RelayGrant { session, key }
        });
        let cursor = self.cursor();
        self.planet_says(
            node,
            PlanetMessage::Welcome(Welcome {
                planet: self.authority.planet.planet_id(),
                observed: SocketAddr::new(address_of(self.keys[node]), 9_999),
                relay,
                time: self.now.unix,
                cursor,
            }),
        );
        if member {
            let records = self.planet.log.clone();
            self.planet_says(
                node,
                PlanetMessage::Directory(DirectoryUpdate {
                    cursor,
                    from_start: true,
                    records,
                }),
            );
            self.tell_all(DirectoryRecord::Presence {
                node: id,
                online: true,
            });
        }
    }

    fn cursor(&self) -> DirectoryCursor {
        DirectoryCursor {
            epoch: 7,
            version: u64::try_from(self.planet.log.len()).unwrap(),
        }
    }

    pub(crate) fn tell_all(&mut self, record: DirectoryRecord) {
        self.planet.log.push(record.clone());
        let cursor = self.cursor();
        let nodes: Vec<usize> = self.planet.connected.keys().copied().collect();
        for node in nodes {
            let id = self.engines[node].node_id();
            if self.planet.members.contains_key(&id) {
                let update = DirectoryUpdate {
                    cursor,
                    from_start: false,
                    records: vec![record.clone()],
                };
                self.planet_says(node, PlanetMessage::Directory(update));
            }
        }
    }

    fn admit(&mut self, node: usize, application: Application) {
        let id = self.engines[node].node_id();
        let (grant, certificate) = application.verify(&self.authority.network).unwrap();
        self.planet.next += 1;
        let number = self.planet.next;
        let receipt = AdmissionReceipt {
            network: grant.network,
            planet: self.authority.planet.planet_id(),
            token: grant.token,
            use_number: u32::from(number),
            node: id,
            name: certificate.name,
            certificate: application.certificate.hash(),
            leases: Leases {
                overlay4: Some(Ipv4Addr::new(10, 77, 0, number)),
                pods4: Some(Ipv4Net::new(Ipv4Addr::new(10, 42, number, 0), 24).unwrap()),
                pods6: Some(pods6(&self.authority.network, number)),
            },
            sequence: u64::from(number) * 2,
            time: self.now.unix,
        };
        let receipt = Signed::seal(&receipt, &self.authority.planet).unwrap();
        self.planet.receipts.insert(id, receipt.clone());
        self.planet.applications.insert(id, application);
        self.planet_says(node, PlanetMessage::Admitted(receipt));
    }

    fn receipt_claim(&mut self, node: usize, claim: &Signed<Claim>) {
        let id = self.engines[node].node_id();
        let sequence = u64::from(self.planet.next) * 2 + 1;
        let receipt = ClaimReceipt {
            network: self.authority.network.id,
            planet: self.authority.planet.planet_id(),
            node: id,
            claim: claim.hash(),
            settles: Vec::new(),
            sequence,
            time: self.now.unix,
        };
        let claim_receipt = Signed::seal(&receipt, &self.authority.planet).unwrap();
        let membership = Membership {
            application: self.planet.applications[&id].clone(),
            receipt: self.planet.receipts[&id].clone(),
            claim: claim.clone(),
            claim_receipt: claim_receipt.clone(),
        };
        self.planet.members.insert(id, membership.clone());
        self.planet_says(node, PlanetMessage::Claimed(claim_receipt));
        self.tell_all(DirectoryRecord::Member(Box::new(membership)));
        self.greet(node);
    }

    /// Lets time pass; everything happens at its time.
    pub(crate) fn run(&mut self, span: Duration) {
        let end = self.now.moment + span;
        loop {
            let timer = (0..self.engines.len())
                .filter(|node| !self.off.contains(node))
                .filter_map(|node| Some((self.engines[node].poll_timeout()?, node)))
                .min();
            let arrival = self.wire.iter().map(|(at, order, ..)| (*at, *order)).min();
            let next = [timer.map(|(at, _)| at), arrival.map(|(at, _)| at)];
            let Some(next) = next.into_iter().flatten().min().filter(|at| *at <= end) else {
                break;
            };
            self.advance(next);
            if let Some((at, order)) = arrival.filter(|(at, _)| *at <= next) {
                let found = self
                    .wire
                    .iter()
                    .position(|one| (one.0, one.1) == (at, order));
                let (_, _, node, received) = self.wire.swap_remove(found.unwrap());
                self.arrive(node, received);
            } else if let Some((_, node)) = timer {
                let now = self.now;
                self.engines[node].handle_timeout(now);
                self.drain(node);
            }
        }
        self.advance(end);
    }

    fn advance(&mut self, to: Moment) {
        let by = to.since(self.now.moment);
        #[cfg(feature = "virtual-time")]
        crate::tunnel::advance_virtual_clock(by);
        self.now.moment = self.now.moment + by;
        let seconds = self.now.moment.since_start().as_secs() - 1_000;
        self.now.unix = START.plus(seconds);
    }

    fn arrive(&mut self, node: usize, received: Received) {
        if node == usize::MAX {
            self.planet_receives(&received);
        } else if !self.off.contains(&node) {
            let now = self.now;
            self.engines[node].handle_datagram(received, now);
            self.drain(node);
        }
    }

    fn planet_receives(&mut self, received: &Received) {
        if !self.planet_alive {
            return;
        }
        let header = RelayHeader::parse(&received.bytes).unwrap();
        let Some(session) = self.planet.sessions.get_mut(&header.session) else {
            return;
        };
        let payload = session.seal.open(&header, &received.bytes).unwrap();
        session.endpoint = Some(received.from);
        let (from, mut bytes) = (session.node, Vec::new());
        if header.kind == RelayKind::Observe {
            let (id, counter) = (header.session, header.counter);
            session
                .seal
                .observed(id, counter, received.from, &mut bytes);
            self.send(received.from, PLANET.parse().unwrap(), bytes);
            return;
        }
        let peer: RelayAddress = self.engines[from].node_id().relay_address();
        let ids: Vec<RelayAddress> = self
            .engines
            .iter()
            .map(|engine| engine.node_id().relay_address())
            .collect();
        let target =
            self.planet.sessions.iter_mut().find(|(_, session)| {
                ids[session.node] == header.peer && session.endpoint.is_some()
            });
        if let Some((id, session)) = target {
            let (kind, counter) = (RelayKind::Down, session.sent);
            session.sent += 1;
            let down = RelayHeader {
                kind,
                session: *id,
                counter,
                peer,
            };
            session.seal.seal(&down, payload, &mut bytes);
            let to = session.endpoint.unwrap();
            self.send(to, PLANET.parse().unwrap(), bytes);
        }
    }

    fn send(&mut self, to: SocketAddr, from: SocketAddr, bytes: Vec<u8>) {
        self.order += 1;
        let at = self.now.moment + DELAY;
        let target = if to == PLANET.parse().unwrap() {
            Some((usize::MAX, SocketId::MAIN))
        } else {
            (0..self.engines.len()).find_map(|node| {
                let number = u16::from(self.keys[node]);
                let here = address_of(self.keys[node]) == to.ip();
                let socket = match to.port() {
                    port if port == 7_000 + number => SocketId::MAIN,
                    port if port == 7_100 + number => SocketId::SPARE,
                    _ => return None,
                };
                here.then_some((node, socket))
            })
        };
        if let Some((node, socket)) = target {
            let received = Received {
                socket,
                from,
                relay: None,
                bytes,
            };
            self.wire.push((at, self.order, node, received));
        }
    }

    /// Does what an engine asked for.
    pub(crate) fn drain(&mut self, node: usize) {
        while let Some(output) = self.engines[node].poll_output() {
            match output {
                Output::Transmit(transmit) => self.transmit(node, transmit),
                Output::Planet { message, .. } => self.planet_hears(node, *message),
                Output::Persist(stored) => self.stored[node] = Some(stored),
                Output::Forwarding(table) => self.tables[node] = Some(table),
                Output::HostPlan(plan) => self.plans[node] = Some(*plan),
                Output::PodPacket(packet) => self.delivered[node].push(packet),
                Output::JoinDone(result) => self.notes.push(format!("join {node} {result:?}")),
                Output::PingDone { result, .. } => {
                    self.notes.push(match result {
                        Ok(view) => format!("ping {} {:.0}", view.name, view.rtt_ms),
                        Err(error) => error.to_string(),
                    });
                }
                Output::Planets(_) | Output::Reconnect(_) => {}
            }
        }
    }

    fn transmit(&mut self, node: usize, transmit: Transmit) {
        let planet = transmit.to == PLANET.parse().unwrap();
        if transmit.ttl.is_some() || (self.direct_blocked && !planet) {
            return;
        }
        let number = u16::from(self.keys[node]);
        let port = if transmit.socket == SocketId::MAIN {
            7_000
        } else {
            7_100
        } + number;
        let from = SocketAddr::new(address_of(self.keys[node]), port);
        self.send(transmit.to, from, transmit.bytes);
    }

    /// The node's host sends a packet into the TUN.
    pub(crate) fn send_packet(&mut self, node: usize, packet: &[u8]) {
        let now = self.now;
        self.engines[node].handle_pod_packet(packet, now);
        self.drain(node);
    }

    pub(crate) fn planet_id(&self) -> PlanetId {
        self.authority.planet.planet_id()
    }
}

fn pods6(network: &Network, number: u8) -> Ipv6Net {
    let mut octets = network.ranges.pods6.network().octets();
    octets[7] = number;
    Ipv6Net::new(octets.into(), 64).unwrap()
}

fn address_of(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, number))
}

/// An IPv4 packet with this payload.
pub(crate) fn packet4(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    let (source, destination): (Ipv4Addr, Ipv4Addr) =
        (source.parse().unwrap(), destination.parse().unwrap());
    let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut packet = vec![0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    packet
}
