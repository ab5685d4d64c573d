//! Joining, and claiming anew.

use std::time::Duration;

use podmesh_proto::certificate::{AdmissionReceipt, Claim, ClaimReceipt, Membership};
use podmesh_proto::error::CertificateError;
use podmesh_proto::id::{Name, PlanetId};
use podmesh_proto::planet_api::{NodeMessage, OLDEST_PROTOCOL, Refusal, RefusalCode};
use podmesh_proto::signed::Signed;
use podmesh_proto::time::Now;
use podmesh_proto::token::JoinToken;

use crate::engine::Engine;
use crate::engine::renewing::Renewing;
use crate::engine::statements::Comparing;
use crate::error::JoinError;
use crate::join::{AfterRefusal, Join};
use crate::limits;
use crate::membership::lies::{Lie, Source};
use crate::membership::{Learned, Members};
use crate::output::Output;
use crate::planets::Planet;
use crate::timers::Timer;

/// Between two tries when a planet's answer makes no sense.
const AFTER_NONSENSE: Duration = Duration::from_secs(10);
/// Between two tries to join when the planet doesn't say.
pub(super) const JOIN_RETRY: Duration = Duration::from_secs(5);

/// Seconds by which a planet's word may take a serial ahead of this node's clock: a machine without a battery begins
/// in 1970.
const MOST_BEHIND: u64 = 100 * 366 * 24 * 3_600;

impl Engine {
    pub(super) fn begin_join(
        &mut self,
        token: &JoinToken,
        name: Name,
        now: Now,
    ) -> Result<(), JoinError> {
        if let Some(members) = &self.members {
            let network = members.network().name.clone();
            return Err(if members.is_revoked(&self.node) {
                JoinError::Revoked { network }
            } else {
                JoinError::AlreadyMember { network }
            });
        }
        if let Some(join) = &self.join {
            let network = join.network().name.clone();
            return Err(JoinError::InProgress { network });
        }
        let join = Join::begin(token, name, &self.config, now.unix)?;
        let planets = join.network().planets.clone();
        self.join = Some(join);
        self.planets.set(&planets);
        self.persist(now);
        self.outputs.push_back(Output::Planets(planets));
        Ok(())
    }

    /// Says again to one planet what the join or claim is waiting for.
    pub(super) fn ask_again(&mut self, planet: PlanetId, now: Now) {
        if self.planets.connected().any(|one| one == planet) {
            self.ask(planet, now);
        }
    }

    /// When to ask a planet again that asked for so much patience: a planet must neither be able to make
    /// this node flood it, nor to put it off for good.
    pub(super) fn patience(&mut self, asked: Option<Duration>, otherwise: Duration) -> Duration {
        let (least, most) = limits::PATIENCE;
        let wait = asked.unwrap_or(otherwise).clamp(least, most);
        let quarter = u64::try_from(wait.as_millis() / 4).unwrap_or(u64::MAX);
        wait + Duration::from_millis(self.random.number() % quarter.max(1))
    }

    /// Tells one planet what this node wants to become or to claim.
    pub(super) fn ask(&mut self, planet: PlanetId, now: Now) {
        if let Some(message) = self.join.as_ref().map(Join::message) {
            if matches!(message, NodeMessage::Join(_)) && !self.tell_own_departure(planet, now) {
                return;
            }
            self.say(planet, message);
        } else if let Some(claim) = self.claim.clone() {
            self.say(planet, NodeMessage::Claim(claim));
        }
    }

    pub(super) fn admitted(
        &mut self,
        planet: PlanetId,
        receipt: &Signed<AdmissionReceipt>,
        now: Now,
    ) {
        let serial = self.next_serial(0, now);
        let Some(join) = &mut self.join else {
            return;
        };
        if let Some(entry) = self.planets.get_mut(&planet) {
            entry.error = None;
        }
        let made = join.admitted(
            receipt,
            &self.config.pod_cidrs,
            &self.config.keys.identity,
            serial,
        );
        match made {
            Ok(claim) => {
                self.claim_serial = serial;
                // The token's use is spent: from here on this receipt must not be lost.
                self.persist(now);
                self.say(planet, NodeMessage::Claim(claim));
            }
            Err(error) => self.nonsense(planet, "an admission receipt", &error, now),
        }
    }

