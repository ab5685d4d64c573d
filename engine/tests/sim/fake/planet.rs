//! What nodes and planets tell each other.

use std::net::SocketAddr;
use std::time::Duration;

use podmesh_engine::path_id::SocketId;
use podmesh_engine::paths::Local;
use podmesh_proto::candidate::{Candidate, CandidateKind, EndpointRecord};
use podmesh_proto::id::{NetworkId, PlanetId};

use super::{Ask, Fake, PLANET_PORT, PORTS, Tell, Wire, Work};

impl Fake {
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

    pub(super) fn planet_endpoint(&self, planet: usize) -> SocketAddr {
        let host = self.planets[planet].host;
        SocketAddr::new(self.net.hosts[host].addresses[0], PLANET_PORT)
    }

    pub(super) fn ask(&mut self, planet: usize, node: usize, message: Ask) {
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

    pub(super) fn tell(&mut self, planet: usize, node: usize, message: Tell) {
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

    pub(super) fn planet_hears(&mut self, planet: usize, node: usize, message: Ask) {
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

    pub(super) fn node_hears(&mut self, planet: usize, node: usize, message: Tell) {
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

    pub(super) fn relays(&mut self, node: usize) {
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

    pub(super) fn publish(&mut self, index: usize) {
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

    pub(super) fn planet_datagram(
        &mut self,
        planet: usize,
        port: u16,
        from: SocketAddr,
        wire: Wire,
    ) {
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
                    .send((host, PLANET_PORT), from, None, Wire::Observed(from));
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
                    self.net.send((host, PLANET_PORT), endpoint, None, wire);
                }
            }
            _ => {}
        }
        let _ = port;
    }
}
