//! The forwarding table: everything that the fast half needs to know, built by the slow half.
//!
//! The table itself never changes; the slow half publishes a new one when members, claims or relays
//! change. What changes with every packet lives in the [`PeerLink`] of a peer, which is the same
//! object in every generation: its tunnel and its path behind one lock, its counters beside it. A
//! new path is set there and needs no new table.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;

use podmesh_proto::id::{PlanetId, RelayAddress};
use podmesh_proto::planet_api::PROTOCOL;
use podmesh_proto::relayed::{RelayGrant, RelayHeader, RelayKind, RelaySeal, Token};
use podmesh_proto::replay::ReplayWindow;
use podmesh_proto::time::Moment;

use crate::drops::Drops;
use crate::limits::{CONTROL_BURST, CONTROL_PER_SECOND};
use crate::path_id::PathId;
use crate::prefix_table::PrefixTable;
use crate::tunnel::{Opened, Tunnel, TunnelError};

/// A peer among the tunnels of this node: the upper 24 bits of its `WireGuard` receiver indexes.
/// Random, and never given to another peer in the life of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerIndex(pub u32);

/// What the fast half looks things up in.
#[derive(Debug)]
pub struct ForwardingTable {
    owners: PrefixTable<Owner>,
    peers: Vec<Arc<PeerLink>>,
    by_index: Vec<(PeerIndex, u32)>,
    relays: Vec<Arc<RelayLeg>>,
    drops: Arc<Drops>,
}

/// Whose an inner address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Me,
    /// Position in the table's list of peers.
    Peer(u32),
}

/// The answer to whose an inner address is.
#[derive(Debug, Clone, Copy)]
pub enum Owned<'a> {
    /// This node's own.
    Mine,
    /// This peer's, at this position.
    By(u32, &'a Arc<PeerLink>),
    /// Nobody's.
    Nobody,
}

impl ForwardingTable {
    /// The table of a node without peers.
    #[must_use]
    pub fn empty(drops: Arc<Drops>) -> Self {
        Self::new([], Vec::new(), Vec::new(), drops)
    }

    /// Builds a table of this node's own prefixes, its peers with theirs, and its relays.
    #[must_use]
    pub fn new(
        own: impl IntoIterator<Item = IpNet>,
        peers: Vec<(Arc<PeerLink>, Vec<IpNet>)>,
        relays: Vec<Arc<RelayLeg>>,
        drops: Arc<Drops>,
    ) -> Self {
        let mut prefixes: Vec<(IpNet, Owner)> = own
            .into_iter()
            .map(|net| (net.trunc(), Owner::Me))
            .collect();
        let mut links = Vec::with_capacity(peers.len());
        let mut by_index = Vec::with_capacity(peers.len());
        for ((link, owned), position) in peers.into_iter().zip(0_u32..) {
            let owner = Owner::Peer(position);
            prefixes.extend(owned.into_iter().map(|net| (net.trunc(), owner)));
            by_index.push((link.index, position));
            links.push(link);
        }
        by_index.sort_unstable();
        Self {
            owners: PrefixTable::new(prefixes),
            peers: links,
            by_index,
            relays,
            drops,
        }
    }

    /// The longest-prefix owner of an address over this node and all its peers.
    #[must_use]
    pub fn owner(&self, address: IpAddr) -> Owned<'_> {
        match self.owners.lookup(address) {
            Some(Owner::Me) => Owned::Mine,
            Some(Owner::Peer(position)) => self
                .peer_at(position)
                .map_or(Owned::Nobody, |link| Owned::By(position, link)),
            None => Owned::Nobody,
        }
    }

    /// The peer with this index, and its position.
    #[must_use]
    pub fn by_index(&self, index: PeerIndex) -> Option<(u32, &Arc<PeerLink>)> {
        let found = self
            .by_index
            .binary_search_by_key(&index, |entry| entry.0)
            .ok()?;
        let (_, position) = *self.by_index.get(found)?;
        Some((position, self.peer_at(position)?))
    }

    /// The peer at a position of this table.
    #[must_use]
    pub fn peer_at(&self, position: u32) -> Option<&Arc<PeerLink>> {
        self.peers.get(usize::try_from(position).ok()?)
    }

    /// The relay session with a planet.
    #[must_use]
    pub fn relay(&self, planet: &PlanetId) -> Option<&Arc<RelayLeg>> {
        self.relays.iter().find(|leg| leg.planet == *planet)
    }

    /// All relay sessions.
    #[must_use]
    pub fn relays(&self) -> &[Arc<RelayLeg>] {
        &self.relays
    }

    /// Number of peers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Whether there are no peers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// The counters of drops.
    #[must_use]
    pub fn drops(&self) -> &Drops {
        &self.drops
    }
}

