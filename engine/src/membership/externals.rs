//! Stock WireGuard machines, named by the root, beside the members whom planets have admitted.
//!
//! Both want names, keys and addresses of the same spaces. Whom this node knew first holds; of two that it
//! learns of together, the one that was there first: the root's word has a time, and so has a receipt.
//! An external peer that came second is set aside, named, and takes its place when that is free.

use std::collections::BTreeMap;

use podmesh_proto::certificate::Member;
use podmesh_proto::id::NodeId;
use podmesh_proto::key::PublicKey;
use podmesh_proto::network::ExternalPeer;
use podmesh_proto::time::UnixSeconds;

use super::holdings::{Collision, MemberId, of_external};
use super::lies::{Lie, Source};
use super::{Known, Members};

/// The external peers.
#[derive(Debug, Default)]
pub(super) struct Externals {
    /// Routed to, each with the batch in which it was learned of.
    pub(super) known: BTreeMap<PublicKey, (ExternalPeer, u64)>,
    /// Who wants what somebody else holds.
    aside: BTreeMap<PublicKey, ExternalPeer>,
    revoked: BTreeMap<PublicKey, UnixSeconds>,
}

impl Externals {
    pub(super) fn get(&self, key: &PublicKey) -> Option<&ExternalPeer> {
        self.known.get(key).map(|(peer, _)| peer)
    }
}

/// Whether a member was in before the root named an external peer.
fn was_first(member: &Member, peer: &ExternalPeer) -> bool {
    member.admitted <= peer.issued
}

impl Members {
    /// All external peers that the root has named and not revoked, also those that were set aside.
    pub fn named_externals(&self) -> impl Iterator<Item = &ExternalPeer> {
        let known = self.externals.known.values().map(|(peer, _)| peer);
        known.chain(self.externals.aside.values())
    }

    /// What of an external peer's name, key and addresses somebody else holds, and who.
    #[must_use]
    pub fn held_against(&self, peer: &ExternalPeer) -> Option<(Collision, String)> {
        let id = MemberId::External(peer.wireguard);
        let collisions = self.holdings.collisions(id, &of_external(peer));
        let first = collisions.into_iter().next()?;
        let holder = self.name_of(first.holder);
        Some((first, holder))
    }

    pub(super) fn take_external(
        &mut self,
        peer: ExternalPeer,
        source: Source,
        now: UnixSeconds,
    ) -> bool {
        let key = peer.wireguard;
        let revoked = self.externals.revoked.get(&key);
        let known = self.externals.get(&key);
        let aside = self.externals.aside.get(&key);
        if revoked.is_some_and(|at| *at >= peer.issued)
            || known
                .or(aside)
                .is_some_and(|known| known.issued >= peer.issued)
            || key.is_low_order()
        {
            return false;
        }
        self.give_way_to(&peer, (source, now));
        if let Some((collision, holder)) = self.held_against(&peer) {
            self.set_aside(peer, &collision, (holder, source), now);
            return true;
        }
        self.settle_external(peer);
        true
    }

    fn settle_external(&mut self, peer: ExternalPeer) {
        let key = peer.wireguard;
        let id = MemberId::External(key);
        if let Some((before, _)) = self.externals.known.remove(&key) {
            self.holdings.remove(id, &of_external(&before));
        }
        self.externals.aside.remove(&key);
        self.lies.settle(&key.to_string());
        self.holdings.insert(id, &of_external(&peer));
        self.externals.known.insert(key, (peer, self.batch));
        self.changed.insert(id);
    }

    fn set_aside(
        &mut self,
        peer: ExternalPeer,
        collision: &Collision,
        (holder, source): (String, Source),
        now: UnixSeconds,
    ) {
        let key = peer.wireguard;
        let sentence = format!(
            "external peer {} claims {}, which {holder} holds",
            peer.name, collision.wanted
        );
        self.lies
            .note(Lie::Conflict, source, (key.to_string(), sentence), now);
        self.externals.aside.insert(key, peer);
    }

