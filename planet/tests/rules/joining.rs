//! Tokens, applications and receipts.

use std::time::Duration;

use podmesh_proto::certificate::Grant;
use podmesh_proto::planet_api::{DirectoryRecord, NodeMessage, PlanetMessage, RefusalCode};

use crate::story::{Node, Operator, Stage, Told};
use crate::{assert_single_owners, code};

#[test]
fn a_node_joins_claims_and_hears_of_the_others() {
    let mut operator = Operator::new(1);
    let mut stage = Stage::fresh(&operator);
    let (mut a, mut b) = (Node::new(1), Node::new(2));
    let token = operator.token(2);
    stage.connect(&mut a);
    assert!(
        a.welcome().unwrap().relay.is_none(),
        "no relaying before membership"
    );
    stage.join(&mut a, &token, "a");
    assert!(a.welcome().unwrap().relay.is_some());
    stage.connect(&mut b);
    assert!(
        b.heard_records().is_empty(),
        "who hasn't proven membership sees nobody"
    );
    stage.join(&mut b, &token, "b");
    stage.pass(Duration::from_millis(60));
    stage.listen(&mut a);
    stage.listen(&mut b);
    let names = |node: &Node| -> Vec<String> {
        let network = &operator.network;
        node.heard_records()
            .iter()
            .filter_map(|record| match record {
                DirectoryRecord::Member(membership) => Some(
                    membership
                        .verify(network, stage.now.unix)
                        .unwrap()
                        .name
                        .to_string(),
                ),
                _ => None,
            })
            .collect()
    };
    assert_eq!(
        (names(&a), names(&b)),
        (vec!["b".to_owned()], vec!["a".to_owned()])
    );
    assert_single_owners(&[&a, &b]);
    let leases = |node: &Node| node.receipt.as_ref().unwrap().unverified().unwrap().leases;
    assert_eq!(leases(&a).pods4.unwrap().to_string(), "10.42.0.0/24");
    assert_eq!(leases(&b).overlay4.unwrap().to_string(), "10.77.0.2");
}

#[test]
fn of_two_hundred_interleaved_joins_with_a_one_use_token_one_succeeds() {
    let mut operator = Operator::new(2);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(1);
    let mut nodes: Vec<Node> = (0..200).map(|n| Node::new(1_000 + n)).collect();
    for node in &mut nodes {
        stage.connect(node);
    }
    // All of them are in the queue while the first commit is under way.
    stage.hold_commits = true;
    for (index, node) in nodes.iter().enumerate() {
        let application = node.application(&token, &format!("n{index}"), stage.now.unix);
        stage.say(node, NodeMessage::Join(Box::new(application)));
    }
    stage.hold_commits = false;
    stage.settle();
    let admitted = stage.count(|told| matches!(told, Told::Message(PlanetMessage::Admitted(_))));
    let used_up = stage.count(|told| {
        matches!(told, Told::Message(PlanetMessage::Refused(r)) if r.code == RefusalCode::TokenUsedUp)
    });
    assert_eq!((admitted, used_up), (1, 199));
}

#[test]
fn nothing_leaves_before_it_is_durable_and_a_full_disk_grants_nothing() {
    let mut operator = Operator::new(3);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(5);
    let mut a = Node::new(1);
    stage.connect(&mut a);
    stage.disk_full = true;
    let application = a.application(&token, "a", stage.now.unix);
    let answers = stage.ask(&a, NodeMessage::Join(Box::new(application.clone())));
    assert_eq!(code(&answers), Some(RefusalCode::Busy));
    assert_eq!(stage.planet.books().entries().count(), 0);
    assert!(stage.status().write_error.is_some());
    // The disk is tried again by itself, and as long as it fails that is said.
    let before = stage.commits;
    stage.pass(Duration::from_secs(25));
    assert!((1..=3).contains(&(stage.commits - before)));
    assert!(stage.status().write_error.is_some());
    stage.disk_full = false;
    stage.pass(Duration::from_secs(12));
    assert_eq!(stage.status().write_error, None);
    let before = stage.commits;
    stage.pass(Duration::from_secs(25));
    assert_eq!(stage.commits, before, "a sound disk is left alone");
    stage.connect(&mut a);
    stage.hold_commits = true;
    stage.say(&a, NodeMessage::Join(Box::new(application)));
    assert!(stage.told(&a).is_empty(), "the answer waits for the disk");
    stage.hold_commits = false;
    stage.settle();
    assert!(matches!(
        stage.told(&a).as_slice(),
        [Told::Message(PlanetMessage::Admitted(_))]
    ));
    assert_eq!(stage.status().write_error, None);
}

