//! False documents, signed with whatever keys the thief really has.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use podmesh_proto::certificate::{
    AdmissionReceipt, Application, Claim, ClaimReceipt, Grant, Leases, Membership, NodeCertificate,
};
use podmesh_proto::id::{Name, NodeId};
use podmesh_proto::key::{PublicKey, SigningKey};
use podmesh_proto::network::Network;
use podmesh_proto::signed::Signed;
use podmesh_proto::time::UnixSeconds;

use crate::clock;
use crate::loot::Keys;

/// The workshop: a network and the stolen key of one of its planets.
pub(crate) struct Forger<'a> {
    /// The network.
    pub(crate) network: &'a Network,
    /// The stolen key.
    pub(crate) planet: &'a SigningKey,
    /// Number of the next receipt.
    pub(crate) sequence: u64,
}

/// A node that was never admitted.
pub(crate) struct Newcomer<'a> {
    /// Its keys.
    pub(crate) keys: &'a Keys,
    /// Its name.
    pub(crate) name: Name,
    /// The grant that it says it has.
    pub(crate) grant: Signed<Grant>,
    /// The key that signs its certificate.
    pub(crate) token_key: &'a SigningKey,
    /// Which use of the token this is said to be, and when.
    pub(crate) admitted: (u32, UnixSeconds),
}

impl Forger<'_> {
    /// A whole chain for a newcomer with free addresses.
    pub(crate) fn newcomer(&self, newcomer: Newcomer<'_>) -> Result<Membership> {
        let grant = newcomer.grant.unverified()?;
        let keys = newcomer.keys;
        let certificate = NodeCertificate {
            network: self.network.id,
            node: keys.identity.node_id(),
            name: newcomer.name,
            wireguard: keys.wireguard.public(),
            probe: keys.probe.public(),
            site: grant.site.clone(),
            groups: grant.groups.clone(),
            relay: false,
            issued: newcomer.admitted.1,
            expires: grant
                .membership
                .map(|seconds| newcomer.admitted.1.plus(seconds)),
        };
        let application = Application::new(
            newcomer.grant,
            &certificate,
            newcomer.token_key,
            &keys.identity,
        )?;
        let (overlay4, pods4, pods6) = self.free_addresses()?;
        let claim = Claim {
            network: self.network.id,
            node: certificate.node,
            serial: 1,
            overlay4: Some(overlay4),
            pod_cidrs: vec![pods4.into(), pods6.into()],
        };
        let claim = Signed::seal(&claim, &keys.identity)?;
        let receipt = self.admission(&application, &certificate, newcomer.admitted)?;
        Ok(Membership {
            receipt,
            claim_receipt: self.claimed(&claim, certificate.node)?,
            claim,
            application,
            renewed: None,
        })
    }

    /// The chain of a member with another claim, signed by `signer`, and a real receipt for it.
    pub(crate) fn with_claim(
        &self,
        member: &Membership,
        claim: &Claim,
        signer: &SigningKey,
    ) -> Result<Membership> {
        let claim = Signed::seal(claim, signer)?;
        let node = claim.unverified()?.node;
        Ok(Membership {
            application: member.application.clone(),
            receipt: member.receipt.clone(),
            claim_receipt: self.claimed(&claim, node)?,
            claim,
            renewed: None,
        })
    }

    /// The chain of a member with the `WireGuard` key of somebody else.
    pub(crate) fn with_key(&self, member: &Membership, key: PublicKey) -> Result<Membership> {
        let mut certificate = member.application.certificate.unverified()?;
        certificate.wireguard = key;
        let grant = member.application.grant.clone();
        let application = Application::new(grant, &certificate, self.planet, self.planet)?;
        let former = member.receipt.unverified()?;
        let receipt =
            self.admission(&application, &certificate, (former.use_number, former.time))?;
        Ok(Membership {
            application,
            receipt,
            claim: member.claim.clone(),
            claim_receipt: member.claim_receipt.clone(),
            renewed: None,
        })
    }

    /// A real receipt for a real application, with free addresses.
    pub(crate) fn admit(
        &self,
        application: &Application,
        certificate: &NodeCertificate,
    ) -> Result<Signed<AdmissionReceipt>> {
        let (overlay4, pods4, pods6) = self.free_addresses()?;
        let mut receipt = self
            .admission(application, certificate, (1, clock::now()))?
            .unverified()?;
        receipt.leases = Leases {
            overlay4: Some(overlay4),
            pods4: Some(pods4),
            pods6: Some(pods6),
        };
        Ok(Signed::seal(&receipt, self.planet)?)
    }

    /// A real receipt for a claim.
    pub(crate) fn claimed(
        &self,
        claim: &Signed<Claim>,
        node: NodeId,
    ) -> Result<Signed<ClaimReceipt>> {
        let receipt = ClaimReceipt {
            network: self.network.id,
            planet: self.planet.planet_id(),
            node,
            claim: claim.hash(),
            sequence: self.sequence,
            settles: Vec::new(),
            time: clock::now(),
        };
        Ok(Signed::seal(&receipt, self.planet)?)
    }

    fn admission(
        &self,
        application: &Application,
        certificate: &NodeCertificate,
        (use_number, time): (u32, UnixSeconds),
    ) -> Result<Signed<AdmissionReceipt>> {
        let receipt = AdmissionReceipt {
            network: self.network.id,
            planet: self.planet.planet_id(),
            token: application.grant.unverified()?.token,
            use_number,
            node: certificate.node,
            name: certificate.name.clone(),
            certificate: application.certificate.hash(),
            leases: Leases::default(),
            sequence: self.sequence,
            time,
        };
        Ok(Signed::seal(&receipt, self.planet)?)
    }

    /// Addresses in the upper half of the ranges, where no honest node of a small network is.
    fn free_addresses(&self) -> Result<(Ipv4Addr, Ipv4Net, Ipv6Net)> {
        let ranges = &self.network.ranges;
        let number = usize::try_from(self.sequence % 64)? + 128;
        let last = u32::from(ranges.overlay4.broadcast());
        let overlay4 = Ipv4Addr::from(last - u32::try_from(number)?);
        let mut blocks4 = ranges.pods4.subnets(ranges.pods4_block)?;
        let mut blocks6 = ranges.pods6.subnets(ranges.pods6_block)?;
        let few = "the pod ranges are small";
        Ok((
            overlay4,
            blocks4.nth(number).context(few)?,
            blocks6.nth(number).context(few)?,
        ))
    }
}

