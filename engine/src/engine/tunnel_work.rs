//! Handshakes, sessions and timers of the tunnels.

use podmesh_proto::id::NodeId;
use podmesh_proto::time::{Moment, Now};

use crate::control::ControlMessage;
use crate::drops::DropReason;
use crate::engine::Engine;
use crate::forwarding::{LinkState, PeerLink};
use crate::membership::holdings::MemberId;
use crate::mutation::{self, Mutant};
use crate::output::{Output, Received, Transmit};
use crate::packet::control_packet;
use crate::path_id::{PathId, SocketId};
use crate::peer::Peer;
use crate::reach::Passage;
use crate::tunnel::{Opened, Sealed, Tunnel, TunnelError, ephemeral_of};

/// First byte of an initiation (`WireGuard` paper §5.4.2).
const INITIATION: u8 = 1;
/// First byte of the answer to an initiation (`WireGuard` paper §5.4.3).
const RESPONSE: u8 = 2;
/// First byte of what asks a sender to show that it is there (`WireGuard` paper §5.4.7).
const COOKIE: u8 = 3;
/// Bytes of a control packet before its payload.
const CONTROL_HEADER: usize = 40;

/// A tunnel has opened a handshake message that came over a path, and answers with what is written there, if
/// it does: since when the message was waited for from there.
fn note_answer(
    tunnel: &mut Tunnel,
    (message, path, now): (&[u8], PathId, Now),
    (opened, written): (Result<Opened, TunnelError>, &[u8]),
) -> Option<Moment> {
    let Ok(Opened::Reply(length)) = opened else {
        return None;
    };
    if written.first() == Some(&COOKIE) {
        return None;
    }
    let reached = tunnel.reached(message, path);
    let answer = written.get(..length).unwrap_or_default();
    tunnel.asks(answer, path, now.moment);
    reached
}

impl Engine {
    /// Sends a datagram for a peer over a path.
    pub(super) fn send_over(
        &mut self,
        link: &PeerLink,
        path: PathId,
        bytes: Vec<u8>,
        passage: Passage,
    ) {
        let transmit = match path {
            PathId::Direct { socket, endpoint } => Transmit {
                socket,
                to: endpoint,
                passage,
                bytes,
            },
            PathId::Relay { planet } => {
                let (Some(leg), Some(address)) = (self.planets.leg(&planet), link.relay_address)
                else {
                    self.drops.count(DropReason::RelayDown);
                    return;
                };
                let mut frame = Vec::new();
                leg.wrap(address, &bytes, &mut frame);
                Transmit {
                    socket: SocketId::MAIN,
                    to: leg.endpoint,
                    passage,
                    bytes: frame,
                }
            }
        };
        self.outputs.push_back(Output::Transmit(transmit));
    }

    /// The link and key of a peer of either kind.
    fn link_of(
        &self,
        id: MemberId,
    ) -> Option<(std::sync::Arc<PeerLink>, podmesh_proto::key::PublicKey)> {
        match id {
            MemberId::Node(node) => {
                let peer = self.peers.get(&node)?;
                Some((std::sync::Arc::clone(&peer.link), peer.member.wireguard))
            }
            MemberId::External(key) => {
                let peer = self.peers.external(&key)?;
                Some((std::sync::Arc::clone(&peer.link), key))
            }
        }
    }

    /// Makes a peer's tunnel, if it has none; `false` if it can't have one.
    pub(super) fn ensure_tunnel(&mut self, id: MemberId) -> bool {
        let Some((link, key)) = self.link_of(id) else {
            return false;
        };
        let mut state = link.lock();
        if state.closed {
            return false;
        }
        if state.tunnel.is_none() {
            state.tunnel = Tunnel::new(&self.keys, &key, link.index.0);
        }
        let made = state.tunnel.is_some();
        drop(state);
        self.peers.set_tunnel(id, made);
        made
    }

