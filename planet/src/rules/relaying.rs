//! Forwarding of sealed datagrams between nodes, by key and never to an address that a node names.
//!
//! A session starts with the number and key that a member gets over its control connection. The
//! planet learns where the node is from authenticated frames alone, and unauthenticated bytes are
//! dropped without an answer. A frame may bear a false source, so a new place has to prove itself before
//! anything is relayed to it: the node repeats from there what it was told there. Until then the old
//! place stays. A node that has never shown that it can do that is believed to move to another port of
//! the address that its control connection has proven, and nowhere else.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use podmesh_proto::candidate::canonical;
use podmesh_proto::datagram::DatagramKind;
use podmesh_proto::id::{NodeId, RelayAddress};
use podmesh_proto::key::digest;
use podmesh_proto::relayed::{
    FORMER_OBSERVE_BODY, OBSERVE_BODY, OVERHEAD, RelayGrant, RelayHeader, RelayKind, RelaySeal,
    Token,
};
use podmesh_proto::replay::ReplayWindow;
use podmesh_proto::time::Moment;

use crate::rules::bucket::Bucket;
use crate::rules::relay_quota::Quotas;
pub use crate::rules::relay_quota::RelayQuota;

/// Answers a second that a session gets, and at once: a few times what a node asks for.
const ANSWERS: (u64, u64) = (20, 20);
/// Seconds that a token is good for, at least; at most twice as long.
const TOKEN_LIFE: u64 = 30;

/// What became of frames, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RelayCounters {
    /// Frames passed on.
    pub forwarded: u64,
    /// Bytes of their payload.
    pub forwarded_bytes: u64,
    /// Questions answered.
    pub observed: u64,
    /// Not sealed by a session's key, or no relay frame at all.
    pub dropped_unproven: u64,
    /// Seen before.
    pub dropped_replay: u64,
    /// Over the sender's quota.
    pub dropped_quota: u64,
    /// To a node without a session, or one that has not shown yet where it is.
    pub dropped_unreachable: u64,
    /// Payload that is neither WireGuard nor a probe.
    pub dropped_payload: u64,
}

/// Where a node is, and which of the planet's own addresses it talks to: a NAT in front of the node
/// lets answers from no other address in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The node's endpoint, as the planet sees it.
    pub endpoint: SocketAddr,
    /// The planet's address, if the socket tells.
    pub local: Option<IpAddr>,
}

impl From<SocketAddr> for Place {
    fn from(endpoint: SocketAddr) -> Self {
        Self {
            endpoint,
            local: None,
        }
    }
}

/// All sessions of one planet.
#[derive(Debug)]
pub struct Relaying {
    sessions: BTreeMap<u32, Session>,
    /// The session by which each node is reached.
    receivers: BTreeMap<RelayAddress, u32>,
    quotas: Quotas,
    counters: RelayCounters,
    /// Tokens are made of it.
    secret: [u8; 32],
    /// Asks a new place to prove itself, beside what was forwarded.
    question: Option<(Place, Vec<u8>)>,
}

struct Session {
    node: NodeId,
    seal: RelaySeal,
    replay: ReplayWindow,
    highest: u64,
    /// Counter of the next frame down.
    next: u64,
    place: Option<Place>,
    /// Address of the node's control connection.
    home: IpAddr,
    /// Whether the node has shown that it repeats tokens.
    proves: bool,
    answers: Bucket,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({:?} at {:?})", self.node, self.place)
    }
}

impl Relaying {
    /// No sessions yet. `secret` must be fresh random bytes at each start.
    #[must_use]
    pub fn new(quota: RelayQuota, secret: [u8; 32]) -> Self {
        Self {
            sessions: BTreeMap::new(),
            receivers: BTreeMap::new(),
            quotas: Quotas::new(quota),
            counters: RelayCounters::default(),
            secret,
            question: None,
        }
    }

