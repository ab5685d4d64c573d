//! Making peers, table, plan and disk follow the membership.

use std::sync::Arc;

use podmesh_proto::certificate::Member;
use podmesh_proto::id::{NodeId, PlanetId};
use podmesh_proto::key::PublicKey;
use podmesh_proto::time::{Moment, Now};

use crate::engine::Engine;
use crate::forwarding::{ForwardingTable, PeerLink};
use crate::host_plan::{HostPlan, host_plan};
use crate::limits;
use crate::membership::holdings::MemberId;
use crate::mutation::{self, Mutant};
use crate::output::Output;
use crate::peer::{External, Peer};
use crate::timers::Timer;

/// What a node is to this one.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A peer.
    Served(Arc<Member>),
    /// A member that is not routed to: its time is over, it collides with another, or this node is in
    /// no good standing itself. All of that may change.
    Resting(Arc<Member>),
    /// Nobody.
    Nowhere,
}

impl Engine {
    /// The last step of every input: whatever has changed reaches everything that follows from it.
    pub(super) fn settle(&mut self, now: Now) {
        self.follow_members(now);
        self.follow_disk(now);
        if self.dirty && !self.timers.is_set(Timer::Rebuild) {
            let at = self.earliest(self.rebuilt);
            if at <= now.moment {
                self.rebuild(now);
            } else {
                self.timers.set(Timer::Rebuild, at);
            }
        }
        let looked_after = self.timers.is_set(Timer::Tunnels) && self.timers.is_set(Timer::Traffic);
        if !looked_after && self.peers.has_tunnels() {
            let sample = limits::TUNNEL_TICK * 2;
            let is_calm = self
                .stirred
                .is_none_or(|at| now.moment.since(at) > limits::STIRRED);
            let tick = if is_calm { sample } else { limits::TUNNEL_TICK };
            self.timers
                .set_earlier(Timer::Tunnels, now.moment.after_on_grid(tick));
            self.timers
                .set_earlier(Timer::Traffic, now.moment.after_on_grid(sample));
        }
    }

    /// When something that takes time in proportion to the number of peers may be done again.
    fn earliest(&self, last: Option<Moment>) -> Moment {
        let peers = u32::try_from(self.peers.len()).unwrap_or(u32::MAX);
        let members = self.members.as_ref();
        let statements = members.map_or(0, |members| members.statements().len());
        let statements = u32::try_from(statements).unwrap_or(u32::MAX);
        let gap = limits::REBUILD_PER_PEER.saturating_mul(peers)
            + limits::PERSIST_PER_STATEMENT.saturating_mul(statements);
        last.map_or(Moment::ZERO, |last| last + gap)
    }

    /// Something that trust depends on has changed: it goes to disk at once, or, where many members
    /// arrive, soon.
    pub(super) fn trust_changed(&mut self, now: Now) {
        let at = self.earliest(self.persisted).max(now.moment);
        self.timers.set_earlier(Timer::Persist, at);
    }

    /// Something that only makes the next start faster has changed.
    pub(super) fn paths_changed(&mut self, now: Now) {
        let at = self
            .persisted
            .map_or(now.moment, |last| last + limits::PERSIST_PATHS);
        self.timers.set_earlier(Timer::Persist, at.max(now.moment));
    }

    /// Writes the state now.
    pub(super) fn persist(&mut self, now: Now) {
        self.timers.clear(Timer::Persist);
        self.persisted = Some(now.moment);
        self.disk.last = self.disk.last.saturating_add(1);
        let stored = Box::new(self.stored_state());
        self.outputs.push_back(Output::Persist(stored));
    }

    /// Makes the peers those that [`Self::place_of`] says, after whatever has changed.
    pub(super) fn follow_members(&mut self, now: Now) {
        let Some(members) = &mut self.members else {
            return;
        };
        let mut changed = members.take_changed();
        let own_changed = changed.remove(&MemberId::Node(self.node));
        if own_changed {
            self.follow_own(now);
        }
        let serves = self.is_active();
        let forgets = serves && mutation::is(Mutant::StandingForgotten);
        if serves != self.peers.served && forgets {
            self.peers.served = serves;
        } else if serves != self.peers.served {
            // The standing decides about everybody, whatever it was that changed it.
            self.peers.served = serves;
            changed.extend(self.everybody());
        }
        if changed.is_empty() && !own_changed {
            return;
        }
        self.dirty = true;
        for id in changed {
            match id {
                MemberId::Node(node) => self.follow_node(node, now),
                MemberId::External(key) => self.follow_external(key),
            }
        }
        self.hear_explained(now);
        self.trust_changed(now);
        self.wake_all(now);
    }

