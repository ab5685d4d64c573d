//! Nodes that have paths and nothing else: sessions are numbers, planets are a few lines.
//!
//! Path logic is debugged here, thousands of runs per second; `world` runs whole engines.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use podmesh_engine::path_id::{PathId, SocketId};
use podmesh_engine::paths::{Local, PathAction, Paths, ProbeBudget, SwitchReason, TrafficSample};
use podmesh_proto::candidate::{Candidate, CandidateKind, EndpointRecord};
use podmesh_proto::id::{NetworkId, NodeId, PlanetId};
use podmesh_proto::probe::ProbeBody;
use podmesh_proto::time::{Moment, Now, UnixSeconds};

use crate::nat::{Nat, NatKind};
use crate::net::{HostId, Net, Occurrence, SiteId};

pub const PORTS: [u16; 2] = [41_000, 42_000];
const PLANET_PORT: u16 = 7_077;

#[derive(Debug, Clone)]
pub enum Wire {
    Probe(ProbeBody),
    Initiation(u64),
    Response(u64),
    Echo {
        session: u64,
        id: u64,
        reply: bool,
        length: u16,
    },
    Data {
        session: u64,
    },
    Observe {
        node: usize,
        main: bool,
    },
    Observed(SocketAddr),
    Relayed {
        from: usize,
        to: usize,
        inner: Box<Wire>,
    },
}

#[derive(Debug)]
pub enum Work {
    Wake(usize),
    Talk {
        from: usize,
        to: usize,
        every: Duration,
        until: Moment,
    },
    Sample(usize),
    ToPlanet {
        planet: usize,
        node: usize,
        message: Ask,
    },
    ToNode {
        planet: usize,
        node: usize,
        message: Tell,
    },
    Refresh {
        node: usize,
        life: u32,
    },
}

#[derive(Debug)]
pub enum Ask {
    Hello,
    Publish(EndpointRecord),
    Introduce { peer: usize, attempt: u32 },
}

#[derive(Debug)]
pub enum Tell {
    Welcome,
    Record(usize, EndpointRecord),
    Punch {
        peer: usize,
        attempt: u32,
        fire_in: Duration,
    },
    Gone,
}

#[derive(Debug)]
pub struct Planet {
    pub host: HostId,
    pub id: PlanetId,
    pub up: bool,
    records: BTreeMap<usize, EndpointRecord>,
    main: BTreeMap<usize, SocketAddr>,
}

pub struct Peer {
    pub paths: Paths,
    session: Option<u64>,
    offered: Option<u64>,
    before: Option<u64>,
    sent: u64,
    received: BTreeMap<PathId, u64>,
    pub delivered: u64,
    /// Paths over which an echo has come back.
    proven: Vec<PathId>,
    pub switches: Vec<(Moment, Option<PathId>, SwitchReason)>,
    pub last_delivery: Option<Moment>,
}

pub struct Node {
    pub host: HostId,
    pub id: NodeId,
    pub up: bool,
    life: u32,
    incarnation: u64,
    sequence: u64,
    connected: Vec<usize>,
    seen: BTreeMap<(usize, SocketId), SocketAddr>,
    symmetric: bool,
    pub peers: BTreeMap<usize, Peer>,
    budget: ProbeBudget,
    wake: Option<Moment>,
    pub probes: u64,
    cache: BTreeMap<usize, Vec<(SocketId, SocketAddr)>>,
    records: BTreeMap<usize, EndpointRecord>,
}

pub struct Fake {
    pub net: Net<Wire, Work>,
    pub nodes: Vec<Node>,
    pub planets: Vec<Planet>,
    pub verbose: bool,
    wakes: u64,
}

impl Fake {
    pub fn new(seed: u64) -> Self {
        Self {
            net: Net::new(seed),
            nodes: Vec::new(),
            planets: Vec::new(),
            verbose: std::env::var_os("SIM_VERBOSE").is_some(),
            wakes: 0,
        }
    }

