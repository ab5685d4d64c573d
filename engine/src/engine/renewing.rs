//! This node's own membership goes on, and its keys change.
//!
//! A successor of the node's certificate is signed once, kept on disk before a planet sees it, and
//! handed in word for word until a planet receipts it: a second one with the same serial would be a lie
//! to everybody. A rotation goes the same way; the new keys take over when the receipt is there.

use std::sync::Arc;

use podmesh_proto::certificate::{Member, Membership};
use podmesh_proto::id::{NetworkId, NodeId, PlanetId};
use podmesh_proto::key::SigningKey;
use podmesh_proto::limits::{CLOCK_SKEW, MAX_SUCCESSIONS};
use podmesh_proto::planet_api::{NodeMessage, Refusal};
use podmesh_proto::probe::ProbeKeys;
use podmesh_proto::renewal::{Renewal, RenewalReceipt, RenewalRequest, Renewed, Succession};
use podmesh_proto::signed::Signed;
use podmesh_proto::statements::Subject;
use podmesh_proto::time::{Now, UnixSeconds};

use crate::config::NodeKeys;
use crate::control::ControlMessage;
use crate::engine::Engine;
use crate::engine::joining::printable;
use crate::error::RequestError;
use crate::limits;
use crate::membership::holdings::MemberId;
use crate::membership::lies::Source;
use crate::membership::{Known, Learned, Members};
use crate::mutation::{self, Mutant};
use crate::planets::Planet;
use crate::timers::Timer;
use crate::tunnel::Tunnel;

/// What this node knows of its own renewal.
#[derive(Debug, Default)]
pub(crate) struct Renewing {
    /// Signed, on disk, and not receipted yet.
    pub(crate) request: Option<RenewalRequest>,
    /// Why the last planet that was asked said no.
    pub(crate) refusal: Option<String>,
    /// The keys that the membership names are not this node's: somebody else has used its identity, or
    /// it came back from an old copy of its disk.
    pub(crate) lost_keys: bool,
    /// To planets it is proven by the identity that comes.
    shows_next: bool,
    /// The last life has made new keys, and its disk has no request for them.
    pub(super) resumes: bool,
    /// The last successor that everybody was told of: the certificate that it follows, and its serial.
    told: Option<([u8; 32], u64)>,
    /// Peers and planets are told of the newest successor when the state with this number is on disk, or
    /// can't be.
    pub(super) told_by: Option<u64>,
    /// The request asks for new keys, and is kept back until the state with this number is on disk.
    pub(super) held_for: Option<u64>,
    /// New keys are in force; the old ones are needed until the state with this number is on disk.
    pub(super) moved_by: Option<u64>,
    /// The old keys may go; the shell has yet to write that down.
    pub(super) moved: bool,
}

impl Engine {
    /// Begins to change this node's keys. `keys` have to be on disk already; they take over when a
    /// planet has receipted that, also in a later life of the node.
    ///
    /// # Errors
    /// Not a member in good standing, or a renewal is under way.
    pub fn handle_rotation(&mut self, keys: NodeKeys, now: Now) -> Result<(), RequestError> {
        self.keys.tell(now);
        self.may_rotate()?;
        let request = self.successor(Some(&keys), now)?;
        self.config.next = Some(keys);
        self.hand_in(request, true, now);
        self.settle(now);
        Ok(())
    }

    /// Whether this node's keys may change now; to be asked before keys are made, which take the place of those
    /// that a former life has made.
    ///
    /// # Errors
    /// Not a member in good standing, or a renewal is under way.
    pub fn may_rotate(&self) -> Result<(), RequestError> {
        if self.members.is_none() {
            return Err(RequestError::NotJoined);
        }
        if !self.is_active() {
            return Err(RequestError::NotActive);
        }
        let resumes = self.renewing.resumes && self.config.next.is_some();
        if self.renewing.request.is_some() || resumes {
            return Err(RequestError::Renewing);
        }
        Ok(())
    }