    /// The serial of this node's next claim, which has to be above those of all before it. A disk that has gone back has
    /// forgotten the last ones, and so may the clock have: a planet's says when it is, too.
    fn next_serial(&self, receipted: u64, now: Now) -> u64 {
        let latest = now.unix.plus(MOST_BEHIND);
        let told = self.planets.time(now).min(latest);
        let spent = self.claim_serial.max(receipted);
        spent.saturating_add(1).max(now.unix.0).max(told.0)
    }

    pub(super) fn claimed(&mut self, planet: PlanetId, receipt: &Signed<ClaimReceipt>, now: Now) {
        if let Some(entry) = self.planets.get_mut(&planet) {
            entry.error = None;
        }
        if let Some(join) = &self.join {
            match join.claimed(receipt) {
                Ok(membership) => self.become_member(planet, membership, now),
                Err(error) => self.nonsense(planet, "a claim receipt", &error, now),
            }
            return;
        }
        let (Some(claim), Some(members)) = (&self.claim, &mut self.members) else {
            return;
        };
        let Some(own) = members.own() else {
            return;
        };
        let membership = Membership {
            claim: claim.clone(),
            claim_receipt: receipt.clone(),
            ..(*own.membership).clone()
        };
        if members.learn(membership, Source::Planet(planet), now.unix) == Learned::New {
            self.claim = None;
            self.persist(now);
        }
    }

    fn become_member(&mut self, planet: PlanetId, membership: Membership, now: Now) {
        let Some(join) = self.join.take() else {
            return;
        };
        let mut members = Members::new(
            join.network().clone(),
            join.statement().clone(),
            self.node_id(),
        );
        members.learn(membership, Source::Operator, now.unix);
        members.start_batch();
        tracing::info!(network = %join.network().name, name = %join.name(), "joined");
        self.members = Some(members);
        self.left = None;
        self.timers.retain(|timer| !matches!(timer, Timer::Join(_)));
        self.dirty = true;
        self.persist(now);
        self.outputs.push_back(Output::JoinDone(Ok(())));
        self.greet_planets_as_member(planet, now);
    }

    /// Connects anew to every planet that met this node as somebody else than the member that it has become.
    /// One took it for a stranger when it came, and heard nothing of what `granting` gave it since; another
    /// took it for a member before it knew so itself, because it didn't live to hear the receipt, and has told
    /// everything to somebody who could not make use of it.
    fn greet_planets_as_member(&mut self, granting: PlanetId, now: Now) {
        let met = |planet: &&Planet| {
            let connection = planet.connection.as_ref();
            connection
                .is_some_and(|connection| planet.entry.id != granting || connection.leg.is_some())
        };
        let met: Vec<PlanetId> = self
            .planets
            .all()
            .filter(met)
            .map(|planet| planet.entry.id)
            .collect();
        for planet in met {
            self.planet_lost(planet, "asked anew, as a member".to_owned(), now);
            self.outputs.push_back(Output::Reconnect(planet));
        }
    }

    /// A planet answered with something that doesn't fit: it is named, and asked again later.
    fn nonsense(&mut self, planet: PlanetId, what: &str, error: &CertificateError, now: Now) {
        tracing::debug!(planet = %planet.short(), what, %error, "answer doesn't hold");
        if let Some(entry) = self.planets.get_mut(&planet) {
            entry.error = Some(format!("sent {what} that doesn't hold: {error}"));
        }
        let wait = self.patience(None, AFTER_NONSENSE);
        self.timers.set(Timer::Join(planet), now.moment + wait);
    }

