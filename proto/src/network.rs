//! A network and what its root says about it.
//!
//! Everything that only the operator may decide is a [`RootStatement`] signed by the root key: the
//! network's ranges and planets, revocations, external peers, the outcome of a conflict. Planets
//! store and pass statements on; they can't make one.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::error::CertificateError;
use crate::id::{Name, NetworkId, NodeId, PlanetId, TokenId};
use crate::key::{PublicKey, VerifyingKey, digest};
use crate::signed::{Document, Signed};
use crate::time::UnixSeconds;

/// One network: its keys, ranges and planets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Hash of [`Self::root`].
    pub id: NetworkId,
    /// For people.
    pub name: Name,
    /// The key that signs every [`RootStatement`].
    pub root: VerifyingKey,
    /// A second key with the same rights, named at creation.
    pub second_root: Option<VerifyingKey>,
    /// Grows with each new edition; a node never takes an older one.
    pub version: u64,
    /// When this edition was signed.
    pub issued: UnixSeconds,
    /// Ranges of the overlay and of pods.
    pub ranges: Ranges,
    /// The planets of the network. The first one arbitrates leases.
    pub planets: Vec<PlanetEntry>,
    /// Former planets: their receipts hold if they are older than their retirement.
    pub retired: Vec<RetiredPlanet>,
}

/// Address ranges of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranges {
    /// Overlay IPv4 addresses, leased one by one.
    pub overlay4: Ipv4Net,
    /// Overlay IPv6: a /64 in which a node's address follows from its id.
    pub overlay6: Ipv6Net,
    /// Pod IPv4 addresses, leased in blocks of [`Self::pods4_block`].
    pub pods4: Ipv4Net,
    /// Prefix length of one node's IPv4 pod CIDR.
    pub pods4_block: u8,
    /// Pod IPv6 addresses, leased in blocks of [`Self::pods6_block`].
    pub pods6: Ipv6Net,
    /// Prefix length of one node's IPv6 pod CIDR.
    pub pods6_block: u8,
    /// Service ranges of the cluster: never leased, but checked against every node's real routes.
    pub services: Vec<IpNet>,
}

/// One planet of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanetEntry {
    /// Its key: nodes talk to nobody else at its address.
    pub id: PlanetId,
    /// For people.
    pub name: Name,
    /// `host:port`, where the host is an address or a DNS name.
    pub address: String,
}

impl PlanetEntry {
    /// Whether `address` can be a planet's: `host:port`, IPv6 in brackets. A host whose last label is a
    /// number is an IPv4 address or nothing (WHATWG URL § 3.5): a resolver would be asked for a slip of the
    /// finger for ever.
    #[must_use]
    pub fn is_address(address: &str) -> bool {
        let Some((host, port)) = address.rsplit_once(':') else {
            return false;
        };
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        if !digits || !port.parse::<u16>().is_ok_and(|port| port > 0) {
            return false;
        }
        let bracketed = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        match bracketed {
            Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
            None => host.parse::<Ipv4Addr>().is_ok() || is_dns_name(host),
        }
    }
}

/// Whether `host` may be asked for (RFC 1035 §2.3.4), with or without a dot at its end.
fn is_dns_name(host: &str) -> bool {
    let labels = host.strip_suffix('.').unwrap_or(host);
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let sound = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(letter);
    let last = labels.rsplit('.').next().unwrap_or_default();
    let hexadecimal = last.strip_prefix("0x").or(last.strip_prefix("0X"));
    let number = match hexadecimal {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => last.bytes().all(|byte| byte.is_ascii_digit()),
    };
    labels.len() <= 253 && labels.split('.').all(sound) && !number
}

/// A planet that no longer serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetiredPlanet {
    /// Its key.
    pub id: PlanetId,
    /// Receipts with a later time are void.
    pub until: UnixSeconds,
}

/// What only the root may say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootStatement {
    /// A new edition of the network.
    Network(Network),
    /// A node is out, for good.
    RevokeNode {
        /// Of this network.
        network: NetworkId,
        /// The node.
        node: NodeId,
        /// When it was said.
        issued: UnixSeconds,
    },
    /// A token admits nobody any more.
    RevokeToken {
        /// Of this network.
        network: NetworkId,
        /// The token.
        token: TokenId,
        /// When it was said.
        issued: UnixSeconds,
    },
    /// A stock WireGuard machine is a member.
    External(ExternalPeer),
    /// An external peer is out.
    RevokeExternal {
        /// Of this network.
        network: NetworkId,
        /// Its key.
        wireguard: PublicKey,
        /// When it was said.
        issued: UnixSeconds,
    },
    /// Of several nodes that claim the same, this one is right.
    Resolve {
        /// Of this network.
        network: NetworkId,
        /// The rightful holder.
        node: NodeId,
        /// When it was said.
        issued: UnixSeconds,
    },
}

/// A stock WireGuard machine, named by the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalPeer {
    /// Of this network.
    pub network: NetworkId,
    /// Its name; shares the name space of nodes.
    pub name: Name,
    /// Its WireGuard key.
    pub wireguard: PublicKey,
    /// Inner addresses and prefixes that are its own.
    pub prefixes: Vec<IpNet>,
    /// Where it listens, if that is known.
    pub endpoint: Option<SocketAddr>,
    /// When it was signed; a later one replaces an earlier one for the same key.
    pub issued: UnixSeconds,
}

impl Document for RootStatement {
    const KIND: &'static str = "root statement";
    const CONTEXT: &'static str = "podmesh root statement v1";
}

