//! Who holds which lease, claim and name.

use std::time::Duration;

use podmesh_proto::certificate::Leases;
use podmesh_proto::planet_api::{DirectoryRecord, NodeMessage, PlanetMessage, RefusalCode};

use crate::story::{Node, Operator, Stage, Told};
use crate::{assert_single_owners, closed, code};

#[test]
fn a_claim_never_takes_what_another_holds() {
    let mut operator = Operator::new(6);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(9);
    let (mut holder, mut n) = (Node::new(1), Node::new(2));
    for (node, name) in [(&mut holder, "holder"), (&mut n, "n")] {
        stage.connect(node);
        stage.join(node, &token, name);
    }
    stage
        .operator(&operator.external("printer", 77, "10.42.200.0/24"))
        .unwrap();
    for (what, overlay4, cidr, expected) in [
        (
            "a member's CIDR",
            None,
            Some("10.42.0.0/24"),
            RefusalCode::Conflict,
        ),
        (
            "a subnet of it",
            None,
            Some("10.42.0.128/26"),
            RefusalCode::Conflict,
        ),
        (
            "a super-net of it",
            None,
            Some("10.42.0.0/23"),
            RefusalCode::Invalid,
        ),
        (
            "a member's address",
            Some("10.77.0.1"),
            None,
            RefusalCode::Conflict,
        ),
        (
            "an external peer's",
            None,
            Some("10.42.200.0/24"),
            RefusalCode::Conflict,
        ),
        (
            "out of all ranges",
            None,
            Some("192.168.0.0/24"),
            RefusalCode::Invalid,
        ),
        (
            "an unaligned prefix",
            None,
            Some("10.42.77.1/24"),
            RefusalCode::Invalid,
        ),
    ] {
        let claim = n.sign_claim(
            &operator.network,
            9,
            overlay4.map(|address| address.parse().unwrap()),
            cidr.map(|cidr| cidr.parse().unwrap()).into_iter().collect(),
        );
        let answers = stage.ask(&n, NodeMessage::Claim(claim));
        assert_eq!(code(&answers), Some(expected), "{what}");
    }
    let foreign = holder.sign_claim(&operator.network, 9, None, Vec::new());
    let answers = stage.ask(&n, NodeMessage::Claim(foreign));
    assert_eq!(
        code(&answers),
        Some(RefusalCode::Unproven),
        "another's claim"
    );
    let old = n.sign_claim(&operator.network, 1, None, Vec::new());
    let answers = stage.ask(&n, NodeMessage::Claim(old));
    assert_eq!(
        code(&answers),
        Some(RefusalCode::Invalid),
        "an older serial"
    );
    let own = vec!["10.42.9.0/24".parse().unwrap()];
    let better = n.sign_claim(&operator.network, 2, None, own);
    let answers = stage.ask(&n, NodeMessage::Claim(better));
    assert!(matches!(
        answers.as_slice(),
        [Told::Message(PlanetMessage::Claimed(_))]
    ));
    let stranger = Node::new(7);
    stage.connect_quietly(&stranger);
    let claim = stranger.sign_claim(&operator.network, 1, None, Vec::new());
    let answers = stage.ask(&stranger, NodeMessage::Claim(claim));
    assert_eq!(code(&answers), Some(RefusalCode::NotMember));
}

#[test]
fn silence_takes_no_lease_and_leaving_frees_it() {
    let mut operator = Operator::new(7);
    let mut stage = Stage::fresh(&operator);
    operator.ranges(|ranges| ranges.pods4 = "10.42.0.0/23".parse().unwrap());
    stage.operator(&operator.network_statement.clone()).unwrap();
    let token = operator.token(9);
    let (mut a, mut b, mut c) = (Node::new(1), Node::new(2), Node::new(3));
    for (node, name) in [(&mut a, "a"), (&mut b, "b")] {
        stage.connect(node);
        stage.join(node, &token, name);
    }
    stage.disconnect(&a);
    stage.pass(Duration::from_secs(90 * 24 * 3_600));
    let token = operator.token_with(|grant| (grant.issued, grant.expires) = stage.around());
    stage.connect(&mut c);
    let application = c.application(&token, "c", stage.now.unix);
    let answers = stage.ask(&c, NodeMessage::Join(Box::new(application)));
    assert_eq!(code(&answers), Some(RefusalCode::Exhausted));
    stage.connect(&mut a);
    let forged = a.word_for(&b, &operator.network, stage.now.unix);
    let answers = stage.ask(&a, NodeMessage::Leave(forged));
    assert_eq!(code(&answers), Some(RefusalCode::Unproven));
    let departure = a.departure(&operator.network, stage.now.unix);
    let answers = stage.ask(&a, NodeMessage::Leave(departure));
    assert!(closed(&answers), "the end of the connection is the answer");
    stage.connect(&mut c);
    stage.join(&mut c, &token, "c");
    assert_single_owners(&[&b, &c]);
}

