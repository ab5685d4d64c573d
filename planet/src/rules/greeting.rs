//! The beginning of a connection: who is there, and what it may hear.

use std::time::Duration;

use podmesh_proto::certificate::Member;
use podmesh_proto::id::NodeId;
use podmesh_proto::key::VerifyingKey;
use podmesh_proto::planet_api::{
    HELLO_CONTEXT, Hello, OLDEST_PROTOCOL, PROTOCOL, PlanetMessage, RefusalCode, Welcome,
};
use podmesh_proto::relayed::RelayGrant;
use podmesh_proto::renewal::Standing;
use podmesh_proto::time::Now;

use crate::rules::allowance::{LINE, PAUSE};
use crate::rules::commits::Then;
use crate::rules::directory::Topic;
use crate::rules::records::{Change, Record, RecordKey};
use crate::rules::refusal::{not_now, refuse};
use crate::rules::{Action, ConnectionId, Event, HELLO_DEADLINE, Planet, Told};

/// Characters of a node's program and version that are kept for people.
const MAX_SOFTWARE: usize = 64;
/// Seconds by which a clock goes back in one step when somebody sets it.
const CLOCK_STEP: u64 = 10;

impl Planet {
    pub(super) fn hello(&mut self, connection: ConnectionId, hello: &Hello, now: Now) {
        let identity = self.shown_identity(hello);
        let Some(known) = self.connections.get_mut(&connection) else {
            return;
        };
        let code = if !(OLDEST_PROTOCOL..=PROTOCOL).contains(&hello.protocol) {
            Some((
                RefusalCode::Protocol,
                "this planet speaks another version of the protocol",
            ))
        } else if hello.network != self.books.network.id {
            Some((
                RefusalCode::OtherNetwork,
                "this planet serves another network",
            ))
        } else if !identity.verifies(HELLO_CONTEXT, &known.exported, &hello.proof) {
            Some((RefusalCode::Unproven, "the proof of identity does not hold"))
        } else if self.books.is_out(&hello.node) {
            Some((RefusalCode::NodeRevoked, "the root revoked this node"))
        } else {
            None
        };
        if let Some((code, reason)) = code {
            match code {
                RefusalCode::NodeRevoked => self.show_why_out(connection, &hello.node),
                RefusalCode::Unproven => self.show_successor(connection, hello),
                _ => {}
            }
            self.send(connection, PlanetMessage::Refused(refuse(code, reason)));
            self.close(connection, "refused", now);
            return;
        }
        let member = self.books.member(&hello.node, now.unix).is_some();
        let room = member || self.allowances.has_room_for(&hello.node);
        let allowance = room.then(|| self.allowances.of(hello.node, now.moment));
        if !allowance.is_some_and(|allowance| allowance.hellos.take(1, now.moment)) {
            let reason = "this node connects more often than a planet hears one node";
            let refusal = not_now(RefusalCode::Busy, reason, Duration::from_secs(PAUSE));
            self.send(connection, PlanetMessage::Refused(refusal));
            self.close(connection, "too many connections", now);
            return;
        }
        let Some(known) = self.connections.get_mut(&connection) else {
            return;
        };
        known.node = Some(hello.node);
        known.protocol = hello.protocol;
        known.cursor = hello.cursor;
        known.incarnation = hello.incarnation;
        known.sequence = hello.sequence;
        let printable = hello
            .software
            .chars()
            .filter(|c| c.is_ascii_graphic() || *c == ' ');
        known.software = printable.take(MAX_SOFTWARE).collect();
        let life = (hello.incarnation, known.remote);
        self.watch_lives(hello.node, life, now);
        if let Some(former) = self.online.insert(hello.node, connection) {
            self.supersede(former, now);
        }
        self.recognise(connection, hello, now);
    }

    /// The newest identity of a node that the books or its own membership prove. A membership that the
    /// books have gone beyond proves nothing.
    fn shown_identity(&self, hello: &Hello) -> VerifyingKey {
        let known = self
            .books
            .entry(&hello.node)
            .and_then(|entry| entry.member.as_ref());
        let shown = hello.membership.as_ref();
        let shown = shown
            .and_then(|membership| membership.prove(&self.books.network).ok())
            .filter(|shown| shown.node == hello.node)
            .filter(|shown| known.is_none_or(|known| shown.standing(known) == Standing::Newer));
        let newest = shown.as_ref().or(known);
        newest.map_or(hello.node.into(), Member::identity)
    }

