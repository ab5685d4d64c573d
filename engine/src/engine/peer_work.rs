//! Looking after the paths of each peer: who is reached for, and what its paths ask for.

use std::time::Duration;

use podmesh_proto::id::NodeId;
use podmesh_proto::probe::Probe;
use podmesh_proto::time::Now;

use crate::control::ControlMessage;
use crate::engine::Engine;
use crate::limits;
use crate::membership::holdings::MemberId;
use crate::mutation::{self, Mutant};
use crate::path_id::{PathId, SocketId};
use crate::paths::{Evidence, PathAction, Paths, SwitchReason, TrafficSample};
use crate::peer::Peer;
use crate::publishing::Witness;
use crate::reach::Passage;

/// Actions of one peer that are done at once; more wait for the next turn.
const MAX_ACTIONS: usize = 256;

impl Engine {
    /// Lets `work` happen to the paths of a peer, if somebody looks after them, and does what they
    /// ask for then.
    pub(super) fn with_paths(&mut self, node: &NodeId, now: Now, work: impl FnOnce(&mut Paths)) {
        let Some(paths) = self
            .peers
            .get_mut(node)
            .and_then(|peer| peer.paths.as_deref_mut())
        else {
            return;
        };
        work(paths);
        for _ in 0..MAX_ACTIONS {
            let action = self
                .peers
                .get_mut(node)
                .and_then(|peer| peer.paths.as_deref_mut())
                .and_then(Paths::poll_action);
            let Some(action) = action else {
                break;
            };
            self.perform(node, action, now);
        }
        self.follow_mtu(node, now);
        let deadline = self
            .peers
            .get(node)
            .and_then(|peer| peer.paths.as_deref())
            .and_then(|paths| paths.poll_timeout(now));
        // Never right now: a turn ends, and the shell gets its say.
        let soonest = now.moment + Duration::from_millis(1);
        self.peers
            .set_deadline(*node, deadline.map(|at| at.max(soonest)));
    }

    /// What the path in use carries may be known by now. While it isn't, what was known last stays.
    fn follow_mtu(&mut self, node: &NodeId, now: Now) {
        let Some(peer) = self.peers.get_mut(node) else {
            return;
        };
        let found = peer.paths.as_deref().and_then(Paths::mtu);
        if let Some(mtu) = found.filter(|mtu| *mtu != peer.mtu) {
            tracing::info!(peer = %peer.member.name, from = peer.mtu, to = mtu, "MTU");
            peer.mtu = mtu;
            self.dirty = true;
            self.paths_changed(now);
        }
    }

    /// Looks after a peer's paths from now on, if there are few enough peers for that.
    pub(super) fn wake_if_few(&mut self, node: &NodeId, now: Now) {
        if self.peers.len() <= self.config.thresholds.eager_peers {
            self.wake(node, now);
        }
    }

    /// After members have gone, there may be few enough again.
    pub(super) fn wake_all(&mut self, now: Now) {
        if self.peers.len() > self.config.thresholds.eager_peers {
            return;
        }
        let asleep: Vec<NodeId> = self
            .peers
            .nodes()
            .filter(|peer| peer.paths.is_none())
            .map(|peer| peer.member.node)
            .collect();
        for node in asleep {
            self.wake(&node, now);
        }
    }

    /// Looks after a peer's paths from now on.
    pub(super) fn wake(&mut self, node: &NodeId, now: Now) {
        let me = self.node_id();
        let Some(peer) = self.peers.get_mut(node).filter(|peer| peer.paths.is_none()) else {
            return;
        };
        let seed = self.random.number();
        peer.paths = Some(Box::new(Paths::new(me, *node, seed, now)));
        peer.busy = Some(now.moment);
        peer.talked = false;
        let cached = peer.cached.clone();
        let record = peer.record.as_ref().map(|(record, _)| record.clone());
        let session = peer.session;
        let relays = self.relays_to(node);
        let local = self.endpoints.local();
        let mtu = u16::try_from(self.config.mtu).unwrap_or(u16::MAX);
        self.with_paths(node, now, |paths| {
            paths.set_device_mtu(mtu);
            paths.set_local(local, now);
            if session {
                paths.handle_session(true, now);
            }
            if let Some(record) = &record {
                paths.set_remote(record, now);
            }
            paths.set_relays(&relays, now);
            if !cached.is_empty() {
                paths.set_cached(&cached, now);
            }
        });
    }

