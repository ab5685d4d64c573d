//! What a planet decides, without sockets, disk or clock.
//!
//! A [`Planet`] is told [`Input`]s with the time, and gives [`Action`]s. The simulator plays whole
//! networks with it; `planet run` puts sockets and a store around it.
//!
//! **The one rule for whoever drives it:** actions are carried out in the order in which they come. An
//! [`Action::Commit`] is answered by [`Planet::committed`] when it is durable, or can't be; until then no
//! other one comes, and nothing that follows from it. So no receipt leaves a planet that could have
//! forgotten it after a power cut, and the disk may take its time while others are served.
//!
//! What a planet can't do, whatever it decides: read traffic, make a member (the token's key signs
//! certificates, not the planet's) or move an address to another key. Nodes check all of that.

pub mod books;
pub mod bucket;
pub mod directory;
pub mod introductions;
pub mod leases;
pub mod numbers;
pub mod records;
pub mod relaying;
pub mod view;

mod admission;
mod allowance;
mod claims;
mod clocks;
mod commits;
mod driving;
mod externals;
mod former_leases;
mod greeting;
mod random;
mod reconciling;
mod refusal;
mod relay_quota;
mod relearning;
mod renewals;
mod requests;
mod showing;
mod statements;
mod telling;
mod twins;

pub use crate::rules::driving::{Action, ConnectionId, Event, Input};

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use podmesh_proto::candidate::EndpointRecord;
use podmesh_proto::id::{Name, NodeId, PlanetId};
use podmesh_proto::key::SigningKey;
use podmesh_proto::planet_api::{DirectoryCursor, PROTOCOL, PlanetMessage};
use podmesh_proto::signed::Signed;
use podmesh_proto::time::{Moment, Now, UnixSeconds};

use crate::rules::books::Books;
use crate::rules::directory::{Directory, Topic};
use crate::rules::introductions::Introductions;
use crate::rules::random::Random;

/// A connection that says nothing has this long to say hello.
pub const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// Between two heartbeats of the planet.
pub const HEARTBEAT: Duration = Duration::from_secs(15);
/// A node that says nothing for this long is cut: three of its heartbeats are missing.
pub const SILENCE: Duration = Duration::from_secs(50);
/// Between two tellings of news.
pub const COALESCE: Duration = Duration::from_millis(50);
/// A relay session outlives its control connection by this.
pub const RELAY_GRACE: Duration = Duration::from_secs(60);
/// Who isn't a member after this may try again.
const STRANGER: Duration = Duration::from_secs(120);
/// Connections of others than members.
const MAX_STRANGERS: usize = 256;
/// How often a planet with nothing to do looks around.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// A planet's mind.
pub struct Planet {
    key: SigningKey,
    books: Books,
    directory: Directory,
    connections: BTreeMap<ConnectionId, Connection>,
    online: BTreeMap<NodeId, ConnectionId>,
    endpoints: BTreeMap<NodeId, (Signed<EndpointRecord>, EndpointRecord)>,
    introductions: Introductions,
    /// Sessions whose connection is gone, until when they go on.
    ending: BTreeMap<u32, Moment>,
    relearning: relearning::Relearning,
    reconciling: reconciling::Reconciling,
    allowances: allowance::Allowances,
    twins: twins::Twins,
    random: Random,
    outbox: VecDeque<Action>,
    commits: commits::Commits,
    /// Somebody has another document of the root for this edition of the network.
    other_edition: Option<statements::OtherEdition>,
    flush_at: Option<Moment>,
    flushed: Option<Moment>,
    /// Both clocks when they were looked at last.
    clock: Now,
    housekeeping_at: Moment,
    /// What members count on from.
    clock_said: (Moment, UnixSeconds),
}

struct Connection {
    remote: SocketAddr,
    rtt: Duration,
    exported: Vec<u8>,
    opened: Moment,
    heard: Moment,
    heartbeat_at: Moment,
    /// Proven by the hello.
    node: Option<NodeId>,
    /// Of the hello.
    protocol: u16,
    /// Of the hello.
    cursor: Option<DirectoryCursor>,
    incarnation: u64,
    /// Of the hello: the highest receipt number that the node says it has seen.
    sequence: u64,
    software: String,
    /// Up to which version the directory was told; absent for who isn't a member.
    told: Option<Told>,
    /// More is to be told than went with the last portion.
    is_behind: bool,
    comparing: reconciling::Comparing,
    session: Option<u32>,
    asked: bool,
    reported: bool,
}

#[derive(Clone, Copy)]
struct Told {
    version: u64,
    from_start: bool,
}

