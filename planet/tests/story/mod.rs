//! Who plays in the tests of the planet: an operator with the root key, nodes with all of theirs, and
//! a stage that holds one planet, its disk and the time.

#![allow(dead_code, reason = "each test crate plays other scenes")]
#![allow(
    clippy::unwrap_used,
    reason = "a test that can't set its scene fails there"
)]

pub(crate) mod client;

mod stage;

#[allow(unused_imports, reason = "each test crate plays other scenes")]
pub(crate) use self::stage::{Stage, Told};

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use podmesh_planet::rules::books::Books;
use podmesh_planet::rules::records::{Change, Origin, Record, RecordKey};
use podmesh_planet::rules::relaying::RelayCounters;
use podmesh_planet::rules::view::PlanetStatus;
use podmesh_planet::rules::{Action, ConnectionId, Event, Input, Planet};
use podmesh_proto::candidate::{Candidate, CandidateKind, EndpointRecord};
use podmesh_proto::certificate::{
    AdmissionReceipt, Application, Claim, ClaimReceipt, Departure, Grant, Leases, Membership,
    NodeCertificate,
};
use podmesh_proto::id::{NodeId, TokenId};
use podmesh_proto::key::{SecretKey, Signature, SigningKey, digest};
use podmesh_proto::network::{
    ExternalPeer, Network, PlanetEntry, Ranges, RetiredPlanet, RootStatement,
};
use podmesh_proto::planet_api::{
    DirectoryCursor, DirectoryRecord, DirectoryUpdate, HELLO_CONTEXT, Hello, NodeMessage, PROTOCOL,
    PlanetMessage, Welcome,
};
use podmesh_proto::renewal::{Renewed, Succession};
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

    /// Of the planet that [`Self::add_planet_in_front`] adds.
    pub(crate) fn other_planet_key(&self) -> SigningKey {
        SigningKey::from_seed(seed("other planet", self.number))
    }

    /// Somebody who says to be the operator.
    pub(crate) fn with_other_root(mut self) -> Self {
        self.root = SigningKey::from_seed(seed("false root", self.number));
        self
    }

    pub(crate) fn sign(&self, statement: &RootStatement) -> Signed<RootStatement> {
        Signed::seal(statement, &self.root).unwrap()
    }

    pub(crate) fn new_edition(&mut self) {
        self.network.version += 1;
        self.network_statement = self.sign(&RootStatement::Network(self.network.clone()));
    }

    pub(crate) fn ranges(&mut self, change: impl FnOnce(&mut Ranges)) {
        change(&mut self.network.ranges);
        self.new_edition();
    }

    pub(crate) fn add_planet_in_front(&mut self) {
        let entry = PlanetEntry {
            id: self.other_planet_key().planet_id(),
            name: "planet-0".parse().unwrap(),
            address: "198.51.100.2:7077".to_owned(),
        };
        self.network.planets.insert(0, entry);
        self.new_edition();
    }

    pub(crate) fn retire_first_planet(&mut self, now: UnixSeconds) {
        let first = self.network.planets.remove(0);
        self.network.retired.push(RetiredPlanet {
            id: first.id,
            until: now,
        });
        self.network.issued = now;
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
        self.revoke_token_at(token, BEGINNING)
    }

    pub(crate) fn revoke_token_at(
        &self,
        token: &JoinToken,
        issued: UnixSeconds,
    ) -> Signed<RootStatement> {
        self.sign(&RootStatement::RevokeToken {
            network: self.network.id,
            token: token.grant.unverified().unwrap().token,
            issued,
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
        self.external_at(name, key, prefix, 0)
    }

    pub(crate) fn external_at(
        &self,
        name: &str,
        key: u32,
        prefix: &str,
        later: u64,
    ) -> Signed<RootStatement> {
        self.sign(&RootStatement::External(ExternalPeer {
            network: self.network.id,
            name: name.parse().unwrap(),
            wireguard: SecretKey::from_bytes(seed("external", key)).public(),
            prefixes: vec![prefix.parse().unwrap()],
            endpoint: None,
            issued: BEGINNING.plus(later),
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
    pub(crate) renewed: Option<Box<Renewed>>,
    /// Number of the key that signs for the node by now.
    pub(crate) signer: u32,
    pub(crate) cursor: Option<DirectoryCursor>,
    /// The highest receipt number that it has seen, besides its own.
    pub(crate) sequence: u64,
    pub(crate) asked_to_report: bool,
    heard: Vec<Told>,
}

impl Node {
    /// What the planet has leased to it.
    pub(crate) fn leases(&self) -> Leases {
        self.receipt.as_ref().unwrap().unverified().unwrap().leases
    }

    pub(crate) fn new(number: u32) -> Self {
        Self {
            number,
            wireguard: SecretKey::from_bytes(seed("wireguard", number)),
            rtt: Duration::from_millis(20),
            application: None,
            receipt: None,
            claim: None,
            renewed: None,
            signer: number,
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

    pub(crate) fn newest(&self) -> SigningKey {
        SigningKey::from_seed(seed("node", self.signer))
    }

    pub(crate) fn prove(&self, exported: &[u8]) -> Signature {
        self.newest().sign(HELLO_CONTEXT, exported)
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
        Signed::seal(&claim, &self.newest()).unwrap()
    }

    pub(crate) fn departure(&self, network: &Network, time: UnixSeconds) -> Signed<Departure> {
        self.word_for(self, network, time)
    }

    /// That another node leaves, signed by this one.
    pub(crate) fn word_for(
        &self,
        other: &Self,
        network: &Network,
        time: UnixSeconds,
    ) -> Signed<Departure> {
        let departure = Departure {
            network: network.id,
            node: other.id(),
            successions: other.steps(),
            time,
        };
        Signed::seal(&departure, &self.newest()).unwrap()
    }

    pub(crate) fn endpoints(&self, network: &Network, sequence: u64) -> Signed<EndpointRecord> {
        self.endpoints_of(1, network, sequence)
    }

    pub(crate) fn endpoints_of(
        &self,
        incarnation: u64,
        network: &Network,
        sequence: u64,
    ) -> Signed<EndpointRecord> {
        let record = EndpointRecord {
            network: network.id,
            node: self.id(),
            incarnation,
            sequence,
            candidates: vec![Candidate {
                kind: CandidateKind::Host,
                endpoint: "192.0.2.7:4000".parse().unwrap(),
            }],
            planets: Vec::new(),
        };
        Signed::seal(&record, &self.newest()).unwrap()
    }

    /// The steps that its identity has taken.
    pub(crate) fn steps(&self) -> Vec<Signed<Succession>> {
        let renewed = self.renewed.as_ref();
        renewed.map_or_else(Vec::new, |renewed| renewed.request.successions.clone())
    }

    pub(crate) fn membership(&self) -> Option<Membership> {
        let (claim, claim_receipt) = self.claim.clone()?;
        Some(Membership {
            application: self.application.clone()?,
            receipt: self.receipt.clone()?,
            claim,
            claim_receipt,
            renewed: self.renewed.clone(),
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
