//! The control connections to the planets of the network: one QUIC connection each, kept up.
//!
//! A planet is whoever holds its key: the connection itself proves that ([`tls`]), whatever address
//! or name led there ([`dial`]). The node proves itself by its first message, a signature over the
//! connection's exported keying material that the engine makes. What is said on the connection is
//! the engine's business as well; here are only the wire and the waiting times.

mod dial;
mod last_good;
mod session;
mod tls;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use podmesh_proto::id::PlanetId;
use podmesh_proto::network::PlanetEntry;
use podmesh_proto::planet_api::{NodeMessage, PlanetMessage};
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};
use zeroize::Zeroizing;

use self::dial::Dialer;
pub(crate) use self::last_good::LastGood;
use crate::random;

/// Longest first wait between two tries to connect; it doubles with each failure.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// Longest wait of all. Each wait is drawn from zero on ("full jitter"), so that the nodes of a
/// planet that comes back don't arrive together.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// The same after a try that nobody answered: it has waited for [`dial::HANDSHAKE`] already, and costs a planet
/// that is away nothing. Together with the rest of a try whose last datagram was lost (3 s) that is how long a
/// node stays away from a planet that is back; of thousands of nodes each comes at another time of it, as after
/// the short outage of a restart.
const LONGEST_UNHEARD: Duration = Duration::from_secs(5);
/// A planet that asks for less or more patience than this doesn't get it.
const DRAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(120));
/// A connection that ends sooner than this is no success, whatever was said on it.
const SHORT: Duration = Duration::from_secs(5);
/// Such connections in a row that are counted.
const MOST_SHORT: u32 = 3;
/// For the last messages to a planet that is left.
const LAST_MESSAGES: Duration = Duration::from_secs(2);
/// Messages that may wait for a slow connection before it is given up.
const OUTGOING: usize = 256;

/// What happens on one of the connections.
pub(crate) struct LinkEvent {
    /// The planet.
    pub(crate) planet: PlanetId,
    /// What.
    pub(crate) news: LinkNews,
    life: u64,
}

/// What happened on a connection.
pub(crate) enum LinkNews {
    /// It is up, with the planet's key proven. The first message is still to be sent.
    Connected(Connected),
    /// A new measurement of the round trip time.
    Rtt(Duration),
    /// A message of the planet.
    Message(Box<PlanetMessage>),
    /// It is down, or could not be made; one sentence.
    Disconnected(String),
}

/// A new connection.
pub(crate) struct Connected {
    /// The planet's endpoint.
    pub(crate) remote: SocketAddr,
    /// Round trip time of the handshake.
    pub(crate) rtt: Duration,
    /// Keying material that the node signs to prove itself.
    pub(crate) exported: Zeroizing<[u8; 32]>,
    outgoing: mpsc::Sender<NodeMessage>,
}

/// All connections.
pub(crate) struct PlanetLinks {
    links: BTreeMap<PlanetId, Link>,
    events: mpsc::Sender<LinkEvent>,
    last_good: LastGood,
    mark: u32,
    lives: u64,
}

struct Link {
    entry: PlanetEntry,
    life: u64,
    outgoing: Option<mpsc::Sender<NodeMessage>>,
    hurry: Arc<Notify>,
    is_left: Arc<AtomicBool>,
    task: Task,
}

impl PlanetLinks {
    /// No connection yet; what happens on later ones is said by `events`. Their datagrams carry `mark`.
    pub(crate) fn new(events: mpsc::Sender<LinkEvent>, last_good: LastGood, mark: u32) -> Self {
        Self {
            links: BTreeMap::new(),
            events,
            last_good,
            mark,
            lives: 0,
        }
    }

    /// Stays connected to these planets and no others from now on.
    pub(crate) fn keep(&mut self, planets: Vec<PlanetEntry>) {
        let left: Vec<PlanetId> = self
            .links
            .values()
            .filter(|link| !planets.contains(&link.entry))
            .map(|link| link.entry.id)
            .collect();
        self.last_good.keep(&planets);
        left.iter()
            .filter_map(|planet| self.links.remove(planet))
            .for_each(Link::retire);
        for entry in planets {
            if !self.links.contains_key(&entry.id) {
                self.start(entry);
            }
        }
    }

    /// Whether the event comes from a present connection, and not from one that was given up while
    /// the event was on its way. Notes the way back of a new one.
    pub(crate) fn admit(&mut self, event: &LinkEvent) -> bool {
        let Some(link) = self.links.get_mut(&event.planet) else {
            return false;
        };
        if link.life != event.life {
            return false;
        }
        match &event.news {
            LinkNews::Connected(connected) => link.outgoing = Some(connected.outgoing.clone()),
            LinkNews::Disconnected(_) => link.outgoing = None,
            LinkNews::Rtt(_) | LinkNews::Message(_) => {}
        }
        true
    }

