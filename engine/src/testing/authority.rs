//! Keys, tokens and memberships.

use std::net::Ipv4Addr;

use ipnet::IpNet;

use podmesh_proto::certificate::{
    AdmissionReceipt, Application, Claim, ClaimReceipt, Grant, Leases, Membership, NodeCertificate,
};
use podmesh_proto::id::{Name, NodeId, TokenId};
use podmesh_proto::key::{SecretKey, SigningKey};
use podmesh_proto::network::{Network, PlanetEntry, Ranges, RootStatement};
use podmesh_proto::signed::Signed;
use podmesh_proto::time::UnixSeconds;
use podmesh_proto::token::JoinToken;

use super::{START, name, nets};
use crate::config::NodeKeys;

/// The keys of everybody but the nodes.
pub(crate) struct Authority {
    pub(crate) root: SigningKey,
    pub(crate) planet: SigningKey,
    pub(crate) network: Network,
    pub(crate) statement: Signed<RootStatement>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let root = SigningKey::from_seed([101; 32]);
        let planet = SigningKey::from_seed([102; 32]);
        let id = Network::id_of(&root.public());
        let network = Network {
            id,
            name: name("lab"),
            root: root.public(),
            second_root: None,
            version: 1,
            issued: START,
            ranges: Ranges::default_of(&id),
            planets: vec![PlanetEntry {
                id: planet.planet_id(),
                name: name("p1"),
                address: "192.0.2.1:7077".to_owned(),
            }],
            retired: Vec::new(),
        };
        let statement = RootStatement::Network(network.clone());
        let statement = Signed::seal(&statement, &root).unwrap();
        Self {
            root,
            planet,
            network,
            statement,
        }
    }

    pub(crate) fn grant(&self, number: u8) -> (Grant, SigningKey) {
        let key = SigningKey::from_seed([number; 32]);
        let grant = Grant {
            network: self.network.id,
            token: TokenId([number; 16]),
            token_key: key.public(),
            issued: START.minus(1),
            expires: START.plus(100_000),
            uses: 10,
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

    pub(crate) fn token(&self, number: u8) -> JoinToken {
        self.token_for(number, None)
    }

    pub(crate) fn token_for(&self, number: u8, life: Option<u64>) -> JoinToken {
        let (grant, key) = self.grant(number);
        let grant = Grant {
            membership: life,
            ..grant
        };
        JoinToken {
            network: self.statement.clone(),
            grant: Signed::seal(&grant, &self.root).unwrap(),
            key,
        }
    }

    pub(crate) fn say(&self, statement: &RootStatement) -> Signed<RootStatement> {
        Signed::seal(statement, &self.root).unwrap()
    }
}

/// A node's keys, made of one number.
pub(crate) struct Keys {
    pub(crate) identity: SigningKey,
    pub(crate) wireguard: SecretKey,
    pub(crate) probe: SecretKey,
}

impl From<Keys> for NodeKeys {
    fn from(keys: Keys) -> Self {
        Self {
            identity: keys.identity,
            wireguard: keys.wireguard,
            probe: keys.probe,
        }
    }
}

impl Keys {
    /// The keys that node `number` changes to: all of them when `to` is even, else its identity stays.
    pub(crate) fn moved(number: u8, to: u8) -> NodeKeys {
        let identity = if to.is_multiple_of(2) { to } else { number };
        NodeKeys {
            identity: SigningKey::from_seed([identity; 32]),
            ..Self::new(to).into()
        }
    }

    pub(crate) fn new(number: u8) -> Self {
        Self {
            identity: SigningKey::from_seed([number; 32]),
            wireguard: SecretKey::from_bytes([number.wrapping_add(80); 32]),
            probe: SecretKey::from_bytes([number.wrapping_add(160); 32]),
        }
    }

    pub(crate) fn id(&self) -> NodeId {
        self.identity.node_id()
    }
}

/// What a membership of a test says; every field can be spoiled.
pub(crate) struct Draft {
    pub(crate) keys: Keys,
    pub(crate) name: Name,
    pub(crate) grant: Grant,
    pub(crate) token_key: SigningKey,
    pub(crate) use_number: u32,
    pub(crate) sequence: u64,
    pub(crate) serial: u64,
    pub(crate) admitted: UnixSeconds,
    pub(crate) expires: Option<UnixSeconds>,
    pub(crate) overlay4: Option<Ipv4Addr>,
    pub(crate) pod_cidrs: Vec<IpNet>,
}

impl Draft {
    /// Node `number`, with use `number` of token 1, address .number and block number.
    pub(crate) fn new(authority: &Authority, number: u8) -> Self {
        let (grant, token_key) = authority.grant(1);
        Self {
            keys: Keys::new(number),
            name: name(&format!("n{number}")),
            grant: Grant { uses: 255, ..grant },
            token_key,
            use_number: u32::from(number),
            sequence: u64::from(number) * 2,
            serial: 1,
            admitted: START,
            expires: None,
            overlay4: Some(Ipv4Addr::new(10, 77, 0, number)),
            pod_cidrs: nets(&[&format!("10.42.{number}.0/24")]),
        }
    }

    pub(crate) fn build(&self, authority: &Authority) -> Membership {
        let network = authority.network.id;
        let node = self.keys.id();
        let grant = Signed::seal(&self.grant, &authority.root).unwrap();
        let certificate = NodeCertificate {
            network,
            node,
            name: self.name.clone(),
            wireguard: self.keys.wireguard.public(),
            probe: self.keys.probe.public(),
            site: self.grant.site.clone(),
            groups: self.grant.groups.clone(),
            relay: false,
            issued: self.admitted,
            expires: self.expires,
        };
        let application =
            Application::new(grant, &certificate, &self.token_key, &self.keys.identity).unwrap();
        let receipt = AdmissionReceipt {
            network,
            planet: authority.planet.planet_id(),
            token: self.grant.token,
            use_number: self.use_number,
            node,
            name: self.name.clone(),
            certificate: application.certificate.hash(),
            leases: Leases::default(),
            sequence: self.sequence,
            time: self.admitted,
        };
        let claim = Claim {
            network,
            node,
            serial: self.serial,
            overlay4: self.overlay4,
            pod_cidrs: self.pod_cidrs.clone(),
        };
        let claim = Signed::seal(&claim, &self.keys.identity).unwrap();
        let claim_receipt = ClaimReceipt {
            network,
            planet: authority.planet.planet_id(),
            node,
            claim: claim.hash(),
            settles: Vec::new(),
            sequence: self.sequence + 1,
            time: self.admitted,
        };
        Membership {
            application,
            receipt: Signed::seal(&receipt, &authority.planet).unwrap(),
            claim,
            claim_receipt: Signed::seal(&claim_receipt, &authority.planet).unwrap(),
            renewed: None,
        }
    }
}
