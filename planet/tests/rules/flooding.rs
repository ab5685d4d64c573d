//! Members that ask for more than their part, and come back for more of it.

use std::time::Duration;

use podmesh_planet::rules::Event;
use podmesh_proto::certificate::Leases;
use podmesh_proto::network::RootStatement;
use podmesh_proto::planet_api::{DirectoryRecord, NodeMessage, PlanetMessage};
use podmesh_proto::signed::Signed;

use crate::story::{Node, Operator, Stage, Told};

const SECONDS: u64 = 20;

/// A rogue, a neighbour, and the operator.
fn members(number: u32) -> (Operator, Stage, Node, Node) {
    let mut operator = Operator::new(number);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(9);
    let (mut rogue, mut neighbour) = (Node::new(1), Node::new(2));
    for (node, name) in [(&mut rogue, "rogue"), (&mut neighbour, "neighbour")] {
        stage.connect(node);
        stage.join(node, &token, name);
    }
    stage.pass(Duration::from_secs(120));
    stage.connect(&mut rogue);
    stage.connect(&mut neighbour);
    stage.told(&neighbour);
    (operator, stage, rogue, neighbour)
}

/// Lines in the log that people see; what is refused is for who looks for it.
fn lines(stage: &Stage) -> usize {
    let seen = |event: &&Event| !matches!(event, Event::Refused(..) | Event::NotLearned(..));
    stage.happened.iter().filter(seen).count()
}

fn leases(node: &Node) -> Leases {
    let receipt = node.receipt.as_ref().unwrap();
    receipt.unverified().unwrap().leases
}

#[test]
fn claims_are_taken_at_a_measured_pace_however_often_a_node_comes_back() {
    let (operator, mut stage, mut rogue, neighbour) = members(81);
    let leases = leases(&rogue);
    let commits = stage.commits;
    let (mut granted, mut serial) = (0, 1);
    for _ in 0..SECONDS {
        stage.connect(&mut rogue);
        for _ in 0..50 {
            serial += 1;
            let claim = rogue.sign_claim(&operator.network, serial, leases.overlay4, Vec::new());
            let told = stage.ask(&rogue, NodeMessage::Claim(claim));
            let claimed = |told: &Told| matches!(told, Told::Message(PlanetMessage::Claimed(_)));
            granted += u64::from(told.iter().any(claimed));
            stage.pass(Duration::from_millis(20));
        }
    }
    assert!((4..=4 + SECONDS / 5).contains(&granted), "{granted} claims");
    assert!(stage.commits - commits <= granted + 2, "as many commits");
    let of = |record: &DirectoryRecord| matches!(record, DirectoryRecord::Member(_));
    let told = stage.told(&neighbour);
    let news = told.iter().filter(
        |told| matches!(told, Told::Message(PlanetMessage::Directory(update)) if update.records.iter().any(of)),
    );
    assert!(news.count() <= 10);
    let lines = lines(&stage);
    assert!(lines <= 12, "{lines} lines in the log");
}

#[test]
fn of_many_editions_of_a_record_few_are_passed_on_and_the_last_one_is() {
    let (operator, mut stage, mut rogue, neighbour) = members(82);
    let mut passed_on = Vec::new();
    let mut last = None;
    for edition in 0..SECONDS * 20 {
        if edition % 40 == 0 {
            stage.connect(&mut rogue);
        }
        let record = rogue.endpoints(&operator.network, edition + 1);
        stage.say(&rogue, NodeMessage::Publish(record.clone()));
        last = Some(record);
        stage.pass(Duration::from_millis(50));
    }
    stage.pass(Duration::from_secs(8));
    for told in stage.told(&neighbour) {
        if let Told::Message(PlanetMessage::Directory(update)) = told {
            let records = update.records.into_iter();
            passed_on.extend(records.filter_map(|record| match record {
                DirectoryRecord::Endpoints(record) => Some(record),
                _ => None,
            }));
        }
    }
    let most = usize::try_from(8 + (SECONDS + 8) / 5).unwrap();
    assert!(passed_on.len() <= most, "{} editions", passed_on.len());
    assert_eq!(passed_on.last(), last.as_ref());
}

