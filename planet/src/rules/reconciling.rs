//! Statements of the root: who lacks which, on either side, and telling no more than that.
//!
//! A planet that greets a member says what it holds in sums ([`PlanetMessage::Summary`]). A member that
//! holds anything else answers with what it has in those parts, and is told what it lacks of them, in
//! portions and within its allowance. What a member holds and the planet doesn't, the planet asks for:
//! one member at a time, because many hold the same.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use podmesh_proto::id::NodeId;
use podmesh_proto::network::RootStatement;
use podmesh_proto::planet_api::PlanetMessage;
use podmesh_proto::signed::Signed;
use podmesh_proto::statements::{BUCKETS, Edition, Held, PORTION, portions};
use podmesh_proto::time::{Moment, Now};

use crate::rules::bucket::Bucket;
use crate::rules::commits::Then;
use crate::rules::directory::Topic;
use crate::rules::records::Change;
use crate::rules::{Action, COALESCE, ConnectionId, Event, Planet};

/// The version of the protocol from which on statements are compared.
const COMPARED_SINCE: u16 = 2;
/// Messages of them to one member at a time; the rest follows [`COALESCE`] later.
const PORTIONS: usize = 2;
/// Bytes of statements that one node is told in the long run, per second, and at once: some twenty
/// thousand. Who says again and again that it holds nothing gets no more.
const ALLOWANCE: (u64, u64) = (64 * 1024, 4 * 1024 * 1024);
/// An allowance that wasn't used for this long is full again.
const REFILL: Duration = Duration::from_secs(120);
/// Who was asked and says nothing for this long has had its turn.
const TURN: Duration = Duration::from_secs(5);
/// After statements were learned from a member, the others are asked to compare again.
const AFTERWARDS: Duration = Duration::from_secs(1);
/// Between two looks for revocations that change nothing any more.
const SWEEP: Duration = Duration::from_secs(3_600);

/// What is under way with all members.
#[derive(Debug)]
pub(super) struct Reconciling {
    /// Who is asked for what the planet lacks, and until when it may take its time.
    asked: Option<(ConnectionId, Moment)>,
    /// When each node was asked last.
    turns: BTreeMap<NodeId, Moment>,
    allowances: BTreeMap<NodeId, (Bucket, Moment)>,
    /// Statements that a member told among others: not pushed to those who compare.
    learned: BTreeSet<[u8; 32]>,
    compare_at: Option<Moment>,
    sweep_at: Moment,
}

/// What is under way with one member.
#[derive(Debug, Default)]
pub(super) struct Comparing {
    /// Statements up to this version of the directory were in the last summary.
    summarized: u64,
    /// Still to be told.
    due: BTreeSet<[u8; 32]>,
    /// Buckets in which the member holds something that the planet doesn't.
    offers: BTreeSet<u8>,
}

impl Reconciling {
    pub(super) fn new(now: Moment) -> Self {
        Self {
            asked: None,
            turns: BTreeMap::new(),
            allowances: BTreeMap::new(),
            learned: BTreeSet::new(),
            compare_at: None,
            sweep_at: now,
        }
    }

    fn may_hear(&mut self, node: NodeId, bytes: u64, now: Moment) -> bool {
        let (rate, burst) = ALLOWANCE;
        let entry = self.allowances.entry(node);
        let (bucket, used) = entry.or_insert_with(|| (Bucket::new(rate, burst, now), now));
        *used = now;
        bucket.take(bytes, now)
    }
}

impl Comparing {
    /// Whether there is something to tell the member.
    pub(super) fn has_due(&self) -> bool {
        !self.due.is_empty()
    }
}

impl Planet {
    /// Whether the node of a connection compares statements.
    pub(super) fn compares(&self, connection: ConnectionId) -> bool {
        let known = self.connections.get(&connection);
        known.is_some_and(|known| known.protocol >= COMPARED_SINCE)
    }

    /// Whether a member hears of a topic by comparing.
    pub(super) fn is_compared(&self, connection: ConnectionId, version: u64, topic: Topic) -> bool {
        let Topic::Statement(hash) = topic else {
            return false;
        };
        let Some(known) = self.connections.get(&connection) else {
            return false;
        };
        let summarized = version <= known.comparing.summarized;
        self.compares(connection) && (summarized || self.reconciling.learned.contains(&hash))
    }

    /// Says what the planet holds.
    pub(super) fn summarize(&mut self, connection: ConnectionId) {
        if !self.compares(connection) {
            return;
        }
        let edition = Edition::of(&self.books.network, &self.books.network_statement);
        let summary = self.books.statements().summary(edition);
        let version = self.directory.cursor().version;
        if let Some(known) = self.connections.get_mut(&connection) {
            known.comparing.summarized = version;
        }
        self.send(connection, PlanetMessage::Summary(summary));
    }

    /// A member says what it holds in some buckets.
    pub(super) fn node_holds(&mut self, connection: ConnectionId, held: &[Held], now: Now) {
        if !self.may_ask(connection) {
            return;
        }
        for held in held.iter().take(usize::from(BUCKETS)) {
            let missing = self.books.statements().missing(held);
            let offers = self.books.statements().lacks_of(held);
            let Some(known) = self.connections.get_mut(&connection) else {
                return;
            };
            known.comparing.due.extend(missing);
            if offers {
                known.comparing.offers.insert(held.bucket);
            }
        }
        if self.has_statements_due(connection) {
            self.flush_at.get_or_insert(now.moment + COALESCE);
        }
        self.ask_next(now);
    }