    /// Opens a session of `node`, whose control connection comes from `home`. Its former session goes on
    /// until it is closed or a third one comes, and stays the one by which the node is reached until the
    /// node has proven where it is on the new one.
    pub fn open(&mut self, grant: &RelayGrant, (node, home): (NodeId, IpAddr), now: Moment) {
        let address = node.relay_address();
        let (rate, burst) = ANSWERS;
        let session = Session {
            node,
            seal: RelaySeal::new(&grant.key),
            replay: ReplayWindow::default(),
            highest: 0,
            next: 0,
            place: None,
            home: home.to_canonical(),
            proves: false,
            answers: Bucket::new(rate, burst, now),
        };
        self.sessions.insert(grant.session, session);
        let kept = *self.receivers.entry(address).or_insert(grant.session);
        if let Some(gone) = self.quotas.open(node, grant.session, Some(kept), now) {
            self.sessions.remove(&gone);
        }
    }

    /// Closes a session: nothing of it is forwarded from here on.
    pub fn close(&mut self, session: u32, now: Moment) {
        let Some(closed) = self.sessions.remove(&session) else {
            return;
        };
        self.quotas.close(&closed.node, session, now);
        let address = closed.node.relay_address();
        if self.receivers.get(&address) == Some(&session) {
            match self.quotas.newest(&closed.node) {
                Some(id) => self.receivers.insert(address, id),
                None => self.receivers.remove(&address),
            };
        }
    }

    /// Judges a datagram that came `from` somewhere. If it calls for a datagram, that is appended to
    /// `out` and the place to send it to is returned; it is never longer than the one that came.
    /// [`Self::take_question`] may have another one.
    pub fn handle(
        &mut self,
        datagram: &[u8],
        from: impl Into<Place>,
        now: Moment,
        out: &mut Vec<u8>,
    ) -> Option<Place> {
        let mut from = from.into();
        from.endpoint = canonical(from.endpoint);
        self.question = None;
        let Some(header) = self.open_frame(datagram) else {
            self.counters.dropped_unproven += 1;
            return None;
        };
        let session = self.sessions.get_mut(&header.session)?;
        let Ok(payload) = session.seal.open(&header, datagram) else {
            self.counters.dropped_unproven += 1;
            return None;
        };
        if !session.replay.accept(header.counter) {
            self.counters.dropped_replay += 1;
            return None;
        }
        let newest = session.place.is_none() || header.counter >= session.highest;
        if newest {
            session.highest = header.counter;
        }
        if header.kind == RelayKind::Observe {
            return self.observe(&header, payload, (from, newest, now), out);
        }
        if newest {
            self.look_at_place(&header, datagram.len(), from, now);
        }
        self.forward(&header, payload, now, out)
    }

    /// A frame that asks a new place to prove itself, and that place: shorter than the datagram that was
    /// handled last, and to be sent besides what that called for.
    pub fn take_question(&mut self) -> Option<(Place, Vec<u8>)> {
        self.question.take()
    }

    /// Answers where the node is, if the answer is no longer than the question.
    fn observe(
        &mut self,
        header: &RelayHeader,
        payload: &[u8],
        (from, newest, now): (Place, bool, Moment),
        out: &mut Vec<u8>,
    ) -> Option<Place> {
        let wanted = self.token(header.session, from, now);
        let good = [wanted, self.former_token(header.session, from, now)];
        let session = self.sessions.get_mut(&header.session)?;
        if payload.len() < FORMER_OBSERVE_BODY {
            self.counters.dropped_payload += 1;
            return None;
        }
        let repeated = RelaySeal::token(payload);
        session.proves |= repeated.is_some();
        let proven = match repeated {
            Some(token) => session.place == Some(from) || good.contains(&token),
            None => !session.proves && session.home == from.endpoint.ip(),
        };
        if newest && proven {
            session.place = Some(from);
            let address = session.node.relay_address();
            self.receivers.insert(address, header.session);
        }
        if !session.answers.take(1, now) {
            self.counters.dropped_quota += 1;
            return None;
        }
        self.counters.observed += 1;
        let (id, counter, endpoint) = (header.session, header.counter, from.endpoint);
        if payload.len() < OBSERVE_BODY {
            session.seal.formerly_observed(id, counter, endpoint, out);
        } else {
            let token = if proven { Token::default() } else { wanted };
            session.seal.observed(id, counter, (endpoint, token), out);
        }
        Some(from)
    }

