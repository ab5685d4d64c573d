//! Forwarding of sealed datagrams between nodes, by key and never to an address that a node names.
//!
//! A session starts with the number and key that a member gets over its control connection. The
//! planet learns where the node is from authenticated frames alone, and unauthenticated bytes are
//! dropped without an answer.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use podmesh_proto::candidate::canonical;
use podmesh_proto::datagram::DatagramKind;
use podmesh_proto::id::{NodeId, RelayAddress};
use podmesh_proto::relayed::{RelayGrant, RelayHeader, RelayKind, RelaySeal};
use podmesh_proto::replay::ReplayWindow;
use podmesh_proto::time::Moment;

use crate::rules::bucket::Bucket;

/// How much one node may have relayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayQuota {
    /// Bytes a second in the long run.
    pub bytes_per_second: u64,
    /// Bytes at once.
    pub burst_bytes: u64,
}

impl Default for RelayQuota {
    /// 100 Mbit/s, and a quarter of a second of it at once.
    fn default() -> Self {
        Self {
            bytes_per_second: 12_500_000,
            burst_bytes: 3_125_000,
        }
    }
}

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
#[derive(Debug, Default)]
pub struct Relaying {
    sessions: BTreeMap<u32, Session>,
    /// The session by which each node is reached.
    receivers: BTreeMap<RelayAddress, u32>,
    quota: RelayQuota,
    counters: RelayCounters,
}

struct Session {
    node: NodeId,
    seal: RelaySeal,
    replay: ReplayWindow,
    highest: u64,
    /// Counter of the next frame down.
    next: u64,
    place: Option<Place>,
    bucket: Bucket,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({:?} at {:?})", self.node, self.place)
    }
}

impl Relaying {
    /// No sessions yet.
    #[must_use]
    pub fn new(quota: RelayQuota) -> Self {
        Self {
            quota,
            ..Self::default()
        }
    }

    /// Opens a session of `node`. Its former session goes on until it is closed, and stays the one by
    /// which the node is reached until the node speaks on the new one.
    pub fn open(&mut self, grant: &RelayGrant, node: NodeId, now: Moment) {
        let address = node.relay_address();
        let former = self
            .receivers
            .get(&address)
            .and_then(|id| self.sessions.get(id));
        let full = Bucket::new(self.quota.bytes_per_second, self.quota.burst_bytes, now);
        // A new session is no way to a new quota.
        let bucket = former.map_or(full, |former| former.bucket.clone());
        let session = Session {
            node,
            seal: RelaySeal::new(&grant.key),
            replay: ReplayWindow::default(),
            highest: 0,
            next: 0,
            place: None,
            bucket,
        };
        self.sessions.insert(grant.session, session);
        self.receivers.entry(address).or_insert(grant.session);
    }

    /// Closes a session: nothing of it is forwarded from here on.
    pub fn close(&mut self, session: u32) {
        let Some(closed) = self.sessions.remove(&session) else {
            return;
        };
        let address = closed.node.relay_address();
        if self.receivers.get(&address) == Some(&session) {
            let other = |(_, other): &(&u32, &Session)| other.node == closed.node;
            match self.sessions.iter().find(other).map(|(id, _)| *id) {
                Some(id) => self.receivers.insert(address, id),
                None => self.receivers.remove(&address),
            };
        }
    }

