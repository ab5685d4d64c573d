//! Renewal: how a membership goes on, and how a node's keys change.
//!
//! A node's certificate has successors, numbered from 1. Each refers to the certificate by its hash, so
//! that name, site, groups, relaying and ranges can't change; only the validity and the keys may. The
//! node's identity signs it, and a planet receipts it, so that a revoked node is not renewed. A
//! membership carries the newest successor alone. Where the identity itself has changed, it also
//! carries the steps from key to key, each signed by the key before: a node's id stays its first key,
//! the last key speaks for it, and what a former key signs counts no more.

use serde::{Deserialize, Serialize};

use crate::certificate::{Grant, Member, Membership, NodeCertificate};
use crate::error::CertificateError;
use crate::id::{NetworkId, NodeId, PlanetId};
use crate::key::{PublicKey, VerifyingKey};
use crate::limits::{CLOCK_SKEW, MAX_SUCCESSIONS};
use crate::network::Network;
use crate::signed::{Document, Signed};
use crate::time::UnixSeconds;

/// A successor of a node's certificate, signed by the node's newest identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// Of this network.
    pub network: NetworkId,
    /// The node.
    pub node: NodeId,
    /// [`Signed::hash`] of the certificate that goes on.
    pub certificate: [u8; 32],
    /// One more than the document before; the certificate counts as 0.
    pub serial: u64,
    /// [`Signed::hash`] of the document before: the certificate, or the renewal with the serial before.
    pub follows: [u8; 32],
    /// [`Signed::hash`] of the claim in force: it stays the node's word, whichever of its identities
    /// signed it.
    pub claim: [u8; 32],
    /// WireGuard key from here on.
    pub wireguard: PublicKey,
    /// Probe key from here on.
    pub probe: PublicKey,
    /// When the present life began; stays where it was when only keys change.
    pub issued: UnixSeconds,
    /// Void after this; `None` until revoked.
    pub expires: Option<UnixSeconds>,
}

/// A step from one identity of a node to the next, signed by the one before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Succession {
    /// Of this network.
    pub network: NetworkId,
    /// The node; its id is its first identity and stays.
    pub node: NodeId,
    /// 1 for the step from the first identity to the second.
    pub number: u32,
    /// The identity from here on.
    pub next: VerifyingKey,
}

/// A planet's word that a renewal is the one successor that it knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewalReceipt {
    /// Of this network.
    pub network: NetworkId,
    /// Which planet.
    pub planet: PlanetId,
    /// The node.
    pub node: NodeId,
    /// [`Signed::hash`] of the renewal.
    pub renewal: [u8; 32],
    /// When.
    pub time: UnixSeconds,
}

impl Document for Renewal {
    const KIND: &'static str = "renewal";
    const CONTEXT: &'static str = "podmesh renewal v1";
}

impl Document for Succession {
    const KIND: &'static str = "succession";
    const CONTEXT: &'static str = "podmesh succession v1";
}

impl Document for RenewalReceipt {
    const KIND: &'static str = "renewal receipt";
    const CONTEXT: &'static str = "podmesh renewal receipt v1";
}

/// What a node hands to a planet to be receipted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewalRequest {
    /// Every step of the node's identity since its first, in order.
    pub successions: Vec<Signed<Succession>>,
    /// By the newest identity.
    pub renewal: Signed<Renewal>,
}

/// The part of a membership that is newer than its certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewed {
    /// What the node handed in.
    pub request: RenewalRequest,
    /// By a planet.
    pub receipt: Signed<RenewalReceipt>,
}

/// How a verified state of a node stands to another one of the same node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Takes the other's place.
    Newer,
    /// Says nothing else.
    Same,
    /// The other has taken its place.
    Older,
    /// By an identity that the other one has replaced.
    Superseded,
    /// A second successor of one document: only one of the two can be the node's.
    Forked,
}

