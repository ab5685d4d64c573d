//! Leaving: a node says so itself, and who hears it passes it on, to peers and planets.

use std::time::Duration;

use podmesh_proto::certificate::Departure;
use podmesh_proto::id::PlanetId;
use podmesh_proto::key::SigningKey;
use podmesh_proto::planet_api::{NodeMessage, Refusal, RefusalCode};
use podmesh_proto::renewal::{self, Succession};
use podmesh_proto::signed::Signed;
use podmesh_proto::time::Now;

use super::directory::about;
use crate::control::ControlMessage;
use crate::engine::Engine;
use crate::engine::joining::JOIN_RETRY;
use crate::error::{JoinError, RequestError};
use crate::join::Join;
use crate::limits;
use crate::membership::lies::{Lie, Source};
use crate::membership::{Members, Parting};
use crate::mutation::{self, Mutant};
use crate::output::Output;
use crate::planets::OwnDeparture;
use crate::timers::Timer;

/// A join follows this long after a departure that is told again: a planet hears a stranger once in two seconds,
/// and a slow disk takes its time.
const AFTER_DEPARTURE: Duration = Duration::from_millis(2_500);
/// Between two tellings of departures for which a planet had no time, and how many there are.
const TELL_RETRY: Duration = Duration::from_secs(10);
const TELLINGS: u32 = 8;

impl Engine {
    pub(super) fn leave(&mut self, now: Now) -> Result<(), RequestError> {
        if self.join.take().is_some() {
            self.forget_network(now);
            self.outputs
                .push_back(Output::JoinDone(Err(JoinError::Cancelled)));
            return Ok(());
        }
        let members = self.members.as_ref().ok_or(RequestError::NotJoined)?;
        let departure = match members.own_departure() {
            Some(known) if !self.outgrows(known, members) => known.clone(),
            _ => self.sign_departure(members, now)?,
        };
        let heard = self.tell_planets(&departure, Source::Operator);
        let message = ControlMessage::Left(Box::new(departure.clone()));
        self.gossip(&message, None, now);
        tracing::info!(by_planets = heard, "left the network");
        // Also if a planet was there: nobody knows whether it has heard.
        self.left = Some(departure);
        self.forget_network(now);
        Ok(())
    }

    /// This node's word that the membership that it has is over. It names that by its receipt, not by a time of
    /// this machine's clock: one that is ahead would end what is admitted until then, and one that is behind
    /// would end nothing.
    fn sign_departure(
        &self,
        members: &Members,
        now: Now,
    ) -> Result<Signed<Departure>, RequestError> {
        let node = self.node_id();
        let own = members.own();
        let apart = members.kept_apart(&node);
        let member = own.map(|own| &own.member).or(apart);
        let known = members.own_departure().map(Signed::unverified);
        let known = known.transpose()?.map(|departure| departure.time);
        let admitted = member.map(|member| member.admitted).or(known);
        let (successions, identity) = self.newest_identity(members);
        let departure = Departure {
            network: members.network().id,
            node,
            successions,
            time: match admitted {
                Some(admitted) if mutation::is(Mutant::LeavesByClock) => admitted.max(now.unix),
                Some(admitted) => admitted,
                // Without a membership to name, everything until now by the planets' clocks.
                None => self.planets.time(now),
            },
        };
        Ok(Signed::seal(&departure, identity)?)
    }

    /// Whether this node has changed its identity since it left, because it had forgotten that: whoever knows the
    /// new one doesn't believe what the one before has signed.
    fn outgrows(&self, departure: &Signed<Departure>, members: &Members) -> bool {
        let (steps, _) = self.newest_identity(members);
        let named = departure.unverified().map(|known| known.successions.len());
        named.is_ok_and(|named| named < steps.len())
    }

