//! One peer: what the slow half remembers of it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ipnet::IpNet;

use podmesh_proto::candidate::EndpointRecord;
use podmesh_proto::certificate::Member;
use podmesh_proto::id::{NetworkId, NodeId};
use podmesh_proto::key::{PublicKey, SecretKey};
use podmesh_proto::probe::{Probe, ProbeKeys};
use podmesh_proto::replay::ReplayWindow;
use podmesh_proto::signed::Signed;
use podmesh_proto::time::Moment;

use crate::forwarding::PeerLink;
use crate::limits;
use crate::mutation::{self, Mutant};
use crate::path_id::{PathId, SocketId};
use crate::paths::Paths;
use crate::stored::ActivePath;

mod editions;
mod repeats;

use self::editions::Editions;
use self::repeats::Repeats;

/// A node that this one has or may have a tunnel to.
pub(crate) struct Peer {
    /// What both halves share.
    pub(crate) link: Arc<PeerLink>,
    /// Its membership.
    pub(crate) member: Arc<Member>,
    /// Seals probes to it.
    pub(crate) probes: ProbeKeys,
    /// Its last endpoint record.
    pub(crate) record: Option<(EndpointRecord, Signed<EndpointRecord>)>,
    /// How often that may change.
    pub(crate) editions: Editions,
    /// How it is reached; `None` while nobody wants to reach it.
    pub(crate) paths: Option<Box<Paths>>,
    /// Paths that worked in this node's last life.
    pub(crate) cached: Vec<(SocketId, SocketAddr)>,
    /// The path that carried data when this node's last life ended, until one carries it in this one.
    pub(crate) former: Option<ActivePath>,
    /// Packets that wait for a first path.
    pub(crate) waiting: VecDeque<(Moment, Vec<u8>)>,
    /// Where the last handshake went or came from.
    pub(crate) handshake_path: Option<PathId>,
    /// Whether the tunnel had a session when that was looked at last.
    pub(crate) session: bool,
    /// Its process is known to be a new one, and nothing has come out of the tunnel since.
    reborn: bool,
    /// The tunnel remembers handshakes of the peer's former life: an initiation that it refuses for them may
    /// be right.
    pub(crate) may_reset: bool,
    /// An initiation of the peer's was accepted since its process is known to be a new one.
    began: bool,
    /// With so many sessions to come the peer is told which of its lives this node listens to.
    pub(crate) naming: u8,
    /// The last initiations of the peer's that were accepted, and when.
    initiations: VecDeque<(Moment, [u8; 32])>,
    /// Since when a tunnel of other keys is being made, or has taken over.
    pub(crate) handover: Option<Moment>,
    /// What the fast half had counted at the last sample.
    pub(crate) sampled: Sampled,
    /// When data flowed last.
    pub(crate) busy: Option<Moment>,
    /// Whether there was any traffic since somebody looks after its paths.
    pub(crate) talked: bool,
    /// Bytes of the longest inner packet that its path carries, as far as is known.
    pub(crate) mtu: u16,
    /// When [`crate::timers`] wakes its paths.
    pub(crate) deadline: Option<Moment>,
    /// That its word is of a life that is over.
    pub(crate) showing: Repeats,
    /// The same, to others that may reach it.
    pub(crate) passing: Repeats,
    /// To it, this node's life is at least this one.
    pub(crate) raised: u64,
    /// That its probe named a later life of this node's.
    pub(crate) raising: Repeats,
    /// This node's present record, to which it answers with that of a later life if it believes one.
    pub(crate) asking: Repeats,
    counter: u64,
    incarnation: u64,
    seen: ReplayWindow,
}

/// Counters at some time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sampled {
    /// Packets sent.
    pub(crate) sent: u64,
    /// Packets received.
    pub(crate) received: u64,
    /// Messages received by the path in use.
    pub(crate) on_path: u64,
}

impl Sampled {
    /// Whether there was traffic between this and a later sample.
    pub(crate) fn talked_until(&self, later: &Self) -> bool {
        later.sent > self.sent || later.received > self.received
    }
}