#[test]
fn asking_again_gives_the_same_answer_and_costs_no_use() {
    let mut operator = Operator::new(4);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(1);
    let mut a = Node::new(1);
    stage.connect(&mut a);
    let application = Box::new(a.application(&token, "a", stage.now.unix));
    let first = stage.ask(&a, NodeMessage::Join(application.clone()));
    stage.restart();
    stage.pass(Duration::from_secs(36));
    stage.connect(&mut a);
    let second = stage.ask(&a, NodeMessage::Join(application));
    let receipt = |answers: &[Told]| match answers {
        [Told::Message(PlanetMessage::Admitted(receipt))] => receipt.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(receipt(&first), receipt(&second));
}

#[test]
fn a_member_that_joins_under_another_name_is_told_whose_keys_it_has() {
    let mut operator = Operator::new(4);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(9);
    let mut a = Node::new(1);
    stage.connect(&mut a);
    stage.join(&mut a, &token, "a");
    // The machine's copy has its keys.
    let ask = |stage: &mut Stage, name: &str| {
        stage.pass(Duration::from_secs(5));
        let application = Box::new(a.application(&token, name, stage.now.unix));
        stage.ask(&a, NodeMessage::Join(application))
    };
    let answers = ask(&mut stage, "c");
    assert_eq!(code(&answers), Some(RefusalCode::Conflict));
    let words = format!("{answers:?}");
    assert!(
        words.contains("keys of node a") && words.contains("--forget-keys"),
        "{words}"
    );
    // Its own name: it has lost its state, and is let in again.
    assert_eq!(code(&ask(&mut stage, "a")), None);
}

#[test]
fn every_bad_application_is_refused_with_its_own_code() {
    let mut operator = Operator::new(5);
    let mut stage = Stage::fresh(&operator);
    let good = operator.token(9);
    let mut holder = Node::new(1);
    stage.connect(&mut holder);
    stage.join(&mut holder, &good, "holder");
    let external = operator.external("printer", 77, "10.42.200.0/24");
    stage.operator(&external).unwrap();
    let now = stage.now.unix;
    let other_network = Operator::new(99).token(1);
    let expired = operator.token_with(|grant| grant.expires = now.minus(1));
    let early = operator.token_with(|grant| grant.issued = now.plus(3_600));
    let revoked = operator.token(1);
    stage.operator(&operator.revoke_token(&revoked)).unwrap();
    let narrow = operator.token_with(|grant| grant.ranges = vec!["10.42.0.0/24".parse().unwrap()]);
    let forged = Operator::new(5).with_other_root().token(1);
    let mut n = Node::new(2);
    stage.connect(&mut n);
    for (what, token, name, expected) in [
        (
            "another network",
            &other_network,
            "n",
            RefusalCode::Unproven,
        ),
        ("another root", &forged, "n", RefusalCode::Unproven),
        ("expired", &expired, "n", RefusalCode::TokenExpired),
        ("not valid yet", &early, "n", RefusalCode::Invalid),
        ("revoked", &revoked, "n", RefusalCode::TokenRevoked),
        ("a member's name", &good, "holder", RefusalCode::Conflict),
        (
            "an external peer's name",
            &good,
            "printer",
            RefusalCode::Conflict,
        ),
        ("a range that is full", &narrow, "n", RefusalCode::Exhausted),
    ] {
        let application = n.application(token, name, now);
        let answers = stage.ask(&n, NodeMessage::Join(Box::new(application)));
        assert_eq!(code(&answers), Some(expected), "{what}");
        // As often as a stranger is heard.
        stage.pass(Duration::from_secs(2));
    }
    let mut thief = Node::new(3);
    stage.connect(&mut thief);
    let stolen = n.application(&good, "n", now);
    let answers = stage.ask(&thief, NodeMessage::Join(Box::new(stolen)));
    assert_eq!(
        code(&answers),
        Some(RefusalCode::Unproven),
        "another's application"
    );
    thief.wireguard = holder.wireguard.clone();
    let application = thief.application(&good, "thief", now);
    let answers = stage.ask(&thief, NodeMessage::Join(Box::new(application)));
    assert_eq!(
        code(&answers),
        Some(RefusalCode::Conflict),
        "a member's key"
    );
    stage.join(&mut n, &good, "n");
    assert_single_owners(&[&holder, &n]);
}

#[test]
fn a_membership_that_would_be_over_costs_nothing_and_is_refused_in_words() {
    let mut operator = Operator::new(6);
    let mut stage = Stage::fresh(&operator);
    let hour = |grant: &mut Grant| grant.membership = Some(3_600);
    let token = operator.token_with(hour);
    let mut n = Node::new(2);
    stage.connect(&mut n);
    for apart in [10_800, 3_600] {
        let application = n.application(&token, "n", stage.now.unix.minus(apart));
        let answers = stage.ask(&n, NodeMessage::Join(Box::new(application)));
        assert_eq!(code(&answers), Some(RefusalCode::Invalid), "{apart}");
        let words = format!("{answers:?}");
        for part in [
            "check both clocks",
            &format!("{apart} s before"),
            "join again",
        ] {
            assert!(words.contains(part), "{words}");
        }
        stage.pass(Duration::from_secs(2));
    }
    assert_eq!(stage.planet.books().entries().count(), 0);
    // It was asked for in good time, and the planet is late.
    let late = n.application(&token, "n", stage.now.unix.minus(3_590));
    let answers = stage.ask(&n, NodeMessage::Join(Box::new(late.clone())));
    assert_eq!(code(&answers), None, "{answers:?}");
    // Whoever asks again what was granted hears it again, whatever the time is.
    let admitted = |answers: &[Told]| match answers {
        [Told::Message(PlanetMessage::Admitted(receipt))] => receipt.clone(),
        other => panic!("{other:?}"),
    };
    let receipt = admitted(&answers);
    stage.pass(Duration::from_secs(7_200));
    stage.connect(&mut n);
    let again = stage.ask(&n, NodeMessage::Join(Box::new(late)));
    assert_eq!(admitted(&again), receipt);
}

/// Its state is lost, its clock has gone back, and its token has uses left.
#[test]
fn a_member_whose_clock_is_behind_does_not_put_itself_out() {
    let mut operator = Operator::new(7);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token_with(|grant| (grant.uses, grant.membership) = (9, Some(3_600)));
    let mut a = Node::new(1);
    stage.connect(&mut a);
    stage.join(&mut a, &token, "a");
    let before = stage.planet.books().entry(&a.id()).unwrap().receipt.clone();
    let bare = Node::new(1);
    stage.connect_quietly(&bare);
    let application = bare.application(&token, "a", stage.now.unix.minus(7_200));
    let answers = stage.ask(&bare, NodeMessage::Join(Box::new(application)));
    assert_eq!(code(&answers), Some(RefusalCode::Invalid));
    let after = &stage.planet.books().entry(&a.id()).unwrap().receipt;
    assert_eq!(*after, before);
}
