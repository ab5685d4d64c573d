//! Memberships that go on: the newest state stays, and no older or other one takes its place.

use podmesh_proto::key::SigningKey;
use podmesh_proto::renewal::{Renewal, RenewalReceipt, RenewalRequest, Renewed, Succession};

use super::*;

const LIFE: u64 = 1_000;

/// A successor of node 2's certificate.
pub(super) struct Sequel {
    pub(super) keys: u8,
    steps: Vec<u8>,
    serial: u64,
    pub(super) follows: Option<[u8; 32]>,
    issued: UnixSeconds,
}

impl Sequel {
    pub(super) fn new(serial: u64) -> Self {
        Self {
            keys: 2,
            steps: Vec::new(),
            serial,
            follows: None,
            issued: START.plus(serial),
        }
    }

    pub(super) fn build(&self, table: &Table) -> Membership {
        let base = short(table).build(&table.authority);
        let (network, node) = (table.authority.network.id, Keys::new(2).id());
        let mut signer = Keys::new(2).identity;
        let mut successions = Vec::new();
        for (step, number) in self.steps.iter().zip(1..) {
            let next = SigningKey::from_seed([*step; 32]);
            let succession = Succession {
                network,
                node,
                number,
                next: next.public(),
            };
            successions.push(Signed::seal(&succession, &signer).unwrap());
            signer = next;
        }
        let certificate = base.application.certificate.hash();
        let renewal = Renewal {
            network,
            node,
            certificate,
            serial: self.serial,
            follows: self.follows.unwrap_or(certificate),
            claim: base.claim.hash(),
            wireguard: Keys::new(self.keys).wireguard.public(),
            probe: Keys::new(self.keys).probe.public(),
            issued: self.issued,
            expires: Some(self.issued.plus(LIFE)),
        };
        let renewal = Signed::seal(&renewal, &signer).unwrap();
        let receipt = RenewalReceipt {
            network,
            planet: table.authority.planet.planet_id(),
            node,
            renewal: renewal.hash(),
            time: self.issued,
        };
        let request = RenewalRequest {
            successions,
            renewal,
        };
        let receipt = Signed::seal(&receipt, &table.authority.planet).unwrap();
        Membership {
            renewed: Some(Box::new(Renewed { request, receipt })),
            ..base
        }
    }
}

pub(super) fn short(table: &Table) -> Draft {
    let mut draft = table.draft(2);
    draft.grant.membership = Some(LIFE);
    draft.expires = Some(START.plus(LIFE));
    draft
}

impl Table {
    pub(super) fn take(&mut self, membership: Membership) -> Learned {
        self.members.learn(membership, self.planet, START.plus(60))
    }

    pub(super) fn two(&self) -> &Member {
        &self.members.known(&Keys::new(2).id()).unwrap().member
    }
}

/// A table that knows node 2 by a rotation of all its keys, at serial 2.
pub(super) fn rotated() -> Table {
    let mut table = Table::new();
    assert_eq!(table.learn(&short(&table)), Learned::New);
    let first = Sequel::new(1);
    assert_eq!(table.take(first.build(&table)), Learned::New);
    let mut second = Sequel::new(2);
    (second.keys, second.steps) = (50, vec![51]);
    second.follows = Some(table.two().document);
    assert_eq!(table.take(second.build(&table)), Learned::New);
    assert!(table.codes().is_empty());
    table.members.take_changed();
    table
}

#[test]
fn a_newer_state_takes_the_place_of_the_older_one_and_its_key_is_found() {
    let table = rotated();
    assert_eq!(table.two().renewal, 2);
    assert_eq!(table.two().expires, Some(START.plus(2 + LIFE)));
    let holdings = table.members.holdings();
    let two = Some(MemberId::Node(Keys::new(2).id()));
    assert_eq!(holdings.with_key(&Keys::new(50).wireguard.public()), two);
    assert_eq!(holdings.with_key(&Keys::new(2).wireguard.public()), None);
}

/// What is told, how, and the code by which it is named; none for what is only late.
type Told = (&'static str, fn(&Table) -> Membership, Option<&'static str>);

const TOLD: [Told; 8] = [
    (
        "as admitted",
        |table| short(table).build(&table.authority),
        Some("MESH-TRUST-010"),
    ),
    (
        "an older renewal",
        |table| Sequel::new(1).build(table),
        Some("MESH-TRUST-010"),
    ),
    (
        "a later renewal by the former identity",
        |table| Sequel::new(9).build(table),
        Some("MESH-TRUST-010"),
    ),
    (
        "another step of the former identity",
        |table| {
            let mut fork = Sequel::new(9);
            (fork.keys, fork.steps) = (60, vec![61]);
            fork.build(table)
        },
        Some("MESH-TRUST-011"),
    ),
    (
        "a second successor",
        |table| {
            let mut fork = Sequel::new(2);
            (fork.keys, fork.steps) = (60, vec![51]);
            fork.build(table)
        },
        Some("MESH-TRUST-011"),
    ),
    (
        "what follows a second successor",
        |table| {
            let mut fork = Sequel::new(3);
            (fork.keys, fork.steps) = (60, vec![51]);
            fork.follows = Some([7; 32]);
            fork.build(table)
        },
        Some("MESH-TRUST-011"),
    ),
    (
        "a life dated ahead",
        |table| {
            let mut ahead = Sequel::new(3);
            (ahead.keys, ahead.steps) = (50, vec![51]);
            ahead.follows = Some(table.two().document);
            ahead.issued = START.plus(1_000);
            ahead.build(table)
        },
        // Some clock is wrong, perhaps this one.
        None,
    ),
    (
        "the same with another receipt",
        |table| {
            let mut again = table
                .members
                .known(&Keys::new(2).id())
                .unwrap()
                .membership
                .as_ref()
                .clone();
            let renewed = again.renewed.as_mut().unwrap();
            let receipt = RenewalReceipt {
                time: START.plus(9),
                ..renewed.receipt.unverified().unwrap()
            };
            renewed.receipt = Signed::seal(&receipt, &table.authority.planet).unwrap();
            again
        },
        None,
    ),
];

