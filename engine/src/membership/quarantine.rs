//! Members that collide: kept, named, and not routed to.

use std::collections::BTreeMap;
use std::sync::Arc;

use podmesh_proto::certificate::{Member, Membership};
use podmesh_proto::id::NodeId;
use podmesh_proto::time::UnixSeconds;

use super::holdings::{Collision, Holding, MemberId, collide, of_member};
use super::lies::{Lie, Source};
use super::{Known, Members};
use crate::limits;

/// The quarantined members.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    nodes: BTreeMap<NodeId, Quarantined>,
}

#[derive(Debug)]
struct Quarantined {
    member: Arc<Member>,
    membership: Arc<Membership>,
    source: Source,
    /// Those that it collides with; a contested one collides with others in here.
    against: Vec<MemberId>,
    contested: bool,
    reason: String,
}

impl Quarantine {
    pub(super) fn nodes(&self) -> impl Iterator<Item = (&Member, &str)> {
        self.nodes
            .values()
            .map(|entry| (entry.member.as_ref(), entry.reason.as_str()))
    }

    pub(super) fn memberships(&self) -> impl Iterator<Item = &Arc<Membership>> {
        self.nodes.values().map(|entry| &entry.membership)
    }

    /// Whether it was in here.
    pub(super) fn remove(&mut self, node: &NodeId) -> bool {
        self.nodes.remove(node).is_some()
    }

    pub(super) fn member(&self, node: &NodeId) -> Option<&Arc<Member>> {
        self.nodes.get(node).map(|entry| &entry.member)
    }

    pub(super) fn membership(&self, node: &NodeId) -> Option<&Arc<Membership>> {
        self.nodes.get(node).map(|entry| &entry.membership)
    }

    pub(super) fn has(&self, node: &NodeId) -> bool {
        self.nodes.contains_key(node)
    }

    pub(super) fn has_same(&self, node: &NodeId, membership: &Membership) -> bool {
        self.nodes
            .get(node)
            .is_some_and(|entry| *entry.membership == *membership)
    }

    /// A contested member that wants something of `wanted`, too.
    pub(super) fn contested_by(&self, node: &NodeId, wanted: &[Holding]) -> Option<Collision> {
        self.nodes
            .values()
            .filter(|entry| entry.contested && entry.member.node != *node)
            .find_map(|entry| {
                let theirs = of_member(&entry.member);
                let wanted = wanted
                    .iter()
                    .find(|mine| theirs.iter().any(|their| collide(mine, their)))?;
                Some(Collision {
                    wanted: wanted.clone(),
                    holder: MemberId::Node(entry.member.node),
                })
            })
    }
}

impl Members {
    /// Quarantines a member that collides; holders that this node learned of in the same batch go
    /// with it, because nothing says who of them was first.
    pub(super) fn quarantine_newcomer(
        &mut self,
        (member, membership): (Arc<Member>, Arc<Membership>),
        collisions: Vec<Collision>,
        contested: Option<Collision>,
        (source, now): (Source, UnixSeconds),
    ) {
        let known_before = self.known.contains_key(&member.node);
        let mut both_new = contested.is_some() && collisions.is_empty();
        let first = collisions.first().cloned().or(contested);
        let mut against = Vec::new();
        for collision in &collisions {
            against.push(collision.holder);
            let MemberId::Node(holder) = collision.holder else {
                continue;
            };
            let same_batch = self
                .known
                .get(&holder)
                .is_some_and(|known| known.batch == self.batch && self.batch > 0);
            if same_batch
                && !known_before
                && holder != self.own
                && !self.resolved.contains_key(&holder)
            {
                both_new = true;
                self.contest(holder, (&member, &collision.wanted), (source, now));
            }
        }
        let Some(first) = first else {
            return;
        };
        let holder = self.name_of(first.holder);
        let (lie, verb) = if both_new {
            (Lie::Contested, "wants, too; neither was known before")
        } else {
            (Lie::Conflict, "holds")
        };
        let reason = format!("claims {}, which {holder} {verb}", first.wanted);
        let sentence = format!("{} {reason}", member.name);
        let told = (member.node.to_string(), sentence);
        self.lies.note(lie, source, told, now);
        self.changed.insert(MemberId::Node(member.node));
        if self.quarantine.nodes.len() < limits::MAX_QUARANTINED {
            let entry = Quarantined {
                source,
                against,
                contested: both_new,
                reason,
                membership,
                member: Arc::clone(&member),
            };
            self.quarantine.nodes.insert(member.node, entry);
        }
    }

