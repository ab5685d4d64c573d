//! Membership: who may be in a network, and with which names, keys and addresses.
//!
//! A membership is a chain of five documents that every peer verifies for itself:
//! grant (root) → certificate (token key, countersigned by the node) → admission receipt (a planet)
//! → claim (the node) → claim receipt (a planet). A planet alone has no token key, a token alone has
//! no receipt, and nobody but the node can move its addresses. How the certificate goes on is in
//! [`crate::renewal`].

mod departure;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::error::CertificateError;
use crate::id::{Name, NetworkId, NodeId, PlanetId, TokenId};
use crate::key::{PublicKey, Signature, SigningKey, VerifyingKey};
use crate::limits::{self, CLOCK_SKEW};
use crate::network::Network;
use crate::renewal::{self, Present, Renewed};
use crate::signed::{Document, Signed};
use crate::time::UnixSeconds;

pub use self::departure::Departure;

const IDENTITY_CONTEXT: &str = "podmesh certificate identity v1";

/// What a join token gives, signed by the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Of this network.
    pub network: NetworkId,
    /// The token.
    pub token: TokenId,
    /// The one-time key that signs certificates under this grant.
    pub token_key: VerifyingKey,
    /// When it was signed.
    pub issued: UnixSeconds,
    /// After this it admits nobody; members that it admitted stay.
    pub expires: UnixSeconds,
    /// How many nodes it may admit.
    pub uses: u32,
    /// Site of the nodes.
    pub site: Option<Name>,
    /// Groups of the nodes.
    pub groups: Vec<Name>,
    /// Whether the nodes may relay for others.
    pub relay: bool,
    /// Ranges that the nodes may claim in; empty means all ranges of the network.
    pub ranges: Vec<IpNet>,
    /// Seconds that a membership lasts; `None` until it is revoked.
    pub membership: Option<u64>,
    /// Only for a node of this name.
    pub for_name: Option<Name>,
    /// The former holder of [`Self::for_name`], out as soon as this is seen.
    pub replaces: Option<NodeId>,
}

/// A node's certificate, signed by a token's key and countersigned by the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCertificate {
    /// Of this network.
    pub network: NetworkId,
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: Name,
    /// Its WireGuard key.
    pub wireguard: PublicKey,
    /// The key its probes are sealed with.
    pub probe: PublicKey,
    /// Its site.
    pub site: Option<Name>,
    /// Its groups.
    pub groups: Vec<Name>,
    /// Whether it may relay for others.
    pub relay: bool,
    /// When it was signed.
    pub issued: UnixSeconds,
    /// Void after this; `None` until revoked.
    pub expires: Option<UnixSeconds>,
}

/// A planet's word that it admitted a node: makes a token's uses countable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdmissionReceipt {
    /// Of this network.
    pub network: NetworkId,
    /// Which planet.
    pub planet: PlanetId,
    /// The token that was used.
    pub token: TokenId,
    /// 1 for a token's first use.
    pub use_number: u32,
    /// The node.
    pub node: NodeId,
    /// Its name, held by nobody else.
    pub name: Name,
    /// [`Signed::hash`] of the certificate.
    pub certificate: [u8; 32],
    /// Ranges leased to the node.
    pub leases: Leases,
    /// Number of this receipt in the planet's books; gaps show what a planet has forgotten.
    pub sequence: u64,
    /// When.
    pub time: UnixSeconds,
}

/// What a planet leases to a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Leases {
    /// Overlay IPv4 address.
    pub overlay4: Option<Ipv4Addr>,
    /// IPv4 pod CIDR.
    pub pods4: Option<Ipv4Net>,
    /// IPv6 pod CIDR.
    pub pods6: Option<Ipv6Net>,
}

impl Leases {
    /// All of it as prefixes.
    #[must_use]
    pub fn prefixes(&self) -> Vec<IpNet> {
        let overlay4 = self
            .overlay4
            .map(|address| IpNet::from(IpAddr::V4(address)));
        let pods = [self.pods4.map(IpNet::V4), self.pods6.map(IpNet::V6)];
        overlay4
            .into_iter()
            .chain(pods.into_iter().flatten())
            .collect()
    }
}

/// What a node says is its own: overlay IPv4 address and pod CIDRs. (Its overlay IPv6 address needs
/// no claim.)
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Of this network.
    pub network: NetworkId,
    /// The node.
    pub node: NodeId,
    /// A later claim replaces an earlier one as a whole.
    pub serial: u64,
    /// Overlay IPv4 address (a /32), if any.
    pub overlay4: Option<Ipv4Addr>,
    /// Pod CIDRs.
    pub pod_cidrs: Vec<IpNet>,
}

