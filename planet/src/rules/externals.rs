//! External peers beside the nodes: nobody's place is given to a second one.
//!
//! The operator is refused what somebody has. What the root has said all the same, where this planet
//! couldn't be asked, is kept and told on; the books follow the rule of the nodes: the one that was there
//! first holds, by the times of the receipt and of the root's word.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use podmesh_proto::id::NodeId;
use podmesh_proto::key::PublicKey;
use podmesh_proto::network::ExternalPeer;

use crate::rules::books::{Books, Entry, Holder};
use crate::rules::leases::overlap;

/// External peers that the root has named and not revoked.
#[derive(Debug, Clone, Default)]
pub(super) struct Externals {
    pub(super) all: BTreeMap<PublicKey, ExternalPeer>,
    /// Those that want what a node held before them, each with a sentence.
    aside: BTreeMap<PublicKey, String>,
}

impl Books {
    /// External peers that hold what the root gave them.
    pub fn externals(&self) -> impl Iterator<Item = &ExternalPeer> {
        let aside = &self.externals.aside;
        let all = self.externals.all.values();
        all.filter(move |peer| !aside.contains_key(&peer.wireguard))
    }

    /// All external peers that the root has named and not revoked, also those that hold nothing.
    pub fn named_externals(&self) -> impl Iterator<Item = &ExternalPeer> {
        self.externals.all.values()
    }

    /// Why external peers hold nothing: a sentence for each.
    pub fn externals_aside(&self) -> impl Iterator<Item = &String> {
        self.externals.aside.values()
    }

    /// What of an external peer's name, key and addresses somebody else has, and who.
    #[must_use]
    pub fn held_against(&self, peer: &ExternalPeer) -> Option<(Holder<'_>, String)> {
        let nodes = self.entries().filter(|(node, _)| !self.is_out(node));
        let by_node = nodes
            .filter_map(|(node, entry)| {
                let held = self.held_by((node, entry), peer)?;
                Some((Holder::Node(node, &entry.certificate.name), held))
            })
            .next();
        by_node.or_else(|| {
            let others = self
                .externals()
                .filter(|other| other.wireguard != peer.wireguard);
            others
                .filter_map(|other| {
                    let held = shared(peer, (&other.name, &other.prefixes))?;
                    Some((Holder::External(&other.name), held))
                })
                .next()
        })
    }

    /// What of it a node has.
    fn held_by(&self, (node, entry): (&NodeId, &Entry), peer: &ExternalPeer) -> Option<String> {
        if entry.keys().0 == peer.wireguard {
            return Some(format!("the WireGuard key {}", peer.wireguard));
        }
        let mut prefixes: Vec<IpNet> = entry.prefixes().collect();
        prefixes.push(IpNet::from(IpAddr::V6(self.network.overlay6(node))));
        shared(peer, (&entry.certificate.name, &prefixes))
    }

    /// Decides anew whether an external peer holds what the root gave it.
    pub(super) fn judge_external(&mut self, key: &PublicKey) {
        let Some(peer) = self.externals.all.get(key) else {
            Arc::make_mut(&mut self.externals).aside.remove(key);
            return;
        };
        let before = self
            .entries()
            .filter(|(node, entry)| !self.is_out(node) && entry.receipt.time <= peer.issued);
        let held = before
            .filter_map(|(node, entry)| Some((node, entry, self.held_by((node, entry), peer)?)))
            .next();
        let sentence = held.map(|(node, entry, what)| {
            format!(
                "external peer {} holds nothing: {} has {what}",
                peer.name,
                Holder::Node(node, &entry.certificate.name)
            )
        });
        let aside = &mut Arc::make_mut(&mut self.externals).aside;
        match sentence {
            Some(sentence) => aside.insert(*key, sentence),
            None => aside.remove(key),
        };
    }

    /// A node has come, or holds something else than before.
    pub(super) fn judge_externals_beside(&mut self, node: &NodeId) {
        let Some(entry) = self.entry(node) else {
            return;
        };
        let touched: Vec<PublicKey> = self
            .externals
            .all
            .values()
            .filter(|peer| self.held_by((node, entry), peer).is_some())
            .map(|peer| peer.wireguard)
            .collect();
        touched.iter().for_each(|key| self.judge_external(key));
    }

    /// Somebody has gone: those that were set aside may have their place.
    pub(super) fn recall_externals(&mut self) {
        let aside: Vec<PublicKey> = self.externals.aside.keys().copied().collect();
        aside.iter().for_each(|key| self.judge_external(key));
    }
}

fn shared(
    peer: &ExternalPeer,
    (name, prefixes): (&podmesh_proto::id::Name, &[IpNet]),
) -> Option<String> {
    if *name == peer.name {
        return Some(format!("the name {name}"));
    }
    let taken = prefixes
        .iter()
        .find(|taken| peer.prefixes.iter().any(|prefix| overlap(prefix, taken)))?;
    Some(taken.to_string())
}
