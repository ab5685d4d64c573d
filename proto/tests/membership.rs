//! The chain of trust: what holds, and every way in which somebody might bend it.

#![allow(
    clippy::unwrap_used,
    reason = "a test that can't build its story has failed"
)]

use std::net::Ipv4Addr;

use podmesh_proto::certificate::{
    AdmissionReceipt, Application, Claim, ClaimReceipt, Grant, Leases, Membership, NodeCertificate,
};
use podmesh_proto::error::CertificateError;
use podmesh_proto::id::{NodeId, TokenId};
use podmesh_proto::key::{PublicKey, SecretKey, SigningKey};
use podmesh_proto::network::{Network, PlanetEntry, Ranges, RetiredPlanet, RootStatement};
use podmesh_proto::signed::Signed;
use podmesh_proto::time::UnixSeconds;
use podmesh_proto::token::JoinToken;

#[path = "membership/renewal.rs"]
mod renewal;

const NOW: UnixSeconds = UnixSeconds(1_800_000_000);

/// Everybody's keys, and the documents before they are signed, so that a test can bend one.
struct Story {
    root: SigningKey,
    planet: SigningKey,
    token_key: SigningKey,
    identity: SigningKey,
    network: Network,
    grant: Grant,
    certificate: NodeCertificate,
    receipt: AdmissionReceipt,
    claim: Claim,
    claim_receipt: ClaimReceipt,
}

fn network(root: &SigningKey, planet: &SigningKey) -> Network {
    let id = Network::id_of(&root.public());
    Network {
        id,
        name: "lab".parse().unwrap(),
        root: root.public(),
        second_root: None,
        version: 1,
        issued: NOW.minus(1_000),
        ranges: Ranges::default_of(&id),
        planets: vec![PlanetEntry {
            id: planet.planet_id(),
            name: "planet-1".parse().unwrap(),
            address: "198.51.100.1:7077".to_owned(),
        }],
        retired: Vec::new(),
    }
}

fn grant(network: &Network, token_key: &SigningKey) -> Grant {
    Grant {
        network: network.id,
        token: TokenId([7; 16]),
        token_key: token_key.public(),
        issued: NOW.minus(100),
        expires: NOW.plus(3_600),
        uses: 1,
        site: Some("home".parse().unwrap()),
        groups: vec!["workers".parse().unwrap()],
        relay: false,
        ranges: Vec::new(),
        membership: None,
        for_name: None,
        replaces: None,
    }
}

fn certificate(grant: &Grant, identity: &SigningKey) -> NodeCertificate {
    NodeCertificate {
        network: grant.network,
        node: identity.node_id(),
        name: "home-1".parse().unwrap(),
        wireguard: SecretKey::from_bytes([5; 32]).public(),
        probe: SecretKey::from_bytes([6; 32]).public(),
        site: grant.site.clone(),
        groups: grant.groups.clone(),
        relay: false,
        issued: NOW,
        expires: None,
    }
}

fn story() -> Story {
    let [root, planet, token_key, identity] = [1, 2, 3, 4].map(|n| SigningKey::from_seed([n; 32]));
    let network = network(&root, &planet);
    let grant = grant(&network, &token_key);
    let certificate = certificate(&grant, &identity);
    let receipt = AdmissionReceipt {
        network: network.id,
        planet: planet.planet_id(),
        token: grant.token,
        use_number: 1,
        node: certificate.node,
        name: certificate.name.clone(),
        certificate: [0; 32],
        leases: Leases::default(),
        sequence: 1,
        time: NOW,
    };
    let claim = Claim {
        network: network.id,
        node: certificate.node,
        serial: 1,
        overlay4: Some(Ipv4Addr::new(10, 77, 0, 1)),
        pod_cidrs: vec!["10.42.1.0/24".parse().unwrap()],
    };
    let claim_receipt = ClaimReceipt {
        network: network.id,
        planet: planet.planet_id(),
        node: certificate.node,
        claim: [0; 32],
        sequence: 2,
        settles: Vec::new(),
        time: NOW,
    };
    Story {
        root,
        planet,
        token_key,
        identity,
        network,
        grant,
        certificate,
        receipt,
        claim,
        claim_receipt,
    }
}

