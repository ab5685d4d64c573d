//! Who plays in the tests of the planet: an operator with the root key, nodes with all of theirs, and
//! a stage that holds one planet, its disk and the time.

#![allow(dead_code, reason = "each test crate plays other scenes")]
#![allow(
    clippy::unwrap_used,
    reason = "a test that can't set its scene fails there"
)]

pub(crate) mod client;

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use podmesh_planet::rules::books::Books;
use podmesh_planet::rules::records::{Change, Origin, Record, RecordKey};
use podmesh_planet::rules::relaying::RelayCounters;
use podmesh_planet::rules::view::PlanetStatus;
use podmesh_planet::rules::{Action, ConnectionId, Input, Planet};
use podmesh_proto::candidate::{Candidate, CandidateKind, EndpointRecord};
use podmesh_proto::certificate::{
    AdmissionReceipt, Application, Claim, ClaimReceipt, Departure, Grant, Leases, Membership,
    NodeCertificate,
};
use podmesh_proto::id::{NodeId, TokenId};
use podmesh_proto::key::{SecretKey, Signature, SigningKey, digest};
use podmesh_proto::network::{ExternalPeer, Network, PlanetEntry, Ranges, RootStatement};
use podmesh_proto::planet_api::{
    DirectoryCursor, DirectoryRecord, DirectoryUpdate, HELLO_CONTEXT, Hello, NodeMessage, PROTOCOL,
    PlanetMessage, Welcome,
};
use podmesh_proto::signed::Signed;
use podmesh_proto::time::{Moment, Now, UnixSeconds};
use podmesh_proto::token::JoinToken;

pub(crate) const BEGINNING: UnixSeconds = UnixSeconds(1_800_000_000);

pub(crate) fn wall_clock() -> UnixSeconds {
    let now = std::time::SystemTime::now();
    UnixSeconds(now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs())
}

fn seed(kind: &str, number: u32) -> [u8; 32] {
    digest(kind, &number.to_le_bytes())
}

/// Holds the root key.
pub(crate) struct Operator {
    root: SigningKey,
    pub(crate) network: Network,
    pub(crate) network_statement: Signed<RootStatement>,
    number: u32,
    tokens: u32,
}

impl Operator {
    pub(crate) fn new(number: u32) -> Self {
        let root = SigningKey::from_seed(seed("root", number));
        let id = Network::id_of(&root.public());
        let planet = SigningKey::from_seed(seed("planet", number));
        let network = Network {
            id,
            name: "lab".parse().unwrap(),
            root: root.public(),
            second_root: None,
            version: 1,
            issued: BEGINNING.minus(1_000),
            ranges: Ranges::default_of(&id),
            planets: vec![PlanetEntry {
                id: planet.planet_id(),
                name: "planet-1".parse().unwrap(),
                address: "198.51.100.1:7077".to_owned(),
            }],
            retired: Vec::new(),
        };
        let network_statement =
            Signed::seal(&RootStatement::Network(network.clone()), &root).unwrap();
        Self {
            root,
            network,
            network_statement,
            number,
            tokens: 0,
        }
    }

    pub(crate) fn planet_key(&self) -> SigningKey {
        SigningKey::from_seed(seed("planet", self.number))
    }

    /// Somebody who says to be the operator.
    pub(crate) fn with_other_root(mut self) -> Self {
        self.root = SigningKey::from_seed(seed("false root", self.number));
        self
    }

    pub(crate) fn sign(&self, statement: &RootStatement) -> Signed<RootStatement> {
        Signed::seal(statement, &self.root).unwrap()
    }

    fn new_edition(&mut self) {
        self.network.version += 1;
        self.network_statement = self.sign(&RootStatement::Network(self.network.clone()));
    }

    pub(crate) fn ranges(&mut self, change: impl FnOnce(&mut Ranges)) {
        change(&mut self.network.ranges);
        self.new_edition();
    }

    pub(crate) fn add_planet_in_front(&mut self) {
        let entry = PlanetEntry {
            id: SigningKey::from_seed(seed("other planet", self.number)).planet_id(),
            name: "planet-0".parse().unwrap(),
            address: "198.51.100.2:7077".to_owned(),
        };
        self.network.planets.insert(0, entry);
        self.new_edition();
    }

    pub(crate) fn token(&mut self, uses: u32) -> JoinToken {
        self.token_with(|grant| grant.uses = uses)
    }

