//! Memberships that go on: what a planet receipts, and what it doesn't.

use std::time::Duration;

use podmesh_proto::certificate::Member;
use podmesh_proto::key::{SecretKey, SigningKey};
use podmesh_proto::limits::CLOCK_SKEW;
use podmesh_proto::planet_api::{DirectoryRecord, NodeMessage, PlanetMessage, RefusalCode};
use podmesh_proto::renewal::{Renewal, RenewalRequest, Renewed, Succession};
use podmesh_proto::signed::Signed;

use crate::story::{Node, Operator, Stage, Told};

const LIFE: u64 = 600;

/// A member for ten minutes, four minutes old, and somebody who watches.
fn scene(number: u32) -> (Operator, Stage, Node, Node) {
    let mut operator = Operator::new(number);
    let mut stage = Stage::fresh(&operator);
    let short = operator.token_with(|grant| grant.membership = Some(LIFE));
    let token = operator.token(1);
    let (mut a, mut b) = (Node::new(1), Node::new(2));
    stage.connect(&mut a);
    stage.join(&mut a, &short, "a");
    stage.connect(&mut b);
    stage.join(&mut b, &token, "b");
    live(&mut stage, &[&a, &b], Duration::from_secs(240));
    (operator, stage, a, b)
}

/// Time passes, and nobody falls silent.
fn live(stage: &mut Stage, nodes: &[&Node], duration: Duration) {
    let end = stage.now.moment + duration;
    while stage.now.moment < end {
        stage.pass(Duration::from_secs(15));
        for node in nodes {
            stage.say(node, NodeMessage::Heartbeat);
        }
    }
}

fn member(stage: &Stage, node: &Node) -> Member {
    let network = &stage.planet.books().network;
    node.membership().unwrap().prove(network).unwrap()
}

/// The node's next renewal, with something changed.
fn request(
    stage: &Stage,
    node: &Node,
    change: impl FnOnce(&mut Renewal),
) -> (RenewalRequest, Renewal) {
    let known = member(stage, node);
    let now = stage.now.unix;
    let mut renewal = Renewal {
        network: stage.planet.books().network.id,
        node: node.id(),
        certificate: known.certificate,
        serial: known.renewal + 1,
        follows: known.document,
        claim: node.membership().unwrap().claim.hash(),
        wireguard: known.wireguard,
        probe: known.probe,
        issued: now,
        expires: known.expires.map(|_| now.plus(LIFE)),
    };
    change(&mut renewal);
    (seal(node, node.steps(), &renewal), renewal)
}

fn seal(node: &Node, successions: Vec<Signed<Succession>>, renewal: &Renewal) -> RenewalRequest {
    RenewalRequest {
        successions,
        renewal: Signed::seal(renewal, &node.newest()).unwrap(),
    }
}

/// A step of the node's identity to key `number`, with the renewal that goes with it.
pub(crate) fn step(stage: &Stage, node: &Node, number: u32) -> (Node, RenewalRequest) {
    let mut moved = node.clone();
    moved.signer = number;
    let mut steps = node.steps();
    let succession = Succession {
        network: stage.planet.books().network.id,
        node: node.id(),
        number: u32::try_from(steps.len()).unwrap() + 1,
        next: moved.newest().public(),
    };
    steps.push(Signed::seal(&succession, &node.newest()).unwrap());
    let (_, renewal) = request(stage, node, |_| {});
    let request = seal(&moved, steps, &renewal);
    (moved, request)
}

/// Hands it in; the node takes the receipt to heart.
pub(crate) fn renew(
    stage: &mut Stage,
    node: &mut Node,
    request: RenewalRequest,
) -> Result<(), RefusalCode> {
    let answers = stage.ask(node, NodeMessage::Renew(Box::new(request.clone())));
    for told in answers {
        match told {
            Told::Message(PlanetMessage::Renewed(receipt)) => {
                node.renewed = Some(Box::new(Renewed { request, receipt }));
                let network = &stage.planet.books().network;
                let peers = node.membership().unwrap().verify(network, stage.now.unix);
                assert!(peers.is_ok(), "peers accept it: {peers:?}");
                return Ok(());
            }
            Told::Message(PlanetMessage::NotRenewed(refusal)) => return Err(refusal.code),
            _ => {}
        }
    }
    panic!("no answer")
}

