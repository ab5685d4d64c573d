//! Planets: the rules as they are shipped, a store that is a map, and the relay.

use std::net::SocketAddr;
use std::time::Duration;

use podmesh_planet::rules::books::Books;
use podmesh_planet::rules::records::{Change, Origin, Record};
use podmesh_planet::rules::relaying::{RelayQuota, Relaying};
use podmesh_planet::rules::{Action, Input, Planet};

use crate::authority::PLANET_PORT;

use super::control::{CONTROL_IDLE, CONTROL_RESET};
use super::{Work, World};

impl World {
    pub fn start_planet(&mut self, index: usize) {
        let now = self.now_of_planet(index);
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
        planet.relaying = Relaying::new(RelayQuota::default(), [7; 32]);
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

    pub fn tell_planet(&mut self, index: usize, input: Input) {
        let now = self.now_of_planet(index);
        if let Some(rules) = &mut self.planets[index].rules {
            rules.handle(input, now);
        }
        self.pump_planet(index);
    }

    fn pump_planet(&mut self, index: usize) {
        let now = self.now_of_planet(index);
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
                Action::OpenRelay { grant, node, home } => {
                    planet.relaying.open(&grant, (node, home), now.moment);
                }
                Action::CloseRelay { session } => planet.relaying.close(session, now.moment),
                Action::Happened(event) => self.watch.noted(&event),
                Action::Answer { .. } => {}
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

    pub(super) fn planet_endpoint(&self, planet: usize) -> SocketAddr {
        let host = self.planets[planet].host;
        SocketAddr::new(self.net.hosts[host].addresses[0], PLANET_PORT)
    }

    pub(super) fn planet_datagram(&mut self, planet: usize, from: SocketAddr, bytes: &[u8]) {
        let (now, mut out) = (self.net.now, Vec::new());
        let host = &mut self.planets[planet];
        if host.rules.is_none() {
            return;
        }
        let answer = host.relaying.handle(bytes, from, now, &mut out);
        let answer = answer.map(|place| (place, out));
        let question = host.relaying.take_question();
        let host = host.host;
        for (place, bytes) in answer.into_iter().chain(question) {
            self.net
                .send((host, PLANET_PORT), place.endpoint, None, bytes);
        }
    }
}
