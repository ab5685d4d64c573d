//! Whole nodes and planets: the engine and the planet's rules as they are shipped, on the simulated
//! internet.
//!
//! The control connection is what QUIC gives: reliable, in order, gone some seconds after the way is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use podmesh_engine::engine::Engine;
use podmesh_engine::output::{Output, PlanetEvent, Received, Transmit};
use podmesh_engine::path_id::SocketId;
use podmesh_engine::stored::StoredState;
use podmesh_engine::tunnel;
use podmesh_planet::rules::books::Books;
use podmesh_planet::rules::records::{Change, Origin, Record};
use podmesh_planet::rules::relaying::{RelayQuota, Relaying};
use podmesh_planet::rules::{Action, ConnectionId, Input, Planet};
use podmesh_proto::datagram::DatagramKind;
use podmesh_proto::id::{NodeId, PlanetId};
use podmesh_proto::planet_api::{NodeMessage, PlanetMessage};
use podmesh_proto::time::{Moment, Now};

use crate::authority::{Authority, Keys, PLANET_PORT, START, name};
use crate::nat::{Nat, NatKind};
use crate::net::{HostId, Net, Occurrence, SiteId};
use crate::random::Random;
use crate::watch::Watch;

/// How long a control connection takes to notice that the other end is gone.
const CONTROL_IDLE: Duration = Duration::from_secs(15);
/// The same when the other end answers that it knows of no connection.
const CONTROL_RESET: Duration = Duration::from_secs(2);

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
    Fault,
    Look,
}

pub struct NodeHost {
    pub host: HostId,
    pub kind: NatKind,
    pub keys: Keys,
    pub id: NodeId,
    pub engine: Option<Engine>,
    pub life: u32,
    pub stored: Option<Box<StoredState>>,
    pub pods: Option<Ipv4Addr>,
    wake: Option<Moment>,
    wanted: BTreeSet<usize>,
}

pub struct PlanetHost {
    pub host: HostId,
    pub id: PlanetId,
    pub rules: Option<Planet>,
    relaying: Relaying,
    records: BTreeMap<String, Record>,
    life: u32,
    wake: Option<Moment>,
}

