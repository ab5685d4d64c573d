//! Who is let in, introduced, and cut.

use std::time::Duration;

use podmesh_planet::rules::{Event, SILENCE};
use podmesh_proto::planet_api::{DirectoryRecord, NodeMessage, PlanetMessage, RefusalCode};

use crate::story::{Node, Operator, Stage, Told};
use crate::{closed, code};

/// A planet with two members that have heard of each other.
fn two_members(number: u32) -> (Operator, Stage, [Node; 2]) {
    let mut operator = Operator::new(number);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(3);
    let (mut a, mut b) = (Node::new(1), Node::new(2));
    for (node, name) in [(&mut a, "a"), (&mut b, "b")] {
        stage.connect(node);
        stage.join(node, &token, name);
    }
    stage.pass(Duration::from_millis(100));
    stage.told(&b);
    (operator, stage, [a, b])
}

#[test]
fn a_revoked_node_is_cut_everywhere_and_stays_out() {
    let (mut operator, mut stage, [a, b]) = two_members(9);
    let forged = Operator::new(9).with_other_root().revoke_node(&a);
    assert!(stage.operator(&forged).is_err());
    let statement = operator.revoke_node(&a);
    // A member may bring it as well as the operator.
    stage.say(&b, NodeMessage::Statement(Box::new(statement.clone())));
    stage.pass(Duration::from_millis(100));
    let answers = stage.told(&a);
    assert_eq!(code(&answers), Some(RefusalCode::NodeRevoked));
    assert!(closed(&answers));
    assert!(
        stage.relay_sessions_of(&a).is_empty(),
        "and nothing is relayed for it"
    );
    let pushed = |told: &Told| matches!(told, Told::Message(PlanetMessage::Statement(s)) if **s == statement);
    assert_eq!(stage.told(&b).iter().filter(|told| pushed(told)).count(), 1);
    stage.restart();
    stage.connect_quietly(&a);
    assert_eq!(code(&stage.told(&a)), Some(RefusalCode::NodeRevoked));
    let application = a.application(&operator.token(1), "again", stage.now.unix);
    let answers = stage.ask(&a, NodeMessage::Join(Box::new(application)));
    assert!(answers.is_empty(), "nobody listens any more");
}

#[test]
fn a_false_proof_ends_the_connection() {
    let operator = Operator::new(10);
    let mut stage = Stage::fresh(&operator);
    let mut a = Node::new(1);
    for (what, bend) in [
        ("another key", 0),
        ("another connection's proof", 1),
        ("another protocol", 2),
        ("another network", 3),
    ] {
        stage.open(&mut a);
        let mut hello = stage.hello(&a);
        match bend {
            0 => hello.node = Node::new(2).id(),
            1 => hello.proof = a.prove(b"other keying material"),
            2 => hello.protocol = 99,
            _ => hello.network = Operator::new(11).network.id,
        }
        let answers = stage.ask(&a, NodeMessage::Hello(hello));
        assert!(closed(&answers), "{what}");
    }
    stage.open(&mut a);
    let answers = stage.ask(&a, NodeMessage::Heartbeat);
    assert!(closed(&answers), "something else before the hello");
    stage.open(&mut a);
    stage.pass(Duration::from_secs(6));
    assert!(closed(&stage.told(&a)), "no hello in time");
    stage.connect(&mut a);
    stage.pass(Duration::from_secs(16));
    let beats = |told: &Told| matches!(told, Told::Message(PlanetMessage::Heartbeat { .. }));
    assert_eq!(stage.told(&a).iter().filter(|told| beats(told)).count(), 1);
    stage.pass(SILENCE);
    assert!(closed(&stage.told(&a)), "silence");
}

#[test]
fn introductions_reach_both_ends_so_that_they_fire_at_one_instant() {
    let mut operator = Operator::new(12);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(3);
    let (mut a, mut b, mut c) = (Node::new(1), Node::new(2), Node::new(3));
    let (near, far) = (Duration::from_millis(20), Duration::from_millis(90));
    (a.rtt, b.rtt) = (near, far);
    for (node, name) in [(&mut a, "a"), (&mut b, "b")] {
        stage.connect(node);
        stage.join(node, &token, name);
    }
    stage.connect(&mut c);
    stage.pass(Duration::from_millis(100));
    let punch = |answers: Vec<Told>| {
        let punches: Vec<_> = answers
            .into_iter()
            .filter_map(|told| match told {
                Told::Message(PlanetMessage::Punch {
                    peer,
                    attempt,
                    fire_in,
                }) => Some((peer, attempt, fire_in)),
                _ => None,
            })
            .collect();
        punches
    };
    stage.told(&a);
    stage.told(&b);
    let ask = |node: &Node, attempt| NodeMessage::Introduce {
        peer: node.id(),
        attempt,
    };
    stage.say(&a, ask(&b, 1));
    stage.say(&b, ask(&a, 1));
    let (to_a, to_b) = (punch(stage.told(&a)), punch(stage.told(&b)));
    assert_eq!(to_a, [(b.id(), 1, (far - near) / 2)]);
    assert_eq!(to_b, [(a.id(), 1, Duration::ZERO)]);
    for _ in 0..1_000 {
        stage.say(&a, ask(&b, 2));
    }
    assert_eq!(
        punch(stage.told(&b)),
        [],
        "the pair was introduced just now"
    );
    assert_eq!(code(&stage.told(&a)), Some(RefusalCode::Busy));
    let answers = stage.ask(&c, ask(&b, 1));
    assert_eq!(code(&answers), Some(RefusalCode::NotMember));
    assert_eq!(punch(stage.told(&b)), [], "strangers move nobody");
}

