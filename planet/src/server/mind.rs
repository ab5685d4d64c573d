//! The one task that owns the rules and the store: hears inputs in order and carries actions out.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use podmesh_proto::id::PlanetId;
use podmesh_proto::local_api::RegistryView;
use podmesh_proto::network::RootStatement;
use podmesh_proto::signed::Signed;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use crate::rules::view::PlanetStatus;
use crate::rules::{Action, ConnectionId, Event, Input, Planet};
use crate::server::clock::Clock;
use crate::server::connection::Outbox;
use crate::server::keeping::{LOOK, Looks};
use crate::server::socket::SharedSocket;
use crate::server::writing::Writing;
use crate::store::{self, DiskStore, Store, StoreError};

/// A new connection.
pub struct Arrival {
    /// Its number.
    pub id: ConnectionId,
    /// From where.
    pub remote: SocketAddr,
    /// Round trip of the handshake.
    pub rtt: Duration,
    /// Keying material.
    pub exported: Vec<u8>,
    /// The way back.
    pub outbox: Outbox,
}

/// What the mind is told.
pub enum Message {
    /// A new connection.
    Arrived(Box<Arrival>),
    /// A node says something, and gets its permit to say more back when it was heard.
    Said(ConnectionId, Input, OwnedSemaphorePermit),
    /// Anything else that the rules judge.
    Input(Input),
    /// The operator asks.
    Operator(Question),
    /// A sign of life is wanted.
    AreYouThere(oneshot::Sender<()>),
    /// Says goodbye to everybody, then ends.
    Drain(oneshot::Sender<()>),
}

/// What the operator asks of a running planet.
pub enum Question {
    /// How it is.
    Status(oneshot::Sender<PlanetStatus>),
    /// Who and what it knows.
    Registry(oneshot::Sender<Result<RegistryView, String>>),
    /// To take a statement of the root.
    Statement(
        Box<Signed<RootStatement>>,
        oneshot::Sender<Result<String, String>>,
    ),
    /// To grant again.
    TrustEmpty(oneshot::Sender<Result<String, String>>),
    /// For everything that it keeps.
    Backup(oneshot::Sender<Result<Vec<u8>, String>>),
}

/// Gives everything that a store holds as one file's content.
pub trait BackupStore: Store {
    /// The content, as the books of `planet`.
    ///
    /// # Errors
    /// The store can't be read.
    fn backup(&mut self, planet: &PlanetId) -> Result<Vec<u8>, StoreError>;

    /// Writes anew what was taken away of what the next start needs, and gives the names of these files.
    ///
    /// # Errors
    /// In words: the next start would not find what this planet knows.
    fn stand(&mut self) -> Result<Vec<&'static str>, String>;
}

impl BackupStore for DiskStore {
    fn backup(&mut self, planet: &PlanetId) -> Result<Vec<u8>, StoreError> {
        Self::backup(self, planet)
    }

    fn stand(&mut self) -> Result<Vec<&'static str>, String> {
        let anew = Self::stand(self).map_err(|error| error.to_string())?;
        Ok(anew.then_some(store::FILE).into_iter().collect())
    }
}

/// The rules with everything that carries their actions out.
pub struct Mind {
    planet: Planet,
    store: Writing,
    socket: Arc<SharedSocket>,
    clock: Clock,
    outboxes: BTreeMap<ConnectionId, Outbox>,
    /// Permits of those that wait for the store.
    unheard: BTreeMap<ConnectionId, VecDeque<OwnedSemaphorePermit>>,
    requests: BTreeMap<u64, oneshot::Sender<Result<String, String>>>,
    next_request: u64,
    backups: Vec<oneshot::Sender<Result<Vec<u8>, String>>>,
    looks: Looks,
    /// Why the store couldn't be written last, if it couldn't.
    trouble: Option<String>,
}

impl Mind {
    /// A mind that has heard nothing yet.
    pub fn new(
        planet: Planet,
        store: Box<dyn BackupStore>,
        socket: Arc<SharedSocket>,
        clock: Clock,
    ) -> Self {
        Self {
            planet,
            store: Writing::Rest(store),
            socket,
            clock,
            outboxes: BTreeMap::new(),
            unheard: BTreeMap::new(),
            requests: BTreeMap::new(),
            next_request: 0,
            backups: Vec::new(),
            looks: Looks::default(),
            trouble: None,
        }
    }

