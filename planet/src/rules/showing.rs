//! What a planet shows a node about itself when it doesn't take it for what it says: its disk may have gone
//! back, or it was away. Each of these documents proves itself, so that the node needn't believe the planet.

use podmesh_proto::certificate::{Departure, Membership};
use podmesh_proto::id::NodeId;
use podmesh_proto::network::RootStatement;
use podmesh_proto::planet_api::{
    DirectoryRecord, DirectoryUpdate, HELLO_CONTEXT, Hello, PlanetMessage, RefusalCode,
};
use podmesh_proto::signed::Signed;
use podmesh_proto::statements::Subject;
use podmesh_proto::time::Now;

use crate::rules::refusal::refuse;
use crate::rules::{ConnectionId, Planet};

impl Planet {
    /// Shows a node its own word that the membership which it shows is over.
    pub(super) fn show_departure(&mut self, connection: ConnectionId, shown: &Membership) {
        let Ok(receipt) = shown.receipt.unverified() else {
            return;
        };
        let departure = self.books.departure(&receipt.node);
        let ends = |departure: &&Signed<Departure>| {
            let left = departure.unverified();
            left.is_ok_and(|left| left.time >= receipt.time)
        };
        if let Some(departure) = departure.filter(ends).cloned() {
            self.show(connection, DirectoryRecord::Left(departure));
        }
    }

    /// Tells a node whose time is over by this planet's clock, which the node may not know.
    pub(super) fn say_who_is_over(&mut self, connection: ConnectionId, hello: &Hello, now: Now) {
        let entry = self.books.entry(&hello.node);
        let member = entry.and_then(|entry| entry.member.as_ref());
        let Some(at) = member.and_then(|member| member.expires) else {
            return;
        };
        let reason = format!(
            "the membership ended at {at}, and this planet's clock says {}",
            now.unix
        );
        let refusal = refuse(RefusalCode::NotMember, reason);
        self.send(connection, PlanetMessage::Refused(refusal));
    }

    /// Shows a node why the root has put it out: the revocation, or who has its place.
    pub(super) fn show_why_out(&mut self, connection: ConnectionId, node: &NodeId) {
        let statements = self.books.statements();
        let about = statements.about(Subject::Node(*node));
        let about = about.and_then(|hash| statements.get(hash));
        let revocation = about.filter(|kept| matches!(kept.said, RootStatement::RevokeNode { .. }));
        if let Some(kept) = revocation {
            let statement = Box::new(kept.signed.clone());
            return self.send(connection, PlanetMessage::Statement(statement));
        }
        let by = self.books.replaced_by(node);
        let by = by.and_then(|by| self.books.entry(by)?.membership());
        if let Some(membership) = by {
            self.show(connection, DirectoryRecord::Member(Box::new(membership)));
        }
    }

    /// Shows a node that proves an identity of its own which it has replaced the membership that says so.
    pub(super) fn show_successor(&mut self, connection: ConnectionId, hello: &Hello) {
        let Some(exported) = self.connections.get(&connection).map(|one| &one.exported) else {
            return;
        };
        let entry = self.books.entry(&hello.node);
        let member = entry.and_then(|entry| entry.member.as_ref());
        let mut former = member.iter().flat_map(|member| &member.identities);
        if !former.any(|key| key.verifies(HELLO_CONTEXT, exported, &hello.proof)) {
            return;
        }
        if let Some(membership) = entry.and_then(|entry| entry.membership()) {
            self.show(connection, DirectoryRecord::Member(Box::new(membership)));
        }
    }

    /// Shows a node its own membership where it was admitted anew since the one that it shows, or where that is
    /// another one and its time is over: then no directory tells it what it has become.
    pub(super) fn show_later_state(&mut self, connection: ConnectionId, hello: &Hello, now: Now) {
        let entry = self.books.entry(&hello.node);
        let Some((entry, shown)) = entry.zip(hello.membership.as_ref()) else {
            return;
        };
        let anew = shown.application.certificate.hash() != entry.receipt.certificate;
        let over = self.books.member(&hello.node, now.unix).is_none();
        let other = |known: &Membership| anew || (over && *known != **shown);
        if let Some(membership) = entry.membership().filter(other) {
            self.show(connection, DirectoryRecord::Member(Box::new(membership)));
        }
    }

    /// Says it beside the directory: how far the node knows that stays as it is.
    fn show(&mut self, connection: ConnectionId, record: DirectoryRecord) {
        let Some(known) = self.connections.get(&connection) else {
            return;
        };
        let told = known.told.map(|told| self.directory.at(told.version));
        let update = DirectoryUpdate {
            cursor: told.or(known.cursor).unwrap_or(self.directory.at(0)),
            from_start: false,
            records: vec![record],
        };
        self.send(connection, PlanetMessage::Directory(update));
    }
}