    /// The steps to the newest identity that may speak for this node, and its key. One that was asked for may be
    /// in force already: this node did not live to hear that, or its disk has gone back to before it, perhaps to
    /// before it asked. Whoever knows only an identity before it believes it by the steps.
    fn newest_identity(&self, members: &Members) -> (Vec<Signed<Succession>>, &SigningKey) {
        let (node, network) = (self.node_id(), members.network().id);
        let present = &self.config.keys.identity;
        let coming = self.config.next.as_ref().map(|next| &next.identity);
        let renewed = members.membership(&node);
        let renewed = renewed.and_then(|known| known.renewed.as_ref());
        let asked = self.renewing.request.iter();
        let requests = asked.chain(renewed.map(|renewed| &renewed.request));
        let key_of = |steps: &[Signed<Succession>]| {
            let newest = *renewal::identities(network, node, steps).ok()?.last()?;
            let mut keys = std::iter::once(present).chain(coming);
            keys.find(|key| key.public() == newest)
        };
        let mut chains = requests.map(|request| &request.successions);
        let chain = chains.find_map(|steps| Some((steps.clone(), key_of(steps)?)));
        let (mut steps, key) = chain.unwrap_or((Vec::new(), present));
        let coming = coming.filter(|_| key.public() == present.public());
        let step = |coming: &&SigningKey| self.step_to(coming, network, &mut steps) == Ok(true);
        let key = coming.filter(step).unwrap_or(key);
        (steps, key)
    }

    /// Forgets the network and tells nobody, for the copy of a machine: its word would put the machine that
    /// it was copied from out.
    pub(super) fn abandon(&mut self, now: Now) -> Result<(), RequestError> {
        if self.members.is_none() {
            return self.leave(now);
        }
        tracing::info!("the network is forgotten; this node's identity stays a member");
        self.left = None;
        self.forget_network(now);
        Ok(())
    }

    /// A node's word that it has left, from whomever.
    pub(super) fn take_departure(
        &mut self,
        departure: &Signed<Departure>,
        source: Source,
        now: Now,
    ) {
        let Some(members) = &mut self.members else {
            return;
        };
        let node = departure.unverified().map(|claimed| claimed.node);
        let own = node.as_ref().is_ok_and(|node| *node == self.node);
        if own && mutation::is(Mutant::DepartureUnheard) {
            return;
        }
        let parting = members.depart(departure, source, now.unix);
        if let (Ok(_), Ok(node), Source::Planet(planet)) = (&parting, &node, source) {
            members.planet_knows_departure(planet, node);
        }
        let error = match parting {
            Ok(Parting::News) => {
                if own {
                    tracing::warn!(
                        "this node has left, by its own word, and its state is from before that"
                    );
                    self.claim = None;
                }
                self.persist(now);
                self.tell_planets(departure, source);
                self.pass_departure_on(departure, source, now);
                return self.follow_members(now);
            }
            Ok(Parting::Nothing) => return self.follow_members(now),
            // A member that was away is no liar: it tells what it heard last.
            Ok(Parting::Over) if !matches!(source, Source::Planet(_)) => return,
            Ok(Parting::Over) => {
                let sentence = "sent an old departure of a node that has come back".to_owned();
                if let Ok(node) = node {
                    let (_, sentence) = about(members, Ok(node), sentence);
                    members.note_late((Lie::OldState, node), source, sentence, now.unix);
                }
                self.answer_late(source, now);
                return self.follow_members(now);
            }
            Err(error) => error,
        };
        let sentence = format!("sent a departure that doesn't hold: {error}");
        let told = about(members, node, sentence);
        members.note(Lie::Forged, source, told, now.unix);
        self.follow_members(now);
    }

    fn pass_departure_on(&mut self, departure: &Signed<Departure>, source: Source, now: Now) {
        let from = match source {
            Source::Member(node) => Some(node),
            _ => None,
        };
        let message = ControlMessage::Left(Box::new(departure.clone()));
        self.gossip(&message, from, now);
    }

    /// Tells the planets that are connected, but not the one that said it; whether any was.
    fn tell_planets(&mut self, departure: &Signed<Departure>, source: Source) -> bool {
        let connected: Vec<PlanetId> = self
            .planets
            .connected()
            .filter(|planet| source != Source::Planet(*planet))
            .collect();
        for planet in &connected {
            self.say(*planet, NodeMessage::Leave(departure.clone()));
        }
        !connected.is_empty()
    }

    /// Tells a planet who has left while it was away.
    pub(super) fn tell_departures(&mut self, planet: PlanetId) {
        let Some(members) = &self.members else {
            return;
        };
        for departure in members.last_departures(limits::GOSSIP_FANOUT, Some(planet)) {
            self.say(planet, NodeMessage::Leave(departure));
        }
    }

    /// What a refusal means for the departures that the planet was told; whether it answers nothing else.
    pub(super) fn answers_departure(
        &mut self,
        planet: PlanetId,
        refusal: &Refusal,
        now: Now,
    ) -> bool {
        if self.refuses_departure(&planet, refusal.code) {
            let next = now.moment + JOIN_RETRY;
            self.timers.set(Timer::Join(planet), next);
            return true;
        }
        self.tell_departures_later(planet, refusal, now);
        self.misses_departure(&planet, refusal.code)
    }