    pub(crate) fn token_with(&mut self, change: impl FnOnce(&mut Grant)) -> JoinToken {
        self.tokens += 1;
        let key = SigningKey::from_seed(seed("token", self.number * 10_000 + self.tokens));
        let mut token = [0; 16];
        token.copy_from_slice(&key.public().0[..16]);
        let mut grant = Grant {
            network: self.network.id,
            token: TokenId(token),
            token_key: key.public(),
            issued: BEGINNING.minus(100),
            expires: BEGINNING.plus(365 * 24 * 3_600),
            uses: 1,
            site: None,
            groups: Vec::new(),
            relay: false,
            ranges: Vec::new(),
            membership: None,
            for_name: None,
            replaces: None,
        };
        change(&mut grant);
        JoinToken {
            network: self.network_statement.clone(),
            grant: Signed::seal(&grant, &self.root).unwrap(),
            key,
        }
    }

    pub(crate) fn revoke_token(&self, token: &JoinToken) -> Signed<RootStatement> {
        self.sign(&RootStatement::RevokeToken {
            network: self.network.id,
            token: token.grant.unverified().unwrap().token,
            issued: BEGINNING,
        })
    }

    pub(crate) fn revoke_node(&self, node: &Node) -> Signed<RootStatement> {
        self.sign(&RootStatement::RevokeNode {
            network: self.network.id,
            node: node.id(),
            issued: BEGINNING,
        })
    }

    pub(crate) fn external(&self, name: &str, key: u32, prefix: &str) -> Signed<RootStatement> {
        self.sign(&RootStatement::External(ExternalPeer {
            network: self.network.id,
            name: name.parse().unwrap(),
            wireguard: SecretKey::from_bytes(seed("external", key)).public(),
            prefixes: vec![prefix.parse().unwrap()],
            endpoint: None,
            issued: BEGINNING,
        }))
    }
}

/// A node with its keys, and what it has heard.
#[derive(Clone)]
pub(crate) struct Node {
    number: u32,
    pub(crate) wireguard: SecretKey,
    pub(crate) rtt: Duration,
    pub(crate) application: Option<Application>,
    pub(crate) receipt: Option<Signed<AdmissionReceipt>>,
    pub(crate) claim: Option<(Signed<Claim>, Signed<ClaimReceipt>)>,
    pub(crate) cursor: Option<DirectoryCursor>,
    /// The highest receipt number that it has seen, besides its own.
    pub(crate) sequence: u64,
    pub(crate) asked_to_report: bool,
    heard: Vec<Told>,
}

impl Node {
    pub(crate) fn new(number: u32) -> Self {
        Self {
            number,
            wireguard: SecretKey::from_bytes(seed("wireguard", number)),
            rtt: Duration::from_millis(20),
            application: None,
            receipt: None,
            claim: None,
            cursor: None,
            sequence: 0,
            asked_to_report: false,
            heard: Vec::new(),
        }
    }

    pub(crate) fn identity(&self) -> SigningKey {
        SigningKey::from_seed(seed("node", self.number))
    }

    pub(crate) fn id(&self) -> NodeId {
        self.identity().node_id()
    }

    pub(crate) fn prove(&self, exported: &[u8]) -> Signature {
        self.identity().sign(HELLO_CONTEXT, exported)
    }

    pub(crate) fn application(
        &self,
        token: &JoinToken,
        name: &str,
        now: UnixSeconds,
    ) -> Application {
        let grant = token.grant.unverified().unwrap();
        let certificate = NodeCertificate {
            network: grant.network,
            node: self.id(),
            name: name.parse().unwrap(),
            wireguard: self.wireguard.public(),
            probe: SecretKey::from_bytes(seed("probe", self.number)).public(),
            site: grant.site,
            groups: grant.groups,
            relay: grant.relay,
            issued: now,
            expires: grant.membership.map(|seconds| now.plus(seconds)),
        };
        let grant = token.grant.clone();
        Application::new(grant, &certificate, &token.key, &self.identity()).unwrap()
    }

    pub(crate) fn sign_claim(
        &self,
        network: &Network,
        serial: u64,
        overlay4: Option<Ipv4Addr>,
        pod_cidrs: Vec<IpNet>,
    ) -> Signed<Claim> {
        let claim = Claim {
            network: network.id,
            node: self.id(),
            serial,
            overlay4,
            pod_cidrs,
        };
        Signed::seal(&claim, &self.identity()).unwrap()
    }

    pub(crate) fn departure(&self, network: &Network, time: UnixSeconds) -> Signed<Departure> {
        let departure = Departure {
            network: network.id,
            node: self.id(),
            time,
        };
        Signed::seal(&departure, &self.identity()).unwrap()
    }

