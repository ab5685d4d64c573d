//! What nodes ask, one function per message.

use std::time::Duration;

use podmesh_proto::candidate::EndpointRecord;
use podmesh_proto::certificate::{Application, Claim, Departure};
use podmesh_proto::frame;
use podmesh_proto::id::NodeId;
use podmesh_proto::key::VerifyingKey;
use podmesh_proto::limits::MAX_RECORDS_PER_UPDATE;
use podmesh_proto::planet_api::{
    DirectoryRecord, DirectoryUpdate, NodeMessage, PlanetMessage, Refusal, RefusalCode,
};
use podmesh_proto::signed::Signed;
use podmesh_proto::time::Now;

use crate::rules::admission::Court;
use crate::rules::allowance::{PAUSE, PETITION, work_of};
use crate::rules::commits::Then;
use crate::rules::directory::Topic;
use crate::rules::introductions;
use crate::rules::records::{Change, Record};
use crate::rules::refusal::{not_now, refuse};
use crate::rules::{Action, ConnectionId, Event, Planet};

/// Bytes of the largest endpoint record: sixteen candidates and eight planets fit.
const MAX_ENDPOINTS: usize = 2 * 1024;

impl Planet {
    pub(super) fn message(&mut self, connection: ConnectionId, message: NodeMessage, now: Now) {
        let Some(known) = self.connections.get_mut(&connection) else {
            return;
        };
        known.heard = now.moment;
        let node = match (&message, known.node) {
            (NodeMessage::Hello(hello), None) => {
                self.hello(connection, hello, now);
                return;
            }
            (NodeMessage::Hello(_), Some(_)) | (_, None) => {
                self.close(connection, "out of order", now);
                return;
            }
            (_, Some(node)) => node,
        };
        let allowance = self.allowances.of(node, now.moment);
        if !allowance.messages.take(1, now.moment) {
            self.close(connection, "too many messages", now);
            return;
        }
        if !allowance.work.take(work_of(&message), now.moment) {
            self.too_much(connection, &message);
            return;
        }
        if !self.may_petition(connection, &message, now) {
            let wait = Duration::from_secs(PETITION);
            let reason = "the planet hears a stranger once in two seconds";
            let refusal = not_now(RefusalCode::Busy, reason, wait);
            self.send(connection, PlanetMessage::Refused(refusal));
            return;
        }
        match message {
            NodeMessage::Hello(_) | NodeMessage::Heartbeat => {}
            NodeMessage::Join(application) => self.join(connection, node, &application, now),
            NodeMessage::Claim(claim) => self.claim(connection, node, &claim, now),
            NodeMessage::Publish(record) => self.publish(connection, node, record, now),
            NodeMessage::Introduce { peer, attempt } => {
                self.introduce(connection, (node, peer), attempt, now);
            }
            NodeMessage::Statement(statement) => {
                self.node_says(connection, node, &statement, now);
            }
            NodeMessage::Report { memberships } => {
                let few = memberships.len() <= MAX_RECORDS_PER_UPDATE;
                if few && self.may_ask(connection) {
                    self.report(connection, node, &memberships, now);
                }
            }
            NodeMessage::Leave(departure) => self.leave(connection, node, departure),
            NodeMessage::Renew(request) => self.renew(connection, node, *request, now),
            NodeMessage::Membership(membership) => self.shown(node, &membership, now),
            NodeMessage::Held(held) => self.node_holds(connection, &held, now),
            NodeMessage::Statements(statements) => {
                self.node_tells(connection, node, &statements, now);
            }
        }
    }

    fn join(
        &mut self,
        connection: ConnectionId,
        node: NodeId,
        application: &Application,
        now: Now,
    ) {
        if !self.is_arbiter() {
            // Whoever holds a token of this network may know where its planets are now.
            if application.verify(&self.books.network).is_ok() {
                let network = Box::new(self.books.network_statement.clone());
                self.send(connection, PlanetMessage::Statement(network));
            }
            self.refused(connection, node, self.not_arbiter());
            return;
        }
        let granting = self.may_grant(now);
        let court = self.court(now);
        match court.admit(&node, application, granting) {
            Ok(admitted) => {
                let answer = PlanetMessage::Admitted(admitted.receipt);
                self.grant(connection, node, (admitted.changes, answer), now);
            }
            Err(refusal) => self.refused(connection, node, refusal),
        }
    }

