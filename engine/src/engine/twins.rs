//! Another life of this node that is later than its own: the disk of the machine was copied and both run, or
//! disk and clock went back together.
//!
//! Peers and planets believe the latest life of a node and nobody else. A node that is told of a later life
//! than its own goes beyond it, so that the machine that is left in the end is the one that is believed; as
//! long as several are left, each of them learns of the others that way.

use std::time::Duration;

use podmesh_proto::candidate::EndpointRecord;
use podmesh_proto::id::NodeId;
use podmesh_proto::local_api::HealthView;
use podmesh_proto::time::{Moment, Now};

use crate::control::ControlMessage;
use crate::engine::Engine;
use crate::mutation::{self, Mutant};
use crate::path_id::PathId;
use crate::peer::Peer;

/// Between two times that this node goes beyond another: two machines that take turns cost their peers no
/// more than a node that starts anew so often.
const GAP: Duration = Duration::from_secs(10);
/// Between two times that a peer is told that it speaks as a former life of its own.
const SHOWN: Duration = Duration::from_secs(5);
/// How often, until its word is a later one: what comes may have been lost, or what was overtaken.
const SHOWS: u8 = 4;
/// With how many sessions a peer is told which life of its a record has brought.
pub(super) const NAMES: u8 = 3;
/// How often a peer is asked in vain for the later life that it has named: whoever knew of it by probes alone
/// believes the record with which it is asked, and is silent.
const ASKS: u8 = 20;
/// How long after the last sign of another life this node says again and again where it is. Whoever believes
/// a later life shows it then; the last word of a machine that is gone may have reached members alone, and
/// what they showed may have been lost.
const DOUBTFUL: Duration = Duration::from_secs(60);
/// Seconds by which a peer's word may take this node's next life ahead of its clock.
const MOST_AHEAD: u64 = 30 * 24 * 3_600;
/// How long the last sign of another machine is worth a line.
const REMEMBERED: Duration = Duration::from_secs(600);

/// What this node knows of machines with its identity.
#[derive(Debug, Default)]
pub(super) struct Twins {
    /// When it went beyond a later life last.
    beyond: Option<Moment>,
    /// When it heard of a life that has begun since, which can't have been its own.
    seen: Option<Moment>,
    /// Incarnation and sequence of the latest of those, which it goes beyond when the time has come: a
    /// machine that was switched off meanwhile doesn't say them again, and whoever told of them neither.
    awaited: Option<(u64, u64)>,
    /// When it said last where it is because of them.
    said: Option<Moment>,
    /// The latest life as which it speaks to a peer that knew of a later one than its own.
    raised: u64,
}

impl Twins {
    /// Whether somebody may believe a later life, and this node hasn't said for a while where it is.
    fn wants_to_say(&self, now: Moment) -> bool {
        let last = self.seen.max(self.beyond);
        let is_doubtful = last.is_some_and(|last| now.since(last) < DOUBTFUL);
        let said = self.said.max(self.beyond);
        is_doubtful && said.is_some_and(|said| now.since(said) >= GAP)
    }
}

impl Engine {
    /// An endpoint record of this node's own identity. Two machines that were switched on within one second
    /// count alike.
    pub(super) fn heard_own(&mut self, record: &EndpointRecord, now: Now) {
        let present = self.record.as_ref().map(|(present, _)| present);
        let said = present == Some(record);
        let own = (self.incarnation, self.sequence);
        let life = (record.incarnation, record.sequence);
        if said || life < own || mutation::is(Mutant::TwinUnheard) {
            return;
        }
        if let Some(beyond) = self.twins.beyond {
            let unsaid = mutation::is(Mutant::TwinUnsaid);
            self.twins.seen = Some(now.moment).filter(|_| !unsaid);
            if now.moment.since(beyond) < GAP {
                if !mutation::is(Mutant::TwinForgotten) {
                    self.twins.awaited = self.twins.awaited.max(Some(life));
                }
                return;
            }
        }
        self.go_beyond(life, now);
    }

