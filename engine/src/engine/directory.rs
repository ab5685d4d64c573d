//! What planets tell about the members, and what they are told.

use std::ops::Bound;

use podmesh_proto::candidate::EndpointRecord;
use podmesh_proto::certificate::Membership;
use podmesh_proto::error::DecodeError;
use podmesh_proto::frame;
use podmesh_proto::id::{NodeId, PlanetId};
use podmesh_proto::limits::MAX_RECORDS_PER_UPDATE;
use podmesh_proto::network::RootStatement;
use podmesh_proto::planet_api::{DirectoryRecord, DirectoryUpdate, NodeMessage};
use podmesh_proto::signed::Signed;
use podmesh_proto::time::Now;

use crate::engine::Engine;
use crate::engine::twins::NAMES;
use crate::error::RequestError;
use crate::limits;
use crate::membership::Members;
use crate::membership::holdings::MemberId;
use crate::membership::lies::{Lie, Source};
use crate::mutation::{self, Mutant};
use crate::timers::Timer;

/// What became of a statement that the operator handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// Whether this node didn't know it.
    pub news: bool,
    /// Planets that are connected and are told.
    pub planets: usize,
    /// Members to whom a path is up; they tell it on.
    pub peers: usize,
}

/// Bytes of memberships in one message of a report, below the limit of a message by a good margin.
const MAX_REPORT: usize = 44 * 1024;

impl Engine {
    pub(super) fn directory(&mut self, planet: PlanetId, update: DirectoryUpdate, now: Now) {
        if self.members.is_none() {
            return;
        }
        // What a node learns while it knows nothing of a directory yet is one batch: the order in
        // which a planet tells it must not decide who was first.
        if !self.planets.syncing(now.moment)
            && let Some(members) = &mut self.members
        {
            members.start_batch();
        }
        for record in update.records {
            self.directory_record(planet, record, now);
        }
        // To a stranger a planet says what it has to know, which is nothing of a directory.
        if let Some(entry) = self.planets.get_mut(&planet)
            && let Some(connection) = &entry.connection
            && connection.leg.is_some()
        {
            entry.cursor = Some(update.cursor);
        }
        self.end_sync(planet, update.cursor.version);
    }

    /// Ends the batch of first updates, if this version completes it.
    pub(super) fn end_sync(&mut self, planet: PlanetId, version: u64) {
        if let Some(connection) = self.planets.connection(&planet)
            && connection.syncing.is_some_and(|(last, _)| version >= last)
        {
            connection.syncing = None;
            if let Some(members) = &mut self.members {
                members.start_batch();
            }
            self.tell_departures(planet);
        }
    }

    fn directory_record(&mut self, planet: PlanetId, record: DirectoryRecord, now: Now) {
        if matches!(&record, DirectoryRecord::Endpoints(signed) if self.has_record(signed)) {
            return;
        }
        let Some(members) = &mut self.members else {
            return;
        };
        let source = Source::Planet(planet);
        match record {
            DirectoryRecord::Member(membership) => {
                members.learn(*membership, source, now.unix);
                self.follow_members(now);
                self.answer_late(source, now);
            }
            DirectoryRecord::Endpoints(signed) => match members.verify_record(&signed) {
                Ok(record) if record.node == self.node => self.heard_own(&record, now),
                Ok(record) => self.take_record(record, signed, now),
                Err(_) if members.former_record(&signed).is_some() => {
                    self.heard_former(&signed, source, now);
                }
                Err(error) => members.doubt_record(source, &signed, &error, now.unix),
            },
            DirectoryRecord::Presence { node, online } => {
                // Of members alone: a planet can make up ids without end.
                if self.peers.known(&node).is_some() {
                    self.presence.insert((node, planet), online);
                    self.spread_relays_to(&node, now);
                }
            }
            DirectoryRecord::Left(departure) => self.take_departure(&departure, source, now),
        }
    }

    /// A record by an identity that its node has replaced. Not a word of it counts; that it is newer
    /// than the node's last one shows that somebody has the former key, or that this node hadn't heard it.
    pub(super) fn heard_former(
        &mut self,
        signed: &Signed<EndpointRecord>,
        source: Source,
        now: Now,
    ) {
        let Some(members) = &mut self.members else {
            return;
        };
        let Some(record) = members.former_record(signed) else {
            return;
        };
        let known = self
            .peers
            .known(&record.node)
            .and_then(|peer| peer.record.as_ref());
        if known.is_some_and(|(known, _)| record.is_newer_than(known)) {
            let sentence = "sent an endpoint record by an identity that the node has replaced";
            let (_, sentence) = about(members, Ok(record.node), sentence.to_owned());
            members.note_late((Lie::Superseded, record.node), source, sentence, now.unix);
            self.answer_late(source, now);
        }
    }

