//! The keys of a run: root, planets, tokens and nodes.

use std::net::IpAddr;

use podmesh_engine::config::{EngineConfig, NodeKeys, Thresholds};
use podmesh_engine::stored::StoredState;
use podmesh_engine::tunnel::TunnelKind;
use podmesh_proto::certificate::Grant;
use podmesh_proto::id::{Name, NodeId, TokenId};
use podmesh_proto::key::{PublicKey, SecretKey, SigningKey};
use podmesh_proto::network::{Network, PlanetEntry, Ranges, RootStatement};
use podmesh_proto::signed::Signed;
use podmesh_proto::time::UnixSeconds;
use podmesh_proto::token::JoinToken;

use crate::random::Random;

pub const START: UnixSeconds = UnixSeconds(1_800_000_000);
pub const PLANET_PORT: u16 = 7_077;

/// Whoever may sign for the network.
pub struct Authority {
    pub root: SigningKey,
    pub planets: Vec<SigningKey>,
    pub network: Network,
    pub statement: Signed<RootStatement>,
    /// Seconds that a membership lasts.
    pub life: Option<u64>,
}

impl Authority {
    /// A network with a planet at each of these addresses.
    pub fn new(random: &mut Random, planets: &[IpAddr]) -> Self {
        let root = SigningKey::from_seed(random.bytes());
        let keys: Vec<SigningKey> = planets
            .iter()
            .map(|_| SigningKey::from_seed(random.bytes()))
            .collect();
        let id = Network::id_of(&root.public());
        let entries = keys
            .iter()
            .zip(planets)
            .enumerate()
            .map(|(n, (key, address))| PlanetEntry {
                id: key.planet_id(),
                name: name(&format!("p{n}")),
                address: format!("{address}:{PLANET_PORT}"),
            });
        let network = Network {
            id,
            name: name("sim"),
            root: root.public(),
            second_root: None,
            version: 1,
            issued: START,
            ranges: Ranges::default_of(&id),
            planets: entries.collect(),
            retired: Vec::new(),
        };
        let statement = Signed::seal(&RootStatement::Network(network.clone()), &root).unwrap();
        Self {
            root,
            planets: keys,
            network,
            statement,
            life: None,
        }
    }

    pub fn grant(&self, number: u8) -> (Grant, SigningKey) {
        let key = SigningKey::from_seed([number; 32]);
        let grant = Grant {
            network: self.network.id,
            token: TokenId([number; 16]),
            token_key: key.public(),
            issued: START.minus(1),
            expires: START.plus(1_000_000),
            uses: 1_000,
            site: None,
            groups: Vec::new(),
            relay: false,
            ranges: Vec::new(),
            membership: None,
            for_name: None,
            replaces: None,
        };
        (grant, key)
    }

    /// A token that admits everybody of a run.
    pub fn token(&self) -> JoinToken {
        let (grant, key) = self.grant(1);
        let grant = Grant {
            membership: self.life,
            ..grant
        };
        JoinToken {
            network: self.statement.clone(),
            grant: Signed::seal(&grant, &self.root).unwrap(),
            key,
        }
    }
}

/// A node's keys and ports.
#[derive(Clone, Copy)]
pub struct Keys {
    identity: [u8; 32],
    wireguard: [u8; 32],
    probe: [u8; 32],
    pub ports: [u16; 2],
}

impl Keys {
    pub fn new(random: &mut Random) -> Self {
        let port = random.range(20_000, 50_000) as u16;
        Self {
            identity: random.bytes(),
            wireguard: random.bytes(),
            probe: random.bytes(),
            ports: [port, port + 1],
        }
    }

    /// Other keys, of the same machine.
    pub fn renewed(&self, random: &mut Random, identity: bool) -> Self {
        let mut other = Self::new(random);
        other.ports = self.ports;
        // The kind of tunnel hangs on it.
        other.wireguard[0] = self.wireguard[0];
        if !identity {
            other.identity = self.identity;
        }
        other
    }

    /// The same with a kind of tunnel whose handshakes carry the node's clock.
    pub fn batched(mut self) -> Self {
        self.wireguard[0] &= !3;
        self
    }

    pub fn wireguard(&self) -> PublicKey {
        SecretKey::from_bytes(self.wireguard).public()
    }

    pub fn secrets(&self) -> NodeKeys {
        NodeKeys {
            identity: self.identity(),
            wireguard: SecretKey::from_bytes(self.wireguard),
            probe: SecretKey::from_bytes(self.probe),
        }
    }

    pub fn identity(&self) -> SigningKey {
        SigningKey::from_seed(self.identity)
    }

    pub fn node(&self) -> NodeId {
        self.identity().node_id()
    }

    /// Nodes of all kinds meet.
    fn tunnel(&self) -> TunnelKind {
        match self.wireguard[0] % 4 {
            0 => TunnelKind::Batched { wide: false },
            1 => TunnelKind::Batched { wide: true },
            _ => TunnelKind::Boringtun,
        }
    }

    pub fn config(&self, next: Option<Self>, stored: Option<Box<StoredState>>) -> EngineConfig {
        EngineConfig {
            keys: self.secrets(),
            next: next.map(|next| next.secrets()),
            stored,
            ports: self.ports,
            configured: Vec::new(),
            pod_cidrs: Vec::new(),
            mtu: 1_380,
            device: "mesh0".to_owned(),
            tunnel: self.tunnel(),
            thresholds: Thresholds::default(),
            version: "sim".to_owned(),
        }
    }
}

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}