    /// Goes beyond the later life that it was too soon for when this node heard of it, and finds out whether
    /// there is another.
    pub(super) fn look_for_twins(&mut self, now: Now) {
        let due = |beyond: Moment| now.moment.since(beyond) >= GAP;
        if !self.twins.beyond.is_none_or(due) {
            return;
        }
        let own = (self.incarnation, self.sequence);
        if let Some(life) = self.twins.awaited.take().filter(|life| *life >= own) {
            self.go_beyond(life, now);
        }
        if self.twins.wants_to_say(now.moment) && !mutation::is(Mutant::TwinForgotten) {
            self.twins.said = Some(now.moment);
            self.publish(true, now);
            self.gossip_own_record(now);
        }
    }

    fn go_beyond(&mut self, (incarnation, sequence): (u64, u64), now: Now) {
        self.twins.beyond = Some(now.moment);
        self.twins.awaited = None;
        tracing::warn!(
            incarnation,
            "this node's identity was used by a later life, which this one goes beyond"
        );
        self.incarnation = incarnation.saturating_add(1);
        self.sequence = self.sequence.max(sequence);
        self.record = None;
        self.persist(now);
        self.publish(true, now);
    }

    /// A peer speaks as one whose later life this node knows: it can't make itself heard until it knows, too.
    pub(super) fn show_later_life(&mut self, node: &NodeId, now: Now) {
        let Some(peer) = self.peers.get_mut(node) else {
            return;
        };
        peer.showing.begin(SHOWS);
        peer.passing.begin(SHOWS);
        if !peer.showing.said_within(SHOWN, now.moment) {
            self.show(node, now);
        }
    }

    /// Its own record is the proof; of probes there is none, so that it believes this node only for itself.
    /// What can't be sent waits for a path.
    fn show(&mut self, node: &NodeId, now: Now) {
        let Some(peer) = self.peers.get_mut(node).filter(|peer| peer.hears()) else {
            return;
        };
        peer.showing.said(now.moment);
        let incarnation = peer.incarnation();
        let record = peer.record.as_ref().map(|(_, signed)| signed.clone());
        if let Some(signed) = record {
            let proof = ControlMessage::Endpoints(Box::new(signed));
            self.send_control(node, &proof, now);
        }
        self.send_control(node, &ControlMessage::LaterLife { incarnation }, now);
    }

    /// A session was made by which a peer is reached over `path`: says to which of its lives this node listens,
    /// if that is one that it has heard of lately. Where all goes on well neither end says it otherwise, and the
    /// peer may be a machine whose copy was here for a while.
    pub(super) fn name_life(&mut self, node: &NodeId, path: PathId, now: Now) {
        let Some(peer) = self.peers.get_mut(node).filter(|peer| peer.naming > 0) else {
            return;
        };
        peer.naming -= 1;
        let incarnation = peer.incarnation();
        if !mutation::is(Mutant::LifeUnnamed) {
            let message = ControlMessage::LaterLife { incarnation };
            self.send_control_over(node, path, (&message, 0), now);
        }
    }

    /// A peer knows a later life of this node than the one in which this node speaks to it. One that names the
    /// very life in which it speaks has heard somebody repeat what a former one said.
    pub(super) fn outlived_for(&mut self, node: &NodeId, incarnation: u64, now: Now) {
        let own = self.incarnation;
        let Some(peer) = self.peers.get_mut(node) else {
            return;
        };
        if incarnation > own {
            peer.asking.begin(ASKS);
        }
        let present = own.max(peer.raised);
        let later =
            incarnation > present || (incarnation == present && mutation::is(Mutant::ReplaysRaise));
        if !later || mutation::is(Mutant::TwinUnheard) {
            return;
        }
        peer.raised = incarnation.saturating_add(1);
        // The next life must not seem to be this one. A peer's word takes it no further than a wrong clock would.
        if peer.raised <= now.unix.0.saturating_add(MOST_AHEAD) {
            self.twins.raised = self.twins.raised.max(peer.raised);
            self.trust_changed(now);
        }
    }

