use podmesh_proto::certificate::Departure;
use podmesh_proto::id::{NodeId, TokenId};
use podmesh_proto::network::{ExternalPeer, Network, PlanetEntry, RetiredPlanet, RootStatement};

use super::*;
use crate::limits;
use crate::testing::{Authority, Draft, Keys, START, name, nets};

mod externals;
mod late;
mod renewals;

const ME: u8 = 9;

struct Table {
    authority: Authority,
    members: Members,
    planet: Source,
}

impl Table {
    /// This node, and node 1 as a known holder.
    fn new() -> Self {
        let authority = Authority::new();
        let planet = Source::Planet(authority.planet.planet_id());
        let own = Keys::new(ME).id();
        let members = Members::new(authority.network.clone(), authority.statement.clone(), own);
        let mut table = Self {
            authority,
            members,
            planet,
        };
        assert_eq!(table.learn(&table.draft(ME)), Learned::New);
        assert_eq!(table.learn(&table.draft(1)), Learned::New);
        table.members.start_batch();
        table.members.take_changed();
        table
    }

    fn draft(&self, number: u8) -> Draft {
        Draft::new(&self.authority, number)
    }

    fn learn(&mut self, draft: &Draft) -> Learned {
        let membership = draft.build(&self.authority);
        self.members.learn(membership, self.planet, START.plus(50))
    }

    fn say(&mut self, statement: &RootStatement) -> bool {
        let signed = self.authority.say(statement);
        self.members
            .apply(&signed, Source::Operator, START.plus(60))
            .unwrap()
    }

    fn depart(&mut self, departure: &Signed<Departure>) -> Result<Parting, CertificateError> {
        let source = Source::Member(Keys::new(1).id());
        self.members.depart(departure, source, START.plus(60))
    }

    fn knows(&self, number: u8) -> bool {
        self.members.known(&Keys::new(number).id()).is_some()
    }

    fn codes(&self) -> Vec<String> {
        let views = self
            .members
            .lies()
            .views(START.plus(60), |source| format!("{source:?}"));
        views.into_iter().map(|view| view.code).collect()
    }

    /// When whoever was told the older has had its time.
    fn codes_in_the_end(&mut self) -> Vec<String> {
        while self
            .members
            .take_untold(self.planet, START.plus(60))
            .is_some()
        {}
        let end = START.plus(60 + limits::DOUBT);
        let views = self
            .members
            .lies()
            .views(end, |source| format!("{source:?}"));
        views.into_iter().map(|view| view.code).collect()
    }

    fn resolve(&mut self, number: u8, at: u64) -> bool {
        self.say(&RootStatement::Resolve {
            network: self.authority.network.id,
            node: Keys::new(number).id(),
            issued: START.plus(at),
        })
    }
}

type Spoil = fn(&mut Draft);

/// Every way to want what node 1 holds.
fn collisions() -> Vec<(&'static str, Spoil)> {
    vec![
        ("name", |draft| draft.name = name("n1")),
        ("key", |draft| {
            draft.keys.wireguard = Keys::new(1).wireguard;
        }),
        ("token use", |draft| draft.use_number = 1),
        ("overlay address", |draft| {
            draft.overlay4 = Some("10.77.0.1".parse().unwrap());
        }),
        ("pod CIDR", |draft| {
            draft.pod_cidrs = nets(&["10.42.1.0/24"]);
        }),
        ("subnet", |draft| draft.pod_cidrs = nets(&["10.42.1.64/26"])),
        ("one pod", |draft| {
            draft.pod_cidrs = nets(&["10.42.7.0/24", "10.42.1.5/32"]);
        }),
    ]
}

#[test]
fn a_newcomer_that_collides_is_quarantined_and_the_holder_notices_nothing() {
    for (what, spoil) in collisions() {
        let mut table = Table::new();
        let mut rogue = table.draft(2);
        spoil(&mut rogue);
        assert_eq!(table.learn(&rogue), Learned::Refused, "{what}");
        assert!(table.knows(1) && !table.knows(2), "{what}");
        assert_eq!(table.codes(), ["MESH-TRUST-002"], "{what}");
        let views = table
            .members
            .lies()
            .views(START.plus(60), |source| format!("{source:?}"));
        assert!(
            views[0].message.contains("n1 holds"),
            "{}",
            views[0].message
        );
        assert!(
            !table
                .members
                .take_changed()
                .contains(&MemberId::Node(Keys::new(1).id()))
        );
        // The same again is no news.
        assert_eq!(table.learn(&rogue), Learned::Refused, "{what}");
        assert_eq!(table.members.quarantined().count(), 1, "{what}");
    }
}

