//! Engines on a wire.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use podmesh_proto::id::PlanetId;
use podmesh_proto::time::{Moment, Now, UnixSeconds};

use super::planet::PlanetStub;
use super::{Authority, Keys, START, name};
use crate::config::{EngineConfig, Thresholds};
use crate::engine::Engine;
use crate::forwarding::ForwardingTable;
use crate::host_plan::HostPlan;
use crate::output::{Output, PlanetEvent, Received, Transmit};
use crate::path_id::SocketId;
use crate::stored::StoredState;
use crate::tunnel::TunnelKind;

pub(super) const DELAY: Duration = Duration::from_millis(10);

/// What is wrong with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It refuses to write.
    Full,
    /// It doesn't answer.
    Hangs,
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
    /// Datagrams to places where nobody is: where to, and how long.
    pub(crate) strays: Vec<(SocketAddr, usize)>,
    pub(crate) now: Now,
    /// Seconds by which the wall clocks of nodes are ahead.
    pub(crate) clocks: BTreeMap<usize, i64>,
    pub(crate) thresholds: Thresholds,
    /// Nodes connect again when they ask for it.
    pub(crate) reconnects: bool,
    pub(crate) reconnections: usize,
    /// Disks that don't do as they should.
    pub(crate) disks: BTreeMap<usize, Fault>,
    persists: Vec<u64>,
    answered: Vec<(u64, bool)>,
    /// Pairs that can't reach each other directly.
    pub(crate) direct_blocked: bool,
    pub(crate) planet_alive: bool,
    pub(crate) off: BTreeSet<usize>,
    /// Seconds that a membership lasts.
    pub(crate) life: Option<u64>,
    /// What the disk of a node says of its keys: those that it has moved to, and those that come.
    pub(crate) moved: BTreeMap<u8, u8>,
    pub(crate) next: BTreeMap<u8, u8>,
    /// The planet believes what members show it of others.
    pub(crate) planet_learns: bool,
    /// The planet doesn't answer renewals.
    pub(crate) planet_silent: bool,
    /// So many departures the planet has no time for.
    pub(crate) busy_to_leave: u32,
    /// The planet admits nobody who has not left.
    pub(crate) names_are_held: bool,
    pub(super) planet: PlanetStub,
    wire: Vec<(Moment, u64, usize, Received)>,
    pub(super) order: u64,
}

