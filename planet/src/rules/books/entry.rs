//! What the books say about one node.

use ipnet::IpNet;
use podmesh_proto::certificate::{
    AdmissionReceipt, Claim, ClaimReceipt, Grant, Member, Membership, NodeCertificate,
};
use podmesh_proto::key::{PublicKey, VerifyingKey};
use podmesh_proto::renewal::Renewed;

use crate::rules::records::{Admission, ReceiptedClaim};

/// What the books say about one node.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its admission.
    pub admission: Admission,
    /// The grant that its token gave.
    pub grant: Grant,
    /// Its certificate.
    pub certificate: NodeCertificate,
    /// The receipt of its admission.
    pub receipt: AdmissionReceipt,
    /// Its claim.
    pub claim: Option<(ReceiptedClaim, Claim, ClaimReceipt)>,
    /// How its certificate goes on.
    pub renewed: Option<Box<Renewed>>,
    /// The verified whole; absent until the node has claimed, and if the chain doesn't hold.
    pub member: Option<Member>,
    /// Bytes of the encoded membership.
    pub length: usize,
}

impl Entry {
    /// The chain as nodes pass it on.
    #[must_use]
    pub fn membership(&self) -> Option<Membership> {
        let (kept, ..) = self.claim.as_ref()?;
        Some(Membership {
            application: self.admission.application.clone(),
            receipt: self.admission.receipt.clone(),
            claim: kept.claim.clone(),
            claim_receipt: kept.receipt.clone(),
            renewed: self.renewed.clone(),
        })
    }

    /// The identity that speaks for the node by now.
    #[must_use]
    pub fn identity(&self) -> VerifyingKey {
        let member = self.member.as_ref();
        member.map_or(self.certificate.node.into(), Member::identity)
    }

    /// Whether `identities`, from the first on, are the node's as far as the books know them, and perhaps later
    /// ones: another planet may have receipted a step of which this one has yet to hear.
    #[must_use]
    pub fn goes_on_as(&self, identities: &[VerifyingKey]) -> bool {
        match &self.member {
            Some(member) => identities.starts_with(&member.identities),
            None => identities.first() == Some(&self.certificate.node.into()),
        }
    }

    /// The node's present WireGuard and probe keys.
    #[must_use]
    pub fn keys(&self) -> (PublicKey, PublicKey) {
        let certified = (self.certificate.wireguard, self.certificate.probe);
        let member = self.member.as_ref();
        member.map_or(certified, |member| (member.wireguard, member.probe))
    }

    /// Everything that nobody else may have: leases and claims.
    pub fn prefixes(&self) -> impl Iterator<Item = IpNet> + '_ {
        let claimed = self.claim.iter().flat_map(|(_, claim, _)| {
            let overlay4 = claim
                .overlay4
                .map(|address| IpNet::from(std::net::IpAddr::V4(address)));
            overlay4.into_iter().chain(claim.pod_cidrs.iter().copied())
        });
        self.receipt.leases.prefixes().into_iter().chain(claimed)
    }

    /// The highest receipt number that this node's documents bear.
    #[must_use]
    pub fn newest(&self) -> u64 {
        let claimed = self.claim.as_ref().map(|(_, _, receipt)| receipt.sequence);
        self.receipt.sequence.max(claimed.unwrap_or(0))
    }

    /// Receipt numbers that this node's documents bear or settle.
    pub fn numbers(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let claimed = self.claim.iter().flat_map(|(_, _, receipt)| {
            std::iter::once((receipt.sequence, receipt.sequence))
                .chain(receipt.settles.iter().copied())
        });
        std::iter::once((self.receipt.sequence, self.receipt.sequence)).chain(claimed)
    }
}