    /// Lets go of a peer that seems to have let go of this node, if there are many and there was no traffic
    /// with this one. To call it back would wake it anew, and later it this node: two between which there
    /// is no traffic would never both sleep.
    pub(super) fn let_go(&mut self, node: &NodeId) -> bool {
        let many = self.peers.len() > self.config.thresholds.eager_peers;
        let unwanted = |peer: &Peer| {
            let talks = peer.talked || peer.sampled.talked_until(&peer.counted());
            peer.waiting.is_empty() && !talks
        };
        let lets_go = many && self.peers.get(node).is_some_and(unwanted);
        if lets_go {
            self.sleep(node);
        }
        lets_go
    }

    /// Lets go of a peer that nobody has talked to for long.
    fn sleep(&mut self, node: &NodeId) {
        if let Some(peer) = self.peers.get_mut(node) {
            if let Some(paths) = peer.paths.take() {
                peer.cached = paths.last_good();
            }
            let mut state = peer.link.lock();
            state.path = None;
            state.end_tunnels();
            drop(state);
            peer.session = false;
        }
        self.peers.set_deadline(*node, None);
        self.peers.set_tunnel(MemberId::Node(*node), false);
    }

    fn perform(&mut self, node: &NodeId, action: PathAction, now: Now) {
        if !action.is_granted(*node, &mut self.budget, now.moment) {
            return;
        }
        match action {
            PathAction::SendProbe {
                path, body, reach, ..
            } => {
                let nonce = self.random.bytes();
                let incarnation = self.incarnation;
                let Some(peer) = self.peers.get_mut(node) else {
                    return;
                };
                tracing::trace!(peer = %node.short(), %path, ?body, ?reach, "probe goes out");
                let counter = peer.next_probe();
                let probe = Probe {
                    incarnation: incarnation.max(peer.raised),
                    counter,
                    body,
                    known: peer.incarnation(),
                };
                let bytes = peer.probes.seal(&probe, &nonce);
                let link = std::sync::Arc::clone(&peer.link);
                let passage = reach.map_or(Passage::Ordinary, Passage::Opener);
                self.send_over(&link, path, bytes, passage);
            }
            PathAction::SendEcho {
                path,
                id,
                reply,
                length,
                ..
            } => {
                let message = if reply {
                    ControlMessage::EchoReply { id }
                } else {
                    ControlMessage::EchoRequest { id }
                };
                self.send_control_over(node, path, (&message, length), now);
            }
            PathAction::SendSizeProbe { path, id, length } => {
                self.send_size_probe(node, path, (id, length), now);
            }
            PathAction::Answered { path } => {
                if let PathId::Direct { endpoint, .. } = path {
                    self.budget.answered(*node, endpoint.ip(), now.moment);
                }
            }
            PathAction::Introduce { attempt } => self.introduce(*node, attempt),
            PathAction::Handshake { path } => self.start_handshake(node, path, now),
            PathAction::Select { path, reason } => self.select(node, path, reason, now),
            PathAction::Observed { socket, endpoint } => {
                let witness = Witness::Peer(*node);
                if self.endpoints.saw(witness, socket, endpoint) {
                    self.publish(false, now);
                }
            }
        }
    }

    /// Whether an answer that says nothing may go where the peer's question seems to come from.
    pub(super) fn may_reply_over(&mut self, id: MemberId, path: PathId, now: Now) -> bool {
        let PathId::Direct { endpoint, .. } = path else {
            return true;
        };
        let evidence = match id {
            MemberId::Node(node) => {
                let paths = self.peers.get(&node).and_then(|peer| peer.paths.as_deref());
                paths.map_or(Evidence::Claimed, |paths| paths.evidence(&path, now.moment))
            }
            // It begins a handshake every other minute, or each five seconds in vain.
            MemberId::External(_) => Evidence::Claimed,
        };
        let target = (endpoint.ip(), 0);
        self.budget.take_answer(id, target, evidence, now.moment)
    }

