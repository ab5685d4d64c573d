//! The connections to planets, as the engine sees them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use podmesh_proto::id::{NodeId, PlanetId};
use podmesh_proto::network::PlanetEntry;
use podmesh_proto::planet_api::{DirectoryCursor, PROTOCOL};
use podmesh_proto::time::{Moment, Now, UnixSeconds};

use crate::forwarding::RelayLeg;
use crate::limits;
use crate::path_id::SocketId;

/// All planets of the network.
#[derive(Debug, Default)]
pub struct Planets {
    all: BTreeMap<PlanetId, Planet>,
    order: Vec<PlanetId>,
}

/// One planet.
#[derive(Debug)]
pub struct Planet {
    /// As the network names it.
    pub entry: PlanetEntry,
    /// The connection, if it is up.
    pub connection: Option<Connection>,
    /// What is known of its directory; survives a lost connection.
    pub cursor: Option<DirectoryCursor>,
    /// Why it isn't connected.
    pub error: Option<String>,
    /// What it said last of its wall clock, and when that was.
    pub clock: Option<(UnixSeconds, Moment)>,
    /// The version of the protocol to speak: the newest, until the planet refuses it.
    pub protocol: u16,
    /// How often it has said, one connection after the other, why it takes this member for a stranger.
    pub refusals: u32,
}

impl Planet {
    /// Whether the connection is up and the planet has said welcome.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        let connection = self.connection.as_ref();
        connection.is_some_and(|connection| connection.welcome)
    }

    /// Why it takes this member for a stranger, if it has said so.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        self.connection.as_ref()?.refusal.as_deref()
    }

    /// How long a planet may take this member for a stranger until it is connected to anew. One that says why
    /// will hardly say something else in a minute.
    #[must_use]
    pub fn patience(&self) -> Duration {
        let doublings = self.refusals.min(limits::STRANGE_DOUBLINGS);
        limits::STRANGE * 2_u32.saturating_pow(doublings)
    }

    /// Whether the planet said welcome to a stranger this long ago or longer: a member gets a relay session.
    #[must_use]
    pub fn is_strange(&self, least: Duration, now: Moment) -> bool {
        let connection = self.connection.as_ref();
        connection.is_some_and(|connection| {
            let waited = now.since(connection.since) >= least;
            connection.welcome && connection.leg.is_none() && waited
        })
    }

    /// Seconds by which the planet's wall clock is ahead of this node's, as far as is known.
    #[must_use]
    pub fn clock_ahead(&self, now: Now) -> Option<i64> {
        let (then, at) = self.clock?;
        let theirs = then.plus(now.moment.since(at).as_secs());
        let seconds = |time: UnixSeconds| i64::try_from(time.0).unwrap_or(i64::MAX);
        Some(seconds(theirs).saturating_sub(seconds(now.unix)))
    }
}

/// This node's own departure, as a planet was told of it before a join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnDeparture {
    /// It bears another id than this node has, and the planet may yet refuse it.
    pub as_another: bool,
    /// The planet had no time for something: it may not have heard of it, and is told again.
    pub again: bool,
}

/// A control connection that is up.
#[derive(Debug)]
pub struct Connection {
    /// The planet's endpoint.
    pub remote: SocketAddr,
    /// Its round trip time.
    pub rtt: Duration,
    /// Since when it is up.
    pub since: Moment,
    /// When the planet was heard last.
    pub heard: Moment,
    /// The relay session, once the planet has granted it.
    pub leg: Option<Arc<RelayLeg>>,
    /// The planet has said welcome.
    pub welcome: bool,
    /// First updates of a directory that this node knew nothing of: up to this version, and until
    /// this moment at the latest.
    pub syncing: Option<(u64, Moment)>,
    /// Why the planet takes this member for a stranger.
    pub refusal: Option<String>,
    /// Questions where the planet sees a socket, by counter.
    pub asked: BTreeMap<u64, SocketId>,
    /// What it was told of this node's own departure.
    pub departed: Option<OwnDeparture>,
    /// How often it was told again of departures for which it had no time.
    pub departures_again: u32,
    /// Tries since the last answer.
    pub tries: u32,
    /// When this node last repeated a token of the planet.
    pub proved: Option<Moment>,
    /// A report that is under way: everything up to this node is told.
    pub report: Option<Option<NodeId>>,
}

