//! All peers, and the ways to find one.

use std::collections::{BTreeMap, BTreeSet};

use podmesh_proto::id::NodeId;
use podmesh_proto::key::PublicKey;
use podmesh_proto::probe::{ProbeKeys, ProbeTag};
use podmesh_proto::time::Moment;

use crate::forwarding::PeerIndex;
use crate::membership::holdings::MemberId;
use crate::peer::{External, Peer};
use crate::random::Random;
use crate::tunnel::INDEX_BITS;

/// The peers that are routed to, and the members that are not for the time being.
#[derive(Default)]
pub(crate) struct Peers {
    /// By what standing of this node they were placed last: whether it may have peers at all.
    pub(crate) served: bool,
    nodes: BTreeMap<NodeId, Peer>,
    /// Nodes that are known and not routed to: what is known of them waits here, and goes on being
    /// learned, for the time when they are routed to again.
    resting: BTreeMap<NodeId, Peer>,
    externals: BTreeMap<PublicKey, External>,
    by_index: BTreeMap<PeerIndex, MemberId>,
    by_tag: BTreeMap<ProbeTag, NodeId>,
    /// Numbers of removed peers stay taken: a thread may still hold an old table.
    used: BTreeSet<PeerIndex>,
    deadlines: BTreeSet<(Moment, NodeId)>,
    /// Peers with a tunnel, whose timers have to be driven.
    tunnels: BTreeSet<MemberId>,
}

impl Peers {
    /// A number that no peer has or had. Its lowest byte, which says to which shard datagrams of the peer
    /// come, goes round, so that 256 peers are dealt out evenly however many shards there are; the rest is
    /// random. It begins with one: the first shard has all that doesn't belong to a tunnel, too.
    pub(crate) fn new_index(&mut self, random: &mut Random) -> PeerIndex {
        #[expect(clippy::cast_possible_truncation, reason = "it goes round")]
        let lowest = (self.used.len() + 1) as u8;
        loop {
            let [_, middle, highest] = random.bytes();
            let index = PeerIndex(u32::from_le_bytes([lowest, middle, highest, 0]));
            debug_assert!(index.0 >> INDEX_BITS == 0, "three bytes");
            // Sixteen million numbers for ten thousand peers: a second try is rare.
            if self.used.insert(index) {
                return index;
            }
        }
    }

    /// Adds a node.
    pub(crate) fn insert(&mut self, peer: Peer) {
        let id = peer.member.node;
        self.by_index.insert(peer.link.index, MemberId::Node(id));
        self.by_tag.insert(peer.probes.receive_tag(), id);
        self.nodes.insert(id, peer);
    }

    /// A node's probes are sealed by other keys from now on.
    pub(crate) fn set_probes(&mut self, node: &NodeId, probes: ProbeKeys) {
        if let Some(peer) = self.nodes.get_mut(node) {
            self.by_tag.remove(&peer.probes.receive_tag());
            self.by_tag.insert(probes.receive_tag(), *node);
            peer.probes = probes;
        }
    }

    /// Adds an external peer.
    pub(crate) fn insert_external(&mut self, peer: External) {
        let key = peer.wireguard;
        self.by_index
            .insert(peer.link.index, MemberId::External(key));
        self.externals.insert(key, peer);
    }

    /// Takes a node out.
    pub(crate) fn remove(&mut self, node: &NodeId) -> Option<Peer> {
        let peer = self.nodes.remove(node)?;
        self.by_index.remove(&peer.link.index);
        self.by_tag.remove(&peer.probes.receive_tag());
        self.tunnels.remove(&MemberId::Node(*node));
        if let Some(at) = peer.deadline {
            self.deadlines.remove(&(at, *node));
        }
        Some(peer)
    }

    /// Keeps what is known of a node that is not routed to.
    pub(crate) fn rest(&mut self, peer: Peer) {
        self.resting.insert(peer.member.node, peer);
    }

    /// Takes a node that is not routed to out.
    pub(crate) fn take_resting(&mut self, node: &NodeId) -> Option<Peer> {
        self.resting.remove(node)
    }

    /// A node, routed to or not.
    #[must_use]
    pub(crate) fn known(&self, node: &NodeId) -> Option<&Peer> {
        self.nodes.get(node).or_else(|| self.resting.get(node))
    }

    /// A node, routed to or not.
    pub(crate) fn known_mut(&mut self, node: &NodeId) -> Option<&mut Peer> {
        let resting = &mut self.resting;
        self.nodes.get_mut(node).or_else(|| resting.get_mut(node))
    }