#[test]
fn a_node_that_comes_back_is_admitted_later_than_it_left() {
    let mut operator = Operator::new(8);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(9);
    let mut node = Node::new(1);
    // At once, then by a clock that is ahead within the tolerance, then by one that is wrong; nobody would
    // believe an admission before the departure, and nobody has to wait for the time to come.
    for (ahead, admitted) in [(0, 1), (60, 61), (10_000, 10_001)] {
        // A planet hears one node at a measured pace.
        stage.pass(Duration::from_secs(120));
        stage.connect(&mut node);
        stage.join(&mut node, &token, "a");
        let now = stage.now.unix;
        let departure = node.departure(&operator.network, now.plus(ahead));
        assert!(closed(&stage.ask(&node, NodeMessage::Leave(departure))));
        stage.connect(&mut node);
        stage.join(&mut node, &token, "a");
        let receipt = node.receipt.as_ref().unwrap().unverified().unwrap();
        assert_eq!(
            receipt.time,
            stage.now.unix.plus(admitted),
            "{ahead} s ahead"
        );
    }
}

#[test]
fn a_new_machine_takes_an_old_name_and_lease_by_the_roots_word() {
    let mut operator = Operator::new(8);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(1);
    let (mut old, mut new) = (Node::new(1), Node::new(2));
    stage.connect(&mut old);
    stage.join(&mut old, &token, "worker");
    let former = old.id();
    let token = operator.token_with(|grant| {
        grant.for_name = Some("worker".parse().unwrap());
        grant.replaces = Some(former);
    });
    stage.connect(&mut new);
    stage.join(&mut new, &token, "worker");
    let leases =
        |node: &Node| -> Leases { node.receipt.as_ref().unwrap().unverified().unwrap().leases };
    assert_eq!(leases(&old), leases(&new));
    assert!(
        closed(&stage.told(&old)),
        "the former holder is cut at once"
    );
    stage.connect_quietly(&old);
    assert_eq!(code(&stage.told(&old)), Some(RefusalCode::NodeRevoked));
    stage.restart();
    stage.connect_quietly(&old);
    assert_eq!(
        code(&stage.told(&old)),
        Some(RefusalCode::NodeRevoked),
        "also later"
    );
}

#[test]
fn only_the_first_planet_gives_leases() {
    let mut operator = Operator::new(13);
    operator.add_planet_in_front();
    let mut stage = Stage::fresh(&operator);
    let mut a = Node::new(1);
    stage.connect(&mut a);
    let application = a.application(&operator.token(1), "a", stage.now.unix);
    let answers = stage.ask(&a, NodeMessage::Join(Box::new(application)));
    assert_eq!(code(&answers), Some(RefusalCode::NotArbiter));
    assert!(matches!(
        &answers[0],
        Told::Message(PlanetMessage::Statement(_))
    ));
}

#[test]
fn a_member_passes_on_that_another_one_left() {
    let mut operator = Operator::new(23);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(9);
    let (mut a, mut b, mut c) = (Node::new(1), Node::new(2), Node::new(3));
    for (node, name) in [(&mut a, "a"), (&mut b, "b")] {
        stage.connect(node);
        stage.join(node, &token, name);
    }
    let departure = a.departure(&operator.network, stage.now.unix.plus(5));
    stage.pass(Duration::from_secs(10));

    stage.connect(&mut c);
    let answers = stage.ask(&c, NodeMessage::Leave(departure.clone()));
    assert_eq!(code(&answers), Some(RefusalCode::Unproven), "no member");
    assert!(stage.planet.books().entry(&a.id()).is_some());
    stage.connect(&mut b);
    stage.told(&b);
    stage.say(&b, NodeMessage::Leave(departure.clone()));
    assert!(stage.planet.books().entry(&a.id()).is_none());
    assert!(closed(&stage.told(&a)), "its connection ends");
    stage.pass(Duration::from_millis(100));
    let told = stage.told(&b);
    assert!(!closed(&told), "who passed it on stays");
    let left = |told: &Told| match told {
        Told::Message(PlanetMessage::Directory(update)) => update
            .records
            .contains(&DirectoryRecord::Left(departure.clone())),
        _ => false,
    };
    assert!(told.iter().any(left), "everybody hears it: {told:?}");

    // It comes back; whoever was away all the time passes on what is over.
    stage.connect(&mut a);
    stage.join(&mut a, &token, "a");
    stage.say(&b, NodeMessage::Leave(departure.clone()));
    assert!(stage.planet.books().entry(&a.id()).is_some());
}
