//! The life of a control connection: hello, welcome, heartbeats, the end; and where planets see this
//! node.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use podmesh_proto::id::PlanetId;
use podmesh_proto::planet_api::{
    HELLO_CONTEXT, Hello, NodeMessage, PROTOCOL, PlanetMessage, Welcome,
};
use podmesh_proto::relayed::{RelayHeader, RelaySeal, Token};
use podmesh_proto::time::Now;

use crate::engine::Engine;
use crate::engine::joining::printable;
use crate::forwarding::RelayLeg;
use crate::join::Join;
use crate::limits;
use crate::membership::Members;
use crate::output::{Output, Received, Transmit};
use crate::path_id::SocketId;
use crate::planets::{Connection, Planet};
use crate::publishing::Witness;
use crate::reach::Passage;
use crate::timers::Timer;

/// Tries of a question that are made in quick succession.
const QUICK_TRIES: u32 = 5;

impl Engine {
    pub(super) fn hello_to(&self, planet: &PlanetId, exported: &[u8]) -> Option<NodeMessage> {
        let members = self.members.as_ref();
        let network = members
            .map(Members::network)
            .or(self.join.as_ref().map(Join::network))?;
        let own = members.and_then(Members::own);
        Some(NodeMessage::Hello(Hello {
            protocol: self
                .planets
                .get(planet)
                .map_or(PROTOCOL, |planet| planet.protocol),
            network: network.id,
            node: self.node_id(),
            proof: self.shown_identity().sign(HELLO_CONTEXT, exported),
            incarnation: self.incarnation,
            membership: own.map(|own| Box::new((*own.membership).clone())),
            cursor: self.planets.get(planet).and_then(|planet| planet.cursor),
            sequence: members.map_or(0, Members::sequence),
            network_version: network.version,
            software: format!("meshd {}", self.config.version),
        }))
    }

    pub(super) fn planet_connected(
        &mut self,
        planet: PlanetId,
        (remote, rtt): (SocketAddr, Duration),
        now: Now,
    ) {
        let remote = podmesh_proto::candidate::canonical(remote);
        if let Some(entry) = self.planets.get_mut(&planet) {
            entry.connection = Some(Connection::new(remote, rtt, now.moment));
            let heartbeat = now.moment + limits::HEARTBEAT;
            self.timers.set(Timer::Heartbeat(planet), heartbeat);
        }
    }

    pub(super) fn planet_lost(&mut self, planet: PlanetId, reason: String, now: Now) {
        let Some(entry) = self.planets.get_mut(&planet) else {
            return;
        };
        let connection = entry.connection.take();
        let was_connected = connection.is_some();
        if connection.is_some_and(|connection| connection.welcome) {
            // It may come back as a newer one.
            entry.protocol = PROTOCOL;
        }
        entry.error = Some(printable(&reason));
        self.clear_timers_of(planet);
        if let Some(members) = &mut self.members {
            members.planet_is_away(planet, now.unix);
        }
        if was_connected {
            tracing::info!(planet = %self.planets.name(&planet), reason = %printable(&reason), "planet lost");
            self.presence.retain(|(_, at), _| *at != planet);
            self.relays_changed(now);
        }
    }

    fn clear_timers_of(&mut self, planet: PlanetId) {
        self.end_comparing(&planet);
        self.timers.clear(Timer::Heartbeat(planet));
        self.timers.clear(Timer::Observe(planet));
        self.timers.clear(Timer::Report(planet));
        self.timers.clear(Timer::Late(planet));
        self.timers.clear(Timer::Join(planet));
        self.timers.clear(Timer::Renew(planet));
    }

    /// The planets of the network are those of its newest edition.
    pub(super) fn follow_edition(&mut self, now: Now) {
        let Some(members) = &self.members else {
            return;
        };
        let planets = members.network().planets.clone();
        for gone in self.planets.set(&planets) {
            if let Some(members) = &mut self.members {
                members.forget_planet(gone);
            }
            self.clear_timers_of(gone);
            self.presence.retain(|(_, at), _| *at != gone);
            self.endpoints.forget(Witness::Planet(gone));
        }
        self.outputs.push_back(Output::Planets(planets));
        self.relays_changed(now);
    }

    /// Asks a planet for everything once more that it had told when this node's clock was wrong, and that
    /// therefore was not believed. It won't say it again by itself.
    pub(super) fn ask_planets_again(&mut self, now: Now) {
        let Some(members) = &mut self.members else {
            return;
        };
        for planet in members.take_timely(now.unix) {
            let name = self.planets.name(&planet);
            let Some(entry) = self.planets.get_mut(&planet) else {
                continue;
            };
            tracing::info!(planet = %name, "what a planet told before holds by this clock");
            entry.cursor = None;
            if entry.connection.is_some() {
                let reason = "asked anew, as the clock has changed".to_owned();
                self.planet_lost(planet, reason, now);
                self.outputs.push_back(Output::Reconnect(planet));
            }
        }
    }

