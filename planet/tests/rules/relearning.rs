//! A planet that lost its books, or has old ones, or has just started.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use podmesh_planet::rules::Event;
use podmesh_planet::rules::books::Books;
use podmesh_planet::rules::records::{Origin, Record, RecordKey};
use podmesh_proto::planet_api::{NodeMessage, RefusalCode};
use podmesh_proto::token::JoinToken;

use crate::story::{BEGINNING, Node, Operator, Stage};
use crate::{assert_single_owners, code};

/// A token that the operator makes a second later.
pub(crate) fn new_token(operator: &mut Operator, stage: &mut Stage, uses: u32) -> JoinToken {
    stage.pass(Duration::from_secs(1));
    let now = stage.now.unix;
    operator.token_with(|grant| {
        grant.uses = uses;
        grant.issued = now;
    })
}

/// Members who have claimed, re-claimed and left: what a planet has to remember.
fn lively(operator: &mut Operator, stage: &mut Stage, count: u32) -> Vec<Node> {
    let token = operator.token(100);
    let mut nodes: Vec<Node> = (0..count).map(|n| Node::new(100 + n)).collect();
    for (index, node) in nodes.iter_mut().enumerate() {
        stage.connect(node);
        stage.join(node, &token, &format!("n{index}"));
    }
    for node in nodes.iter_mut().step_by(2) {
        let leases = node.leases();
        stage.claim(node, 2, &leases);
    }
    let gone = nodes.remove(1);
    let departure = gone.departure(&operator.network, stage.now.unix);
    stage.say(&gone, NodeMessage::Leave(departure));
    // The departure's numbers are settled by the next receipt of anybody.
    let leases = nodes[0].leases();
    stage.claim(&mut nodes[0], 3, &leases);
    nodes
}

#[test]
fn a_planet_that_lost_everything_relearns_before_it_grants() {
    let mut operator = Operator::new(14);
    let mut stage = Stage::fresh(&operator);
    let mut nodes = lively(&mut operator, &mut stage, 6);
    let sequence = stage.status().sequence;
    stage.lose(Origin::Lost);
    let mut newcomer = Node::new(500);
    let token = operator.token(9);
    stage.connect(&mut newcomer);
    let join = |stage: &Stage, node: &Node| {
        let application = node.application(&token, "newcomer", stage.now.unix);
        NodeMessage::Join(Box::new(application))
    };
    let answers = {
        let join = join(&stage, &newcomer);
        stage.ask(&newcomer, join)
    };
    assert_eq!(code(&answers), Some(RefusalCode::Relearning));
    // All but the last one come back, with the peer map of the last one among them.
    let absent = nodes.pop().unwrap();
    for node in &mut nodes {
        node.sequence = sequence;
        stage.connect(node);
        assert!(node.asked_to_report, "everybody is asked");
    }
    stage.pass(Duration::from_secs(36));
    stage.connect(&mut newcomer);
    let answers = {
        let join = join(&stage, &newcomer);
        stage.ask(&newcomer, join)
    };
    assert_eq!(
        code(&answers),
        Some(RefusalCode::Relearning),
        "a receipt is missing"
    );
    stage.report(&nodes[0], &[&absent]);
    stage.pass(Duration::from_secs(36));
    stage.connect(&mut newcomer);
    stage.join(&mut newcomer, &token, "newcomer");
    let all: Vec<&Node> = nodes.iter().chain([&absent, &newcomer]).collect();
    assert_single_owners(&all);
    assert_eq!(stage.status().members.len(), all.len(), "nobody is lost");
    assert!(
        newcomer
            .receipt
            .as_ref()
            .unwrap()
            .unverified()
            .unwrap()
            .sequence
            > sequence
    );
}

#[test]
fn a_planet_with_yesterdays_backup_gives_no_lease_twice() {
    let mut operator = Operator::new(15);
    let mut stage = Stage::fresh(&operator);
    let mut nodes = lively(&mut operator, &mut stage, 4);
    let backup = stage.backup();
    let token = operator.token(9);
    let mut late = Node::new(300);
    stage.connect(&mut late);
    stage.join(&mut late, &token, "late");
    let sequence = stage.status().sequence;
    stage.restore(backup);
    let mut newcomer = Node::new(301);
    stage.connect(&mut newcomer);
    nodes[0].sequence = sequence;
    stage.connect(&mut nodes[0]);
    stage.report(&nodes[0], &[]);
    stage.pass(Duration::from_secs(60));
    // The rumour has expired, because the member that spread it had nothing to show; so the member
    // that the backup doesn't know has to speak for itself in time.
    let granted_blindly = stage.status().not_granting.is_none();
    stage.connect(&mut late);
    let token = operator.token(9);
    stage.connect(&mut newcomer);
    stage.join(&mut newcomer, &token, "newcomer");
    let mut all: Vec<&Node> = nodes.iter().collect();
    all.extend([&late, &newcomer]);
    assert_single_owners(&all);
    assert!(
        granted_blindly,
        "one silent member can't stop a network for good"
    );
}