    pub fn now(&self) -> Now {
        let unix = UnixSeconds(1_700_000_000 + self.net.now.since_start().as_secs());
        Now {
            moment: self.net.now,
            unix,
        }
    }

    pub fn planet(&mut self) -> usize {
        let n = self.planets.len() as u8;
        let site = self.net.site(None);
        let host = self
            .net
            .host(site, vec![IpAddr::from([203, 0, 113, n + 1])]);
        self.planets.push(Planet {
            host,
            id: PlanetId([n + 1; 32]),
            up: true,
            records: BTreeMap::new(),
            main: BTreeMap::new(),
        });
        self.planets.len() - 1
    }

    /// A site with this kind of NAT and a node in it.
    pub fn node(&mut self, kind: NatKind) -> usize {
        let n = self.net.sites.len() as u8;
        let outside = IpAddr::from([198, 51, 100, n + 1]);
        let nat = kind.rules().map(|rules| Nat::new(rules, outside));
        let inside = if nat.is_some() {
            IpAddr::from([10, n, 0, 2])
        } else {
            outside
        };
        let site = self.net.site(nat);
        self.node_at(site, vec![inside])
    }

    pub fn node_at(&mut self, site: SiteId, addresses: Vec<IpAddr>) -> usize {
        let host = self.net.host(site, addresses);
        let mut id = [0; 32];
        id[..8].copy_from_slice(&self.net.random.next().to_be_bytes());
        self.nodes.push(Node {
            host,
            id: NodeId(id),
            up: false,
            life: 0,
            incarnation: 0,
            sequence: 0,
            connected: Vec::new(),
            seen: BTreeMap::new(),
            symmetric: false,
            peers: BTreeMap::new(),
            budget: ProbeBudget::new(self.net.now),
            wake: None,
            probes: 0,
            cache: BTreeMap::new(),
            records: BTreeMap::new(),
        });
        self.nodes.len() - 1
    }

    /// One delay for every way of the internet.
    pub fn all_links(&mut self, mut delay: impl FnMut(SiteId, SiteId) -> Duration) {
        let sites = self.net.sites.len();
        for a in 0..sites {
            for b in 0..sites {
                if a != b {
                    self.net.link(a, b, delay(a, b));
                }
            }
        }
    }

    /// Starts a node's process, with what it remembers from its last.
    pub fn start(&mut self, index: usize) {
        let now = self.now();
        let others: Vec<(usize, NodeId)> = self
            .nodes
            .iter()
            .enumerate()
            .map(|(n, node)| (n, node.id))
            .filter(|(n, _)| *n != index)
            .collect();
        let seeds: Vec<u64> = others.iter().map(|_| self.net.random.next()).collect();
        let hosts = self.net.hosts[self.nodes[index].host].addresses.clone();
        let node = &mut self.nodes[index];
        node.up = true;
        node.life += 1;
        node.incarnation = now.unix.0;
        node.peers.clear();
        for ((other, id), seed) in others.into_iter().zip(seeds) {
            let mut paths = Paths::new(node.id, id, seed, now);
            let local = Local {
                hosts: hosts.clone(),
                ..Local::default()
            };
            paths.set_local(local, now);
            if let Some(cached) = node.cache.get(&other) {
                paths.set_cached(cached, now);
            }
            if let Some(record) = node.records.get(&other) {
                paths.set_remote(record, now);
            }
            let peer = Peer {
                paths,
                session: None,
                offered: None,
                before: None,
                sent: 0,
                received: BTreeMap::new(),
                delivered: 0,
                proven: Vec::new(),
                switches: Vec::new(),
                last_delivery: None,
            };
            node.peers.insert(other, peer);
        }
        let life = node.life;
        self.net
            .schedule(now.moment, Work::Refresh { node: index, life });
        self.net
            .schedule(now.moment + Duration::from_millis(500), Work::Sample(index));
        self.flush(index);
    }