    /// A planet that had no time is told again, a few times: one that has a reason not to take a departure says
    /// nothing to it.
    fn tell_departures_later(&mut self, planet: PlanetId, refusal: &Refusal, now: Now) {
        let members = self.members.as_ref();
        let untold = members.map(|members| members.last_departures(1, Some(planet)));
        let any = untold.is_some_and(|untold| !untold.is_empty());
        let connection = self.planets.connection(&planet);
        if let Some(known) = connection.filter(|_| any && refusal.code == RefusalCode::Busy)
            && known.departures_again < TELLINGS
            && !self.timers.is_set(Timer::Departures(planet))
        {
            known.departures_again += 1;
            let wait = self.patience(refusal.retry_in, TELL_RETRY).max(TELL_RETRY);
            let next = now.moment + wait;
            self.timers.set(Timer::Departures(planet), next);
        }
    }

    /// A node that left while no planet could hear it says so before it comes back: its admission
    /// must be the later one of the two, also if its clock is ahead. Whether the join may be said at once.
    pub(super) fn tell_own_departure(&mut self, planet: PlanetId, now: Now) -> bool {
        let own = self.config.keys.identity.public();
        let network = self.join.as_ref().map(|join| Join::network(join).id);
        let left = self.left.clone().filter(|left| {
            // Its id was another one then, if its identity has changed since it was admitted.
            let said = network.and_then(|network| Departure::verify(left, network).ok());
            said.is_some_and(|(_, identities)| identities.contains(&own))
        });
        let Some((left, known)) = left.zip(self.planets.connection(&planet)) else {
            return true;
        };
        // Once: a planet doesn't listen to strangers often, and the join has to be heard, too.
        let first = known.departed.is_none();
        if known.departed.is_some_and(|told| !told.again) {
            return true;
        }
        let as_another = left.unverified().is_ok_and(|said| said.node != self.node);
        known.departed = Some(OwnDeparture {
            as_another,
            again: false,
        });
        self.say(planet, NodeMessage::Leave(left));
        if !first {
            // Who answers is known only if nothing else is said meanwhile.
            let next = now.moment + AFTER_DEPARTURE;
            self.timers.set(Timer::Join(planet), next);
        }
        first
    }

    /// Whether a refusal is the answer to the departure that was told before the join: there are planets that
    /// take none from a node that they knew by another id.
    fn refuses_departure(&mut self, planet: &PlanetId, code: RefusalCode) -> bool {
        let connection = self.planets.connection(planet);
        let told = connection.and_then(|known| known.departed.as_mut());
        told.is_some_and(|told| {
            code == RefusalCode::Unproven && std::mem::take(&mut told.as_another)
        })
    }

    /// Whether a refusal says no more than that the planet has not heard this node's departure: it had no time for
    /// that, and judged the join that was said after it as that of a member.
    fn misses_departure(&mut self, planet: &PlanetId, code: RefusalCode) -> bool {
        let connection = self.planets.connection(planet);
        let Some(told) = connection.and_then(|known| known.departed.as_mut()) else {
            return false;
        };
        told.again |= code == RefusalCode::Busy;
        told.again && code == RefusalCode::Conflict
    }
}

#[cfg(test)]
mod tests {
    use podmesh_proto::local_api::NodeState;

    use super::*;
    use crate::testing::{Keys, START, World, name};

    /// Three nodes; the first one leaves while the planet is dead and the third one is off.
    fn left_in_silence() -> World {
        let mut world = World::new(3);
        world.join_all();
        world.kill_planet();
        world.off.insert(2);
        let now = world.now;
        world.engines[0].handle_leave(now).unwrap();
        world.drain(0);
        world.run(Duration::from_millis(500));
        world
    }

    fn knows(world: &World, node: usize, peer: &str) -> bool {
        let peers = world.engines[node].peers(world.now);
        peers.iter().any(|view| view.name == name(peer))
    }

    fn revive_planet(world: &mut World) {
        world.planet_alive = true;
        for member in [1, 2] {
            world.connect(member);
        }
        world.run(Duration::from_secs(1));
    }

