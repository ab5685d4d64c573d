//! What the root says: believed, kept and passed on.

use podmesh_proto::network::RootStatement;
use podmesh_proto::planet_api::{Refusal, RefusalCode};
use podmesh_proto::signed::Signed;
use podmesh_proto::time::Now;

use crate::rules::records::{Change, Record};
use crate::rules::refusal::refuse;
use crate::rules::{Action, Event, Planet, Then};

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
            if network.version <= present {
                let reason = format!(
                    "version {} of the network is not newer than version {present}, which the planet has",
                    network.version
                );
                return Err(refuse(RefusalCode::Invalid, reason));
            }
            let changes = vec![Change::Put(Record::Network(Box::new(statement.clone())))];
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

    /// A statement by way of the operator.
    pub(super) fn operator_says(
        &mut self,
        request: u64,
        statement: &Signed<RootStatement>,
        now: Now,
    ) {
        let answer = |result| Then::Do(Action::Answer { request, result });
        match self.judge_statement(statement) {
            Ok((changes, Event::Statement(kind))) if changes.is_empty() => {
                let result = Ok(format!("{kind}: known already"));
                self.outbox.push_back(Action::Answer { request, result });
            }
            Ok((changes, event)) => {
                let kind = match &event {
                    Event::Statement(kind) => kind,
                    _ => "statement",
                };
                let count = self.online.len();
                let result = Ok(format!("{kind}: kept, and told to {count} connected nodes"));
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