    /// Cuts a node's power.
    pub fn stop(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.up = false;
        node.cache = node
            .peers
            .iter()
            .map(|(other, peer)| (*other, peer.paths.last_good()))
            .collect();
        node.connected.clear();
        node.seen.clear();
        node.peers.clear();
        for planet in &mut self.planets {
            planet.records.remove(&index);
            planet.main.remove(&index);
        }
    }

    /// Sends data each `every` until `until`.
    pub fn talk(&mut self, from: usize, to: usize, every: Duration, until: Moment) {
        let at = self.net.now;
        self.net.schedule(
            at,
            Work::Talk {
                from,
                to,
                every,
                until,
            },
        );
    }

    pub fn kill_planet(&mut self, planet: usize) {
        self.planets[planet].up = false;
        self.planets[planet].records.clear();
        self.planets[planet].main.clear();
        for node in 0..self.nodes.len() {
            let at = self.net.now + Duration::from_secs(20);
            self.net.schedule(
                at,
                Work::ToNode {
                    planet,
                    node,
                    message: Tell::Gone,
                },
            );
        }
    }

    pub fn set_address(&mut self, node: usize, address: IpAddr) {
        let host = self.nodes[node].host;
        self.net.hosts[host].addresses = vec![address];
        self.publish(node);
        let life = self.nodes[node].life;
        self.net
            .schedule(self.net.now, Work::Refresh { node, life });
    }

    /// Runs until `end`, or until `done` says so.
    pub fn run(&mut self, end: Moment, mut done: impl FnMut(&Self) -> bool) -> bool {
        while let Some(occurrence) = self.net.next(end) {
            match occurrence {
                Occurrence::Datagram {
                    host,
                    port,
                    from,
                    payload,
                    ..
                } => self.datagram(host, port, from, payload),
                Occurrence::Work(work) => self.work(work),
            }
            if done(self) {
                return true;
            }
        }
        false
    }

    pub fn run_for(&mut self, duration: Duration) {
        let end = self.net.now + duration;
        self.run(end, |_| false);
    }

    pub fn paths(&self, from: usize, to: usize) -> &Paths {
        &self.nodes[from].peers[&to].paths
    }

    pub fn is_direct(&self, from: usize, to: usize) -> bool {
        self.nodes[from]
            .peers
            .get(&to)
            .and_then(|peer| peer.paths.active())
            .is_some_and(|path| path.is_direct())
    }

    pub fn is_connected(&self, from: usize, to: usize) -> bool {
        self.nodes[from]
            .peers
            .get(&to)
            .is_some_and(|peer| peer.paths.active().is_some())
    }

    fn work(&mut self, work: Work) {
        let now = self.now();
        match work {
            Work::Wake(node) => {
                if self.nodes[node].wake == Some(now.moment) {
                    self.wakes += 1;
                    let minutes = now.moment.since_start().as_secs() / 60;
                    assert!(self.wakes < 1_000 * (minutes + 1), "woken without end");
                    self.nodes[node].wake = None;
                    for peer in self.nodes[node].peers.values_mut() {
                        if peer
                            .paths
                            .poll_timeout(now)
                            .is_some_and(|at| at <= now.moment)
                        {
                            peer.paths.handle_timeout(now);
                        }
                    }
                    self.flush(node);
                }
            }
            Work::Talk {
                from,
                to,
                every,
                until,
            } => {
                if now.moment < until {
                    self.net.schedule(
                        now.moment + every,
                        Work::Talk {
                            from,
                            to,
                            every,
                            until,
                        },
                    );
                }
                self.say(from, to);
            }
            Work::Sample(node) => {
                if self.nodes[node].up {
                    self.sample(node);
                    self.net
                        .schedule(now.moment + Duration::from_millis(500), Work::Sample(node));
                }
            }
            Work::ToPlanet {
                planet,
                node,
                message,
            } => self.planet_hears(planet, node, message),
            Work::ToNode {
                planet,
                node,
                message,
            } => self.node_hears(planet, node, message),
            Work::Refresh { node, life } => {
                if self.nodes[node].up && self.nodes[node].life == life {
                    self.refresh(node);
                    let at = now.moment + Duration::from_secs(15);
                    self.net.schedule(at, Work::Refresh { node, life });
                }
            }
        }
    }