pub(super) const PLANET: &str = "192.0.2.1:7077";

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
            strays: Vec::new(),
            now: Now {
                moment: Moment::from_start(Duration::from_secs(1_000)),
                unix: START,
                nanos: 0,
            },
            clocks: BTreeMap::new(),
            thresholds: Thresholds::default(),
            reconnects: false,
            reconnections: 0,
            disks: BTreeMap::new(),
            persists: Vec::new(),
            answered: Vec::new(),
            direct_blocked: false,
            planet_alive: true,
            off: BTreeSet::new(),
            life: None,
            moved: BTreeMap::new(),
            next: BTreeMap::new(),
            planet_learns: false,
            planet_silent: false,
            busy_to_leave: 0,
            names_are_held: false,
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
            keys: self
                .moved
                .get(&number)
                .map_or_else(|| keys.into(), |to| Keys::moved(number, *to)),
            next: self.next.get(&number).map(|to| Keys::moved(number, *to)),
            stored,
            ports: [7_000 + u16::from(number), 7_100 + u16::from(number)],
            configured: Vec::new(),
            pod_cidrs: Vec::new(),
            mtu: 1_380,
            device: "mesh0".to_owned(),
            tunnel: TunnelKind::default(),
            thresholds: self.thresholds,
            version: "test".to_owned(),
        };
        let node = self.keys.iter().position(|known| *known == number);
        let now = node.map_or(self.now, |node| self.now_of(node));
        Engine::new(config, [number; 32], now).unwrap()
    }

    pub(crate) fn add(&mut self, number: u8) {
        let engine = self.engine(number, None);
        self.engines.push(engine);
        self.keys.push(number);
        self.stored.push(None);
        self.tables.push(None);
        self.plans.push(None);
        self.delivered.push(Vec::new());
        self.persists.push(0);
        self.answered.push((0, true));
        let node = self.engines.len() - 1;
        let address = address_of(number);
        let now = self.now;
        self.engines[node].handle_underlay(vec![address], now);
    }

    /// Joins all nodes, one after the other, and lets them find each other.
    pub(crate) fn join_all(&mut self) {
        for node in 0..self.engines.len() {
            let number = self.keys[node];
            let token = self.authority.token_for(1, self.life);
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
        (self.persists[node], self.answered[node]) = (0, (0, true));
        self.engines[node] = self.engine(self.keys[node], stored);
        self.planet.connected.remove(&node);
        let address = address_of(self.keys[node]);
        let now = self.now_of(node);
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
        self.planet = self.planet.next_life();
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
                let now = self.now_of(node);
                self.engines[node].handle_timeout(now);
                self.drain(node);
            }
        }
        self.advance(end);
    }

    /// Both clocks of a node.
    pub(crate) fn now_of(&self, node: usize) -> Now {
        let ahead = self.clocks.get(&node).copied().unwrap_or(0);
        let unix = self.now.unix.0.saturating_add_signed(ahead);
        Now {
            unix: UnixSeconds(unix),
            ..self.now
        }
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
            let now = self.now_of(node);
            self.engines[node].handle_datagram(received, now);
            self.drain(node);
        }
    }

    pub(super) fn send(&mut self, to: SocketAddr, from: SocketAddr, bytes: Vec<u8>) {
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
        let Some((node, socket)) = target else {
            self.strays.push((to, bytes.len()));
            return;
        };
        let received = Received {
            socket,
            from,
            relay: None,
            bytes,
        };
        self.wire.push((at, self.order, node, received));
    }

    /// Does what an engine asked for.
    pub(crate) fn drain(&mut self, node: usize) {
        let (mut sent, mut again) = (false, false);
        while let Some(output) = self.engines[node].poll_output() {
            match output {
                Output::Transmit(transmit) => {
                    sent = true;
                    self.transmit(node, transmit);
                }
                Output::Planet { message, .. } => self.planet_hears(node, *message),
                Output::Persist(stored) => {
                    self.persists[node] += 1;
                    if !self.disks.contains_key(&node) {
                        self.stored[node] = Some(stored);
                    }
                }
                Output::Forwarding(table) => {
                    assert!(!sent, "answers may come before the table that knows them");
                    self.tables[node] = Some(table);
                }
                Output::HostPlan(plan) => self.plans[node] = Some(*plan),
                Output::PodPacket(packet) => self.delivered[node].push(packet),
                Output::JoinDone(result) => self.notes.push(format!("join {node} {result:?}")),
                Output::PingDone { result, .. } => {
                    self.notes.push(match result {
                        Ok(view) => format!("ping {} {:.0}", view.name, view.rtt_ms),
                        Err(error) => error.to_string(),
                    });
                }
                Output::Reconnect(_) => {
                    self.reconnections += 1;
                    again = self.reconnects;
                }
                Output::Planets(_) => {}
            }
        }
        if self.engines[node].take_moved() {
            let number = self.keys[node];
            let to = self.next.remove(&number).unwrap();
            self.moved.insert(number, to);
        }
        if again {
            self.connect(node);
        }
        // The disk answers, if it does, after what the engine did with it.
        let (number, now) = (self.persists[node], self.now_of(node));
        let written = match self.disks.get(&node) {
            None => true,
            Some(Fault::Full) => false,
            Some(Fault::Hangs) => return,
        };
        if self.answered[node] != (number, written) {
            self.answered[node] = (number, written);
            self.engines[node].handle_persisted(number, written, now);
            self.drain(node);
        }
    }

    fn transmit(&mut self, node: usize, transmit: Transmit) {
        let planet = transmit.to == PLANET.parse().unwrap();
        if transmit.passage.reach().is_some() || (self.direct_blocked && !planet) {
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
        let now = self.now_of(node);
        self.engines[node].handle_pod_packet(packet, now);
        self.drain(node);
    }

    pub(crate) fn planet_id(&self) -> PlanetId {
        self.authority.planet.planet_id()
    }
}

pub(super) fn address_of(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, number))
}