#[test]
fn of_two_that_arrive_together_neither_is_routed_to_until_the_root_decides() {
    for (what, spoil) in collisions() {
        for winner in [2, 3] {
            let mut table = Table::new();
            let mut first = table.draft(2);
            let mut second = table.draft(3);
            // Both want what nobody holds yet.
            spoil(&mut first);
            spoil(&mut second);
            for draft in [&mut first, &mut second] {
                shift_to_free(draft);
            }
            assert_eq!(table.learn(&first), Learned::New, "{what}");
            assert_eq!(table.learn(&second), Learned::Refused, "{what}");
            assert!(!table.knows(2) && !table.knows(3), "{what}");
            assert_eq!(
                table.codes(),
                ["MESH-TRUST-003", "MESH-TRUST-003"],
                "{what}"
            );
            assert!(table.resolve(winner, 70), "{what}");
            assert_eq!(
                (table.knows(2), table.knows(3)),
                (winner == 2, winner == 3),
                "{what}"
            );
            assert!(table.knows(1), "{what}");
            assert_eq!(table.members.quarantined().count(), 1, "{what}");
        }
    }
}

/// Moves what two drafts share away from what node 1 holds.
fn shift_to_free(draft: &mut Draft) {
    if draft.name == name("n1") {
        draft.name = name("shared");
    }
    if draft.keys.wireguard.public() == Keys::new(1).wireguard.public() {
        draft.keys.wireguard = Keys::new(77).wireguard;
    }
    if draft.use_number == 1 {
        draft.use_number = 77;
    }
    if draft.overlay4 == Some("10.77.0.1".parse().unwrap()) {
        draft.overlay4 = Some("10.77.0.77".parse().unwrap());
    }
    for cidr in &mut draft.pod_cidrs {
        let text = cidr.to_string().replace("10.42.1.", "10.42.77.");
        *cidr = text.parse().unwrap();
    }
}

#[test]
fn a_third_newcomer_doesnt_win_what_two_contest() {
    let mut table = Table::new();
    for number in 2..=4 {
        let mut draft = table.draft(number);
        draft.name = name("shared");
        table.learn(&draft);
    }
    assert!((2..=4).all(|number| !table.knows(number)));
    assert!(table.resolve(4, 70));
    assert!(table.knows(4) && !table.knows(2) && !table.knows(3));
}

#[test]
fn the_root_can_decide_against_a_known_holder_and_change_its_mind() {
    let mut table = Table::new();
    let mut rogue = table.draft(2);
    rogue.name = name("n1");
    table.learn(&rogue);
    assert!(table.resolve(2, 70));
    assert!(table.knows(2) && !table.knows(1));
    assert!(table.resolve(1, 80));
    assert!(table.knows(1) && !table.knows(2));
    table.resolve(2, 75);
    assert!(table.knows(1), "the later word counts");
    assert!(!table.resolve(2, 75), "no news");
}