    /// A holder that is as new as the one it collides with loses its place.
    fn contest(
        &mut self,
        holder: NodeId,
        (other, wanted): (&Member, &Holding),
        (source, now): (Source, UnixSeconds),
    ) {
        let Some(Known {
            member, membership, ..
        }) = self.known.remove(&holder)
        else {
            return;
        };
        let id = MemberId::Node(holder);
        self.holdings.remove(id, &of_member(&member));
        self.changed.insert(id);
        let reason = format!(
            "claims {wanted}, which {} wants, too; neither was known before",
            other.name
        );
        let told = (holder.to_string(), format!("{} {reason}", member.name));
        self.lies.note(Lie::Contested, source, told, now);
        let entry = Quarantined {
            member,
            membership,
            source,
            against: vec![MemberId::Node(other.node)],
            contested: true,
            reason,
        };
        self.quarantine.nodes.insert(holder, entry);
    }

    /// The root has decided for `member`: the holders that it collides with give way.
    pub(super) fn yield_to(
        &mut self,
        member: &Arc<Member>,
        collisions: &[Collision],
        now: UnixSeconds,
    ) {
        let mine = self.resolved.get(&member.node).copied();
        for collision in collisions {
            let MemberId::Node(holder) = collision.holder else {
                continue;
            };
            if self.resolved.get(&holder).copied() > mine || holder == self.own {
                continue;
            }
            let source = Source::Operator;
            self.contest(holder, (member.as_ref(), &collision.wanted), (source, now));
            if let Some(entry) = self.quarantine.nodes.get_mut(&holder) {
                entry.contested = false;
                entry.reason = format!(
                    "the root decided for {} over {}",
                    member.name, collision.wanted
                );
            }
        }
    }

    /// Something that `gone` held is free: who waited for it is judged again, all as newcomers.
    pub(super) fn readmit(&mut self, gone: MemberId) {
        let waiting: Vec<NodeId> = self
            .quarantine
            .nodes
            .iter()
            .filter(|(_, entry)| entry.against.contains(&gone))
            .map(|(node, _)| *node)
            .collect();
        if waiting.is_empty() {
            return;
        }
        self.start_batch();
        for node in waiting {
            self.judge_again(&node);
        }
        self.start_batch();
    }

    /// The membership of a node, whether it is routed to or not.
    #[must_use]
    pub fn membership(&self, node: &NodeId) -> Option<&Membership> {
        let known = self.known.get(node).map(|known| &known.membership);
        known
            .or_else(|| self.quarantine.membership(node))
            .map(AsRef::as_ref)
    }

    /// Judges one quarantined member anew.
    pub(super) fn judge_again(&mut self, node: &NodeId) {
        if let Some(entry) = self.quarantine.nodes.remove(node) {
            self.lies.settle(&node.to_string());
            let now = entry.member.admitted;
            self.admit(entry.member, entry.membership, entry.source, now);
        }
    }

    /// Who a member is, for people.
    #[must_use]
    pub fn name_of(&self, id: MemberId) -> String {
        match id {
            MemberId::Node(node) => self.known.get(&node).map_or_else(
                || {
                    self.quarantine.nodes.get(&node).map_or_else(
                        || format!("node {}", node.short()),
                        |entry| entry.member.name.to_string(),
                    )
                },
                |known| known.member.name.to_string(),
            ),
            MemberId::External(key) => self.externals.get(&key).map_or_else(
                || format!("external peer {key}"),
                |peer| peer.name.to_string(),
            ),
        }
    }
}