#[test]
fn random_lives_never_give_anything_twice() {
    for seed in 0..2 {
        println!("seed {seed}");
        let mut dice: u64 = seed * 7_919 + 1;
        let mut roll = move |bound: u64| {
            dice = dice
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (dice >> 33) % bound
        };
        let mut operator = Operator::new(20);
        let mut stage = Stage::fresh(&operator);
        let mut nodes: BTreeMap<u32, Node> = BTreeMap::new();
        let mut backup = stage.backup();
        let (mut next, mut granted) = (0, BTreeSet::new());
        for _ in 0..60 {
            match roll(8) {
                0..=2 => {
                    let token = new_token(&mut operator, &mut stage, 1);
                    let mut node = Node::new(1_000 + next);
                    stage.connect(&mut node);
                    if stage.try_join(&mut node, &token, &format!("n{next}")) {
                        nodes.insert(next, node);
                    }
                    next += 1;
                }
                3 if !nodes.is_empty() => {
                    let key = *nodes.keys().nth(roll(nodes.len() as u64) as usize).unwrap();
                    let node = nodes.remove(&key).unwrap();
                    let mut node = node;
                    stage.connect(&mut node);
                    let departure = node.departure(&operator.network, stage.now.unix);
                    stage.say(&node, NodeMessage::Leave(departure));
                    if stage.planet.books().entry(&node.id()).is_some() {
                        nodes.insert(key, node);
                    }
                }
                4 => stage.restart(),
                5 => backup = stage.backup(),
                6 => stage.restore(backup.clone()),
                _ => stage.lose(Origin::Lost),
            }
            // Members come back, and say what they have seen.
            let sequence = nodes.values().map(Node::highest).max().unwrap_or(0);
            let held: Vec<Node> = nodes.values().cloned().collect();
            for node in nodes.values_mut() {
                node.sequence = sequence;
                stage.connect(node);
                if node.asked_to_report {
                    stage.report(node, &held.iter().collect::<Vec<_>>());
                }
            }
            stage.pass(Duration::from_secs(36));
            if stage.status().not_granting.is_some() && roll(2) == 0 {
                // Only members who left after the last receipt are unaccounted for.
                stage.trust_empty();
            }
            assert_single_owners(&nodes.values().collect::<Vec<_>>());
            for node in nodes.values() {
                let receipt = node.receipt.as_ref().unwrap().unverified().unwrap();
                granted.insert((receipt.token, receipt.use_number, receipt.node));
                assert!(
                    stage.planet.books().entry(&node.id()).is_some(),
                    "nobody is lost"
                );
            }
        }
        let uses: BTreeSet<_> = granted
            .iter()
            .map(|(token, number, _)| (token, number))
            .collect();
        assert_eq!(
            uses.len(),
            granted.len(),
            "every use of a token admitted one node"
        );
        assert!(granted.len() > 5, "{}", granted.len());
    }
}

#[test]
fn the_operator_can_end_the_relearning() {
    let mut operator = Operator::new(16);
    let mut stage = Stage::fresh(&operator);
    lively(&mut operator, &mut stage, 3);
    let token = operator.token(9);
    stage.lose(Origin::Lost);
    let mut newcomer = Node::new(500);
    stage.connect(&mut newcomer);
    stage.pass(Duration::from_secs(3_600));
    stage.connect(&mut newcomer);
    assert!(
        !stage.try_join(&mut newcomer, &token, "newcomer"),
        "nobody has told anything"
    );
    stage.trust_empty();
    let once = operator.token(1);
    assert!(
        !stage.try_join(&mut newcomer, &once, "newcomer"),
        "nobody knows whether it is spent"
    );
    assert!(stage.try_join(&mut newcomer, &token, "newcomer"));
    let backup = stage.backup();
    let said = stage.try_trust_empty().unwrap();
    assert!(said.starts_with("nothing is missing"), "{said}");
    assert_eq!(stage.backup(), backup);
    stage.restart();
    let books: &Books = stage.planet.books();
    assert_eq!(books.origin, Origin::Relearned);
}