/// A planet's word that a claim collides with no other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimReceipt {
    /// Of this network.
    pub network: NetworkId,
    /// Which planet.
    pub planet: PlanetId,
    /// The node.
    pub node: NodeId,
    /// [`Signed::hash`] of the claim.
    pub claim: [u8; 32],
    /// Number of this receipt in the planet's books, counted together with admissions.
    pub sequence: u64,
    /// Former numbers, as inclusive ranges, that no membership bears any more: replaced claims and
    /// members who left. A planet that has forgotten can tell by them that nothing else is missing.
    pub settles: Vec<(u64, u64)>,
    /// When.
    pub time: UnixSeconds,
}

impl Document for Grant {
    const KIND: &'static str = "grant";
    const CONTEXT: &'static str = "podmesh grant v1";
}

impl Document for NodeCertificate {
    const KIND: &'static str = "certificate";
    const CONTEXT: &'static str = "podmesh certificate v1";
}

impl Document for AdmissionReceipt {
    const KIND: &'static str = "admission receipt";
    const CONTEXT: &'static str = "podmesh admission receipt v1";
}

impl Document for Claim {
    const KIND: &'static str = "claim";
    const CONTEXT: &'static str = "podmesh claim v1";
}

impl Document for ClaimReceipt {
    const KIND: &'static str = "claim receipt";
    const CONTEXT: &'static str = "podmesh claim receipt v1";
}

/// A request to join: what a token and its new node can say without a planet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Application {
    /// By the root.
    pub grant: Signed<Grant>,
    /// By the token's key.
    pub certificate: Signed<NodeCertificate>,
    /// By the node, over the certificate.
    pub identity: Signature,
}

impl Application {
    /// Signs `certificate` by the token's key and countersigns it by the node's.
    ///
    /// # Errors
    /// The certificate is too long.
    pub fn new(
        grant: Signed<Grant>,
        certificate: &NodeCertificate,
        token_key: &SigningKey,
        identity: &SigningKey,
    ) -> Result<Self, CertificateError> {
        let certificate = Signed::seal(certificate, token_key)?;
        let identity = certificate.countersign(IDENTITY_CONTEXT, identity);
        Ok(Self {
            grant,
            certificate,
            identity,
        })
    }

    /// The grant and certificate, if the chain from the root holds and the certificate stays
    /// within the grant. Doesn't judge the token's expiry, uses or revocation: that is the planet's
    /// part, whose receipt stands for it.
    ///
    /// # Errors
    /// The first link that doesn't hold.
    pub fn verify(&self, network: &Network) -> Result<(Grant, NodeCertificate), CertificateError> {
        let grant = [Some(network.root), network.second_root]
            .iter()
            .flatten()
            .find_map(|root| self.grant.verify(root, "the root").ok())
            .ok_or(CertificateError::Signature {
                document: Grant::KIND,
                signer: "the root",
            })?;
        let certificate = self
            .certificate
            .verify(&grant.token_key, "the token's key")?;
        if grant.network != network.id || certificate.network != network.id {
            return Err(CertificateError::OtherNetwork {
                document: NodeCertificate::KIND,
            });
        }
        let identity = VerifyingKey::from(certificate.node);
        if !self
            .certificate
            .countersigned(IDENTITY_CONTEXT, &identity, &self.identity)
        {
            let (document, signer) = (NodeCertificate::KIND, "the node's identity");
            return Err(CertificateError::Signature { document, signer });
        }
        for (field, key) in [
            ("WireGuard", certificate.wireguard),
            ("probe", certificate.probe),
        ] {
            if key.is_low_order() {
                return Err(CertificateError::WeakKey { field });
            }
        }
        certificate.within(&grant)?;
        Ok((grant, certificate))
    }
}

impl NodeCertificate {
    fn within(&self, grant: &Grant) -> Result<(), CertificateError> {
        let beyond = |field| {
            Err(CertificateError::BeyondGrant {
                document: Self::KIND,
                field,
            })
        };
        if grant
            .for_name
            .as_ref()
            .is_some_and(|name| *name != self.name)
        {
            return beyond("name");
        }
        if self.site != grant.site {
            return beyond("site");
        }
        if self.groups.len() > limits::MAX_GROUPS || self.groups != grant.groups {
            return beyond("groups");
        }
        if self.relay && !grant.relay {
            return beyond("relay");
        }
        grant.allows_life(Self::KIND, self.issued, self.expires)
    }
}

impl Grant {
    /// Whether a membership may live from `issued` to `expires`.
    ///
    /// # Errors
    /// [`CertificateError::BeyondGrant`] naming `document`.
    pub fn allows_life(
        &self,
        document: &'static str,
        issued: UnixSeconds,
        expires: Option<UnixSeconds>,
    ) -> Result<(), CertificateError> {
        let lifetime = expires.map(|expires| expires.0.saturating_sub(issued.0));
        let beyond = match (lifetime, self.membership) {
            (None, given) => given.is_some(),
            (Some(asked), given) => given.is_some_and(|given| asked > given),
        };
        if beyond {
            let field = "lifetime";
            return Err(CertificateError::BeyondGrant { document, field });
        }
        Ok(())
    }
}