/// What both halves share of one peer.
#[derive(Debug)]
pub struct PeerLink {
    /// Number of the tunnel.
    pub index: PeerIndex,
    /// How relays name the peer; `None` for an external peer, which no relay serves.
    pub relay_address: Option<RelayAddress>,
    /// Its overlay IPv6 address, between which and ours control packets travel; `None` for an
    /// external peer.
    pub overlay6: Option<Ipv6Addr>,
    /// Counted by the fast half, read by the slow half.
    pub counters: Counters,
    /// The former life of this node had a direct path to the peer, which this one takes up.
    pub resumes: AtomicBool,
    state: Mutex<LinkState>,
}

/// What is behind the lock of a peer.
#[derive(Default)]
pub struct LinkState {
    /// The tunnel; `None` until it is used, and after the peer was removed.
    pub tunnel: Option<Tunnel>,
    /// The tunnel of new keys, or without memory, that is being made: the one above goes on until this one has
    /// a session.
    pub coming: Option<Tunnel>,
    /// The tunnel of former keys: what is under way in it may still arrive; nothing is sent.
    pub former: Option<Tunnel>,
    /// The path that carries data: proven by an echo, or an external peer's last endpoint.
    pub path: Option<PathId>,
    /// Another path by which authentic data came lately.
    pub elsewhere: Option<PathId>,
    /// The slow half knows that the tunnel has a session.
    pub session: bool,
    /// Control packets that the peer may send.
    pub control: Allowance,
    /// Removed: nothing goes in or out any more, whatever table a thread still holds.
    pub closed: bool,
}

/// Control packets that a peer may send until it is given more. The fast half has no clock; the slow half
/// gives with the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    left: u32,
    given: Option<Moment>,
}

impl Default for Allowance {
    fn default() -> Self {
        Self {
            left: CONTROL_BURST,
            given: None,
        }
    }
}

impl Allowance {
    /// Takes one; `false` if there is none.
    pub fn take(&mut self) -> bool {
        let left = self.left.checked_sub(1);
        self.left = left.unwrap_or(0);
        left.is_some()
    }

    /// Gives what the time since the last time is worth.
    pub fn give(&mut self, now: Moment) {
        let since = self.given.map_or(Duration::ZERO, |given| now.since(given));
        let more = since.as_millis() * u128::from(CONTROL_PER_SECOND) / 1_000;
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(more).min(CONTROL_BURST);
        self.given = Some(now);
    }
}

/// Inner packets and bytes of one peer since the process started.
#[derive(Debug, Default)]
pub struct Counters {
    /// Packets sent.
    pub sent_packets: AtomicU64,
    /// Bytes of them.
    pub sent_bytes: AtomicU64,
    /// Packets received, by any path.
    pub received_packets: AtomicU64,
    /// Bytes of them.
    pub received_bytes: AtomicU64,
    /// Messages received by the path that carries data, keepalives and echoes too.
    pub received_on_path: AtomicU64,
    /// Control packets that were dropped because there were too many.
    pub control_dropped: AtomicU64,
}

