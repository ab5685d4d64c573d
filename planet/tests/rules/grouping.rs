//! Several inputs in one commit: what they share, and what they don't.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use podmesh_proto::certificate::Leases;
use podmesh_proto::id::NodeId;
use podmesh_proto::planet_api::{DirectoryRecord, NodeMessage, PlanetMessage, RefusalCode};
use podmesh_proto::time::Now;
use podmesh_proto::token::JoinToken;

use crate::assert_single_owners;
use crate::story::{Node, Operator, Stage, Told};

/// Members that are all connected.
fn scene(number: u32, count: u32) -> (Operator, Stage, JoinToken, Vec<Node>) {
    let mut operator = Operator::new(number);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(500);
    let mut nodes: Vec<Node> = (0..count).map(|index| Node::new(1_000 + index)).collect();
    for (index, node) in nodes.iter_mut().enumerate() {
        stage.connect(node);
        stage.join(node, &token, &format!("n{index}"));
    }
    stage.pass(Duration::from_secs(1));
    for node in &nodes {
        stage.told(node);
    }
    (operator, stage, token, nodes)
}

fn leases(node: &Node) -> Leases {
    let receipt = node.receipt.as_ref().unwrap();
    receipt.unverified().unwrap().leases
}

/// A claim of what the node has anyway, or of no pods.
fn claim(operator: &Operator, node: &Node, serial: u64) -> NodeMessage {
    let overlay4 = leases(node).overlay4;
    NodeMessage::Claim(node.sign_claim(&operator.network, serial, overlay4, Vec::new()))
}

fn receipts(told: &[Told]) -> Vec<u64> {
    let number = |told: &Told| match told {
        Told::Message(PlanetMessage::Claimed(receipt)) => {
            Some(receipt.unverified().unwrap().sequence)
        }
        _ => None,
    };
    told.iter().filter_map(number).collect()
}

fn refusals(told: &[Told], expected: RefusalCode) -> usize {
    let is_it = |told: &&Told| match told {
        Told::Message(PlanetMessage::Refused(refusal)) => refusal.code == expected,
        _ => false,
    };
    told.iter().filter(is_it).count()
}

#[test]
fn what_waits_for_the_disk_goes_there_together() {
    let (operator, mut stage, _, nodes) = scene(101, 40);
    let before = stage.commits;
    stage.hold_commits = true;
    for node in &nodes {
        stage.say(node, claim(&operator, node, 2));
    }
    assert_eq!(stage.commits, before + 1, "the first one waits for nobody");
    stage.hold_commits = false;
    stage.settle();
    assert_eq!(stage.commits, before + 3, "one, then 32, then the last 7");
    let mut numbers = BTreeSet::new();
    for node in &nodes {
        let told = receipts(&stage.told(node));
        assert_eq!(told.len(), 1);
        numbers.extend(told);
    }
    assert_eq!(numbers.len(), 40, "each receipt has its own number");
    let books = stage.books_on_disk();
    assert_eq!(books.accounted(), stage.planet.books().accounted());
    assert_eq!(books.accounted().first_gap(books.shown()), None);
}

#[test]
fn those_who_join_together_get_addresses_of_their_own() {
    let (_, mut stage, token, _) = scene(102, 1);
    let mut nodes: Vec<Node> = (0..30).map(|index| Node::new(2_000 + index)).collect();
    for node in &mut nodes {
        stage.connect(node);
    }
    stage.hold_commits = true;
    let before = stage.commits;
    for (index, node) in nodes.iter_mut().enumerate() {
        let application = node.application(&token, &format!("j{index}"), stage.now.unix);
        node.application = Some(application.clone());
        stage.say(node, NodeMessage::Join(Box::new(application)));
    }
    stage.hold_commits = false;
    stage.settle();
    assert_eq!(stage.commits, before + 2);
    for node in &mut nodes {
        node.receipt = stage.told(node).into_iter().find_map(|told| match told {
            Told::Message(PlanetMessage::Admitted(receipt)) => Some(receipt),
            _ => None,
        });
        assert!(node.receipt.is_some());
    }
    assert_single_owners(&nodes.iter().collect::<Vec<_>>());
}