/// The whole chain, as nodes and planets store it and pass it on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Grant, certificate and the node's signature.
    pub application: Application,
    /// By a planet.
    pub receipt: Signed<AdmissionReceipt>,
    /// By the node.
    pub claim: Signed<Claim>,
    /// By a planet.
    pub claim_receipt: Signed<ClaimReceipt>,
    /// By the node and a planet; absent as long as the certificate speaks for itself.
    pub renewed: Option<Box<Renewed>>,
}

/// A verified membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: Name,
    /// Its WireGuard key.
    pub wireguard: PublicKey,
    /// Its probe key.
    pub probe: PublicKey,
    /// Its site.
    pub site: Option<Name>,
    /// Its groups.
    pub groups: Vec<Name>,
    /// Whether it may relay.
    pub relay: bool,
    /// Its overlay IPv6 address.
    pub overlay6: Ipv6Addr,
    /// Its overlay IPv4 address.
    pub overlay4: Option<Ipv4Addr>,
    /// Its pod CIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// The token that admitted it, and the number of that use.
    pub admitted_by: (TokenId, u32),
    /// The node whose place it takes, by the root's word.
    pub replaces: Option<NodeId>,
    /// Serial of its claim.
    pub serial: u64,
    /// Highest receipt number in the chain.
    pub sequence: u64,
    /// When it was admitted.
    pub admitted: UnixSeconds,
    /// When its present life began.
    pub issued: UnixSeconds,
    /// Void after this.
    pub expires: Option<UnixSeconds>,
    /// [`Signed::hash`] of its certificate.
    pub certificate: [u8; 32],
    /// Serial of its newest renewal; 0 for the certificate itself.
    pub renewal: u64,
    /// [`Signed::hash`] of the newest renewal, or of the certificate if there is none.
    pub document: [u8; 32],
    /// [`Signed::hash`] of the document before that.
    pub follows: Option<[u8; 32]>,
    /// Its identities, the first (its id) to the newest (which speaks for it); never empty.
    pub identities: Vec<VerifyingKey>,
}

impl Member {
    /// Everything that is routed to this node: overlay addresses as single-address prefixes, and
    /// its pod CIDRs.
    #[must_use]
    pub fn prefixes(&self) -> Vec<IpNet> {
        let overlay4 = self
            .overlay4
            .map(|address| IpNet::from(IpAddr::V4(address)));
        std::iter::once(IpNet::from(IpAddr::V6(self.overlay6)))
            .chain(overlay4)
            .chain(self.pod_cidrs.iter().copied())
            .collect()
    }

    /// Whether its present life has begun, and is not over, at `now`.
    ///
    /// # Errors
    /// It has not begun, or is over.
    pub fn is_in_time(&self, now: UnixSeconds) -> Result<(), CertificateError> {
        let document = NodeCertificate::KIND;
        if let Some(at) = self.expires
            && now > at.plus(CLOCK_SKEW)
        {
            return Err(CertificateError::Expired { document, at });
        }
        renewal::begun(document, self.issued, self.expires, now)
    }
}

impl Membership {
    /// The member that this proves, if every link holds at `now`. Revocations and conflicts with
    /// other members are judged by whoever holds them.
    ///
    /// # Errors
    /// The first link that doesn't hold.
    pub fn verify(&self, network: &Network, now: UnixSeconds) -> Result<Member, CertificateError> {
        let member = self.prove(network)?;
        member.is_in_time(now)?;
        Ok(member)
    }

    /// The same, whatever the time: for whoever keeps members beyond their life.
    ///
    /// # Errors
    /// The first link that doesn't hold.
    pub fn prove(&self, network: &Network) -> Result<Member, CertificateError> {
        let (grant, certificate) = self.application.verify(network)?;
        let receipt = self.verify_receipt(network, &grant, &certificate)?;
        let present = self.present(network, &grant, &certificate)?;
        let (claim, claim_receipt) =
            self.verify_claim(network, &grant, (&certificate, &present))?;
        Ok(Member {
            node: certificate.node,
            overlay6: network.overlay6(&certificate.node),
            name: certificate.name,
            wireguard: present.wireguard,
            probe: present.probe,
            site: certificate.site,
            groups: certificate.groups,
            relay: certificate.relay,
            overlay4: claim.overlay4,
            pod_cidrs: claim.pod_cidrs,
            admitted_by: (grant.token, receipt.use_number),
            replaces: grant.replaces,
            serial: claim.serial,
            sequence: receipt.sequence.max(claim_receipt.sequence),
            admitted: receipt.time,
            issued: present.issued,
            expires: present.expires,
            certificate: self.application.certificate.hash(),
            renewal: present.renewal,
            document: present.document,
            follows: present.follows,
            identities: present.identities,
        })
    }

