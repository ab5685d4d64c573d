//! What a planet shows of itself to its operator.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use podmesh_proto::error::DecodeError;
use podmesh_proto::id::{Name, NetworkId, NodeId, PlanetId};
use podmesh_proto::local_api::{RegisteredExternal, RegisteredNode, RegistryView, TokenUse};
use podmesh_proto::time::Now;
use serde::{Deserialize, Serialize};

use crate::rules::Planet;
use crate::rules::books::Entry;
use crate::rules::relaying::RelayCounters;

/// Name of the schema of [`PlanetStatus`].
pub const SCHEMA: &str = "podmesh.planet-status/v1";

/// A planet as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanetStatus {
    /// [`SCHEMA`].
    pub schema: String,
    /// The planet.
    pub planet: PlanetId,
    /// The program's version.
    pub version: String,
    /// The network; absent until one is adopted.
    pub network: Option<NetworkId>,
    /// Its name.
    pub network_name: Option<Name>,
    /// Edition of the network document.
    pub network_version: u64,
    /// Whether this planet gives leases.
    pub arbiter: bool,
    /// Why nothing is granted at the moment.
    pub not_granting: Option<String>,
    /// Why the store couldn't be written the last time.
    pub write_error: Option<String>,
    /// What somebody should look at, in sentences.
    #[serde(default)]
    pub remarks: Vec<String>,
    /// Highest receipt number.
    pub sequence: u64,
    /// Members, sorted by name.
    pub members: Vec<MemberStatus>,
    /// Nodes that were admitted and have not claimed yet.
    pub pending: u64,
    /// Open relay sessions.
    pub relay_sessions: u64,
    /// What became of relay frames.
    pub relay: RelayStatus,
}

/// Counters of relaying since the start.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RelayStatus {
    /// Frames passed on.
    pub forwarded: u64,
    /// Bytes of their payload.
    pub forwarded_bytes: u64,
    /// Questions answered.
    pub observed: u64,
    /// Dropped: no session's key sealed it.
    pub dropped_unproven: u64,
    /// Dropped: seen before.
    pub dropped_replay: u64,
    /// Dropped: over the quota.
    pub dropped_quota: u64,
    /// Dropped: no session of the receiver.
    pub dropped_unreachable: u64,
    /// Dropped: neither WireGuard nor a probe.
    pub dropped_payload: u64,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: Name,
    /// Its site.
    pub site: Option<Name>,
    /// Whether it is connected here.
    pub online: bool,
    /// From where.
    pub remote: Option<SocketAddr>,
    /// Round trip to it in milliseconds.
    pub rtt_ms: Option<u64>,
    /// Its program.
    pub software: Option<String>,
    /// Overlay IPv4 address.
    pub overlay4: Option<Ipv4Addr>,
    /// Pod CIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// RFC 3339.
    pub admitted: String,
    /// RFC 3339; absent when valid until revoked.
    pub expires: Option<String>,
}

impl Planet {
    /// The planet as it stands.
    #[must_use]
    pub fn status(&self, relay: RelayCounters, sessions: usize, now: Now) -> PlanetStatus {
        let mut members: Vec<MemberStatus> = self
            .books()
            .entries()
            .filter_map(|(node, _)| self.member_status(node, now))
            .collect();
        members.sort_by(|one, other| one.name.cmp(&other.name));
        let pending = self
            .books
            .entries()
            .filter(|(_, entry)| entry.claim.is_none());
        PlanetStatus {
            schema: SCHEMA.to_owned(),
            planet: self.id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            network: Some(self.books.network.id),
            network_name: Some(self.books.network.name.clone()),
            network_version: self.books.network.version,
            arbiter: self.is_arbiter(),
            not_granting: self.relearning.prospect(&self.books, now.moment),
            write_error: self.commits.trouble(now.moment),
            remarks: self
                .remarks()
                .into_iter()
                .chain(self.twins_remarks(now))
                .chain(self.clock_remark(now))
                .collect(),
            sequence: self.relearning.highest(&self.books),
            pending: pending.count().try_into().unwrap_or(u64::MAX),
            members,
            relay_sessions: sessions.try_into().unwrap_or(u64::MAX),
            relay: relay.into(),
        }
    }

    /// Who and what the books name.
    ///
    /// # Errors
    /// The document can't be encoded.
    pub fn registry(&self, now: Now) -> Result<RegistryView, DecodeError> {
        let books = &self.books;
        let nodes = books.entries().filter(|(node, _)| !books.is_out(node));
        let nodes = nodes.map(|(node, entry)| RegisteredNode {
            id: *node,
            name: entry.certificate.name.clone(),
            wireguard: entry.keys().0,
            prefixes: self.prefixes(node, entry),
        });
        let externals = books.named_externals().map(|peer| RegisteredExternal {
            name: peer.name.clone(),
            wireguard: peer.wireguard,
            prefixes: peer.prefixes.clone(),
            endpoint: peer.endpoint,
            issued: peer.issued,
        });
        let tokens = books.uses().map(|(token, spent)| TokenUse {
            token: *token,
            used: u32::try_from(spent).unwrap_or(u32::MAX),
        });
        Ok(RegistryView {
            statement: books.network_statement.to_base64()?,
            nodes: nodes.collect(),
            externals: externals.collect(),
            tokens: tokens.collect(),
            counts: self.is_arbiter() && self.relearning.why_not(books, now.moment).is_none(),
            unknown_until: books.unknown_uses(),
        })
    }

    fn prefixes(&self, node: &NodeId, entry: &Entry) -> Vec<IpNet> {
        let mut prefixes: Vec<IpNet> = entry.prefixes().collect();
        let overlay6 = self.books.network.overlay6(node);
        prefixes.push(IpNet::from(IpAddr::V6(overlay6)));
        prefixes.sort_unstable();
        prefixes.dedup();
        prefixes
    }

    fn member_status(&self, node: &NodeId, now: Now) -> Option<MemberStatus> {
        let member = self.books.member(node, now.unix)?;
        let connection = self
            .online
            .get(node)
            .and_then(|id| self.connections.get(id));
        let rtt_ms = connection.map(|known| known.rtt.as_millis().try_into().unwrap_or(u64::MAX));
        Some(MemberStatus {
            node: *node,
            name: member.name.clone(),
            site: member.site.clone(),
            online: connection.is_some(),
            remote: connection.map(|known| known.remote),
            rtt_ms,
            software: connection.map(|known| known.software.clone()),
            overlay4: member.overlay4,
            pod_cidrs: member.pod_cidrs.clone(),
            admitted: member.admitted.to_string(),
            expires: member.expires.map(|at| at.to_string()),
        })
    }
}

impl From<RelayCounters> for RelayStatus {
    fn from(counters: RelayCounters) -> Self {
        Self {
            forwarded: counters.forwarded,
            forwarded_bytes: counters.forwarded_bytes,
            observed: counters.observed,
            dropped_unproven: counters.dropped_unproven,
            dropped_replay: counters.dropped_replay,
            dropped_quota: counters.dropped_quota,
            dropped_unreachable: counters.dropped_unreachable,
            dropped_payload: counters.dropped_payload,
        }
    }
}