    /// Whether this very record was verified before: planets and peers tell the same many times.
    pub(super) fn has_record(&self, signed: &Signed<EndpointRecord>) -> bool {
        let peer = signed.unverified().ok().map(|claimed| claimed.node);
        peer.and_then(|node| self.peers.known(&node))
            .is_some_and(|peer| {
                let known = peer.record.as_ref();
                known.is_some_and(|(_, known)| known == signed) || peer.editions.holds(signed)
            })
    }

    /// The record of the same node that counts more than this one. What an identity said that the node has
    /// replaced counts against nothing: whoever has its key could speak as a later life for good.
    pub(super) fn record_against(&self, record: &EndpointRecord) -> Option<&EndpointRecord> {
        let known = self.peers.known(&record.node)?;
        let (known, signed) = known.record.as_ref()?;
        let members = self.members.as_ref()?;
        let stands =
            || members.verify_record(signed).is_ok() || mutation::is(Mutant::FormerRecordStands);
        (!record.is_newer_than(known) && stands()).then_some(known)
    }

    /// A verified endpoint record of a member: it counts at once, or, if there were very many of them, in
    /// a while, unless a later one comes.
    pub(super) fn take_record(
        &mut self,
        record: EndpointRecord,
        signed: Signed<EndpointRecord>,
        now: Now,
    ) {
        let node = record.node;
        if let Some(known) = self.record_against(&record) {
            if !known.is_newer_edition(&record) {
                self.show_later_life(&node, now);
            }
            return;
        }
        let Some(peer) = self.peers.known_mut(&node) else {
            return;
        };
        if peer.editions.take(now.moment) {
            self.follow_record(record, signed, now);
        } else {
            peer.editions.hold(record, signed);
            self.held_editions.insert(node);
        }
    }

    /// Editions that had to wait and count from now on.
    pub(super) fn take_held_editions(&mut self, now: Now) {
        for node in std::mem::take(&mut self.held_editions) {
            let Some(peer) = self.peers.known_mut(&node) else {
                continue;
            };
            let due = peer.editions.take_due(now.moment);
            if peer.editions.is_waiting() {
                self.held_editions.insert(node);
            }
            if let Some((record, signed)) = due {
                self.take_record(record, signed, now);
            }
        }
    }

    fn follow_record(
        &mut self,
        mut record: EndpointRecord,
        signed: Signed<EndpointRecord>,
        now: Now,
    ) {
        let excluded = self.excluded();
        let node = record.node;
        let Some(peer) = self.peers.known_mut(&node) else {
            return;
        };
        record.candidates.retain(|candidate| {
            !excluded
                .iter()
                .any(|range| range.contains(&candidate.endpoint.ip()))
        });
        if record.incarnation > peer.incarnation() {
            peer.naming = NAMES;
        }
        peer.is_new_life(record.incarnation);
        peer.record = Some((record.clone(), signed));
        self.spread_relays_to(&node, now);
        self.with_paths(&node, now, |paths| paths.set_remote(&record, now));
        self.paths_changed(now);
    }

    pub(super) fn take_planets_statement(
        &mut self,
        planet: PlanetId,
        statement: &Signed<RootStatement>,
        now: Now,
    ) {
        if let Some(join) = &mut self.join {
            join.take_edition(statement);
            let planets = join.network().planets.clone();
            self.planets.set(&planets);
            return;
        }
        self.take_statement(statement, (Source::Planet(planet), true), now);
    }

    /// A statement of the root, from whomever; whether it was news. It may be `fresh`: news to others too.
    pub(super) fn take_statement(
        &mut self,
        statement: &Signed<RootStatement>,
        (source, fresh): (Source, bool),
        now: Now,
    ) -> bool {
        let syncing = self.planets.syncing(now.moment);
        let Some(members) = &mut self.members else {
            return false;
        };
        if !syncing {
            // Whom this node knows was there before; nobody loses a place to what is said now.
            members.start_batch();
        }
        let version = members.network().version;
        match members.apply(statement, source, now.unix) {
            Ok(true) => {
                if members.network().version > version {
                    self.follow_edition(now);
                }
                self.statement_is_news(statement, (source, fresh), now);
                true
            }
            Ok(false) => {
                self.answer_late(source, now);
                false
            }
            Err(error) => {
                let sentence = format!("passed on a root statement that doesn't hold: {error}");
                let told = ("statement".to_owned(), sentence);
                members.note(Lie::Forged, source, told, now.unix);
                false
            }
        }
    }

