//! Tells members what they don't know yet.

use podmesh_proto::id::NodeId;
use podmesh_proto::limits::MAX_RECORDS_PER_UPDATE;
use podmesh_proto::network::RootStatement;
use podmesh_proto::planet_api::{DirectoryRecord, DirectoryUpdate, PlanetMessage};
use podmesh_proto::signed::Signed;
use podmesh_proto::time::Now;

use crate::rules::directory::Topic;
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
    bytes: usize,
    told: Told,
}

enum News {
    Statement(Box<Signed<RootStatement>>),
    Record(DirectoryRecord, usize),
}

impl Planet {
    pub(super) fn tell_all(&mut self, now: Now) {
        let members: Vec<ConnectionId> = self
            .connections
            .iter()
            .filter(|(_, connection)| {
                connection
                    .told
                    .is_some_and(|told| told.version < self.directory.cursor().version)
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
            bytes: 0,
            told,
        };
        if told.from_start && told.version == 0 {
            parcel.messages.extend(self.statements());
        }
        let most = parcel.messages.len().saturating_add(MAX_MESSAGES);
        let mut complete = true;
        for (version, topic) in self.directory.after(told.version) {
            if parcel.messages.len() >= most {
                complete = false;
                break;
            }
            let stated = told.from_start && told.version == 0;
            match self.news_on(topic, &node, now) {
                Some(News::Statement(_)) if stated => {}
                Some(News::Statement(statement)) => {
                    self.pack(&mut parcel);
                    parcel.messages.push(PlanetMessage::Statement(statement));
                }
                Some(News::Record(record, bytes)) => {
                    if parcel.records.len() >= MAX_RECORDS_PER_UPDATE
                        || parcel.bytes + bytes > MAX_UPDATE
                    {
                        self.pack(&mut parcel);
                    }
                    parcel.bytes += bytes;
                    parcel.records.push(record);
                }
                None => {}
            }
            parcel.told.version = version;
        }
        if complete {
            parcel.told.version = self.directory.cursor().version;
        }
        // A member is also told that there is nothing to tell, once.
        if !parcel.records.is_empty() || parcel.told.from_start {
            self.pack(&mut parcel);
        }
        if let Some(known) = self.connections.get_mut(&connection) {
            known.told = Some(parcel.told);
        }
        for message in parcel.messages {
            self.send(connection, message);
        }
        if !complete {
            self.flush_at.get_or_insert(now.moment + COALESCE);
        }
    }

    /// Makes an update of the records so far.
    fn pack(&self, parcel: &mut Parcel) {
        if parcel.records.is_empty() && !parcel.told.from_start {
            return;
        }
        let update = DirectoryUpdate {
            cursor: self.directory.at(parcel.told.version),
            from_start: parcel.told.from_start,
            records: std::mem::take(&mut parcel.records),
        };
        parcel.bytes = 0;
        parcel.told.from_start = false;
        parcel.messages.push(PlanetMessage::Directory(update));
    }

    /// Everything that the root said, the network first.
    fn statements(&self) -> impl Iterator<Item = PlanetMessage> + '_ {
        let network = std::iter::once(&self.books.network_statement);
        let others = self.books.statements().map(|(_, statement)| statement);
        network
            .chain(others)
            .map(|statement| PlanetMessage::Statement(Box::new(statement.clone())))
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
                let statement = self.books.statement(&hash)?.clone();
                Some(News::Statement(Box::new(statement)))
            }
            Topic::Endpoints(node) | Topic::Presence(node) if node == *listener => None,
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