#[test]
fn of_a_commit_that_fails_nothing_ever_was() {
    let (operator, mut stage, token, mut nodes) = scene(103, 9);
    let leaver = nodes.pop().unwrap();
    let record = leaver.endpoints(&operator.network, 1);
    stage.say(&leaver, NodeMessage::Publish(record));
    stage.pass(Duration::from_secs(1));
    let mut stranger = Node::new(77);
    stage.connect(&mut stranger);
    for node in &nodes {
        stage.told(node);
    }
    let members = |stage: &Stage| -> Vec<String> {
        let books = stage.planet.books();
        let entries = books.entries().map(|(node, entry)| {
            let claim = entry.claim.as_ref().map(|(kept, ..)| kept.claim.hash());
            format!("{node:?} {claim:?}")
        });
        entries.collect()
    };
    let before = (members(&stage), stage.planet.books().accounted());
    stage.hold_commits = true;
    stage.disk_full = true;
    stage.say(&nodes[0], claim(&operator, &nodes[0], 2));
    // All of the following are in the next commit, each decided on top of the others.
    for node in &nodes[1..] {
        stage.say(node, claim(&operator, node, 2));
    }
    let application = stranger.application(&token, "late", stage.now.unix);
    stage.say(&stranger, NodeMessage::Join(Box::new(application.clone())));
    let departure = leaver.departure(&operator.network, stage.now.unix.plus(1));
    stage.say(&leaver, NodeMessage::Leave(departure));
    stage.hold_commits = false;
    stage.settle();
    for node in nodes.iter().chain([&stranger, &leaver]) {
        let told = stage.told(node);
        assert_eq!(refusals(&told, RefusalCode::Busy), 1, "{told:?}");
        assert!(receipts(&told).is_empty());
    }
    assert_eq!((members(&stage), stage.planet.books().accounted()), before);
    assert!(stage.status().write_error.is_some());
    stage.disk_full = false;
    // Whoever comes now is told of the one who couldn't leave, and of nobody that couldn't come.
    stage.connect(&mut nodes[0]);
    let heard = nodes[0].heard_records();
    let endpoints = |record: &DirectoryRecord| matches!(record, DirectoryRecord::Endpoints(_));
    assert!(heard.iter().any(endpoints), "the leaver is where it was");
    for node in &nodes[1..] {
        assert_eq!(
            receipts(&stage.ask(node, claim(&operator, node, 2))).len(),
            1
        );
    }
    let told = stage.ask(&stranger, NodeMessage::Join(Box::new(application)));
    assert!(matches!(
        told.as_slice(),
        [Told::Message(PlanetMessage::Admitted(_))]
    ));
}

#[test]
fn a_trust_that_isnt_on_disk_is_none() {
    let (_, mut stage, token, nodes) = scene(104, 2);
    stage.lose(podmesh_planet::rules::records::Origin::Lost);
    let mut stranger = Node::new(77);
    stage.connect(&mut stranger);
    stage.disk_full = true;
    assert!(stage.try_trust_empty().is_err());
    stage.disk_full = false;
    stage.pass(Duration::from_secs(100));
    stage.connect(&mut stranger);
    assert!(
        !stage.try_join(&mut stranger, &token, "late"),
        "nobody was asked"
    );
    drop(nodes);
}

#[test]
fn others_are_served_while_the_disk_takes_its_time() {
    let (operator, mut stage, _, mut nodes) = scene(105, 3);
    stage.hold_commits = true;
    stage.say(&nodes[0], claim(&operator, &nodes[0], 2));
    let record = nodes[1].endpoints(&operator.network, 1);
    stage.say(&nodes[1], NodeMessage::Publish(record.clone()));
    stage.pass(Duration::from_secs(6));
    let trouble = stage.status().write_error.unwrap();
    assert!(trouble.contains("6 s"), "{trouble}");
    stage.connect(&mut nodes[2]);
    assert!(
        nodes[2].welcome().is_some(),
        "a known member waits for no disk"
    );
    let heard = nodes[2].heard_records();
    assert!(heard.contains(&DirectoryRecord::Endpoints(record)));
    // What isn't durable is told to nobody.
    let of_the_claimer = heard.iter().find_map(|record| match record {
        DirectoryRecord::Member(it) if it.claim == nodes[0].claim.as_ref().unwrap().0 => Some(()),
        _ => None,
    });
    assert!(of_the_claimer.is_some(), "its former claim");
    assert!(receipts(&stage.told(&nodes[0])).is_empty());
    stage.hold_commits = false;
    stage.settle();
    stage.pass(Duration::from_secs(1));
    assert_eq!(receipts(&stage.told(&nodes[0])).len(), 1);
    let told = stage.told(&nodes[2]);
    let news = told.iter().any(|told| match told {
        Told::Message(PlanetMessage::Directory(update)) => {
            let of = |record: &DirectoryRecord| matches!(record, DirectoryRecord::Member(_));
            update.records.iter().any(of)
        }
        _ => false,
    });
    assert!(news, "{told:?}");
    assert_eq!(stage.status().write_error, None);
}

