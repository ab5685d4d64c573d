//! Several inputs share one durable commit.
//!
//! The store has one commit at a time. What has to be durable meanwhile gathers and goes with the next one,
//! at most [`MOST`] inputs of it; who asks while nothing is under way waits for nobody. Everybody who is
//! in a commit waits for its end with everything else it says, so that its order stays and nobody has more
//! than one place in a commit. Everybody else is served as if there were none.
//!
//! A grant is decided against the books as they will stand after all grants before it ([`Planet::ahead`]).
//! Nothing but the next grant sees these: answers, news and the books themselves follow when the store has
//! answered, and if it refuses, nothing of any of these grants ever was. What is learned holds at once, on
//! disk or not.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use podmesh_proto::planet_api::NodeMessage;
use podmesh_proto::time::{Moment, Now};

use crate::rules::books::Books;
use crate::rules::records::{Change, RecordKey};
use crate::rules::{Action, ConnectionId, Input, Planet, Topic};

/// Inputs that share one commit: so many that a slow disk doesn't set the pace, and so few that deciding
/// them keeps nobody else waiting.
const MOST: usize = 32;
/// What could not be made durable is tried again after this.
const UNSAVED_RETRY: Duration = Duration::from_secs(10);
/// A store that takes longer than this for one commit is worth a word.
const SLOW: Duration = Duration::from_secs(5);

/// What is under way to the store.
#[derive(Debug, Default)]
pub(super) struct Commits {
    /// Gathers.
    next: Commit,
    /// The store is at it.
    under_way: Option<Commit>,
    /// The books with the grants of the one commit that has some.
    ahead: Option<Books>,
    waiting: Waiting,
    /// Whose input is being heard.
    hears: Option<ConnectionId>,
    heard: Moment,
    /// What holds already and could not be made durable yet.
    unsaved: Vec<Change>,
    retry_at: Moment,
    error: Option<String>,
}

#[derive(Debug, Default)]
struct Commit {
    inputs: Vec<Decided>,
    askers: BTreeSet<ConnectionId>,
    grants: bool,
    /// What goes with it besides.
    unsaved: Vec<Change>,
    since: Moment,
}

/// What follows from one input.
#[derive(Debug)]
struct Decided {
    changes: Vec<Change>,
    /// Learning is no grant: it holds at once, on disk or not.
    applied: bool,
    then: Vec<Then>,
    otherwise: Vec<Then>,
}

/// What is done when the store has answered.
#[derive(Debug)]
pub(super) enum Then {
    Do(Action),
    Greet(ConnectionId),
    Dismiss(ConnectionId),
    /// The operator has said that nothing is missing.
    Trust,
}

/// Inputs that are heard later, in their order.
#[derive(Debug, Default)]
struct Waiting {
    inputs: VecDeque<Input>,
    of: BTreeMap<ConnectionId, usize>,
}

/// What hearing an input may do to the books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weight {
    Nothing,
    Learns,
    Grants,
}

impl Waiting {
    fn push(&mut self, input: Input) {
        if let Some(connection) = asker(&input) {
            *self.of.entry(connection).or_default() += 1;
        }
        self.inputs.push_back(input);
    }

    fn count(&self, connection: ConnectionId) -> usize {
        self.of.get(&connection).copied().unwrap_or(0)
    }
}

impl Commits {
    pub(super) fn new(unsaved: Vec<Change>, now: Moment) -> Self {
        Self {
            unsaved,
            retry_at: now,
            ..Self::default()
        }
    }

    /// Whether something of a connection waits for the store.
    pub(super) fn is_waiting(&self, connection: ConnectionId) -> bool {
        let commits = self.under_way.iter().chain([&self.next]);
        self.waiting.count(connection) > 0
            || commits
                .into_iter()
                .any(|commit| commit.askers.contains(&connection))
    }

    /// Whether grants are decided that the store hasn't answered.
    pub(super) fn is_ahead(&self) -> bool {
        self.ahead.is_some()
    }

    /// What is wrong with the store, in words.
    pub(super) fn trouble(&self, now: Moment) -> Option<String> {
        let since = self.under_way.as_ref().map(|commit| commit.since);
        let slow = since.map(|since| now.since(since));
        let slow = slow.filter(|taken| *taken >= SLOW).map(|taken| {
            let seconds = taken.as_secs();
            format!("the disk has been at one write for {seconds} s; nothing is granted meanwhile")
        });
        slow.or_else(|| self.error.clone())
    }

