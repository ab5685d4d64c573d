//! What the fast half hands over: handshakes, probes, control packets, packets without a path.

use podmesh_proto::datagram::DatagramKind;
use podmesh_proto::id::NodeId;
use podmesh_proto::probe::tag_of;
use podmesh_proto::time::Now;

use crate::control::ControlMessage;
use crate::drops::DropReason;
use crate::engine::Engine;
use crate::forwarding::PeerIndex;
use crate::limiter::HandshakeSource;
use crate::limits;
use crate::membership::holdings::MemberId;
use crate::mutation::{self, Mutant};
use crate::output::{Output, Received, SlowItem, Transmit};
use crate::packet::control_payload;
use crate::path_id::PathId;
use crate::peer::{Peer, ProbeNews};
use crate::reach::Passage;
use crate::tunnel::receiver_of;

impl Engine {
    pub(super) fn take_item(&mut self, item: SlowItem, now: Now) {
        match item {
            SlowItem::Datagram(received) => self.take_datagram(&received, now),
            SlowItem::Control { peer, path, packet } => {
                if let Some(MemberId::Node(node)) = self.peers.with_index(peer) {
                    self.take_control(node, path, &packet, now);
                }
            }
            SlowItem::Wanted { peer, packet } => self.take_wanted(peer, packet, now),
            SlowItem::Session { peer } => {
                if let Some(id) = self.peers.with_index(peer) {
                    self.look_at_session(id, None, now);
                }
            }
            SlowItem::Reached { peer, path, since } => {
                if let Some(id @ MemberId::Node(node)) = self.peers.with_index(peer) {
                    // What follows goes by the tunnel that the peer has answered in.
                    self.look_at_session(id, Some(path), now);
                    self.with_paths(&node, now, |paths| {
                        paths.handle_reached((path, since), now);
                        paths.handle_confirmed(path, now);
                    });
                    self.name_life(&node, path, now);
                }
            }
            SlowItem::Moved { peer, path } => {
                if let Some(id @ MemberId::External(_)) = self.peers.with_index(peer) {
                    self.move_external(id, path);
                }
            }
        }
    }

    fn take_datagram(&mut self, received: &Received, now: Now) {
        let dropped = match DatagramKind::of(&received.bytes) {
            DatagramKind::WireGuardHandshake => self.take_handshake(received, now),
            DatagramKind::Probe => self.take_probe(received, now),
            DatagramKind::Relay => {
                self.observed(received, now);
                Ok(())
            }
            _ => Err(DropReason::UnknownDatagram),
        };
        if let Err(reason) = dropped {
            self.drops.count(reason);
        }
    }

    fn take_handshake(&mut self, received: &Received, now: Now) -> Result<(), DropReason> {
        let bytes = &received.bytes;
        // A cookie reply has no MAC of its own; everything else shows first that its sender knows
        // this node's key, which is the cheapest check, and then costs its source a token.
        let cookie = bytes.first() == Some(&3);
        if !cookie && !self.keys.first_mac_holds(bytes) {
            return Err(DropReason::HandshakeMac);
        }
        let source = received.relay.map_or_else(
            || HandshakeSource::of(received.from.ip()),
            |origin| HandshakeSource::Relayed(origin.sender),
        );
        if !self.limiter.take(source, now.moment) {
            return Err(DropReason::HandshakeLimit);
        }
        let id = match receiver_of(bytes) {
            Some(index) => self
                .peers
                .with_index(PeerIndex(index))
                .ok_or(DropReason::UnknownTunnel)?,
            None => {
                self.ask_for_cookie(received, now)?;
                let key = self
                    .keys
                    .initiator_of(bytes)
                    .ok_or(DropReason::NotAuthentic)?;
                let members = self.members.as_ref().ok_or(DropReason::UnknownInitiator)?;
                members
                    .holdings()
                    .with_key(&key)
                    .ok_or(DropReason::UnknownInitiator)?
            }
        };
        self.open_handshake(id, received, now)
    }

    /// While there are many initiations, one from nobody knows where is answered by a cookie, and no more.
    /// What a relay sends comes from a member, and has its source's limit.
    fn ask_for_cookie(&mut self, received: &Received, now: Now) -> Result<(), DropReason> {
        if received.relay.is_some() {
            return Ok(());
        }
        let (from, bytes) = (received.from, &received.bytes);
        let cookie = self
            .keys
            .asks_for_cookie(from.ip(), bytes, &mut self.scratch);
        let Some(length) = cookie else {
            return Ok(());
        };
        if !self.budget.take_cookie(from.ip(), now.moment) {
            return Err(DropReason::AnswerLimit);
        }
        self.outputs.push_back(Output::Transmit(Transmit {
            socket: received.socket,
            to: from,
            passage: Passage::Ordinary,
            bytes: self.scratch.get(..length).unwrap_or_default().to_vec(),
        }));
        Err(DropReason::CookieWanted)
    }