    fn verify_receipt(
        &self,
        network: &Network,
        grant: &Grant,
        certificate: &NodeCertificate,
    ) -> Result<AdmissionReceipt, CertificateError> {
        const DOCUMENT: &str = AdmissionReceipt::KIND;
        let claimed = self.receipt.unverified()?;
        if !network.has_planet(&claimed.planet, claimed.time) {
            return Err(CertificateError::UnknownPlanet { document: DOCUMENT });
        }
        let receipt = self.receipt.verify(&claimed.planet.into(), "its planet")?;
        let mismatch = |field| {
            Err(CertificateError::Mismatch {
                document: DOCUMENT,
                field,
            })
        };
        if receipt.network != network.id {
            return Err(CertificateError::OtherNetwork { document: DOCUMENT });
        }
        if receipt.node != certificate.node || receipt.name != certificate.name {
            return mismatch("node");
        }
        if receipt.certificate != self.application.certificate.hash() {
            return mismatch("certificate");
        }
        if receipt.token != grant.token || !(1..=grant.uses).contains(&receipt.use_number) {
            return mismatch("token use");
        }
        if receipt.time > grant.expires.plus(CLOCK_SKEW) {
            return Err(CertificateError::Expired {
                document: Grant::KIND,
                at: grant.expires,
            });
        }
        if receipt.time < grant.issued.minus(CLOCK_SKEW) {
            return Err(CertificateError::NotYet {
                document: Grant::KIND,
                at: grant.issued,
            });
        }
        let (issued, expires) = (certificate.issued, certificate.expires);
        renewal::begun(NodeCertificate::KIND, issued, expires, receipt.time)?;
        Ok(receipt)
    }

    fn verify_claim(
        &self,
        network: &Network,
        grant: &Grant,
        (certificate, present): (&NodeCertificate, &Present),
    ) -> Result<(Claim, ClaimReceipt), CertificateError> {
        const DOCUMENT: &str = ClaimReceipt::KIND;
        let claimed = self.claim_receipt.unverified()?;
        if !network.has_planet(&claimed.planet, claimed.time) {
            return Err(CertificateError::UnknownPlanet { document: DOCUMENT });
        }
        let receipt = self
            .claim_receipt
            .verify(&claimed.planet.into(), "its planet")?;
        let claim = if present.claim == Some(self.claim.hash()) {
            // The newest identity stands for it by its signature on the renewal.
            self.claim.unverified()?
        } else {
            let identity = present.identity(certificate.node);
            self.claim.verify(&identity, "the node")?
        };
        if receipt.network != network.id || claim.network != network.id {
            return Err(CertificateError::OtherNetwork { document: DOCUMENT });
        }
        if receipt.node != certificate.node || claim.node != certificate.node {
            return Err(CertificateError::Mismatch {
                document: DOCUMENT,
                field: "node",
            });
        }
        if receipt.claim != self.claim.hash() {
            return Err(CertificateError::Mismatch {
                document: DOCUMENT,
                field: "claim",
            });
        }
        claim.within(network, grant)?;
        Ok((claim, receipt))
    }
}

impl Claim {
    /// Whether all of it lies where the network and the grant allow.
    ///
    /// # Errors
    /// [`CertificateError::BeyondGrant`] naming the field.
    pub fn within(&self, network: &Network, grant: &Grant) -> Result<(), CertificateError> {
        let beyond = |field| {
            Err(CertificateError::BeyondGrant {
                document: Self::KIND,
                field,
            })
        };
        if self.pod_cidrs.len() > limits::MAX_PREFIXES {
            return beyond("number of prefixes");
        }
        let granted = |prefix: &IpNet| {
            grant.ranges.is_empty() || grant.ranges.iter().any(|range| range.contains(prefix))
        };
        if let Some(address) = self.overlay4 {
            let prefix = IpNet::from(IpAddr::V4(address));
            if !network.ranges.overlay4.contains(&address) || !granted(&prefix) {
                return beyond("overlay address");
            }
        }
        let pods = [
            IpNet::V4(network.ranges.pods4),
            IpNet::V6(network.ranges.pods6),
        ];
        for cidr in &self.pod_cidrs {
            let widest = match cidr {
                IpNet::V4(_) => network.ranges.pods4_block,
                IpNet::V6(_) => network.ranges.pods6_block,
            };
            let inside = pods.iter().any(|range| range.contains(cidr));
            if !inside || cidr.prefix_len() < widest || cidr.trunc() != *cidr || !granted(cidr) {
                return beyond("pod CIDR");
            }
        }
        Ok(())
    }
}
