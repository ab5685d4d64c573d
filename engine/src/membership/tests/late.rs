//! Who was away tells what it knew, and who lies goes on telling it: a row for each kind.

use podmesh_proto::network::RootStatement::RevokeNode;
use podmesh_proto::statements::Edition;

use super::renewals::{Sequel, rotated, short};
use super::*;
use crate::membership::Better;

/// One kind of thing that may be told in good faith by who was away.
struct Row {
    what: &'static str,
    code: &'static str,
    scene: fn() -> Table,
    /// The planet says the older.
    older: fn(&mut Table),
    /// It says the newer.
    newer: fn(&mut Table),
}

fn source_id(table: &Table) -> PlanetId {
    table.authority.planet.planet_id()
}

fn claimed_anew() -> Table {
    let mut table = Table::new();
    let newer = newer_claim(&table);
    assert_eq!(table.learn(&newer), Learned::New);
    table
}

fn newer_claim(table: &Table) -> Draft {
    let mut newer = table.draft(1);
    (newer.serial, newer.sequence) = (5, 40);
    newer
}

/// Node 2 has other keys by now and the same identity.
fn rekeyed() -> Table {
    let mut table = Table::new();
    assert_eq!(table.learn(&short(&table)), Learned::New);
    let mut first = Sequel::new(1);
    first.keys = 50;
    assert_eq!(table.take(first.build(&table)), Learned::New);
    table
}

fn says_two(table: &mut Table) {
    let present = table.members.known(&Keys::new(2).id()).unwrap();
    let present = (*present.membership).clone();
    assert_eq!(table.take(present), Learned::Same);
}

fn revocation(table: &Table) -> Signed<RootStatement> {
    let network = table.authority.network.id;
    let (node, issued) = (Keys::new(1).id(), START.plus(10));
    table.authority.say(&RevokeNode {
        network,
        node,
        issued,
    })
}

fn says_statement(table: &mut Table, statement: &Signed<RootStatement>) {
    let news = table.members.apply(statement, table.planet, START.plus(60));
    assert_eq!(news, Ok(false));
}

fn revoked() -> Table {
    let mut table = Table::new();
    let said = revocation(&table);
    let source = Source::Member(Keys::new(3).id());
    table.members.apply(&said, source, START.plus(20)).unwrap();
    table
}

fn left() -> Table {
    let mut table = Table::new();
    let departure = Departure {
        successions: Vec::new(),
        network: table.authority.network.id,
        node: Keys::new(1).id(),
        time: START.plus(10),
    };
    let signed = Signed::seal(&departure, &Keys::new(1).identity).unwrap();
    assert_eq!(table.depart(&signed), Ok(Parting::News));
    table
}

/// Node 3 has the place of node 1, by the root's word.
fn heir(table: &Table) -> Draft {
    let mut heir = table.draft(3);
    heir.grant.replaces = Some(Keys::new(1).id());
    heir
}

fn replaced() -> Table {
    let mut table = Table::new();
    let heir = heir(&table);
    assert_eq!(table.learn(&heir), Learned::New);
    table
}

fn next_edition() -> Table {
    let mut table = Table::new();
    let network = Network {
        version: table.authority.network.version + 1,
        ..table.authority.network.clone()
    };
    assert!(table.say(&RootStatement::Network(network)));
    table
}

/// Who was admitted by a planet of an edition that this node doesn't have.
fn says_stranger(table: &mut Table) {
    let other = Authority {
        planet: podmesh_proto::key::SigningKey::from_seed([77; 32]),
        ..Authority::new()
    };
    let membership = table.draft(2).build(&other);
    assert_eq!(table.take(membership), Learned::Refused);
}

fn summary(table: &Table) -> podmesh_proto::statements::Summary {
    let members = &table.members;
    let edition = Edition::of(members.network(), members.network_statement());
    members.statements().summary(edition)
}

fn says_all(table: &mut Table) {
    let (planet, summary) = (source_id(table), summary(table));
    table.members.planet_holds(planet, &summary);
}

fn says_one(table: &mut Table) {
    table.learn(&table.draft(1));
}

const ROWS: [Row; 10] = [
    Row {
        what: "an older claim",
        code: "MESH-TRUST-004",
        scene: claimed_anew,
        older: says_one,
        newer: |table| {
            table.learn(&newer_claim(table));
        },
    },
    Row {
        what: "former keys",
        code: "MESH-TRUST-004",
        scene: rekeyed,
        older: |table| {
            table.learn(&short(table));
        },
        newer: says_two,
    },
    Row {
        what: "a former identity",
        code: "MESH-TRUST-010",
        scene: rotated,
        older: |table| {
            table.learn(&short(table));
        },
        newer: says_two,
    },
    Row {
        what: "a revoked member, then its revocation",
        code: "MESH-TRUST-005",
        scene: revoked,
        older: says_one,
        newer: |table| says_statement(table, &revocation(table)),
    },
    Row {
        what: "a revoked member, then a summary",
        code: "MESH-TRUST-005",
        scene: revoked,
        older: says_one,
        newer: says_all,
    },
    Row {
        what: "a member that has left",
        code: "MESH-TRUST-005",
        scene: left,
        older: says_one,
        newer: |table| {
            let planet = source_id(table);
            table
                .members
                .planet_knows_departure(planet, &Keys::new(1).id());
        },
    },
    Row {
        what: "a member whose place was given away",
        code: "MESH-TRUST-005",
        scene: replaced,
        older: says_one,
        newer: |table| {
            table.learn(&heir(table));
        },
    },
    Row {
        what: "the departure of a member that has come back",
        code: "MESH-TRUST-004",
        scene: Table::new,
        older: |table| {
            let about = (lies::Lie::OldState, Keys::new(1).id());
            let sentence = "an old departure".to_owned();
            table
                .members
                .note_late(about, table.planet, sentence, START.plus(60));
        },
        newer: says_one,
    },
    Row {
        what: "an older edition",
        code: "MESH-TRUST-004",
        scene: next_edition,
        older: |table| says_statement(table, &table.authority.statement.clone()),
        newer: |table| says_statement(table, &table.members.network_statement().clone()),
    },
    Row {
        what: "a member by a planet that isn't known",
        code: "MESH-TRUST-001",
        scene: Table::new,
        older: says_stranger,
        newer: says_all,
    },
];

