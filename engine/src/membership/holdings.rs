//! Who holds what: the indexes in which a collision is found.
//!
//! Every name, key, token use, relay address and address range has one holder at most. Ranges of
//! different holders are disjoint, so an overlap with any of them is found next to the place where a
//! range would be put: all work is logarithmic in the number of members.

use std::collections::BTreeMap;
use std::fmt;

use ipnet::IpNet;

use podmesh_proto::certificate::Member;
use podmesh_proto::id::{Name, NodeId, RelayAddress, TokenId};
use podmesh_proto::key::PublicKey;
use podmesh_proto::network::ExternalPeer;

/// A member of the network: a node or a stock `WireGuard` machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemberId {
    /// A node.
    Node(NodeId),
    /// An external peer, by its `WireGuard` key.
    External(PublicKey),
}

impl From<NodeId> for MemberId {
    fn from(node: NodeId) -> Self {
        Self::Node(node)
    }
}

/// What nobody else may hold.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holding {
    /// A name.
    Name(Name),
    /// A `WireGuard` key.
    Key(PublicKey),
    /// One use of a token.
    TokenUse(TokenId, u32),
    /// The first bytes of an id.
    Relay(RelayAddress),
    /// An address range.
    Range(IpNet),
}

impl fmt::Display for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "the name {name}"),
            Self::Key(key) => write!(f, "the WireGuard key {key}"),
            Self::TokenUse(token, number) => {
                write!(f, "use {number} of join token {}", token.short())
            }
            Self::Relay(_) => f.write_str("the relay address"),
            Self::Range(range) => write!(f, "{range}"),
        }
    }
}

/// A collision: what is wanted, and who holds it or something that overlaps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collision {
    /// What is wanted.
    pub wanted: Holding,
    /// Who has it.
    pub holder: MemberId,
}

/// Everything that a node holds.
#[must_use]
pub fn of_member(member: &Member) -> Vec<Holding> {
    let (token, number) = member.admitted_by;
    let mut holdings = vec![
        Holding::Name(member.name.clone()),
        Holding::Key(member.wireguard),
        Holding::TokenUse(token, number),
        Holding::Relay(member.node.relay_address()),
    ];
    holdings.extend(widest(member.prefixes()));
    holdings
}

/// Everything that an external peer holds.
#[must_use]
pub fn of_external(peer: &ExternalPeer) -> Vec<Holding> {
    let mut holdings = vec![
        Holding::Name(peer.name.clone()),
        Holding::Key(peer.wireguard),
    ];
    holdings.extend(widest(peer.prefixes.clone()));
    holdings
}

/// The prefixes that lie in no other of them.
fn widest(mut prefixes: Vec<IpNet>) -> impl Iterator<Item = Holding> {
    prefixes.sort_by_key(IpNet::prefix_len);
    let mut kept: Vec<IpNet> = Vec::new();
    for prefix in prefixes {
        if !kept.iter().any(|wider| wider.contains(&prefix)) {
            kept.push(prefix);
        }
    }
    kept.into_iter().map(Holding::Range)
}

/// Whether two holdings exclude each other.
#[must_use]
pub fn collide(a: &Holding, b: &Holding) -> bool {
    match (a, b) {
        (Holding::Range(a), Holding::Range(b)) => a.contains(b) || b.contains(a),
        _ => a == b,
    }
}

/// The holders of everything.
#[derive(Debug, Default)]
pub struct Holdings {
    exact: BTreeMap<Holding, MemberId>,
    /// By family and first address: last address and holder.
    ranges: BTreeMap<(bool, u128), (u128, MemberId)>,
}

impl Holdings {
    /// What of `wanted` somebody other than `by` holds.
    #[must_use]
    pub fn collisions(&self, by: MemberId, wanted: &[Holding]) -> Vec<Collision> {
        let mut found = Vec::new();
        for holding in wanted {
            let holders = match holding {
                Holding::Range(range) => self.overlapping(range),
                _ => self.exact.get(holding).copied().into_iter().collect(),
            };
            let others = holders.into_iter().filter(|holder| *holder != by);
            found.extend(others.map(|holder| Collision {
                wanted: holding.clone(),
                holder,
            }));
        }
        found
    }

