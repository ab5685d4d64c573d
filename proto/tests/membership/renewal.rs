//! How a membership goes on: what holds, and how somebody might bend a renewal or rotation.

use podmesh_proto::certificate::{Claim, Departure, Member, Membership};
use podmesh_proto::error::CertificateError;
use podmesh_proto::id::NodeId;
use podmesh_proto::key::{PublicKey, SecretKey, SigningKey};
use podmesh_proto::renewal::{
    Renewal, RenewalReceipt, RenewalRequest, Renewed, Standing, Succession,
};
use podmesh_proto::signed::Signed;
use podmesh_proto::time::UnixSeconds;

use super::{NOW, Story, story};

const LIFE: u64 = 600;
const LATER: UnixSeconds = NOW.plus(400);

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed([seed; 32])
}

fn public(seed: u8) -> PublicKey {
    SecretKey::from_bytes([seed; 32]).public()
}

/// A member for ten minutes, and the documents of its first renewal before they are signed.
struct Sequel {
    story: Story,
    base: Membership,
    steps: Vec<(Succession, SigningKey)>,
    renewal: Renewal,
    signer: SigningKey,
    receipt: RenewalReceipt,
    planet: SigningKey,
}

fn sequel() -> Sequel {
    let mut story = story();
    story.grant.membership = Some(LIFE);
    story.certificate.expires = Some(NOW.plus(LIFE));
    let base = story.membership();
    let hash = base.application.certificate.hash();
    let renewal = Renewal {
        network: story.network.id,
        node: story.certificate.node,
        certificate: hash,
        serial: 1,
        follows: hash,
        claim: base.claim.hash(),
        wireguard: story.certificate.wireguard,
        probe: story.certificate.probe,
        issued: LATER,
        expires: Some(LATER.plus(LIFE)),
    };
    let receipt = RenewalReceipt {
        network: story.network.id,
        planet: story.planet.planet_id(),
        node: story.certificate.node,
        renewal: [0; 32],
        time: LATER,
    };
    Sequel {
        base,
        steps: Vec::new(),
        renewal,
        signer: key(4),
        receipt,
        planet: key(2),
        story,
    }
}

impl Sequel {
    fn membership(&self) -> Membership {
        let renewal = Signed::seal(&self.renewal, &self.signer).unwrap();
        let mut receipt = self.receipt.clone();
        if receipt.renewal == [0; 32] {
            receipt.renewal = renewal.hash();
        }
        let successions = self.steps.iter();
        let successions = successions.map(|(step, by)| Signed::seal(step, by).unwrap());
        let renewed = Renewed {
            request: RenewalRequest {
                successions: successions.collect(),
                renewal,
            },
            receipt: Signed::seal(&receipt, &self.planet).unwrap(),
        };
        Membership {
            renewed: Some(Box::new(renewed)),
            ..self.base.clone()
        }
    }

    fn prove(&self) -> Result<Member, CertificateError> {
        self.membership().verify(&self.story.network, LATER)
    }

    fn member(&self) -> Member {
        self.prove().unwrap()
    }

    /// The next document after this one.
    fn after(&self) -> Self {
        let mut next = sequel();
        next.steps = self.steps.iter().map(copy).collect();
        next.renewal = Renewal {
            serial: self.renewal.serial + 1,
            follows: self.member().document,
            ..self.renewal.clone()
        };
        next.signer = SigningKey::from_seed(*self.signer.seed());
        next
    }

    /// The identity moves on to the key of `seed`, by the word of `by`.
    fn step(&mut self, seed: u8, by: SigningKey) {
        let step = Succession {
            network: self.story.network.id,
            node: self.story.certificate.node,
            number: u32::try_from(self.steps.len()).unwrap() + 1,
            next: key(seed).public(),
        };
        self.steps.push((step, by));
        self.signer = key(seed);
    }
}

fn copy((step, by): &(Succession, SigningKey)) -> (Succession, SigningKey) {
    (step.clone(), SigningKey::from_seed(*by.seed()))
}

#[test]
fn a_renewed_member_lives_on_with_everything_else_as_it_was() {
    let sequel = sequel();
    let network = &sequel.story.network;
    let before = sequel.base.verify(network, NOW).unwrap();
    let member = sequel.member();
    assert_eq!(member.expires, Some(LATER.plus(LIFE)));
    assert_eq!((member.renewal, before.renewal), (1, 0));
    let same = Member {
        issued: before.issued,
        expires: before.expires,
        renewal: 0,
        document: before.document,
        follows: None,
        ..member.clone()
    };
    assert_eq!(same, before);
    assert_eq!(member.standing(&before), Standing::Newer);
    assert_eq!(before.standing(&member), Standing::Older);
    assert_eq!(member.standing(&member), Standing::Same);
    let late = sequel.membership().verify(network, LATER.plus(LIFE + 301));
    assert!(matches!(late, Err(CertificateError::Expired { .. })));
    assert_eq!(before.renews(), Some(NOW.plus(400)));
}

/// Name of the lie, how it is told, and a word of the error that names it.
type Lie = (&'static str, fn(&mut Sequel), &'static str);

