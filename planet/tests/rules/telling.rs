//! What members are told.

use std::time::Duration;

use podmesh_planet::rules::records::{Origin, Record, RecordKey};
use podmesh_planet::rules::{Action, Input};
use podmesh_proto::network::RootStatement;
use podmesh_proto::planet_api::{DirectoryRecord, NodeMessage, OLDEST_PROTOCOL, PlanetMessage};
use podmesh_proto::signed::Signed;
use podmesh_proto::statements::{BUCKETS, Held, Statements};

use crate::story::{BEGINNING, Node, Operator, Stage, Told};

#[test]
fn directory_news_is_a_delta_for_who_knows_the_rest() {
    let mut operator = Operator::new(18);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(200);
    let mut nodes: Vec<Node> = (0..60).map(|n| Node::new(2_000 + n)).collect();
    for (index, node) in nodes.iter_mut().enumerate() {
        stage.connect(node);
        stage.join(node, &token, &format!("n{index}"));
    }
    stage.pass(Duration::from_millis(100));
    let mut reader = nodes.remove(0);
    stage.connect(&mut reader);
    let updates = reader.updates();
    assert!(updates[0].from_start && updates.iter().skip(1).all(|update| !update.from_start));
    let members = |node: &Node| {
        let records = node.heard_records();
        let member = |record: &&DirectoryRecord| matches!(record, DirectoryRecord::Member(_));
        records.iter().filter(member).count()
    };
    assert_eq!(members(&reader), 59);
    reader.cursor = updates.last().map(|update| update.cursor);
    stage.connect(&mut reader);
    assert_eq!(members(&reader), 0, "nothing is told twice");
    let record = nodes[5].endpoints(&operator.network, 1);
    for _ in 0..10 {
        stage.say(&nodes[5], NodeMessage::Publish(record.clone()));
    }
    stage.told(&reader);
    stage.pass(Duration::from_millis(100));
    let told = stage.told(&reader);
    let news: Vec<_> = told
        .iter()
        .filter_map(|told| match told {
            Told::Message(PlanetMessage::Directory(update)) => Some(update.records.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(news, [vec![DirectoryRecord::Endpoints(record)]]);
    stage.restart();
    stage.connect(&mut reader);
    assert_eq!(members(&reader), 59, "another process, another epoch");
}

#[test]
fn the_roots_new_edition_reaches_everybody_and_an_older_one_is_refused() {
    let mut operator = Operator::new(19);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(1);
    let mut a = Node::new(1);
    stage.connect(&mut a);
    stage.join(&mut a, &token, "a");
    stage.told(&a);
    let old = operator.network_statement.clone();
    operator.ranges(|ranges| ranges.services = vec!["10.43.0.0/16".parse().unwrap()]);
    let new: Signed<RootStatement> = operator.network_statement.clone();
    stage.operator(&new).unwrap();
    assert!(
        stage
            .operator(&old)
            .unwrap_err()
            .contains("the planet has edition")
    );
    assert!(stage.operator(&new).unwrap().contains("known"));
    stage.pass(Duration::from_millis(100));
    let told = stage.told(&a);
    assert!(
        told.iter()
            .any(|told| matches!(told, Told::Message(PlanetMessage::Statement(s)) if **s == new))
    );
    stage.handle(Input::Drain);
    let told = stage.told(&a);
    assert!(matches!(
        told.last(),
        Some(Told::Message(PlanetMessage::Draining { .. }))
    ));
    assert!(
        stage
            .planet
            .poll_action()
            .is_none_or(|action| !matches!(action, Action::Commit(_)))
    );
}

/// `count` nodes that never were, put out.
fn revocations(operator: &Operator, count: u32) -> Vec<Signed<RootStatement>> {
    let numbers = 0..count;
    numbers
        .map(|number| operator.revoke_node(&Node::new(100_000 + number)))
        .collect()
}

/// What a member holds, in every bucket.
fn holds(statements: &Statements) -> Vec<Held> {
    (0..BUCKETS).map(|bucket| statements.held(bucket)).collect()
}

/// Takes to heart what a member was told, and gives messages and statements.
fn hear(stage: &mut Stage, node: &Node, known: &mut Statements) -> (usize, usize) {
    let (mut messages, mut heard) = (0, 0);
    for told in stage.told(node) {
        let Told::Message(message) = told else {
            panic!("cut off: {told:?}");
        };
        messages += 1;
        let statements = match message {
            PlanetMessage::Statements(statements) => statements,
            PlanetMessage::Statement(statement) => vec![*statement],
            _ => continue,
        };
        for signed in statements {
            heard += 1;
            let said = signed.unverified().unwrap();
            if !matches!(said, RootStatement::Network(_)) {
                known.insert(signed, said);
            }
        }
    }
    (messages, heard)
}

#[test]
fn ten_thousand_statements_are_told_in_portions_and_only_where_they_lack() {
    let mut operator = Operator::new(61);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(2);
    let mut a = Node::new(1);
    stage.connect(&mut a);
    stage.join(&mut a, &token, "a");
    stage.told(&a);
    for statement in revocations(&operator, 2_000) {
        stage.operator(&statement).unwrap();
    }
    stage.restart();
    stage.connect_quietly(&a);
    let mut known = Statements::default();
    hear(&mut stage, &a, &mut known);
    assert_eq!(known.len(), 0, "nobody asked yet");
    stage.say(&a, NodeMessage::Held(holds(&known)));
    let (mut most, mut heard) = (0, 0);
    for _ in 0..40 {
        stage.pass(Duration::from_millis(50));
        let (messages, statements) = hear(&mut stage, &a, &mut known);
        most = most.max(messages);
        heard += statements;
    }
    assert_eq!((known.len(), heard), (2_000, 2_000));
    assert!(most <= 4, "{most} messages at once");

    // Who knows all but one of them is told that one.
    let last = *known.iter().next().unwrap().0;
    known.remove(&last);
    stage.connect_quietly(&a);
    let summaries = stage.told(&a);
    let summary = summaries.iter().find_map(|told| match told {
        Told::Message(PlanetMessage::Summary(summary)) => Some(summary.clone()),
        _ => None,
    });
    let differing = known.differing(&summary.unwrap());
    assert_eq!(differing.len(), 1);
    let held = differing.iter().map(|it| known.held(*it)).collect();
    stage.say(&a, NodeMessage::Held(held));
    stage.pass(Duration::from_millis(100));
    assert_eq!(hear(&mut stage, &a, &mut known).1, 1);
}

#[test]
fn who_compares_nothing_is_told_one_by_one_and_is_not_flooded() {
    let mut operator = Operator::new(62);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(2);
    let (mut a, mut b) = (Node::new(1), Node::new(2));
    for (node, name) in [(&mut a, "a"), (&mut b, "b")] {
        stage.connect(node);
        stage.join(node, &token, name);
    }
    for statement in revocations(&operator, 1_000) {
        stage.operator(&statement).unwrap();
    }
    stage.restart();
    stage.connect(&mut b);
    stage.open(&mut a);
    let mut hello = stage.hello(&a);
    hello.protocol = OLDEST_PROTOCOL;
    stage.say(&a, NodeMessage::Hello(hello));
    let mut known = Statements::default();
    stage.pass(Duration::from_millis(100));
    hear(&mut stage, &a, &mut known);
    let mut most = 0;
    for turn in 0..80 {
        // News that a punch needs doesn't bring everything else with it.
        let introduce = NodeMessage::Introduce {
            peer: b.id(),
            attempt: turn,
        };
        stage.say(&a, introduce);
        stage.pass(Duration::from_millis(50));
        most = most.max(hear(&mut stage, &a, &mut known).0);
    }
    assert_eq!(known.len(), 1_000);
    assert!(most <= 40, "{most} messages at once");
}

#[test]
fn a_planet_that_lost_its_books_asks_one_member_at_a_time() {
    let mut operator = Operator::new(63);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(3);
    let mut nodes = [Node::new(1), Node::new(2), Node::new(3)];
    for (node, name) in nodes.iter_mut().zip(["a", "b", "c"]) {
        stage.connect(node);
        stage.join(node, &token, name);
    }
    let mut known = Statements::default();
    for statement in revocations(&operator, 1_000) {
        let said = statement.unverified().unwrap();
        known.insert(statement, said);
    }
    stage.lose(Origin::Lost);
    let mut asked = Vec::new();
    for node in &mut nodes {
        stage.connect_quietly(node);
        stage.say(node, NodeMessage::Held(holds(&known)));
        let wanted = stage.told(node).into_iter().filter_map(|told| match told {
            Told::Message(PlanetMessage::Held(held)) => Some(held),
            _ => None,
        });
        asked.push(wanted.flatten().collect::<Vec<Held>>());
    }
    assert_eq!(asked.iter().filter(|held| !held.is_empty()).count(), 1);
    let all: Vec<Signed<RootStatement>> =
        known.iter().map(|(_, kept)| kept.signed.clone()).collect();
    // Who wasn't asked isn't heard.
    stage.say(&nodes[1], NodeMessage::Statements(all[..20].to_vec()));
    assert_eq!(stage.planet.books().statements().len(), 0);
    let told: usize = asked[0].iter().map(|held| known.missing(held).len()).sum();
    assert_eq!(told, 1_000);
    for portion in all.chunks(200) {
        stage.say(&nodes[0], NodeMessage::Statements(portion.to_vec()));
    }
    stage.say(&nodes[0], NodeMessage::Statements(Vec::new()));
    assert_eq!(stage.planet.books().statements().len(), 1_000);
    stage.pass(Duration::from_secs(3));
    // Everybody is asked to compare, and nobody is told what all of them know.
    for node in &nodes {
        let summaries = stage.told(node);
        let last = summaries.iter().rev().find_map(|told| match told {
            Told::Message(PlanetMessage::Summary(summary)) => Some(summary.clone()),
            _ => None,
        });
        assert_eq!(known.differing(&last.unwrap()), Vec::<u8>::new());
        let pushed = |told: &&Told| matches!(told, Told::Message(PlanetMessage::Statements(_)));
        assert_eq!(summaries.iter().filter(pushed).count(), 0);
    }
    stage.restart();
    assert_eq!(stage.planet.books().statements().len(), 1_000, "on disk");
}

#[test]
fn who_says_to_hold_nothing_again_and_again_is_told_no_more_than_its_allowance() {
    let mut operator = Operator::new(64);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(2);
    let mut liar = Node::new(1);
    stage.connect(&mut liar);
    stage.join(&mut liar, &token, "liar");
    for statement in revocations(&operator, 1_000) {
        stage.operator(&statement).unwrap();
    }
    let bytes = stage.planet.books().statements().iter();
    let whole: usize = bytes.map(|(_, kept)| kept.signed.size()).sum();
    let mut told = 0;
    for second in 0..60 {
        if second % 7 == 0 {
            stage.connect_quietly(&liar);
        }
        for _ in 0..4 {
            stage.say(&liar, NodeMessage::Held(holds(&Statements::default())));
            stage.pass(Duration::from_millis(250));
        }
        let mut heard = Statements::default();
        told += hear(&mut stage, &liar, &mut heard).1;
    }
    let bytes = told * whole / 1_000;
    let most = 4 * 1024 * 1024 + 62 * 64 * 1024;
    assert!(bytes <= most, "{bytes} of {most}");
    assert!(bytes > 4 * 1024 * 1024, "an honest node gets all of it");
}

#[test]
fn what_the_root_said_later_takes_the_place_of_what_it_said_before_on_disk_too() {
    let operator = Operator::new(65);
    let mut stage = Stage::fresh(&operator);
    for version in 0..50 {
        let statement = operator.external_at("printer", 9, "10.42.9.0/28", version);
        stage.operator(&statement).unwrap();
    }
    let on_disk = |stage: &Stage| {
        let records = stage.backup();
        let statements = records
            .keys()
            .filter(|key| matches!(key, RecordKey::Statement(_)));
        statements.count()
    };
    assert_eq!(stage.planet.books().statements().len(), 1);
    assert_eq!(on_disk(&stage), 1);
    let old = operator.external_at("printer", 9, "10.42.9.0/28", 3);
    assert!(stage.operator(&old).unwrap().contains("known already"));

    // A disk of an older program holds all of them.
    let mut disk = stage.backup();
    let record = Record::Statement(Box::new(old));
    disk.insert(record.key().unwrap(), record);
    stage.restore(disk);
    assert_eq!(stage.planet.books().statements().len(), 1);
    stage.pass(Duration::from_secs(20));
    assert_eq!(on_disk(&stage), 1);
}

#[test]
fn the_revocation_of_a_token_goes_when_the_token_could_admit_nobody_anyway() {
    let mut operator = Operator::new(66);
    let mut stage = Stage::fresh(&operator);
    let day = 24 * 3_600;
    let endless = operator.token_with(|grant| grant.expires = BEGINNING.plus(day));
    let ending = operator.token_with(|grant| {
        grant.expires = BEGINNING.plus(day);
        grant.membership = Some(day);
    });
    let (mut a, mut b) = (Node::new(1), Node::new(2));
    for (node, token, name) in [(&mut a, &endless, "a"), (&mut b, &ending, "b")] {
        stage.connect(node);
        stage.join(node, token, name);
        stage.operator(&operator.revoke_token(token)).unwrap();
    }
    stage.pass(Duration::from_secs(20 * day));
    stage.pass(Duration::from_secs(7_200));
    assert_eq!(
        stage.planet.books().statements().len(),
        2,
        "clocks may be ahead"
    );
    stage.pass(Duration::from_secs(20 * day));
    stage.pass(Duration::from_secs(7_200));
    let left: Vec<RootStatement> = stage
        .planet
        .books()
        .statements()
        .iter()
        .map(|(_, kept)| kept.said.clone())
        .collect();
    let token = ending.grant.unverified().unwrap().token;
    assert!(
        matches!(left.as_slice(), [RootStatement::RevokeToken { token: kept, .. }] if *kept == token),
        "a membership that ends must not go on: {left:?}"
    );
    let records = stage.backup();
    let on_disk = records
        .keys()
        .filter(|key| matches!(key, RecordKey::Statement(_)));
    assert_eq!(on_disk.count(), 1);
}