    /// Another path carries the data of a peer.
    fn select(&mut self, node: &NodeId, path: Option<PathId>, reason: SwitchReason, now: Now) {
        let Some(peer) = self.peers.get_mut(node) else {
            return;
        };
        let name = peer.member.name.clone();
        let mut state = peer.link.lock();
        let before = state.path;
        state.path = path;
        state.elsewhere = None;
        drop(state);
        let counted = peer.counted();
        peer.talked |= peer.sampled.talked_until(&counted);
        peer.sampled = counted;
        let waiting = peer.take_waiting();
        if path.is_some() {
            peer.former = None;
            if let Some(members) = &mut self.members {
                members.confirm(node);
            }
        }
        match path {
            Some(path) => tracing::info!(peer = %name, %path, %reason, "path"),
            None => tracing::info!(peer = %name, %reason, "no path"),
        }
        if path.is_some_and(|path| path.is_direct()) {
            self.paths_changed(now);
        }
        if path.is_none() {
            self.peers.get_mut(node).into_iter().for_each(|peer| {
                for (at, packet) in waiting.iter().cloned() {
                    peer.wait(packet, at);
                }
            });
            self.let_go(node);
            return;
        }
        let length: usize = waiting.iter().map(|(_, packet)| packet.len()).sum();
        self.waiting_bytes = self.waiting_bytes.saturating_sub(length);
        let packets: Vec<&[u8]> = waiting
            .iter()
            .map(|(_, packet)| packet.as_slice())
            .collect();
        if !packets.is_empty() {
            self.send_pod_packets(&packets, now);
        }
        if before.is_none() {
            self.greet_peer(node, now);
            self.ping_waiting(node, now);
        }
    }

    /// Tells the paths what the fast half has counted.
    pub(super) fn sample_traffic(&mut self, now: Now) {
        let many = self.peers.len() > self.config.thresholds.eager_peers;
        let idle_after = if mutation::is(Mutant::SleepsEarly) {
            limits::SECOND
        } else {
            self.config.thresholds.idle
        };
        for id in self.peers.tunnels() {
            let MemberId::Node(node) = id else {
                continue;
            };
            let Some(peer) = self.peers.get_mut(&node) else {
                continue;
            };
            let (before, counted) = (peer.sampled, peer.counted());
            peer.sampled = counted;
            let mut state = peer.link.lock();
            let (path, elsewhere) = (state.path, state.elsewhere.take());
            state.control.give(now.moment);
            drop(state);
            let sent = counted.sent.saturating_sub(before.sent);
            let on_path = counted.on_path.saturating_sub(before.on_path);
            let talks = before.talked_until(&counted);
            if talks {
                (peer.busy, peer.talked) = (Some(now.moment), true);
            }
            // Where nobody talks, what comes over another path is the tunnel's own. Two whose paths differ would
            // ask each other for echoes for ever, each because of the other's last one.
            let elsewhere = elsewhere.filter(|_| talks || mutation::is(Mutant::EchoesAreTraffic));
            let idle = peer
                .busy
                .is_some_and(|busy| now.moment.since(busy) >= idle_after);
            if sent > 0 || on_path > 0 || elsewhere.is_some() {
                let received: Vec<(PathId, u64)> = path
                    .map(|path| (path, on_path))
                    .into_iter()
                    .chain(elsewhere.map(|path| (path, 1)))
                    .collect();
                let sample = TrafficSample {
                    sent,
                    received: &received,
                };
                self.with_paths(&node, now, |paths| paths.handle_traffic(&sample, now));
            } else if idle && many {
                self.sleep(&node);
            }
        }
        if many {
            self.let_strangers_sleep(now);
        }
    }

    /// Peers that were woken while there were few, and have never answered.
    fn let_strangers_sleep(&mut self, now: Now) {
        let patience = self.config.thresholds.in_vain;
        let in_vain = |peer: &&Peer| {
            let since = peer
                .busy
                .map_or(Duration::ZERO, |busy| now.moment.since(busy));
            peer.paths.is_some() && !peer.session && since >= patience
        };
        let strangers = self.peers.nodes().filter(in_vain);
        let strangers: Vec<NodeId> = strangers.map(|peer| peer.member.node).collect();
        for node in strangers {
            self.sleep(&node);
        }
    }

    /// The system refused to send to an endpoint.
    pub(super) fn paths_unreachable(
        &mut self,
        socket: SocketId,
        endpoint: std::net::SocketAddr,
        now: Now,
    ) {
        let path = PathId::Direct { socket, endpoint };
        let using: Vec<NodeId> = self
            .peers
            .nodes()
            .filter(|peer| peer.link.lock().path == Some(path))
            .map(|peer| peer.member.node)
            .collect();
        for node in using {
            self.with_paths(&node, now, |paths| paths.handle_unreachable(path, now));
        }
    }
}
