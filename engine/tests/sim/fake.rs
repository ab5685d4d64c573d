//! Nodes that have paths and nothing else: sessions are numbers, planets are a few lines.
//!
//! Path logic is debugged here, thousands of runs per second; `world` runs whole engines.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use podmesh_engine::path_id::{PathId, SocketId};
use podmesh_engine::paths::{Local, Paths, ProbeBudget, SwitchReason, TrafficSample};
use podmesh_proto::candidate::EndpointRecord;
use podmesh_proto::id::{NodeId, PlanetId};
use podmesh_proto::probe::ProbeBody;
use podmesh_proto::time::{Moment, Now, UnixSeconds};

use crate::nat::{Nat, NatKind};
use crate::net::{HostId, Net, Occurrence, SiteId};

mod planet;
mod wire;

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
        inner: Box<Self>,
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
    offered: Option<(u64, PathId)>,
    /// The session that the peer has begun, as long as it may not have the answer, and the path that this took.
    unconfirmed: Option<(u64, PathId, Moment)>,
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
            nanos: self.net.now.since_start().subsec_nanos(),
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
                unconfirmed: None,
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

    fn wake(&mut self, index: usize) {
        let now = self.now();
        let node = &mut self.nodes[index];
        if node.wake != Some(now.moment) {
            return;
        }
        self.wakes += 1;
        let minutes = now.moment.since_start().as_secs() / 60;
        assert!(self.wakes < 1_000 * (minutes + 1), "woken without end");
        node.wake = None;
        for peer in node.peers.values_mut() {
            let due = peer.paths.poll_timeout(now);
            if due.is_some_and(|at| at <= now.moment) {
                peer.paths.handle_timeout(now);
            }
        }
        self.flush(index);
    }

    fn work(&mut self, work: Work) {
        let now = self.now();
        match work {
            Work::Wake(node) => self.wake(node),
            Work::Talk {
                from,
                to,
                every,
                until,
            } => {
                if now.moment < until {
                    let again = Work::Talk {
                        from,
                        to,
                        every,
                        until,
                    };
                    self.net.schedule(now.moment + every, again);
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
                self.net.send((self.nodes[node].host, port), to, None, wire);
            }
        }
    }

    fn say(&mut self, from: usize, to: usize) {
        let Some(peer) = self.nodes[from].peers.get_mut(&to) else {
            return;
        };
        let (Some(path), Some(session)) = (peer.paths.active(), peer.session) else {
            return;
        };
        peer.sent += 1;
        self.transmit((from, to), path, None, Wire::Data { session });
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
}