#[test]
fn who_waited_for_a_holding_gets_it_when_the_holder_is_gone() {
    let mut table = Table::new();
    let mut heir = table.draft(2);
    heir.overlay4 = Some("10.77.0.1".parse().unwrap());
    table.learn(&heir);
    assert!(!table.knows(2));
    let departure = Departure {
        successions: Vec::new(),
        network: table.authority.network.id,
        node: Keys::new(1).id(),
        time: START.plus(10),
    };
    let forged = Signed::seal(&departure, &Keys::new(2).identity).unwrap();
    assert!(table.depart(&forged).is_err());
    assert!(table.knows(1));
    let signed = Signed::seal(&departure, &Keys::new(1).identity).unwrap();
    assert_eq!(table.depart(&signed), Ok(Parting::News));
    assert_eq!(table.depart(&signed), Ok(Parting::Nothing));
    assert!(table.knows(2) && !table.knows(1));
    let (gone, planet) = (Keys::new(1).id(), table.authority.planet.planet_id());
    let untold = |table: &Table| table.members.last_departures(9, Some(planet)).len();
    assert_eq!(untold(&table), 1);
    table.members.planet_knows_departure(planet, &gone);
    assert_eq!(untold(&table), 0, "what it said itself");
    let passed_on = table.members.last_departures(9, None);
    assert_eq!(passed_on, std::slice::from_ref(&signed));
    // Its old membership doesn't bring it back; a new admission does.
    assert_eq!(table.learn(&table.draft(1)), Learned::Refused);
    assert!(table.codes().is_empty(), "it may have been away");
    assert_eq!(table.codes_in_the_end(), ["MESH-TRUST-005"]);
    // Whoever has heard of it since is nothing to look at, and neither is a planet that serves no more.
    table.members.planet_knows_departure(planet, &gone);
    assert!(table.codes_in_the_end().is_empty());
    assert_eq!(table.learn(&table.draft(1)), Learned::Refused);
    assert_eq!(table.codes(), ["MESH-TRUST-005"], "it knew better");
    table
        .members
        .forget_planet(Keys::new(7).identity.planet_id());
    assert_eq!(table.codes(), ["MESH-TRUST-005"], "another planet");
    table.members.forget_planet(planet);
    assert!(table.codes().is_empty());
    assert_eq!(table.learn(&table.draft(1)), Learned::Refused);
    let mut again = table.draft(1);
    (again.admitted, again.use_number, again.serial) = (START.plus(20), 50, 2);
    again.overlay4 = Some("10.77.0.50".parse().unwrap());
    assert_eq!(table.learn(&again), Learned::New);
    assert_eq!(table.depart(&signed), Ok(Parting::Over));
    assert!(table.knows(1), "an old departure is over");
    let passed_on = table.members.last_departures(9, None);
    assert!(passed_on.is_empty(), "it is not passed on");
}

type Lie = fn(&Authority, &mut Membership);

/// What a planet may try, the code by which it is named, and the node it is about.
fn lies() -> [(&'static str, &'static str, u8, Lie); 5] {
    [
        (
            "adds a member with its own token",
            "MESH-TRUST-001",
            2,
            |authority, membership| {
                let draft = Draft::new(authority, 2);
                let rogue = Authority {
                    root: podmesh_proto::key::SigningKey::from_seed([66; 32]),
                    ..Authority::new()
                };
                *membership = draft.build(&rogue);
            },
        ),
        (
            "swaps a key",
            "MESH-TRUST-006",
            1,
            |authority, membership| {
                let mut draft = Draft::new(authority, 1);
                draft.keys.wireguard = Keys::new(66).wireguard;
                let swapped = draft.build(authority).application;
                membership.application.certificate = swapped.certificate;
            },
        ),
        (
            "moves an address",
            "MESH-TRUST-007",
            1,
            |authority, membership| {
                let mut draft = Draft::new(authority, 1);
                draft.keys.identity = Keys::new(66).identity;
                membership.claim = draft.build(authority).claim;
            },
        ),
        (
            "replays an expired token",
            "MESH-TRUST-008",
            2,
            |authority, membership| {
                let mut draft = Draft::new(authority, 2);
                draft.admitted = START.plus(200_000);
                *membership = draft.build(authority);
            },
        ),
        (
            "overdraws a token",
            "MESH-TRUST-008",
            2,
            |authority, membership| {
                let mut draft = Draft::new(authority, 2);
                draft.use_number = 1_000;
                *membership = draft.build(authority);
            },
        ),
    ]
}

#[test]
fn every_lie_of_a_planet_is_named() {
    for (what, code, number, spoil) in lies() {
        let mut table = Table::new();
        let mut membership = table.draft(number).build(&table.authority);
        spoil(&table.authority, &mut membership);
        let before = table
            .members
            .known(&Keys::new(1).id())
            .unwrap()
            .member
            .clone();
        let learned = table
            .members
            .learn(membership, table.planet, START.plus(50));
        assert_eq!(learned, Learned::Refused, "{what}");
        assert_eq!(table.codes(), [code], "{what}");
        assert_eq!(
            table.members.known(&Keys::new(1).id()).unwrap().member,
            before,
            "{what}"
        );
        assert!(!table.knows(2), "{what}");
    }
}