impl PeerLink {
    /// Of a peer that has no tunnel and no path yet.
    #[must_use]
    pub fn new(
        index: PeerIndex,
        relay_address: Option<RelayAddress>,
        overlay6: Option<Ipv6Addr>,
    ) -> Self {
        Self {
            index,
            relay_address,
            overlay6,
            counters: Counters::default(),
            resumes: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    /// Locks tunnel and path. A thread takes this at most once per batch and peer.
    pub fn lock(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this is a stock `WireGuard` machine.
    #[must_use]
    pub fn is_external(&self) -> bool {
        self.relay_address.is_none()
    }
}

impl LinkState {
    /// Opens a data message, which came over `path`, in the tunnel that it is for; and since when the peer has
    /// been asked there, if this is the answer ([`Tunnel::reached`]).
    ///
    /// # Errors
    /// There is no tunnel, or it is for none of them.
    pub fn open(
        &mut self,
        (path, message): (PathId, &[u8]),
        out: &mut [u8],
    ) -> (Result<Opened, TunnelError>, Option<Moment>) {
        let tunnels = [&mut self.tunnel, &mut self.coming, &mut self.former];
        for tunnel in tunnels.into_iter().flatten() {
            let opened = tunnel.open(None, message, out);
            if opened != Err(TunnelError::NotAuthentic) {
                let since = opened.ok().and_then(|_| tunnel.reached(message, path));
                return (opened, since);
            }
        }
        (Err(TunnelError::NotAuthentic), None)
    }

    /// Whether there is one tunnel alone, which opens many messages at once.
    pub(crate) fn opens_many(&self) -> bool {
        let alone = !self.closed && self.coming.is_none() && self.former.is_none();
        alone && self.tunnel.as_ref().is_some_and(Tunnel::opens_many)
    }

    /// Makes the next session in another tunnel. Whether there is one that goes on until then.
    pub fn make_anew(&mut self, other: Tunnel) -> bool {
        let goes_on = self.tunnel.as_ref().is_some_and(Tunnel::has_session);
        if goes_on {
            self.coming = Some(other);
        } else if self.tunnel.is_some() {
            self.tunnel = Some(other);
            self.session = false;
        }
        goes_on
    }

    /// Sends by the tunnel of new keys from now on, if it has a session.
    pub fn hand_over(&mut self) -> bool {
        let ready = self.coming.as_ref().is_some_and(Tunnel::has_session);
        if ready {
            self.former = std::mem::replace(&mut self.tunnel, self.coming.take());
        }
        ready
    }

    /// Ends all tunnels.
    pub fn end_tunnels(&mut self) {
        self.tunnel = None;
        self.coming = None;
        self.former = None;
        self.session = false;
    }
}

impl std::fmt::Debug for LinkState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkState")
            .field("path", &self.path)
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

/// A relay session: how frames to and from one planet are sealed.
pub struct RelayLeg {
    /// The planet.
    pub planet: PlanetId,
    /// Where it listens.
    pub endpoint: SocketAddr,
    /// Number of the session.
    pub session: u32,
    seal: RelaySeal,
    sent: AtomicU64,
    seen: Mutex<ReplayWindow>,
}

impl RelayLeg {
    /// The leg of a session that a planet granted.
    #[must_use]
    pub fn new(planet: PlanetId, endpoint: SocketAddr, grant: &RelayGrant) -> Self {
        Self {
            planet,
            endpoint,
            session: grant.session,
            seal: RelaySeal::new(&grant.key),
            sent: AtomicU64::new(0),
            seen: Mutex::default(),
        }
    }

    /// Appends a frame that carries `datagram` to `peer`.
    pub fn wrap(&self, peer: RelayAddress, datagram: &[u8], out: &mut Vec<u8>) {
        let header = RelayHeader {
            kind: RelayKind::Up,
            session: self.session,
            counter: self.next_counter(),
            peer,
        };
        self.seal.seal(&header, datagram, out);
    }

    /// Appends the question where the planet sees this node, with a token that it wants repeated (zeros
    /// if none); gives the counter that the answer will repeat.
    pub fn observe(&self, token: Token, out: &mut Vec<u8>) -> u64 {
        let counter = self.next_counter();
        self.seal.observe(self.session, counter, token, out);
        counter
    }

    /// The payload of a frame, if this session's key sealed it.
    #[must_use]
    pub fn open<'a>(&self, header: &RelayHeader, frame: &'a [u8]) -> Option<&'a [u8]> {
        if header.session != self.session {
            return None;
        }
        self.seal.open(header, frame).ok()
    }

    /// The window of counters that were seen; locked at most once per batch.
    pub fn seen(&self) -> MutexGuard<'_, ReplayWindow> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_counter(&self) -> u64 {
        self.sent.fetch_add(1, Ordering::Relaxed)
    }
}

impl std::fmt::Debug for RelayLeg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RelayLeg")
            .field("planet", &self.planet)
            .field("endpoint", &self.endpoint)
            .field("session", &self.session)
            .field("protocol", &PROTOCOL)
            .finish_non_exhaustive()
    }
}
