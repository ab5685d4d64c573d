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

/// Between two times that this node goes beyond another: two machines that take turns cost their peers no
/// more than a node that starts anew so often.
const GAP: Duration = Duration::from_secs(10);
/// Between two times that a peer is told that it speaks as a former life of its own.
const SHOWN: Duration = Duration::from_secs(5);
/// How long the last sign of another machine is worth a line.
const REMEMBERED: Duration = Duration::from_secs(600);

/// What this node knows of machines with its identity.
#[derive(Debug, Default)]
pub(super) struct Twins {
    /// When it went beyond a later life last.
    beyond: Option<Moment>,
    /// When it heard of a life that has begun since, which can't have been its own.
    seen: Option<Moment>,
}

impl Engine {
    /// An endpoint record of this node's own identity. Two machines that were switched on within one second
    /// count alike.
    pub(super) fn heard_own(&mut self, record: &EndpointRecord, now: Now) {
        let present = self.record.as_ref().map(|(present, _)| present);
        let said = present == Some(record);
        let own = (self.incarnation, self.sequence);
        let former = (record.incarnation, record.sequence) < own;
        if said || former || mutation::is(Mutant::TwinUnheard) {
            return;
        }
        if let Some(beyond) = self.twins.beyond {
            let unsaid = mutation::is(Mutant::TwinUnsaid);
            self.twins.seen = Some(now.moment).filter(|_| !unsaid);
            if now.moment.since(beyond) < GAP {
                return;
            }
        }
        self.twins.beyond = Some(now.moment);
        tracing::warn!(
            incarnation = record.incarnation,
            "this node's identity was used by a later life, which this one goes beyond"
        );
        self.incarnation = record.incarnation.saturating_add(1);
        self.sequence = self.sequence.max(record.sequence);
        self.record = None;
        self.persist(now);
        self.publish(true, now);
    }

    /// A peer speaks as one whose later life this node knows: it can't make itself heard until it knows, too.
    /// Its own record is the proof; of probes there is none, so that it believes this node only for itself.
    pub(super) fn show_later_life(&mut self, node: &NodeId, now: Now) {
        let Some(peer) = self.peers.get_mut(node) else {
            return;
        };
        if peer.shown.is_some_and(|at| now.moment.since(at) < SHOWN) {
            return;
        }
        peer.shown = Some(now.moment);
        let incarnation = peer.incarnation();
        let record = peer.record.as_ref().map(|(_, signed)| signed.clone());
        if let Some(signed) = record {
            let proof = ControlMessage::Endpoints(Box::new(signed));
            self.send_control(node, &proof, now);
        }
        self.send_control(node, &ControlMessage::LaterLife { incarnation }, now);
    }

    /// A peer knows a later life of this node than the one in which this node speaks to it.
    pub(super) fn outlived_for(&mut self, node: &NodeId, incarnation: u64) {
        let own = self.incarnation;
        if let Some(peer) = self.peers.get_mut(node)
            && incarnation >= own.max(peer.raised)
            && !mutation::is(Mutant::TwinUnheard)
        {
            peer.raised = incarnation.saturating_add(1);
        }
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