#[test]
fn no_older_other_or_former_state_comes_back() {
    for (what, build, code) in TOLD {
        let mut table = rotated();
        let before = table.two().clone();
        let membership = build(&table);
        assert_ne!(table.take(membership), Learned::New, "{what}");
        assert_eq!(*table.two(), before, "{what}");
        assert!(table.members.take_changed().is_empty(), "{what}");
        let codes: Vec<String> = code.into_iter().map(str::to_owned).collect();
        assert_eq!(table.codes_in_the_end(), codes, "{what}");
    }
}

#[test]
fn a_late_teller_of_the_former_life_is_no_liar() {
    let mut table = Table::new();
    assert_eq!(table.learn(&short(&table)), Learned::New);
    assert_eq!(table.take(Sequel::new(1).build(&table)), Learned::New);
    assert_eq!(table.learn(&short(&table)), Learned::Same);
    assert!(table.codes().is_empty());
    assert_eq!(table.two().renewal, 1);
}

#[test]
fn a_revoked_token_prolongs_nobody() {
    let mut table = Table::new();
    assert_eq!(table.learn(&short(&table)), Learned::New);
    table.say(&RootStatement::RevokeToken {
        network: table.authority.network.id,
        token: short(&table).grant.token,
        issued: START.plus(10),
    });
    let mut later = Sequel::new(1);
    later.issued = START.plus(20);
    assert_eq!(table.take(later.build(&table)), Learned::Refused);
    assert_eq!(table.codes(), ["MESH-TRUST-008"]);
    assert_eq!(table.two().renewal, 0);
    // The same keys' new ones, within the life that it has.
    let mut rotated = Sequel::new(1);
    (rotated.keys, rotated.issued) = (50, START);
    assert_eq!(table.take(rotated.build(&table)), Learned::New);
}

#[test]
fn an_ended_life_stays_known_over_a_restart_and_may_go_on() {
    let mut table = Table::new();
    let membership = short(&table).build(&table.authority);
    let late = START.plus(LIFE + 2 * CLOCK_SKEW);
    assert_eq!(
        table.members.learn(membership.clone(), Source::Disk, late),
        Learned::New
    );
    table.members.expire(late);
    assert!(table.members.known(&Keys::new(2).id()).unwrap().expired);
    assert_eq!(
        table.members.learn(membership, table.planet, late),
        Learned::Same
    );
    let mut later = Sequel::new(1);
    later.issued = late;
    let later = later.build(&table);
    assert_eq!(table.members.learn(later, table.planet, late), Learned::New);
    table.members.expire(late);
    assert!(!table.members.known(&Keys::new(2).id()).unwrap().expired);
}

#[test]
fn a_departure_by_a_former_identity_moves_nobody() {
    let mut table = rotated();
    let mut departure = Departure {
        network: table.authority.network.id,
        node: Keys::new(2).id(),
        successions: Vec::new(),
        time: START.plus(50),
    };
    let stolen = Signed::seal(&departure, &Keys::new(2).identity).unwrap();
    assert!(table.depart(&stolen).is_err());
    assert!(table.knows(2));
    // Whoever hears of it first takes the member up all the same.
    let mut later = Table::new();
    assert_eq!(later.learn(&short(&later)), Learned::New);
    assert_eq!(later.depart(&stolen), Ok(Parting::News));
    assert_eq!(
        later.take((*table.members.known(&Keys::new(2).id()).unwrap().membership).clone()),
        Learned::New
    );
    assert!(later.knows(2));
    // Nor does it take the place of what the newest one says, whatever time it names.
    departure.time = START.plus(60);
    let later_still = Signed::seal(&departure, &Keys::new(2).identity).unwrap();
    departure.time = START.plus(50);
    let membership = Arc::clone(&table.members.known(&Keys::new(2).id()).unwrap().membership);
    departure.successions = membership.renewed.clone().unwrap().request.successions;
    let own = Signed::seal(&departure, &SigningKey::from_seed([51; 32])).unwrap();
    for table in [&mut table, &mut later] {
        assert_eq!(table.depart(&own), Ok(Parting::News));
        assert!(!table.knows(2));
        for former in [&stolen, &later_still, &own] {
            assert_eq!(table.depart(former), Ok(Parting::Nothing));
        }
    }
}
