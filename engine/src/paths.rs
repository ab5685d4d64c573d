//! How one peer is reached: candidates, hole punching, proof and choice of the path.
//!
//! [`Paths`] is told what happens (`handle_*`, `set_*`) and says what to do ([`Paths::poll_action`])
//! and when to wake it ([`Paths::poll_timeout`]). The rules:
//!
//! - A relay is used as soon as one is in common, while direct paths are looked for.
//! - A candidate that no NAT stands before is pinged at once. The outside of a NAT is pinged only at
//!   the instant that a planet names to both ends (`pairing`, `punching`): a Linux NAT that sees the
//!   peer's ping before its own node's gives that node another port, and both wait in vain for as
//!   long as either keeps on. Whoever sends something sealed over an unknown pair of endpoints has
//!   opened it himself and is pinged back at once.
//! - A path is chosen only after an echo came back over it through the tunnel (`echoing`), and left
//!   only for another that is proven, or when it is dead (`ranking`).
//! - A lost peer is knocked for at the endpoints that worked last, from the same port, for ever:
//!   that keeps this node's own NAT open, so that the peer can come back with every planet dead.
//!
//! What a peer can make this node send is bounded by [`ProbeBudget`], which all peers share.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use podmesh_proto::candidate::EndpointRecord;
use podmesh_proto::id::{NodeId, PlanetId};
use podmesh_proto::probe::ProbeBody;
use podmesh_proto::time::{Moment, Now};

use crate::path_id::{PathId, SocketId};

mod action;
mod budget;
mod driving;
mod echoing;
mod knocking;
mod mtu;
mod pairing;
mod probing;
mod punching;
mod ranking;
mod session;
mod traffic;
mod trial;
mod view;

pub use action::{PathAction, Switch, SwitchReason};
pub use budget::{Evidence, ProbeBudget};
pub use pairing::Local;
pub use traffic::TrafficSample;
pub use trial::TrialKind;
pub use view::TrialView;

use knocking::Knocks;
use pairing::Remote;
use punching::Rounds;
use session::Session;
use traffic::Traffic;
use trial::{Gate, Trial};

/// Path switches that are remembered.
const HISTORY: usize = 10;
/// Direct paths that worked last and are remembered.
const MAX_LAST_GOOD: usize = 4;
/// Candidate paths in all. A record has at most sixteen candidates, half of them in two pairs.
const MAX_TRIALS: usize = 48;

/// Everything about how one peer is reached.
#[derive(Debug)]
pub struct Paths {
    random: Random,
    started: Moment,
    local: Local,
    record: Option<EndpointRecord>,
    remote: Option<Remote>,
    trials: BTreeMap<PathId, Trial>,
    session: Session,
    rounds: Rounds,
    knocks: Knocks,
    traffic: Traffic,
    active: Option<PathId>,
    /// Since when the path in use is suspect.
    alarm: Option<Moment>,
    lost_at: Option<Moment>,
    last_good: Vec<PathId>,
    /// Bytes of the longest inner packet of the device.
    device_mtu: u16,
    history: VecDeque<Switch>,
    actions: VecDeque<PathAction>,
}

impl Paths {
    /// No path yet. `seed` makes the ids of probes and echoes.
    #[must_use]
    pub fn new(me: NodeId, peer: NodeId, seed: u64, now: Now) -> Self {
        Self {
            random: Random(seed),
            started: now.moment,
            local: Local::default(),
            record: None,
            remote: None,
            trials: BTreeMap::new(),
            session: Session::new(me < peer),
            rounds: Rounds::new(me < peer),
            knocks: Knocks::default(),
            traffic: Traffic::default(),
            active: None,
            alarm: None,
            lost_at: None,
            last_good: Vec::new(),
            device_mtu: mtu::LEAST,
            history: VecDeque::new(),
            actions: VecDeque::new(),
        }
    }

    /// Bytes of the longest inner packet that the device carries, at least 1,280.
    pub fn set_device_mtu(&mut self, mtu: u16) {
        self.device_mtu = mtu.max(mtu::LEAST);
        for trial in self.trials.values_mut() {
            trial.mtu.forget();
        }
    }

    /// How this node can be reached. Call it when the record with these endpoints has been handed
    /// to the planets.
    pub fn set_local(&mut self, local: Local, now: Now) {
        if local == self.local {
            return;
        }
        let moved = local.hosts != self.local.hosts && !self.local.hosts.is_empty();
        let seen = local.reflexive != self.local.reflexive;
        self.local = local;
        self.sort_record(now);
        if moved {
            self.doubt_everything(now);
        }
        if seen {
            self.rounds.news(now.moment);
        }
        self.drive(now);
    }

    /// What the peer says about where it can be reached. The caller has verified the record and
    /// taken out candidates inside the ranges of the network.
    pub fn set_remote(&mut self, record: &EndpointRecord, now: Now) {
        let (news, restarted) = match &self.record {
            None => (true, false),
            Some(known) => (
                known.candidates != record.candidates || known.incarnation != record.incarnation,
                known.incarnation != record.incarnation,
            ),
        };
        self.record = Some(record.clone());
        if restarted {
            self.session.doubt(now.moment);
        }
        if news {
            self.sort_record(now);
            self.begin_open(now);
            self.rounds.news(now.moment);
        }
        self.drive(now);
    }