#[test]
fn after_a_start_grants_wait_for_a_member_or_a_while() {
    let mut operator = Operator::new(17);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(9);
    let (mut a, mut b, mut c) = (Node::new(1), Node::new(2), Node::new(3));
    stage.connect(&mut a);
    stage.join(&mut a, &token, "a");
    stage.restart();
    stage.connect(&mut b);
    assert!(!stage.try_join(&mut b, &token, "b"));
    stage.connect(&mut a);
    assert!(
        stage.try_join(&mut b, &token, "b"),
        "a member is back and knows of nothing else"
    );
    stage.restart();
    stage.connect(&mut c);
    assert!(!stage.try_join(&mut c, &token, "c"));
    stage.pass(Duration::from_secs(36));
    stage.connect(&mut c);
    assert!(stage.try_join(&mut c, &token, "c"));
}

#[test]
fn a_member_that_says_it_has_seen_everything_stops_nobody_for_long() {
    let mut operator = Operator::new(31);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(50);
    let mut rogue = Node::new(1);
    stage.connect(&mut rogue);
    stage.join(&mut rogue, &token, "rogue");
    let highest = stage.status().sequence;
    rogue.sequence = u64::MAX;
    stage.connect(&mut rogue);
    assert!(rogue.asked_to_report, "it may be true");
    assert!(stage.status().not_granting.is_some(), "it may be true");

    // It comes back all the time, and never shows anything.
    let mut stopped = Duration::ZERO;
    for turn in 0..720 {
        stage.pass(Duration::from_secs(10));
        let step = Duration::from_secs(10);
        stopped += stage.status().not_granting.map_or(Duration::ZERO, |_| step);
        rogue.sequence = u64::MAX - turn;
        stage.connect(&mut rogue);
        assert!(rogue.asked_to_report, "who says to know more is asked");
    }
    assert!(
        stopped <= Duration::from_secs(60),
        "{stopped:?} of two hours"
    );
    let mut newcomer = Node::new(3);
    stage.connect(&mut newcomer);
    stage.join(&mut newcomer, &token, "newcomer");
    assert!(stage.status().sequence <= highest + 2);
}

#[test]
fn a_number_that_nobody_bears_never_counts_as_known() {
    let mut operator = Operator::new(32);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(9);
    let (mut rogue, mut late) = (Node::new(1), Node::new(2));
    stage.connect(&mut rogue);
    stage.join(&mut rogue, &token, "rogue");
    let shown = stage.status().sequence;
    rogue.sequence = u64::MAX;
    stage.connect(&mut rogue);
    assert!(stage.status().not_granting.is_some());
    stage.trust_empty();
    assert!(
        stage.status().not_granting.is_none(),
        "the operator decides"
    );
    assert_eq!(stage.status().sequence, shown);
    let backup = stage.backup();
    stage.connect(&mut late);
    stage.join(&mut late, &token, "late");

    // So forgetting shows as before.
    stage.restore(backup);
    late.sequence = late.highest() + 2;
    stage.connect(&mut late);
    assert!(late.asked_to_report);
    stage.report(&late, &[]);
    stage.pass(Duration::from_secs(36));
    let books = stage.planet.books();
    assert!(books.entry(&late.id()).is_some());
    assert_eq!(books.shown(), late.highest());
}

#[test]
fn the_end_of_all_numbers_is_refused_and_undone_by_the_operator() {
    let mut operator = Operator::new(33);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(9);
    let (mut a, mut b) = (Node::new(1), Node::new(2));
    stage.connect(&mut a);
    stage.join(&mut a, &token, "a");
    let mut disk = stage.backup();
    disk.insert(RecordKey::Trusted, Record::Trusted(u64::MAX));
    stage.restore(disk);
    stage.connect(&mut a);
    stage.report(&a, &[]);
    stage.pass(Duration::from_secs(36));
    stage.connect(&mut b);
    let join = NodeMessage::Join(Box::new(b.application(&token, "b", stage.now.unix)));
    assert_eq!(code(&stage.ask(&b, join)), Some(RefusalCode::Exhausted));
    stage.trust_empty();
    stage.join(&mut b, &token, "b");
    assert!(b.highest() < 10, "{}", b.highest());
}

/// A member by a planet with the same key and other books, which gives leases that nobody has.
fn admitted_elsewhere(operator: &mut Operator, token: &JoinToken, after: u64) -> Node {
    let mut elsewhere = Stage::fresh(operator);
    elsewhere.now.unix = elsewhere.now.unix.plus(after);
    let others = operator.token(5);
    for number in 0..5 {
        let mut node = Node::new(700 + number);
        elsewhere.connect(&mut node);
        elsewhere.join(&mut node, &others, &format!("o{number}"));
    }
    let mut node = Node::new(710);
    elsewhere.connect(&mut node);
    elsewhere.join(&mut node, token, "elsewhere");
    node
}