impl RootStatement {
    /// The network this is about.
    #[must_use]
    pub fn network(&self) -> NetworkId {
        match self {
            Self::Network(network) => network.id,
            Self::External(peer) => peer.network,
            Self::RevokeNode { network, .. }
            | Self::RevokeToken { network, .. }
            | Self::RevokeExternal { network, .. }
            | Self::Resolve { network, .. } => *network,
        }
    }

    /// Whether it takes something from somebody.
    #[must_use]
    pub fn is_revocation(&self) -> bool {
        match self {
            Self::RevokeNode { .. } | Self::RevokeToken { .. } | Self::RevokeExternal { .. } => {
                true
            }
            Self::Network(_) | Self::External(_) | Self::Resolve { .. } => false,
        }
    }

    /// When it was signed.
    #[must_use]
    pub fn issued(&self) -> UnixSeconds {
        match self {
            Self::Network(network) => network.issued,
            Self::External(peer) => peer.issued,
            Self::RevokeNode { issued, .. }
            | Self::RevokeToken { issued, .. }
            | Self::RevokeExternal { issued, .. }
            | Self::Resolve { issued, .. } => *issued,
        }
    }
}

impl Network {
    /// The id that belongs to a root key.
    #[must_use]
    pub fn id_of(root: &VerifyingKey) -> NetworkId {
        let mut id = [0; 16];
        let hash = digest("podmesh network id v1", &root.0);
        id.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
        NetworkId(id)
    }

    /// The network that a statement describes, checked against nothing but its own root key: for
    /// whoever learns of a network from a source that it trusts (a join token, the operator).
    ///
    /// # Errors
    /// Not signed by its root, no network, or the id is not the root key's.
    pub fn from_statement(statement: &Signed<RootStatement>) -> Result<Self, CertificateError> {
        let mismatch = CertificateError::Mismatch {
            document: "root statement",
            field: "network",
        };
        let RootStatement::Network(claimed) = statement.unverified()? else {
            return Err(mismatch);
        };
        if Self::id_of(&claimed.root) != claimed.id {
            return Err(mismatch);
        }
        let signers = [Some(claimed.root), claimed.second_root];
        let verified = signers
            .iter()
            .flatten()
            .find_map(|key| statement.verify(key, "the root").ok());
        match verified {
            Some(RootStatement::Network(network)) => Ok(network),
            _ => Err(CertificateError::Signature {
                document: "network",
                signer: "the root",
            }),
        }
    }

    /// What the root of this network says in `statement`.
    ///
    /// # Errors
    /// Signed by another key, or about another network.
    pub fn verify(
        &self,
        statement: &Signed<RootStatement>,
    ) -> Result<RootStatement, CertificateError> {
        let signers = [Some(self.root), self.second_root];
        let said = signers
            .iter()
            .flatten()
            .find_map(|key| statement.verify(key, "the root").ok())
            .ok_or(CertificateError::Signature {
                document: "statement",
                signer: "the root",
            })?;
        if said.network() == self.id {
            Ok(said)
        } else {
            Err(CertificateError::OtherNetwork {
                document: "statement",
            })
        }
    }

    /// The overlay IPv6 address of a node: the /64 and a hash of its id (nobody else can have it).
    #[must_use]
    pub fn overlay6(&self, node: &NodeId) -> Ipv6Addr {
        let hash = digest("podmesh overlay address v1", &node.0);
        let mut octets = self.ranges.overlay6.network().octets();
        octets
            .iter_mut()
            .skip(8)
            .zip(hash)
            .for_each(|(to, from)| *to = from);
        Ipv6Addr::from(octets)
    }

    /// Every range that belongs to the mesh: overlay and pods, both families. A packet to one of
    /// them leaves a node through the mesh or not at all.
    #[must_use]
    pub fn protected(&self) -> Vec<IpNet> {
        let ranges = &self.ranges;
        vec![
            IpNet::V4(ranges.overlay4.trunc()),
            IpNet::V4(ranges.pods4.trunc()),
            IpNet::V6(ranges.overlay6.trunc()),
            IpNet::V6(ranges.pods6.trunc()),
        ]
    }

    /// Whether `planet` may have signed something at `time`.
    #[must_use]
    pub fn has_planet(&self, planet: &PlanetId, time: UnixSeconds) -> bool {
        self.planets.iter().any(|entry| entry.id == *planet)
            || self
                .retired
                .iter()
                .any(|gone| gone.id == *planet && time <= gone.until)
    }
}

impl Ranges {
    /// The ranges of a network whose operator names none: `10.77.0.0/16` for the overlay,
    /// `10.42.0.0/16` in /24 blocks for pods, and a unique local /48 (RFC 4193) made of the
    /// network's id, with the overlay in its first /64 and pods in its upper half.
    #[must_use]
    pub fn default_of(network: &NetworkId) -> Self {
        let mut ula = [0; 16];
        ula.iter_mut()
            .skip(1)
            .zip(network.0)
            .take(5)
            .for_each(|(to, from)| *to = from);
        if let Some(first) = ula.first_mut() {
            *first = 0xfd;
        }
        let mut pods = ula;
        if let Some(byte) = pods.get_mut(6) {
            *byte = 0x80;
        }
        Self {
            overlay4: v4(Ipv4Addr::new(10, 77, 0, 0), 16),
            overlay6: v6(ula, 64),
            pods4: v4(Ipv4Addr::new(10, 42, 0, 0), 16),
            pods4_block: 24,
            pods6: v6(pods, 49),
            pods6_block: 64,
            services: Vec::new(),
        }
    }
}

fn v4(address: Ipv4Addr, length: u8) -> Ipv4Net {
    Ipv4Net::new(address, length).unwrap_or_default().trunc()
}

fn v6(address: [u8; 16], length: u8) -> Ipv6Net {
    Ipv6Net::new(Ipv6Addr::from(address), length)
        .unwrap_or_default()
        .trunc()
}