/// Something of a victim's that somebody else claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Prey {
    /// Its overlay IPv4 address.
    Overlay4,
    /// Its overlay IPv6 address.
    Overlay6,
    /// Its IPv4 pod CIDR.
    PodCidr,
    /// Its IPv6 pod CIDR.
    PodCidr6,
    /// Twice its IPv4 pod CIDR.
    SuperNet,
    /// Half of its IPv4 pod CIDR.
    SubNet,
    /// One address in its IPv6 pod CIDR.
    SubNet6,
    /// Everything.
    Everything,
}

impl Prey {
    /// The claim of `former`, grown by what belongs to the victim.
    pub(crate) fn claimed_in(
        self,
        former: Claim,
        victim: &Claim,
        network: &Network,
    ) -> Result<Claim> {
        let cidr = |v6: bool| {
            let found = victim
                .pod_cidrs
                .iter()
                .find(|cidr| matches!(cidr, IpNet::V6(_)) == v6);
            found.copied().context("the victim has no such pod CIDR")
        };
        let resized = |cidr: IpNet, length: u8| -> Result<IpNet> {
            Ok(IpNet::new(cidr.network(), length)?.trunc())
        };
        let mut claim = former;
        let prey = match self {
            Self::Overlay4 => {
                claim.overlay4 = victim.overlay4;
                return Ok(claim);
            }
            Self::Overlay6 => IpNet::from(IpAddr::V6(network.overlay6(&victim.node))),
            Self::PodCidr => cidr(false)?,
            Self::PodCidr6 => cidr(true)?,
            Self::SuperNet => resized(cidr(false)?, cidr(false)?.prefix_len() - 1)?,
            Self::SubNet => resized(cidr(false)?, cidr(false)?.prefix_len() + 1)?,
            Self::SubNet6 => resized(cidr(true)?, 128)?,
            Self::Everything => resized(cidr(false)?, 0)?,
        };
        claim.pod_cidrs.push(prey);
        Ok(claim)
    }
}