    pub(super) fn planet_said(&mut self, planet: PlanetId, message: PlanetMessage, now: Now) {
        let Some(connection) = self.planets.connection(&planet) else {
            return;
        };
        connection.heard = now.moment;
        match message {
            PlanetMessage::Welcome(welcome) => self.welcomed(planet, welcome, now),
            PlanetMessage::Admitted(receipt) => self.admitted(planet, &receipt, now),
            PlanetMessage::Claimed(receipt) => self.claimed(planet, &receipt, now),
            PlanetMessage::Refused(refusal) => self.refused(planet, refusal, now),
            PlanetMessage::Directory(update) => self.directory(planet, update, now),
            PlanetMessage::Punch {
                peer,
                attempt,
                fire_in,
            } => {
                tracing::debug!(peer = %peer.short(), attempt, ?fire_in, "a planet says when to punch");
                self.with_paths(&peer, now, |paths| {
                    paths.handle_punch(attempt, fire_in, now);
                });
            }
            PlanetMessage::Statement(statement) => {
                self.take_planets_statement(planet, &statement, now);
            }
            PlanetMessage::Summary(summary) => self.planet_summarized(planet, summary),
            PlanetMessage::Held(held) => self.planet_holds(planet, &held, now),
            PlanetMessage::Statements(told) => self.planet_tells(planet, &told, now),
            PlanetMessage::Relearn => self.begin_report(planet, now),
            PlanetMessage::Renewed(receipt) => self.renewed(planet, receipt, now),
            PlanetMessage::NotRenewed(refusal) => self.not_renewed(planet, &refusal, now),
            PlanetMessage::Heartbeat { .. } => {}
            PlanetMessage::Clock(time) => {
                if let Some(entry) = self.planets.get_mut(&planet) {
                    entry.clock = Some((time, now.moment));
                }
            }
            PlanetMessage::Draining { retry_in } => {
                if let Some(entry) = self.planets.get_mut(&planet) {
                    let wait = retry_in.as_secs();
                    entry.error = Some(format!("goes away on purpose, back in {wait} s"));
                }
            }
        }
    }

    fn welcomed(&mut self, planet: PlanetId, welcome: Welcome, now: Now) {
        let Some(entry) = self.planets.get_mut(&planet) else {
            return;
        };
        let known = entry.cursor;
        entry.error = None;
        entry.clock = Some((welcome.time, now.moment));
        let Some(connection) = entry.connection.as_mut() else {
            return;
        };
        let first = !connection.welcome;
        let mut syncing = connection.syncing.is_some();
        connection.welcome = true;
        if let Some(grant) = &welcome.relay {
            connection.refusal = None;
            entry.refusals = 0;
            let leg = RelayLeg::new(planet, connection.remote, grant);
            connection.leg = Some(Arc::new(leg));
            connection.asked.clear();
            if known.is_none_or(|known| known.epoch != welcome.cursor.epoch) {
                let until = now.moment + limits::FIRST_TELLING;
                connection.syncing = Some((welcome.cursor.version, until));
                syncing = true;
                if let Some(members) = &mut self.members {
                    members.start_batch();
                }
            }
        }
        let granted = welcome.relay.is_some();
        if first {
            tracing::info!(planet = %self.planets.name(&planet), "planet connected");
        }
        if granted {
            self.end_sync(planet, known.map_or(0, |known| known.version));
            if !syncing {
                self.tell_departures(planet);
            }
            self.relays_changed(now);
            self.begin_comparing(planet, now);
            self.claim_configured(now);
            self.observe(planet, now);
        }
        self.ask(planet, now);
        if granted {
            self.ask_renewal(planet, now);
        }
    }

    /// A relay session has come or gone.
    fn relays_changed(&mut self, now: Now) {
        self.dirty = true;
        self.rebuilt = None;
        self.publish(true, now);
        self.spread_relays(now);
    }