#[test]
fn an_older_claim_is_named_and_a_newer_one_is_taken() {
    let mut table = Table::new();
    let mut newer = table.draft(1);
    (newer.serial, newer.sequence) = (5, 40);
    newer.pod_cidrs = nets(&["10.42.1.0/24", "10.42.101.0/24"]);
    assert_eq!(table.learn(&newer), Learned::New);
    assert_eq!(table.learn(&table.draft(1)), Learned::Same);
    assert!(table.codes().is_empty(), "it may have been away");
    assert_eq!(table.codes_in_the_end(), ["MESH-TRUST-004"]);
    assert_eq!(
        table
            .members
            .known(&Keys::new(1).id())
            .unwrap()
            .member
            .serial,
        5
    );
    // A claim that collides leaves the node with what it has.
    let mut greedy = table.draft(1);
    (greedy.serial, greedy.sequence) = (6, 42);
    greedy.pod_cidrs = nets(&["10.42.9.0/24"]);
    assert_eq!(table.learn(&greedy), Learned::Refused);
    assert_eq!(
        table
            .members
            .known(&Keys::new(1).id())
            .unwrap()
            .member
            .serial,
        5
    );
}

#[test]
fn revocations_of_nodes_and_tokens_reach_as_far_as_they_say() {
    let mut table = Table::new();
    let network = table.authority.network.id;
    table.say(&RootStatement::RevokeToken {
        network,
        token: TokenId([1; 16]),
        issued: START.plus(10),
    });
    assert!(table.knows(1), "a member stays when its token is revoked");
    assert_eq!(
        table.learn(&table.draft(2)),
        Learned::New,
        "admitted before"
    );
    let mut late = table.draft(3);
    late.admitted = START.plus(20);
    assert_eq!(table.learn(&late), Learned::Refused);
    assert_eq!(table.codes(), ["MESH-TRUST-008"]);
    table.say(&RootStatement::RevokeNode {
        network,
        node: Keys::new(1).id(),
        issued: START.plus(30),
    });
    assert!(!table.knows(1));
    assert_eq!(table.learn(&table.draft(1)), Learned::Refused);
    // What it held is free.
    let mut heir = table.draft(4);
    heir.overlay4 = Some("10.77.0.1".parse().unwrap());
    assert_eq!(table.learn(&heir), Learned::New);
}

#[test]
fn of_several_revocations_of_a_token_the_earliest_counts_in_any_order() {
    for order in [[10, 40], [40, 10]] {
        let mut table = Table::new();
        let network = table.authority.network.id;
        for after in order {
            table.say(&RootStatement::RevokeToken {
                network,
                token: TokenId([1; 16]),
                issued: START.plus(after),
            });
        }
        let (mut before, mut between) = (table.draft(2), table.draft(3));
        (before.admitted, between.admitted) = (START.plus(5), START.plus(20));
        assert_eq!(table.learn(&before), Learned::New, "{order:?}");
        assert_eq!(table.learn(&between), Learned::Refused, "{order:?}");
    }
}

#[test]
fn a_grant_for_a_name_puts_its_former_holder_out() {
    let mut table = Table::new();
    let mut heir = table.draft(2);
    heir.name = name("n1");
    heir.grant.for_name = Some(name("n1"));
    heir.grant.replaces = Some(Keys::new(1).id());
    assert_eq!(table.learn(&heir), Learned::New);
    assert!(table.knows(2) && !table.knows(1));
    assert!(table.members.is_revoked(&Keys::new(1).id()));
    assert!(table.codes().is_empty());
}