/// What a membership says about the node's keys and life by now.
pub(crate) struct Present {
    pub(crate) identities: Vec<VerifyingKey>,
    pub(crate) wireguard: PublicKey,
    pub(crate) probe: PublicKey,
    pub(crate) renewal: u64,
    pub(crate) document: [u8; 32],
    pub(crate) follows: Option<[u8; 32]>,
    pub(crate) claim: Option<[u8; 32]>,
    pub(crate) issued: UnixSeconds,
    pub(crate) expires: Option<UnixSeconds>,
}

/// The identities of `node` from the first to the newest.
///
/// # Errors
/// A step is not signed by the identity before it, is out of order, or leads back.
pub fn identities(
    network: NetworkId,
    node: NodeId,
    successions: &[Signed<Succession>],
) -> Result<Vec<VerifyingKey>, CertificateError> {
    const DOCUMENT: &str = Succession::KIND;
    let mismatch = |field| CertificateError::Mismatch {
        document: DOCUMENT,
        field,
    };
    if successions.len() > MAX_SUCCESSIONS {
        return Err(mismatch("number of steps"));
    }
    let mut newest = VerifyingKey::from(node);
    let mut all = vec![newest];
    for (signed, number) in successions.iter().zip(1..) {
        let step = signed.verify(&newest, "the node's identity before")?;
        if step.network != network {
            return Err(CertificateError::OtherNetwork { document: DOCUMENT });
        }
        if step.node != node {
            return Err(mismatch("node"));
        }
        if step.number != number || all.contains(&step.next) {
            return Err(mismatch("order"));
        }
        newest = step.next;
        all.push(newest);
    }
    Ok(all)
}

impl Present {
    /// As the certificate says it.
    pub(crate) fn of_certificate(certificate: &NodeCertificate, hash: [u8; 32]) -> Self {
        Self {
            identities: vec![certificate.node.into()],
            wireguard: certificate.wireguard,
            probe: certificate.probe,
            renewal: 0,
            document: hash,
            follows: None,
            claim: None,
            issued: certificate.issued,
            expires: certificate.expires,
        }
    }

    /// The identity that speaks for the node.
    pub(crate) fn identity(&self, node: NodeId) -> VerifyingKey {
        self.identities.last().copied().unwrap_or(node.into())
    }
}

impl Membership {
    /// What the newest document of the chain says, if it and its receipt hold.
    pub(crate) fn present(
        &self,
        network: &Network,
        grant: &Grant,
        certificate: &NodeCertificate,
    ) -> Result<Present, CertificateError> {
        let hash = self.application.certificate.hash();
        let Some(renewed) = &self.renewed else {
            return Ok(Present::of_certificate(certificate, hash));
        };
        let present = renewed
            .request
            .verify(network.id, grant, (certificate, hash))?;
        renewed.verify_receipt(network, &present)?;
        Ok(present)
    }
}

impl RenewalRequest {
    fn verify(
        &self,
        network: NetworkId,
        grant: &Grant,
        (certificate, hash): (&NodeCertificate, [u8; 32]),
    ) -> Result<Present, CertificateError> {
        const DOCUMENT: &str = Renewal::KIND;
        let identities = identities(network, certificate.node, &self.successions)?;
        let newest = identities.last().copied();
        let newest = newest.unwrap_or(certificate.node.into());
        let renewal = self.renewal.verify(&newest, "the node's newest identity")?;
        let mismatch = |field| {
            Err(CertificateError::Mismatch {
                document: DOCUMENT,
                field,
            })
        };
        if renewal.network != network {
            return Err(CertificateError::OtherNetwork { document: DOCUMENT });
        }
        if renewal.node != certificate.node {
            return mismatch("node");
        }
        if renewal.certificate != hash {
            return mismatch("certificate");
        }
        if renewal.serial == 0 || (renewal.serial == 1 && renewal.follows != hash) {
            return mismatch("serial");
        }
        for (field, key) in [("WireGuard", renewal.wireguard), ("probe", renewal.probe)] {
            if key.is_low_order() {
                return Err(CertificateError::WeakKey { field });
            }
        }
        grant.allows_life(DOCUMENT, renewal.issued, renewal.expires)?;
        Ok(Present {
            identities,
            wireguard: renewal.wireguard,
            probe: renewal.probe,
            renewal: renewal.serial,
            document: self.renewal.hash(),
            follows: Some(renewal.follows),
            claim: Some(renewal.claim),
            issued: renewal.issued,
            expires: renewal.expires,
        })
    }
}