    /// A newer connection of the same node takes over.
    fn supersede(&mut self, former: ConnectionId, now: Now) {
        self.close(former, "another connection of the same node", now);
    }

    /// Takes note of the membership that the node shows, then greets it.
    fn recognise(&mut self, connection: ConnectionId, hello: &Hello, now: Now) {
        let mut changes = Vec::new();
        if let Some(membership) = &hello.membership {
            match self.learn(membership, Some(hello.node), now) {
                Ok(learned) => changes = learned,
                Err(reason) => {
                    let refusal = refuse(RefusalCode::NotMember, &reason);
                    self.send(connection, PlanetMessage::Refused(refusal));
                    self.show_departure(connection, membership);
                    self.note(Event::NotLearned(hello.node, reason));
                }
            }
        }
        if self.books.member(&hello.node, now.unix).is_some() {
            self.relearning
                .rumour(hello.node, hello.sequence, &self.books, now.moment);
        } else {
            self.say_who_is_over(connection, hello, now);
        }
        if changes.is_empty() {
            self.greet(connection, now);
            self.show_later_state(connection, hello, now);
        } else {
            let greet = || vec![Then::Greet(connection)];
            self.remember(changes, greet(), greet());
        }
    }

    /// Welcomes a node whose identity is proven; a member also gets a relay session and everything
    /// that it doesn't know yet. Also told to a node that has just become a member.
    pub(super) fn greet(&mut self, connection: ConnectionId, now: Now) {
        let Some(known) = self.connections.get(&connection) else {
            return;
        };
        let Some(node) = known.node else {
            return;
        };
        let (observed, cursor) = (known.remote, known.cursor);
        let member = self
            .books
            .member(&node, now.unix)
            .map(|member| member.name.clone());
        let relay = member.as_ref().map(|_| self.open_session(connection, node));
        let welcome = Welcome {
            planet: self.id(),
            observed,
            relay,
            time: now.unix,
            cursor: self.directory.cursor(),
        };
        self.send(connection, PlanetMessage::Welcome(welcome));
        let Some(name) = member else {
            return;
        };
        let version = self.directory.version_of(cursor);
        if let Some(known) = self.connections.get_mut(&connection) {
            known.told = Some(Told {
                version: version.unwrap_or(0),
                from_start: version.is_none(),
            });
        }
        self.news(Topic::Presence(node), now.moment);
        self.note_of(node, Event::Online(node, name), now);
        self.summarize(connection);
        self.tell(connection, now);
        self.consult(connection, now);
    }

    fn open_session(&mut self, connection: ConnectionId, node: NodeId) -> RelayGrant {
        let key = self.random.bytes();
        let session = loop {
            let number = u32::try_from(self.random.below(1 << 32)).unwrap_or(0);
            let used = self.ending.contains_key(&number)
                || self
                    .connections
                    .values()
                    .any(|other| other.session == Some(number));
            if number != 0 && !used {
                break number;
            }
        };
        let grant = RelayGrant { session, key };
        let known = self.connections.get(&connection);
        self.outbox.extend(known.map(|known| Action::OpenRelay {
            grant: grant.clone(),
            node,
            home: known.remote.ip(),
        }));
        if let Some(known) = self.connections.get_mut(&connection)
            && let Some(former) = known.session.replace(session)
        {
            self.outbox
                .push_back(Action::CloseRelay { session: former });
        }
        grant
    }

    /// Looks after the connections of nodes that `changes` are about.
    pub(super) fn attend(&mut self, changes: &[Change], now: Now) {
        for change in changes {
            let node = match change {
                Change::Put(record) => self.concerned(record),
                Change::Remove(RecordKey::Admission(node) | RecordKey::Claim(node)) => Some(*node),
                Change::Remove(_) => None,
            };
            if let Some(node) = node {
                self.attend_node(node, now);
            }
        }
    }

