//! Whole nodes and planets: the engine and the planet's rules as they are shipped, on the simulated
//! internet.
//!
//! The control connection is what QUIC gives: reliable, in order, gone some seconds after the way is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use podmesh_engine::config::Thresholds;
use podmesh_engine::engine::Engine;
use podmesh_engine::output::{Output, PlanetEvent};
use podmesh_engine::tunnel;
use podmesh_planet::rules::records::Record;
use podmesh_planet::rules::relaying::{RelayQuota, Relaying};
use podmesh_planet::rules::{Input, Planet};
use podmesh_proto::id::{NodeId, PlanetId};
use podmesh_proto::planet_api::{NodeMessage, PlanetMessage};
use podmesh_proto::time::{Moment, Now};

use crate::authority::{Authority, Keys, START};
use crate::nat::{Nat, NatKind};
use crate::net::{HostId, Net, Occurrence, SiteId};
use crate::random::Random;
use crate::watch::Watch;

mod changes;
mod control;
mod datagrams;
mod disk;
mod mending;
mod planets;
mod pods;
mod thief;
mod twin;

use control::{CONTROL_IDLE, Control};
use disk::Disk;
pub use mending::Mend;
use thief::Thief;
pub use twin::Image;

#[derive(Debug)]
pub enum Work {
    NodeTimer {
        node: usize,
        life: u32,
    },
    PlanetTimer {
        planet: usize,
        life: u32,
    },
    Dial {
        node: usize,
        life: u32,
        planet: usize,
        tries: u32,
    },
    Connected {
        connection: u64,
    },
    ToPlanet {
        connection: u64,
        message: Box<NodeMessage>,
    },
    ToNode {
        connection: u64,
        message: Box<PlanetMessage>,
    },
    Broken {
        connection: u64,
    },
    /// A node's disk is done.
    Written {
        node: usize,
        life: u32,
    },
    Talk {
        from: usize,
        to: usize,
        every: Duration,
        until: Moment,
    },
    Start {
        node: usize,
    },
    StartPlanet {
        planet: usize,
    },
    Heal {
        site: SiteId,
        other: SiteId,
    },
    Mend(Mend),
    /// The thief sends again what he has heard.
    Replay {
        to: SocketAddr,
        bytes: Vec<u8>,
    },
    Fault,
    /// A fault that was alone is over, and has been for as long as it may have consequences.
    Over,
    Look,
}

pub struct NodeHost {
    pub host: HostId,
    pub kind: NatKind,
    pub keys: Keys,
    pub id: NodeId,
    pub engine: Option<Engine>,
    pub life: u32,
    pub born: Moment,
    /// The keys that it changes to.
    pub next: Option<Keys>,
    /// Its identity is another one than at the start.
    pub rotated: bool,
    pub disk: Disk,
    /// The disk gives back the generation before the newest at the next start.
    pub older: bool,
    /// A copy of the disk, to which the machine may be put back.
    pub image: Option<Image>,
    /// Its disk went back to before it left, and it hasn't left again since.
    pub forgot: bool,
    /// When it asked to join, of late.
    applied: Moment,
    /// Seconds by which its wall clock is ahead.
    pub clock: i64,
    pub thresholds: Thresholds,
    pub pods: Option<Ipv4Addr>,
    pub cidr: Option<IpNet>,
    wake: Option<Moment>,
    wanted: BTreeSet<usize>,
}

pub struct PlanetHost {
    pub host: HostId,
    pub id: PlanetId,
    /// Seconds by which its wall clock is ahead.
    pub clock: i64,
    /// When it was right again.
    mended: Moment,
    pub rules: Option<Planet>,
    relaying: Relaying,
    records: BTreeMap<String, Record>,
    life: u32,
    wake: Option<Moment>,
}

