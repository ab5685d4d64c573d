//! Tells members what they don't know yet.

use podmesh_proto::id::NodeId;
use podmesh_proto::limits::MAX_RECORDS_PER_UPDATE;
use podmesh_proto::network::RootStatement;
use podmesh_proto::planet_api::{DirectoryRecord, DirectoryUpdate, PlanetMessage};
use podmesh_proto::signed::Signed;
use podmesh_proto::time::Now;

use crate::rules::directory::Topic;
use crate::rules::records::Record;
use crate::rules::{COALESCE, ConnectionId, Planet, Told};

/// Bytes of records in one update, below the limit of a message by a good margin.
const MAX_UPDATE: usize = 44 * 1024;
/// Messages to one member at a time; the rest follows [`COALESCE`] later, so that a long directory
/// doesn't fill the queue of a slow reader at once.
const MAX_MESSAGES: usize = 32;

/// News for one member, put into messages.
struct Parcel {
    messages: Vec<PlanetMessage>,
    records: Vec<DirectoryRecord>,
    statements: Vec<Signed<RootStatement>>,
    bytes: usize,
    told: Told,
}

enum News {
    Statement(Box<Signed<RootStatement>>),
    Record(DirectoryRecord, usize),
}

impl Planet {
    /// A record is in the books: who hears of it hears of what it means.
    pub(super) fn announce(&mut self, record: &Record, now: Now) {
        match record {
            Record::Network(_) => {
                self.news(Topic::Network, now.moment);
                let nodes: Vec<NodeId> = self.books.entries().map(|(node, _)| *node).collect();
                nodes
                    .iter()
                    .for_each(|node| self.announce_member(node, now));
            }
            Record::Statement(statement) => {
                self.news(Topic::Statement(statement.hash()), now.moment);
            }
            Record::Admission(admission) => {
                if let Ok(receipt) = admission.receipt.unverified() {
                    self.announce_member(&receipt.node, now);
                }
            }
            Record::Claim(claim) => {
                if let Ok(receipt) = claim.receipt.unverified() {
                    self.announce_member(&receipt.node, now);
                }
            }
            Record::Renewal(renewed) => {
                if let Ok(receipt) = renewed.receipt.unverified() {
                    self.announce_renewal(&receipt.node, now);
                }
            }
            Record::Departure(departure) => {
                if let Ok(departure) = departure.unverified() {
                    self.news(Topic::Left(departure.node), now.moment);
                }
            }
            Record::Replaced { former, .. } => self.directory.forget_node(*former),
            Record::Origin(_)
            | Record::Use { .. }
            | Record::Loose(_)
            | Record::Trusted(_)
            | Record::FormerLease(_)
            | Record::UnknownUses(_) => {}
        }
    }

    pub(super) fn announce_member(&mut self, node: &NodeId, now: Now) {
        if self.books.member(node, now.unix).is_some() {
            self.news(Topic::Member(*node), now.moment);
        } else {
            self.directory.forget_node(*node);
        }
    }

    pub(super) fn tell_all(&mut self, now: Now) {
        let members: Vec<ConnectionId> = self
            .connections
            .iter()
            .filter(|(_, connection)| {
                let version = self.directory.cursor().version;
                connection.told.is_some_and(|told| told.version < version)
                    || connection.comparing.has_due()
            })
            .map(|(id, _)| *id)
            .collect();
        members.into_iter().for_each(|id| self.tell(id, now));
    }