impl Planet {
    /// A planet with its books. `seed` must be fresh random bytes at each start.
    #[must_use]
    pub fn new(key: SigningKey, mut books: Books, seed: [u8; 32], now: Now) -> Self {
        let mut random = Random::new(seed);
        let mut directory = Directory::new(random.number());
        directory.touch(Topic::Network);
        for (hash, _) in books.statements().iter() {
            directory.touch(Topic::Statement(*hash));
        }
        for (node, entry) in books.entries() {
            if entry.member.is_some() && !books.is_out(node) {
                directory.touch(Topic::Member(*node));
            }
        }
        for node in books.departures() {
            directory.touch(Topic::Left(*node));
        }
        let relearning = relearning::Relearning::new(&books, now.moment);
        let mut unsaved = books.take_outdated();
        unsaved.extend(relearning::Relearning::begin(&mut books, now));
        Self {
            key,
            books,
            directory,
            connections: BTreeMap::new(),
            online: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            introductions: Introductions::default(),
            ending: BTreeMap::new(),
            relearning,
            reconciling: reconciling::Reconciling::new(now.moment),
            allowances: allowance::Allowances::default(),
            twins: twins::Twins::default(),
            random,
            outbox: VecDeque::new(),
            commits: commits::Commits::new(unsaved, now.moment),
            other_edition: None,
            flush_at: None,
            flushed: None,
            clock: now,
            housekeeping_at: now.moment + HOUSEKEEPING,
            clock_said: (now.moment, now.unix),
        }
    }

    /// The planet's id.
    #[must_use]
    pub fn id(&self) -> PlanetId {
        self.key.planet_id()
    }

    /// Everything durable, as it stands.
    #[must_use]
    pub fn books(&self) -> &Books {
        &self.books
    }

    /// Whether this planet arbitrates leases: the network's first one does.
    #[must_use]
    pub fn is_arbiter(&self) -> bool {
        let first = self.books.network.planets.first();
        first.is_some_and(|planet| planet.id == self.id())
    }

    fn hear(&mut self, input: Input, now: Now) {
        match input {
            Input::Connected {
                connection,
                remote,
                rtt,
                exported,
            } => self.connected(connection, (remote, rtt), exported, now),
            Input::Rtt { connection, rtt } => {
                if let Some(known) = self.connections.get_mut(&connection) {
                    known.rtt = rtt;
                }
            }
            Input::Message {
                connection,
                message,
            } => self.message(connection, *message, now),
            Input::Disconnected { connection } => self.disconnected(connection, now),
            Input::Statement { request, statement } => self.operator_says(request, &statement, now),
            Input::TrustEmpty { request } => self.trust_empty(request, now),
            Input::Drain => self.drain(),
            Input::Tick => self.tick(now),
        }
    }