    /// Greets planets and asks them where they see this node.
    fn refresh(&mut self, node: usize) {
        for planet in 0..self.planets.len() {
            self.ask(planet, node, Ask::Hello);
            let to = self.planet_endpoint(planet);
            for port in PORTS {
                let wire = Wire::Observe {
                    node,
                    main: port == PORTS[0],
                };
                self.net.send(self.nodes[node].host, port, to, None, wire);
            }
        }
    }

    fn planet_endpoint(&self, planet: usize) -> SocketAddr {
        let host = self.planets[planet].host;
        SocketAddr::new(self.net.hosts[host].addresses[0], PLANET_PORT)
    }

    fn ask(&mut self, planet: usize, node: usize, message: Ask) {
        let at = self.net.now
            + self
                .net
                .delay(self.nodes[node].host, self.planets[planet].host);
        self.net.schedule(
            at,
            Work::ToPlanet {
                planet,
                node,
                message,
            },
        );
    }

    fn tell(&mut self, planet: usize, node: usize, message: Tell) {
        let at = self.net.now
            + self
                .net
                .delay(self.planets[planet].host, self.nodes[node].host);
        self.net.schedule(
            at,
            Work::ToNode {
                planet,
                node,
                message,
            },
        );
    }

    fn planet_hears(&mut self, planet: usize, node: usize, message: Ask) {
        if !self.planets[planet].up || !self.nodes[node].up {
            return;
        }
        match message {
            Ask::Hello => self.tell(planet, node, Tell::Welcome),
            Ask::Publish(record) => {
                let others: Vec<(usize, EndpointRecord)> = self.planets[planet]
                    .records
                    .iter()
                    .filter(|(other, _)| **other != node)
                    .map(|(other, record)| (*other, record.clone()))
                    .collect();
                for (other, known) in others {
                    self.tell(planet, node, Tell::Record(other, known));
                    self.tell(planet, other, Tell::Record(node, record.clone()));
                }
                self.planets[planet].records.insert(node, record);
            }
            Ask::Introduce { peer, attempt } => {
                if !self.planets[planet].records.contains_key(&peer) {
                    return;
                }
                let half = |other: usize| {
                    let (a, b) = (self.planets[planet].host, self.nodes[other].host);
                    (self.net.delay(a, b) + self.net.delay(b, a)) / 2
                };
                let ways = [(node, peer, half(node)), (peer, node, half(peer))];
                let longest = ways
                    .iter()
                    .map(|(_, _, half)| *half)
                    .max()
                    .unwrap_or_default();
                for (to, with, half) in ways {
                    let fire_in = longest - half + Duration::from_millis(5);
                    self.tell(
                        planet,
                        to,
                        Tell::Punch {
                            peer: with,
                            attempt,
                            fire_in,
                        },
                    );
                }
            }
        }
    }

    fn node_hears(&mut self, planet: usize, node: usize, message: Tell) {
        let now = self.now();
        if !self.nodes[node].up {
            return;
        }
        match message {
            Tell::Welcome => {
                if !self.nodes[node].connected.contains(&planet) {
                    self.nodes[node].connected.push(planet);
                    self.publish(node);
                    self.relays(node);
                }
            }
            Tell::Gone => {
                self.nodes[node].connected.retain(|other| *other != planet);
                self.nodes[node]
                    .seen
                    .retain(|(other, _), _| *other != planet);
                self.relays(node);
            }
            Tell::Record(other, record) => {
                if let Some(peer) = self.nodes[node].peers.get_mut(&other) {
                    peer.paths.set_remote(&record, now);
                }
                self.nodes[node].records.insert(other, record);
                self.relays(node);
            }
            Tell::Punch {
                peer,
                attempt,
                fire_in,
            } => {
                if let Some(peer) = self.nodes[node].peers.get_mut(&peer) {
                    peer.paths.handle_punch(attempt, fire_in, now);
                }
            }
        }
        self.flush(node);
    }

