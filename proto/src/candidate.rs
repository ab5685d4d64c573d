//! Where a node might be reached: candidates, and the signed record that publishes them.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::error::CertificateError;
use crate::id::{NetworkId, NodeId, PlanetId};
use crate::key::VerifyingKey;
use crate::limits;
use crate::signed::{Document, Signed};

/// How a candidate was found (RFC 8445 §5.1.1, with the server-reflexive kind named as here).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CandidateKind {
    /// An address of the node's own.
    Host,
    /// What a planet saw: the outside of a NAT, or the node itself.
    Reflexive,
    /// Named by the operator, a forwarded port for example.
    Configured,
    /// What a planet saw of the node's spare port: only for later rounds of hole punching, when the
    /// mapping of the main port may be spoilt.
    Spare,
}

/// An endpoint that is not proven yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Candidate {
    /// How it was found.
    pub kind: CandidateKind,
    /// Where.
    pub endpoint: SocketAddr,
}

/// A node's candidates, signed by the node: a planet passes them on and can't change them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRecord {
    /// Of this network.
    pub network: NetworkId,
    /// The node.
    pub node: NodeId,
    /// Start of the node's process, Unix seconds: a later one is a new life of the node.
    pub incarnation: u64,
    /// Grows with each record of one incarnation.
    pub sequence: u64,
    /// At most [`limits::MAX_CANDIDATES`].
    pub candidates: Vec<Candidate>,
    /// Planets that the node can be relayed by.
    pub planets: Vec<PlanetId>,
}

impl Document for EndpointRecord {
    const KIND: &'static str = "endpoint record";
    const CONTEXT: &'static str = "podmesh endpoint record v1";
}

impl EndpointRecord {
    /// The record, if `identity` (its node's newest) signed it, with candidates that must not be
    /// probed taken out.
    ///
    /// # Errors
    /// Unreadable, wrongly signed or of another network.
    pub fn verify(
        signed: &Signed<Self>,
        network: NetworkId,
        identity: &VerifyingKey,
    ) -> Result<Self, CertificateError> {
        let mut record = signed.verify(identity, "the node")?;
        if record.network != network {
            return Err(CertificateError::OtherNetwork {
                document: Self::KIND,
            });
        }
        let mut kept: Vec<Candidate> = Vec::new();
        for candidate in record.candidates.iter().map(Candidate::canonical) {
            let same = |other: &&Candidate| other.endpoint.ip() == candidate.endpoint.ip();
            if kept.len() < limits::MAX_CANDIDATES
                && kept.iter().filter(same).count() < limits::MAX_CANDIDATES_PER_ADDRESS
                && may_be_probed(&candidate.endpoint)
            {
                kept.push(candidate);
            }
        }
        record.candidates = kept;
        Ok(record)
    }

    /// Whether this is news after `known`.
    #[must_use]
    pub fn is_newer_than(&self, known: &Self) -> bool {
        (self.incarnation, self.sequence) > (known.incarnation, known.sequence)
    }

    /// Whether this is a later word than `known` of one and the same life: neither is of another, nor are
    /// they two words under one number.
    #[must_use]
    pub fn is_newer_edition(&self, known: &Self) -> bool {
        self.incarnation == known.incarnation && self.sequence > known.sequence
    }
}

impl Candidate {
    /// The same with an IPv4-mapped IPv6 address folded to IPv4.
    #[must_use]
    pub fn canonical(&self) -> Self {
        Self {
            kind: self.kind,
            endpoint: canonical(self.endpoint),
        }
    }
}

/// Folds an IPv4-mapped IPv6 address (RFC 4291 §2.5.5.2) to IPv4, so that every later comparison
/// sees one form.
#[must_use]
pub fn canonical(endpoint: SocketAddr) -> SocketAddr {
    SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port())
}

/// Whether a node may ever send a probe to `endpoint` because somebody said so: a unicast address
/// that is neither loopback, link-local (cloud metadata services live there) nor unspecified, and an
/// unprivileged port.
#[must_use]
pub fn may_be_probed(endpoint: &SocketAddr) -> bool {
    if endpoint.port() < 1024 {
        return false;
    }
    match endpoint.ip().to_canonical() {
        IpAddr::V4(ip) => {
            let [first, ..] = ip.octets();
            !(ip.is_loopback()
                || ip.is_link_local()
                || ip.is_multicast()
                || ip.is_broadcast()
                || first == 0
                || first >= 240)
        }
        IpAddr::V6(ip) => {
            !(ip.is_loopback()
                || ip.is_multicast()
                || ip.is_unspecified()
                || ip.is_unicast_link_local())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kinds_of_candidates_keep_their_numbers() {
        use CandidateKind::{Configured, Host, Reflexive, Spare};
        let numbers =
            [Host, Reflexive, Configured, Spare].map(|kind| postcard::to_allocvec(&kind).unwrap());
        assert_eq!(numbers, [[0], [1], [2], [3]].map(|number| number.to_vec()));
    }

    #[test]
    fn places_that_must_never_be_probed() {
        for bad in [
            "127.0.0.1:5000",
            "0.1.2.3:5000",
            "169.254.169.254:5000",
            "224.0.0.1:5000",
            "255.255.255.255:5000",
            "198.51.100.1:53",
            "[::1]:5000",
            "[fe80::1]:5000",
            "[ff02::1]:5000",
            "[::ffff:127.0.0.1]:5000",
        ] {
            assert!(!may_be_probed(&bad.parse().unwrap()), "{bad}");
        }
        for good in [
            "198.51.100.1:5000",
            "192.168.1.2:5000",
            "[2001:db8::1]:5000",
        ] {
            assert!(may_be_probed(&good.parse().unwrap()), "{good}");
        }
    }
}
