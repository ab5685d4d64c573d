//! Making peers, table, plan and disk follow the membership.

use std::sync::Arc;

use podmesh_proto::id::NodeId;
use podmesh_proto::key::PublicKey;
use podmesh_proto::time::{Moment, Now};

use crate::engine::Engine;
use crate::forwarding::{ForwardingTable, PeerLink};
use crate::host_plan::{HostPlan, host_plan};
use crate::limits;
use crate::membership::holdings::MemberId;
use crate::output::Output;
use crate::peer::{External, Peer};
use crate::timers::Timer;

impl Engine {
    /// The last step of every input: whatever has changed reaches everything that follows from it.
    pub(super) fn settle(&mut self, now: Now) {
        self.follow_members(now);
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
        let gap = limits::REBUILD_PER_PEER.saturating_mul(peers);
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
        let stored = Box::new(self.stored_state());
        self.outputs.push_back(Output::Persist(stored));
    }

    pub(super) fn follow_members(&mut self, now: Now) {
        let Some(members) = &mut self.members else {
            return;
        };
        let mut changed = members.take_changed();
        if changed.is_empty() {
            return;
        }
        self.dirty = true;
        let me = MemberId::Node(self.node_id());
        let own_changed = changed.remove(&me);
        if own_changed {
            self.follow_own(now);
        }
        if own_changed && !self.is_active() {
            // Revoked or expired: no tunnel of anybody stays.
            changed.extend(
                self.peers
                    .nodes()
                    .map(|peer| MemberId::Node(peer.member.node)),
            );
            let externals = self.peers.externals();
            changed.extend(externals.map(|peer| MemberId::External(peer.wireguard)));
        }
        for id in changed {
            match id {
                MemberId::Node(node) => self.follow_node(node, now),
                MemberId::External(key) => self.follow_external(key),
            }
        }
        self.trust_changed(now);
        self.wake_all(now);
    }

    /// Whether this node is a member in good standing.
    pub(crate) fn is_active(&self) -> bool {
        !self.renewing.lost_keys
            && self.members.as_ref().is_some_and(|members| {
                members.own().is_some_and(|own| !own.expired)
                    && !members.is_revoked(&self.node_id())
            })
    }

    fn follow_node(&mut self, node: NodeId, now: Now) {
        let active = self.is_active();
        let wanted = self
            .members
            .as_ref()
            .and_then(|members| members.known(&node))
            .filter(|known| active && !known.expired)
            .map(|known| Arc::clone(&known.member));
        let Some(member) = wanted else {
            self.drop_node(&node);
            return;
        };
        if let Some(peer) = self.peers.get_mut(&node) {
            let same =
                peer.member.wireguard == member.wireguard && peer.member.probe == member.probe;
            peer.member = member;
            if !same {
                self.rekey(&node, now);
            }
            return;
        }
        let Some(network) = self.members.as_ref().map(|members| members.network().id) else {
            return;
        };
        let index = self.peers.new_index(&mut self.random);
        let link = PeerLink::new(index, Some(node.relay_address()), Some(member.overlay6));
        let keys = (&self.config.keys.probe, self.node_id());
        if let Some(peer) = Peer::new(Arc::new(link), Arc::clone(&member), keys, network) {
            tracing::info!(peer = %member.name, "a member is known");
            self.peers.insert(peer);
            self.wake_if_few(&node, now);
        }
    }

    pub(super) fn drop_node(&mut self, node: &NodeId) {
        if let Some(peer) = self.peers.remove(node) {
            for planet in self.planets.all() {
                self.presence.remove(&(*node, planet.entry.id));
            }
            self.waiting_bytes = self.waiting_bytes.saturating_sub(peer.waiting_bytes());
            peer.close();
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
        let own = self
            .members
            .as_ref()
            .and_then(|members| members.own())
            .filter(|_| self.is_active())
            .map(|own| Arc::clone(&own.member));
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
        let plan = match (&own, &self.members) {
            (Some(own), Some(members)) => self.plan_of(own, members),
            (None, Some(members)) => {
                let Self { config, .. } = self;
                HostPlan::closed(&config.device, config.mtu, members.network())
            }
            _ => HostPlan::empty(&self.config.device, self.config.mtu),
        };
        if plan != self.plan {
            self.plan = plan.clone();
            self.outputs.push_back(Output::HostPlan(Box::new(plan)));
        }
    }

    fn plan_of(
        &self,
        own: &podmesh_proto::certificate::Member,
        members: &crate::membership::Members,
    ) -> HostPlan {
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