pub struct World {
    pub net: Net<Vec<u8>, Work>,
    pub authority: Authority,
    pub nodes: Vec<NodeHost>,
    pub planets: Vec<PlanetHost>,
    pub watch: Watch,
    controls: BTreeMap<u64, Control>,
    next_connection: u64,
    clock: Moment,
    thief: Thief,
    /// What of a machine's datagrams gets lost, whatever the ways carry.
    pub loses: Option<fn(usize, &[u8]) -> bool>,
    /// The last of the nodes is a machine that waits for a copy of another's disk; whose it has.
    spare: bool,
    pub twin_of: Option<usize>,
    /// The one before that, of which something may still be under way.
    twin_before: Option<usize>,
}

impl World {
    pub fn new(seed: u64, planets: usize) -> Self {
        tunnel::start_virtual_clock();
        let mut net = Net::new(seed);
        let addresses: Vec<IpAddr> = (1..=planets as u8)
            .map(|n| IpAddr::from([203, 0, 113, n]))
            .collect();
        let mut random = Random(seed ^ 0x5eed);
        let authority = Authority::new(&mut random, &addresses);
        let mut hosts = Vec::new();
        for (address, key) in addresses.iter().zip(&authority.planets) {
            let site = net.site(None);
            let host = net.host(site, vec![*address]);
            hosts.push(PlanetHost {
                host,
                id: key.planet_id(),
                clock: 0,
                mended: Moment::ZERO,
                rules: None,
                relaying: Relaying::new(RelayQuota::default(), [7; 32]),
                records: BTreeMap::new(),
                life: 0,
                wake: None,
            });
        }
        let clock = net.now;
        Self {
            net,
            authority,
            nodes: Vec::new(),
            planets: hosts,
            watch: Watch::default(),
            controls: BTreeMap::new(),
            next_connection: 0,
            clock,
            thief: Thief::default(),
            loses: None,
            spare: false,
            twin_of: None,
            twin_before: None,
        }
    }

    pub fn now(&self) -> Now {
        Now {
            moment: self.net.now,
            unix: START.plus(self.net.now.since_start().as_secs() - 10_000),
            nanos: self.net.now.since_start().subsec_nanos(),
        }
    }

    /// A site with this kind of router.
    pub fn site(&mut self, kind: NatKind) -> SiteId {
        let n = self.net.sites.len() as u8;
        let outside = IpAddr::from([198, 51, 100, n + 1]);
        self.net
            .site(kind.rules().map(|rules| Nat::new(rules, outside)))
    }