#[test]
fn who_is_told_to_punch_knows_where() {
    let (operator, mut stage, [a, b]) = two_members(23);
    let record = a.endpoints(&operator.network, 1);
    stage.say(&a, NodeMessage::Publish(record.clone()));
    let (peer, attempt) = (b.id(), 1);
    stage.say(&a, NodeMessage::Introduce { peer, attempt });
    let order = stage.told(&b).into_iter().filter_map(|told| match told {
        Told::Message(PlanetMessage::Directory(update)) => Some(update.records),
        Told::Message(PlanetMessage::Punch { .. }) => Some(Vec::new()),
        _ => None,
    });
    let record = DirectoryRecord::Endpoints(record);
    assert_eq!(order.collect::<Vec<_>>(), [vec![record], vec![]]);
}

/// A machine that was copied, or whose disk and clock went back: nobody takes its word until it goes beyond
/// the later life.
#[test]
fn a_node_is_told_of_a_later_life_of_its_own() {
    let (operator, mut stage, [mut a, b]) = two_members(24);
    let network = &operator.network;
    let id = a.id();
    let own = move |told: Vec<Told>| -> Vec<_> {
        let records = told.into_iter().filter_map(|told| match told {
            Told::Message(PlanetMessage::Directory(update)) => Some(update.records),
            _ => None,
        });
        let mine = |record: &DirectoryRecord| {
            matches!(record, DirectoryRecord::Endpoints(signed)
                if signed.unverified().unwrap().node == id)
        };
        records.flatten().filter(mine).collect()
    };
    let early = a.endpoints(network, 3);
    stage.say(&a, NodeMessage::Publish(early.clone()));
    stage.pass(Duration::from_secs(1));
    assert_eq!(own(stage.told(&a)), [], "no node is told what it has said");
    stage.say(&a, NodeMessage::Publish(a.endpoints(network, 2)));
    let overtaken = DirectoryRecord::Endpoints(early.clone());
    assert_eq!(own(stage.told(&a)), [overtaken], "of two lives at one time");

    let late = a.endpoints_of(9, network, 1);
    stage.open(&mut a);
    let mut hello = stage.hello(&a);
    hello.incarnation = 9;
    stage.say(&a, NodeMessage::Hello(hello));
    stage.pass(Duration::from_secs(1));
    stage.say(&a, NodeMessage::Publish(late.clone()));
    stage.pass(Duration::from_secs(1));
    assert_eq!(own(stage.told(&a)), []);
    stage.told(&b);

    let late = DirectoryRecord::Endpoints(late);
    stage.connect_quietly(&a);
    stage.pass(Duration::from_secs(1));
    assert_eq!(
        own(stage.told(&a)),
        std::slice::from_ref(&late),
        "when it comes"
    );
    stage.pass(Duration::from_secs(10));
    stage.say(&a, NodeMessage::Publish(early));
    assert_eq!(own(stage.told(&a)), [late], "and when it speaks");
    assert_eq!(own(stage.told(&b)), [], "others have heard it");
}

#[test]
fn strangers_make_room_for_each_other_and_members_stay() {
    let mut operator = Operator::new(22);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(1);
    let mut member = Node::new(1);
    stage.connect(&mut member);
    stage.join(&mut member, &token, "member");
    let strangers: Vec<Node> = (0..300).map(|n| Node::new(5_000 + n)).collect();
    for node in &strangers {
        stage.connect_quietly(node);
        stage.told(node);
        stage.pass(Duration::from_millis(1));
    }
    stage.pass(Duration::from_secs(1));
    let mut cut: Vec<bool> = Vec::new();
    for node in &strangers {
        cut.push(closed(&stage.told(node)));
    }
    assert!(
        cut[..44].iter().all(|cut| *cut),
        "the longest guests go first"
    );
    assert!(!cut[44..].iter().any(|cut| *cut));
    assert!(!closed(&stage.told(&member)));
}

