//! A node leaves.

use serde::{Deserialize, Serialize};

use crate::error::CertificateError;
use crate::id::{NetworkId, NodeId};
use crate::key::VerifyingKey;
use crate::renewal::{self, Succession};
use crate::signed::{Document, Signed};
use crate::time::UnixSeconds;

/// A node's word that a membership of its own is over for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Departure {
    /// Of this network.
    pub network: NetworkId,
    /// The node.
    pub node: NodeId,
    /// Every step of its identity, so that its word can be judged where the node is not known.
    pub successions: Vec<Signed<Succession>>,
    /// What ends: the membership whose [`AdmissionReceipt`](super::AdmissionReceipt) bears this time, and all
    /// that were admitted before it. A later admission is dated later by its planet, so that no clock but the
    /// planets' decides what a departure ends.
    pub time: UnixSeconds,
}

impl Departure {
    /// The departure and the identities of its node from the first to the newest, if that one signed
    /// it.
    ///
    /// # Errors
    /// Unreadable, of another network, or not signed by the newest identity that it names.
    pub fn verify(
        signed: &Signed<Self>,
        network: NetworkId,
    ) -> Result<(Self, Vec<VerifyingKey>), CertificateError> {
        let claimed = signed.unverified()?;
        if claimed.network != network {
            let document = Self::KIND;
            return Err(CertificateError::OtherNetwork { document });
        }
        let identities = renewal::identities(network, claimed.node, &claimed.successions)?;
        let newest = identities.last().copied();
        let departure = signed.verify(&newest.unwrap_or(claimed.node.into()), "the node")?;
        Ok((departure, identities))
    }
}

impl Document for Departure {
    const KIND: &'static str = "departure";
    const CONTEXT: &'static str = "podmesh departure v1";
}