    /// Lets go, on disk too, of what doesn't count any more.
    pub(super) fn clean(&mut self, outdated: Vec<Change>) {
        self.unsaved.extend(outdated);
    }
}

impl Planet {
    /// Tells the planet something. What needs the store while that is busy is heard afterwards.
    pub fn handle(&mut self, input: Input, now: Now) {
        self.commits.heard = now.moment;
        let connection = asker(&input);
        if connection.is_some_and(|connection| self.commits.is_waiting(connection))
            || self.has_to_wait(self.weight(&input))
        {
            self.commits.waiting.push(input);
            return;
        }
        self.commits.hears = connection;
        self.hear(input, now);
        self.commits.hears = None;
    }

    /// How many inputs of a connection have yet to be heard.
    #[must_use]
    pub fn waiting(&self, connection: ConnectionId) -> usize {
        self.commits.waiting.count(connection)
    }

    fn has_to_wait(&self, weight: Weight) -> bool {
        let full = self.commits.next.inputs.len() >= MOST;
        let granting = self.commits.under_way.as_ref();
        match weight {
            Weight::Nothing => false,
            // What is learned is judged by the books, which the grants ahead are not in yet.
            Weight::Learns => full || self.commits.is_ahead(),
            Weight::Grants => full || granting.is_some_and(|commit| commit.grants),
        }
    }

    fn weight(&self, input: &Input) -> Weight {
        match input {
            Input::Message { message, .. } => self.weight_of(message),
            Input::Statement { .. } => Weight::Learns,
            Input::TrustEmpty { .. } => Weight::Grants,
            Input::Connected { .. }
            | Input::Rtt { .. }
            | Input::Disconnected { .. }
            | Input::Drain
            | Input::Tick => Weight::Nothing,
        }
    }

    fn weight_of(&self, message: &NodeMessage) -> Weight {
        match message {
            NodeMessage::Join(_)
            | NodeMessage::Claim(_)
            | NodeMessage::Renew(_)
            | NodeMessage::Leave(_) => Weight::Grants,
            NodeMessage::Hello(hello) => match &hello.membership {
                Some(shown) if !self.is_in_books(shown) => Weight::Learns,
                _ => Weight::Nothing,
            },
            NodeMessage::Membership(shown) if self.is_in_books(shown) => Weight::Nothing,
            NodeMessage::Statement(said) if self.holds(&said.hash()) => Weight::Nothing,
            NodeMessage::Membership(_)
            | NodeMessage::Report { .. }
            | NodeMessage::Statement(_)
            | NodeMessage::Statements(_) => Weight::Learns,
            NodeMessage::Publish(_)
            | NodeMessage::Introduce { .. }
            | NodeMessage::Held(_)
            | NodeMessage::Heartbeat => Weight::Nothing,
        }
    }

    fn holds(&self, statement: &[u8; 32]) -> bool {
        self.books.statements().get(statement).is_some()
    }

    /// The books as they will stand when all grants are durable: by them the next one is decided.
    pub(super) fn ahead(&self) -> &Books {
        self.commits.ahead.as_ref().unwrap_or(&self.books)
    }

    /// Has `changes` committed and applied, then does `then`; if the store refuses, `otherwise`.
    pub(super) fn transact(&mut self, changes: Vec<Change>, then: Vec<Then>, otherwise: Vec<Then>) {
        let books = &self.books;
        let ahead = self.commits.ahead.get_or_insert_with(|| books.clone());
        for change in &changes {
            // Every change was made from documents that were read before, so this can't fail.
            let applied = ahead.apply(change);
            debug_assert!(applied.is_ok(), "an unreadable change was decided");
        }
        self.commits.next.grants = true;
        self.decided(Decided {
            changes,
            applied: false,
            then,
            otherwise,
        });
    }

    /// Has `changes`, which hold already, committed; they are tried again until the store takes them.
    pub(super) fn remember(&mut self, changes: Vec<Change>, then: Vec<Then>, otherwise: Vec<Then>) {
        self.decided(Decided {
            changes,
            applied: true,
            then,
            otherwise,
        });
    }

    fn decided(&mut self, decided: Decided) {
        let asker = self.commits.hears;
        self.commits.next.askers.extend(asker);
        self.commits.next.inputs.push(decided);
    }

    /// Tries again what the store refused, when it is time. A store that refused a grant alone is tried, too: it
    /// has to undo what of that may have reached the disk, and nobody else may ask for long.
    pub(super) fn save_unsaved(&mut self, now: Now) {
        let commits = &self.commits;
        let idle = commits.under_way.is_none() && commits.next.inputs.is_empty();
        let waits = !commits.unsaved.is_empty() || commits.error.is_some();
        if idle && waits && now.moment >= commits.retry_at {
            self.remember(Vec::new(), Vec::new(), Vec::new());
        }
    }