    /// Sends a message, if the planet is connected. A connection that takes no more is given up.
    pub(crate) fn send(&mut self, planet: PlanetId, message: NodeMessage) {
        let Some(link) = self.links.get_mut(&planet) else {
            return;
        };
        if let Some(outgoing) = &link.outgoing
            && outgoing.try_send(message).is_err()
        {
            // Its session ends when the last sender is gone.
            link.outgoing = None;
        }
    }

    /// Gives up the connection to this planet and makes a new one.
    pub(crate) fn reconnect(&mut self, planet: PlanetId) {
        if let Some(link) = self.links.remove(&planet) {
            self.start(link.entry);
        }
    }

    /// Ends all waiting: the underlay has changed, and what failed before may work.
    pub(crate) fn hurry(&self) {
        self.links
            .values()
            .for_each(|link| link.hurry.notify_waiters());
    }

    fn start(&mut self, entry: PlanetEntry) {
        self.lives += 1;
        let hurry = Arc::new(Notify::new());
        let reporter = Reporter {
            planet: entry.id,
            life: self.lives,
            events: self.events.clone(),
        };
        let is_left = Arc::new(AtomicBool::new(false));
        let orders = (Arc::clone(&hurry), Arc::clone(&is_left));
        let dialer = Dialer::new(&entry, self.last_good.clone(), self.mark);
        let task = tokio::spawn(stay_connected(dialer, reporter, orders));
        let link = Link {
            life: self.lives,
            outgoing: None,
            hurry,
            is_left,
            task: Task(task.abort_handle()),
            entry,
        };
        self.links.insert(link.entry.id, link);
    }
}

impl Link {
    /// Ends the connection after the messages that it was given.
    fn retire(self) {
        self.is_left.store(true, Ordering::Relaxed);
        let Self { outgoing, task, .. } = self;
        if outgoing.is_some() {
            drop(outgoing);
            tokio::spawn(async move {
                sleep(LAST_MESSAGES).await;
                drop(task);
            });
        }
    }
}

/// A task that ends with this value.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The way from a connection to the slow half.
struct Reporter {
    planet: PlanetId,
    life: u64,
    events: mpsc::Sender<LinkEvent>,
}

impl Reporter {
    async fn report(&self, news: LinkNews) {
        let event = LinkEvent {
            planet: self.planet,
            news,
            life: self.life,
        };
        // Nobody listens only when the process is about to end.
        let _ = self.events.send(event).await;
    }
}

async fn stay_connected(
    mut dialer: Dialer,
    reporter: Reporter,
    (hurry, is_left): (Arc<Notify>, Arc<AtomicBool>),
) {
    let mut failures = 0_u32;
    loop {
        let begun = Instant::now();
        let dialed = tokio::select! {
            dialed = dialer.dial() => dialed,
            // What was tried over the old underlay may never be answered.
            () = hurry.notified() => continue,
        };
        let ended = match dialed {
            Ok(dialed) => session::run(dialed, &reporter).await,
            Err(reason) => session::Ended::before_welcome(reason),
        };
        if is_left.load(Ordering::Relaxed) {
            return;
        }
        tracing::debug!(planet = %dialer.name(), reason = ended.reason, "not connected");
        let lasted = begun.elapsed();
        failures = failures_after(failures, &ended, lasted);
        let unheard = !ended.was_welcome && lasted >= dial::HANDSHAKE;
        reporter.report(LinkNews::Disconnected(ended.reason)).await;
        let wait = wait_after(failures, unheard);
        let wait = ended
            .retry_in
            .map_or(wait, |asked| asked.clamp(DRAIN.0, DRAIN.1).max(wait));
        if timeout(wait, hurry.notified()).await.is_ok() {
            failures = 0;
        }
    }
}

/// Failures in a row, with the connection that has just ended. A planet that greets and closes again and
/// again is waited for a little, and not as one that is gone.
fn failures_after(before: u32, ended: &session::Ended, lasted: Duration) -> u32 {
    match (ended.was_welcome, lasted >= SHORT) {
        (true, true) => 0,
        (true, false) => before.min(MOST_SHORT).saturating_add(1),
        (false, _) => before.saturating_add(1),
    }
}

/// How long to wait before the next try; `unheard` says that nobody answered the last one.
fn wait_after(failures: u32, unheard: bool) -> Duration {
    let longest = FIRST_WAIT
        .saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX))
        .min(if unheard {
            LONGEST_UNHEARD
        } else {
            LONGEST_WAIT
        });
    let milliseconds = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(random::below(milliseconds.saturating_add(1)))
}

#[cfg(test)]
mod tests;
