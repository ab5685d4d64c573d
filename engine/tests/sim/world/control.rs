//! The control connections between nodes and planets: what QUIC gives, reliable, in order, and gone
//! some seconds after the way is.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use podmesh_engine::output::PlanetEvent;
use podmesh_planet::rules::{ConnectionId, Input};
use podmesh_proto::id::PlanetId;
use podmesh_proto::network::PlanetEntry;
use podmesh_proto::planet_api::{NodeMessage, PlanetMessage};
use podmesh_proto::time::Moment;

use super::{Work, World};

/// How long a control connection takes to notice that the other end is gone.
pub(super) const CONTROL_IDLE: Duration = Duration::from_secs(15);
/// The same when the other end answers that it knows of no connection.
pub(super) const CONTROL_RESET: Duration = Duration::from_secs(2);

/// How long a connection that a node wants no more takes to be gone.
const CLOSING: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Control {
    pub(super) node: usize,
    pub(super) node_life: u32,
    pub(super) planet: usize,
    pub(super) planet_life: u32,
    pub(super) up: bool,
    pub(super) broken: bool,
    /// Nothing overtakes: when the last message each way arrives.
    pub(super) last: (Moment, Moment),
}

impl World {
    /// The planet that a node is connected to.
    pub fn planet_of(&self, node: usize) -> Option<PlanetId> {
        let life = self.nodes[node].life;
        let of = |one: &Control| one.node == node && one.node_life == life && one.up && !one.broken;
        let connection = self.of(of).first().copied()?;
        Some(self.planets[self.controls[&connection].planet].id)
    }

    /// Whether a node is connected to this planet.
    pub(super) fn has_planet(&self, node: usize, planet: usize) -> bool {
        let life = self.nodes[node].life;
        let of = |one: &Control| {
            let mine = one.node == node && one.node_life == life && one.planet == planet;
            mine && one.up && !one.broken
        };
        self.controls.values().any(of)
    }

    pub(super) fn dial(&mut self, (node, life): (usize, u32), planet: usize, tries: u32) {
        let host = &self.nodes[node];
        let gone = host.life != life || host.engine.is_none() || !host.wanted.contains(&planet);
        // One is begun when the one before has ended for the node: what is said of one never comes after the
        // next has begun.
        let mine = |one: &Control| one.node == node && one.node_life == life;
        if gone
            || self
                .controls
                .values()
                .any(|one| mine(one) && one.planet == planet)
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

    pub(super) fn connected(&mut self, connection: u64) {
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

    pub(super) fn broken(&mut self, connection: u64) {
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
        }
        let work = Work::Dial {
            node: control.node,
            life: control.node_life,
            planet: control.planet,
            tries: 0,
        };
        self.net
            .schedule(self.net.now + Duration::from_millis(200), work);
    }

    /// The first that ends it is the one that counts.
    pub(super) fn break_after(&mut self, connection: u64, after: Duration) {
        if let Some(control) = self.controls.get_mut(&connection) {
            control.broken = true;
            self.net
                .schedule(self.net.now + after, Work::Broken { connection });
        }
    }

    /// The planet that still holds its end of a connection.
    pub(super) fn planet_end(&self, connection: u64) -> Option<usize> {
        let control = self.controls.get(&connection)?;
        let planet = &self.planets[control.planet];
        (control.up && planet.rules.is_some() && planet.life == control.planet_life)
            .then_some(control.planet)
    }

    pub(super) fn node_end(&self, connection: u64) -> Option<usize> {
        let control = self.controls.get(&connection)?;
        let node = &self.nodes[control.node];
        (control.up && node.engine.is_some() && node.life == control.node_life)
            .then_some(control.node)
    }

    pub(super) fn of(&self, which: impl Fn(&Control) -> bool) -> Vec<u64> {
        self.controls
            .iter()
            .filter(|(_, control)| which(control))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Delays to a planet and back; none where the way is cut.
    pub(super) fn ways(&self, node: usize, planet: usize) -> (Option<Duration>, Option<Duration>) {
        let (a, b) = (self.nodes[node].host, self.planets[planet].host);
        let (a, b) = (self.net.hosts[a].site, self.net.hosts[b].site);
        let way = |from, to| {
            let link = &self.net.links[&(from, to)];
            (!link.cut).then_some(link.delay)
        };
        (way(a, b), way(b, a))
    }

    pub(super) fn send_to_planet(&mut self, connection: u64, message: Box<NodeMessage>) {
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

    pub(super) fn send_to_node(&mut self, connection: u64, message: Box<PlanetMessage>) {
        self.watch.answered(&message);
        if !matches!(*message, PlanetMessage::Heartbeat { .. }) {
            self.watch.told = Some(self.net.now);
        }
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

    pub(super) fn planet_hears(&mut self, connection: u64, message: Box<NodeMessage>) {
        if let Some(planet) = self.planet_end(connection) {
            let connection = ConnectionId(connection);
            let input = Input::Message {
                connection,
                message,
            };
            self.tell_planet(planet, input);
        }
    }

    pub(super) fn node_hears(&mut self, connection: u64, message: Box<PlanetMessage>) {
        if let Some(node) = self.node_end(connection) {
            let planet = self.planets[self.controls[&connection].planet].id;
            self.tell_node(node, planet, PlanetEvent::Message(message));
        }
    }

    /// Dials the planets that a node wants to be connected to.
    pub(super) fn want(&mut self, index: usize, entries: &[PlanetEntry]) {
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
        let unwanted = self
            .of(|one| one.node == index && one.node_life == life && !wanted.contains(&one.planet));
        // What was said last still arrives.
        for connection in unwanted {
            self.break_after(connection, CLOSING);
        }
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
}