    fn claim(&mut self, connection: ConnectionId, node: NodeId, claim: &Signed<Claim>, now: Now) {
        if !self.is_arbiter() {
            self.refused(connection, node, self.not_arbiter());
            return;
        }
        let granting = self.may_grant(now);
        let court = self.court(now);
        match court.claim(&node, claim, granting) {
            Ok(claimed) if !self.may_claim(node, &claimed.changes, now) => {
                let reason = "the last claims of this node are seconds old";
                let wait = Duration::from_secs(PAUSE);
                self.refused(connection, node, not_now(RefusalCode::Busy, reason, wait));
            }
            Ok(claimed) => {
                let answer = PlanetMessage::Claimed(claimed.receipt);
                self.grant(connection, node, (claimed.changes, answer), now);
            }
            Err(refusal) => self.refused(connection, node, refusal),
        }
    }

    /// Each claim is written to disk and told to everybody; who only asks again costs nothing.
    fn may_claim(&mut self, node: NodeId, changes: &[Change], now: Now) -> bool {
        let allowance = self.allowances.of(node, now.moment);
        changes.is_empty() || allowance.claims.take(PAUSE, now.moment)
    }

    /// Lets the answer out once what it says is durable.
    fn grant(
        &mut self,
        connection: ConnectionId,
        node: NodeId,
        (mut changes, answer): (Vec<Change>, PlanetMessage),
        now: Now,
    ) {
        let claimed = matches!(answer, PlanetMessage::Claimed(_));
        let send = |message| {
            Then::Do(Action::Send {
                connection,
                message: Box::new(message),
            })
        };
        if changes.is_empty() {
            self.send(connection, answer);
            return;
        }
        changes.extend(self.relearning.conclude(self.ahead()));
        let mut then = vec![send(answer)];
        let name = self
            .name_of(&node)
            .filter(|_| claimed && self.may_log(node, now));
        then.extend(name.map(|name| Then::Do(Action::Happened(Event::Member(node, name)))));
        let reason = "the planet can't write to its disk and grants nothing until it can";
        let refusal = not_now(RefusalCode::Busy, reason, Duration::from_secs(10));
        self.transact(changes, then, vec![send(PlanetMessage::Refused(refusal))]);
    }