    /// Takes other keys in the place of all the present ones, as a node that nobody knows. `keys` have
    /// to be on disk already.
    ///
    /// # Errors
    /// A member, or joining.
    pub fn handle_new_keys(&mut self, keys: NodeKeys, now: Now) -> Result<(), RequestError> {
        self.keys.tell(now);
        if self.members.is_some() || self.join.is_some() {
            return Err(RequestError::Joined);
        }
        self.keys = self.keys.renewed(&keys.wireguard);
        self.node = keys.identity.node_id();
        self.config.keys = keys;
        self.config.next = None;
        // From a node that it doesn't know, no planet takes another one's departure.
        self.left = None;
        self.persist(now);
        self.dirty = true;
        self.settle(now);
        Ok(())
    }

    /// Whether new keys have come into force since this was asked last, and the disk has the membership
    /// that names them: the old ones may go.
    pub fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.renewing.moved)
    }

    /// The present keys.
    #[must_use]
    pub fn keys(&self) -> &NodeKeys {
        &self.config.keys
    }

    /// Why a renewal or rotation is not through yet; `None` if none is under way.
    #[must_use]
    pub fn renewal_waits(&self) -> Option<String> {
        self.renewing.request.as_ref()?;
        let reason = self.renewing.refusal.clone();
        if self.renewing.held_for.is_some() {
            return Some("the state can't be written to disk".to_owned());
        }
        let silent = || match self.planets.connected().next() {
            Some(_) => "the planet has not answered yet",
            None => "no planet is connected",
        };
        Some(reason.unwrap_or_else(|| silent().to_owned()))
    }

    /// When the life that this node asks for was over, if no planet can grant it any more: this node's clock and
    /// a planet's were behind when it was dated, and one more successor of that serial would be a lie.
    pub(crate) fn asked_in_vain(&self, own: &Member, now: Now) -> Option<UnixSeconds> {
        self.renewing.refusal.as_ref()?;
        let request = self.renewing.request.as_ref()?;
        let end = request.renewal.unverified().ok()?.expires?;
        let is_shorter = own.expires.is_some_and(|present| end < present);
        (is_shorter && end <= now.unix).then_some(end)
    }

    pub(super) fn renew_when_due(&mut self, now: Now) {
        if self.renewing.request.is_some() || self.renewing.lost_keys || !self.is_active() {
            return;
        }
        let own = self.members.as_ref().and_then(Members::own);
        let own = own.map(|own| Arc::clone(&own.member));
        let due = own.as_ref().and_then(|own| own.renews());
        let is_due = due.is_some_and(|due| now.unix >= due);
        if (is_due || own.is_some_and(|own| self.not_begun(&own, now).is_some()))
            && let Ok(request) = self.successor(None, now)
        {
            self.hand_in(request, false, now);
        }
    }

    /// Whether a request is for the keys that are to come into force.
    pub(super) fn asks_for_next(&self, request: &RenewalRequest) -> bool {
        let wanted = self.config.next.as_ref();
        let wanted = wanted.map(|next| next.wireguard.public());
        let asked = request.renewal.unverified().ok();
        asked.map(|renewal| renewal.wireguard) == wanted
    }

    /// Asks for the keys that the last life has made, whose request its disk refused. That one was told to
    /// nobody; or it was, and the disk is older than that: this one is the same, word for word.
    pub(super) fn resume_rotation(&mut self, now: Now) {
        let renewing = &self.renewing;
        if !renewing.resumes || renewing.request.is_some() || !self.is_active() {
            return;
        }
        let own = self.members.as_ref().and_then(Members::own);
        let present = own.is_some_and(|own| self.config.keys.are_of(&own.member));
        self.renewing.resumes = false;
        if let Some(next) = self.config.next.as_ref().filter(|_| present)
            && let Ok(request) = self.successor(Some(next), now)
        {
            self.hand_in(request, true, now);
        }
    }

    /// The time by a planet's clock, if this node's present life has not begun by it: it was renewed when
    /// clocks were ahead, and nobody who doesn't know it takes it for a member until then. Only where this
    /// node's own clock is not ahead of the planet's: one of the two is wrong then, and the life that is
    /// asked for would end too soon by the other. A node whose clock is behind goes by the planet's alone.
    fn not_begun(&self, own: &Member, now: Now) -> Option<UnixSeconds> {
        own.expires?;
        // Whose token is revoked has its present life, and no other.
        let (token, _) = own.admitted_by;
        let statements = self.members.as_ref()?.statements();
        if statements.about(Subject::Token(token)).is_some() {
            return None;
        }
        let first = |planet: &Planet| planet.clock_ahead(now);
        let ahead = self.planets.all().find_map(first)?;
        let time = UnixSeconds(now.unix.0.saturating_add_signed(ahead));
        let agrees = now.unix <= time.plus(CLOCK_SKEW);
        (agrees && own.issued > time.plus(CLOCK_SKEW)).then_some(time)
    }

    /// Signs the successor of this node's newest document: with other keys and the same life, or with
    /// the same keys and a new life.
    fn successor(&self, keys: Option<&NodeKeys>, now: Now) -> Result<RenewalRequest, RequestError> {
        let members = self.members.as_ref().ok_or(RequestError::NotJoined)?;
        let Known {
            member, membership, ..
        } = members.own().ok_or(RequestError::NotJoined)?;
        let (issued, expires) = match (self.not_begun(member, now), keys) {
            (None, Some(_)) => (member.issued, member.expires),
            (by_planets, _) => {
                let grant = membership.application.grant.unverified()?;
                let from = by_planets.unwrap_or(now.unix);
                (from, grant.membership.map(|life| from.plus(life)))
            }
        };
        let present = &self.config.keys;
        let keys = keys.unwrap_or(present);
        let mut successions = membership
            .renewed
            .as_ref()
            .map_or_else(Vec::new, |renewed| renewed.request.successions.clone());
        let network = members.network().id;
        self.step_to(&keys.identity, network, &mut successions)?;
        let renewal = Renewal {
            network,
            node: member.node,
            certificate: member.certificate,
            serial: member.renewal.saturating_add(1),
            follows: member.document,
            claim: membership.claim.hash(),
            wireguard: keys.wireguard.public(),
            probe: keys.probe.public(),
            issued,
            expires,
        };
        Ok(RenewalRequest {
            successions,
            renewal: Signed::seal(&renewal, &keys.identity)?,
        })
    }

    /// Adds the step from this node's present identity to `next`, unless they are the same; whether it did.
    pub(super) fn step_to(
        &self,
        next: &SigningKey,
        network: NetworkId,
        successions: &mut Vec<Signed<Succession>>,
    ) -> Result<bool, RequestError> {
        let present = &self.config.keys.identity;
        if next.public() == present.public() {
            return Ok(false);
        }
        if successions.len() >= MAX_SUCCESSIONS {
            return Err(RequestError::TooManyIdentities);
        }
        let number = u32::try_from(successions.len()).unwrap_or(u32::MAX);
        let step = Succession {
            network,
            node: self.node_id(),
            number: number.saturating_add(1),
            next: next.public(),
        };
        successions.push(Signed::seal(&step, present)?);
        Ok(true)
    }

    fn hand_in(&mut self, request: RenewalRequest, new_keys: bool, now: Now) {
        self.renewing.request = Some(request);
        self.renewing.refusal = None;
        // Before a planet sees it: the next life must not sign another one.
        if !mutation::is(Mutant::RequestUnsaved) {
            self.persist(now);
        }
        // New keys that peers know and the next life doesn't would cut it off until a planet is there.
        self.renewing.held_for = new_keys.then_some(self.disk.last);
        self.ask_renewals(now);
    }

    /// Hands a pending renewal to every planet.
    pub(super) fn ask_renewals(&mut self, now: Now) {
        let planets: Vec<PlanetId> = self.planets.connected().collect();
        for planet in planets {
            self.ask_renewal(planet, now);
        }
    }

    pub(super) fn renew_again(&mut self, planet: PlanetId, now: Now) {
        if self.planets.connected().any(|one| one == planet) {
            self.ask_renewal(planet, now);
        }
    }

    /// Hands a pending renewal to one planet.
    pub(super) fn ask_renewal(&mut self, planet: PlanetId, now: Now) {
        if let Some(request) = self.renewing.request.clone()
            && self.renewing.held_for.is_none()
        {
            self.say(planet, NodeMessage::Renew(Box::new(request)));
            let next = now.moment + limits::RENEW_RETRY;
            self.timers.set(Timer::Renew(planet), next);
        }
    }

    pub(super) fn renewed(&mut self, planet: PlanetId, receipt: Signed<RenewalReceipt>, now: Now) {
        let Some(request) = self.renewing.request.clone() else {
            return;
        };
        let Some(members) = &mut self.members else {
            return;
        };
        let Some(own) = members.own() else {
            return;
        };
        let membership = Membership {
            renewed: Some(Box::new(Renewed { request, receipt })),
            ..(*own.membership).clone()
        };
        if members.learn(membership, Source::Planet(planet), now.unix) == Learned::New {
            self.follow_members(now);
        } else {
            self.renewing.refusal = Some("the planet's receipt doesn't hold".to_owned());
        }
    }

    /// What proves to planets who this node is.
    pub(super) fn shown_identity(&self) -> &SigningKey {
        let next = self.config.next.as_ref();
        let next = next.filter(|_| self.renewing.shows_next);
        &next.unwrap_or(&self.config.keys).identity
    }

    /// A planet doesn't believe this node's identity. If another one is coming, it may be in force
    /// already: the planet has receipted it, and this node did not live to hear that.
    pub(super) fn show_other_identity(&mut self) {
        self.renewing.shows_next = self.config.next.is_some() && !self.renewing.shows_next;
    }

    pub(super) fn not_renewed(&mut self, planet: PlanetId, refusal: &Refusal, now: Now) {
        if self.renewing.request.is_some() {
            self.renewing.refusal = Some(printable(&refusal.reason));
            let wait = self.patience(refusal.retry_in, limits::RENEW_RETRY);
            self.timers.set(Timer::Renew(planet), now.moment + wait);
        }
    }

    /// This node's own membership has changed: whatever follows from that for its keys, and the news.
    pub(super) fn follow_own(&mut self, now: Now) {
        let own = self.members.as_ref().and_then(Members::own).cloned();
        let Some(Known { member, .. }) = own else {
            return;
        };
        let pending = self.renewing.request.as_ref();
        let pending = pending.and_then(|request| request.renewal.unverified().ok());
        let pending = pending.filter(|pending| {
            // Of a membership that is over it is no use to anybody.
            pending.serial > member.renewal && pending.certificate == member.certificate
        });
        if pending.is_none() {
            self.renewing.request = None;
            self.renewing.refusal = None;
            self.renewing.held_for = None;
            self.timers
                .retain(|timer| !matches!(timer, Timer::Renew(_)));
        }
        // A further admission counts its renewals anew.
        let told = self.renewing.told;
        let told = told.filter(|(certificate, _)| *certificate == member.certificate);
        if member.renewal > told.map_or(0, |(_, serial)| serial) {
            self.renewing.told = Some((member.certificate, member.renewal));
            tracing::info!(serial = member.renewal, "the membership goes on");
            // What peers act on from here must not be forgotten.
            if !mutation::is(Mutant::RenewalUnsaved) {
                self.persist(now);
            }
            self.renewing.told_by = Some(self.disk.last);
        }
        if !self.config.keys.are_of(&member)
            && let Some(next) = self.config.next.take_if(|next| next.are_of(&member))
        {
            self.move_to(next, now);
        }
        let wireguard = self.config.keys.wireguard.public();
        let soon = pending.is_some_and(|pending| pending.wireguard == wireguard);
        self.renewing.lost_keys = !self.config.keys.are_of(&member) && !soon;
    }

    /// After a restart: keys that came into force at the end of the last life, or in it unnoticed.
    pub(super) fn adopt_stored_keys(&mut self) {
        let own = self.members.as_ref().and_then(Members::own);
        let Some(member) = own.map(|own| Arc::clone(&own.member)) else {
            return;
        };
        self.renewing.told = Some((member.certificate, member.renewal));
        if !self.config.keys.are_of(&member)
            && let Some(next) = self.config.next.take_if(|next| next.are_of(&member))
        {
            self.keys = self.keys.renewed(&next.wireguard);
            self.config.keys = next;
            self.renewing.moved = true;
        }
    }

    pub(super) fn tell_renewal(&mut self, now: Now) {
        let own = self.members.as_ref().and_then(Members::own);
        let Some(membership) = own.map(|own| Arc::clone(&own.membership)) else {
            return;
        };
        // Also one that takes this node for a stranger: perhaps for want of this.
        let planets: Vec<PlanetId> = self.planets.connected().collect();
        for planet in planets {
            let membership = Box::new((*membership).clone());
            self.say(planet, NodeMessage::Membership(membership));
        }
        if let Some(message) = self.own_renewal() {
            self.gossip(&message, None, now);
        }
    }

    /// What peers are told of this node's newest document.
    pub(super) fn own_renewal(&self) -> Option<ControlMessage> {
        let own = self.members.as_ref().and_then(Members::own)?;
        if self.renewing.told_by.is_some() {
            return None;
        }
        let renewed = own.membership.renewed.clone()?;
        let node = own.member.node;
        Some(ControlMessage::Renewed { node, renewed })
    }

    /// How a member's certificate goes on, by another member's word.
    pub(super) fn heard_renewal(
        &mut self,
        from: NodeId,
        (node, renewed): (NodeId, Box<Renewed>),
        now: Now,
    ) {
        let Some(members) = &mut self.members else {
            return;
        };
        let Some(known) = members.known(&node) else {
            return;
        };
        let membership = Membership {
            renewed: Some(renewed.clone()),
            ..(*known.membership).clone()
        };
        let learned = members.learn(membership, Source::Member(from), now.unix);
        self.follow_members(now);
        self.answer_late(Source::Member(from), now);
        // Planets spread it by themselves, while there are any.
        if learned == Learned::New && self.planets.legs().next().is_none() {
            self.gossip(&ControlMessage::Renewed { node, renewed }, Some(from), now);
        }
    }

    /// The new keys take over. Tunnels go on with the sessions that they have until those of the new
    /// keys stand.
    fn move_to(&mut self, next: NodeKeys, now: Now) {
        tracing::info!("new keys are in force");
        let identity = next.identity.public() != self.config.keys.identity.public();
        self.keys = self.keys.renewed(&next.wireguard);
        self.config.keys = next;
        self.renewing.moved_by = Some(self.disk.last);
        let nodes: Vec<NodeId> = self.peers.nodes().map(|peer| peer.member.node).collect();
        for node in nodes {
            self.rekey(&node, now);
        }
        let externals: Vec<_> = self.peers.externals().map(|peer| peer.wireguard).collect();
        for key in externals {
            self.follow_external(key);
        }
        self.dirty = true;
        if identity {
            self.claim = None;
            self.claim_configured(now);
            self.record = None;
            self.publish(true, now);
        }
    }

    /// The keys between this node and a peer have changed, on either side: probes use them at once, and
    /// a tunnel of the new keys is made while the present one still carries data.
    pub(super) fn rekey(&mut self, node: &NodeId, now: Now) {
        let network = self.members.as_ref().map(|members| members.network().id);
        let (Some(network), Some(peer)) = (network, self.peers.get(node)) else {
            return;
        };
        let (member, link) = (Arc::clone(&peer.member), Arc::clone(&peer.link));
        let secret = &self.config.keys.probe;
        let probes = ProbeKeys::derive(secret, &self.node, &member.probe, node, &network);
        let coming = Tunnel::new(&self.keys, &member.wireguard, link.index.0);
        let (Some(probes), Some(coming)) = (probes, coming) else {
            // A weak key: no membership with one is believed.
            return self.forget_node(node);
        };
        self.peers.set_probes(node, probes);
        let mut state = link.lock();
        let goes_on = state.make_anew(coming);
        let path = state.path;
        drop(state);
        if let Some(peer) = self.peers.get_mut(node) {
            peer.handover = goes_on.then_some(now.moment);
        }
        if let Some(path) = path {
            self.start_handshake(node, path, now);
        }
    }

    /// Lets go of tunnels of former keys when their time is over.
    pub(super) fn end_handovers(&mut self, now: Now) {
        let due: Vec<NodeId> = self
            .peers
            .nodes()
            .filter(|peer| peer.handover.is_some())
            .map(|peer| peer.member.node)
            .collect();
        for node in due {
            let Some(peer) = self.peers.get_mut(&node) else {
                continue;
            };
            let age = peer.handover.map(|since| now.moment.since(since));
            let mut state = peer.link.lock();
            let making = state.coming.is_some();
            let limit = if making {
                limits::FORMER_KEYS
            } else {
                limits::HANDOVER
            };
            if age.is_none_or(|age| age < limit) {
                continue;
            }
            state.former = None;
            if making {
                state.tunnel = state.coming.take();
            }
            drop(state);
            peer.handover = None;
            self.look_at_session(MemberId::Node(node), None, now);
        }
    }
}

#[cfg(test)]
mod tests;