    /// The next thing to do. What is ready goes before the next commit.
    pub fn poll_action(&mut self) -> Option<Action> {
        if let Some(action) = self.outbox.pop_front() {
            return Some(action);
        }
        let commits = &mut self.commits;
        if commits.under_way.is_some() || commits.next.inputs.is_empty() {
            return None;
        }
        let mut commit = std::mem::take(&mut commits.next);
        commit.unsaved = std::mem::take(&mut commits.unsaved);
        commit.since = commits.heard;
        let decided = commit.inputs.iter().flat_map(|input| &input.changes);
        let changes = commit.unsaved.iter().chain(decided).cloned().collect();
        commits.under_way = Some(commit);
        Some(Action::Commit(changes))
    }

    /// Answers [`Action::Commit`]: durable, or why not.
    pub fn committed(&mut self, result: Result<(), String>, now: Now) {
        let Some(commit) = self.commits.under_way.take() else {
            return;
        };
        self.commits.heard = now.moment;
        self.commits.error = result.err();
        let done = self.commits.error.is_none();
        if commit.grants {
            let ahead = self.commits.ahead.take();
            if let Some(ahead) = ahead.filter(|_| done) {
                self.books = ahead;
            }
        }
        if !done {
            let learned = commit.inputs.iter().filter(|input| input.applied);
            let learned = learned.flat_map(|input| input.changes.iter().cloned());
            let later = std::mem::take(&mut self.commits.unsaved);
            self.commits.unsaved = commit.unsaved;
            self.commits.unsaved.extend(learned.chain(later));
            self.commits.retry_at = now.moment + UNSAVED_RETRY;
        }
        for input in commit.inputs {
            self.conclude(input, done, now);
        }
        for input in std::mem::take(&mut self.commits.waiting).inputs {
            self.handle(input, now);
        }
    }

    /// Does what follows from one input of a commit.
    fn conclude(&mut self, input: Decided, done: bool, now: Now) {
        if done && !input.applied {
            input.changes.iter().for_each(|one| self.proclaim(one, now));
        }
        let next = if done { input.then } else { input.otherwise };
        for then in next {
            match then {
                Then::Do(action) => self.outbox.push_back(action),
                Then::Greet(connection) => self.greet(connection, now),
                Then::Dismiss(connection) => {
                    self.demote(connection);
                    self.close(connection, "left", now);
                }
                Then::Trust => self.trust(now),
            }
        }
        if done || input.applied {
            self.attend(&input.changes, now);
        }
    }

    /// Makes `changes` hold, and news of them.
    pub(super) fn apply(&mut self, changes: &[Change], now: Now) {
        debug_assert!(
            !self.commits.is_ahead(),
            "the grants ahead don't know of it"
        );
        for change in changes {
            // Every change was made from documents that were read before, so this can't fail.
            if self.books.apply(change).is_err() {
                debug_assert!(false, "an unreadable change was applied");
                continue;
            }
            self.proclaim(change, now);
        }
        let outdated = self.books.take_outdated();
        for change in &outdated {
            if let Change::Remove(RecordKey::Statement(hash)) = change {
                self.directory.forget(Topic::Statement(*hash));
            }
        }
        self.commits.clean(outdated);
    }

    /// A change holds: members hear of what it means.
    fn proclaim(&mut self, change: &Change, now: Now) {
        match change {
            Change::Put(record) => self.announce(record, now),
            Change::Remove(RecordKey::Admission(node) | RecordKey::Claim(node)) => {
                self.directory.forget_node(*node);
                self.endpoints.remove(node);
            }
            Change::Remove(RecordKey::Departure(node)) => {
                self.directory.forget(Topic::Left(*node));
            }
            Change::Remove(RecordKey::Statement(hash)) => {
                self.directory.forget(Topic::Statement(*hash));
            }
            Change::Remove(_) => {}
        }
    }
}

/// Who says this; the operator and the clock are nobody.
fn asker(input: &Input) -> Option<ConnectionId> {
    match input {
        Input::Connected { connection, .. }
        | Input::Rtt { connection, .. }
        | Input::Message { connection, .. }
        | Input::Disconnected { connection } => Some(*connection),
        Input::Statement { .. } | Input::TrustEmpty { .. } | Input::Drain | Input::Tick => None,
    }
}
