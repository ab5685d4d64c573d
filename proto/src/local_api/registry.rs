//! Who and what is in a network, for whoever holds its root key and has to name it.

use std::net::SocketAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::id::{Name, NodeId, TokenId};
use crate::key::PublicKey;
use crate::time::UnixSeconds;

/// What a planet or a node knows of its network. Nothing in it is secret; only the statement is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryView {
    /// The newest edition of the network, as [`crate::signed::Signed::to_base64`] makes it.
    pub statement: String,
    /// Nodes that hold a name and addresses, members or about to be.
    pub nodes: Vec<RegisteredNode>,
    /// External peers that the root has named and not revoked.
    pub externals: Vec<RegisteredExternal>,
    /// Join tokens by which somebody was admitted.
    pub tokens: Vec<TokenUse>,
    /// Whether `tokens` is complete: true for the planet that admits, while it knows its books to be whole.
    pub counts: bool,
    /// One-use tokens that are older admit nobody any more: the planet that admits doesn't know whether they
    /// are spent.
    #[serde(default)]
    pub unknown_until: Option<UnixSeconds>,
}

/// A node that holds something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisteredNode {
    /// Id.
    pub id: NodeId,
    /// Name.
    pub name: Name,
    /// Its tunnels' key.
    pub wireguard: PublicKey,
    /// Leased or claimed, both families.
    pub prefixes: Vec<IpNet>,
}

/// An external peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisteredExternal {
    /// Name.
    pub name: Name,
    /// Its key.
    pub wireguard: PublicKey,
    /// What the root gave it.
    pub prefixes: Vec<IpNet>,
    /// Where it listens, if that is fixed.
    pub endpoint: Option<SocketAddr>,
    /// When the root said so.
    pub issued: UnixSeconds,
}

/// How often a join token was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenUse {
    /// The token.
    pub token: TokenId,
    /// Uses that are spent, as far as known.
    pub used: u32,
}
