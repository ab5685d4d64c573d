//! Uses of join tokens that were spent by members of whom the planet never heard.

use std::time::Duration;

use podmesh_planet::rules::records::Origin;
use podmesh_proto::planet_api::{NodeMessage, RefusalCode};
use podmesh_proto::token::JoinToken;

use crate::code;
use crate::relearning::new_token;
use crate::story::{Node, Operator, Stage};

/// Node 1 has joined last, with the one use of a token, and has left; node 2 is a member.
fn spent_and_gone(operator: &mut Operator, stage: &mut Stage) -> (JoinToken, Node) {
    let (spent, other) = (operator.token(1), operator.token(9));
    let (mut gone, mut witness) = (Node::new(1), Node::new(2));
    for (node, token) in [(&mut witness, &other), (&mut gone, &spent)] {
        stage.connect(node);
        stage.join(node, token, &format!("n{}", token.key.public().0[0]));
    }
    let departure = gone.departure(&operator.network, stage.now.unix);
    stage.say(&gone, NodeMessage::Leave(departure));
    (spent, witness)
}

/// A node that nobody knows tries `token`.
fn answer_to(stage: &mut Stage, token: &JoinToken) -> Option<RefusalCode> {
    let mut other = Node::new(3);
    stage.connect(&mut other);
    let join = other.application(token, "other", stage.now.unix);
    code(&stage.ask(&other, NodeMessage::Join(Box::new(join))))
}

/// Starts with what there is, and hears all that the witness knows.
fn relearn_from(stage: &mut Stage, witness: &mut Node) {
    witness.sequence = witness.highest();
    stage.connect(witness);
    stage.report(witness, &[]);
    stage.pass(Duration::from_secs(36));
}

/// Whether the planet remembers, in this life and the next, that the token may be spent, and takes another one.
fn is_refused_for_good(
    operator: &mut Operator,
    stage: &mut Stage,
    (spent, witness): (&JoinToken, &mut Node),
) {
    for _ in 0..2 {
        relearn_from(stage, witness);
        assert_eq!(answer_to(stage, spent), Some(RefusalCode::TokenUsedUp));
        stage.restart();
    }
    relearn_from(stage, witness);
    let new = new_token(operator, stage, 1);
    assert_eq!(answer_to(stage, &new), None);
}

#[test]
fn a_use_stays_spent_where_the_books_were_lost() {
    let mut operator = Operator::new(41);
    let mut stage = Stage::fresh(&operator);
    let (spent, mut witness) = spent_and_gone(&mut operator, &mut stage);
    stage.lose(Origin::Lost);
    is_refused_for_good(&mut operator, &mut stage, (&spent, &mut witness));
}

#[test]
fn a_use_stays_spent_where_the_backup_is_older() {
    let mut operator = Operator::new(42);
    let mut stage = Stage::fresh(&operator);
    let backup = stage.backup();
    let (spent, mut witness) = spent_and_gone(&mut operator, &mut stage);
    stage.restore(backup);
    is_refused_for_good(&mut operator, &mut stage, (&spent, &mut witness));
}

#[test]
fn a_use_stays_spent_where_another_planet_takes_over() {
    let mut operator = Operator::new(43);
    let mut stage = Stage::fresh(&operator);
    let backup = stage.backup();
    let (spent, mut witness) = spent_and_gone(&mut operator, &mut stage);
    // The same planet with the same books, as one that was the second planet meanwhile.
    stage.restore_as(backup, Origin::Fresh);
    operator.add_planet_in_front();
    stage.operator(&operator.network_statement).unwrap();
    operator.retire_first_planet(stage.now.unix);
    stage.operator(&operator.network_statement).unwrap();
    is_refused_for_good(&mut operator, &mut stage, (&spent, &mut witness));
}

#[test]
fn a_use_stays_spent_where_a_member_shows_that_others_have_gone() {
    let mut operator = Operator::new(44);
    let mut stage = Stage::fresh(&operator);
    let backup = stage.backup();
    let (spent, mut witness) = spent_and_gone(&mut operator, &mut stage);
    let leases = witness.leases();
    stage.claim(&mut witness, 2, &leases);
    // Its disk went back without anybody's word.
    stage.restore_as(backup, Origin::Fresh);
    is_refused_for_good(&mut operator, &mut stage, (&spent, &mut witness));
}