    pub(crate) fn endpoints(&self, network: &Network, sequence: u64) -> Signed<EndpointRecord> {
        let record = EndpointRecord {
            network: network.id,
            node: self.id(),
            incarnation: 1,
            sequence,
            candidates: vec![Candidate {
                kind: CandidateKind::Host,
                endpoint: "192.0.2.7:4000".parse().unwrap(),
            }],
            planets: Vec::new(),
        };
        Signed::seal(&record, &self.identity()).unwrap()
    }

    pub(crate) fn membership(&self) -> Option<Membership> {
        let (claim, claim_receipt) = self.claim.clone()?;
        Some(Membership {
            application: self.application.clone()?,
            receipt: self.receipt.clone()?,
            claim,
            claim_receipt,
        })
    }

    /// The highest receipt number among its own.
    pub(crate) fn highest(&self) -> u64 {
        let receipt = self
            .receipt
            .iter()
            .map(|receipt| receipt.unverified().unwrap().sequence);
        let claim = self
            .claim
            .iter()
            .map(|(_, receipt)| receipt.unverified().unwrap().sequence);
        receipt.chain(claim).max().unwrap_or(0)
    }

    pub(crate) fn welcome(&self) -> Option<&Welcome> {
        self.heard.iter().rev().find_map(|told| match told {
            Told::Message(PlanetMessage::Welcome(welcome)) => Some(welcome),
            _ => None,
        })
    }

    pub(crate) fn updates(&self) -> Vec<DirectoryUpdate> {
        let update = |told: &Told| match told {
            Told::Message(PlanetMessage::Directory(update)) => Some(update.clone()),
            _ => None,
        };
        self.heard.iter().filter_map(update).collect()
    }

    pub(crate) fn heard_records(&self) -> Vec<DirectoryRecord> {
        self.updates()
            .into_iter()
            .flat_map(|update| update.records)
            .collect()
    }
}

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
    key: [u8; 32],
    network: Signed<RootStatement>,
    disk: BTreeMap<RecordKey, Record>,
    actions: VecDeque<Action>,
    committing: bool,
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
            key,
            network,
            disk,
            actions: VecDeque::new(),
            committing: false,
            connections: BTreeMap::new(),
            inboxes: BTreeMap::new(),
            sessions: BTreeMap::new(),
            answers: Vec::new(),
            next: 1,
        }
    }

    /// A power cut, and a start from what the disk holds.
    pub(crate) fn restart(&mut self) {
        let books = Books::from_records(self.disk.values().cloned().collect()).unwrap();
        self.next += 1_000;
        let seed = seed("start", u32::try_from(self.next).unwrap());
        self.planet = Planet::new(SigningKey::from_seed(self.key), books, seed, self.now);
        self.connections.clear();
        self.inboxes.clear();
        self.sessions.clear();
        self.actions.clear();
        self.committing = false;
    }

    pub(crate) fn backup(&self) -> BTreeMap<RecordKey, Record> {
        self.disk.clone()
    }

    pub(crate) fn restore(&mut self, backup: BTreeMap<RecordKey, Record>) {
        self.disk = backup;
        self.disk
            .insert(RecordKey::Origin, Record::Origin(Origin::Restored));
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
            if self.committing {
                if self.hold_commits {
                    return;
                }
                self.committing = false;
                let result = if self.disk_full {
                    Err("no space left".to_owned())
                } else {
                    Ok(())
                };
                self.planet.committed(result, self.now);
            }
            let Some(action) = self.planet.poll_action() else {
                return;
            };
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Commit(changes) => {
                self.committing = true;
                if self.disk_full {
                    return;
                }
                for change in changes {
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
            Action::Send {
                connection,
                message,
            } => {
                if let Some(inbox) = self.inboxes.get_mut(&connection) {
                    inbox.push(Told::Message(*message));
                }
            }
            Action::Close { connection, reason } => {
                if let Some(inbox) = self.inboxes.get_mut(&connection) {
                    inbox.push(Told::Closed(reason));
                }
            }
            Action::OpenRelay { grant, node } => {
                self.sessions.insert(grant.session, node);
            }
            Action::CloseRelay { session } => {
                self.sessions.remove(&session);
            }
            Action::Answer { result, .. } => self.answers.push(result),
            Action::Happened(_) => {}
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
        self.next += 1;
        let connection = ConnectionId(self.next);
        self.connections.insert(node.id(), connection);
        self.inboxes.insert(connection, Vec::new());
        let remote: SocketAddr = "203.0.113.5:4500".parse().unwrap();
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
        self.handle(Input::TrustEmpty { request: 8 });
        self.answers.pop().expect("an answer").unwrap();
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