    /// Judges a datagram that came `from` somewhere. If it calls for a datagram, that is appended to
    /// `out` and the place to send it to is returned; it is never longer than the one that came.
    pub fn handle(
        &mut self,
        datagram: &[u8],
        from: impl Into<Place>,
        now: Moment,
        out: &mut Vec<u8>,
    ) -> Option<Place> {
        let mut from = from.into();
        from.endpoint = canonical(from.endpoint);
        let Some((header, sender)) = self.open_frame(datagram) else {
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
        if session.place.is_none() || header.counter >= session.highest {
            session.highest = header.counter;
            session.place = Some(from);
            self.receivers.insert(sender, header.session);
        }
        if header.kind == RelayKind::Observe {
            self.counters.observed += 1;
            session
                .seal
                .observed(header.session, header.counter, from.endpoint, out);
            return Some(from);
        }
        self.forward(&header, payload, now, out)
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

    fn open_frame(&self, datagram: &[u8]) -> Option<(RelayHeader, RelayAddress)> {
        let header = RelayHeader::parse(datagram).ok()?;
        let asks = matches!(header.kind, RelayKind::Up | RelayKind::Observe);
        let session = self.sessions.get(&header.session).filter(|_| asks)?;
        Some((header, session.node.relay_address()))
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
        let sender = self.sessions.get_mut(&header.session)?;
        if !sender.bucket.take(length, now) {
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

    use podmesh_proto::relayed::OVERHEAD;

    use super::*;

    const NODE_A: NodeId = NodeId([1; 32]);
    const NODE_B: NodeId = NodeId([2; 32]);
    const WIREGUARD: [u8; 64] = {
        let mut bytes = [9; 64];
        (bytes[0], bytes[1], bytes[2], bytes[3]) = (4, 0, 0, 0);
        bytes
    };

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
            let mut frame = Vec::new();
            self.seal()
                .observe(self.grant.session, self.counter, &mut frame);
            self.counter += 1;
            frame
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
        relaying.open(&grant, node, Moment::ZERO);
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
        let mut relaying = Relaying::default();
        let mut a = client(&mut relaying, 1, NODE_A, "198.51.100.1:1000");
        let mut b = client(&mut relaying, 2, NODE_B, "198.51.100.2:2000");
        let frame = a.up(NODE_B, &WIREGUARD);
        assert_eq!(hand(&mut relaying, &frame, a.at), None);
        assert_eq!(relaying.counters().dropped_unreachable, 1);

        let question = b.observe();
        let (to, answer) = hand(&mut relaying, &question, b.at).unwrap();
        assert_eq!((to, answer.len()), (b.at, question.len()));
        let header = RelayHeader::parse(&answer).unwrap();
        let payload = b.seal().open(&header, &answer).unwrap().to_vec();
        assert_eq!(RelaySeal::endpoint(&payload), Ok(b.at));

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
        let mut relaying = Relaying::default();
        let mut a = client(&mut relaying, 1, NODE_A, "198.51.100.1:1000");
        let mut b = client(&mut relaying, 2, NODE_B, "198.51.100.2:2000");
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
        let mut relaying = Relaying::default();
        let mut a = client(&mut relaying, 1, NODE_A, "198.51.100.1:1000");
        let mut b = client(&mut relaying, 2, NODE_B, "198.51.100.2:2000");
        let (old, late) = (b.observe(), b.observe());
        hand(&mut relaying, &old, b.at).unwrap();
        let moved: SocketAddr = "[2001:db8::2]:3000".parse().unwrap();
        let newest = b.observe();
        hand(&mut relaying, &newest, moved).unwrap();
        hand(&mut relaying, &late, b.at).unwrap();
        let frame = a.up(NODE_B, &WIREGUARD);
        assert_eq!(hand(&mut relaying, &frame, a.at).unwrap().0, moved);
    }

    #[test]
    fn a_new_session_takes_over_when_the_node_speaks_on_it() {
        let mut relaying = Relaying::default();
        let mut a = client(&mut relaying, 1, NODE_A, "198.51.100.1:1000");
        let mut b = client(&mut relaying, 2, NODE_B, "198.51.100.2:2000");
        let question = b.observe();
        hand(&mut relaying, &question, b.at).unwrap();
        let mut again = client(&mut relaying, 3, NODE_B, "198.51.100.2:2000");
        let session_of = |relaying: &mut Relaying, frame: Vec<u8>, at| {
            let (_, down) = hand(relaying, &frame, at)?;
            Some(RelayHeader::parse(&down).unwrap().session)
        };
        let frame = a.up(NODE_B, &WIREGUARD);
        assert_eq!(session_of(&mut relaying, frame, a.at), Some(2));
        let question = again.observe();
        hand(&mut relaying, &question, again.at).unwrap();
        let frame = a.up(NODE_B, &WIREGUARD);
        assert_eq!(session_of(&mut relaying, frame, a.at), Some(3));
        relaying.close(2);
        relaying.close(3);
        let frame = a.up(NODE_B, &WIREGUARD);
        assert_eq!(session_of(&mut relaying, frame, a.at), None);
        assert_eq!(relaying.sessions(), 1);
    }

    #[test]
    fn a_node_gets_its_quota_and_no_more() {
        let quota = RelayQuota {
            bytes_per_second: 6_400,
            burst_bytes: 640,
        };
        let mut relaying = Relaying::new(quota);
        let mut a = client(&mut relaying, 1, NODE_A, "198.51.100.1:1000");
        let mut b = client(&mut relaying, 2, NODE_B, "198.51.100.2:2000");
        let question = b.observe();
        hand(&mut relaying, &question, b.at).unwrap();
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
}