impl Renewed {
    fn verify_receipt(&self, network: &Network, present: &Present) -> Result<(), CertificateError> {
        const DOCUMENT: &str = RenewalReceipt::KIND;
        let claimed = self.receipt.unverified()?;
        if !network.has_planet(&claimed.planet, claimed.time) {
            return Err(CertificateError::UnknownPlanet { document: DOCUMENT });
        }
        let receipt = self.receipt.verify(&claimed.planet.into(), "its planet")?;
        if receipt.network != network.id {
            return Err(CertificateError::OtherNetwork { document: DOCUMENT });
        }
        let first = present.identities.first().copied();
        let field = if first != Some(receipt.node.into()) {
            Some("node")
        } else if receipt.renewal != present.document {
            Some("renewal")
        } else {
            None
        };
        if let Some(field) = field {
            return Err(CertificateError::Mismatch {
                document: DOCUMENT,
                field,
            });
        }
        begun(Renewal::KIND, present.issued, present.expires, receipt.time)
    }
}

/// A life that ends must have begun by the time of its receipt: who dates it ahead would live longer
/// than was granted.
pub(crate) fn begun(
    document: &'static str,
    issued: UnixSeconds,
    expires: Option<UnixSeconds>,
    time: UnixSeconds,
) -> Result<(), CertificateError> {
    if expires.is_some() && issued > time.plus(CLOCK_SKEW) {
        return Err(CertificateError::NotYet {
            document,
            at: issued,
        });
    }
    Ok(())
}

impl Member {
    /// The identity that speaks for the node.
    #[must_use]
    pub fn identity(&self) -> VerifyingKey {
        self.identities.last().copied().unwrap_or(self.node.into())
    }

    /// How this state of a node stands to `known`, an earlier learned one of the same node. Whoever
    /// keeps memberships takes a [`Standing::Newer`] one alone.
    #[must_use]
    pub fn standing(&self, known: &Self) -> Standing {
        let common = self.identities.iter().zip(&known.identities);
        if common.into_iter().any(|(mine, theirs)| mine != theirs) {
            return Standing::Forked;
        }
        if self.certificate == known.certificate {
            let other = self.document != known.document;
            let follows_other = self.renewal == known.renewal.saturating_add(1)
                && self.follows != Some(known.document);
            if (self.renewal == known.renewal && other) || follows_other {
                return Standing::Forked;
            }
        }
        if self.identities.len() < known.identities.len() {
            return Standing::Superseded;
        }
        // A further admission starts the serials of renewals anew, those of claims go on.
        let again = self.certificate != known.certificate;
        let order = |member: &Self| {
            let renewal = if again { 0 } else { member.renewal };
            (member.admitted, renewal, member.serial)
        };
        let (mine, theirs) = (order(self), order(known));
        let falls = mine.0 < theirs.0 || mine.1 < theirs.1 || mine.2 < theirs.2;
        if (mine, self.sequence) > (theirs, known.sequence) && !falls {
            Standing::Newer
        } else if mine < theirs || falls {
            Standing::Older
        } else {
            Standing::Same
        }
    }

    /// When the node should ask for the next renewal: after two thirds of its present life. `None` for
    /// a life that doesn't end.
    #[must_use]
    pub fn renews(&self) -> Option<UnixSeconds> {
        let life = self.expires?.0.saturating_sub(self.issued.0);
        Some(self.issued.plus(life.saturating_mul(2) / 3))
    }
}