    /// Gives a handshake message to the tunnel that it is for.
    pub(super) fn open_handshake(
        &mut self,
        id: MemberId,
        received: &Received,
        now: Now,
    ) -> Result<(), DropReason> {
        let (link, key) = self.link_of(id).ok_or(DropReason::UnknownInitiator)?;
        self.stirred = Some(now.moment);
        if !self.ensure_tunnel(id) {
            return Err(DropReason::UnknownInitiator);
        }
        let ephemeral = ephemeral_of(&received.bytes);
        let peer = match id {
            MemberId::Node(node) => self.peers.get(&node),
            MemberId::External(_) => None,
        };
        let known = |peer: &Peer| ephemeral.is_some_and(|key| peer.has_accepted(key));
        if peer.is_some_and(known) {
            return Err(DropReason::NotAuthentic);
        }
        let may_reset = peer.is_some_and(|peer| peer.may_reset(now.moment));
        let from = Some(received.from.ip());
        let mut handover = None;
        let mut state = link.lock();
        let path = received.path();
        let message = (received.bytes.as_slice(), path, now);
        let mut reached = None;
        let mut opened = Err(TunnelError::NotAuthentic);
        let LinkState { tunnel, coming, .. } = &mut *state;
        for tunnel in [coming, tunnel].into_iter().flatten() {
            opened = tunnel.open(from, &received.bytes, &mut self.scratch);
            if opened != Err(TunnelError::NotAuthentic) {
                reached = note_answer(tunnel, message, (opened, &self.scratch));
                break;
            }
        }
        if opened == Err(TunnelError::NotAuthentic) && may_reset {
            // A peer whose clock went back with its restart: to a tunnel without memory its
            // initiation is good. A session goes on until the peer has the new one: the answer may be lost.
            if let Some(mut fresh) = Tunnel::new(&self.keys, &key, link.index.0) {
                opened = fresh.open(from, &received.bytes, &mut self.scratch);
                note_answer(&mut fresh, message, (opened, &self.scratch));
                if matches!(opened, Ok(Opened::Reply(_))) {
                    state.coming = None;
                    handover = state.make_anew(fresh).then_some(now.moment);
                }
            }
        }
        drop(state);
        if let (MemberId::Node(node), Some(since)) = (id, handover)
            && let Some(peer) = self.peers.get_mut(&node)
        {
            peer.handover = Some(since);
        }
        let opened = opened.map_err(|_| DropReason::NotAuthentic)?;
        match opened {
            Opened::Reply(length) => self.answer_handshake(id, received, (length, reached), now),
            _ => Ok(()),
        }
    }

    /// Answers a handshake message of a member with the first bytes of `scratch`, and goes on from there. What
    /// has `reached` the member by then shows that it is where this came from.
    fn answer_handshake(
        &mut self,
        id: MemberId,
        received: &Received,
        (length, reached): (usize, Option<Moment>),
        now: Now,
    ) -> Result<(), DropReason> {
        let (link, _) = self.link_of(id).ok_or(DropReason::UnknownInitiator)?;
        let path = received.path();
        let reply = self.scratch.get(..length).unwrap_or_default().to_vec();
        let cookie = reply.first() == Some(&COOKIE);
        // The tunnel has taken it, whether the answer goes out or not.
        if let (MemberId::Node(node), Some(ephemeral), false) =
            (id, ephemeral_of(&received.bytes), cookie)
            && let Some(peer) = self.peers.get_mut(&node)
        {
            peer.accepted(ephemeral, now.moment);
        }
        // Its sender may have put another one's address on it.
        if received.bytes.first() == Some(&INITIATION) && !self.may_reply_over(id, path, now) {
            return Err(DropReason::AnswerLimit);
        }
        self.send_over(&link, path, reply, Passage::Ordinary);
        if cookie {
            return Ok(());
        }
        if let (MemberId::Node(node), Some(since)) = (id, reached) {
            self.with_paths(&node, now, |paths| {
                paths.handle_reached((path, since), now);
            });
        }
        let answers = received.bytes.first() == Some(&RESPONSE);
        if let (MemberId::Node(node), true) = (id, answers) {
            self.with_paths(&node, now, |paths| paths.handle_answered(now));
        }
        self.after_handshake(id, path, now);
        if let (MemberId::Node(node), true) = (id, answers) {
            self.name_life(&node, path, now);
        }
        Ok(())
    }