    /// Everybody who is a peer, or might be one.
    fn everybody(&self) -> Vec<MemberId> {
        let nodes = self.peers.all_known().map(|peer| peer.member.node);
        let externals = self.peers.externals().map(|peer| peer.wireguard);
        let mut all: Vec<MemberId> = nodes.map(MemberId::Node).collect();
        all.extend(externals.map(MemberId::External));
        if let Some(members) = &self.members {
            let nodes = members.all().map(|known| known.member.node);
            let apart = members.quarantined().map(|(member, _)| member.node);
            all.extend(nodes.chain(apart).map(MemberId::Node));
            let externals = members.externals().map(|peer| peer.wireguard);
            all.extend(externals.map(MemberId::External));
        }
        all.retain(|id| *id != MemberId::Node(self.node));
        all
    }

    /// Whether this node is a member in good standing.
    pub(crate) fn is_active(&self) -> bool {
        !self.renewing.lost_keys
            && self.members.as_ref().is_some_and(|members| {
                members.own().is_some_and(|own| !own.expired)
                    && !members.is_revoked(&self.node_id())
            })
    }

    /// What a node is to this one: everything about peers follows from this.
    pub(super) fn place_of(&self, node: &NodeId) -> Place {
        let Some(members) = self.members.as_ref().filter(|_| *node != self.node) else {
            return Place::Nowhere;
        };
        match (members.known(node), members.kept_apart(node)) {
            (Some(known), _) if !known.expired && self.is_active() => {
                Place::Served(Arc::clone(&known.member))
            }
            (Some(known), _) => Place::Resting(Arc::clone(&known.member)),
            (None, Some(member)) => Place::Resting(Arc::clone(member)),
            (None, None) => Place::Nowhere,
        }
    }

    fn follow_node(&mut self, node: NodeId, now: Now) {
        match self.place_of(&node) {
            Place::Served(member) => self.serve(member, now),
            Place::Resting(member) => self.rest(member),
            Place::Nowhere => self.forget_node(&node),
        }
    }

    /// A member is routed to, by its present keys.
    fn serve(&mut self, member: Arc<Member>, now: Now) {
        let node = member.node;
        if let Some(peer) = self.peers.get_mut(&node) {
            let same =
                peer.member.wireguard == member.wireguard && peer.member.probe == member.probe;
            peer.set_member(member);
            if !same {
                self.rekey(&node, now);
            }
            return;
        }
        let before = self.peers.take_resting(&node);
        let Some(mut peer) = self.new_peer(&member) else {
            return;
        };
        if let Some(before) = before.filter(|_| !mutation::is(Mutant::RestForgets)) {
            peer = peer.goes_on(before);
        }
        tracing::info!(peer = %member.name, "a member is known");
        self.peers.insert(peer);
        self.budget.set_nodes(self.peers.len() + 1);
        self.wake_if_few(&node, now);
    }

    /// A node is known and not routed to, for the time being.
    fn rest(&mut self, member: Arc<Member>) {
        if let Some(mut peer) = self.peers.remove(&member.node) {
            self.endpoints.forget_peer(&member.node);
            self.waiting_bytes = self.waiting_bytes.saturating_sub(peer.waiting_bytes());
            peer.retire();
            tracing::info!(peer = %peer.member.name, "a member is routed to no more");
            self.peers.rest(peer);
        }
        match self.peers.known_mut(&member.node) {
            Some(peer) => peer.set_member(member),
            None => {
                if let Some(peer) = self.new_peer(&member) {
                    self.peers.rest(peer);
                }
            }
        }
    }

    /// A peer of which nothing but the membership is known; `None` if a key of it is weak.
    fn new_peer(&mut self, member: &Arc<Member>) -> Option<Peer> {
        let network = self.members.as_ref()?.network().id;
        let index = self.peers.new_index(&mut self.random);
        let address = member.node.relay_address();
        let link = PeerLink::new(index, Some(address), Some(member.overlay6));
        let keys = (&self.config.keys.probe, self.node);
        Peer::new(Arc::new(link), Arc::clone(member), keys, network)
    }

