//! How memberships end, and how who was away hears that one has.

use std::time::Duration;

use podmesh_proto::certificate::Membership;
use podmesh_proto::network::RootStatement;
use podmesh_proto::planet_api::{DirectoryRecord, NodeMessage, PlanetMessage, RefusalCode};
use podmesh_proto::renewal::{RenewalReceipt, Renewed};
use podmesh_proto::signed::Signed;
use podmesh_proto::time::UnixSeconds;

use crate::renewals::{renew, step};
use crate::story::{Node, Operator, Stage, Told};
use crate::{closed, code};

/// A member and its membership, which it knows of for good.
fn joined(number: u32) -> (Operator, Stage, Node) {
    let mut operator = Operator::new(number);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(9);
    let mut node = Node::new(1);
    stage.connect(&mut node);
    stage.join(&mut node, &token, "a");
    (operator, stage, node)
}

/// The departure by which a node ends the membership that it has.
fn leaves(operator: &Operator, node: &Node) -> NodeMessage {
    let receipt = node.receipt.as_ref().unwrap().unverified().unwrap();
    NodeMessage::Leave(node.departure(&operator.network, receipt.time))
}

/// Whether what was told has exactly this record.
fn has(told: &[Told], record: &DirectoryRecord) -> bool {
    told.iter().any(|told| match told {
        Told::Message(PlanetMessage::Directory(update)) => update.records.contains(record),
        _ => false,
    })
}

fn is_member(told: &[Told]) -> bool {
    told.iter().any(|told| match told {
        Told::Message(PlanetMessage::Welcome(welcome)) => welcome.relay.is_some(),
        _ => false,
    })
}

#[test]
fn a_departure_ends_the_membership_that_it_names_and_no_later_one() {
    let (mut operator, mut stage, mut node) = joined(41);
    let token = operator.token_with(|grant| {
        grant.uses = 9;
        grant.issued = grant.issued.minus(24 * 3_600);
    });
    let first = leaves(&operator, &node);
    assert!(closed(&stage.ask(&node, first.clone())));
    // In the same second, by one clock; then by a clock that went back three hours.
    for back in [0, 3 * 3_600] {
        stage.now.unix = stage.now.unix.minus(back);
        stage.pass(Duration::from_secs(120));
        stage.connect(&mut node);
        stage.join(&mut node, &token, "a");
        let NodeMessage::Leave(departure) = &first else {
            unreachable!()
        };
        let member = node.membership().unwrap().prove(&operator.network).unwrap();
        assert!(member.admitted > departure.unverified().unwrap().time);
        assert!(stage.ask(&node, first.clone()).is_empty(), "it is over");
        assert!(
            stage
                .planet
                .books()
                .member(&node.id(), stage.now.unix)
                .is_some()
        );
    }
    // A state that was lost with the disk: the next admission counts for more, whatever the clock says.
    let before = node.membership().unwrap().prove(&operator.network).unwrap();
    stage.now.unix = stage.now.unix.minus(3_600);
    stage.pass(Duration::from_secs(120));
    (node.application, node.receipt, node.claim) = (None, None, None);
    stage.connect(&mut node);
    stage.join(&mut node, &token, "a");
    let after = node.membership().unwrap().prove(&operator.network).unwrap();
    assert!(after.admitted > before.admitted);
}

#[test]
fn no_admission_is_dated_beyond_its_token() {
    let (mut operator, mut stage, mut node) = joined(42);
    let far = stage.now.unix.plus(400 * 24 * 3_600);
    let departure = node.departure(&operator.network, far);
    assert!(closed(&stage.ask(&node, NodeMessage::Leave(departure))));
    stage.pass(Duration::from_secs(10));
    stage.connect(&mut node);
    let application = node.application(&operator.token(9), "a", stage.now.unix);
    let answers = stage.ask(&node, NodeMessage::Join(Box::new(application)));
    assert_eq!(code(&answers), Some(RefusalCode::TokenExpired));
    let longer = operator.token_with(|grant| grant.expires = far.plus(3_600));
    stage.pass(Duration::from_secs(10));
    stage.join(&mut node, &longer, "a");
}

#[test]
fn who_has_left_and_does_not_know_it_is_shown_its_own_word() {
    let (operator, mut stage, node) = joined(43);
    let leave = leaves(&operator, &node);
    assert!(closed(&stage.ask(&node, leave.clone())));
    stage.pass(Duration::from_secs(10));
    for life in ["first", "second"] {
        stage.connect_quietly(&node);
        let told = stage.told(&node);
        assert_eq!(code(&told), Some(RefusalCode::NotMember), "{life}");
        let NodeMessage::Leave(departure) = leave.clone() else {
            unreachable!()
        };
        assert!(has(&told, &DirectoryRecord::Left(departure)), "{told:?}");
        assert!(!is_member(&told));
        stage.restart();
    }
}