    pub(super) fn refused(&mut self, planet: PlanetId, refusal: Refusal, now: Now) {
        let ends = matches!(
            refusal.code,
            RefusalCode::Protocol
                | RefusalCode::OtherNetwork
                | RefusalCode::Unproven
                | RefusalCode::NodeRevoked
        );
        if let Some(entry) = self.planets.get_mut(&planet)
            && refusal.code == RefusalCode::Protocol
            && entry.protocol > OLDEST_PROTOCOL
        {
            entry.protocol = OLDEST_PROTOCOL;
            self.outputs.push_back(Output::Reconnect(planet));
            return;
        }
        if self.answers_departure(planet, &refusal, now) {
            return;
        }
        // Who joins wants to know what a planet that is connected waits for.
        let counts = ends || self.join.is_some();
        if let Some(entry) = self.planets.get_mut(&planet).filter(|_| counts) {
            entry.error = Some(printable(&refusal.reason));
        }
        if refusal.code == RefusalCode::NotMember
            && let Some(connection) = self.planets.connection(&planet)
            && connection.leg.is_none()
        {
            // What follows from the first reason says less.
            let reason = || printable(&refusal.reason);
            connection.refusal.get_or_insert_with(reason);
        }
        if refusal.code == RefusalCode::Unproven {
            self.show_other_identity();
        }
        if let Some(join) = &mut self.join {
            match join.refused(refusal) {
                AfterRefusal::Retry(asked) => {
                    let wait = self.patience(asked, JOIN_RETRY);
                    self.timers.set(Timer::Join(planet), now.moment + wait);
                }
                AfterRefusal::Failed(error) => {
                    self.forget_network(now);
                    self.outputs.push_back(Output::JoinDone(Err(error)));
                }
            }
            return;
        }
        if self.claim.is_none() {
            return;
        }
        if refusal.code == RefusalCode::Conflict {
            self.claim = None;
            if let Some(members) = &mut self.members {
                let sentence = format!("refused this node's claim: {}", printable(&refusal.reason));
                let told = ("own claim".to_owned(), sentence);
                members.note(Lie::Conflict, Source::Planet(planet), told, now.unix);
            }
        } else {
            let wait = self.patience(refusal.retry_in, AFTER_NONSENSE);
            self.timers.set(Timer::Join(planet), now.moment + wait);
        }
    }

    /// Claims the pod CIDRs of the configuration, if they are not what the membership says.
    pub(super) fn claim_configured(&mut self, now: Now) {
        if self.config.pod_cidrs.is_empty() || self.claim.is_some() {
            return;
        }
        let Some(own) = self.members.as_ref().and_then(Members::own) else {
            return;
        };
        if own.member.pod_cidrs == self.config.pod_cidrs {
            return;
        }
        let serial = self.next_serial(own.member.serial, now);
        let claim = Claim {
            network: self.members.as_ref().map_or_else(
                || podmesh_proto::id::NetworkId([0; 16]),
                |members| members.network().id,
            ),
            node: own.member.node,
            serial,
            overlay4: own.member.overlay4,
            pod_cidrs: self.config.pod_cidrs.clone(),
        };
        if let Ok(signed) = Signed::seal(&claim, &self.config.keys.identity) {
            self.claim_serial = serial;
            self.claim = Some(signed);
            self.persist(now);
        }
    }

    /// Back to the state before any join; only keys and ports stay.
    pub(super) fn forget_network(&mut self, now: Now) {
        self.peers.clear();
        self.members = None;
        self.join = None;
        self.claim = None;
        self.record = None;
        // Who comes back after leaving is a new node to everybody.
        self.node = self.config.keys.identity.node_id();
        self.renewing = Renewing::default();
        self.comparing = Comparing::default();
        self.config.next = None;
        self.waiting_bytes = 0;
        self.budget.leave(now.moment);
        self.held_editions.clear();
        self.presence.clear();
        self.timers = crate::timers::Timers::default();
        self.timers.set(Timer::Second, now.moment);
        self.persist(now);
        self.rebuild(now);
        self.planets.set(&[]);
        self.outputs.push_back(Output::Planets(Vec::new()));
    }
}

/// A sentence from outside, fit for a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .filter(|letter| !letter.is_control())
        .take(200)
        .collect()
}