    fn relays(&mut self, node: usize) {
        let now = self.now();
        let connected: Vec<PlanetId> = self.nodes[node]
            .connected
            .iter()
            .map(|planet| self.planets[*planet].id)
            .collect();
        let node = &mut self.nodes[node];
        for (other, peer) in &mut node.peers {
            let known = node.records.get(other);
            let common: Vec<PlanetId> = connected
                .iter()
                .filter(|id| known.is_some_and(|record| record.planets.contains(id)))
                .copied()
                .collect();
            peer.paths.set_relays(&common, now);
        }
    }

    fn publish(&mut self, index: usize) {
        let hosts = self.net.hosts[self.nodes[index].host].addresses.clone();
        let node = &mut self.nodes[index];
        let mut candidates: Vec<Candidate> = hosts
            .iter()
            .map(|ip| Candidate {
                kind: CandidateKind::Host,
                endpoint: SocketAddr::new(*ip, PORTS[0]),
            })
            .collect();
        for ((_, socket), endpoint) in &node.seen {
            let kind = if *socket == SocketId::MAIN {
                CandidateKind::Reflexive
            } else {
                CandidateKind::Spare
            };
            if !candidates
                .iter()
                .any(|candidate| candidate.endpoint == *endpoint)
            {
                candidates.push(Candidate {
                    kind,
                    endpoint: *endpoint,
                });
            }
        }
        node.sequence += 1;
        let record = EndpointRecord {
            network: NetworkId([1; 16]),
            node: node.id,
            incarnation: node.incarnation,
            sequence: node.sequence,
            candidates,
            planets: node
                .connected
                .iter()
                .map(|planet| self.planets[*planet].id)
                .collect(),
        };
        let connected = node.connected.clone();
        for planet in connected {
            self.ask(planet, index, Ask::Publish(record.clone()));
        }
        let now = self.now();
        let node = &mut self.nodes[index];
        let mut reflexive: Vec<(SocketId, SocketAddr)> = Vec::new();
        for ((_, socket), endpoint) in &node.seen {
            if !reflexive.contains(&(*socket, *endpoint)) {
                reflexive.push((*socket, *endpoint));
            }
        }
        let local = Local {
            hosts,
            reflexive,
            symmetric: node.symmetric,
            since: Some(now.moment),
        };
        for peer in node.peers.values_mut() {
            peer.paths.set_local(local.clone(), now);
        }
        self.flush(index);
    }

    fn say(&mut self, from: usize, to: usize) {
        let Some(peer) = self.nodes[from].peers.get_mut(&to) else {
            return;
        };
        let (Some(path), Some(session)) = (peer.paths.active(), peer.session) else {
            return;
        };
        peer.sent += 1;
        self.transmit(from, to, path, None, Wire::Data { session });
    }

    fn sample(&mut self, node: usize) {
        let now = self.now();
        for peer in self.nodes[node].peers.values_mut() {
            let received: Vec<(PathId, u64)> =
                std::mem::take(&mut peer.received).into_iter().collect();
            let sent = std::mem::take(&mut peer.sent);
            if sent > 0 || !received.is_empty() {
                peer.paths.handle_traffic(
                    &TrafficSample {
                        sent,
                        received: &received,
                    },
                    now,
                );
            }
        }
        self.flush(node);
    }

    fn transmit(&mut self, from: usize, to: usize, path: PathId, ttl: Option<u8>, wire: Wire) {
        let host = self.nodes[from].host;
        match path {
            PathId::Direct { socket, endpoint } => {
                let port = PORTS[usize::from(socket.0)];
                if !self.net.send(host, port, endpoint, ttl, wire) {
                    let now = self.now();
                    if let Some(peer) = self.nodes[from].peers.get_mut(&to) {
                        peer.paths.handle_unreachable(path, now);
                    }
                }
            }
            PathId::Relay { planet } => {
                let planet = self
                    .planets
                    .iter()
                    .position(|one| one.id == planet)
                    .unwrap();
                let endpoint = self.planet_endpoint(planet);
                let wire = Wire::Relayed {
                    from,
                    to,
                    inner: Box::new(wire),
                };
                self.net.send(host, PORTS[0], endpoint, None, wire);
            }
        }
    }

