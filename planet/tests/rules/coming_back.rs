//! Who comes back finds its addresses again, and others get them last.

use std::time::Duration;

use ipnet::IpNet;
use podmesh_proto::certificate::Leases;
use podmesh_proto::planet_api::{NodeMessage, PlanetMessage};

use crate::story::{Node, Operator, Stage, Told};
use crate::{assert_single_owners, closed};

fn leases(node: &Node) -> Leases {
    let receipt = node.receipt.as_ref().unwrap();
    receipt.unverified().unwrap().leases
}

fn prefix(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn leave(stage: &mut Stage, operator: &Operator, node: &mut Node) {
    // A planet hears one node at a measured pace.
    stage.pass(Duration::from_secs(5));
    stage.connect(node);
    let departure = node.departure(&operator.network, stage.now.unix);
    assert!(closed(&stage.ask(node, NodeMessage::Leave(departure))));
    stage.pass(Duration::from_secs(120));
}

#[test]
fn who_left_or_was_put_out_finds_its_leases_again_be_it_with_new_keys() {
    let mut operator = Operator::new(21);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(99);
    let mut nodes: Vec<Node> = (1..=3).map(Node::new).collect();
    for (node, name) in nodes.iter_mut().zip(["a", "b", "c"]) {
        stage.connect(node);
        stage.join(node, &token, name);
    }
    let [a, b, c] = &mut nodes[..] else {
        panic!("three nodes");
    };
    let (of_a, of_b, of_c) = (leases(a), leases(b), leases(c));
    leave(&mut stage, &operator, a);
    leave(&mut stage, &operator, b);
    stage.operator(&operator.revoke_node(c)).unwrap();
    let mut stranger = Node::new(4);
    stage.connect(&mut stranger);
    stage.join(&mut stranger, &token, "d");
    stage.restart();
    stage.pass(Duration::from_secs(60));
    // With its keys, also under another name; with new keys by its name.
    let (mut new_b, mut new_c) = (Node::new(12), Node::new(13));
    for (node, name, held) in [
        (&mut *a, "other", &of_a),
        (&mut new_b, "b", &of_b),
        (&mut new_c, "c", &of_c),
    ] {
        stage.connect(node);
        stage.join(node, &token, name);
        assert_eq!(leases(node), *held, "{name}");
    }
    assert_single_owners(&[a, &new_b, &new_c, &stranger]);
    // The former holder of a name has come too late, and finds others' addresses taken.
    stage.connect(b);
    stage.join(b, &token, "late");
    assert_single_owners(&[a, b, &new_b, &new_c, &stranger]);
}

#[test]
fn what_was_given_up_goes_to_others_last_and_the_oldest_of_it_first() {
    let mut operator = Operator::new(22);
    let mut stage = Stage::fresh(&operator);
    operator.ranges(|ranges| ranges.pods4 = "10.42.0.0/21".parse().unwrap());
    stage.operator(&operator.network_statement.clone()).unwrap();
    let token = operator.token(99);
    let mut nodes: Vec<Node> = (1..=4).map(Node::new).collect();
    for (number, node) in nodes.iter_mut().enumerate() {
        stage.connect(node);
        stage.join(node, &token, &format!("n{number}"));
    }
    for index in [2, 3, 1] {
        leave(&mut stage, &operator, &mut nodes[index]);
    }
    // The four blocks that nobody had, then those that were left, in that order.
    let mut given = Vec::new();
    for number in 10..17 {
        let mut node = Node::new(number);
        stage.connect(&mut node);
        stage.join(&mut node, &token, &format!("n{number}"));
        given.push(leases(&node).pods4.unwrap().to_string());
    }
    let expected = [4, 5, 6, 7, 2, 3, 1].map(|third| format!("10.42.{third}.0/24"));
    assert_eq!(given, expected);
    // Its range is another's by now; its address isn't.
    let held = leases(&nodes[3]);
    stage.connect(&mut nodes[3]);
    assert!(
        !stage.try_join(&mut nodes[3], &token, "n3"),
        "no range is left"
    );
    let of_first = leases(&nodes[0]);
    leave(&mut stage, &operator, &mut nodes[0]);
    stage.connect(&mut nodes[3]);
    stage.join(&mut nodes[3], &token, "n3");
    let again = leases(&nodes[3]);
    assert_eq!(again.pods4, of_first.pods4);
    assert_eq!((again.overlay4, again.pods6), (held.overlay4, held.pods6));
}

#[test]
fn a_token_that_allows_another_range_moves_what_it_has_to_and_nothing_else() {
    let mut operator = Operator::new(23);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(99);
    let mut node = Node::new(1);
    stage.connect(&mut node);
    stage.join(&mut node, &token, "a");
    let before = leases(&node);
    let ranges = &operator.network.ranges;
    let others = [IpNet::V4(ranges.overlay4), IpNet::V6(ranges.pods6)];
    let narrow = operator.token_with(|grant| {
        grant.ranges = vec![prefix("10.42.128.0/17")];
        grant.ranges.extend(others);
    });
    stage.pass(Duration::from_secs(120));
    stage.connect(&mut node);
    let application = Box::new(node.application(&narrow, "a", stage.now.unix));
    let answers = stage.ask(&node, NodeMessage::Join(application.clone()));
    let receipt = answers.into_iter().find_map(|told| match told {
        Told::Message(PlanetMessage::Admitted(receipt)) => Some(receipt),
        _ => None,
    });
    (node.application, node.receipt) = (Some(*application), receipt);
    let after = leases(&node);
    stage.claim(&mut node, 2, &after);
    assert_eq!(after.pods4.map(IpNet::V4), Some(prefix("10.42.128.0/24")));
    assert_eq!(
        (after.overlay4, after.pods6),
        (before.overlay4, before.pods6)
    );
    // Its pods may stand in the range that it had.
    let only = operator.token_with(|grant| {
        grant.uses = 2;
        grant.ranges = vec![prefix("10.42.0.0/23")];
        grant.ranges.extend(others);
    });
    for (number, expected) in [(2, "10.42.1.0/24"), (3, "10.42.0.0/24")] {
        let mut other = Node::new(number);
        stage.connect(&mut other);
        stage.join(&mut other, &only, &format!("n{number}"));
        let given = leases(&other).pods4.map(IpNet::V4);
        assert_eq!(given, Some(prefix(expected)));
        assert_single_owners(&[&node, &other]);
    }
}

#[test]
fn former_leases_are_bounded() {
    let mut operator = Operator::new(24);
    let mut stage = Stage::fresh(&operator);
    operator.ranges(|ranges| ranges.pods4 = "10.40.0.0/14".parse().unwrap());
    stage.operator(&operator.network_statement.clone()).unwrap();
    let token = operator.token(300);
    let mut first = None;
    for number in 1..=258 {
        let mut node = Node::new(number);
        stage.connect(&mut node);
        stage.join(&mut node, &token, &format!("n{number}"));
        first.get_or_insert_with(|| node.id());
        let departure = node.departure(&operator.network, stage.now.unix);
        assert!(closed(&stage.ask(&node, NodeMessage::Leave(departure))));
    }
    for books in [stage.planet.books(), &stage.books_on_disk()] {
        assert_eq!(books.given_up().len(), 256);
        let of_first = books.former_leases(&first.unwrap(), &"n1".parse().unwrap());
        assert_eq!(of_first, None, "the oldest went");
    }
}