/// It has joined anew, and its disk goes back before it could claim anything.
#[test]
fn who_was_admitted_anew_and_does_not_know_it_is_still_shown_that_it_has_left() {
    let (mut operator, mut stage, node) = joined(50);
    let leave = leaves(&operator, &node);
    assert!(closed(&stage.ask(&node, leave.clone())));
    stage.pass(Duration::from_secs(10));
    let mut anew = node.clone();
    (anew.application, anew.receipt, anew.claim) = (None, None, None);
    stage.connect(&mut anew);
    let token = operator.token(9);
    let application = anew.application(&token, "a", stage.now.unix);
    let answers = stage.ask(&anew, NodeMessage::Join(Box::new(application)));
    assert!(matches!(
        answers.as_slice(),
        [Told::Message(PlanetMessage::Admitted(_))]
    ));
    let NodeMessage::Leave(departure) = leave else {
        unreachable!()
    };
    stage.connect_quietly(&node);
    let told = stage.told(&node);
    assert!(has(&told, &DirectoryRecord::Left(departure)));
    assert!(!is_member(&told));
    stage.connect(&mut anew);
    stage.join(&mut anew, &token, "a");
    assert!(stage.planet.books().departure(&node.id()).is_none());
}

/// Its own clock may be behind, or the planet's ahead.
#[test]
fn whose_time_is_over_by_the_planets_clock_alone_is_told_so() {
    let mut operator = Operator::new(51);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token_with(|grant| grant.membership = Some(600));
    let mut node = Node::new(1);
    stage.connect(&mut node);
    stage.join(&mut node, &token, "a");
    stage.pass(Duration::from_secs(1_200));
    stage.connect_quietly(&node);
    let told = stage.told(&node);
    assert_eq!(code(&told), Some(RefusalCode::NotMember), "{told:?}");
    assert!(!is_member(&told));
}

#[test]
fn whose_disk_is_older_than_its_last_admission_is_shown_what_it_is_by_now() {
    let (mut operator, mut stage, mut node) = joined(44);
    let token = operator.token(9);
    let older = node.clone();
    let leave = leaves(&operator, &node);
    assert!(closed(&stage.ask(&node, leave)));
    stage.pass(Duration::from_secs(10));
    stage.connect(&mut node);
    stage.join(&mut node, &token, "a");
    stage.pass(Duration::from_secs(10));
    let present = node.membership().unwrap();
    let shown = |present: &Membership| DirectoryRecord::Member(Box::new(present.clone()));
    stage.connect_quietly(&older);
    let told = stage.told(&older);
    assert!(is_member(&told) && has(&told, &shown(&present)), "{told:?}");
    stage.connect_quietly(&node);
    let told = stage.told(&node);
    assert!(is_member(&told) && !has(&told, &shown(&present)));
}

#[test]
fn whoever_the_root_has_put_out_meanwhile_is_shown_why() {
    let (mut operator, mut stage, mut node) = joined(45);
    let mut heir = Node::new(2);
    let (former, id) = (node.clone(), node.id());
    let token = operator.token_with(|grant| {
        grant.for_name = Some("a".parse().unwrap());
        grant.replaces = Some(id);
    });
    stage.connect(&mut heir);
    stage.join(&mut heir, &token, "a");
    assert!(closed(&stage.told(&former)));
    stage.connect_quietly(&former);
    let told = stage.told(&former);
    let by = DirectoryRecord::Member(Box::new(heir.membership().unwrap()));
    assert!(has(&told, &by) && closed(&told), "{told:?}");
    assert_eq!(code(&told), Some(RefusalCode::NodeRevoked));

    node = heir;
    let revocation = operator.revoke_node(&node);
    stage.told(&node);
    stage.operator(&revocation).unwrap();
    let says_so = |told: &[Told]| {
        told.iter().any(|told| match told {
            Told::Message(PlanetMessage::Statement(said)) => **said == revocation,
            _ => false,
        })
    };
    assert!(says_so(&stage.told(&node)), "who is connected");
    stage.connect_quietly(&node);
    let told = stage.told(&node);
    assert!(says_so(&told) && closed(&told), "who comes back: {told:?}");
}

#[test]
fn who_proves_a_former_identity_is_shown_the_one_that_took_its_place() {
    let (_, mut stage, mut node) = joined(46);
    stage.pass(Duration::from_secs(10));
    let (mut moved, request) = step(&stage, &node, 77);
    renew(&mut stage, &mut moved, request).unwrap();
    stage.pass(Duration::from_secs(10));
    let by = DirectoryRecord::Member(Box::new(moved.membership().unwrap()));
    stage.connect_quietly(&node);
    let told = stage.told(&node);
    assert_eq!(code(&told), Some(RefusalCode::Unproven));
    assert!(has(&told, &by) && closed(&told), "{told:?}");
    // Somebody who proves nothing hears nothing.
    node.signer = 99;
    stage.connect_quietly(&node);
    let told = stage.told(&node);
    assert!(closed(&told) && !has(&told, &by), "{told:?}");
}