/// What a sealed probe told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProbeNews {
    /// A replay, or of a former life of the peer.
    Stale,
    /// As expected.
    Fresh,
    /// The first of a new life of the peer.
    Restarted,
}

impl Peer {
    /// A peer that nobody wants to reach yet; `None` if its probe key is weak.
    #[must_use]
    pub(crate) fn new(
        link: Arc<PeerLink>,
        member: Arc<Member>,
        (secret, me): (&SecretKey, NodeId),
        network: NetworkId,
    ) -> Option<Self> {
        let probes = ProbeKeys::derive(secret, &me, &member.probe, &member.node, &network)?;
        Some(Self {
            link,
            member,
            probes,
            record: None,
            editions: Editions::default(),
            paths: None,
            cached: Vec::new(),
            former: None,
            waiting: VecDeque::new(),
            handshake_path: None,
            session: false,
            reborn: false,
            may_reset: false,
            began: false,
            naming: 0,
            initiations: VecDeque::new(),
            handover: None,
            sampled: Sampled::default(),
            busy: None,
            talked: false,
            mtu: limits::MIN_MTU,
            deadline: None,
            showing: Repeats::default(),
            passing: Repeats::default(),
            raised: 0,
            raising: Repeats::default(),
            asking: Repeats::default(),
            counter: 0,
            incarnation: 0,
            seen: ReplayWindow::default(),
        })
    }

    /// Takes over what was known of the node by the end of an earlier service, for which the shared
    /// link was another one. Numbers of probes go on, on both sides: the peer refuses those that it
    /// has had, and this node must not take those that it has had for new.
    pub(crate) fn goes_on(self, before: Self) -> Self {
        Self {
            record: before.record,
            editions: before.editions,
            cached: before.cached,
            former: before.former,
            reborn: before.reborn,
            may_reset: before.may_reset,
            began: before.began,
            initiations: before.initiations,
            mtu: before.mtu,
            showing: before.showing,
            passing: before.passing,
            raised: before.raised,
            raising: before.raising,
            asking: before.asking,
            counter: before.counter,
            incarnation: before.incarnation,
            seen: before.seen,
            ..self
        }
    }

    /// Ends the service of the node: what is known of it stays, its tunnel and paths go.
    pub(crate) fn retire(&mut self) {
        let path = self.link.lock().path;
        let active = path.map(|path| ActivePath {
            node: self.member.node,
            mtu: self.mtu,
            direct: path.is_direct(),
        });
        self.former = active.or(self.former);
        self.close();
        if let Some(paths) = self.paths.take() {
            self.cached = paths.last_good();
        }
        self.waiting.clear();
        self.handshake_path = None;
        self.session = false;
        self.handover = None;
        self.busy = None;
        self.deadline = None;
    }

    /// Its membership is another one from now on. What a former identity said and still waits is of no use.
    pub(crate) fn set_member(&mut self, member: Arc<Member>) {
        if member.identity() != self.member.identity() {
            self.editions.forget_held();
        }
        self.member = member;
    }

    /// Whether what is said to it goes somewhere.
    pub(crate) fn hears(&self) -> bool {
        self.session && self.link.lock().path.is_some()
    }

    /// The number of the next probe to this peer.
    pub(crate) fn next_probe(&mut self) -> u64 {
        self.counter = self.counter.saturating_add(1);
        self.counter
    }

    /// Judges the life and number of a probe that the peer has sealed.
    pub(crate) fn judge_probe(&mut self, probe: &Probe) -> ProbeNews {
        if probe.incarnation < self.incarnation && !mutation::is(Mutant::FormerLifeProbes) {
            return ProbeNews::Stale;
        }
        let restarted = self.is_new_life(probe.incarnation);
        if !self.seen.accept(probe.counter) {
            return ProbeNews::Stale;
        }
        if restarted {
            ProbeNews::Restarted
        } else {
            ProbeNews::Fresh
        }
    }

    /// The last life of the peer that is known.
    pub(crate) const fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Takes note of the peer's incarnation; whether it is another life than the one known.
    pub(crate) fn is_new_life(&mut self, incarnation: u64) -> bool {
        if incarnation <= self.incarnation {
            return false;
        }
        let first = self.incarnation == 0;
        self.incarnation = incarnation;
        self.seen = ReplayWindow::default();
        (self.reborn, self.may_reset, self.began) = (true, true, false);
        !first
    }