    /// A node is none of this network's any more, or can't be talked with.
    pub(super) fn forget_node(&mut self, node: &NodeId) {
        let first = (*node, PlanetId([0; 32]));
        let last = (*node, PlanetId([u8::MAX; 32]));
        let told: Vec<_> = self
            .presence
            .range(first..=last)
            .map(|(key, _)| *key)
            .collect();
        for key in told {
            self.presence.remove(&key);
        }
        self.budget.forget(node);
        self.peers.take_resting(node);
        if let Some(peer) = self.peers.remove(node) {
            self.endpoints.forget_peer(node);
            self.waiting_bytes = self.waiting_bytes.saturating_sub(peer.waiting_bytes());
            peer.close();
            self.budget.set_nodes(self.peers.len() + 1);
            tracing::info!(peer = %peer.member.name, "a member is routed to no more");
        }
    }

    pub(super) fn follow_external(&mut self, key: PublicKey) {
        if let Some(peer) = self.peers.remove_external(&key) {
            peer.close();
        }
        let active = self.is_active();
        let wanted = self
            .members
            .as_ref()
            .and_then(|members| members.external(&key))
            .filter(|_| active)
            .cloned();
        if let Some(peer) = wanted {
            let index = self.peers.new_index(&mut self.random);
            self.peers.insert_external(External {
                link: Arc::new(PeerLink::new(index, None, None)),
                name: peer.name,
                wireguard: peer.wireguard,
                prefixes: peer.prefixes,
                endpoint: peer.endpoint,
            });
        }
    }

    /// Builds forwarding table and host plan, and hands out what differs.
    pub(super) fn rebuild(&mut self, now: Now) {
        self.timers.clear(Timer::Rebuild);
        self.dirty = false;
        self.rebuilt = Some(now.moment);
        let own = self.active_member();
        let nodes = self
            .peers
            .nodes()
            .map(|peer| (Arc::clone(&peer.link), peer.member.prefixes()));
        let externals = self
            .peers
            .externals()
            .map(|peer| (Arc::clone(&peer.link), peer.prefixes.clone()));
        let table = ForwardingTable::new(
            own.iter().flat_map(|own| own.prefixes()),
            nodes.chain(externals).collect(),
            self.planets.legs().cloned().collect(),
            Arc::clone(&self.drops),
        );
        self.table = Arc::new(table);
        let table = Arc::clone(&self.table);
        // Before whatever leaves: an answer must find the table that knows what it answers.
        self.outputs.push_front(Output::Forwarding(table));
        let plan = self.wanted_plan();
        if plan != self.plan {
            self.plan = plan.clone();
            self.outputs.push_back(Output::HostPlan(Box::new(plan)));
        }
    }

    /// This node as a member, if it is one in good standing.
    fn active_member(&self) -> Option<Arc<Member>> {
        let own = self.members.as_ref().and_then(|members| members.own());
        own.filter(|_| self.is_active())
            .map(|own| Arc::clone(&own.member))
    }

    /// What the host should hold, as of this moment.
    pub(super) fn wanted_plan(&self) -> HostPlan {
        let (device, mtu) = (&self.config.device, self.config.mtu);
        match (&self.active_member(), &self.members) {
            (Some(own), Some(members)) => self.plan_of(own, members),
            (None, Some(members)) => HostPlan::closed(device, mtu, members.network()),
            _ => HostPlan::empty(device, mtu),
        }
    }

    fn plan_of(&self, own: &Member, members: &crate::membership::Members) -> HostPlan {
        let nodes: Vec<_> = self
            .peers
            .nodes()
            .map(|peer| (&peer.member.name, peer.member.prefixes(), peer.mtu))
            .collect();
        let externals: Vec<_> = self
            .peers
            .externals()
            .map(|peer| (&peer.name, peer.prefixes.clone(), limits::STOCK_MTU))
            .collect();
        let all = nodes.iter().chain(&externals);
        host_plan(
            own,
            all.map(|(name, prefixes, mtu)| (*name, prefixes.as_slice(), u32::from(*mtu))),
            members.network(),
            &self.config.device,
            self.config.mtu,
        )
    }
}
