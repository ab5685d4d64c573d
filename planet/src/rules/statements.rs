//! What the root says: believed, kept and passed on.

use podmesh_proto::id::NodeId;
use podmesh_proto::network::RootStatement;
use podmesh_proto::planet_api::{PlanetMessage, Refusal, RefusalCode};
use podmesh_proto::signed::Signed;
use podmesh_proto::time::Now;

use crate::rules::commits::Then;
use crate::rules::records::{Change, Record, edition};
use crate::rules::refusal::refuse;
use crate::rules::{Action, ConnectionId, Event, Planet};

impl Planet {
    /// What follows from a statement; nothing if it is known already.
    pub(super) fn judge_statement(
        &self,
        statement: &Signed<RootStatement>,
    ) -> Result<(Vec<Change>, Event), Refusal> {
        let said = self
            .books
            .network
            .verify(statement)
            .map_err(|error| refuse(RefusalCode::Unproven, error))?;
        let known = Ok((Vec::new(), Event::Statement(kind(&said))));
        if let RootStatement::Network(network) = &said {
            let present = self.books.network.version;
            if *statement == self.books.network_statement {
                return known;
            }
            if *network == self.books.network {
                return known;
            }
            if network.version <= present {
                return Err(refuse(
                    RefusalCode::Invalid,
                    stale(network.version, present),
                ));
            }
            let known = (Some(&self.books.network), self.books.unknown_uses());
            let changes =
                edition(known, statement).map_err(|error| refuse(RefusalCode::Unproven, error))?;
            return Ok((changes, Event::Statement(kind(&said))));
        }
        if self.books.statements().is_over(&statement.hash(), &said) {
            return known;
        }
        let mut changes = vec![Change::Put(Record::Statement(Box::new(statement.clone())))];
        if let RootStatement::RevokeNode { node, .. } = &said {
            changes.extend(self.books.release(&[*node]));
        }
        Ok((changes, Event::Statement(kind(&said))))
    }

    /// A statement by way of a node: what it already holds, it holds, whoever else wants the same.
    pub(super) fn node_says(
        &mut self,
        connection: ConnectionId,
        node: NodeId,
        statement: &Signed<RootStatement>,
        now: Now,
    ) {
        if self.books.statements().get(&statement.hash()).is_some() {
            return;
        }
        let allowance = self.allowances.of(node, now.moment);
        if !allowance.statements.take(1, now.moment) {
            // What the node holds is asked for when it is compared.
            self.compare_later(now);
            return;
        }
        match self.judge_statement(statement) {
            Ok((changes, _)) if changes.is_empty() => {}
            Ok((changes, what)) => {
                self.apply(&changes, now);
                let happened = || vec![Then::Do(Action::Happened(what.clone()))];
                self.remember(changes, happened(), happened());
            }
            Err(refusal) => {
                self.compare_edition(connection, node, statement);
                self.refused(connection, node, refusal);
            }
        }
    }

    /// A member whose edition of the network is not this planet's gets to know that there is another.
    fn compare_edition(
        &mut self,
        connection: ConnectionId,
        node: NodeId,
        statement: &Signed<RootStatement>,
    ) {
        if !self.may_ask(connection) {
            return;
        }
        let Ok(RootStatement::Network(theirs)) = self.books.network.verify(statement) else {
            return;
        };
        if theirs.version == self.books.network.version {
            let who = self.name_of(&node);
            let who = who.map_or_else(|| format!("node {}", node.short()), |name| name.to_string());
            let edition = theirs.version;
            self.other_edition = Some(OtherEdition { edition, who });
        }
        let network = Box::new(self.books.network_statement.clone());
        self.send(connection, PlanetMessage::Statement(network));
    }

    /// Connections that hear what the root says.
    fn listeners(&self) -> usize {
        let all = self.connections.values();
        all.filter(|connection| connection.told.is_some()).count()
    }