impl Connection {
    /// A connection that has just come up.
    #[must_use]
    pub fn new(remote: SocketAddr, rtt: Duration, now: Moment) -> Self {
        Self {
            remote,
            rtt,
            since: now,
            heard: now,
            leg: None,
            welcome: false,
            syncing: None,
            refusal: None,
            asked: BTreeMap::new(),
            departed: None,
            departures_again: 0,
            tries: 0,
            proved: None,
            report: None,
        }
    }
}

impl Planets {
    /// The planets of an edition of the network; what is known of those that stay is kept. Gives
    /// those that are gone.
    pub fn set(&mut self, entries: &[PlanetEntry]) -> Vec<PlanetId> {
        let gone = self
            .order
            .iter()
            .filter(|id| !entries.iter().any(|entry| entry.id == **id))
            .copied()
            .collect();
        let mut before = std::mem::take(&mut self.all);
        for entry in entries {
            let mut planet = before.remove(&entry.id).unwrap_or_else(|| Planet {
                entry: entry.clone(),
                connection: None,
                cursor: None,
                error: None,
                clock: None,
                protocol: PROTOCOL,
                refusals: 0,
            });
            planet.entry = entry.clone();
            self.all.insert(entry.id, planet);
        }
        self.order = entries.iter().map(|entry| entry.id).collect();
        gone
    }

    /// A planet of the network.
    #[must_use]
    pub fn get(&self, id: &PlanetId) -> Option<&Planet> {
        self.all.get(id)
    }

    /// A planet of the network.
    pub fn get_mut(&mut self, id: &PlanetId) -> Option<&mut Planet> {
        self.all.get_mut(id)
    }

    /// The connection to a planet, if it is up.
    pub fn connection(&mut self, id: &PlanetId) -> Option<&mut Connection> {
        self.all.get_mut(id)?.connection.as_mut()
    }

    /// In the order of the network document.
    pub fn all(&self) -> impl Iterator<Item = &Planet> {
        self.order.iter().filter_map(|id| self.all.get(id))
    }

    /// Those whose welcome is there, in the order of the network document.
    pub fn connected(&self) -> impl Iterator<Item = PlanetId> + '_ {
        let connected = self.all().filter(|planet| planet.is_connected());
        connected.map(|planet| planet.entry.id)
    }

    /// The relay sessions.
    pub fn legs(&self) -> impl Iterator<Item = &Arc<RelayLeg>> {
        self.all()
            .filter_map(|planet| planet.connection.as_ref()?.leg.as_ref())
    }

    /// The relay session with a planet.
    #[must_use]
    pub fn leg(&self, id: &PlanetId) -> Option<&Arc<RelayLeg>> {
        self.get(id)?.connection.as_ref()?.leg.as_ref()
    }

    /// Whether some planet is telling this node its directory from the start.
    #[must_use]
    pub fn syncing(&self, now: Moment) -> bool {
        self.all.values().any(|planet| {
            let connection = planet.connection.as_ref();
            let syncing = connection.and_then(|connection| connection.syncing);
            syncing.is_some_and(|(_, until)| now < until)
        })
    }

    /// What the first planet whose clock is known has for the time; by this node's own clock if there is none.
    #[must_use]
    pub fn time(&self, now: Now) -> UnixSeconds {
        let ahead = self.all().find_map(|planet| planet.clock_ahead(now));
        UnixSeconds(now.unix.0.saturating_add_signed(ahead.unwrap_or(0)))
    }

    /// The planet's name, or the short form of its id if it is none of the network.
    #[must_use]
    pub fn name(&self, id: &PlanetId) -> String {
        self.get(id)
            .map_or_else(|| id.short(), |planet| planet.entry.name.to_string())
    }
}