    /// Gives `holdings`, which collide with nobody, to `holder`.
    pub fn insert(&mut self, holder: MemberId, holdings: &[Holding]) {
        for holding in holdings {
            if let Holding::Range(range) = holding {
                let (v6, first, last) = bounds(range);
                self.ranges.insert((v6, first), (last, holder));
            } else {
                self.exact.insert(holding.clone(), holder);
            }
        }
    }

    /// Takes `holdings` from `holder`.
    pub fn remove(&mut self, holder: MemberId, holdings: &[Holding]) {
        for holding in holdings {
            if let Holding::Range(range) = holding {
                let (v6, first, _) = bounds(range);
                if self
                    .ranges
                    .get(&(v6, first))
                    .is_some_and(|held| held.1 == holder)
                {
                    self.ranges.remove(&(v6, first));
                }
            } else if self.exact.get(holding) == Some(&holder) {
                self.exact.remove(holding);
            }
        }
    }

    /// Who has this name.
    #[must_use]
    pub fn named(&self, name: &Name) -> Option<MemberId> {
        self.exact.get(&Holding::Name(name.clone())).copied()
    }

    /// Who has this `WireGuard` key.
    #[must_use]
    pub fn with_key(&self, key: &PublicKey) -> Option<MemberId> {
        self.exact.get(&Holding::Key(*key)).copied()
    }

    /// Who has this relay address.
    #[must_use]
    pub fn with_relay_address(&self, address: RelayAddress) -> Option<MemberId> {
        self.exact.get(&Holding::Relay(address)).copied()
    }

    /// Who holds a range with this address in it.
    #[must_use]
    pub fn holder_of(&self, address: std::net::IpAddr) -> Option<MemberId> {
        self.overlapping(&IpNet::from(address)).into_iter().next()
    }

    fn overlapping(&self, range: &IpNet) -> Vec<MemberId> {
        let (v6, first, last) = bounds(range);
        // Held ranges are disjoint: of those that begin at or before `first`, only the last reaches.
        let before = self
            .ranges
            .range((v6, 0)..=(v6, first))
            .next_back()
            .filter(|(_, (end, _))| *end >= first);
        let mut holders: Vec<MemberId> =
            before.map(|(_, (_, holder))| *holder).into_iter().collect();
        if let Some(next) = first.checked_add(1).filter(|next| *next <= last) {
            let inside = self.ranges.range((v6, next)..=(v6, last));
            holders.extend(inside.map(|(_, (_, holder))| *holder));
        }
        holders.dedup();
        holders
    }
}

fn bounds(range: &IpNet) -> (bool, u128, u128) {
    match range {
        IpNet::V4(net) => (
            false,
            u128::from(net.network().to_bits()),
            u128::from(net.broadcast().to_bits()),
        ),
        IpNet::V6(net) => (true, net.network().to_bits(), net.broadcast().to_bits()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(texts: &[&str]) -> Vec<Holding> {
        texts
            .iter()
            .map(|text| Holding::Range(text.parse().unwrap()))
            .collect()
    }

    #[test]
    fn super_and_subnets_collide_and_neighbours_dont() {
        let (a, b) = (
            MemberId::Node(NodeId([1; 32])),
            MemberId::Node(NodeId([2; 32])),
        );
        let mut held = Holdings::default();
        held.insert(a, &ranges(&["10.42.3.0/24", "10.77.0.9/32", "fd00::/64"]));
        for (wanted, collides) in [
            ("10.42.3.0/24", true),
            ("10.42.2.0/23", true),
            ("10.42.3.128/25", true),
            ("10.42.3.255/32", true),
            ("10.0.0.0/8", true),
            ("0.0.0.0/0", true),
            ("10.42.4.0/24", false),
            ("10.42.2.0/24", false),
            ("10.77.0.8/32", false),
            ("10.77.0.8/31", true),
            ("fd00::/48", true),
            ("fd00:0:0:0:8000::/65", true),
            ("fd00:0:0:1::/64", false),
            ("::/0", true),
        ] {
            let found = held.collisions(b, &ranges(&[wanted]));
            assert_eq!(!found.is_empty(), collides, "{wanted}: {found:?}");
            assert!(held.collisions(a, &ranges(&[wanted])).is_empty());
        }
        held.remove(a, &ranges(&["10.42.3.0/24"]));
        assert!(held.collisions(b, &ranges(&["10.42.3.0/24"])).is_empty());
    }
}