    /// All nodes, routed to or not.
    pub(crate) fn all_known(&self) -> impl Iterator<Item = &Peer> {
        self.nodes.values().chain(self.resting.values())
    }

    /// The nodes that are not routed to.
    #[cfg(any(test, feature = "virtual-time"))]
    pub(crate) fn resting(&self) -> impl Iterator<Item = &Peer> {
        self.resting.values()
    }

    /// Forgets everybody, and closes their tunnels. Numbers stay taken.
    pub(crate) fn clear(&mut self) {
        self.nodes.values().for_each(Peer::close);
        self.externals.values().for_each(External::close);
        *self = Self {
            used: std::mem::take(&mut self.used),
            ..Self::default()
        };
    }

    /// Takes an external peer out.
    pub(crate) fn remove_external(&mut self, key: &PublicKey) -> Option<External> {
        let peer = self.externals.remove(key)?;
        self.by_index.remove(&peer.link.index);
        self.tunnels.remove(&MemberId::External(*key));
        Some(peer)
    }

    /// A node.
    #[must_use]
    pub(crate) fn get(&self, node: &NodeId) -> Option<&Peer> {
        self.nodes.get(node)
    }

    /// A node.
    pub(crate) fn get_mut(&mut self, node: &NodeId) -> Option<&mut Peer> {
        self.nodes.get_mut(node)
    }

    /// An external peer.
    #[must_use]
    pub(crate) fn external(&self, key: &PublicKey) -> Option<&External> {
        self.externals.get(key)
    }

    /// All nodes.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Peer> {
        self.nodes.values()
    }

    /// All nodes.
    pub(crate) fn nodes_mut(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.nodes.values_mut()
    }

    /// All external peers.
    pub(crate) fn externals(&self) -> impl Iterator<Item = &External> {
        self.externals.values()
    }

    /// Number of peers of both kinds.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.nodes.len() + self.externals.len()
    }

    /// Whose tunnel has this number.
    #[must_use]
    pub(crate) fn with_index(&self, index: PeerIndex) -> Option<MemberId> {
        self.by_index.get(&index).copied()
    }

    /// Who tags its probes to this node so.
    #[must_use]
    pub(crate) fn with_tag(&self, tag: &ProbeTag) -> Option<NodeId> {
        self.by_tag.get(tag).copied()
    }

    /// Sets when a node's paths are due.
    pub(crate) fn set_deadline(&mut self, node: NodeId, at: Option<Moment>) {
        let Some(peer) = self.nodes.get_mut(&node) else {
            return;
        };
        if peer.deadline == at {
            return;
        }
        if let Some(before) = peer.deadline {
            self.deadlines.remove(&(before, node));
        }
        if let Some(at) = at {
            self.deadlines.insert((at, node));
        }
        peer.deadline = at;
    }

    /// When the first paths are due.
    #[must_use]
    pub(crate) fn next_deadline(&self) -> Option<Moment> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// A node whose paths are due.
    #[must_use]
    pub(crate) fn due(&self, now: Moment) -> Option<NodeId> {
        self.deadlines
            .first()
            .filter(|(at, _)| *at <= now)
            .map(|(_, node)| *node)
    }

    /// Notes whether a peer has a tunnel.
    pub(crate) fn set_tunnel(&mut self, peer: MemberId, has: bool) {
        if has {
            self.tunnels.insert(peer);
        } else {
            self.tunnels.remove(&peer);
        }
    }

    /// Peers with a tunnel.
    #[must_use]
    pub(crate) fn tunnels(&self) -> Vec<MemberId> {
        self.tunnels.iter().copied().collect()
    }

    /// Whether some peer has a tunnel.
    #[must_use]
    pub(crate) fn has_tunnels(&self) -> bool {
        !self.tunnels.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_deal_256_peers_out_evenly_to_any_number_of_shards() {
        let (mut peers, mut random) = (Peers::default(), Random::new([7; 32]));
        let numbers: Vec<u32> = (0..1_000).map(|_| peers.new_index(&mut random).0).collect();
        assert_eq!(numbers.iter().collect::<BTreeSet<_>>().len(), 1_000);
        // As the kernel does with the second byte of the receiver index, of which the first one
        // counts sessions.
        for shards in 1..=64 {
            let mut dealt = vec![0; shards];
            for number in numbers.iter().take(256) {
                dealt[(number & 0xff) as usize % shards] += 1;
            }
            let (least, most) = (dealt.iter().min(), dealt.iter().max());
            assert!(most <= least.map(|least| least + 1).as_ref(), "{dealt:?}");
        }
    }
}