    /// A node that speaks from a new place is asked to prove it.
    fn look_at_place(&mut self, header: &RelayHeader, length: usize, from: Place, now: Moment) {
        let Some(session) = self.sessions.get_mut(&header.session) else {
            return;
        };
        let trusted = !session.proves && session.home == from.endpoint.ip();
        if session.place == Some(from) || trusted {
            session.place = Some(from);
            let address = session.node.relay_address();
            self.receivers.insert(address, header.session);
            return;
        }
        if length < OVERHEAD + OBSERVE_BODY || !session.answers.take(1, now) {
            return;
        }
        let token = self.token(header.session, from, now);
        if let Some(session) = self.sessions.get(&header.session) {
            let (id, counter, mut question) = (header.session, header.counter, Vec::new());
            let told = (from.endpoint, token);
            session.seal.observed(id, counter, told, &mut question);
            self.question = Some((from, question));
        }
    }

    /// What only who receives at `place` can know, for this session and for a while.
    fn token(&self, session: u32, place: Place, now: Moment) -> Token {
        self.token_of(session, place, now.since_start().as_secs() / TOKEN_LIFE)
    }

    fn former_token(&self, session: u32, place: Place, now: Moment) -> Token {
        let present = now.since_start().as_secs() / TOKEN_LIFE;
        self.token_of(session, place, present.saturating_sub(1))
    }

    fn token_of(&self, session: u32, place: Place, life: u64) -> Token {
        let place = format!("{} {:?}", place.endpoint, place.local);
        let bytes = [
            self.secret.as_slice(),
            &session.to_le_bytes(),
            &life.to_le_bytes(),
            place.as_bytes(),
        ];
        let hash = digest("podmesh relay place v1", &bytes.concat());
        let mut token = Token::default();
        token.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
        token
    }

    /// What became of all frames so far.
    #[must_use]
    pub fn counters(&self) -> RelayCounters {
        self.counters
    }

