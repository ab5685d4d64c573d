//! What the root says, as a planet takes it: no edition is lost, and nobody's place is given away.

use std::time::Duration;

use podmesh_proto::key::SecretKey;
use podmesh_proto::network::{ExternalPeer, RootStatement};
use podmesh_proto::planet_api::{NodeMessage, PlanetMessage};
use podmesh_proto::signed::Signed;

use crate::story::{Node, Operator, Stage, Told};

/// A planet with a member.
fn one_member(number: u32) -> (Operator, Stage, Node) {
    let mut operator = Operator::new(number);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(3);
    let mut a = Node::new(1);
    stage.connect(&mut a);
    stage.join(&mut a, &token, "a");
    stage.pass(Duration::from_millis(100));
    stage.told(&a);
    (operator, stage, a)
}

fn external(operator: &Operator, node: &Node, after: bool) -> Signed<RootStatement> {
    let receipt = node.receipt.as_ref().unwrap().unverified().unwrap();
    let issued = if after {
        receipt.time.plus(5)
    } else {
        receipt.time.minus(5)
    };
    operator.sign(&RootStatement::External(ExternalPeer {
        network: operator.network.id,
        name: "thief".parse().unwrap(),
        wireguard: SecretKey::from_bytes([9; 32]).public(),
        prefixes: vec![
            receipt
                .leases
                .overlay4
                .unwrap()
                .to_string()
                .parse::<std::net::IpAddr>()
                .unwrap()
                .into(),
        ],
        endpoint: None,
        issued,
    }))
}

#[test]
fn the_operator_is_refused_what_somebody_has_with_the_holder() {
    let (operator, mut stage, a) = one_member(60);
    let overlay6 = operator.network.overlay6(&a.id());
    let leases = a.receipt.as_ref().unwrap().unverified().unwrap().leases;
    let (address, pods) = (leases.overlay4.unwrap(), leases.pods4.unwrap());
    let said = stage.operator(&operator.external("printer", 70, "10.42.200.0/24"));
    assert!(said.unwrap().contains("told to 1 connected node"));
    for (name, prefix, words) in [
        ("thief", format!("{address}/32"), "node a has"),
        ("thief", "10.77.0.0/16".to_owned(), "node a has"),
        ("thief", format!("{}/26", pods.network()), "node a has"),
        ("thief", format!("{overlay6}/128"), "node a has"),
        ("a", "10.77.200.1/32".to_owned(), "node a has the name a"),
        (
            "thief",
            "10.42.200.128/25".to_owned(),
            "external peer printer has",
        ),
        (
            "printer",
            "10.77.200.1/32".to_owned(),
            "external peer printer has the name",
        ),
    ] {
        let refused = stage
            .operator(&operator.external(name, 71, &prefix))
            .unwrap_err();
        assert!(refused.contains(words), "{name} {prefix}: {refused}");
    }
    assert!(stage.status().remarks.is_empty());
    // Its own place is no other's: a new address for the same key.
    stage
        .operator(&operator.external("printer", 70, "10.42.201.0/24"))
        .unwrap();
}

#[test]
fn what_the_root_said_elsewhere_takes_nothing_from_who_was_there_first() {
    for (after, aside) in [(true, true), (false, false)] {
        let (mut operator, mut stage, mut a) = one_member(61);
        let statement = external(&operator, &a, after);
        stage.say(&a, NodeMessage::Statement(Box::new(statement)));
        stage.pass(Duration::from_millis(100));
        for restarted in [false, true] {
            if restarted {
                stage.restart();
                stage.connect(&mut a);
            }
            let remarks = stage.status().remarks;
            assert_eq!(!remarks.is_empty(), aside, "{remarks:?}");
            assert!(remarks.iter().all(|remark| remark.contains("node a has")));
        }
        // Its place is free when the node has gone.
        let token = operator.token(1);
        stage.operator(&operator.revoke_node(&a)).unwrap();
        assert!(stage.status().remarks.is_empty());
        let mut b = Node::new(2);
        stage.connect(&mut b);
        stage.join(&mut b, &token, "b");
        let given = |node: &Node| {
            node.receipt
                .as_ref()
                .unwrap()
                .unverified()
                .unwrap()
                .leases
                .overlay4
        };
        assert_ne!(given(&a), given(&b), "the external peer has it");
    }
}

#[test]
fn another_edition_of_the_same_number_is_refused_and_named() {
    let (mut operator, mut stage, a) = one_member(62);
    operator.ranges(|ranges| ranges.services.push("10.96.0.0/16".parse().unwrap()));
    let two = operator.network_statement.clone();
    assert!(stage.operator(&two).unwrap().contains("told to 1"));
    operator.network.version -= 1;
    operator.ranges(|ranges| ranges.services.push("10.97.0.0/16".parse().unwrap()));
    let other = operator.network_statement.clone();
    let refused = stage.operator(&other).unwrap_err();
    assert!(refused.contains("another edition 2"), "{refused}");
    assert!(
        stage.status().remarks.is_empty(),
        "it was refused, nobody has it"
    );
    stage.told(&a);
    stage.say(&a, NodeMessage::Statement(Box::new(other)));
    let remarks = stage.status().remarks;
    assert!(
        remarks[0].starts_with("a has another edition 2"),
        "{remarks:?}"
    );
    let shown =
        |told: &Told| matches!(told, Told::Message(PlanetMessage::Statement(s)) if **s == two);
    assert!(
        stage.told(&a).iter().any(shown),
        "the node gets to know of it"
    );
    operator.ranges(|ranges| ranges.services.clear());
    stage.operator(&operator.network_statement.clone()).unwrap();
    assert!(stage.status().remarks.is_empty());
}

#[test]
fn the_operator_hears_that_nobody_was_told() {
    let operator = Operator::new(63);
    let mut stage = Stage::fresh(&operator);
    // Connected is not enough: a stranger is told nothing.
    let mut stranger = Node::new(1);
    stage.connect(&mut stranger);
    let said = stage.operator(&operator.external("printer", 70, "10.42.200.0/24"));
    let said = said.unwrap();
    assert!(
        said.contains("nobody has been told yet") && said.contains("network publish"),
        "{said}"
    );
}

#[test]
fn the_registry_names_who_is_in_and_counts_the_uses() {
    let (mut operator, mut stage, a) = one_member(64);
    stage
        .operator(&operator.external("printer", 70, "10.42.200.0/24"))
        .unwrap();
    let spent = operator.token(2);
    let mut b = Node::new(2);
    stage.connect(&mut b);
    stage.join(&mut b, &spent, "b");
    stage.operator(&operator.revoke_node(&b)).unwrap();
    let registry = stage.planet.registry(stage.now).unwrap();
    let names: Vec<&str> = registry
        .nodes
        .iter()
        .map(|node| node.name.as_str())
        .collect();
    assert_eq!(names, ["a"]);
    assert_eq!(registry.nodes[0].id, a.id());
    let overlay6 = operator.network.overlay6(&a.id());
    assert!(
        registry.nodes[0]
            .prefixes
            .contains(&std::net::IpAddr::V6(overlay6).into())
    );
    assert_eq!(registry.externals[0].name.as_str(), "printer");
    let token = spent.grant.unverified().unwrap().token;
    let used = registry.tokens.iter().find(|used| used.token == token);
    assert_eq!(used.map(|used| used.used), Some(1), "also of who has gone");
    assert!(registry.counts);
    let statement = Signed::<RootStatement>::from_base64(&registry.statement).unwrap();
    assert_eq!(statement, operator.network_statement);
}