    pub fn node(&mut self, site: SiteId, kind: NatKind) -> usize {
        let (here, n) = (site as u8, self.nodes.len() as u8);
        let address = match &self.net.sites[site].nat {
            Some(_) => IpAddr::from([192, 168, here, n + 2]),
            None => IpAddr::from([198, 51, 101, n + 1]),
        };
        let host = self.net.host(site, vec![address]);
        let keys = Keys::new(&mut self.net.random);
        let node = NodeHost {
            host,
            kind,
            keys,
            id: keys.node(),
            engine: None,
            life: 0,
            born: self.net.now,
            next: None,
            rotated: false,
            disk: Disk::default(),
            older: false,
            image: None,
            forgot: false,
            applied: self.net.now,
            clock: 0,
            thresholds: Thresholds::default(),
            pods: None,
            cidr: None,
            wake: None,
            wanted: BTreeSet::new(),
        };
        self.watch.host(host, keys.node());
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// Delays of every way of the internet.
    pub fn links(&mut self, mut delay: impl FnMut(SiteId, SiteId, &mut Random) -> Duration) {
        let sites = self.net.sites.len();
        for a in 0..sites {
            for b in (0..sites).filter(|b| *b != a) {
                let delay = delay(a, b, &mut self.net.random);
                self.net.link(a, b, delay);
            }
        }
    }

    /// Starts a node's process from its disk; the first time it joins.
    pub fn start(&mut self, index: usize) {
        let now = self.now_of(index);
        let seed = self.net.random.bytes();
        let node = &mut self.nodes[index];
        let admitted = node.disk.admitted();
        let stored = node.disk.reopen(std::mem::take(&mut node.older));
        // It has left that membership since, and has to hear of it.
        node.forgot |= node.disk.admitted() != admitted;
        let floor = stored.as_ref().map_or(0, |stored| stored.incarnation_floor);
        let mut config = node.keys.config(node.next, stored);
        config.thresholds = node.thresholds;
        let engine = Engine::new(config, seed, now).unwrap();
        if let Some(NodeMessage::Hello(hello)) = engine.hello(self.planets[0].id, &[]) {
            assert!(
                hello.incarnation > floor,
                "a life seems older than the last one"
            );
        }
        node.engine = Some(engine);
        node.born = now.moment;
        node.life += 1;
        node.wake = None;
        node.wanted.clear();
        self.net.hosts[node.host].up = true;
        let addresses = self.net.hosts[node.host].addresses.clone();
        let engine = node.engine.as_mut().unwrap();
        engine.handle_underlay(addresses, now);
        self.join(index);
        self.watch.restarted(index);
        self.note_candidates_of(index);
        self.drain(index);
    }

    /// Cuts a node's power.
    pub fn stop(&mut self, index: usize) {
        self.nodes[index].engine = None;
        self.net.hosts[self.nodes[index].host].up = false;
        for connection in self.of(|control| control.node == index) {
            self.break_after(connection, CONTROL_IDLE);
        }
    }

    /// Takes down where every node says that it can be reached.
    pub fn note_candidates(&mut self) {
        for index in 0..self.nodes.len() {
            self.note_candidates_of(index);
        }
    }

    pub(super) fn note_candidates_of(&mut self, index: usize) {
        let now = self.now();
        if let Some(engine) = &self.nodes[index].engine {
            let candidates = engine.status(now).candidates;
            let endpoints: Vec<SocketAddr> = candidates.iter().map(|one| one.endpoint).collect();
            self.watch.offers(engine.node_id(), &endpoints);
        }
    }

    /// Lets things happen until `end`; what isn't the world's own is handed to `other`.
    pub fn run(&mut self, end: Moment, mut other: impl FnMut(&mut Self, Work) -> bool) -> bool {
        while let Some(occurrence) = self.net.next(end) {
            self.tick();
            match occurrence {
                Occurrence::Datagram {
                    host,
                    port,
                    from,
                    sender,
                    payload,
                } => {
                    self.datagram((host, port), (from, sender), payload);
                }
                Occurrence::Work(work) => {
                    if let Some(work) = self.work(work)
                        && other(self, work)
                    {
                        return true;
                    }
                }
            }
        }
        self.tick();
        false
    }

    pub fn run_for(&mut self, span: Duration) {
        let end = self.net.now + span;
        self.run(end, |_, _| false);
    }

    fn tick(&mut self) {
        tunnel::advance_virtual_clock(self.net.now.since(self.clock));
        self.clock = self.net.now;
    }

    fn wake(&mut self, index: usize, life: u32) {
        let now = self.now_of(index);
        let node = &mut self.nodes[index];
        if node.wake != Some(now.moment) || node.life != life {
            return;
        }
        if let Some(engine) = &mut node.engine {
            node.wake = None;
            self.watch.woken(index, now.moment);
            engine.handle_timeout(now);
            self.drain(index);
        }
    }

    fn work(&mut self, work: Work) -> Option<Work> {
        let now = self.now();
        match work {
            Work::NodeTimer { node, life } => self.wake(node, life),
            Work::PlanetTimer { planet, life } => {
                let host = &mut self.planets[planet];
                if host.wake == Some(now.moment) && host.life == life && host.rules.is_some() {
                    host.wake = None;
                    self.tell_planet(planet, Input::Tick);
                }
            }
            Work::Dial {
                node,
                life,
                planet,
                tries,
            } => self.dial((node, life), planet, tries),
            Work::Connected { connection } => self.connected(connection),
            Work::ToPlanet {
                connection,
                message,
            } => self.planet_hears(connection, message),
            Work::ToNode {
                connection,
                message,
            } => self.node_hears(connection, message),
            Work::Broken { connection } => self.broken(connection),
            Work::Talk {
                from,
                to,
                every,
                until,
            } => {
                if now.moment < until {
                    self.talk(from, to, every, until);
                }
                self.say(from, to);
            }
            Work::Start { node } => {
                if self.nodes[node].engine.is_none() {
                    self.start(node);
                }
            }
            Work::StartPlanet { planet } => {
                if self.planets[planet].rules.is_none() {
                    self.start_planet(planet);
                }
            }
            Work::Heal { site, other } => {
                for pair in [(site, other), (other, site)] {
                    if let Some(link) = self.net.links.get_mut(&pair) {
                        (link.cut, link.loss) = (false, 0.0);
                    }
                }
            }
            Work::Written { node, life } => self.written(node, life),
            Work::Replay { to, bytes } => self.replay(to, bytes),
            Work::Mend(mend) => self.mend(mend),
            work @ (Work::Fault | Work::Over | Work::Look) => return Some(work),
        }
        None
    }

    pub fn tell_node(&mut self, index: usize, planet: PlanetId, event: PlanetEvent) {
        let now = self.now_of(index);
        if let Some(engine) = &mut self.nodes[index].engine {
            engine.handle_planet(planet, event, now);
            self.drain(index);
        }
    }

    /// Does what an engine asked for, and plans when to wake it.
    pub fn drain(&mut self, index: usize) {
        while let Some(output) = self.nodes[index]
            .engine
            .as_mut()
            .and_then(Engine::poll_output)
        {
            self.in_order(index, output);
        }
        self.move_keys(index);
        let node = &mut self.nodes[index];
        let Some(engine) = &node.engine else { return };
        let Some(next) = engine.poll_timeout() else {
            return;
        };
        let next = next.max(self.net.now + Duration::from_micros(1));
        if node.wake.is_none_or(|wake| next < wake) {
            node.wake = Some(next);
            let life = node.life;
            self.net
                .schedule(next, Work::NodeTimer { node: index, life });
        }
    }

    fn perform(&mut self, index: usize, output: Output) {
        match output {
            Output::Transmit(transmit) => self.transmit(index, transmit),
            Output::Planet { planet, message } => {
                let life = self.nodes[index].life;
                let target = self.planets.iter().position(|one| one.id == planet);
                let of = |one: &Control| {
                    one.node == index
                        && one.node_life == life
                        && Some(one.planet) == target
                        && one.up
                };
                if let Some(connection) = self.of(of).first().copied() {
                    self.send_to_planet(connection, message);
                }
            }
            Output::Planets(entries) => self.want(index, &entries),
            Output::Reconnect(planet) => {
                let target = self.planets.iter().position(|one| one.id == planet);
                for connection in self.of(|one| one.node == index && Some(one.planet) == target) {
                    self.break_after(connection, Duration::ZERO);
                }
            }
            Output::Persist(stored) => self.persist(index, stored),
            Output::HostPlan(plan) => {
                let pods = plan.pod_cidrs.iter().find_map(|cidr| match cidr {
                    IpNet::V4(cidr) => cidr.hosts().next(),
                    IpNet::V6(_) => None,
                });
                self.nodes[index].pods = pods;
                self.nodes[index].cidr = plan
                    .pod_cidrs
                    .iter()
                    .find(|cidr| matches!(cidr, IpNet::V4(_)))
                    .copied();
            }
            Output::PodPacket(packet) => {
                let body = (self.body_of(index), index);
                self.watch.delivered(body, &packet, self.net.now);
            }
            Output::JoinDone(result) => self.joined(index, result),
            Output::Forwarding(_) | Output::PingDone { .. } => {}
        }
    }
}