#[test]
fn a_stranger_is_heard_once_in_a_while_and_members_always() {
    let mut operator = Operator::new(23);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(1);
    let (mut member, mut stranger) = (Node::new(1), Node::new(2));
    stage.connect(&mut member);
    stage.join(&mut member, &token, "member");
    stage.connect(&mut stranger);
    let join = |stage: &Stage| {
        let application = stranger.application(&token, "stranger", stage.now.unix);
        NodeMessage::Join(Box::new(application))
    };
    let (mut heard, mut busy) = (0, 0);
    for _ in 0..100 {
        let asking = join(&stage);
        match code(&stage.ask(&stranger, asking)) {
            Some(RefusalCode::TokenUsedUp) => heard += 1,
            Some(RefusalCode::Busy) => busy += 1,
            other => panic!("{other:?}"),
        }
        stage.pass(Duration::from_millis(100));
    }
    assert_eq!(heard + busy, 100);
    // Five at once, and one every two seconds of ten.
    assert!((5..=10).contains(&heard), "{heard}");
    for _ in 0..100 {
        let asking = NodeMessage::Introduce {
            peer: stranger.id(),
            attempt: 1,
        };
        assert_eq!(code(&stage.ask(&member, asking)), None);
    }
    stage.pass(Duration::from_secs(2));
    let asking = join(&stage);
    let answers = stage.ask(&stranger, asking);
    assert_eq!(code(&answers), Some(RefusalCode::TokenUsedUp));
}

#[test]
fn members_hear_when_the_planets_clock_jumps_and_when_it_is_put_right() {
    let mut operator = Operator::new(17);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(3);
    let mut a = Node::new(1);
    stage.connect(&mut a);
    stage.join(&mut a, &token, "a");
    let clocks = |told: &[Told]| -> Vec<_> {
        let clock = |told: &Told| match told {
            Told::Message(PlanetMessage::Clock(time)) => Some(*time),
            _ => None,
        };
        told.iter().filter_map(clock).collect()
    };
    stage.pass(Duration::from_secs(40));
    assert_eq!(clocks(&stage.told(&a)), [], "it goes as it went");
    let right = stage.now.unix;
    for (clock, heard) in [(right.plus(10_800), 10_802), (right, 2)] {
        stage.now.unix = clock;
        stage.pass(Duration::from_secs(2));
        let told = clocks(&stage.told(&a));
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].0.abs_diff(right.plus(heard).0) <= 2, "{told:?}");
    }
}

#[test]
fn two_machines_with_one_identity_are_named_and_a_machine_that_starts_anew_is_not() {
    let (_, mut stage, [a, _]) = two_members(13);
    let speaks = |stage: &mut Stage, incarnation: u64, from: &str| {
        stage.pass(Duration::from_secs(2));
        stage.open_from(&a, from.parse().unwrap());
        let mut hello = stage.hello(&a);
        hello.incarnation = incarnation;
        stage.say(&a, NodeMessage::Hello(hello));
    };
    let (home, away) = ("203.0.113.5:4500", "198.51.100.7:4500");
    // Starts and moves, also with one connection beside the other, and one return from a snapshot.
    for (incarnation, from) in [(2, home), (3, away), (3, home), (4, away), (3, home)] {
        speaks(&mut stage, incarnation, from);
        assert_eq!(stage.status().remarks, Vec::<String>::new());
    }
    let lines = |stage: &Stage| {
        let twins = |event: &&Event| matches!(event, Event::Twins(..));
        stage.happened.iter().filter(twins).count()
    };
    speaks(&mut stage, 4, away);
    let remarks = stage.status().remarks;
    assert_eq!(remarks.len(), 1, "{remarks:?}");
    for word in ["identity of a", home, away, "MESH-IDENTITY-002"] {
        assert!(remarks[0].contains(word), "{word}: {remarks:?}");
    }
    assert_eq!(lines(&stage), 1, "one line");
    speaks(&mut stage, 3, home);
    assert_eq!(lines(&stage), 1, "and no other while it goes on");
    stage.pass(Duration::from_secs(600));
    assert_eq!(stage.status().remarks, Vec::<String>::new(), "it is over");
    for (incarnation, from) in [(5, away), (3, home)] {
        speaks(&mut stage, incarnation, from);
        assert_eq!(stage.status().remarks, Vec::<String>::new());
    }
    speaks(&mut stage, 5, away);
    speaks(&mut stage, 3, home);
    assert_eq!((stage.status().remarks.len(), lines(&stage)), (1, 2));
}
