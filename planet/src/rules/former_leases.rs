//! What nodes held that have given it up.
//!
//! Pods outlive a membership: they stand on their machine with its addresses until somebody deletes
//! them. So a machine that comes back finds its addresses again, and others get them last.

use ipnet::IpNet;
use podmesh_proto::certificate::Leases;
use podmesh_proto::id::{Name, NodeId};

use crate::rules::books::{Books, Entry};
use crate::rules::leases::overlap;
use crate::rules::records::{Change, FormerLease, Record, RecordKey};

/// So many are remembered; then the oldest is forgotten, and its addresses are as free as any.
const MOST: usize = 256;

impl Books {
    /// The changes that free everything that `nodes` hold, and remember what it was.
    #[must_use]
    pub fn release(&self, nodes: &[NodeId]) -> Vec<Change> {
        let held = nodes.iter().filter_map(|node| self.entry(node));
        let numbers: Vec<(u64, u64)> = held.flat_map(Entry::numbers).collect();
        if numbers.is_empty() {
            return Vec::new();
        }
        let removals = nodes.iter().flat_map(|node| {
            let claim = RecordKey::Claim(*node);
            [
                RecordKey::Renewal(*node),
                RecordKey::Admission(*node),
                claim,
            ]
            .map(Change::Remove)
        });
        std::iter::once(self.loosen(numbers))
            .chain(removals)
            .chain(self.give_up(nodes))
            .collect()
    }

    /// What `node`, or else a node of that name, was leased last before it gave it up.
    #[must_use]
    pub fn former_leases(&self, node: &NodeId, name: &Name) -> Option<&Leases> {
        let named = || {
            let named = self.former.values().filter(|former| former.name == *name);
            named.max_by_key(|former| former.order)
        };
        let former = self.former.get(node).or_else(named)?;
        Some(&former.leases)
    }

    /// What was given up, the oldest first.
    #[must_use]
    pub fn given_up(&self) -> Vec<Vec<IpNet>> {
        let mut former: Vec<&FormerLease> = self.former.values().collect();
        former.sort_by_key(|former| former.order);
        former
            .into_iter()
            .map(|former| former.prefixes.clone())
            .collect()
    }

    /// The changes by which `node` is known to have held something else before `leases`. What these take up
    /// as a whole is given up no more.
    #[must_use]
    pub fn move_to(&self, node: &NodeId, leases: &Leases) -> Vec<Change> {
        let prefixes = leases.prefixes();
        let overlaps = |former: &&FormerLease| {
            let mut given_up = former.prefixes.iter();
            given_up.all(|one| prefixes.iter().any(|prefix| overlap(one, prefix)))
        };
        let taken_up = self.former.values().filter(overlaps);
        let mut changes: Vec<Change> = taken_up
            .map(|former| Change::Remove(RecordKey::FormerLease(former.node)))
            .collect();
        let moves = self.leases(node).is_some_and(|present| present != leases);
        if moves {
            changes.extend(self.give_up(&[*node]));
        }
        changes
    }

    fn give_up(&self, nodes: &[NodeId]) -> Vec<Change> {
        let next = self.former.values().map(|former| former.order).max();
        let next = next.map_or(0, |last| last.saturating_add(1));
        let entries = nodes
            .iter()
            .filter_map(|node| Some((node, self.entry(node)?)));
        let mut changes: Vec<Change> = entries
            .zip(next..)
            .map(|((node, entry), order)| {
                Change::Put(Record::FormerLease(Box::new(FormerLease {
                    node: *node,
                    name: entry.certificate.name.clone(),
                    leases: entry.receipt.leases.clone(),
                    prefixes: entry.prefixes().collect(),
                    order,
                })))
            })
            .collect();
        let others = self
            .former
            .values()
            .filter(|former| !nodes.contains(&former.node));
        let mut others: Vec<(u64, NodeId)> =
            others.map(|former| (former.order, former.node)).collect();
        others.sort_unstable();
        let beyond = (others.len() + changes.len()).saturating_sub(MOST);
        let forgotten = others.into_iter().take(beyond);
        changes.extend(forgotten.map(|(_, node)| Change::Remove(RecordKey::FormerLease(node))));
        changes
    }
}