/// Two machines have one identity: what one of them says too early is behind the other's word, and it has to know.
#[test]
fn who_said_too_early_what_is_behind_another_word_of_its_own_is_shown_that() {
    let (operator, mut stage, rogue, _) = members(87);
    let believed = rogue.endpoints(&operator.network, 101);
    for _ in 0..8 {
        stage.say(&rogue, NodeMessage::Publish(believed.clone()));
    }
    let is_shown = |told: Vec<Told>| {
        let records = told.into_iter().filter_map(|told| match told {
            Told::Message(PlanetMessage::Directory(update)) => Some(update.records),
            _ => None,
        });
        let shown = DirectoryRecord::Endpoints(believed.clone());
        records.flatten().any(|record| record == shown)
    };
    stage.pass(Duration::from_millis(500));
    stage.told(&rogue);
    let behind = rogue.endpoints(&operator.network, 50);
    stage.say(&rogue, NodeMessage::Publish(behind));
    assert!(!is_shown(stage.told(&rogue)), "it is not too early");
    stage.pass(Duration::from_secs(8));
    assert!(is_shown(stage.told(&rogue)));
}

#[test]
fn who_leaves_and_joins_all_the_time_does_so_once_in_a_while() {
    let (mut operator, mut stage, mut rogue, _) = members(83);
    let token = operator.token(1_000);
    let commits = stage.commits;
    let mut joined = 0;
    for turn in 0..SECONDS * 5 {
        stage.connect(&mut rogue);
        let departure = rogue.departure(&operator.network, stage.now.unix);
        stage.say(&rogue, NodeMessage::Leave(departure));
        stage.connect(&mut rogue);
        let application = rogue.application(&token, &format!("r{turn}"), stage.now.unix);
        let told = stage.ask(&rogue, NodeMessage::Join(Box::new(application)));
        let admitted = |told: &Told| matches!(told, Told::Message(PlanetMessage::Admitted(_)));
        joined += u64::from(told.iter().any(admitted));
        stage.pass(Duration::from_millis(200));
    }
    assert!(joined <= 5 + SECONDS / 2, "{joined} joins");
    assert!(stage.commits - commits <= 2 * (5 + SECONDS / 2));
}

#[test]
fn who_connects_all_the_time_is_told_the_directory_once_in_a_while() {
    let (_, mut stage, rogue, neighbour) = members(84);
    let mut welcomes = 0;
    for _ in 0..SECONDS * 10 {
        stage.connect_quietly(&rogue);
        let told = stage.told(&rogue);
        let welcome = |told: &Told| matches!(told, Told::Message(PlanetMessage::Welcome(_)));
        welcomes += u64::from(told.iter().any(welcome));
        stage.pass(Duration::from_millis(100));
    }
    assert!(
        (20..=21 + SECONDS).contains(&welcomes),
        "{welcomes} welcomes"
    );
    let lines = lines(&stage);
    assert!(lines <= 12, "{lines} lines in the log");
    // Others come as they like.
    stage.connect_quietly(&neighbour);
    let told = stage.told(&neighbour);
    assert!(matches!(
        told.first(),
        Some(Told::Message(PlanetMessage::Welcome(_)))
    ));
}

#[test]
fn statements_that_the_root_never_made_cost_a_planet_little() {
    let (operator, mut stage, mut rogue, _) = members(85);
    let forger = Operator::new(85).with_other_root();
    let mut judged = 0;
    for number in 0..2_000 {
        if number % 100 == 0 {
            stage.connect(&mut rogue);
        }
        let forged: Signed<RootStatement> = forger.revoke_node(&Node::new(500_000 + number));
        let told = stage.ask(&rogue, NodeMessage::Statement(Box::new(forged)));
        let refused = |told: &Told| matches!(told, Told::Message(PlanetMessage::Refused(_)));
        judged += u64::from(told.iter().any(refused));
        stage.pass(Duration::from_millis(10));
    }
    assert!(judged <= 300 + 21 * 10, "{judged} signatures verified");
    // The root's word by another way is heard all the same.
    let statement = operator.revoke_node(&Node::new(999_999));
    assert!(stage.operator(&statement).is_ok());
}

#[test]
fn a_report_of_what_does_not_hold_ends_early() {
    let (operator, mut stage, mut rogue, neighbour) = members(86);
    rogue.sequence = 1_000;
    stage.connect(&mut rogue);
    assert!(rogue.asked_to_report);
    let mut false_one = neighbour.membership().unwrap();
    false_one.claim = rogue.sign_claim(&operator.network, 9, None, Vec::new());
    let before = stage.happened.len();
    for _ in 0..100 {
        let memberships = vec![false_one.clone(); 16];
        stage.say(&rogue, NodeMessage::Report { memberships });
        stage.pass(Duration::from_millis(10));
    }
    let proofs = stage.happened.len() - before;
    assert!(
        (1..=262).contains(&proofs),
        "{proofs} memberships looked at"
    );
}