    pub(super) fn heartbeat(&mut self, planet: PlanetId, now: Now) {
        let Some(connection) = self.planets.connection(&planet) else {
            return;
        };
        if now.moment.since(connection.heard) >= limits::PLANET_SILENCE {
            let reason = format!("nothing heard for {} s", limits::PLANET_SILENCE.as_secs());
            self.planet_lost(planet, reason, now);
            self.outputs.push_back(Output::Reconnect(planet));
            return;
        }
        let strange = |planet: &Planet| planet.is_strange(planet.patience(), now.moment);
        if self.is_active() && self.planets.get(&planet).is_some_and(strange) {
            if let Some(entry) = self.planets.get_mut(&planet) {
                let again = entry.refusals.saturating_add(1);
                entry.refusals = entry.refusal().map_or(0, |_| again);
            }
            // The hello has the membership, in case that what it was told since got lost on it.
            let reason = "asked anew, as it takes this member for a stranger".to_owned();
            self.planet_lost(planet, reason, now);
            self.outputs.push_back(Output::Reconnect(planet));
            return;
        }
        self.say(planet, NodeMessage::Heartbeat);
        let next = now.moment + limits::HEARTBEAT;
        self.timers.set(Timer::Heartbeat(planet), next);
    }

    /// Asks where a planet sees this node's sockets. The main socket is asked last: a relay sends
    /// to where it heard a node last.
    pub(super) fn observe(&mut self, planet: PlanetId, now: Now) {
        let Some(connection) = self.planets.connection(&planet) else {
            return;
        };
        let Some(leg) = connection.leg.clone() else {
            return;
        };
        let answered = connection.asked.is_empty();
        connection.tries = if answered {
            0
        } else {
            connection.tries.saturating_add(1)
        };
        let quick = !answered && connection.tries < QUICK_TRIES;
        connection.asked.clear();
        for socket in [SocketId::SPARE, SocketId::MAIN] {
            let (question, counter) = question(&leg, socket, Token::default());
            tracing::trace!(planet = %planet.short(), ?socket, counter, "asks where it is seen");
            connection.asked.insert(counter, socket);
            self.outputs.push_back(Output::Transmit(question));
        }
        let first = connection.tries == 0 && self.endpoints.seen_by(&planet).is_none();
        let wait = if quick || first {
            limits::OBSERVE_RETRY
        } else {
            limits::OBSERVE
        };
        self.timers.set(Timer::Observe(planet), now.moment + wait);
    }

    /// A planet's answer where it sees a socket.
    pub(super) fn observed(&mut self, received: &Received, now: Now) {
        tracing::trace!(from = %received.from, "is told where it is seen");
        let Ok(header) = RelayHeader::parse(&received.bytes) else {
            return;
        };
        let legs: Vec<Arc<RelayLeg>> = self.planets.legs().cloned().collect();
        for leg in legs {
            let Some(payload) = leg.open(&header, &received.bytes) else {
                continue;
            };
            let Ok(endpoint) = RelaySeal::endpoint(payload) else {
                return;
            };
            let wanted = RelaySeal::token(payload).filter(|token| *token != Token::default());
            let Some(connection) = self.planets.connection(&leg.planet) else {
                return;
            };
            let socket = connection.asked.remove(&header.counter);
            if connection.asked.is_empty() {
                let next = now.moment + limits::OBSERVE;
                self.timers.set(Timer::Observe(leg.planet), next);
            }
            if let Some(token) = wanted {
                self.prove_place(&leg, received.socket, token, now);
            }
            let Some(socket) = socket else {
                return;
            };
            let witness = Witness::Planet(leg.planet);
            if self.endpoints.saw(witness, socket, endpoint) {
                self.publish(false, now);
                self.paths_changed(now);
            }
            return;
        }
    }

    /// Shows a planet that this node receives what comes to its main socket, to which frames are to be
    /// relayed. A few times a second do: whoever repeats old answers gets no more out of it.
    fn prove_place(&mut self, leg: &RelayLeg, socket: SocketId, token: Token, now: Now) {
        let Some(connection) = self.planets.connection(&leg.planet) else {
            return;
        };
        let soon = connection
            .proved
            .is_some_and(|at| now.moment.since(at) < limits::PROOF_GAP);
        if socket != SocketId::MAIN || soon {
            return;
        }
        connection.proved = Some(now.moment);
        let (proof, counter) = question(leg, socket, token);
        connection.asked.insert(counter, socket);
        let next = now.moment + limits::OBSERVE_RETRY;
        self.timers.set(Timer::Observe(leg.planet), next);
        self.outputs.push_back(Output::Transmit(proof));
    }
}

/// Asks a planet where it sees `socket`.
fn question(leg: &RelayLeg, socket: SocketId, token: Token) -> (Transmit, u64) {
    let mut bytes = Vec::new();
    let counter = leg.observe(token, &mut bytes);
    let question = Transmit {
        socket,
        to: leg.endpoint,
        passage: Passage::Ordinary,
        bytes,
    };
    (question, counter)
}
