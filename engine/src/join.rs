//! Becoming a member.
//!
//! The application is signed at once and the token's key is not kept: from then on the join needs
//! nothing secret but the node's own keys, survives a restart, and can be repeated word for word to
//! any planet as often as needed. Application → admission receipt → claim → claim receipt → membership.

use std::time::Duration;

use ipnet::IpNet;

use podmesh_proto::certificate::{
    AdmissionReceipt, Application, Claim, ClaimReceipt, Membership, NodeCertificate,
};
use podmesh_proto::error::{CertificateError, DecodeError};
use podmesh_proto::id::Name;
use podmesh_proto::key::SigningKey;
use podmesh_proto::limits::CLOCK_SKEW;
use podmesh_proto::network::{Network, RootStatement};
use podmesh_proto::planet_api::{NodeMessage, Refusal, RefusalCode};
use podmesh_proto::signed::Signed;
use podmesh_proto::time::UnixSeconds;
use podmesh_proto::token::JoinToken;

use crate::config::EngineConfig;
use crate::error::JoinError;
use crate::stored::Joining;

/// A join under way.
pub struct Join {
    network: Network,
    statement: Signed<RootStatement>,
    name: Name,
    application: Application,
    receipt: Option<Signed<AdmissionReceipt>>,
    claim: Option<Signed<Claim>>,
    /// The last answer that was no.
    refusal: Option<Refusal>,
}

/// What a refusal means for the join.
#[derive(Debug, PartialEq, Eq)]
pub enum AfterRefusal {
    /// Ask again, after this long if the planet says so.
    Retry(Option<Duration>),
    /// Over.
    Failed(JoinError),
}

impl Join {
    /// Signs the application that `token` allows.
    ///
    /// # Errors
    /// The token doesn't hold, has expired, or is for another name.
    pub fn begin(
        token: &JoinToken,
        name: Name,
        config: &EngineConfig,
        now: UnixSeconds,
    ) -> Result<Self, JoinError> {
        let (network, grant) = token.verify()?;
        if now > grant.expires.plus(CLOCK_SKEW) {
            return Err(JoinError::TokenExpired {
                at: grant.expires,
                now,
            });
        }
        if let Some(wanted) = grant.for_name.clone().filter(|wanted| *wanted != name) {
            return Err(JoinError::TokenName {
                wanted,
                given: name,
            });
        }
        let certificate = NodeCertificate {
            network: network.id,
            node: config.keys.identity.node_id(),
            name: name.clone(),
            wireguard: config.keys.wireguard.public(),
            probe: config.keys.probe.public(),
            site: grant.site,
            groups: grant.groups,
            relay: grant.relay,
            issued: now,
            expires: grant.membership.map(|seconds| now.plus(seconds)),
        };
        let application = Application::new(
            token.grant.clone(),
            &certificate,
            &token.key,
            &config.keys.identity,
        )?;
        Ok(Self {
            network,
            statement: token.network.clone(),
            name,
            application,
            receipt: None,
            claim: None,
            refusal: None,
        })
    }

    /// Goes on with a join of the node's last life.
    ///
    /// # Errors
    /// The network document doesn't hold, or the application is not for it.
    pub fn resume(
        statement: Signed<RootStatement>,
        joining: Joining,
    ) -> Result<Self, CertificateError> {
        let network = Network::from_statement(&statement)?;
        let (_, certificate) = joining.application.verify(&network)?;
        Ok(Self {
            network,
            statement,
            name: certificate.name,
            application: joining.application,
            receipt: joining.receipt,
            claim: None,
            refusal: None,
        })
    }

    /// The network to be joined.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The network as its root signed it.
    #[must_use]
    pub fn statement(&self) -> &Signed<RootStatement> {
        &self.statement
    }