    pub(super) fn court(&self, now: Now) -> Court<'_> {
        let books = self.ahead();
        Court {
            books,
            key: &self.key,
            next: books.accounted().highest().checked_add(1),
            now: now.unix,
        }
    }

    fn publish(
        &mut self,
        connection: ConnectionId,
        node: NodeId,
        signed: Signed<EndpointRecord>,
        now: Now,
    ) {
        if !self.may_ask(connection) {
            let reason = "only members may publish where they are";
            self.refused(connection, node, refuse(RefusalCode::NotMember, reason));
            return;
        }
        let allowance = self.allowances.of(node, now.moment);
        if !allowance.records.take(PAUSE, now.moment) {
            // The newest one of those that come too early is taken when there is time.
            if signed.size() <= MAX_ENDPOINTS && is_newest(&signed, allowance.late.as_ref()) {
                allowance.late = Some(signed);
            }
            return;
        }
        allowance.late = None;
        let told = signed.clone();
        if !self.take_record(node, signed, now) {
            let reason = "the endpoint record is not this node's, or too long";
            self.refused(connection, node, refuse(RefusalCode::Invalid, reason));
            return;
        }
        self.show_other_record(connection, node, &told);
    }

    /// Takes a record that came too early, and says so if another word of the node's is believed.
    pub(super) fn take_late_record(
        &mut self,
        node: NodeId,
        signed: Signed<EndpointRecord>,
        now: Now,
    ) {
        let told = signed.clone();
        if self.take_record(node, signed, now)
            && let Some(connection) = self.online.get(&node).copied()
        {
            self.show_other_record(connection, node, &told);
        }
    }

    /// Whether the last record of a node that is connected is of a later life than the one that is: then
    /// the node's identity has been on another machine, or its disk and its clock have gone back. Nobody
    /// takes its word until it knows.
    pub(super) fn has_later_life(&self, node: &NodeId) -> bool {
        let connection = self
            .online
            .get(node)
            .and_then(|id| self.connections.get(id));
        let known = self.endpoints.get(node);
        connection
            .zip(known)
            .is_some_and(|(connection, (_, known))| known.incarnation > connection.incarnation)
    }

    /// Shows a node the other word of its own that is believed in the place of its present one.
    fn show_other_record(
        &mut self,
        connection: ConnectionId,
        node: NodeId,
        told: &Signed<EndpointRecord>,
    ) {
        let Some((believed, _)) = self.endpoints.get(&node) else {
            return;
        };
        if believed == told {
            return;
        }
        let version = self
            .connections
            .get(&connection)
            .and_then(|known| known.told);
        let Some(told) = version.filter(|told| !told.from_start) else {
            return;
        };
        let update = DirectoryUpdate {
            cursor: self.directory.at(told.version),
            from_start: false,
            records: vec![DirectoryRecord::Endpoints(believed.clone())],
        };
        self.send(connection, PlanetMessage::Directory(update));
    }

    /// Takes a node's word where it may be reached; `false` if it is none.
    pub(super) fn take_record(
        &mut self,
        node: NodeId,
        signed: Signed<EndpointRecord>,
        now: Now,
    ) -> bool {
        if self.books.member(&node, now.unix).is_none() {
            return false;
        }
        let short =
            frame::encode(&signed, "record").is_ok_and(|bytes| bytes.len() <= MAX_ENDPOINTS);
        let identity = self.identity_of(&node);
        let record = EndpointRecord::verify(&signed, self.books.network.id, &identity)
            .ok()
            .filter(|record| short && record.node == node);
        let Some(record) = record else {
            return false;
        };
        let known = self.endpoints.get(&node);
        if known.is_none_or(|(_, known)| record.is_newer_than(known)) {
            self.endpoints.insert(node, (signed, record));
            self.news(Topic::Endpoints(node), now.moment);
        }
        true
    }

    fn introduce(
        &mut self,
        connection: ConnectionId,
        (node, peer): (NodeId, NodeId),
        attempt: u32,
        now: Now,
    ) {
        if !self.may_ask(connection) || node == peer {
            let reason = "only members may be introduced to each other";
            self.refused(connection, node, refuse(RefusalCode::NotMember, reason));
            return;
        }
        let Some(known) = self.connections.get(&connection) else {
            return;
        };
        let here = known.rtt;
        let allowance = self.allowances.of(node, now.moment);
        if !allowance.introductions.take(1, now.moment) {
            let reason = "too many introductions at once";
            let refusal = not_now(RefusalCode::Busy, reason, Duration::from_secs(1));
            self.refused(connection, node, refusal);
            return;
        }
        // Whether the peer is connected is no secret among members: their directory says so.
        let Some(there) = self
            .online
            .get(&peer)
            .copied()
            .filter(|peer| self.may_ask(*peer))
        else {
            return;
        };
        let Some(rtt) = self.connections.get(&there).map(|peer| peer.rtt) else {
            return;
        };
        if !self.introductions.allow(node, peer, now.moment) {
            return;
        }
        // Who is told to punch must know where: news may still be gathered. Who is told more than fits one
        // portion hears of it in its turn.
        for to in [connection, there] {
            let known = self.connections.get(&to);
            if known.is_some_and(|known| !known.is_behind) {
                self.tell(to, now);
            }
        }
        let (wait_here, wait_there) = introductions::waits(here, rtt);
        for (to, peer, fire_in) in [(connection, peer, wait_here), (there, node, wait_there)] {
            let punch = PlanetMessage::Punch {
                peer,
                attempt,
                fire_in,
            };
            self.send(to, punch);
        }
    }

    /// A departure, from the node itself, perhaps by a later identity than the one that it is known by, or
    /// passed on by a member.
    fn leave(&mut self, connection: ConnectionId, sender: NodeId, signed: Signed<Departure>) {
        let departure = Departure::verify(&signed, self.books.network.id).ok();
        let own = VerifyingKey::from(sender);
        let departure = departure
            .filter(|(of, by)| match self.ahead().entry(&of.node) {
                Some(entry) => entry.goes_on_as(by),
                None => true,
            })
            .filter(|(_, by)| {
                // By whichever of its identities it has come: the newest one has signed.
                by.contains(&own) || self.may_ask(connection)
            });
        let Some((Departure { node, time, .. }, _)) = departure else {
            let reason = "the departure is not its node's own, or not passed on by a member";
            self.refused(connection, sender, refuse(RefusalCode::Unproven, reason));
            return;
        };
        // Known already, or over: the node has come back since.
        let Some(entry) = self
            .ahead()
            .entry(&node)
            .filter(|entry| entry.receipt.time <= time)
        else {
            return;
        };
        let name = entry.certificate.name.clone();
        let mut changes = self.ahead().release(&[node]);
        changes.push(Change::Put(Record::Departure(signed)));
        let mut then = vec![Then::Do(Action::Happened(Event::Left(node, name)))];
        // The end of the connection tells the node that its departure is on disk.
        let own = (sender == node).then_some(connection);
        then.extend(own.or(self.online.get(&node).copied()).map(Then::Dismiss));
        let reason = "the planet can't write to its disk; leave again when it can";
        let refusal = not_now(RefusalCode::Busy, reason, Duration::from_secs(10));
        let refused = Then::Do(Action::Send {
            connection,
            message: Box::new(PlanetMessage::Refused(refusal)),
        });
        self.transact(changes, then, vec![refused]);
    }

    /// Whether the planet looks at a message: a member's always, a stranger's once in a while.
    fn may_petition(&mut self, connection: ConnectionId, message: &NodeMessage, now: Now) -> bool {
        if matches!(message, NodeMessage::Heartbeat) || self.may_ask(connection) {
            return true;
        }
        let node = self
            .connections
            .get(&connection)
            .and_then(|known| known.node);
        node.is_some_and(|node| {
            let allowance = self.allowances.of(node, now.moment);
            allowance.petitions.take(PETITION, now.moment)
        })
    }

    /// Answers who asks for more than its allowance.
    fn too_much(&mut self, connection: ConnectionId, message: &NodeMessage) {
        let reason = "this node asks for more than a planet does for one node";
        let refusal = not_now(RefusalCode::Busy, reason, Duration::from_secs(PAUSE));
        let answer = match message {
            NodeMessage::Renew(_) => PlanetMessage::NotRenewed(refusal),
            _ => PlanetMessage::Refused(refusal),
        };
        self.send(connection, answer);
    }

    /// Whether a connection has what only members have.
    pub(super) fn may_ask(&self, connection: ConnectionId) -> bool {
        let known = self.connections.get(&connection);
        known.is_some_and(|known| known.told.is_some())
    }

    pub(super) fn refused(&mut self, connection: ConnectionId, node: NodeId, refusal: Refusal) {
        self.send(connection, PlanetMessage::Refused(refusal.clone()));
        self.note(Event::Refused(node, refusal));
    }

    fn not_arbiter(&self) -> Refusal {
        let first = self.books.network.planets.first();
        let reason = first.map_or_else(
            || "this network has no planet".to_owned(),
            |first| {
                format!(
                    "planet {} at {} gives the leases; ask it",
                    first.name, first.address
                )
            },
        );
        refuse(RefusalCode::NotArbiter, reason)
    }
}

/// Whether a node's record is newer than one that waits: two machines of one identity take turns.
fn is_newest(signed: &Signed<EndpointRecord>, waiting: Option<&Signed<EndpointRecord>>) -> bool {
    let waiting = waiting.and_then(|waiting| waiting.unverified().ok());
    waiting.is_none_or(|waiting| {
        signed
            .unverified()
            .is_ok_and(|record| !waiting.is_newer_than(&record))
    })
}