impl Story {
    /// Signs everything by whose part it is, with the hashes filled in where a test left zeros.
    fn membership(&self) -> Membership {
        let grant = Signed::seal(&self.grant, &self.root).unwrap();
        let application =
            Application::new(grant, &self.certificate, &self.token_key, &self.identity).unwrap();
        let mut receipt = self.receipt.clone();
        if receipt.certificate == [0; 32] {
            receipt.certificate = application.certificate.hash();
        }
        let claim = Signed::seal(&self.claim, &self.identity).unwrap();
        let mut claim_receipt = self.claim_receipt.clone();
        if claim_receipt.claim == [0; 32] {
            claim_receipt.claim = claim.hash();
        }
        Membership {
            application,
            receipt: Signed::seal(&receipt, &self.planet).unwrap(),
            claim,
            claim_receipt: Signed::seal(&claim_receipt, &self.planet).unwrap(),
            renewed: None,
        }
    }
}

#[test]
fn an_honest_chain_holds() {
    let story = story();
    let member = story.membership().verify(&story.network, NOW).unwrap();
    assert_eq!(member.name.as_str(), "home-1");
    assert_eq!(member.prefixes().len(), 3);
    assert_eq!(member.sequence, 2);
    assert!(story.network.ranges.overlay6.contains(&member.overlay6));
}

/// Name of the lie, how it is told, and a word of the error that names it.
type Lie = (&'static str, fn(&mut Story), &'static str);

const LIES: &[Lie] = &[
    (
        "another root",
        |s| s.root = SigningKey::from_seed([9; 32]),
        "signed by the root",
    ),
    (
        "another token key",
        |s| s.token_key = SigningKey::from_seed([9; 32]),
        "token's key",
    ),
    (
        "another identity",
        |s| s.identity = SigningKey::from_seed([9; 32]),
        "identity",
    ),
    (
        "a key that is no planet",
        |s| s.planet = SigningKey::from_seed([9; 32]),
        "its planet",
    ),
    (
        "a planet of another network",
        |s| {
            s.planet = SigningKey::from_seed([9; 32]);
            s.receipt.planet = s.planet.planet_id();
            s.claim_receipt.planet = s.planet.planet_id();
        },
        "no planet",
    ),
    ("a use too many", |s| s.receipt.use_number = 2, "token use"),
    ("use number zero", |s| s.receipt.use_number = 0, "token use"),
    (
        "another token's receipt",
        |s| s.receipt.token = TokenId([8; 16]),
        "token use",
    ),
    (
        "another certificate",
        |s| s.receipt.certificate = [1; 32],
        "certificate",
    ),
    (
        "another name",
        |s| s.receipt.name = "home-2".parse().unwrap(),
        "node",
    ),
    (
        "an expired token",
        |s| s.receipt.time = s.grant.expires.plus(301),
        "expired",
    ),
    (
        "a token of the future",
        |s| s.receipt.time = s.grant.issued.minus(301),
        "valid only from",
    ),
    (
        "a site beyond the grant",
        |s| s.certificate.site = None,
        "site",
    ),
    (
        "a group beyond the grant",
        |s| s.certificate.groups.push("admins".parse().unwrap()),
        "groups",
    ),
    (
        "relaying beyond the grant",
        |s| s.certificate.relay = true,
        "relay",
    ),
    (
        "a longer life",
        |s| s.grant.membership = Some(60),
        "lifetime",
    ),
    (
        "a life that begins in the future",
        |s| {
            s.grant.membership = Some(60);
            s.certificate.issued = NOW.plus(10_000);
            s.certificate.expires = Some(NOW.plus(10_060));
        },
        "valid only from",
    ),
    (
        "a name that the grant binds",
        |s| s.grant.for_name = Some("x".parse().unwrap()),
        "name",
    ),
    (
        "a weak WireGuard key",
        |s| s.certificate.wireguard = PublicKey([0; 32]),
        "low-order",
    ),
    (
        "a weak probe key",
        |s| s.certificate.probe = PublicKey([0; 32]),
        "low-order",
    ),
    (
        "an outside overlay address",
        |s| s.claim.overlay4 = Some(Ipv4Addr::new(8, 8, 8, 8)),
        "overlay",
    ),
    (
        "an outside pod CIDR",
        |s| s.claim.pod_cidrs = vec!["10.0.0.0/24".parse().unwrap()],
        "pod CIDR",
    ),
    (
        "a whole pod range",
        |s| s.claim.pod_cidrs = vec!["10.42.0.0/16".parse().unwrap()],
        "pod CIDR",
    ),
    (
        "host bits",
        |s| s.claim.pod_cidrs = vec!["10.42.1.1/24".parse().unwrap()],
        "pod CIDR",
    ),
    (
        "a range beyond the grant",
        |s| s.grant.ranges = vec!["10.42.9.0/24".parse().unwrap()],
        "grant",
    ),
    (
        "another claim's receipt",
        |s| s.claim_receipt.claim = [1; 32],
        "claim",
    ),
    (
        "a claim for somebody else",
        |s| s.claim.node = NodeId([1; 32]),
        "node",
    ),
    (
        "a receipt for somebody else",
        |s| s.claim_receipt.node = NodeId([1; 32]),
        "node",
    ),
];