/// An operator's clock may be wrong by years: what the root has said of a node is final, whatever its date.
#[test]
fn a_revocation_ends_a_membership_by_any_clock() {
    for (number, issued) in [(48, UnixSeconds(1)), (49, UnixSeconds(u64::MAX))] {
        let (mut operator, mut stage, mut node) = joined(number);
        let revocation = operator.sign(&RootStatement::RevokeNode {
            network: operator.network.id,
            node: node.id(),
            issued,
        });
        stage.operator(&revocation).unwrap();
        assert!(closed(&stage.told(&node)), "{issued}");
        stage.connect(&mut node);
        assert!(!is_member(&stage.told(&node)) && stage.planet.books().is_out(&node.id()));
        let mut other = Node::new(2);
        stage.connect(&mut other);
        stage.join(&mut other, &operator.token(1), "a");
    }
}

/// It comes back as the node that its last identity is, and is believed about who it was.
#[test]
fn who_left_in_silence_with_a_later_identity_frees_its_own_name() {
    let (mut operator, mut stage, node) = joined(47);
    let token = operator.token(9);
    stage.pass(Duration::from_secs(10));
    let (mut moved, request) = step(&stage, &node, 77);
    renew(&mut stage, &mut moved, request).unwrap();
    stage.disconnect(&moved);
    let leave = leaves(&operator, &moved);
    let (mut back, mut stranger) = (Node::new(77), Node::new(3));
    stage.connect(&mut stranger);
    let answers = stage.ask(&stranger, leave.clone());
    assert_eq!(code(&answers), Some(RefusalCode::Unproven), "not its word");
    stage.connect(&mut back);
    assert!(stage.ask(&back, leave.clone()).is_empty());
    assert!(stage.planet.books().entry(&node.id()).is_none());
    stage.pass(Duration::from_secs(10));
    assert!(stage.ask(&back, leave).is_empty(), "known already");
    stage.pass(Duration::from_secs(10));
    stage.join(&mut back, &token, "a");
}

/// Another planet has receipted the last step of its identity, of which this one has yet to hear.
#[test]
fn who_left_by_an_identity_that_the_planet_does_not_know_yet_frees_its_own_name() {
    let (mut operator, mut stage, node) = joined(52);
    let token = operator.token(9);
    stage.pass(Duration::from_secs(10));
    stage.disconnect(&node);
    let elsewhere = |stage: &Stage, number: u32| {
        let (mut moved, request) = step(stage, &node, number);
        let receipt = RenewalReceipt {
            network: operator.network.id,
            planet: operator.network.planets[0].id,
            node: node.id(),
            renewal: request.renewal.hash(),
            time: stage.now.unix,
        };
        let receipt = Signed::seal(&receipt, &operator.planet_key()).unwrap();
        moved.renewed = Some(Box::new(Renewed { request, receipt }));
        moved
    };
    let (moved, other) = (elsewhere(&stage, 77), elsewhere(&stage, 78));
    let (mut back, mut thief) = (Node::new(77), Node::new(78));
    let leave = leaves(&operator, &moved);
    stage.connect(&mut back);
    assert!(stage.ask(&back, leave).is_empty());
    assert!(stage.planet.books().entry(&node.id()).is_none());
    stage.pass(Duration::from_secs(10));
    stage.join(&mut back, &token, "a");

    // Where the planet knows the step, another one from the same identity is nobody's word.
    let (_, mut stage, _) = joined(52);
    let mut known = node.clone();
    stage.connect(&mut known);
    let (mut known, request) = step(&stage, &known, 77);
    renew(&mut stage, &mut known, request).unwrap();
    stage.connect(&mut thief);
    let answers = stage.ask(&thief, leaves(&operator, &other));
    assert_eq!(code(&answers), Some(RefusalCode::Unproven));
    assert!(stage.planet.books().entry(&node.id()).is_some());
}

/// It has the key that a planet has receipted, and a disk from before that; then its time was over.
#[test]
fn whose_disk_is_older_than_its_last_renewal_is_shown_that_also_after_its_end() {
    let mut operator = Operator::new(53);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token_with(|grant| grant.membership = Some(600));
    let mut node = Node::new(1);
    stage.connect(&mut node);
    stage.join(&mut node, &token, "a");
    stage.pass(Duration::from_secs(10));
    let (mut moved, request) = step(&stage, &node, 77);
    renew(&mut stage, &mut moved, request).unwrap();
    stage.disconnect(&moved);
    stage.pass(Duration::from_secs(1_200));
    let present = DirectoryRecord::Member(Box::new(moved.membership().unwrap()));
    let mut older = moved.clone();
    older.renewed = None;
    stage.connect_quietly(&older);
    let told = stage.told(&older);
    assert_eq!(code(&told), Some(RefusalCode::NotMember), "{told:?}");
    assert!(has(&told, &present) && !is_member(&told), "{told:?}");
    stage.connect_quietly(&moved);
    let told = stage.told(&moved);
    assert!(!has(&told, &present) && !is_member(&told), "{told:?}");
}