    /// What is wrong with what the root has said, as sentences for people.
    pub(super) fn remarks(&self) -> Vec<String> {
        let present = self.books.network.version;
        let other = self.other_edition.iter();
        let other = other.filter(|other| other.edition == present).map(|other| {
            format!(
                "{} has another edition {present} of the network, which the root has signed as well; where the \
                 root key is, make a newer one: `meshctl network pull`, then the change that is missing",
                other.who
            )
        });
        let aside = self.books.externals_aside().map(|sentence| {
            format!("{sentence}; name it anew with `meshctl peer add-external`, or remove it")
        });
        other.chain(aside).collect()
    }

    /// What the operator alone is refused: a second holder of what somebody has.
    fn judge_operators_statement(
        &self,
        statement: &Signed<RootStatement>,
    ) -> Result<(Vec<Change>, Event), Refusal> {
        let judged = self.judge_statement(statement)?;
        let books = self.books.statements();
        if let Ok(said) = statement.unverified()
            && let Some(other) = books.overtaken_by(&statement.hash(), &said)
        {
            let reason = format!(
                "{}: it changes nothing, a {} of {} counts",
                kind(&said),
                kind(other),
                other.issued()
            );
            return Err(refuse(RefusalCode::Conflict, reason));
        }
        if let Ok(RootStatement::External(peer)) = statement.unverified()
            && !judged.0.is_empty()
            && let Some((holder, what)) = self.books.held_against(&peer)
        {
            let reason = format!(
                "external peer {} can't have its place: {holder} has {what}; choose a name, key and \
                 addresses that nobody has",
                peer.name
            );
            return Err(refuse(RefusalCode::Conflict, reason));
        }
        Ok(judged)
    }

    /// A statement by way of the operator.
    pub(super) fn operator_says(
        &mut self,
        request: u64,
        statement: &Signed<RootStatement>,
        now: Now,
    ) {
        let answer = |result| Then::Do(Action::Answer { request, result });
        match self.judge_operators_statement(statement) {
            Ok((changes, Event::Statement(kind))) if changes.is_empty() => {
                let result = Ok(format!("{kind}: known already"));
                self.outbox.push_back(Action::Answer { request, result });
            }
            Ok((changes, event)) => {
                let kind = match &event {
                    Event::Statement(kind) => kind,
                    _ => "statement",
                };
                let result = Ok(format!("{kind}: {}", told(self.listeners())));
                self.apply(&changes, now);
                let failed = Err(format!(
                    "{kind}: in force, but the planet can't write it to its disk; free some space"
                ));
                let happened = || Then::Do(Action::Happened(event.clone()));
                let done = vec![happened(), answer(result)];
                self.remember(changes, done, vec![happened(), answer(failed)]);
            }
            Err(refusal) => {
                let result = Err(refusal.reason);
                self.outbox.push_back(Action::Answer { request, result });
            }
        }
    }
}

/// Another document of the root for the edition that this planet has.
pub(super) struct OtherEdition {
    edition: u64,
    who: String,
}

fn stale(given: u64, present: u64) -> String {
    if given < present {
        format!(
            "this is edition {given} of the network, and the planet has edition {present} already"
        )
    } else {
        format!(
            "the planet has another edition {present} of the network, which the root has signed as well; \
             nothing was changed"
        )
    }
}

/// Who hears of a statement, in words.
fn told(count: usize) -> String {
    match count {
        0 => "kept; no member is connected here, so nobody has been told yet: this planet tells each that \
              connects, or hand it to a node as well, with `meshctl network publish` there"
            .to_owned(),
        1 => "kept, and told to 1 connected node".to_owned(),
        _ => format!("kept, and told to {count} connected nodes"),
    }
}

fn kind(said: &RootStatement) -> &'static str {
    match said {
        RootStatement::Network(_) => "new edition of the network",
        RootStatement::RevokeNode { .. } => "revocation of a node",
        RootStatement::RevokeToken { .. } => "revocation of a join token",
        RootStatement::External(_) => "external peer",
        RootStatement::RevokeExternal { .. } => "revocation of an external peer",
        RootStatement::Resolve { .. } => "resolution of a conflict",
    }
}