    /// Tells one member what it doesn't know yet.
    pub(super) fn tell(&mut self, connection: ConnectionId, now: Now) {
        let Some((told, node)) = self.connections.get(&connection).and_then(|known| {
            let told = known.told?;
            Some((told, known.node?))
        }) else {
            return;
        };
        let mut parcel = Parcel {
            messages: Vec::new(),
            records: Vec::new(),
            statements: Vec::new(),
            bytes: 0,
            told,
        };
        let mut complete = true;
        for (version, topic) in self.directory.after(told.version) {
            if parcel.messages.len() >= MAX_MESSAGES {
                complete = false;
                break;
            }
            if !self.is_compared(connection, version, topic)
                && let Some(news) = self.news_on(topic, &node, now)
            {
                self.add(&mut parcel, news, connection);
            }
            parcel.told.version = version;
        }
        if complete {
            parcel.told.version = self.directory.cursor().version;
        }
        self.pack(&mut parcel, true);
        let compared = self.due_statements(connection, now);
        if let Some(known) = self.connections.get_mut(&connection) {
            known.told = Some(parcel.told);
            known.is_behind = !complete;
        }
        for message in parcel.messages.into_iter().chain(compared) {
            self.send(connection, message);
        }
        if !complete || self.has_statements_due(connection) {
            self.flush_at.get_or_insert(now.moment + COALESCE);
        }
    }

    fn add(&self, parcel: &mut Parcel, news: News, connection: ConnectionId) {
        match news {
            News::Statement(statement) => {
                if !parcel.records.is_empty() || parcel.bytes + statement.size() > MAX_UPDATE {
                    self.pack(parcel, false);
                }
                parcel.bytes += statement.size();
                let compares = self.compares(connection);
                if compares && *statement != self.books.network_statement {
                    parcel.statements.push(*statement);
                } else {
                    self.pack(parcel, false);
                    parcel.messages.push(PlanetMessage::Statement(statement));
                }
            }
            News::Record(record, bytes) => {
                if !parcel.statements.is_empty()
                    || parcel.records.len() >= MAX_RECORDS_PER_UPDATE
                    || parcel.bytes + bytes > MAX_UPDATE
                {
                    self.pack(parcel, false);
                }
                parcel.bytes += bytes;
                parcel.records.push(record);
            }
        }
    }

    /// Makes messages of what there is so far. A member is also told that there is nothing to tell, once,
    /// at the `end`.
    fn pack(&self, parcel: &mut Parcel, end: bool) {
        parcel.bytes = 0;
        let mut statements = std::mem::take(&mut parcel.statements);
        parcel.messages.extend(match statements.len() {
            0 => None,
            1 => statements.pop().map(Box::new).map(PlanetMessage::Statement),
            _ => Some(PlanetMessage::Statements(statements)),
        });
        let nothing = parcel.records.is_empty();
        if nothing && !(end && parcel.told.from_start) {
            return;
        }
        let update = DirectoryUpdate {
            cursor: self.directory.at(parcel.told.version),
            from_start: parcel.told.from_start,
            records: std::mem::take(&mut parcel.records),
        };
        parcel.told.from_start = false;
        parcel.messages.push(PlanetMessage::Directory(update));
    }

    /// What there is to say on `topic` to `listener`, and how many bytes it has at most.
    fn news_on(&self, topic: Topic, listener: &NodeId, now: Now) -> Option<News> {
        let record = |record, bytes| Some(News::Record(record, bytes));
        match topic {
            Topic::Network => {
                let network = self.books.network_statement.clone();
                Some(News::Statement(Box::new(network)))
            }
            Topic::Statement(hash) => {
                let statement = self.books.statements().get(&hash)?.signed.clone();
                Some(News::Statement(Box::new(statement)))
            }
            Topic::Presence(node) if node == *listener => None,
            Topic::Endpoints(node) if node == *listener && !self.has_later_life(&node) => None,
            Topic::Member(node) => {
                self.books.member(&node, now.unix)?;
                let entry = self.books.entry(&node)?;
                if node == *listener && entry.renewed.is_none() {
                    return None;
                }
                // A node that came back from an old copy of its disk learns what it had become.
                let membership = Box::new(entry.membership()?);
                record(DirectoryRecord::Member(membership), entry.length)
            }
            Topic::Endpoints(node) => {
                let (signed, _) = self.endpoints.get(&node)?;
                record(DirectoryRecord::Endpoints(signed.clone()), 2 * 1024)
            }
            Topic::Presence(node) => {
                let online = self.online.contains_key(&node);
                record(DirectoryRecord::Presence { node, online }, 40)
            }
            Topic::Left(node) => {
                let departure = self.books.departure(&node)?.clone();
                record(DirectoryRecord::Left(departure), 256)
            }
        }
    }
}