    /// Does what a node's paths say, and plans when to wake it.
    fn flush(&mut self, index: usize) {
        let now = self.now();
        let others: Vec<usize> = self.nodes[index].peers.keys().copied().collect();
        for other in &others {
            while let Some(action) = self.nodes[index]
                .peers
                .get_mut(other)
                .and_then(|peer| peer.paths.poll_action())
            {
                self.act(index, *other, action);
            }
        }
        let node = &mut self.nodes[index];
        let next = node
            .peers
            .values()
            .filter_map(|peer| peer.paths.poll_timeout(now))
            .min();
        if let Some(next) = next {
            let next = next.max(now.moment + Duration::from_nanos(1));
            if node
                .wake
                .is_none_or(|wake| next < wake || wake <= now.moment)
            {
                node.wake = Some(next);
                self.net.schedule(next, Work::Wake(index));
            }
        }
    }

    fn act(&mut self, index: usize, other: usize, action: PathAction) {
        let now = self.now();
        if self.verbose {
            let millis = now.moment.since_start().as_millis();
            println!("{millis:>9} {index}->{other} {action:?}");
        }
        let peer_id = self.nodes[other].id;
        let node = &mut self.nodes[index];
        match action {
            PathAction::SendProbe {
                path,
                body,
                ttl,
                unproven,
            } => {
                let PathId::Direct { endpoint, .. } = path else {
                    panic!("probe over a relay")
                };
                if unproven && !node.budget.take(peer_id, endpoint.ip(), now.moment) {
                    return;
                }
                node.probes += 1;
                self.transmit(index, other, path, ttl, Wire::Probe(body));
            }
            PathAction::SendEcho {
                path,
                id,
                reply,
                length,
            } => {
                let Some(session) = node.peers[&other].session else {
                    return;
                };
                self.transmit(
                    index,
                    other,
                    path,
                    None,
                    Wire::Echo {
                        session,
                        id,
                        reply,
                        length,
                    },
                );
            }
            PathAction::Introduce { attempt } => {
                if let Some(planet) = node.connected.first().copied() {
                    self.ask(
                        planet,
                        index,
                        Ask::Introduce {
                            peer: other,
                            attempt,
                        },
                    );
                }
            }
            PathAction::Handshake { path } => {
                let session = self.net.random.next();
                node.peers.get_mut(&other).unwrap().offered = Some(session);
                self.transmit(index, other, path, None, Wire::Initiation(session));
            }
            PathAction::Select { path, reason } => {
                let peer = node.peers.get_mut(&other).unwrap();
                if let Some(path) = path {
                    assert!(peer.proven.contains(&path), "{path} chosen without an echo");
                }
                peer.switches.push((now.moment, path, reason));
            }
            PathAction::Observed { socket, endpoint } => {
                let differs = node.seen.iter().any(|((_, of), seen)| {
                    *of == socket && seen.ip() == endpoint.ip() && seen.port() != endpoint.port()
                });
                if differs && !node.symmetric {
                    node.symmetric = true;
                    self.publish(index);
                }
            }
        }
    }