#[test]
fn a_renewal_is_receipted_once_told_to_all_and_kept_over_a_restart() {
    let (_, mut stage, mut a, mut b) = scene(61);
    let (request, _) = request(&stage, &a, |_| {});
    stage.hold_commits = true;
    assert!(
        stage
            .ask(&a, NodeMessage::Renew(Box::new(request.clone())))
            .is_empty()
    );
    stage.hold_commits = false;
    stage.settle();
    renew(&mut stage, &mut a, request.clone()).unwrap();
    let receipt = a.renewed.clone();
    stage.pass(Duration::from_millis(100));
    stage.listen(&mut b);
    let heard = b.heard_records();
    let told = heard.iter().filter(
        |record| matches!(record, DirectoryRecord::Member(it) if **it == a.membership().unwrap()),
    );
    assert_eq!(told.count(), 1);
    live(&mut stage, &[&a, &b], Duration::from_secs(60));
    stage.restart();
    stage.connect(&mut a);
    renew(&mut stage, &mut a, request).unwrap();
    assert_eq!(a.renewed, receipt, "the same answer again");
    // Longer than the first life: what keeps it in is the renewal.
    live(&mut stage, &[&a], Duration::from_secs(500));
    assert!(
        stage
            .planet
            .books()
            .member(&a.id(), stage.now.unix)
            .is_some()
    );
    live(&mut stage, &[&a], Duration::from_secs(500));
    assert!(
        stage
            .planet
            .books()
            .member(&a.id(), stage.now.unix)
            .is_none()
    );
}

#[test]
fn a_full_disk_renews_nobody() {
    let (_, mut stage, mut a, _) = scene(62);
    let (request, _) = request(&stage, &a, |_| {});
    stage.disk_full = true;
    assert_eq!(
        renew(&mut stage, &mut a, request.clone()),
        Err(RefusalCode::Busy)
    );
    assert_eq!(stage.planet.books().entry(&a.id()).unwrap().renewed, None);
    stage.disk_full = false;
    renew(&mut stage, &mut a, request).unwrap();
}

