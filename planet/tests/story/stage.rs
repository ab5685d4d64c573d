//! The stage: one planet's rules, whoever is connected, and what they were told.

#![allow(clippy::wildcard_imports, reason = "the other half of one story")]

use super::*;

/// What reached a node.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Told {
    Message(PlanetMessage),
    Closed(&'static str),
}

/// One planet with its disk, and the time.
pub(crate) struct Stage {
    pub(crate) planet: Planet,
    pub(crate) now: Now,
    pub(crate) hold_commits: bool,
    pub(crate) disk_full: bool,
    /// Commits so far.
    pub(crate) commits: u64,
    /// What was noted for people so far.
    pub(crate) happened: Vec<Event>,
    key: [u8; 32],
    network: Signed<RootStatement>,
    disk: BTreeMap<RecordKey, Record>,
    committing: Option<Vec<Change>>,
    connections: BTreeMap<NodeId, ConnectionId>,
    inboxes: BTreeMap<ConnectionId, Vec<Told>>,
    sessions: BTreeMap<u32, NodeId>,
    answers: Vec<Result<String, String>>,
    next: u64,
}

impl Stage {
    pub(crate) fn fresh(operator: &Operator) -> Self {
        let key = *operator.planet_key().seed();
        let now = Now {
            moment: Moment::from_start(Duration::from_secs(1_000)),
            unix: BEGINNING,
            nanos: 0,
        };
        let network = operator.network_statement.clone();
        let books = Books::new(network.clone(), Origin::Fresh).unwrap();
        let planet = Planet::new(SigningKey::from_seed(key), books, [1; 32], now);
        let mut disk = BTreeMap::new();
        for record in [
            Record::Origin(Origin::Fresh),
            Record::Network(Box::new(network.clone())),
        ] {
            disk.insert(record.key().unwrap(), record);
        }
        Self {
            planet,
            now,
            hold_commits: false,
            disk_full: false,
            commits: 0,
            happened: Vec::new(),
            key,
            network,
            disk,
            committing: None,
            connections: BTreeMap::new(),
            inboxes: BTreeMap::new(),
            sessions: BTreeMap::new(),
            answers: Vec::new(),
            next: 1,
        }
    }

    /// A power cut, and a start from what the disk holds.
    pub(crate) fn restart(&mut self) {
        let books = self.books_on_disk();
        self.next += 1_000;
        let seed = seed("start", u32::try_from(self.next).unwrap());
        self.planet = Planet::new(SigningKey::from_seed(self.key), books, seed, self.now);
        self.connections.clear();
        self.inboxes.clear();
        self.sessions.clear();
        self.committing = None;
    }

    pub(crate) fn backup(&self) -> BTreeMap<RecordKey, Record> {
        self.disk.clone()
    }

    pub(crate) fn restore(&mut self, backup: BTreeMap<RecordKey, Record>) {
        self.restore_as(backup, Origin::Restored);
    }

    pub(crate) fn restore_as(&mut self, backup: BTreeMap<RecordKey, Record>, origin: Origin) {
        self.disk = backup;
        self.disk.remove(&RecordKey::UnknownUses);
        self.disk.insert(RecordKey::Origin, Record::Origin(origin));
        self.restart();
    }

    /// The disk is replaced by an empty one.
    pub(crate) fn lose(&mut self, origin: Origin) {
        self.disk.clear();
        let network = Record::Network(Box::new(self.network.clone()));
        self.disk.insert(RecordKey::Network, network);
        self.disk.insert(RecordKey::Origin, Record::Origin(origin));
        self.restart();
    }

    pub(crate) fn handle(&mut self, input: Input) {
        self.planet.handle(input, self.now);
        self.settle();
    }

    /// Carries out what the planet wants, as a shell has to.
    pub(crate) fn settle(&mut self) {
        loop {
            while let Some(action) = self.planet.poll_action() {
                self.carry_out(action);
            }
            if self.hold_commits || self.committing.is_none() {
                return;
            }
            self.commit();
        }
    }

    /// The commit that is under way ends; what follows from it is still to be carried out.
    pub(crate) fn commit(&mut self) {
        let result = if self.disk_full {
            self.committing = None;
            Err("no space left".to_owned())
        } else {
            self.write();
            Ok(())
        };
        self.planet.committed(result, self.now);
    }

    /// What is being committed reaches the disk.
    pub(crate) fn write(&mut self) {
        for change in self.committing.take().into_iter().flatten() {
            match change {
                Change::Put(record) => {
                    self.disk.insert(record.key().unwrap(), record);
                }
                Change::Remove(key) => {
                    self.disk.remove(&key);
                }
            }
        }
    }