struct Control {
    node: usize,
    node_life: u32,
    planet: usize,
    planet_life: u32,
    up: bool,
    broken: bool,
    /// Nothing overtakes: when the last message each way arrives.
    last: (Moment, Moment),
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
                rules: None,
                relaying: Relaying::new(RelayQuota::default()),
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
        }
    }

    pub fn now(&self) -> Now {
        Now {
            moment: self.net.now,
            unix: START.plus(self.net.now.since_start().as_secs() - 10_000),
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
            stored: None,
            pods: None,
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

    pub fn start_planet(&mut self, index: usize) {
        let now = self.now();
        let seed = self.net.random.bytes();
        let planet = &mut self.planets[index];
        let books = if planet.records.is_empty() {
            Books::new(self.authority.statement.clone(), Origin::Fresh).unwrap()
        } else {
            let mut records: Vec<Record> = planet.records.values().cloned().collect();
            records.push(Record::Origin(Origin::Fresh));
            records.push(Record::Network(Box::new(self.authority.statement.clone())));
            Books::from_records(records).unwrap()
        };
        let key = podmesh_proto::key::SigningKey::from_seed(*self.authority.planets[index].seed());
        planet.rules = Some(Planet::new(key, books, seed, now));
        planet.relaying = Relaying::new(RelayQuota::default());
        planet.life += 1;
        planet.wake = None;
        self.net.hosts[planet.host].up = true;
        self.pump_planet(index);
        let broken: Vec<u64> = self.of(|control| control.planet == index);
        for connection in broken {
            self.break_after(connection, CONTROL_RESET);
        }
    }

    pub fn stop_planet(&mut self, index: usize) {
        self.planets[index].rules = None;
        self.net.hosts[self.planets[index].host].up = false;
        for connection in self.of(|control| control.planet == index) {
            self.break_after(connection, CONTROL_IDLE);
        }
    }

    /// Starts a node's process from its disk; the first time it joins.
    pub fn start(&mut self, index: usize) {
        let now = self.now();
        let seed = self.net.random.bytes();
        let node = &mut self.nodes[index];
        let engine = Engine::new(node.keys.config(node.stored.clone()), seed, now).unwrap();
        let fresh = node.engine.replace(engine).is_none() && node.stored.is_none();
        node.life += 1;
        node.wake = None;
        node.wanted.clear();
        self.net.hosts[node.host].up = true;
        let addresses = self.net.hosts[node.host].addresses.clone();
        let engine = node.engine.as_mut().unwrap();
        engine.handle_underlay(addresses, now);
        if fresh {
            let token = self.authority.token();
            engine
                .handle_join(&token, name(&format!("n{index}")), now)
                .unwrap();
        }
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

    pub fn set_address(&mut self, index: usize, address: IpAddr) {
        let host = self.nodes[index].host;
        self.net.hosts[host].addresses = vec![address];
        let site = self.net.hosts[host].site;
        if let Some(nat) = &mut self.net.sites[site].nat {
            nat.inner = Some(address);
        }
        let now = self.now();
        if let Some(engine) = &mut self.nodes[index].engine {
            engine.handle_underlay(vec![address], now);
            self.note_candidates_of(index);
            self.drain(index);
        }
    }

    pub fn talk(&mut self, from: usize, to: usize, every: Duration, until: Moment) {
        let at = self.net.now + every;
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

    /// Takes down where every node says that it can be reached.
    pub fn note_candidates(&mut self) {
        for index in 0..self.nodes.len() {
            self.note_candidates_of(index);
        }
    }

    fn note_candidates_of(&mut self, index: usize) {
        let now = self.now();
        if let Some(engine) = &self.nodes[index].engine {
            let candidates = engine.status(now).candidates;
            let endpoints: Vec<SocketAddr> = candidates.iter().map(|one| one.endpoint).collect();
            self.watch.offers(&endpoints);
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

    fn work(&mut self, work: Work) -> Option<Work> {
        let now = self.now();
        match work {
            Work::NodeTimer { node, life } => {
                let due = self.nodes[node].wake == Some(now.moment);
                if due && self.nodes[node].life == life && self.nodes[node].engine.is_some() {
                    self.nodes[node].wake = None;
                    self.watch.woken(node, now.moment);
                    self.nodes[node]
                        .engine
                        .as_mut()
                        .unwrap()
                        .handle_timeout(now);
                    self.drain(node);
                }
            }
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
            } => {
                if let Some(planet) = self.planet_end(connection) {
                    let connection = ConnectionId(connection);
                    self.tell_planet(
                        planet,
                        Input::Message {
                            connection,
                            message,
                        },
                    );
                }
            }
            Work::ToNode {
                connection,
                message,
            } => {
                if let Some(node) = self.node_end(connection) {
                    let planet = self.planets[self.controls[&connection].planet].id;
                    self.tell_node(node, planet, PlanetEvent::Message(message));
                }
            }
            Work::Broken { connection } => self.broken(connection),
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
            work @ (Work::Fault | Work::Look) => return Some(work),
        }
        None
    }

    fn dial(&mut self, (node, life): (usize, u32), planet: usize, tries: u32) {
        let host = &self.nodes[node];
        let gone = host.life != life || host.engine.is_none() || !host.wanted.contains(&planet);
        if gone
            || !self
                .of(|one| {
                    one.node == node && one.node_life == life && one.planet == planet && !one.broken
                })
                .is_empty()
        {
            return;
        }
        let (there, back) = self.ways(node, planet);
        if self.planets[planet].rules.is_none() || there.is_none() || back.is_none() {
            let wait = Duration::from_millis(500 << tries.min(5));
            let work = Work::Dial {
                node,
                life,
                planet,
                tries: tries + 1,
            };
            self.net.schedule(self.net.now + wait, work);
            return;
        }
        self.next_connection += 1;
        let connection = self.next_connection;
        let round = there.unwrap_or_default() + back.unwrap_or_default();
        let at = self.net.now + round * 2;
        let control = Control {
            node,
            node_life: life,
            planet,
            planet_life: self.planets[planet].life,
            up: false,
            broken: false,
            last: (at, at),
        };
        self.controls.insert(connection, control);
        self.net.schedule(at, Work::Connected { connection });
    }

    fn connected(&mut self, connection: u64) {
        let Some(control) = self.controls.get_mut(&connection) else {
            return;
        };
        control.up = true;
        let (node, planet) = (control.node, control.planet);
        let (Some(_), Some(_)) = (self.planet_end(connection), self.node_end(connection)) else {
            return self.broken(connection);
        };
        let (there, back) = self.ways(node, planet);
        let rtt = there.unwrap_or_default() + back.unwrap_or_default();
        let exported = connection.to_be_bytes().to_vec();
        let site = self.net.hosts[self.nodes[node].host].site;
        let own = self.net.hosts[self.nodes[node].host].addresses[0];
        let outside = self.net.sites[site]
            .nat
            .as_ref()
            .map_or(own, |nat| nat.outside);
        let input = Input::Connected {
            connection: ConnectionId(connection),
            remote: SocketAddr::new(outside, 60_000),
            rtt,
            exported: exported.clone(),
        };
        self.tell_planet(planet, input);
        let id = self.planets[planet].id;
        let remote = self.planet_endpoint(planet);
        self.tell_node(node, id, PlanetEvent::Connected { remote, rtt });
        let hello = self.nodes[node]
            .engine
            .as_ref()
            .and_then(|engine| engine.hello(id, &exported));
        match hello {
            Some(hello) => self.send_to_planet(connection, Box::new(hello)),
            None => self.broken(connection),
        }
    }

    /// Control connections measure their round trips anew.
    pub fn measure(&mut self) {
        for connection in self.of(|control| control.up && !control.broken) {
            let control = &self.controls[&connection];
            let (node, planet) = (control.node, control.planet);
            let (there, back) = self.ways(node, planet);
            let (Some(there), Some(back)) = (there, back) else {
                continue;
            };
            let rtt = there + back;
            let id = self.planets[planet].id;
            let connection = ConnectionId(connection);
            self.tell_planet(planet, Input::Rtt { connection, rtt });
            self.tell_node(node, id, PlanetEvent::Rtt(rtt));
        }
    }

    fn broken(&mut self, connection: u64) {
        let planet_end = self.planet_end(connection);
        let node_end = self.node_end(connection);
        let Some(control) = self.controls.remove(&connection) else {
            return;
        };
        if let Some(planet) = planet_end {
            self.tell_planet(
                planet,
                Input::Disconnected {
                    connection: ConnectionId(connection),
                },
            );
        }
        if let Some(node) = node_end {
            let id = self.planets[control.planet].id;
            let reason = "timed out".to_owned();
            self.tell_node(node, id, PlanetEvent::Disconnected { reason });
            let work = Work::Dial {
                node,
                life: control.node_life,
                planet: control.planet,
                tries: 0,
            };
            self.net
                .schedule(self.net.now + Duration::from_millis(200), work);
        }
    }

    fn break_after(&mut self, connection: u64, after: Duration) {
        if let Some(control) = self.controls.get_mut(&connection)
            && !control.broken
        {
            control.broken = true;
            self.net
                .schedule(self.net.now + after, Work::Broken { connection });
        }
    }

    /// The planet that still holds its end of a connection.
    fn planet_end(&self, connection: u64) -> Option<usize> {
        let control = self.controls.get(&connection)?;
        let planet = &self.planets[control.planet];
        (control.up && planet.rules.is_some() && planet.life == control.planet_life)
            .then_some(control.planet)
    }

    fn node_end(&self, connection: u64) -> Option<usize> {
        let control = self.controls.get(&connection)?;
        let node = &self.nodes[control.node];
        (control.up && node.engine.is_some() && node.life == control.node_life)
            .then_some(control.node)
    }

    fn of(&self, which: impl Fn(&Control) -> bool) -> Vec<u64> {
        self.controls
            .iter()
            .filter(|(_, control)| which(control))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Delays to a planet and back; none where the way is cut.
    fn ways(&self, node: usize, planet: usize) -> (Option<Duration>, Option<Duration>) {
        let (a, b) = (self.nodes[node].host, self.planets[planet].host);
        let (a, b) = (self.net.hosts[a].site, self.net.hosts[b].site);
        let way = |from, to| {
            let link = &self.net.links[&(from, to)];
            (!link.cut).then_some(link.delay)
        };
        (way(a, b), way(b, a))
    }

    fn send_to_planet(&mut self, connection: u64, message: Box<NodeMessage>) {
        self.watch.said(&message);
        let Some(control) = self.controls.get(&connection) else {
            return;
        };
        let (way, _) = self.ways(control.node, control.planet);
        let Some(delay) = way else {
            return self.break_after(connection, CONTROL_IDLE);
        };
        let now = self.net.now;
        let Some(control) = self
            .controls
            .get_mut(&connection)
            .filter(|control| !control.broken)
        else {
            return;
        };
        control.last.0 = control.last.0.max(now + delay);
        let at = control.last.0;
        self.net.schedule(
            at,
            Work::ToPlanet {
                connection,
                message,
            },
        );
    }

    fn send_to_node(&mut self, connection: u64, message: Box<PlanetMessage>) {
        let Some(control) = self.controls.get(&connection) else {
            return;
        };
        let (_, way) = self.ways(control.node, control.planet);
        let Some(delay) = way else {
            return self.break_after(connection, CONTROL_IDLE);
        };
        let now = self.net.now;
        let Some(control) = self
            .controls
            .get_mut(&connection)
            .filter(|control| !control.broken)
        else {
            return;
        };
        control.last.1 = control.last.1.max(now + delay);
        let at = control.last.1;
        self.net.schedule(
            at,
            Work::ToNode {
                connection,
                message,
            },
        );
    }

    pub fn tell_planet(&mut self, index: usize, input: Input) {
        let now = self.now();
        if let Some(rules) = &mut self.planets[index].rules {
            rules.handle(input, now);
        }
        self.pump_planet(index);
    }

    fn pump_planet(&mut self, index: usize) {
        let now = self.now();
        loop {
            let planet = &mut self.planets[index];
            let Some(rules) = &mut planet.rules else {
                return;
            };
            let Some(action) = rules.poll_action() else {
                break;
            };
            match action {
                Action::Commit(changes) => {
                    for change in changes {
                        match change {
                            Change::Put(record) => {
                                let key = format!("{:?}", record.key().unwrap());
                                planet.records.insert(key, record);
                            }
                            Change::Remove(key) => {
                                planet.records.remove(&format!("{key:?}"));
                            }
                        }
                    }
                    rules.committed(Ok(()), now);
                }
                Action::Send {
                    connection,
                    message,
                } => self.send_to_node(connection.0, message),
                Action::Close { connection, .. } => self.break_after(connection.0, CONTROL_RESET),
                Action::OpenRelay { grant, node } => planet.relaying.open(&grant, node, now.moment),
                Action::CloseRelay { session } => planet.relaying.close(session),
                Action::Answer { .. } | Action::Happened(_) => {}
            }
        }
        let planet = &mut self.planets[index];
        let Some(rules) = &planet.rules else { return };
        let next = rules
            .poll_timeout()
            .max(now.moment + Duration::from_millis(1));
        if planet.wake.is_none_or(|wake| next < wake) {
            planet.wake = Some(next);
            let life = planet.life;
            self.net.schedule(
                next,
                Work::PlanetTimer {
                    planet: index,
                    life,
                },
            );
        }
    }

    pub fn tell_node(&mut self, index: usize, planet: PlanetId, event: PlanetEvent) {
        let now = self.now();
        if let Some(engine) = &mut self.nodes[index].engine {
            engine.handle_planet(planet, event, now);
            self.drain(index);
        }
    }

    fn planet_endpoint(&self, planet: usize) -> SocketAddr {
        let host = self.planets[planet].host;
        SocketAddr::new(self.net.hosts[host].addresses[0], PLANET_PORT)
    }

    /// Does what an engine asked for, and plans when to wake it.
    pub fn drain(&mut self, index: usize) {
        while let Some(output) = self.nodes[index]
            .engine
            .as_mut()
            .and_then(Engine::poll_output)
        {
            self.perform(index, output);
        }
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
            Output::Planets(entries) => {
                let wanted: BTreeSet<usize> = self
                    .planets
                    .iter()
                    .enumerate()
                    .filter(|(_, planet)| entries.iter().any(|entry| entry.id == planet.id))
                    .map(|(n, _)| n)
                    .collect();
                let node = &mut self.nodes[index];
                let life = node.life;
                node.wanted.clone_from(&wanted);
                for planet in wanted {
                    self.net.schedule(
                        self.net.now,
                        Work::Dial {
                            node: index,
                            life,
                            planet,
                            tries: 0,
                        },
                    );
                }
            }
            Output::Reconnect(planet) => {
                let target = self.planets.iter().position(|one| one.id == planet);
                for connection in self.of(|one| one.node == index && Some(one.planet) == target) {
                    self.break_after(connection, Duration::ZERO);
                }
            }
            Output::Persist(stored) => self.nodes[index].stored = Some(stored),
            Output::HostPlan(plan) => {
                let pods = plan.pod_cidrs.iter().find_map(|cidr| match cidr {
                    ipnet::IpNet::V4(cidr) => cidr.hosts().next(),
                    ipnet::IpNet::V6(_) => None,
                });
                self.nodes[index].pods = pods;
            }
            Output::PodPacket(packet) => self.watch.delivered(index, &packet, self.net.now),
            Output::JoinDone(result) => result.unwrap(),
            Output::Forwarding(_) | Output::PingDone { .. } => {}
        }
    }

    fn transmit(&mut self, index: usize, transmit: Transmit) {
        let Transmit {
            socket,
            to,
            ttl,
            bytes,
        } = transmit;
        self.watch.transmitted(index, to, &bytes);
        let probe = DatagramKind::of(&bytes) == DatagramKind::Probe;
        assert!(
            !probe || self.watch.is_candidate(index, to) || self.is_recorded(index, to),
            "node {index} probes {to}, which is nobody's candidate"
        );
        let node = &self.nodes[index];
        let port = node.keys.ports[usize::from(socket.0)];
        if !self.net.send(node.host, port, to, ttl, bytes) {
            let now = self.now();
            if let Some(engine) = &mut self.nodes[index].engine {
                engine.handle_unreachable(socket, to, now);
            }
        }
    }

    /// Whether a node has this endpoint from a record that came through a tunnel and was replaced
    /// before anybody looked.
    fn is_recorded(&self, index: usize, endpoint: SocketAddr) -> bool {
        let now = self.now();
        let Some(engine) = &self.nodes[index].engine else {
            return false;
        };
        engine.peers(now).iter().any(|view| {
            let detail = engine.peer(view.name.as_str(), now);
            detail.is_some_and(|detail| {
                detail
                    .candidates
                    .iter()
                    .any(|trial| trial.endpoint == Some(endpoint) && trial.kind != "peer-reflexive")
            })
        })
    }

    fn datagram(
        &mut self,
        (host, port): (HostId, u16),
        (from, sender): (SocketAddr, HostId),
        bytes: Vec<u8>,
    ) {
        if let Some(planet) = self.planets.iter().position(|planet| planet.host == host) {
            if port == PLANET_PORT {
                self.planet_datagram(planet, from, &bytes);
            }
            return;
        }
        let Some(index) = self.nodes.iter().position(|node| node.host == host) else {
            return;
        };
        let Some(socket) = self.nodes[index]
            .keys
            .ports
            .iter()
            .position(|one| *one == port)
        else {
            return;
        };
        self.watch.arrived(index, from, sender, self.net.now);
        let now = self.now();
        if let Some(engine) = &mut self.nodes[index].engine {
            let received = Received {
                socket: SocketId(socket as u8),
                from,
                relay: None,
                bytes,
            };
            engine.handle_datagram(received, now);
            self.drain(index);
        }
    }

    fn planet_datagram(&mut self, planet: usize, from: SocketAddr, bytes: &[u8]) {
        let (now, mut out) = (self.net.now, Vec::new());
        let host = &mut self.planets[planet];
        if host.rules.is_none() {
            return;
        }
        if let Some(place) = host.relaying.handle(bytes, from, now, &mut out) {
            let host = host.host;
            self.net.send(host, PLANET_PORT, place.endpoint, None, out);
        }
    }

    /// One packet from a pod of one node to a pod of another.
    fn say(&mut self, from: usize, to: usize) {
        let (Some(source), Some(destination)) = (self.nodes[from].pods, self.nodes[to].pods) else {
            return;
        };
        let now = self.now();
        let packet = self
            .watch
            .packet((from, source), (to, destination), now.moment);
        if let Some(engine) = &mut self.nodes[from].engine {
            engine.handle_pod_packet(&packet, now);
            self.drain(from);
        }
    }
}