/// What is wrong, how, and the answer.
type Wrong = (&'static str, fn(&mut Renewal), RefusalCode);

#[test]
fn what_no_planet_receipts() {
    let wrong: [Wrong; 8] = [
        (
            "beyond the grant",
            |r| r.expires = Some(r.issued.plus(LIFE + 1)),
            RefusalCode::Unproven,
        ),
        ("without end", |r| r.expires = None, RefusalCode::Unproven),
        (
            "dated ahead",
            |r| {
                r.issued = r.issued.plus(1_000);
                r.expires = Some(r.issued.plus(LIFE));
            },
            RefusalCode::Unproven,
        ),
        (
            "over already",
            |r| {
                r.issued = r.issued.minus(LIFE);
                r.expires = Some(r.issued.plus(LIFE));
            },
            RefusalCode::Unproven,
        ),
        ("a serial left out", |r| r.serial += 1, RefusalCode::Invalid),
        (
            "after nothing",
            |r| r.follows = [7; 32],
            RefusalCode::Unproven,
        ),
        (
            "for somebody else",
            |r| r.node = Node::new(2).id(),
            RefusalCode::Unproven,
        ),
        (
            "somebody else's key",
            |r| r.wireguard = Node::new(2).wireguard.public(),
            RefusalCode::Conflict,
        ),
    ];
    let (_, mut stage, mut a, b) = scene(63);
    for (what, change, code) in wrong {
        let (request, _) = request(&stage, &a, change);
        assert_eq!(renew(&mut stage, &mut a, request), Err(code), "{what}");
    }
    // By another key, and handed in by another node.
    let mut thief = a.clone();
    thief.signer = 9;
    let (forged, _) = request(&stage, &thief, |_| {});
    assert_eq!(
        renew(&mut stage, &mut a, forged),
        Err(RefusalCode::Unproven)
    );
    let (honest, _) = request(&stage, &a, |_| {});
    let mut stranger = b;
    assert_eq!(
        renew(&mut stage, &mut stranger, honest),
        Err(RefusalCode::Unproven)
    );
}

#[test]
fn the_revoked_and_the_expired_are_not_renewed() {
    let (operator, mut stage, mut a, b) = scene(64);
    live(&mut stage, &[&b], Duration::from_secs(700));
    stage.connect(&mut a);
    let (late, _) = request(&stage, &a, |_| {});
    assert_eq!(renew(&mut stage, &mut a, late), Err(RefusalCode::NotMember));
    let mut operator = operator;
    let short = operator.token_with(|grant| grant.membership = Some(LIFE));
    let mut c = Node::new(3);
    stage.connect(&mut c);
    stage.join(&mut c, &short, "c");
    stage.operator(&operator.revoke_token(&short)).unwrap();
    let (longer, _) = request(&stage, &c, |r| {
        r.issued = r.issued.plus(1);
        r.expires = Some(r.issued.plus(LIFE));
    });
    assert_eq!(
        renew(&mut stage, &mut c, longer),
        Err(RefusalCode::TokenRevoked)
    );
    // Its keys may still change within the life that it has.
    let known = member(&stage, &c);
    let (rotated, _) = request(&stage, &c, |r| {
        (r.issued, r.expires) = (known.issued, known.expires);
        r.wireguard = SecretKey::from_bytes([77; 32]).public();
    });
    renew(&mut stage, &mut c, rotated).unwrap();
    stage.operator(&operator.revoke_node(&c)).unwrap();
    stage.open(&mut c);
    stage.connect(&mut c);
    assert!(c.welcome().is_none_or(|welcome| welcome.relay.is_none()));
}

#[test]
fn a_second_successor_is_refused_and_renewals_keep_their_distance() {
    let (_, mut stage, mut a, _) = scene(65);
    let (first, _) = request(&stage, &a, |_| {});
    let (second, _) = request(&stage, &a, |r| {
        r.wireguard = SecretKey::from_bytes([77; 32]).public();
    });
    let mut thief = a.clone();
    renew(&mut stage, &mut a, first).unwrap();
    let (soon, _) = request(&stage, &a, |_| {});
    assert_eq!(renew(&mut stage, &mut a, soon), Err(RefusalCode::Busy));
    stage.pass(Duration::from_secs(6));
    assert_eq!(
        renew(&mut stage, &mut thief, second),
        Err(RefusalCode::Conflict)
    );
    let (next, _) = request(&stage, &a, |_| {});
    renew(&mut stage, &mut a, next).unwrap();
}

#[test]
fn a_former_identity_gets_no_word_in() {
    let (operator, mut stage, mut a, mut b) = scene(66);
    let old = a.clone();
    stage.say(&a, NodeMessage::Publish(a.endpoints(&operator.network, 1)));
    let (moved, request_) = step(&stage, &a, 41);
    // The step alone, by somebody who has the new key but not the old one.
    let mut forged = request_.clone();
    forged.successions = vec![
        Signed::seal(
            &forged.successions[0].unverified().unwrap(),
            &SigningKey::from_seed([9; 32]),
        )
        .unwrap(),
    ];
    assert_eq!(
        renew(&mut stage, &mut a, forged),
        Err(RefusalCode::Unproven)
    );
    a = moved;
    renew(&mut stage, &mut a, request_).unwrap();
    stage.pass(Duration::from_secs(6));
    // Who comes from nothing hears nothing that the former identity said of endpoints.
    b.cursor = None;
    stage.connect(&mut b);
    let endpoints = |node: &Node| {
        let records = node.heard_records();
        let count = records
            .iter()
            .filter(|it| matches!(it, DirectoryRecord::Endpoints(_)));
        count.count()
    };
    assert_eq!(endpoints(&b), 0);
    // The new one speaks on the same connection, and on a new one.
    stage.say(&a, NodeMessage::Publish(a.endpoints(&operator.network, 2)));
    stage.pass(Duration::from_millis(100));
    stage.listen(&mut b);
    assert_eq!(endpoints(&b), 1);
    stage.connect(&mut a);
    assert!(a.welcome().is_some_and(|welcome| welcome.relay.is_some()));
    // The thief of the old key, with everything that the node once had.
    let mut thief = old.clone();
    thief.cursor = None;
    stage.connect(&mut thief);
    assert!(thief.welcome().is_none());
    let (later, _) = request(&stage, &old, |_| {});
    stage.connect(&mut a);
    assert_eq!(
        renew(&mut stage, &mut thief, later),
        Err(RefusalCode::Conflict)
    );
    for message in [
        NodeMessage::Publish(old.endpoints(&operator.network, 9)),
        NodeMessage::Leave(old.departure(&operator.network, stage.now.unix)),
        NodeMessage::Claim(old.sign_claim(&operator.network, 9, None, Vec::new())),
    ] {
        let answers = stage.ask(&a, message);
        assert!(crate::code(&answers).is_some(), "{answers:?}");
    }
    assert!(
        stage
            .planet
            .books()
            .member(&a.id(), stage.now.unix)
            .is_some()
    );
    // The node itself may leave.
    stage.say(
        &a,
        NodeMessage::Leave(a.departure(&operator.network, stage.now.unix)),
    );
    assert!(stage.planet.books().entry(&a.id()).is_none());
}

#[test]
fn a_planet_that_forgot_learns_the_newest_state_from_the_members() {
    let (_, mut stage, mut a, b) = scene(67);
    let backup = stage.backup();
    let (moved, request) = step(&stage, &a, 41);
    let old = a.clone();
    a = moved;
    renew(&mut stage, &mut a, request).unwrap();
    stage.restore(backup);
    let mut b = b;
    stage.connect(&mut b);
    // It hears of the rotation by another member, before the thief of the old key comes.
    stage.report(&b, &[&a]);
    let mut thief = old;
    stage.connect(&mut thief);
    assert!(thief.welcome().is_none(), "the old identity proves nothing");
    stage.connect(&mut a);
    assert!(a.welcome().is_some_and(|welcome| welcome.relay.is_some()));
    // A node that came back from an old disk hears what it had become.
    let own = a.heard_records();
    let own = own.iter().any(
        |record| matches!(record, DirectoryRecord::Member(it) if **it == a.membership().unwrap()),
    );
    assert!(own);
}

/// Another planet has receipted it while this one was off, and the node itself is not there.
#[test]
fn a_planet_that_was_off_learns_from_a_member_what_another_is_by_now() {
    let (_, mut stage, mut a, mut b) = scene(69);
    let backup = stage.backup();
    let (moved, request) = step(&stage, &a, 41);
    let (old, mut stranger) = (a.clone(), Node::new(9));
    a = moved;
    renew(&mut stage, &mut a, request).unwrap();
    stage.restore(backup);
    let shown = || NodeMessage::Membership(Box::new(a.membership().unwrap()));
    stage.connect(&mut stranger);
    stage.say(&stranger, shown());
    let known = |stage: &Stage| member_in_books(stage, &a).map(|member| member.renewal);
    assert_eq!(known(&stage), Some(0), "a stranger's word");
    b.cursor = None;
    stage.connect(&mut b);
    stage.say(&b, shown());
    assert_eq!(known(&stage), Some(1));
    stage.pass(Duration::from_millis(100));
    stage.listen(&mut b);
    let records = b.heard_records();
    let last = records.iter().rev().find_map(|record| match record {
        DirectoryRecord::Member(it) => Some(it.as_ref().clone()),
        _ => None,
    });
    assert_eq!(last, a.membership(), "who told it hears that it was heard");
    // An older one changes nothing, and of nobody's it learns nothing so.
    stage.say(
        &b,
        NodeMessage::Membership(Box::new(old.membership().unwrap())),
    );
    assert_eq!(known(&stage), Some(1));
}

/// The node told it that it left, its disk went back to before that, and another planet has receipted what it is now.
#[test]
fn a_planet_that_heard_a_former_identity_leave_takes_up_the_member_that_it_is_by_now() {
    let (operator, mut stage, mut a, _) = scene(68);
    let (backup, old) = (stage.backup(), a.clone());
    let (moved, request) = step(&stage, &a, 41);
    a = moved;
    renew(&mut stage, &mut a, request).unwrap();
    stage.restore(backup);
    let mut former = old.clone();
    stage.connect(&mut former);
    let departure = old.departure(&operator.network, stage.now.unix);
    stage.say(&former, NodeMessage::Leave(departure));
    assert_eq!(member_in_books(&stage, &a), None);
    stage.connect(&mut former);
    assert!(former.welcome().is_none_or(|it| it.relay.is_none()));
    assert_eq!(
        member_in_books(&stage, &a),
        None,
        "by that identity it has left"
    );
    stage.connect(&mut a);
    assert_eq!(member_in_books(&stage, &a).map(|it| it.renewal), Some(1));
    assert!(a.welcome().is_some_and(|welcome| welcome.relay.is_some()));
    // By the newest one it leaves for good.
    let departure = a.departure(&operator.network, stage.now.unix);
    stage.say(&a, NodeMessage::Leave(departure));
    for mut node in [a.clone(), old] {
        stage.connect(&mut node);
        assert_eq!(member_in_books(&stage, &a), None);
    }
}

fn member_in_books(stage: &Stage, node: &Node) -> Option<Member> {
    let books = stage.planet.books();
    books.member(&node.id(), stage.now.unix).cloned()
}

#[test]
fn a_number_that_a_member_only_says_it_has_seen_stops_no_renewal() {
    let (_, mut stage, mut a, mut b) = scene(60);
    b.sequence = u64::MAX;
    stage.connect(&mut b);
    assert!(stage.status().not_granting.is_some(), "leases wait");
    let (request, _) = request(&stage, &a, |_| {});
    assert_eq!(renew(&mut stage, &mut a, request), Ok(()));
}

/// The planet's own clock was ahead, or another planet's is.
#[test]
fn a_receipt_that_is_dated_ahead_stops_no_renewal() {
    for ahead in [60, 3 * 3_600, 10 * 24 * 3_600] {
        let (_, mut stage, _, mut b) = scene(68);
        let right = stage.now.unix;
        stage.now.unix = right.plus(ahead);
        let (first, _) = request(&stage, &b, |_| {});
        renew(&mut stage, &mut b, first).unwrap();
        stage.now.unix = right;
        stage.pass(Duration::from_secs(6));
        stage.connect(&mut b);
        let (next, _) = request(&stage, &b, |_| {});
        assert_eq!(renew(&mut stage, &mut b, next), Ok(()), "{ahead} s ahead");
        let (soon, _) = request(&stage, &b, |_| {});
        let soon = renew(&mut stage, &mut b, soon);
        assert_eq!(soon, Err(RefusalCode::Busy), "{ahead} s ahead");
    }
}

/// It was refused when the planet's clock was wrong, and the node was off until it was right. It may not sign
/// another one with the same number.
#[test]
fn a_renewal_whose_own_life_is_over_makes_room_for_the_next() {
    let (_, mut stage, mut a, b) = scene(69);
    let end = member(&stage, &a).expires.unwrap();
    let (late, of) = request(&stage, &a, |_| {});
    let (short, _) = request(&stage, &a, |r| r.expires = Some(end.minus(1)));
    let wait = end.plus(200).0 - stage.now.unix.0;
    live(&mut stage, &[&b], Duration::from_secs(wait));
    assert!(of.expires.unwrap() > end);
    stage.connect(&mut a);
    assert_eq!(renew(&mut stage, &mut a, short), Err(RefusalCode::Unproven));
    let wait = of
        .expires
        .unwrap()
        .plus(10)
        .0
        .saturating_sub(stage.now.unix.0);
    assert!(
        end.plus(CLOCK_SKEW) > stage.now.unix.plus(wait),
        "its membership is over"
    );
    live(&mut stage, &[&a, &b], Duration::from_secs(wait));
    assert_eq!(renew(&mut stage, &mut a, late), Ok(()));
    stage.pass(Duration::from_secs(6));
    let (next, _) = request(&stage, &a, |_| {});
    assert_eq!(renew(&mut stage, &mut a, next), Ok(()));
    assert!(member(&stage, &a).expires.unwrap() > stage.now.unix);
}