#[test]
fn every_bent_link_is_named() {
    for (lie, bend, word) in LIES {
        let honest = story();
        let mut bent = story();
        bend(&mut bent);
        let error = bent
            .membership()
            .verify(&honest.network, NOW)
            .expect_err(lie);
        assert!(
            error.to_string().contains(word),
            "{lie}: '{error}' lacks '{word}'"
        );
    }
}

#[test]
fn an_expired_membership_is_void_at_use() {
    let mut story = story();
    story.grant.membership = Some(600);
    story.certificate.expires = Some(NOW.plus(600));
    let membership = story.membership();
    assert!(membership.verify(&story.network, NOW.plus(600)).is_ok());
    let late = membership.verify(&story.network, NOW.plus(901));
    assert!(
        matches!(late, Err(CertificateError::Expired { .. })),
        "{late:?}"
    );
}

#[test]
fn a_retired_planets_old_receipts_hold_and_new_ones_do_not() {
    let mut story = story();
    let membership = story.membership();
    story.network.planets.clear();
    assert!(membership.verify(&story.network, NOW).is_err());
    let id = story.planet.planet_id();
    story.network.retired = vec![RetiredPlanet { id, until: NOW }];
    assert!(membership.verify(&story.network, NOW).is_ok());
    story.network.retired = vec![RetiredPlanet {
        id,
        until: NOW.minus(1),
    }];
    assert!(membership.verify(&story.network, NOW).is_err());
}

#[test]
fn tokens_survive_their_text_and_no_changed_letter() {
    let story = story();
    let token = JoinToken {
        network: Signed::seal(&RootStatement::Network(story.network.clone()), &story.root).unwrap(),
        grant: Signed::seal(&story.grant, &story.root).unwrap(),
        key: SigningKey::from_seed([3; 32]),
    };
    let text = token.to_text().unwrap();
    let (network, grant) = text.parse::<JoinToken>().unwrap().verify().unwrap();
    assert_eq!((network, grant), (story.network, story.grant));
    for at in 0..text.len() {
        let mut changed = text.as_bytes().to_vec();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        let error = changed
            .parse::<JoinToken>()
            .expect_err("a changed letter")
            .to_string();
        assert!(error.contains("join token"), "{error}");
    }
}

#[test]
fn a_token_of_another_network_is_refused() {
    let story = story();
    let mut other = story.network.clone();
    other.root = SigningKey::from_seed([9; 32]).public();
    let token = JoinToken {
        network: Signed::seal(&RootStatement::Network(other), &story.root).unwrap(),
        grant: Signed::seal(&story.grant, &story.root).unwrap(),
        key: SigningKey::from_seed([3; 32]),
    };
    assert!(token.verify().is_err());
}