    /// The planets that relay between the two and are connected to this node.
    pub fn set_relays(&mut self, planets: &[PlanetId], now: Now) {
        let relayed =
            |path: &PathId| matches!(path, PathId::Relay { planet } if !planets.contains(planet));
        self.trials.retain(|path, _| !relayed(path));
        let had = self.has_relay();
        for planet in planets {
            let path = PathId::Relay { planet: *planet };
            self.trials.entry(path).or_insert_with(|| {
                let mut trial = Trial::new(TrialKind::Relay, Gate::Open);
                trial.again = Some(now.moment);
                trial
            });
        }
        if self.has_relay() && !had {
            self.rounds.news(now.moment);
        }
        self.drive(now);
    }

    /// Direct paths that worked before this node's restart.
    pub fn set_cached(&mut self, cached: &[(SocketId, SocketAddr)], now: Now) {
        for (socket, endpoint) in cached.iter().take(MAX_LAST_GOOD) {
            let path = PathId::Direct {
                socket: *socket,
                endpoint: *endpoint,
            };
            if !self.last_good.contains(&path) {
                self.last_good.push(path);
            }
            let trial = self
                .trials
                .entry(path)
                .or_insert_with(|| Trial::new(TrialKind::Cached, Gate::Timed));
            trial.pings.burst(now.moment);
        }
        self.last_good.truncate(MAX_LAST_GOOD);
        self.session.resume();
        self.drive(now);
    }

    /// A planet's word when to punch.
    pub fn handle_punch(&mut self, attempt: u32, fire_in: std::time::Duration, now: Now) {
        self.punch(attempt, fire_in, now);
        self.drive(now);
    }

    /// A probe of the peer, opened and not seen before.
    pub fn handle_probe(&mut self, path: PathId, body: &ProbeBody, now: Now) {
        match *body {
            ProbeBody::Ping { transaction } => self.handle_ping(path, transaction, now),
            ProbeBody::Pong {
                transaction,
                observed,
            } => {
                self.handle_pong(path, transaction, observed, now);
            }
        }
        self.drive(now);
    }

    /// A handshake or data of the peer that the tunnel has authenticated; `handle_traffic` counts
    /// data anyway, so that only handshakes need this.
    pub fn handle_heard(&mut self, path: PathId, now: Now) {
        self.heard(path, now);
        self.drive(now);
    }

    /// The peer has got a handshake message that went out over a path some time ago, and answers from there: as
    /// good as the answer to a ping. What follows from that comes right after.
    pub fn handle_reached(&mut self, (path, since): (PathId, Moment), now: Now) {
        self.reached(path, since, now.moment);
    }

    /// The peer has the session that it has begun: its first message came over `path`.
    pub fn handle_confirmed(&mut self, path: PathId, now: Now) {
        self.confirmed(path, now.moment);
        self.drive(now);
    }

    /// An echo request of `length` bytes came through the tunnel over `path`.
    pub fn handle_echo_request(&mut self, path: PathId, id: u64, length: u16, now: Now) {
        let evidence = self.evidence(&path, now.moment);
        self.push(PathAction::SendEcho {
            path,
            id,
            reply: true,
            length,
            evidence,
        });
        self.heard(path, now);
        self.drive(now);
    }

    /// The answer to an echo came through the tunnel over `path`.
    pub fn handle_echo_reply(&mut self, path: PathId, id: u64, now: Now) {
        self.echo_answered(path, id, now);
        self.drive(now);
    }

    /// The answer to a probe of the path's MTU came through the tunnel.
    pub fn handle_size_reply(&mut self, id: u64, now: Now) {
        let most = self.device_mtu;
        for trial in self.trials.values_mut() {
            trial.mtu.answer(id, most, now.moment);
        }
        self.drive(now);
    }

    /// What went to and came from the peer since the last call; wanted each half second or more
    /// often while there is traffic.
    pub fn handle_traffic(&mut self, sample: &TrafficSample<'_>, now: Now) {
        self.take_sample(sample, now);
        self.drive(now);
    }

    /// The peer has answered a handshake of this node's, whose session comes right after.
    pub fn handle_answered(&mut self, now: Now) {
        self.session.answered = Some(now.moment);
    }

    /// Whether the tunnel has a session; call it after each handshake, too.
    pub fn handle_session(&mut self, established: bool, now: Now) {
        self.session_changed(established, now);
        self.drive(now);
    }

    /// The peer's process is a new one, so its tunnel has forgotten this node's session.
    pub fn handle_restart(&mut self, now: Now) {
        self.session.doubt(now.moment);
        self.drive(now);
    }

    /// The system refused to send over this path.
    pub fn handle_unreachable(&mut self, path: PathId, now: Now) {
        self.refused(path, now);
        self.drive(now);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        self.drive(now);
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<PathAction> {
        self.actions.pop_front()
    }

    /// When to call `handle_timeout` at the latest.
    #[must_use]
    pub fn poll_timeout(&self, now: Now) -> Option<Moment> {
        self.deadline(now.moment)
    }

    fn push(&mut self, action: PathAction) {
        self.actions.push_back(action);
    }

    fn has_relay(&self) -> bool {
        self.trials.keys().any(|path| !path.is_direct())
    }

    /// Whether data flows directly.
    fn is_direct(&self) -> bool {
        self.active.is_some_and(|path| path.is_direct())
    }
}

/// Ids of probes and echoes (SplitMix64, Steele, Lea and Flood 2014). They travel sealed, so nobody
/// but the peer sees them.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}