    /// A peer's probe says which life of this node it listens to. Where there is a way through the tunnel, it is
    /// shown there; without one this is all that the peer can say, and what this node says to it is lost.
    pub(super) fn knows_of_life(&mut self, node: &NodeId, incarnation: u64, now: Now) {
        let own = self.incarnation;
        let Some(peer) = self.peers.get_mut(node).filter(|peer| !peer.hears()) else {
            return;
        };
        let is_later = incarnation > own.max(peer.raised);
        let unheard = mutation::is(Mutant::LifeUnnamed);
        if is_later && !unheard && !peer.raising.said_within(SHOWN, now.moment) {
            peer.raising.said(now.moment);
            self.outlived_for(node, incarnation, now);
        }
    }

    /// Says again what peers have to know of lives that are over, theirs and this node's: by itself nobody
    /// would, and it may have been lost.
    pub(super) fn settle_lives(&mut self, now: Now) {
        if mutation::is(Mutant::LivesSaidOnce) {
            return;
        }
        let showing = |peer: &&Peer| peer.showing.is_due(now.moment);
        for node in self.hearing(showing) {
            self.show(&node, now);
        }
        self.pass_on(now);
        let own = self.incarnation;
        let asking = |peer: &&Peer| peer.raised > own && peer.asking.is_due(now.moment);
        let asked = self.hearing(asking);
        let Some((_, signed)) = self.record.as_ref().filter(|_| !asked.is_empty()) else {
            return;
        };
        let question = ControlMessage::Endpoints(Box::new(signed.clone()));
        for node in asked {
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.asking.said(now.moment);
            }
            self.send_control(&node, &question, now);
        }
    }

    /// Other members tell it to whom this node has no way, if they reach it. Planets do that by themselves, while
    /// there are any.
    fn pass_on(&mut self, now: Now) {
        if self.planets.legs().next().is_some() || mutation::is(Mutant::LifeNotPassedOn) {
            return;
        }
        let deaf = |peer: &&Peer| peer.passing.is_due(now.moment) && !peer.hears();
        let deaf = self.peers.nodes().filter(deaf);
        let deaf: Vec<NodeId> = deaf.map(|peer| peer.member.node).collect();
        for node in deaf {
            let Some(peer) = self.peers.get_mut(&node) else {
                continue;
            };
            peer.passing.said(now.moment);
            if let Some((_, signed)) = &peer.record {
                let proof = ControlMessage::Endpoints(Box::new(signed.clone()));
                self.gossip(&proof, Some(node), now);
            }
        }
    }

    fn hearing(&self, whom: impl Fn(&&Peer) -> bool) -> Vec<NodeId> {
        let peers = self.peers.nodes().filter(whom);
        let peers = peers.filter(|peer| peer.hears());
        peers.map(|peer| peer.member.node).collect()
    }

    /// The latest life (seconds since 1970, or beyond one that was) as which this node has spoken to anybody; the
    /// next one has to go beyond it.
    #[must_use]
    pub fn latest_life(&self) -> u64 {
        self.incarnation.max(self.twins.raised)
    }

    /// Whether another machine has this node's identity, and says so.
    pub(crate) fn twin_health(&self, now: Now) -> Option<HealthView> {
        let seen = self.twins.seen?;
        let ago = now.moment.since(seen);
        (ago < REMEMBERED).then(|| HealthView {
            code: "MESH-IDENTITY-002".to_owned(),
            message: format!(
                "another machine uses this node's identity, {} s ago the last time; members reach now \
                 one of the two, now the other",
                ago.as_secs()
            ),
            next: Some(
                "find the machine that has a copy of this one's disk or state folder, and give it keys of \
                 its own; if you don't know of any, somebody has taken the keys: `meshctl node revoke` this \
                 node, and join it anew with `meshctl leave --forget-keys`"
                    .to_owned(),
            ),
        })
    }
}