    fn datagram(&mut self, host: HostId, port: u16, from: SocketAddr, wire: Wire) {
        if let Some(planet) = self.planets.iter().position(|planet| planet.host == host) {
            self.planet_datagram(planet, port, from, wire);
            return;
        }
        let Some(index) = self
            .nodes
            .iter()
            .position(|node| node.host == host && node.up)
        else {
            return;
        };
        let Some(socket) = PORTS.iter().position(|one| *one == port) else {
            return;
        };
        let socket = SocketId(socket as u8);
        match wire {
            Wire::Relayed {
                from: sender,
                inner,
                ..
            } => {
                let planet = self
                    .planets
                    .iter()
                    .position(|planet| self.net.hosts[planet.host].addresses.contains(&from.ip()));
                let path = PathId::Relay {
                    planet: self.planets[planet.unwrap()].id,
                };
                self.receive(index, sender, path, *inner);
            }
            Wire::Observed(endpoint) => {
                let planet = self
                    .planets
                    .iter()
                    .position(|planet| self.net.hosts[planet.host].addresses.contains(&from.ip()));
                let node = &mut self.nodes[index];
                if node.seen.insert((planet.unwrap(), socket), endpoint) != Some(endpoint) {
                    let seen: Vec<SocketAddr> = node
                        .seen
                        .iter()
                        .filter(|((_, of), _)| *of == socket)
                        .map(|(_, seen)| *seen)
                        .collect();
                    node.symmetric |= seen
                        .iter()
                        .any(|seen| seen.port() != endpoint.port() && seen.ip() == endpoint.ip());
                    self.publish(index);
                }
            }
            other => {
                let path = PathId::Direct {
                    socket,
                    endpoint: from,
                };
                // The fake has no seals: the sender is whoever owns the sending host.
                let Some(sender) = self.sender(from, index) else {
                    return;
                };
                self.receive(index, sender, path, other);
            }
        }
        self.flush(index);
    }

    fn sender(&self, from: SocketAddr, index: usize) -> Option<usize> {
        let here = self.net.hosts[self.nodes[index].host].site;
        self.nodes.iter().position(|node| {
            let host = &self.net.hosts[node.host];
            let outside = self.net.sites[host.site]
                .nat
                .as_ref()
                .map(|nat| nat.outside);
            outside == Some(from.ip())
                || (host.addresses.contains(&from.ip()) && (outside.is_none() || host.site == here))
        })
    }

    fn planet_datagram(&mut self, planet: usize, port: u16, from: SocketAddr, wire: Wire) {
        if !self.planets[planet].up || port != PLANET_PORT {
            return;
        }
        let host = self.planets[planet].host;
        match wire {
            Wire::Observe { node, main } => {
                if main {
                    self.planets[planet].main.insert(node, from);
                }
                self.net
                    .send(host, PLANET_PORT, from, None, Wire::Observed(from));
            }
            Wire::Relayed {
                from: sender,
                to,
                inner,
            } => {
                self.planets[planet].main.insert(sender, from);
                if let Some(endpoint) = self.planets[planet].main.get(&to).copied() {
                    let wire = Wire::Relayed {
                        from: sender,
                        to,
                        inner,
                    };
                    self.net.send(host, PLANET_PORT, endpoint, None, wire);
                }
            }
            _ => {}
        }
        let _ = port;
    }

    fn receive(&mut self, index: usize, sender: usize, path: PathId, wire: Wire) {
        let now = self.now();
        let Some(peer) = self.nodes[index].peers.get_mut(&sender) else {
            return;
        };
        let current = |session: u64| peer.session == Some(session) || peer.before == Some(session);
        match wire {
            Wire::Probe(body) => peer.paths.handle_probe(path, &body, now),
            Wire::Initiation(session) => {
                peer.before = peer.session.replace(session);
                peer.paths.handle_heard(path, now);
                self.transmit(index, sender, path, None, Wire::Response(session));
                let peer = self.nodes[index].peers.get_mut(&sender).unwrap();
                peer.paths.handle_session(true, now);
            }
            Wire::Response(session) => {
                if peer.offered == Some(session) {
                    peer.before = peer.session.replace(session);
                    peer.paths.handle_heard(path, now);
                    peer.paths.handle_session(true, now);
                }
            }
            Wire::Echo {
                session,
                id,
                reply,
                length,
            } if current(session) => {
                if reply {
                    peer.proven.push(path);
                    peer.paths.handle_echo_reply(path, id, now);
                } else {
                    peer.paths.handle_echo_request(path, id, length, now);
                }
            }
            Wire::Data { session } if current(session) => {
                *peer.received.entry(path).or_default() += 1;
                peer.delivered += 1;
                peer.last_delivery = Some(now.moment);
            }
            _ => {}
        }
    }
}