    #[test]
    fn a_departure_travels_from_node_to_node_and_on_to_a_planet_that_was_dead() {
        let mut world = left_in_silence();
        assert!(!knows(&world, 1, "n1") && knows(&world, 1, "n3"));
        assert!(knows(&world, 2, "n1"), "it was off");
        world.restart(1);
        assert!(!knows(&world, 1, "n1"), "kept on disk");
        world.off.remove(&2);
        world.restart(2);
        world.run(Duration::from_secs(20));
        assert!(!knows(&world, 2, "n1") && knows(&world, 2, "n2"));

        let gone = Keys::new(1).id();
        let said = format!("left {}", gone.short());
        assert!(!world.notes.contains(&said));
        revive_planet(&mut world);
        assert!(world.notes.contains(&said));
        // The planet has said it too since then, so that nobody repeats it.
        let count = |world: &World| world.notes.iter().filter(|note| **note == said).count();
        let before = count(&world);
        world.connect(1);
        world.run(Duration::from_secs(1));
        assert_eq!(count(&world), before);
    }

    #[test]
    fn who_was_away_for_a_moment_hears_of_it() {
        let mut world = left_in_silence();
        world.off.remove(&2);
        world.restart(2);
        world.run(Duration::from_secs(5));
        assert!(knows(&world, 2, "n2") && !knows(&world, 2, "n1"));
    }

    #[test]
    fn who_left_in_silence_comes_back_and_stays() {
        let mut world = left_in_silence();
        world.restart(0);
        world.off.remove(&2);
        world.planet_alive = true;
        let (token, now) = (world.authority.token(9), world.now);
        world.engines[0]
            .handle_join(&token, name("n1"), now)
            .unwrap();
        world.drain(0);
        world.run(Duration::from_secs(2));
        world.connect(0);
        let said = format!("left {}", Keys::new(1).id().short());
        assert!(
            world.notes.contains(&said),
            "said before the join: {:?}",
            world.notes
        );
        assert_eq!(world.engines[0].status(world.now).state, NodeState::Online);
        world.connect(1);
        world.restart(2);
        world.run(Duration::from_secs(20));
        for node in [1, 2] {
            assert!(knows(&world, node, "n1"), "node {node}");
        }
        assert!(world.engines[0].left.is_none());
        assert!(world.stored[0].as_ref().unwrap().departures.is_empty());
    }

    /// The planet's disk was full, or it had heard enough of this node for the moment.
    #[test]
    fn a_departure_for_which_a_planet_has_no_time_is_said_again_before_the_join() {
        for busy in [1, 3] {
            let mut world = left_in_silence();
            world.restart(0);
            world.planet_alive = true;
            (world.busy_to_leave, world.names_are_held) = (busy, true);
            let (token, now) = (world.authority.token(9), world.now);
            world.engines[0]
                .handle_join(&token, name("n1"), now)
                .unwrap();
            world.drain(0);
            world.connect(0);
            world.run(Duration::from_secs(40));
            assert_eq!(world.busy_to_leave, 0);
            let status = world.engines[0].status(world.now);
            assert_eq!(status.state, NodeState::Online, "{:?}", world.notes);
            let said = format!("left {}", Keys::new(1).id().short());
            let count = world.notes.iter().filter(|note| **note == said).count();
            assert_eq!(count, 1, "once it was heard: {:?}", world.notes);
        }
    }

    #[test]
    fn what_a_planet_had_no_time_to_hear_of_others_is_told_again() {
        let mut world = left_in_silence();
        let said = format!("left {}", Keys::new(1).id().short());
        world.planet_alive = true;
        world.busy_to_leave = 2;
        world.connect(1);
        world.run(Duration::from_secs(60));
        assert!(world.notes.contains(&said), "{:?}", world.notes);
    }

    #[test]
    fn nobody_is_put_out_by_another_nodes_word() {
        let mut world = World::new(3);
        world.join_all();
        let departure = Departure {
            network: world.authority.network.id,
            node: world.engines[2].node_id(),
            successions: Vec::new(),
            time: START.plus(1_000),
        };
        let forged = Signed::seal(&departure, &Keys::new(1).identity).unwrap();
        let now = world.now;
        let message = ControlMessage::Left(Box::new(forged));
        world.engines[0].gossip(&message, None, now);
        world.drain(0);
        world.run(Duration::from_millis(500));
        assert!(knows(&world, 1, "n3"));
        let health = world.engines[1].status(world.now).health;
        let named = |code: &str| {
            let of_code = health.iter().find(|view| view.code == code);
            of_code.is_some_and(|view| view.message.contains("n3"))
        };
        assert!(named("MESH-TRUST-009"), "{health:?}");
    }
}