#[test]
fn external_peers_come_and_go_by_the_root_and_collide_like_everybody() {
    let mut table = Table::new();
    let key = Keys::new(50).wireguard.public();
    let peer = |prefixes: &[&str], issued| {
        RootStatement::External(ExternalPeer {
            network: Authority::new().network.id,
            name: name("laptop"),
            wireguard: key,
            prefixes: nets(prefixes),
            endpoint: None,
            issued: START.plus(issued),
        })
    };
    table.say(&peer(&["10.77.0.1/32"], 1));
    assert!(table.members.external(&key).is_none());
    assert_eq!(table.codes(), ["MESH-TRUST-002"]);
    table.say(&peer(&["10.77.0.200/32"], 2));
    assert!(table.members.external(&key).is_some());
    assert!(table.codes().is_empty());
    table.members.start_batch();
    let mut rogue = table.draft(2);
    rogue.overlay4 = Some("10.77.0.200".parse().unwrap());
    assert_eq!(table.learn(&rogue), Learned::Refused);
    table.say(&RootStatement::RevokeExternal {
        network: table.authority.network.id,
        wireguard: key,
        issued: START.plus(3),
    });
    assert!(table.members.external(&key).is_none());
    assert!(table.knows(2), "who waited for its address");
    // An older word of the same kind takes nothing back.
    table.say(&RootStatement::RevokeExternal {
        network: table.authority.network.id,
        wireguard: key,
        issued: START.plus(1),
    });
    table.say(&peer(&["10.77.0.201/32"], 2));
    assert!(
        table.members.external(&key).is_none(),
        "older than its revocation"
    );
}

#[test]
fn editions_only_grow_and_a_retired_planets_later_receipts_are_void() {
    let mut table = Table::new();
    let mut late = table.draft(2);
    late.admitted = START.plus(40);
    assert_eq!(table.learn(&late), Learned::New);
    let edition = |version| Network {
        version,
        planets: vec![PlanetEntry {
            id: PlanetId([5; 32]),
            name: name("p2"),
            address: "192.0.2.2:7077".to_owned(),
        }],
        retired: vec![RetiredPlanet {
            id: Authority::new().planet.planet_id(),
            until: START.plus(20),
        }],
        ..Authority::new().network
    };
    assert!(table.say(&RootStatement::Network(edition(3))));
    assert!(table.knows(1) && !table.knows(2));
    assert!(!table.say(&RootStatement::Network(edition(2))));
    assert_eq!(table.members.network().version, 3);
    assert_eq!(table.codes(), ["MESH-TRUST-004"]);
    let stranger = Signed::seal(
        &RootStatement::RevokeNode {
            network: table.authority.network.id,
            node: Keys::new(1).id(),
            issued: START,
        },
        &table.authority.planet,
    );
    let said = table.members.apply(&stranger.unwrap(), table.planet, START);
    assert!(said.is_err() && table.knows(1), "a planet can't revoke");
}

#[test]
fn an_expired_certificate_is_noticed_at_its_time() {
    let mut table = Table::new();
    let mut short = table.draft(2);
    short.expires = Some(START.plus(100));
    short.grant.membership = Some(100);
    assert_eq!(table.learn(&short), Learned::New);
    let node: NodeId = Keys::new(2).id();
    table.members.expire(START.plus(100 + CLOCK_SKEW));
    assert!(!table.members.known(&node).unwrap().expired);
    table.members.expire(START.plus(102 + CLOCK_SKEW));
    assert!(table.members.known(&node).unwrap().expired);
    assert!(table.members.take_changed().contains(&MemberId::Node(node)));
    // A clock that was ahead comes back.
    table.members.expire(START.plus(50));
    assert!(!table.members.known(&node).unwrap().expired);
    assert!(table.members.take_changed().contains(&MemberId::Node(node)));
    table.members.expire(START.plus(102 + CLOCK_SKEW));
    assert!(table.members.known(&node).unwrap().expired);
}

/// Clocks that run wrong when the news arrives unpin nobody.
#[test]
fn a_new_edition_under_a_wrong_clock_removes_nobody() {
    let mut table = Table::new();
    let mut short = table.draft(2);
    short.expires = Some(START.plus(100));
    short.grant.membership = Some(100);
    assert_eq!(table.learn(&short), Learned::New);
    let edition = Network {
        version: 2,
        ..table.authority.network.clone()
    };
    let edition = table.authority.say(&RootStatement::Network(edition));
    let late = START.plus(1_000_000);
    assert!(table.members.apply(&edition, table.planet, late).unwrap());
    assert!(table.knows(2));
}