    /// Open sessions.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    fn open_frame(&self, datagram: &[u8]) -> Option<RelayHeader> {
        let header = RelayHeader::parse(datagram).ok()?;
        let asks = matches!(header.kind, RelayKind::Up | RelayKind::Observe);
        self.sessions.get(&header.session).filter(|_| asks)?;
        Some(header)
    }

    fn forward(
        &mut self,
        header: &RelayHeader,
        payload: &[u8],
        now: Moment,
        out: &mut Vec<u8>,
    ) -> Option<Place> {
        let sealed = matches!(
            DatagramKind::of(payload),
            DatagramKind::WireGuardHandshake | DatagramKind::WireGuardData | DatagramKind::Probe
        );
        if !sealed {
            self.counters.dropped_payload += 1;
            return None;
        }
        let length = u64::try_from(payload.len()).unwrap_or(u64::MAX);
        let sender = self.sessions.get(&header.session)?;
        if !self.quotas.take(&sender.node, length, now) {
            self.counters.dropped_quota += 1;
            return None;
        }
        let peer = sender.node.relay_address();
        let receiver = self.receivers.get(&header.peer).copied();
        let reachable = receiver.and_then(|id| {
            let receiver = self.sessions.get_mut(&id)?;
            let place = receiver.place?;
            Some((id, place, receiver))
        });
        let Some((session, place, receiver)) = reachable else {
            self.counters.dropped_unreachable += 1;
            return None;
        };
        let down = RelayHeader {
            kind: RelayKind::Down,
            session,
            counter: receiver.next,
            peer,
        };
        receiver.next = receiver.next.saturating_add(1);
        receiver.seal.seal(&down, payload, out);
        self.counters.forwarded += 1;
        self.counters.forwarded_bytes = self.counters.forwarded_bytes.saturating_add(length);
        Some(place)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// No data socket of these tests is there.
    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));
    const NODE_A: NodeId = NodeId([1; 32]);
    const NODE_B: NodeId = NodeId([2; 32]);
    const WIREGUARD: [u8; 64] = {
        let mut bytes = [9; 64];
        (bytes[0], bytes[1], bytes[2], bytes[3]) = (4, 0, 0, 0);
        bytes
    };

    fn relaying() -> Relaying {
        Relaying::new(RelayQuota::default(), [7; 32])
    }

    struct Client {
        grant: RelayGrant,
        node: NodeId,
        counter: u64,
        at: SocketAddr,
    }

    impl Client {
        fn seal(&self) -> RelaySeal {
            RelaySeal::new(&self.grant.key)
        }

        fn observe(&mut self) -> Vec<u8> {
            self.repeat(Token::default())
        }

        fn repeat(&mut self, token: Token) -> Vec<u8> {
            let mut frame = Vec::new();
            self.seal()
                .observe(self.grant.session, self.counter, token, &mut frame);
            self.counter += 1;
            frame
        }

        /// What an answer says.
        fn read(&self, answer: &[u8]) -> (SocketAddr, Token) {
            let header = RelayHeader::parse(answer).unwrap();
            let seal = self.seal();
            let payload = seal.open(&header, answer).unwrap();
            let token = RelaySeal::token(payload).unwrap_or_default();
            (RelaySeal::endpoint(payload).unwrap(), token)
        }

        /// Asks from where it is, and proves that.
        fn settle(&mut self, relaying: &mut Relaying) {
            let question = self.observe();
            let (_, answer) = hand(relaying, &question, self.at).unwrap();
            let (_, token) = self.read(&answer);
            let proof = self.repeat(token);
            let (_, answer) = hand(relaying, &proof, self.at).unwrap();
            assert_eq!(self.read(&answer), (self.at, Token::default()));
        }

        fn up(&mut self, to: NodeId, payload: &[u8]) -> Vec<u8> {
            let header = RelayHeader {
                kind: RelayKind::Up,
                session: self.grant.session,
                counter: self.counter,
                peer: to.relay_address(),
            };
            self.counter += 1;
            let mut frame = Vec::new();
            self.seal().seal(&header, payload, &mut frame);
            frame
        }
    }

    fn client(relaying: &mut Relaying, session: u32, node: NodeId, at: &str) -> Client {
        let key = [u8::try_from(session).unwrap(); 32];
        let grant = RelayGrant { session, key };
        relaying.open(&grant, (node, HOME), Moment::ZERO);
        Client {
            grant,
            node,
            counter: 0,
            at: at.parse().unwrap(),
        }
    }

    fn hand(
        relaying: &mut Relaying,
        frame: &[u8],
        from: SocketAddr,
    ) -> Option<(SocketAddr, Vec<u8>)> {
        let mut out = Vec::new();
        let to = relaying.handle(frame, from, Moment::ZERO, &mut out);
        assert_eq!(to.is_some(), !out.is_empty());
        assert!(out.len() <= frame.len(), "never more out than in");
        to.map(|to| (to.endpoint, out))
    }

    #[test]
    fn frames_go_from_node_to_node_once_both_have_shown_where_they_are() {
        let mut relaying = relaying();
        let mut a = client(&mut relaying, 1, NODE_A, "198.51.100.1:1000");
        let mut b = client(&mut relaying, 2, NODE_B, "198.51.100.2:2000");
        let frame = a.up(NODE_B, &WIREGUARD);
        assert_eq!(hand(&mut relaying, &frame, a.at), None);
        assert_eq!(relaying.counters().dropped_unreachable, 1);

        let question = b.observe();
        let (to, answer) = hand(&mut relaying, &question, b.at).unwrap();
        assert_eq!((to, answer.len()), (b.at, question.len()));
        assert_eq!(b.read(&answer).0, b.at);
        b.settle(&mut relaying);

        let frame = a.up(NODE_B, &WIREGUARD);
        let (to, down) = hand(&mut relaying, &frame, a.at).unwrap();
        assert_eq!((to, down.len()), (b.at, WIREGUARD.len() + OVERHEAD));
        let header = RelayHeader::parse(&down).unwrap();
        assert_eq!(
            (header.kind, header.peer),
            (RelayKind::Down, a.node.relay_address())
        );
        assert_eq!(b.seal().open(&header, &down).unwrap(), WIREGUARD);
    }

    #[test]
    fn replays_forgeries_and_strange_payloads_go_nowhere() {
        let mut relaying = relaying();
        let mut a = client(&mut relaying, 1, NODE_A, "198.51.100.1:1000");
        let mut b = client(&mut relaying, 2, NODE_B, "198.51.100.2:2000");
        a.settle(&mut relaying);
        b.settle(&mut relaying);
        let question = b.observe();
        hand(&mut relaying, &question, b.at).unwrap();
        let frame = a.up(NODE_B, &WIREGUARD);
        assert!(hand(&mut relaying, &frame, a.at).is_some());
        let thief: SocketAddr = "203.0.113.9:9".parse().unwrap();
        for _ in 0..1_000 {
            assert_eq!(hand(&mut relaying, &frame, thief), None);
            assert_eq!(hand(&mut relaying, &question, thief), None);
        }
        assert_eq!(relaying.counters().dropped_replay, 2_000);
        for bit in 0..frame.len() * 8 {
            let mut forged = a.up(NODE_B, &WIREGUARD);
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(hand(&mut relaying, &forged, thief), None, "bit {bit}");
        }
        let quic = a.up(NODE_B, &[0xc3; 40]);
        assert_eq!(hand(&mut relaying, &quic, a.at), None);
        let frame = b.up(NODE_A, &WIREGUARD);
        assert_eq!(
            hand(&mut relaying, &frame, b.at).unwrap().0,
            a.at,
            "nobody moved"
        );
    }

    #[test]
    fn a_node_that_moves_is_followed_and_late_frames_do_not_bring_it_back() {
        let mut relaying = relaying();
        let mut a = client(&mut relaying, 1, NODE_A, "198.51.100.1:1000");
        let mut b = client(&mut relaying, 2, NODE_B, "198.51.100.2:2000");
        let (old, late) = (b.observe(), b.observe());
        hand(&mut relaying, &old, b.at).unwrap();
        let moved: SocketAddr = "[2001:db8::2]:3000".parse().unwrap();
        b.settle(&mut relaying);
        let home = std::mem::replace(&mut b.at, moved);
        b.settle(&mut relaying);
        hand(&mut relaying, &late, home).unwrap();
        let frame = a.up(NODE_B, &WIREGUARD);
        assert_eq!(hand(&mut relaying, &frame, a.at).unwrap().0, moved);
    }

    #[test]
    fn a_new_session_takes_over_when_the_node_speaks_on_it() {
        let mut relaying = relaying();
        let mut a = client(&mut relaying, 1, NODE_A, "198.51.100.1:1000");
        let mut b = client(&mut relaying, 2, NODE_B, "198.51.100.2:2000");
        b.settle(&mut relaying);
        let mut again = client(&mut relaying, 3, NODE_B, "198.51.100.2:2000");
        let session_of = |relaying: &mut Relaying, frame: Vec<u8>, at| {
            let (_, down) = hand(relaying, &frame, at)?;
            Some(RelayHeader::parse(&down).unwrap().session)
        };
        let frame = a.up(NODE_B, &WIREGUARD);
        assert_eq!(session_of(&mut relaying, frame, a.at), Some(2));
        again.settle(&mut relaying);
        let frame = a.up(NODE_B, &WIREGUARD);
        assert_eq!(session_of(&mut relaying, frame, a.at), Some(3));
        relaying.close(2, Moment::ZERO);
        relaying.close(3, Moment::ZERO);
        let frame = a.up(NODE_B, &WIREGUARD);
        assert_eq!(session_of(&mut relaying, frame, a.at), None);
        assert_eq!(relaying.sessions(), 1);
    }

    #[test]
    fn a_node_gets_its_quota_and_no_more() {
        let quota = RelayQuota {
            bytes_per_second: 6_400,
            burst_bytes: 640,
            ..RelayQuota::default()
        };
        let mut relaying = Relaying::new(quota, [7; 32]);
        let mut a = client(&mut relaying, 1, NODE_A, "198.51.100.1:1000");
        let mut b = client(&mut relaying, 2, NODE_B, "198.51.100.2:2000");
        b.settle(&mut relaying);
        let mut out = Vec::with_capacity(2_000);
        let mut forwarded = 0;
        for millisecond in 0..10_000 {
            let now = Moment::from_start(Duration::from_millis(millisecond));
            let frame = a.up(NODE_B, &WIREGUARD);
            out.clear();
            forwarded += u64::from(relaying.handle(&frame, a.at, now, &mut out).is_some());
        }
        assert!((1_000..=1_011).contains(&forwarded), "{forwarded}");
        assert_eq!(relaying.counters().dropped_quota, 10_000 - forwarded);
    }

    #[test]
    fn nothing_is_relayed_to_a_place_that_did_not_prove_itself() {
        let mut relaying = relaying();
        let mut a = client(&mut relaying, 1, NODE_A, "198.51.100.1:1000");
        let mut b = client(&mut relaying, 2, NODE_B, "198.51.100.2:2000");
        a.settle(&mut relaying);
        let victim: SocketAddr = "203.0.113.9:9".parse().unwrap();
        let reached = |relaying: &mut Relaying, a: &mut Client| {
            let frame = a.up(NODE_B, &WIREGUARD);
            hand(relaying, &frame, a.at).map(|(to, _)| to)
        };
        // With a false source, of all kinds, before and after it has a place of its own.
        for settled in [false, true] {
            if settled {
                b.settle(&mut relaying);
            }
            let own = settled.then_some(b.at);
            let (question, frame) = (b.observe(), b.up(NODE_A, &WIREGUARD));
            hand(&mut relaying, &question, victim);
            hand(&mut relaying, &frame, victim);
            let (to, question) = relaying.take_question().unwrap();
            assert_eq!(to.endpoint, victim);
            assert!(question.len() <= frame.len());
            assert_eq!(reached(&mut relaying, &mut a), own);
            for token in [[1; 8], [0xff; 8]] {
                let guess = b.repeat(token);
                hand(&mut relaying, &guess, victim);
                assert_eq!(reached(&mut relaying, &mut a), own);
            }
            // What it was told at its own place is worth nothing elsewhere.
            let question = b.observe();
            let elsewhere: SocketAddr = "198.51.100.2:2001".parse().unwrap();
            let (_, answer) = hand(&mut relaying, &question, elsewhere).unwrap();
            let proof = b.repeat(b.read(&answer).1);
            hand(&mut relaying, &proof, victim);
            assert_eq!(reached(&mut relaying, &mut a), own);
        }
    }

    #[test]
    fn a_node_that_speaks_from_a_new_place_is_asked_there_at_once() {
        let mut relaying = relaying();
        let mut a = client(&mut relaying, 1, NODE_A, "198.51.100.1:1000");
        let mut b = client(&mut relaying, 2, NODE_B, "198.51.100.2:2000");
        a.settle(&mut relaying);
        b.settle(&mut relaying);
        let moved: SocketAddr = "198.51.100.2:2999".parse().unwrap();
        let frame = b.up(NODE_A, &WIREGUARD);
        assert_eq!(
            hand(&mut relaying, &frame, moved).unwrap().0,
            a.at,
            "goes on"
        );
        let (to, question) = relaying.take_question().unwrap();
        assert_eq!(to.endpoint, moved);
        let proof = b.repeat(b.read(&question).1);
        hand(&mut relaying, &proof, moved).unwrap();
        let frame = a.up(NODE_B, &WIREGUARD);
        assert_eq!(hand(&mut relaying, &frame, a.at).unwrap().0, moved);
        // Who never answers is not asked with every frame.
        let frames: Vec<Vec<u8>> = (0..1_000).map(|_| b.up(NODE_A, &WIREGUARD)).collect();
        let asked = frames.iter().filter(|frame| {
            hand(&mut relaying, frame, "203.0.113.9:9".parse().unwrap());
            relaying.take_question().is_some()
        });
        assert!(asked.count() <= 20);
    }

    #[test]
    fn a_node_of_version_1_moves_within_the_address_that_its_connection_has_proven() {
        let mut relaying = relaying();
        let mut a = client(&mut relaying, 1, NODE_A, "198.51.100.1:1000");
        let mut b = client(&mut relaying, 2, NODE_B, "192.0.2.7:2000");
        a.settle(&mut relaying);
        let former = |b: &mut Client| {
            let header = RelayHeader {
                kind: RelayKind::Observe,
                session: b.grant.session,
                counter: b.counter,
                peer: RelayAddress([0; 8]),
            };
            b.counter += 1;
            let mut frame = Vec::new();
            b.seal()
                .seal(&header, &[0; FORMER_OBSERVE_BODY], &mut frame);
            frame
        };
        let reached = |relaying: &mut Relaying, a: &mut Client| {
            let frame = a.up(NODE_B, &WIREGUARD);
            hand(relaying, &frame, a.at).map(|(to, _)| to)
        };
        let question = former(&mut b);
        let (_, answer) = hand(&mut relaying, &question, b.at).unwrap();
        assert_eq!(answer.len(), question.len());
        assert_eq!(reached(&mut relaying, &mut a), Some(b.at));
        let moved: SocketAddr = "192.0.2.7:2001".parse().unwrap();
        let frame = b.up(NODE_A, &WIREGUARD);
        hand(&mut relaying, &frame, moved);
        assert_eq!(reached(&mut relaying, &mut a), Some(moved));
        for frame in [former(&mut b), b.up(NODE_A, &WIREGUARD)] {
            hand(&mut relaying, &frame, "203.0.113.9:9".parse().unwrap());
            assert_eq!(reached(&mut relaying, &mut a), Some(moved));
        }
    }

    #[test]
    fn no_answer_is_longer_than_what_it_answers() {
        for length in 0..=128 {
            for kind in [RelayKind::Observe, RelayKind::Up] {
                let mut relaying = relaying();
                let mut a = client(&mut relaying, 1, NODE_A, "198.51.100.1:1000");
                let mut b = client(&mut relaying, 2, NODE_B, "198.51.100.2:2000");
                b.settle(&mut relaying);
                let header = RelayHeader {
                    kind,
                    session: 1,
                    counter: a.counter,
                    peer: NODE_B.relay_address(),
                };
                a.counter += 1;
                let mut payload = vec![0; length];
                payload
                    .iter_mut()
                    .zip([4, 0, 0, 0])
                    .for_each(|(to, from)| *to = from);
                let mut frame = Vec::new();
                a.seal().seal(&header, &payload, &mut frame);
                hand(&mut relaying, &frame, a.at);
                let question = relaying.take_question();
                assert!(question.is_none_or(|(_, question)| question.len() <= frame.len()));
            }
        }
    }

    #[test]
    fn a_node_has_two_sessions_and_one_quota_however_often_it_comes() {
        let quota = RelayQuota {
            bytes_per_second: 6_400,
            burst_bytes: 640,
            ..RelayQuota::default()
        };
        let mut relaying = Relaying::new(quota, [7; 32]);
        let mut b = client(&mut relaying, 200, NODE_B, "198.51.100.2:2000");
        b.settle(&mut relaying);
        let mut sessions: Vec<Client> = Vec::new();
        let (mut out, mut forwarded) = (Vec::new(), 0);
        for second in 0..20 {
            let at = "198.51.100.1:1000";
            sessions.push(client(&mut relaying, second + 1, NODE_A, at));
            assert!(relaying.sessions() <= 3);
            for step in 0..100 {
                let millisecond = u64::from(second) * 1_000 + step * 10;
                let now = Moment::from_start(Duration::from_millis(millisecond));
                for session in &mut sessions {
                    let frame = session.up(NODE_B, &WIREGUARD);
                    out.clear();
                    forwarded +=
                        u64::from(relaying.handle(&frame, session.at, now, &mut out).is_some());
                }
            }
        }
        assert!(forwarded <= 10 + 20 * 100, "{forwarded}");
        assert!(forwarded >= 1_900, "{forwarded}");
    }
}