    /// A handshake of the peer was authentic.
    fn after_handshake(&mut self, id: MemberId, path: PathId, now: Now) {
        match id {
            MemberId::Node(node) => {
                self.wake(&node, now);
                if let Some(peer) = self.peers.get_mut(&node) {
                    peer.handshake_path = Some(path);
                }
                self.with_paths(&node, now, |paths| paths.handle_heard(path, now));
            }
            MemberId::External(_) => self.move_external(id, path),
        }
        self.look_at_session(id, Some(path), now);
        if let MemberId::Node(node) = id {
            let session = self.peers.get(&node).is_some_and(|peer| peer.session);
            self.with_paths(&node, now, |paths| paths.handle_session(session, now));
        }
    }

    /// Notices when a session has come or gone, and lets go what waited for it.
    pub(super) fn look_at_session(&mut self, id: MemberId, path: Option<PathId>, now: Now) {
        let Some((link, _)) = self.link_of(id) else {
            return;
        };
        let mut state = link.lock();
        let handed_over = state.hand_over();
        let session = state.tunnel.as_ref().is_some_and(Tunnel::has_session);
        let changed = state.session != session;
        state.session = session;
        let way = state.path.or(path);
        let mut flushed = Vec::new();
        if let (Some(tunnel), true) = (state.tunnel.as_mut(), way.is_some()) {
            while let Some(length) = tunnel.flush(&mut self.scratch) {
                flushed.push(self.scratch.get(..length).unwrap_or_default().to_vec());
            }
        }
        drop(state);
        if let Some(way) = way {
            for bytes in flushed {
                self.send_over(&link, way, bytes, Passage::Ordinary);
            }
        }
        if let (MemberId::Node(node), true) = (id, handed_over)
            && let Some(peer) = self.peers.get_mut(&node)
        {
            tracing::info!(peer = %peer.member.name, "the tunnel has new keys");
            peer.handover = Some(now.moment);
        }
        if let (MemberId::Node(node), true) = (id, changed) {
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.session = session;
            }
            self.with_paths(&node, now, |paths| paths.handle_session(session, now));
        }
    }

    /// An external peer is where its last authentic message came from.
    pub(super) fn move_external(&mut self, id: MemberId, path: PathId) {
        if let Some((link, _)) = self.link_of(id)
            && path.is_direct()
        {
            let mut state = link.lock();
            state.path = Some(path);
            state.elsewhere = None;
        }
    }

    /// Starts a handshake over a path.
    pub(super) fn start_handshake(&mut self, node: &NodeId, path: PathId, now: Now) {
        let id = MemberId::Node(*node);
        if !self.ensure_tunnel(id) {
            return;
        }
        self.forget_former_life(node, now);
        let Some((link, _)) = self.link_of(id) else {
            return;
        };
        let mut state = link.lock();
        let LinkState { tunnel, coming, .. } = &mut *state;
        let length = coming.as_mut().or(tunnel.as_mut()).and_then(|tunnel| {
            let length = tunnel.initiate(&mut self.scratch)?;
            tunnel.asks(self.scratch.get(..length)?, path, now.moment);
            Some(length)
        });
        drop(state);
        if let Some(peer) = self.peers.get_mut(node) {
            peer.handshake_path = Some(path);
        }
        if let Some(length) = length {
            let bytes = self.scratch.get(..length).unwrap_or_default().to_vec();
            self.send_over(&link, path, bytes, Passage::Ordinary);
        }
    }

    /// Makes the next session with a peer that has begun a new life in a tunnel without memory: by its clock,
    /// which may have gone back, its handshakes are older than what the present one remembers.
    fn forget_former_life(&mut self, node: &NodeId, now: Now) {
        let Some(peer) = self.peers.get_mut(node).filter(|peer| peer.may_reset) else {
            return;
        };
        if mutation::is(Mutant::FormerLifeRemembered) {
            return;
        }
        let mut state = peer.link.lock();
        if state.coming.is_some() {
            return;
        }
        let number = peer.link.index.0;
        let Some(fresh) = Tunnel::new(&self.keys, &peer.member.wireguard, number) else {
            return;
        };
        let goes_on = state.make_anew(fresh);
        drop(state);
        peer.handover = goes_on.then_some(now.moment);
        peer.may_reset = false;
    }

    /// Drives the timers of all tunnels.
    pub(super) fn tick_tunnels(&mut self, now: Now) {
        self.end_handovers(now);
        for id in self.peers.tunnels() {
            let Some((link, _)) = self.link_of(id) else {
                continue;
            };
            let last = match id {
                MemberId::Node(node) => self.peers.get(&node).and_then(|peer| peer.handshake_path),
                MemberId::External(_) => None,
            };
            let mut state = link.lock();
            let path = state.path.or(last);
            // While new keys come, the old ones make no session any more.
            let LinkState { tunnel, coming, .. } = &mut *state;
            let length = coming.as_mut().or(tunnel.as_mut()).and_then(|tunnel| {
                let length = tunnel.tick(&mut self.scratch)?;
                if let Some(path) = path {
                    tunnel.asks(self.scratch.get(..length)?, path, now.moment);
                }
                Some(length)
            });
            let session = state.tunnel.as_ref().is_some_and(Tunnel::has_session);
            let look =
                session != state.session || state.tunnel.as_ref().is_some_and(Tunnel::can_flush);
            drop(state);
            let begins = length.is_some() && self.scratch.first() == Some(&INITIATION);
            if let MemberId::Node(node) = id
                && session
                && begins
                && self.let_go(&node)
            {
                continue;
            }
            if !session {
                self.stirred = Some(now.moment);
            }
            if let (Some(length), Some(path)) = (length, path) {
                let bytes = self.scratch.get(..length).unwrap_or_default().to_vec();
                self.send_over(&link, path, bytes, Passage::Ordinary);
            }
            if look {
                self.look_at_session(id, last, now);
            }
        }
    }

    /// Sends a message through the tunnel, over the path that carries data.
    pub(super) fn send_control(&mut self, node: &NodeId, message: &ControlMessage, now: Now) {
        let path = self.peers.get(node).and_then(|peer| peer.link.lock().path);
        if let Some(path) = path {
            self.send_control_over(node, path, (message, 0), now);
        }
    }

    /// Sends a message through the tunnel over any path, in a packet of at least `length` bytes. What
    /// can't go at once doesn't go: an old echo is worse than none.
    pub(super) fn send_control_over(
        &mut self,
        node: &NodeId,
        path: PathId,
        content: (&ControlMessage, u16),
        now: Now,
    ) {
        if let Some((link, bytes)) = self.seal_control(node, content, now) {
            self.send_over(&link, path, bytes, Passage::Ordinary);
        }
    }

    /// Asks through the tunnel whether a packet of `length` bytes arrives in one piece.
    pub(super) fn send_size_probe(
        &mut self,
        node: &NodeId,
        path: PathId,
        (id, length): (u64, u16),
        now: Now,
    ) {
        let request = ControlMessage::SizeRequest { id };
        if let Some((link, bytes)) = self.seal_control(node, (&request, length), now) {
            self.send_over(&link, path, bytes, Passage::Whole);
        }
    }

    fn seal_control(
        &mut self,
        node: &NodeId,
        (message, length): (&ControlMessage, u16),
        now: Now,
    ) -> Option<(std::sync::Arc<PeerLink>, Vec<u8>)> {
        let own = self.members.as_ref().and_then(|members| members.own());
        let (source, peer) = own.zip(self.peers.get(node))?;
        let payload = usize::from(length).saturating_sub(CONTROL_HEADER);
        let payload = message.encode(payload)?;
        let packet = control_packet(source.member.overlay6, peer.member.overlay6, &payload);
        let link = std::sync::Arc::clone(&peer.link);
        let mut state = link.lock();
        let sealed = state
            .tunnel
            .as_mut()
            .filter(|tunnel| tunnel.has_session())
            .map(|tunnel| tunnel.seal(&packet, &mut self.scratch));
        drop(state);
        let Some(Ok(Sealed::Data(length))) = sealed else {
            tracing::trace!(peer = %node.short(), at = %now.unix, "no session for a control packet");
            return None;
        };
        let bytes = self.scratch.get(..length).unwrap_or_default().to_vec();
        Some((link, bytes))
    }
}