    fn statement_is_news(
        &mut self,
        statement: &Signed<RootStatement>,
        (source, fresh): (Source, bool),
        now: Now,
    ) {
        if !fresh || !self.may_push(source, now) {
            self.pass_on_later(statement.hash(), source, now);
            return self.trust_changed(now);
        }
        // A revocation must not be lost, however much else there is to write.
        self.persist(now);
        let others: Vec<PlanetId> = self
            .planets
            .connected()
            .filter(|planet| source != Source::Planet(*planet))
            .collect();
        for planet in others {
            self.say(planet, NodeMessage::Statement(Box::new(statement.clone())));
        }
        self.gossip_statement(statement, source, now);
    }

    /// A statement by way of this node's operator: whom it is told to, or why it is not taken. What the
    /// network has of it already is told again, as it may not have reached everybody.
    pub(super) fn take_operators_statement(
        &mut self,
        statement: &Signed<RootStatement>,
        now: Now,
    ) -> Result<Told, RequestError> {
        let members = self.members.as_ref().ok_or(RequestError::NotJoined)?;
        may_take(members, statement)?;
        let news = self.take_statement(statement, (Source::Operator, true), now);
        let planets: Vec<PlanetId> = self.planets.connected().collect();
        if !news {
            for planet in &planets {
                self.say(*planet, NodeMessage::Statement(Box::new(statement.clone())));
            }
            self.gossip_statement(statement, Source::Operator, now);
        }
        let reachable = self.peers.nodes();
        let peers = reachable
            .filter(|peer| peer.session && peer.link.lock().path.is_some())
            .count();
        let planets = planets.len();
        Ok(Told {
            news,
            planets,
            peers,
        })
    }

    pub(super) fn begin_report(&mut self, planet: PlanetId, now: Now) {
        if let Some(connection) = self.planets.connection(&planet)
            && connection.report.is_none()
        {
            connection.report = Some(None);
            self.timers.set(Timer::Report(planet), now.moment);
            self.report(planet, now);
        }
    }

    /// The next part of a report of all memberships; an empty part ends it.
    pub(super) fn report(&mut self, planet: PlanetId, now: Now) {
        let Some(members) = &self.members else {
            return;
        };
        let Some(connection) = self.planets.connection(&planet) else {
            return;
        };
        let Some(after) = connection.report else {
            return;
        };
        let part = memberships_after(members, after);
        connection.report = part.last().map(|(node, _)| Some(*node));
        if part.is_empty() {
            self.timers.clear(Timer::Report(planet));
        } else {
            let next = now.moment + limits::REPORT_GAP;
            self.timers.set(Timer::Report(planet), next);
        }
        let memberships = part.into_iter().map(|(_, one)| one).collect();
        self.say(planet, NodeMessage::Report { memberships });
    }
}

/// Whether what the operator hands over fits what this node knows: nothing is replaced by another word
/// under the same number, and nobody's place is given to a second one.
fn may_take(members: &Members, statement: &Signed<RootStatement>) -> Result<(), RequestError> {
    let known = members.network();
    let said = known.verify(statement)?;
    if let Some(other) = members.statements().overtaken_by(&statement.hash(), &said) {
        let at = other.issued();
        return Err(RequestError::Overtaken { at });
    }
    match said {
        RootStatement::Network(given) if given.version < known.version => {
            Err(RequestError::Older {
                given: given.version,
                known: known.version,
            })
        }
        RootStatement::Network(given) if given.version == known.version && given != *known => {
            Err(RequestError::OtherEdition {
                edition: known.version,
            })
        }
        RootStatement::External(peer) => match members.held_against(&peer) {
            Some((collision, holder)) => Err(RequestError::Held {
                peer: peer.name,
                wanted: collision.wanted.to_string(),
                holder,
            }),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Subject and sentence of a lie about `node`, with its name if it has one.
pub(super) fn about(
    members: &Members,
    node: Result<NodeId, DecodeError>,
    sentence: String,
) -> (String, String) {
    match node {
        Ok(node) => {
            let name = members.name_of(MemberId::Node(node));
            (node.to_string(), format!("about {name}: {sentence}"))
        }
        Err(_) => (String::new(), sentence),
    }
}

fn memberships_after(members: &Members, after: Option<NodeId>) -> Vec<(NodeId, Membership)> {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let mut room = MAX_REPORT;
    members
        .range(from)
        .take(MAX_RECORDS_PER_UPDATE)
        .take_while(|known| {
            // The first always goes: a single one is far below the limit of a message.
            let first = room == MAX_REPORT;
            let length = frame::encode(&*known.membership, "membership");
            let length = length.map_or(MAX_REPORT, |bytes| bytes.len());
            let fits = length <= room;
            room = room.saturating_sub(length.max(1));
            first || fits
        })
        .map(|known| (known.member.node, (*known.membership).clone()))
        .collect()
}