const LIES: &[Lie] = &[
    ("another key", |s| s.signer = key(9), "newest identity"),
    ("the token's key", |s| s.signer = key(3), "newest identity"),
    (
        "for somebody else",
        |s| s.renewal.node = NodeId([1; 32]),
        "node",
    ),
    (
        "of another certificate",
        |s| s.renewal.certificate = [1; 32],
        "certificate",
    ),
    ("serial zero", |s| s.renewal.serial = 0, "serial"),
    (
        "a first that follows nothing",
        |s| s.renewal.follows = [1; 32],
        "serial",
    ),
    (
        "longer than the grant",
        |s| s.renewal.expires = Some(LATER.plus(LIFE + 1)),
        "lifetime",
    ),
    ("without end", |s| s.renewal.expires = None, "lifetime"),
    (
        "a life that begins in the future",
        |s| {
            s.renewal.issued = LATER.plus(10_000);
            s.renewal.expires = Some(LATER.plus(10_000 + LIFE));
        },
        "valid only from",
    ),
    (
        "a future that the planet confirms",
        |s| {
            s.renewal.issued = LATER.plus(10_000);
            s.renewal.expires = Some(LATER.plus(10_000 + LIFE));
            s.receipt.time = LATER.plus(10_000);
        },
        "valid only from",
    ),
    (
        "a weak WireGuard key",
        |s| s.renewal.wireguard = PublicKey([0; 32]),
        "low-order",
    ),
    (
        "a weak probe key",
        |s| s.renewal.probe = PublicKey([0; 32]),
        "low-order",
    ),
    ("no planet", |s| s.planet = key(9), "its planet"),
    (
        "a planet of another network",
        |s| {
            s.planet = key(9);
            s.receipt.planet = s.planet.planet_id();
        },
        "no planet",
    ),
    (
        "another renewal's receipt",
        |s| s.receipt.renewal = [1; 32],
        "renewal",
    ),
    (
        "somebody else's receipt",
        |s| s.receipt.node = NodeId([1; 32]),
        "node",
    ),
    (
        "a step by another key",
        |s| s.step(41, key(9)),
        "identity before",
    ),
    (
        "a step by the key it leads to",
        |s| s.step(41, key(41)),
        "identity before",
    ),
    (
        "a step of somebody else",
        |s| {
            s.step(41, key(4));
            s.steps[0].0.node = NodeId([1; 32]);
        },
        "node",
    ),
    (
        "a step out of order",
        |s| {
            s.step(41, key(4));
            s.steps[0].0.number = 2;
        },
        "order",
    ),
    (
        "a step back",
        |s| {
            s.step(41, key(4));
            s.step(4, key(41));
        },
        "order",
    ),
    (
        "the identity before",
        |s| {
            s.step(41, key(4));
            s.signer = key(4);
        },
        "newest identity",
    ),
];

#[test]
fn every_bent_renewal_is_named() {
    for (lie, bend, word) in LIES {
        let mut bent = sequel();
        bend(&mut bent);
        let error = bent.prove().expect_err(lie);
        assert!(
            error.to_string().contains(word),
            "{lie}: '{error}' lacks '{word}'"
        );
    }
}

#[test]
fn endless_steps_of_an_identity_are_refused() {
    let mut sequel = sequel();
    let mut by = 4;
    for seed in 100..116 {
        sequel.step(seed, key(by));
        by = seed;
    }
    assert_eq!(sequel.member().identities.len(), 17);
    sequel.step(116, key(by));
    assert!(sequel.prove().is_err());
}

#[test]
fn of_two_successors_the_known_one_stays() {
    let one = sequel();
    let mut other = sequel();
    other.renewal.wireguard = public(77);
    assert_eq!(other.member().standing(&one.member()), Standing::Forked);
    assert_eq!(one.member().standing(&other.member()), Standing::Forked);
    let after = other.after();
    assert_eq!(after.member().standing(&other.member()), Standing::Newer);
    assert_eq!(after.member().standing(&one.member()), Standing::Forked);
    // The same document with another planet's receipt is no second one.
    let mut again = sequel();
    again.receipt.time = LATER.plus(5);
    assert_eq!(again.member().standing(&one.member()), Standing::Same);
}

#[test]
fn a_superseded_identity_speaks_for_nobody() {
    let mut rotated = sequel();
    rotated.step(41, key(4));
    let member = rotated.member();
    assert_eq!(member.identity(), key(41).public());
    assert_eq!(member.node, key(4).node_id());
    // What the thief of the old key can make: a later renewal of its own, another step, a claim.
    let thief = sequel().after();
    assert_eq!(thief.member().standing(&member), Standing::Superseded);
    let mut fork = sequel();
    fork.step(42, key(4));
    assert_eq!(fork.member().standing(&member), Standing::Forked);
    let fork = fork.after().after();
    assert_eq!(fork.member().standing(&member), Standing::Forked);
    let claim = Claim {
        serial: 9,
        ..rotated.story.claim.clone()
    };
    let mut membership = rotated.membership();
    membership.claim = Signed::seal(&claim, &key(4)).unwrap();
    let mut receipt = rotated.story.claim_receipt.clone();
    receipt.claim = membership.claim.hash();
    membership.claim_receipt = Signed::seal(&receipt, &rotated.story.planet).unwrap();
    let refused = membership.verify(&rotated.story.network, LATER);
    assert!(refused.is_err(), "a claim by the former identity");
    membership.claim = Signed::seal(&claim, &key(41)).unwrap();
    let taken = membership.verify(&rotated.story.network, LATER).unwrap();
    assert_eq!(taken.standing(&member), Standing::Newer);
}

#[test]
fn a_departure_is_judged_by_the_steps_that_it_names() {
    let mut rotated = sequel();
    rotated.step(41, key(4));
    let successions = rotated.membership().renewed.unwrap().request.successions;
    let network = rotated.story.network.id;
    let departure = Departure {
        network,
        node: rotated.story.certificate.node,
        successions,
        time: LATER,
    };
    let verified = |by| Departure::verify(&Signed::seal(&departure, &key(by)).unwrap(), network);
    assert_eq!(verified(41).unwrap().1, rotated.member().identities);
    assert!(verified(4).is_err());
}
