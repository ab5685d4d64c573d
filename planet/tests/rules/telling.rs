//! What members are told.

use std::time::Duration;

use podmesh_planet::rules::{Action, Input};
use podmesh_proto::network::RootStatement;
use podmesh_proto::planet_api::{DirectoryRecord, NodeMessage, PlanetMessage};
use podmesh_proto::signed::Signed;

use crate::story::{Node, Operator, Stage, Told};

#[test]
fn directory_news_is_a_delta_for_who_knows_the_rest() {
    let mut operator = Operator::new(18);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(200);
    let mut nodes: Vec<Node> = (0..60).map(|n| Node::new(2_000 + n)).collect();
    for (index, node) in nodes.iter_mut().enumerate() {
        stage.connect(node);
        stage.join(node, &token, &format!("n{index}"));
    }
    stage.pass(Duration::from_millis(100));
    let mut reader = nodes.remove(0);
    stage.connect(&mut reader);
    let updates = reader.updates();
    assert!(updates[0].from_start && updates.iter().skip(1).all(|update| !update.from_start));
    let members = |node: &Node| {
        let records = node.heard_records();
        let member = |record: &&DirectoryRecord| matches!(record, DirectoryRecord::Member(_));
        records.iter().filter(member).count()
    };
    assert_eq!(members(&reader), 59);
    reader.cursor = updates.last().map(|update| update.cursor);
    stage.connect(&mut reader);
    assert_eq!(members(&reader), 0, "nothing is told twice");
    let record = nodes[5].endpoints(&operator.network, 1);
    for _ in 0..10 {
        stage.say(&nodes[5], NodeMessage::Publish(record.clone()));
    }
    stage.told(&reader);
    stage.pass(Duration::from_millis(100));
    let told = stage.told(&reader);
    let news: Vec<_> = told
        .iter()
        .filter_map(|told| match told {
            Told::Message(PlanetMessage::Directory(update)) => Some(update.records.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(news, [vec![DirectoryRecord::Endpoints(record)]]);
    stage.restart();
    stage.connect(&mut reader);
    assert_eq!(members(&reader), 59, "another process, another epoch");
}

#[test]
fn the_roots_new_edition_reaches_everybody_and_an_older_one_is_refused() {
    let mut operator = Operator::new(19);
    let mut stage = Stage::fresh(&operator);
    let token = operator.token(1);
    let mut a = Node::new(1);
    stage.connect(&mut a);
    stage.join(&mut a, &token, "a");
    stage.told(&a);
    let old = operator.network_statement.clone();
    operator.ranges(|ranges| ranges.services = vec!["10.43.0.0/16".parse().unwrap()]);
    let new: Signed<RootStatement> = operator.network_statement.clone();
    stage.operator(&new).unwrap();
    assert!(stage.operator(&old).unwrap_err().contains("not newer"));
    assert!(stage.operator(&new).unwrap().contains("known"));
    stage.pass(Duration::from_millis(100));
    let told = stage.told(&a);
    assert!(
        told.iter()
            .any(|told| matches!(told, Told::Message(PlanetMessage::Statement(s)) if **s == new))
    );
    stage.handle(Input::Drain);
    let told = stage.told(&a);
    assert!(matches!(
        told.last(),
        Some(Told::Message(PlanetMessage::Draining { .. }))
    ));
    assert!(
        stage
            .planet
            .poll_action()
            .is_none_or(|action| !matches!(action, Action::Commit(_)))
    );
}