impl Table {
    fn tell(&mut self) -> Option<Better> {
        self.members.take_untold(self.planet, START.plus(60))
    }

    fn codes_at(&self, seconds: u64) -> Vec<String> {
        let name = |source| format!("{source:?}");
        let views = self.members.lies().views(START.plus(seconds), name);
        views.into_iter().map(|view| view.code).collect()
    }
}

#[test]
fn who_was_away_is_told_and_clean_once_it_says_the_newer() {
    for row in ROWS {
        let mut table = (row.scene)();
        (row.older)(&mut table);
        assert_eq!(table.codes_at(60), Vec::<String>::new(), "{}", row.what);
        assert!(table.members.has_untold(table.planet), "{}", row.what);
        assert!(table.tell().is_some(), "{}", row.what);
        assert_eq!(table.tell(), None, "{}: once", row.what);
        // Late is not never.
        assert_eq!(
            table.codes_at(60 + limits::DOUBT),
            [row.code],
            "{}",
            row.what
        );
        (row.newer)(&mut table);
        for at in [60, 70, 100_000] {
            assert_eq!(table.codes_at(at), Vec::<String>::new(), "{}", row.what);
        }
        // Yesterday's planet is another one.
        let planet = source_id(&table);
        table.members.planet_is_away(planet, START.plus(70));
        (row.older)(&mut table);
        assert_eq!(table.codes_at(60), Vec::<String>::new(), "{}", row.what);
    }
}

#[test]
fn who_goes_on_with_the_older_is_named_and_stays_named() {
    for row in ROWS {
        let mut table = (row.scene)();
        (row.older)(&mut table);
        assert_eq!(table.codes_in_the_end(), [row.code], "{}", row.what);
        let planet = source_id(&table);
        table.members.planet_is_away(planet, START.plus(90));
        (row.older)(&mut table);
        for at in [60 + limits::DOUBT, 100_000] {
            assert_eq!(table.codes_at(at), [row.code], "{}", row.what);
        }
    }
}

/// Neither going back to the older nor coming back before it is clear is a way out.
#[test]
fn who_wavers_is_named_at_once() {
    for row in ROWS {
        let mut table = (row.scene)();
        (row.older)(&mut table);
        table.tell();
        (row.newer)(&mut table);
        (row.older)(&mut table);
        (row.newer)(&mut table);
        assert_eq!(table.codes_at(60), [row.code], "{}", row.what);

        let mut table = (row.scene)();
        let planet = source_id(&table);
        for round in 0..=limits::DOUBTS {
            assert_eq!(
                table.codes_at(60),
                Vec::<String>::new(),
                "{} {round}",
                row.what
            );
            (row.older)(&mut table);
            table.tell();
            table.members.planet_is_away(planet, START.plus(61));
        }
        assert_eq!(table.codes_at(60), [row.code], "{}", row.what);
    }
}

/// What may be said in good faith takes no place from what may not.
#[test]
fn nobody_hides_a_lie_behind_doubts() {
    let mut table = Table::new();
    let member = Source::Member(Keys::new(1).id());
    let lie = lies::Lie::OldState;
    for number in 20..40 {
        let node = Keys::new(number).id();
        let members = &mut table.members;
        members.note_late((lie, node), member, "old".to_owned(), START);
    }
    let told = ("endpoints".to_owned(), "forged".to_owned());
    table.members.note(lies::Lie::Forged, member, told, START);
    assert_eq!(table.codes_at(0), ["MESH-TRUST-009"]);
    let kept = table.members.lies().len();
    assert_eq!(kept, limits::MAX_LIES_OF_MEMBER);
}

/// A planet whose clock is behind serves who has ended, once; it is no reason to replace it.
#[test]
fn who_is_told_of_outside_of_its_time_is_no_lie_the_first_time() {
    let mut table = Table::new();
    let ended = short(&table).build(&table.authority);
    for (at, named) in [(10_000, 0), (10_001, 0), (10_100, 1)] {
        let learned = table
            .members
            .learn(ended.clone(), table.planet, START.plus(at));
        assert_eq!(learned, Learned::Refused);
        assert_eq!(table.codes_at(at).len(), named, "{at}");
    }
    assert_eq!(table.codes_at(100_000), ["MESH-TRUST-008"]);
}

/// The planet had not heard of it: nobody is told to replace it.
#[test]
fn who_is_dated_after_its_tokens_revocation_is_named_and_its_planet_is_not_accused() {
    let mut table = Table::new();
    let draft = table.draft(2);
    table.say(&RootStatement::RevokeToken {
        network: table.authority.network.id,
        token: draft.grant.token,
        issued: START.minus(10),
    });
    assert_eq!(table.learn(&draft), Learned::Refused);
    let views = table
        .members
        .lies()
        .views(START.plus(60), |_| "p1".to_owned());
    assert_eq!(views.len(), 1);
    let next = views[0].next.as_deref().unwrap();
    assert!(
        next.contains("in good faith") && !next.contains("--replaces"),
        "{next}"
    );
}