    fn concerned(&self, record: &Record) -> Option<NodeId> {
        match record {
            Record::Admission(admission) => Some(admission.receipt.unverified().ok()?.node),
            Record::Claim(claim) => Some(claim.receipt.unverified().ok()?.node),
            Record::Renewal(renewed) => Some(renewed.receipt.unverified().ok()?.node),
            Record::Replaced { former, .. } => Some(*former),
            Record::Statement(statement) => match statement.unverified().ok()? {
                podmesh_proto::network::RootStatement::RevokeNode { node, .. } => Some(node),
                _ => None,
            },
            _ => None,
        }
    }

    fn attend_node(&mut self, node: NodeId, now: Now) {
        let connection = self.online.get(&node).copied();
        if self.books.is_out(&node) {
            self.endpoints.remove(&node);
            if let Some(connection) = connection {
                self.demote(connection);
                self.show_why_out(connection, &node);
                let refusal = refuse(RefusalCode::NodeRevoked, "the root revoked this node");
                self.send(connection, PlanetMessage::Refused(refusal));
                self.close(connection, "revoked", now);
                self.note(Event::Out(node));
            }
            return;
        }
        let Some(connection) = connection else {
            return;
        };
        let member = self.books.member(&node, now.unix).is_some();
        let told = self
            .connections
            .get(&connection)
            .and_then(|known| known.told);
        match (member, told) {
            (true, None) => self.greet(connection, now),
            (false, Some(_)) => self.demote(connection),
            _ => {}
        }
    }

    /// Tells everybody again of the members that had ended by a clock that was ahead: whatever was news of
    /// them meanwhile was told to nobody.
    pub(super) fn follow_clock(&mut self, now: Now) {
        let before = std::mem::replace(&mut self.clock, now);
        let passed = now.moment.since(before.moment).as_secs();
        let expected = before.unix.plus(passed);
        if expected.minus(CLOCK_STEP) <= now.unix {
            return;
        }
        let is_back = |node: &&NodeId| {
            self.books.member(node, expected).is_none()
                && self.books.member(node, now.unix).is_some()
        };
        let back: Vec<NodeId> = self
            .books
            .entries()
            .map(|(node, _)| node)
            .filter(is_back)
            .copied()
            .collect();
        for node in back {
            self.news(Topic::Member(node), now.moment);
            self.news(Topic::Endpoints(node), now.moment);
            self.news(Topic::Presence(node), now.moment);
        }
    }

    /// Whoever waits here as a stranger and is a member gets what members have: a clock that was ahead, and is
    /// right again, had ended its membership.
    pub(super) fn greet_members(&mut self, now: Now) {
        let waiting = self.connections.iter().filter(|(_, connection)| {
            let node = connection.node.filter(|_| connection.told.is_none());
            // One that has just come may wait for the disk.
            let waits = now.moment.since(connection.opened) >= HELLO_DEADLINE;
            waits && node.is_some_and(|node| self.books.member(&node, now.unix).is_some())
        });
        let waiting: Vec<ConnectionId> = waiting.map(|(id, _)| *id).collect();
        for connection in waiting {
            self.greet(connection, now);
        }
    }

    /// Ends what only members have.
    pub(super) fn demote(&mut self, connection: ConnectionId) {
        let Some(known) = self.connections.get_mut(&connection) else {
            return;
        };
        known.told = None;
        if let Some(session) = known.session.take() {
            self.outbox.push_back(Action::CloseRelay { session });
        }
    }

    /// Whether a line of the log is left for what a node causes.
    pub(super) fn may_log(&mut self, node: NodeId, now: Now) -> bool {
        let allowance = self.allowances.of(node, now.moment);
        allowance.lines.take(LINE, now.moment)
    }

    /// Notes what a node caused, as long as it doesn't do so all the time.
    pub(super) fn note_of(&mut self, node: NodeId, event: Event, now: Now) {
        if self.may_log(node, now) {
            self.note(event);
        }
    }

    pub(super) fn note(&mut self, event: Event) {
        self.outbox.push_back(Action::Happened(event));
    }
}