    fn take_probe(&mut self, received: &Received, now: Now) -> Result<(), DropReason> {
        let tag = tag_of(&received.bytes).ok_or(DropReason::UnknownDatagram)?;
        let node = self.peers.with_tag(&tag).ok_or(DropReason::UnknownProbe)?;
        let peer = self.peers.get_mut(&node).ok_or(DropReason::UnknownProbe)?;
        let probe = peer
            .probes
            .open(&received.bytes)
            .map_err(|_| DropReason::UnknownProbe)?;
        let news = peer.judge_probe(&probe);
        if news == ProbeNews::Stale && !mutation::is(Mutant::NoReplayCheck) {
            // Another machine that began in the same second may have had that number.
            let former = probe.incarnation < peer.incarnation();
            if former || !mutation::is(Mutant::SameLifeUnshown) {
                self.show_later_life(&node, now);
            }
            return Err(DropReason::StaleProbe);
        }
        self.knows_of_life(&node, probe.known, now);
        self.wake(&node, now);
        let path = received.path();
        tracing::trace!(peer = %node.short(), %path, body = ?probe.body, "probe came in");
        self.with_paths(&node, now, |paths| {
            if news == ProbeNews::Restarted {
                paths.handle_restart(now);
            }
            paths.handle_probe(path, &probe.body, now);
        });
        Ok(())
    }

    fn take_control(&mut self, node: NodeId, path: PathId, packet: &[u8], now: Now) {
        let message = control_payload(packet).and_then(ControlMessage::decode);
        let Some(message) = message else {
            self.drops.count(DropReason::Control);
            return;
        };
        let peer = self.peers.get_mut(&node);
        let reborn = peer.is_some_and(Peer::is_first_word);
        self.look_at_session(MemberId::Node(node), Some(path), now);
        if reborn {
            // It may have been away for less than it takes to find a path dead, and what was said
            // in between went to its former life.
            self.greet_peer(&node, now);
        }
        match message {
            ControlMessage::EchoRequest { id } => {
                self.wake(&node, now);
                let length = u16::try_from(packet.len()).unwrap_or(u16::MAX);
                self.with_paths(&node, now, |paths| {
                    paths.handle_echo_request(path, id, length, now);
                });
            }
            ControlMessage::EchoReply { id } => {
                if !self.end_ping(id, path, now) {
                    self.with_paths(&node, now, |paths| paths.handle_echo_reply(path, id, now));
                }
            }
            ControlMessage::SizeRequest { id } => {
                let reply = ControlMessage::SizeReply { id };
                if self.may_reply_over(node.into(), path, now) {
                    self.send_control_over(&node, path, (&reply, 0), now);
                }
            }
            ControlMessage::SizeReply { id } => {
                self.with_paths(&node, now, |paths| paths.handle_size_reply(id, now));
            }
            news => self.heard_news(node, news, now),
        }
    }

    fn take_wanted(&mut self, index: PeerIndex, packet: Vec<u8>, now: Now) {
        match self.peers.with_index(index) {
            Some(MemberId::Node(node)) => {
                let ready = self.peers.get(&node).is_some_and(|peer| {
                    let state = peer.link.lock();
                    state.path.is_some() && state.tunnel.is_some()
                });
                if ready {
                    self.send_pod_packets(&[&packet], now);
                    return;
                }
                self.keep_waiting(&node, packet, now);
                if let Some(peer) = self.peers.get_mut(&node) {
                    peer.busy = Some(now.moment);
                }
                if !mutation::is(Mutant::NeverWakes) {
                    self.wake(&node, now);
                }
            }
            Some(id @ MemberId::External(key)) => {
                let endpoint = self.peers.external(&key).and_then(|peer| peer.endpoint);
                let Some(endpoint) = endpoint.filter(|_| self.ensure_tunnel(id)) else {
                    self.drops.count(DropReason::NoRoute);
                    return;
                };
                let socket = crate::path_id::SocketId::MAIN;
                self.move_external(id, PathId::Direct { socket, endpoint });
                self.send_pod_packets(&[&packet], now);
            }
            None => self.drops.count(DropReason::PeerClosed),
        }
    }

    fn keep_waiting(&mut self, node: &NodeId, packet: Vec<u8>, now: Now) {
        let length = packet.len();
        let room = self.waiting_bytes.saturating_add(length) <= limits::MAX_WAITING_BYTES;
        let kept = self
            .peers
            .get_mut(node)
            .is_some_and(|peer| room && peer.wait(packet, now.moment));
        if kept {
            self.waiting_bytes = self.waiting_bytes.saturating_add(length);
        } else {
            self.drops.count(DropReason::QueueFull);
        }
    }

    /// Packets that have waited too long are of no use to anybody.
    pub(super) fn forget_waiting(&mut self, now: Now) {
        if self.waiting_bytes == 0 {
            return;
        }
        let (mut left, mut dropped) = (0, 0);
        for peer in self.peers.nodes_mut() {
            dropped += peer.forget_waiting(now.moment);
            left += peer.waiting_bytes();
        }
        self.waiting_bytes = left;
        self.drops.add(DropReason::QueueFull, dropped);
    }
}