    pub(super) fn has_statements_due(&self, connection: ConnectionId) -> bool {
        let known = self.connections.get(&connection);
        known.is_some_and(|known| known.comparing.has_due())
    }

    /// The next portions for a member, as far as its allowance reaches.
    pub(super) fn due_statements(
        &mut self,
        connection: ConnectionId,
        now: Now,
    ) -> Vec<PlanetMessage> {
        let Self {
            connections,
            reconciling,
            books,
            ..
        } = self;
        let known = connections.get_mut(&connection);
        let Some((known, node)) = known.and_then(|known| {
            let node = known.node?;
            Some((known, node))
        }) else {
            return Vec::new();
        };
        let mut messages = Vec::new();
        while messages.len() < PORTIONS && known.comparing.has_due() {
            let (mut portion, mut bytes) = (Vec::new(), 0);
            while let Some(hash) = known.comparing.due.first().copied() {
                let Some(kept) = books.statements().get(&hash) else {
                    known.comparing.due.remove(&hash);
                    continue;
                };
                let size = kept.signed.size();
                let cost = u64::try_from(size).unwrap_or(u64::MAX);
                if bytes + size > PORTION || !reconciling.may_hear(node, cost, now.moment) {
                    break;
                }
                bytes += size;
                known.comparing.due.remove(&hash);
                portion.push(kept.signed.clone());
            }
            if portion.is_empty() {
                break;
            }
            messages.push(PlanetMessage::Statements(portion));
        }
        messages
    }

    /// Asks the next member for what it holds and the planet doesn't.
    fn ask_next(&mut self, now: Now) {
        if let Some((asked, until)) = self.reconciling.asked
            && now.moment < until
            && self.connections.contains_key(&asked)
        {
            return;
        }
        self.reconciling.asked = None;
        let offering = self.connections.iter().filter_map(|(id, known)| {
            let node = known.node?;
            let offers = !known.comparing.offers.is_empty() && known.told.is_some();
            offers.then(|| (self.reconciling.turns.get(&node), *id, node))
        });
        let Some((_, connection, node)) = offering.min() else {
            return;
        };
        let Some(known) = self.connections.get_mut(&connection) else {
            return;
        };
        let offers = std::mem::take(&mut known.comparing.offers);
        self.reconciling.asked = Some((connection, now.moment + TURN));
        self.reconciling.turns.insert(node, now.moment);
        let statements = self.books.statements();
        let held: Vec<Held> = offers
            .iter()
            .map(|bucket| statements.held(*bucket))
            .collect();
        for portion in portions(held) {
            self.send(connection, PlanetMessage::Held(portion));
        }
    }

    /// The member whose turn it is tells statements that the planet lacks; an empty list ends them.
    pub(super) fn node_tells(
        &mut self,
        connection: ConnectionId,
        node: NodeId,
        told: &[Signed<RootStatement>],
        now: Now,
    ) {
        let turn = self.reconciling.asked.map(|(asked, _)| asked);
        if turn != Some(connection) || !self.may_ask(connection) {
            return;
        }
        if told.is_empty() {
            self.reconciling.asked = None;
            return self.ask_next(now);
        }
        self.reconciling.asked = Some((connection, now.moment + TURN));
        let (mut all, mut last): (Vec<Change>, Option<Event>) = (Vec::new(), None);
        for statement in told {
            if self.books.statements().get(&statement.hash()).is_some() {
                continue;
            }
            match self.judge_statement(statement) {
                Ok((changes, event)) if !changes.is_empty() => {
                    self.reconciling.learned.insert(statement.hash());
                    self.apply(&changes, now);
                    all.extend(changes);
                    last = Some(event);
                }
                Ok(_) => {}
                Err(refusal) => {
                    // Whoever keeps to the protocol has verified what it tells.
                    self.refused(connection, node, refusal);
                    self.reconciling.asked = None;
                    break;
                }
            }
        }
        if let Some(event) = last {
            let due = now.moment + AFTERWARDS;
            self.reconciling.compare_at.get_or_insert(due);
            let happened = || vec![Then::Do(Action::Happened(event.clone()))];
            self.remember(all, happened(), happened());
        }
    }

    /// Everybody compares in a moment.
    pub(super) fn compare_later(&mut self, now: Now) {
        let due = now.moment + AFTERWARDS;
        self.reconciling.compare_at.get_or_insert(due);
    }

    /// Once a second: turns that are over, comparisons and revocations that are due.
    pub(super) fn watch_statements(&mut self, now: Now) {
        self.ask_next(now);
        let old = |at: &Moment| now.moment.since(*at) < REFILL;
        self.reconciling.allowances.retain(|_, (_, used)| old(used));
        self.reconciling.turns.retain(|_, at| old(at));
        if self
            .reconciling
            .compare_at
            .is_some_and(|at| now.moment >= at)
        {
            self.reconciling.compare_at = None;
            let members = self.connections.iter();
            let members: Vec<ConnectionId> = members
                .filter(|(_, known)| known.told.is_some())
                .map(|(id, _)| *id)
                .collect();
            members.into_iter().for_each(|id| self.summarize(id));
            self.reconciling.learned.clear();
        }
        if now.moment >= self.reconciling.sweep_at && !self.commits.is_ahead() {
            self.reconciling.sweep_at = now.moment + SWEEP;
            let spent = self.books.spent_revocations(now.unix);
            if !spent.is_empty() {
                self.apply(&spent, now);
                self.remember(spent, Vec::new(), Vec::new());
            }
        }
    }
}