    /// When [`Input::Tick`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Moment {
        let flush = self.flush_at.unwrap_or(self.housekeeping_at);
        flush.min(self.housekeeping_at)
    }

    fn connected(
        &mut self,
        connection: ConnectionId,
        (remote, rtt): (SocketAddr, Duration),
        exported: Vec<u8>,
        now: Now,
    ) {
        let fresh = Connection {
            remote: podmesh_proto::candidate::canonical(remote),
            rtt,
            exported,
            opened: now.moment,
            heard: now.moment,
            heartbeat_at: now.moment + HEARTBEAT,
            node: None,
            protocol: PROTOCOL,
            cursor: None,
            is_behind: false,
            comparing: reconciling::Comparing::default(),
            incarnation: 0,
            sequence: 0,
            software: String::new(),
            told: None,
            session: None,
            asked: false,
            reported: false,
        };
        self.connections.insert(connection, fresh);
    }

    fn disconnected(&mut self, connection: ConnectionId, now: Now) {
        let Some(gone) = self.connections.remove(&connection) else {
            return;
        };
        if let Some(session) = gone.session {
            self.ending.insert(session, now.moment + RELAY_GRACE);
        }
        let Some(node) = gone.node else {
            return;
        };
        if self.online.get(&node) == Some(&connection) {
            self.online.remove(&node);
            if gone.told.is_some() {
                self.news(Topic::Presence(node), now.moment);
                if let Some(name) = self.name_of(&node) {
                    self.note_of(node, Event::Offline(node, name), now);
                }
            }
        }
    }

    /// Ends a connection from this side.
    fn close(&mut self, connection: ConnectionId, reason: &'static str, now: Now) {
        self.outbox.push_back(Action::Close { connection, reason });
        self.disconnected(connection, now);
    }

    fn send(&mut self, connection: ConnectionId, message: PlanetMessage) {
        let message = Box::new(message);
        self.outbox.push_back(Action::Send {
            connection,
            message,
        });
    }

    fn news(&mut self, topic: Topic, now: Moment) {
        self.directory.touch(topic);
        let at = self.flushed.map_or(now, |last| now.max(last + COALESCE));
        self.flush_at.get_or_insert(at);
    }

    fn name_of(&self, node: &NodeId) -> Option<Name> {
        let entry = self.books.entry(node)?;
        Some(entry.certificate.name.clone())
    }

    fn tick(&mut self, now: Now) {
        if self.flush_at.is_some_and(|at| now.moment >= at) {
            self.flush_at = None;
            self.flushed = Some(now.moment);
            self.tell_all(now);
        }
        if now.moment >= self.housekeeping_at {
            self.housekeeping_at = now.moment + HOUSEKEEPING;
            self.look_around(now);
        }
    }

    fn look_around(&mut self, now: Now) {
        let cursor = self.directory.cursor();
        let (mut late, mut due) = (Vec::new(), Vec::new());
        for (id, connection) in &mut self.connections {
            let silent = now.moment.since(connection.heard) >= SILENCE;
            let nameless =
                connection.node.is_none() && now.moment.since(connection.opened) >= HELLO_DEADLINE;
            // Who waits for the planet's disk is not late.
            if (silent || nameless) && !self.commits.is_waiting(*id) {
                late.push(*id);
            } else if connection.node.is_some() && now.moment >= connection.heartbeat_at {
                connection.heartbeat_at = now.moment + HEARTBEAT;
                due.push(*id);
            }
        }
        for connection in late {
            self.close(connection, "silence", now);
        }
        self.thin_strangers(now);
        for connection in due {
            self.send(connection, PlanetMessage::Heartbeat { cursor });
        }
        let ended: Vec<u32> = self
            .ending
            .iter()
            .filter(|(_, until)| now.moment >= **until)
            .map(|(session, _)| *session)
            .collect();
        for session in ended {
            self.ending.remove(&session);
            self.outbox.push_back(Action::CloseRelay { session });
        }
        self.introductions.sweep(now.moment);
        self.allowances.sweep(now.moment);
        self.sweep_lives(now);
        for (node, record) in self.allowances.due_records(now.moment) {
            self.take_late_record(node, record, now);
        }
        self.save_unsaved(now);
        self.expel_expired(now);
        self.watch_clock(now);
        self.follow_clock(now);
        self.greet_members(now);
        self.watch_relearning(now);
        self.watch_statements(now);
    }

    /// Nobody takes the members' places by waiting at the door: whoever isn't a member makes room for
    /// others after a while, the longest guest first.
    fn thin_strangers(&mut self, now: Now) {
        let strangers = self
            .connections
            .iter()
            .filter(|(_, one)| one.told.is_none());
        let mut strangers: Vec<(Moment, ConnectionId)> =
            strangers.map(|(id, one)| (one.opened, *id)).collect();
        strangers.sort_unstable();
        let too_many = strangers.len().saturating_sub(MAX_STRANGERS);
        for (index, (opened, connection)) in strangers.into_iter().enumerate() {
            if index < too_many || now.moment.since(opened) >= STRANGER {
                self.close(connection, "no member", now);
            }
        }
    }

    /// A certificate that ran out while its node was connected ends its rights here too.
    fn expel_expired(&mut self, now: Now) {
        let expired: Vec<ConnectionId> = self
            .connections
            .iter()
            .filter(|(_, connection)| {
                let node = connection.node.filter(|_| connection.told.is_some());
                node.is_some_and(|node| self.books.member(&node, now.unix).is_none())
            })
            .map(|(id, _)| *id)
            .collect();
        for connection in expired {
            self.demote(connection);
            self.close(connection, "no member any more", now);
        }
    }

    fn drain(&mut self) {
        let connections: Vec<ConnectionId> = self.connections.keys().copied().collect();
        // About a hundred nodes a second come back, within bounds that people don't notice.
        let spread = u64::try_from(connections.len())
            .unwrap_or(u64::MAX)
            .saturating_mul(10);
        for connection in connections {
            let wait = 200 + self.random.below(spread.clamp(800, 30_000));
            let retry_in = Duration::from_millis(wait);
            self.send(connection, PlanetMessage::Draining { retry_in });
        }
    }
}

impl fmt::Debug for Planet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Planet({})", self.id().short())
    }
}