    /// Hears and acts until it is told to drain.
    pub async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = self.clock.instant(self.planet.poll_timeout());
            let message = tokio::select! {
                message = messages.recv() => message,
                () = sleep_until(due) => Some(Message::Input(Input::Tick)),
                _ = look.tick() => {
                    if let Some(found) = self.store.stand() {
                        self.looks.note(found);
                    }
                    continue;
                }
                written = self.store.end() => match written {
                    Ok(result) => {
                        self.written(result);
                        continue;
                    }
                    Err(error) => {
                        tracing::error!(reason = %error, "the store was lost while it was written");
                        return;
                    }
                },
            };
            match message {
                None => return,
                Some(Message::Said(connection, input, permit)) => {
                    self.hear(input);
                    if self.planet.waiting(connection) > 0 {
                        self.unheard
                            .entry(connection)
                            .or_default()
                            .push_back(permit);
                    }
                }
                Some(Message::Arrived(arrival)) => self.arrived(*arrival),
                Some(Message::Input(input)) => self.hear(input),
                Some(Message::Operator(question)) => self.answer(question),
                Some(Message::AreYouThere(asker)) => {
                    let _ = asker.send(());
                }
                Some(Message::Drain(done)) => {
                    self.hear(Input::Drain);
                    if self.store.is_busy()
                        && let Ok(result) = self.store.end().await
                    {
                        self.written(result);
                    }
                    for outbox in std::mem::take(&mut self.outboxes).values() {
                        outbox.close("draining");
                    }
                    let _ = done.send(());
                    return;
                }
            }
        }
    }

    fn arrived(&mut self, arrival: Arrival) {
        self.outboxes.insert(arrival.id, arrival.outbox);
        self.hear(Input::Connected {
            connection: arrival.id,
            remote: arrival.remote,
            rtt: arrival.rtt,
            exported: arrival.exported,
        });
    }

    fn hear(&mut self, input: Input) {
        if let Input::Disconnected { connection } = &input {
            self.outboxes.remove(connection);
        }
        self.planet.handle(input, self.clock.now());
        self.act();
    }

    /// Answers who wants a backup, unless a commit is under way, which belongs into it.
    fn back_up(&mut self) {
        if self.store.is_busy() {
            return;
        }
        let planet = self.planet.id();
        for asker in std::mem::take(&mut self.backups) {
            let _ = asker.send(self.store.backup(&planet));
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.planet.poll_action() {
            self.carry_out(action);
        }
    }

    /// The store has answered.
    fn written(&mut self, result: Result<(), String>) {
        self.note_writing(result.as_ref().err());
        self.back_up();
        self.planet.committed(result, self.clock.now());
        self.act();
        let planet = &self.planet;
        self.unheard.retain(|connection, permits| {
            permits.truncate(planet.waiting(*connection));
            !permits.is_empty()
        });
    }

    /// A store that can't be written is tried again all the time: its reason is said once.
    fn note_writing(&mut self, trouble: Option<&String>) {
        if self.trouble.as_ref() == trouble {
            return;
        }
        match trouble {
            Some(reason) => {
                tracing::warn!(reason, "the store can't be written: nothing is granted");
            }
            None => tracing::info!("the store can be written again"),
        }
        self.trouble = trouble.cloned();
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Commit(changes) => self.store.begin(changes),
            Action::Send {
                connection,
                message,
            } => {
                let outbox = self.outboxes.get(&connection);
                if outbox.is_some_and(|outbox| !outbox.send(&message)) {
                    tracing::debug!(connection = connection.0, "a slow reader is cut");
                    self.outboxes.remove(&connection);
                }
            }
            Action::Close { connection, reason } => {
                if let Some(outbox) = self.outboxes.remove(&connection) {
                    outbox.close(reason);
                }
            }
            Action::OpenRelay { grant, node, home } => {
                let now = self.clock.now().moment;
                self.socket
                    .relaying(|relaying| relaying.open(&grant, (node, home), now));
            }
            Action::CloseRelay { session } => {
                let now = self.clock.now().moment;
                self.socket
                    .relaying(|relaying| relaying.close(session, now));
            }
            Action::Answer { request, result } => {
                if let Some(asker) = self.requests.remove(&request) {
                    let _ = asker.send(result);
                }
            }
            Action::Happened(event) => log(&event),
        }
    }

    fn answer(&mut self, question: Question) {
        match question {
            Question::Status(asker) => {
                let (counters, sessions) = self
                    .socket
                    .relaying(|relaying| (relaying.counters(), relaying.sessions()));
                let now = self.clock.now();
                let mut status = self.planet.status(counters, sessions, now);
                self.looks.add_to(&mut status);
                let _ = asker.send(status);
            }
            Question::Registry(asker) => {
                let registry = self.planet.registry(self.clock.now());
                let _ = asker.send(registry.map_err(|error| error.to_string()));
            }
            Question::Statement(statement, asker) => {
                let request = self.remember(asker);
                self.hear(Input::Statement { request, statement });
            }
            Question::TrustEmpty(asker) => {
                let request = self.remember(asker);
                self.hear(Input::TrustEmpty { request });
            }
            Question::Backup(asker) => {
                self.backups.push(asker);
                self.back_up();
            }
        }
    }

    fn remember(&mut self, asker: oneshot::Sender<Result<String, String>>) -> u64 {
        self.next_request += 1;
        self.requests.insert(self.next_request, asker);
        self.next_request
    }
}

fn log(event: &Event) {
    match event {
        Event::Member(node, name) => {
            tracing::info!(peer = %name, node = %node.short(), "a node is a member");
        }
        Event::Left(node, name) => {
            tracing::info!(peer = %name, node = %node.short(), "a node has left");
        }
        Event::Out(node) => tracing::info!(node = %node.short(), "a node was put out"),
        Event::Online(_, name) => tracing::info!(peer = %name, "a member is connected"),
        Event::Offline(_, name) => tracing::info!(peer = %name, "a member is gone"),
        Event::Twins(node, sentence) => tracing::warn!(node = %node.short(), "{sentence}"),
        Event::Refused(node, refusal) => {
            tracing::debug!(node = %node.short(), code = ?refusal.code, reason = refusal.reason, "refused");
        }
        Event::NotLearned(node, reason) => {
            tracing::debug!(node = %node.short(), reason, "a membership is not taken into the books");
        }
        Event::Statement(kind) => tracing::info!(kind, "the root has spoken"),
        Event::Relearning(reason, Some(left)) => {
            let seconds = left.as_secs().saturating_add(1);
            tracing::info!(
                reason,
                seconds,
                "nothing is granted yet; that ends by itself"
            );
        }
        Event::Relearning(reason, None) => {
            tracing::warn!(
                reason,
                "nothing is granted until members show what is missing; only if none of them comes back, \
                 `planet trust-empty` ends that"
            );
        }
        Event::Granting => tracing::info!("joins and claims are granted"),
    }
}