    pub(crate) fn is_committing(&self) -> bool {
        self.committing.is_some()
    }

    /// What a planet that starts from the disk would know.
    pub(crate) fn books_on_disk(&self) -> Books {
        Books::from_records(self.disk.values().cloned().collect()).unwrap()
    }

    /// No receipt leaves a planet that could forget it.
    fn assert_durable(&self, message: &PlanetMessage) {
        let kept = |is_it: &dyn Fn(&Record) -> bool| self.disk.values().any(is_it);
        let durable = match message {
            PlanetMessage::Admitted(receipt) => {
                kept(&|record| matches!(record, Record::Admission(one) if one.receipt == *receipt))
            }
            PlanetMessage::Claimed(receipt) => {
                kept(&|record| matches!(record, Record::Claim(one) if one.receipt == *receipt))
            }
            PlanetMessage::Renewed(receipt) => {
                kept(&|record| matches!(record, Record::Renewal(one) if one.receipt == *receipt))
            }
            _ => true,
        };
        assert!(durable, "an answer before it is durable: {message:?}");
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Commit(changes) => {
                assert!(self.committing.is_none(), "one commit at a time");
                self.committing = Some(changes);
                self.commits += 1;
            }
            Action::Send {
                connection,
                message,
            } => {
                self.assert_durable(&message);
                if let Some(inbox) = self.inboxes.get_mut(&connection) {
                    inbox.push(Told::Message(*message));
                }
            }
            Action::Close { connection, reason } => {
                if let Some(inbox) = self.inboxes.get_mut(&connection) {
                    inbox.push(Told::Closed(reason));
                }
            }
            Action::OpenRelay { grant, node, .. } => {
                self.sessions.insert(grant.session, node);
            }
            Action::CloseRelay { session } => {
                self.sessions.remove(&session);
            }
            Action::Answer { result, .. } => self.answers.push(result),
            Action::Happened(event) => self.happened.push(event),
        }
    }

    /// Lets time pass in steps, with the ticks that the planet asks for.
    pub(crate) fn pass(&mut self, duration: Duration) {
        let end = self.now.moment + duration;
        let start = self.now;
        loop {
            let next = self.planet.poll_timeout().min(end);
            let step = if duration > Duration::from_secs(3_600) {
                end
            } else {
                next
            };
            self.now.moment = step.max(self.now.moment);
            self.now.unix = start
                .unix
                .plus(self.now.moment.since(start.moment).as_secs());
            self.handle(Input::Tick);
            if self.now.moment >= end {
                return;
            }
        }
    }

    /// A validity period around now.
    pub(crate) fn around(&self) -> (UnixSeconds, UnixSeconds) {
        (self.now.unix.minus(10), self.now.unix.plus(3_600))
    }

    /// Opens a connection without a word.
    pub(crate) fn open(&mut self, node: &mut Node) {
        self.open_for(node);
    }

    fn open_for(&mut self, node: &Node) -> ConnectionId {
        self.open_from(node, "203.0.113.5:4500".parse().unwrap())
    }

    pub(crate) fn open_from(&mut self, node: &Node, remote: SocketAddr) -> ConnectionId {
        self.next += 1;
        let connection = ConnectionId(self.next);
        self.connections.insert(node.id(), connection);
        self.inboxes.insert(connection, Vec::new());
        let exported = connection.0.to_le_bytes().to_vec();
        self.handle(Input::Connected {
            connection,
            remote,
            rtt: node.rtt,
            exported,
        });
        connection
    }

    pub(crate) fn hello(&self, node: &Node) -> Hello {
        let connection = self.connections[&node.id()];
        Hello {
            protocol: PROTOCOL,
            network: self.network.unverified().unwrap().network(),
            node: node.id(),
            proof: node.prove(&connection.0.to_le_bytes()),
            incarnation: 1,
            membership: node.membership().map(Box::new),
            cursor: node.cursor,
            sequence: node.sequence.max(node.highest()),
            network_version: 1,
            software: "test".to_owned(),
        }
    }

    /// Connects and says hello; the node takes to heart what it hears.
    pub(crate) fn connect(&mut self, node: &mut Node) {
        self.connect_quietly(node);
        node.heard = self.told(node);
        node.asked_to_report = node
            .heard
            .iter()
            .any(|told| matches!(told, Told::Message(PlanetMessage::Relearn)));
    }

    pub(crate) fn connect_quietly(&mut self, node: &Node) {
        self.open_for(node);
        let hello = NodeMessage::Hello(self.hello(node));
        self.say(node, hello);
    }

    pub(crate) fn disconnect(&mut self, node: &Node) {
        let connection = self.connections[&node.id()];
        self.handle(Input::Disconnected { connection });
    }

    pub(crate) fn say(&mut self, node: &Node, message: NodeMessage) {
        let connection = self.connections[&node.id()];
        self.handle(Input::Message {
            connection,
            message: Box::new(message),
        });
    }

    /// What reached the node since it was asked last.
    pub(crate) fn told(&mut self, node: &Node) -> Vec<Told> {
        let inbox = self
            .connections
            .get(&node.id())
            .and_then(|id| self.inboxes.get_mut(id));
        inbox.map(std::mem::take).unwrap_or_default()
    }

    /// The node takes to heart what reached it lately.
    pub(crate) fn listen(&mut self, node: &mut Node) {
        node.heard.extend(self.told(node));
    }

    pub(crate) fn ask(&mut self, node: &Node, message: NodeMessage) -> Vec<Told> {
        self.told(node);
        self.say(node, message);
        self.told(node)
    }

    pub(crate) fn count(&self, which: impl Fn(&Told) -> bool) -> usize {
        self.inboxes
            .values()
            .flatten()
            .filter(|told| which(told))
            .count()
    }

    pub(crate) fn join(&mut self, node: &mut Node, token: &JoinToken, name: &str) {
        assert!(self.try_join(node, token, name), "{name} joins");
    }

    /// Joins and claims the leases; `false` if that is refused.
    pub(crate) fn try_join(&mut self, node: &mut Node, token: &JoinToken, name: &str) -> bool {
        let application = node.application(token, name, self.now.unix);
        let join = NodeMessage::Join(Box::new(application.clone()));
        let answers = self.ask(node, join);
        let receipt = answers.iter().find_map(|told| match told {
            Told::Message(PlanetMessage::Admitted(receipt)) => Some(receipt.clone()),
            _ => None,
        });
        let Some(receipt) = receipt else {
            return false;
        };
        node.heard.extend(answers);
        node.application = Some(application);
        let leases = receipt.unverified().unwrap().leases;
        node.receipt = Some(receipt);
        self.claim(node, 1, &leases);
        true
    }

    pub(crate) fn claim(&mut self, node: &mut Node, serial: u64, leases: &Leases) {
        let network = self.planet.books().network.clone();
        let pods = [leases.pods4.map(IpNet::V4), leases.pods6.map(IpNet::V6)];
        let pod_cidrs = pods.into_iter().flatten().collect();
        let claim = node.sign_claim(&network, serial, leases.overlay4, pod_cidrs);
        let answers = self.ask(node, NodeMessage::Claim(claim.clone()));
        let receipt = answers.iter().find_map(|told| match told {
            Told::Message(PlanetMessage::Claimed(receipt)) => Some(receipt.clone()),
            _ => None,
        });
        node.claim = Some((claim, receipt.expect("the claim is receipted")));
        node.heard.extend(answers);
        let member = node.membership().unwrap().verify(&network, self.now.unix);
        assert!(member.is_ok(), "peers accept it: {member:?}");
    }

    /// `node` reports itself and `others`, and that this was all.
    pub(crate) fn report(&mut self, node: &Node, others: &[&Node]) {
        let memberships: Vec<Membership> = others
            .iter()
            .copied()
            .chain([node])
            .filter_map(Node::membership)
            .collect();
        for some in memberships.chunks(16) {
            let memberships = some.to_vec();
            self.say(node, NodeMessage::Report { memberships });
        }
        let memberships = Vec::new();
        self.say(node, NodeMessage::Report { memberships });
    }

    pub(crate) fn operator(&mut self, statement: &Signed<RootStatement>) -> Result<String, String> {
        let statement = Box::new(statement.clone());
        self.handle(Input::Statement {
            request: 7,
            statement,
        });
        self.answers.pop().expect("an answer")
    }

    pub(crate) fn trust_empty(&mut self) {
        self.try_trust_empty().unwrap();
    }

    pub(crate) fn try_trust_empty(&mut self) -> Result<String, String> {
        self.handle(Input::TrustEmpty { request: 8 });
        self.answers.pop().expect("an answer")
    }

    pub(crate) fn connection_of(&self, node: &Node) -> ConnectionId {
        self.connections[&node.id()]
    }

    pub(crate) fn relay_sessions_of(&self, node: &Node) -> Vec<u32> {
        let own = |(_, owner): &(&u32, &NodeId)| **owner == node.id();
        self.sessions
            .iter()
            .filter(own)
            .map(|(session, _)| *session)
            .collect()
    }

    pub(crate) fn status(&self) -> PlanetStatus {
        self.planet.status(RelayCounters::default(), 0, self.now)
    }
}