    /// Those whom this node learned of together with an external peer, and that came after it, give way:
    /// if that is enough for its place.
    fn give_way_to(&mut self, peer: &ExternalPeer, said: (Source, UnixSeconds)) {
        let id = MemberId::External(peer.wireguard);
        let collisions = self.holdings.collisions(id, &of_external(peer));
        let later: Vec<NodeId> = collisions
            .iter()
            .filter_map(|collision| self.came_after(collision.holder, peer))
            .collect();
        if later.len() < collisions.len() {
            return;
        }
        for (node, collision) in later.iter().zip(&collisions) {
            self.yield_to_external(node, (peer, collision), said);
        }
    }

    fn came_after(&self, holder: MemberId, peer: &ExternalPeer) -> Option<NodeId> {
        let MemberId::Node(node) = holder else {
            return None;
        };
        let known = self.known.get(&node)?;
        let later = self.is_new(known.batch) && !was_first(&known.member, peer);
        let sure = node == self.own || self.resolved.contains_key(&node);
        (later && !sure).then_some(node)
    }

    fn yield_to_external(
        &mut self,
        node: &NodeId,
        (peer, collision): (&ExternalPeer, &Collision),
        said: (Source, UnixSeconds),
    ) {
        let Some(Known {
            member, membership, ..
        }) = self.known.remove(node)
        else {
            return;
        };
        let id = MemberId::Node(*node);
        self.holdings
            .remove(id, &super::holdings::of_member(&member));
        let collision = Collision {
            wanted: collision.wanted.clone(),
            holder: MemberId::External(peer.wireguard),
        };
        self.quarantine_newcomer((member, membership), vec![collision], None, said);
    }

    /// External peers that this node learned of together with a member which was in before them give way:
    /// if that is enough for its place.
    pub(super) fn externals_give_way(
        &mut self,
        member: &Member,
        collisions: &[Collision],
        (source, now): (Source, UnixSeconds),
    ) {
        let later = |collision: &&Collision| match collision.holder {
            MemberId::External(key) => self
                .externals
                .known
                .get(&key)
                .is_some_and(|(peer, batch)| self.is_new(*batch) && was_first(member, peer)),
            MemberId::Node(_) => false,
        };
        if !collisions.iter().all(|collision| later(&collision)) {
            return;
        }
        for collision in collisions {
            if let MemberId::External(key) = collision.holder
                && let Some((peer, _)) = self.externals.known.remove(&key)
            {
                let id = MemberId::External(key);
                self.holdings.remove(id, &of_external(&peer));
                self.changed.insert(id);
                let holder = member.name.to_string();
                self.set_aside(peer, collision, (holder, source), now);
            }
        }
    }

    /// Something is free: who was set aside because of it gets its place.
    pub(super) fn recall_externals(&mut self) {
        let free: Vec<PublicKey> = self
            .externals
            .aside
            .values()
            .filter(|peer| self.held_against(peer).is_none())
            .map(|peer| peer.wireguard)
            .collect();
        for key in free {
            // Of two that were set aside for the same reason, the first takes it.
            if let Some(peer) = self.externals.aside.get(&key).cloned()
                && self.held_against(&peer).is_none()
            {
                self.settle_external(peer);
            }
        }
    }

    pub(super) fn revoke_external(&mut self, key: PublicKey, issued: UnixSeconds) -> bool {
        let known = self.externals.get(&key).or(self.externals.aside.get(&key));
        if known.is_some_and(|peer| peer.issued > issued) {
            return false;
        }
        let revoked = self.externals.revoked.get(&key).copied();
        let news = revoked.is_none();
        let latest = revoked.map_or(issued, |revoked| revoked.max(issued));
        self.externals.revoked.insert(key, latest);
        if self.externals.aside.remove(&key).is_some() {
            self.lies.settle(&key.to_string());
        }
        if let Some((before, _)) = self.externals.known.remove(&key) {
            let id = MemberId::External(key);
            self.holdings.remove(id, &of_external(&before));
            self.changed.insert(id);
            self.readmit(id);
            self.recall_externals();
        }
        news
    }

    /// Whether what was learned in this batch is still among the first of its kind.
    fn is_new(&self, batch: u64) -> bool {
        batch == self.batch && batch > 0
    }
}