    /// The name asked for.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The last answer that was no.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        self.refusal.as_ref()
    }

    /// What has to be on disk.
    #[must_use]
    pub fn stored(&self) -> Joining {
        Joining {
            application: self.application.clone(),
            receipt: self.receipt.clone(),
        }
    }

    /// What to say to a planet now. A planet answers a repeated application as it did the first one.
    #[must_use]
    pub fn message(&self) -> NodeMessage {
        NodeMessage::Join(Box::new(self.application.clone()))
    }

    /// A newer edition of the network, before the join is done.
    pub fn take_edition(&mut self, statement: &Signed<RootStatement>) {
        if let Ok(RootStatement::Network(network)) = self.network.verify(statement)
            && network.version > self.network.version
        {
            self.network = network;
            self.statement = statement.clone();
        }
    }

    /// The planet has admitted this node: gives the claim of the leased (or configured) addresses.
    ///
    /// # Errors
    /// The receipt isn't one, or the claim can't be made.
    pub fn admitted(
        &mut self,
        receipt: &Signed<AdmissionReceipt>,
        pod_cidrs: &[IpNet],
        identity: &SigningKey,
        serial: u64,
    ) -> Result<Signed<Claim>, CertificateError> {
        let told = receipt.unverified()?;
        let admission = receipt.verify(&told.planet.into(), "its planet")?;
        let matching = admission.node == identity.node_id()
            && admission.certificate == self.application.certificate.hash();
        if !matching {
            return Err(CertificateError::Mismatch {
                document: "admission receipt",
                field: "certificate",
            });
        }
        let claim = self.claim_of(&admission, pod_cidrs, identity, serial)?;
        self.receipt = Some(receipt.clone());
        self.claim = Some(claim.clone());
        self.refusal = None;
        Ok(claim)
    }

    fn claim_of(
        &self,
        admission: &AdmissionReceipt,
        pod_cidrs: &[IpNet],
        identity: &SigningKey,
        serial: u64,
    ) -> Result<Signed<Claim>, DecodeError> {
        let leases = &admission.leases;
        let leased = [leases.pods4.map(IpNet::V4), leases.pods6.map(IpNet::V6)];
        let pod_cidrs = if pod_cidrs.is_empty() {
            leased.into_iter().flatten().collect()
        } else {
            pod_cidrs.to_vec()
        };
        let claim = Claim {
            network: self.network.id,
            node: identity.node_id(),
            serial,
            overlay4: leases.overlay4,
            pod_cidrs,
        };
        Signed::seal(&claim, identity)
    }

    /// The planet has receipted the claim: gives the membership, proven as every peer will. It may be over by this
    /// clock, which may be wrong, or the receipt has come late: the member that this node is then says what to do.
    ///
    /// # Errors
    /// Nothing was claimed, or some link doesn't hold.
    pub fn claimed(
        &self,
        claim_receipt: &Signed<ClaimReceipt>,
    ) -> Result<Membership, CertificateError> {
        let missing = CertificateError::Mismatch {
            document: "claim receipt",
            field: "claim",
        };
        let membership = Membership {
            application: self.application.clone(),
            receipt: self.receipt.clone().ok_or(missing.clone())?,
            claim: self.claim.clone().ok_or(missing)?,
            claim_receipt: claim_receipt.clone(),
            renewed: None,
        };
        membership.prove(&self.network)?;
        Ok(membership)
    }

    /// The planet said no.
    pub fn refused(&mut self, refusal: Refusal) -> AfterRefusal {
        let wait = refusal.retry_in;
        let (code, reason) = (refusal.code, refusal.reason.clone());
        self.refusal = Some(refusal);
        match code {
            RefusalCode::Relearning
            | RefusalCode::Busy
            | RefusalCode::NotArbiter
            | RefusalCode::NotMember => AfterRefusal::Retry(wait),
            _ => AfterRefusal::Failed(JoinError::Refused { code, reason }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(code: RefusalCode, retry_in: Option<Duration>) -> Refusal {
        Refusal {
            code,
            reason: "because".to_owned(),
            retry_in,
        }
    }

    #[test]
    fn every_final_refusal_says_what_to_do() {
        use RefusalCode::{
            Conflict, Exhausted, Invalid, NodeRevoked, OtherNetwork, Protocol, TokenExpired,
            TokenRevoked, TokenUsedUp, Unproven,
        };
        for code in [
            Conflict,
            Exhausted,
            Invalid,
            NodeRevoked,
            OtherNetwork,
            Protocol,
            TokenExpired,
            TokenRevoked,
            TokenUsedUp,
            Unproven,
        ] {
            let reason = refusal(code, None).reason;
            let error = JoinError::Refused { code, reason };
            assert_eq!(error.to_string(), "the planet refused: because");
            assert!(error.next().is_some(), "{code:?}");
            let by_new_keys = matches!(code, NodeRevoked | Unproven);
            let said = error
                .next()
                .is_some_and(|next| next.contains("--forget-keys"));
            assert_eq!(said, by_new_keys, "{code:?}");
        }
    }
}