#[test]
fn a_planet_that_forgot_nobody_learns_nobody_of_a_revoked_token() {
    for revoked in [false, true] {
        let mut operator = Operator::new(34);
        let mut stage = Stage::fresh(&operator);
        let token = operator.token(3);
        let mut member = Node::new(1);
        stage.connect(&mut member);
        stage.join(&mut member, &token, "member");
        // The receipt says that it is older than the revocation.
        let mut forged = admitted_elsewhere(&mut operator, &token, 0);
        stage.pass(Duration::from_secs(36));
        if revoked {
            stage.operator(&operator.revoke_token(&token)).unwrap();
        }
        stage.connect(&mut forged);
        let welcome = forged.welcome().unwrap();
        assert_eq!(welcome.relay.is_none(), revoked);
        assert_eq!(stage.relay_sessions_of(&forged).is_empty(), revoked);
        assert_eq!(forged.heard_records().is_empty(), revoked);
        let entry = stage.planet.books().entry(&forged.id());
        assert_eq!(entry.is_none(), revoked);
        stage.connect(&mut member);
        assert!(member.welcome().unwrap().relay.is_some(), "members stay");
    }
}

#[test]
fn a_forgetful_planet_learns_who_was_admitted_before_the_revocation() {
    for (after, learned) in [(0, true), (60, false)] {
        let mut operator = Operator::new(35);
        let token = operator.token(3);
        let mut member = admitted_elsewhere(&mut operator, &token, after);
        let mut stage = Stage::fresh(&operator);
        stage.lose(Origin::Lost);
        let revocation = operator.revoke_token(&token);
        stage.operator(&revocation).unwrap();
        stage.connect(&mut member);
        let entry = stage.planet.books().entry(&member.id());
        assert_eq!(entry.is_some(), learned);
        assert_eq!(stage.relay_sessions_of(&member).is_empty(), !learned);
    }
}

#[test]
fn of_several_revocations_of_a_token_the_earliest_counts() {
    for order in [[5, 40], [40, 5]] {
        let mut operator = Operator::new(36);
        let token = operator.token(3);
        let mut stage = Stage::fresh(&operator);
        for after in order {
            let revocation = operator.revoke_token_at(&token, BEGINNING.plus(after));
            stage.operator(&revocation).unwrap();
        }
        stage.restart();
        let id = token.grant.unverified().unwrap().token;
        let revoked = stage.planet.books().revoked_at(&id);
        assert_eq!(revoked, Some(BEGINNING.plus(5)), "{order:?}");
    }
}

#[test]
fn who_has_to_wait_is_told_for_how_long_and_who_has_to_act_is_told_how() {
    let said = |stage: &Stage| stage.status().not_granting.unwrap();
    let lasts = |stage: &Stage| {
        let event = |event: &Event| match event {
            Event::Relearning(_, left) => Some(*left),
            _ => None,
        };
        stage.happened.iter().rev().find_map(event).unwrap()
    };
    let mut operator = Operator::new(60);
    let mut stage = Stage::fresh(&operator);
    let mut nodes = lively(&mut operator, &mut stage, 3);
    // A start like any other: nobody has to do anything, least of all something that can't be undone.
    stage.restart();
    stage.pass(Duration::from_secs(5));
    assert!(
        said(&stage).contains("by itself within 31 s"),
        "{}",
        said(&stage)
    );
    assert!(!said(&stage).contains("trust-empty"));
    assert!(lasts(&stage).is_some());
    stage.pass(Duration::from_secs(31));
    assert_eq!(stage.status().not_granting, None);
    // All is lost, and nobody is there who could tell.
    stage.lose(Origin::Lost);
    stage.pass(Duration::from_secs(120));
    assert!(said(&stage).contains("trust-empty"), "{}", said(&stage));
    assert_eq!(lasts(&stage), None);
    // One member's own word leaves a gap that only the others fill.
    stage.connect(&mut nodes[1]);
    stage.report(&nodes[1], &[]);
    stage.pass(Duration::from_secs(40));
    assert!(said(&stage).contains("receipts"), "{}", said(&stage));
    assert!(said(&stage).contains("trust-empty"), "{}", said(&stage));
    assert_eq!(lasts(&stage), None);
}

#[test]
fn a_clock_behind_what_was_signed_is_named() {
    let mut operator = Operator::new(61);
    let mut stage = Stage::fresh(&operator);
    let nodes = lively(&mut operator, &mut stage, 2);
    assert_eq!(stage.status().remarks, Vec::<String>::new());
    drop(nodes);
    let right = stage.now.unix;
    for (behind, named) in [(30, false), (120, true), (5_000, true)] {
        stage.now.unix = right.minus(behind);
        let remarks = stage.status().remarks;
        assert_eq!(remarks.len(), usize::from(named), "{behind}: {remarks:?}");
        assert!(
            remarks
                .iter()
                .all(|remark| remark.contains(&stage.now.unix.to_string()))
        );
    }
}