#[test]
fn who_says_much_has_one_place_in_a_commit_and_keeps_its_order() {
    let (operator, mut stage, _, nodes) = scene(106, 33);
    let (rogue, others) = nodes.split_first().unwrap();
    stage.hold_commits = true;
    for serial in 2..100 {
        stage.say(rogue, claim(&operator, rogue, serial));
    }
    for node in others {
        stage.say(node, claim(&operator, node, 2));
    }
    stage.told(rogue);
    let mut served = 0;
    for _ in 0..2 {
        stage.commit();
        stage.settle();
        let told = others.iter().map(|node| receipts(&stage.told(node)).len());
        served += told.collect::<Vec<_>>().iter().sum::<usize>();
    }
    assert_eq!(served, 31, "31 places of 32 are for others");
    stage.hold_commits = false;
    stage.settle();
    let told = stage.told(rogue);
    let granted = receipts(&told);
    assert!((2..=4).contains(&granted.len()), "{granted:?}");
    assert!(granted.is_sorted(), "in their order: {granted:?}");
    let answers = granted.len() + refusals(&told, RefusalCode::Busy);
    assert_eq!(answers, 98, "each is answered once");
    assert_eq!(stage.planet.waiting(stage.connection_of(rogue)), 0);
}

/// A node, and the claims that it has made.
struct Asker {
    node: Node,
    serial: u64,
    claims: BTreeMap<[u8; 32], u64>,
}

/// Chance, from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// What was ever promised: the newest claim of each node that has a receipt.
type Promised = BTreeMap<NodeId, u64>;

fn note(stage: &mut Stage, asker: &Asker, promised: &mut Promised) {
    for told in stage.told(&asker.node) {
        if let Told::Message(PlanetMessage::Claimed(receipt)) = told {
            let claim = receipt.unverified().unwrap().claim;
            let serial = promised.entry(asker.node.id()).or_default();
            *serial = (*serial).max(asker.claims[&claim]);
        }
    }
}

fn serials(books: &podmesh_planet::rules::books::Books) -> Promised {
    let entries = books.entries().filter_map(|(node, entry)| {
        let (_, claim, _) = entry.claim.as_ref()?;
        Some((*node, claim.serial))
    });
    entries.collect()
}

#[test]
fn a_cut_between_commit_and_answers_or_before_forgets_no_promise() {
    for seed in 0..10 {
        let (operator, mut stage, _, nodes) = scene(107, 6);
        let mut dice = Dice(seed);
        let mut promised = Promised::new();
        let asker = |node| Asker {
            node,
            serial: 1,
            claims: BTreeMap::new(),
        };
        let mut askers: Vec<Asker> = nodes.into_iter().map(asker).collect();
        for step in 0..60 {
            let what = format!("seed {seed}, step {step}");
            stage.hold_commits = true;
            let index = usize::try_from(dice.roll(6)).unwrap();
            match dice.roll(8) {
                0..=3 => {
                    let asker = &mut askers[index];
                    asker.serial += 1;
                    let message = claim(&operator, &asker.node, asker.serial);
                    if let NodeMessage::Claim(claim) = &message {
                        asker.claims.insert(claim.hash(), asker.serial);
                    }
                    stage.say(&asker.node, message);
                }
                4 => {
                    stage.disk_full = dice.roll(2) == 0;
                    if stage.is_committing() {
                        stage.commit();
                        stage.settle();
                    }
                    stage.disk_full = false;
                }
                5 | 6 => {
                    if stage.is_committing() {
                        stage.commit();
                        stage.settle();
                    }
                }
                _ => {
                    // The power goes: before the disk has it, or after it has and nobody was told.
                    askers
                        .iter()
                        .for_each(|it| note(&mut stage, it, &mut promised));
                    if dice.roll(2) == 0 {
                        stage.write();
                    }
                    stage.restart();
                    stage.hold_commits = false;
                    stage.pass(Duration::from_secs(40));
                    let known = serials(stage.planet.books());
                    for (node, serial) in &promised {
                        assert!(known.get(node) >= Some(serial), "{what}: forgotten");
                    }
                    for asker in &mut askers {
                        asker.serial = asker.serial.max(known[&asker.node.id()]);
                        stage.connect_quietly(&asker.node);
                    }
                }
            }
            askers
                .iter()
                .for_each(|it| note(&mut stage, it, &mut promised));
            let (books, disk) = (stage.planet.books(), stage.books_on_disk());
            if !stage.is_committing() {
                assert_eq!(serials(books), serials(&disk), "{what}");
            }
            for (node, serial) in serials(books) {
                assert!(serials(&disk)[&node] >= serial, "{what}: ahead of the disk");
            }
            let pace = Duration::from_secs(3);
            stage.now = Now {
                moment: stage.now.moment + pace,
                unix: stage.now.unix.plus(pace.as_secs()),
                nanos: 0,
            };
        }
    }
}