    /// Something came out of the tunnel; whether that is the first since the peer's process is known to be a
    /// new one. Of a session that the peer has begun the tunnel knows the time from then on; one that this
    /// node has begun tells it nothing, and each later handshake of the peer's would seem old to it.
    pub(crate) fn is_first_word(&mut self) -> bool {
        if self.began || mutation::is(Mutant::FormerLifeRemembered) {
            self.may_reset = false;
        }
        std::mem::take(&mut self.reborn)
    }

    /// Whether an initiation was accepted before. A tunnel that began anew doesn't know that.
    pub(crate) fn has_accepted(&self, ephemeral: [u8; 32]) -> bool {
        let known = |(_, key): &(Moment, [u8; 32])| *key == ephemeral;
        self.initiations.iter().any(known)
    }

    /// Whether an initiation that the tunnel takes for old may still be good, because the peer's clock
    /// went back with its restart: not while a later one may have overtaken it.
    pub(crate) fn may_reset(&self, now: Moment) -> bool {
        let recent = |(at, _): &(Moment, _)| now.since(*at) < limits::OVERTAKEN;
        self.may_reset && !self.initiations.back().is_some_and(recent)
    }

    /// Takes note of an initiation that was accepted.
    pub(crate) fn accepted(&mut self, ephemeral: [u8; 32], now: Moment) {
        if self.initiations.len() >= limits::KNOWN_INITIATIONS {
            self.initiations.pop_front();
        }
        self.initiations.push_back((now, ephemeral));
        self.began = true;
    }

    /// Keeps a packet for later; `false` if too many wait already.
    pub(crate) fn wait(&mut self, packet: Vec<u8>, now: Moment) -> bool {
        let room = self.waiting.len() < limits::MAX_WAITING;
        if room {
            self.waiting.push_back((now, packet));
        }
        room
    }

    /// The packets that wait.
    pub(crate) fn take_waiting(&mut self) -> VecDeque<(Moment, Vec<u8>)> {
        std::mem::take(&mut self.waiting)
    }

    /// Drops packets that have waited too long; gives their number.
    pub(crate) fn forget_waiting(&mut self, now: Moment) -> u64 {
        let mut dropped = 0;
        while self
            .waiting
            .front()
            .is_some_and(|(since, _)| now.since(*since) >= limits::MAX_WAIT)
        {
            self.waiting.pop_front();
            dropped += 1;
        }
        dropped
    }

    /// Bytes of the packets that wait.
    #[must_use]
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.waiting.iter().map(|(_, packet)| packet.len()).sum()
    }

    /// What the fast half has counted by now.
    #[must_use]
    pub(crate) fn counted(&self) -> Sampled {
        let counters = &self.link.counters;
        Sampled {
            sent: counters.sent_packets.load(Ordering::Relaxed),
            received: counters.received_packets.load(Ordering::Relaxed),
            on_path: counters.received_on_path.load(Ordering::Relaxed),
        }
    }

    /// Closes the tunnel for good.
    pub(crate) fn close(&self) {
        let mut state = self.link.lock();
        state.closed = true;
        state.end_tunnels();
        state.path = None;
    }
}

/// A stock `WireGuard` machine: it has no probes, no relay and no echoes, only an endpoint.
pub(crate) struct External {
    /// What both halves share.
    pub(crate) link: Arc<PeerLink>,
    /// Its name.
    pub(crate) name: podmesh_proto::id::Name,
    /// Its key.
    pub(crate) wireguard: PublicKey,
    /// Inner prefixes that are its own.
    pub(crate) prefixes: Vec<IpNet>,
    /// Where it listens, by the root's word.
    pub(crate) endpoint: Option<SocketAddr>,
}

impl External {
    /// Closes the tunnel for good.
    pub(crate) fn close(&self) {
        let mut state = self.link.lock();
        state.closed = true;
        state.end_tunnels();
        state.path = None;
    }
}
