//! Bounds and intervals of the engine, with unit and reason.

use std::time::Duration;

/// Bytes. The largest inner packet: the IPv4 and IPv6 length fields have 16 bits.
pub const MAX_PACKET: usize = 65_535;
/// Bytes that WireGuard adds to an inner packet (header 16, seal 16).
pub const WIREGUARD_OVERHEAD: usize = 32;
/// Bytes. The smallest buffer that a tunnel may write a message of any kind into.
pub const MIN_TUNNEL_BUFFER: usize = 148;
/// Bytes. Inner MTU below which IPv6 doesn't work (RFC 8200 §5).
pub const MIN_MTU: u16 = 1_280;
/// Bytes. Inner MTU towards `WireGuard` peers that don't speak podmesh, which can't be asked: what fits
/// Ethernet over either family.
pub const STOCK_MTU: u16 = 1_420;
/// Messages that a tunnel may count on one session (`Reject-After-Messages` of the `WireGuard` paper
/// §6.1): above, the replay window's arithmetic would overflow.
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// Inner packets that wait for a peer's first path or session, per peer.
pub const MAX_WAITING: usize = 32;
/// Bytes of inner packets that wait for paths, over all peers.
pub const MAX_WAITING_BYTES: usize = 8 << 20;
/// Handshakes per second and source that are looked at.
pub const HANDSHAKES_PER_SECOND: u32 = 20;
/// Handshakes that a source may send at once.
pub const HANDSHAKE_BURST: u32 = 5;
/// Sources that the handshake limiter remembers.
pub const MAX_HANDSHAKE_SOURCES: usize = 64 * 1024;
/// Initiations per second over all sources above which one costs this node no key agreement before its
/// sender has shown by a cookie that it is where it says.
pub const INITIATIONS_BEFORE_COOKIES: u64 = 500;
/// Control packets that a peer may send at once: a greeting has a few dozen.
pub const CONTROL_BURST: u32 = 200;
/// Control packets per second of a peer after that. An honest one sends a few.
pub const CONTROL_PER_SECOND: u32 = 50;
/// Control packets of one peer that were dropped, from which on somebody should know.
pub const CONTROL_WORTH_A_LINE: u64 = 1_000;
/// Handshakes per second over all sources above which cookies are asked for.
pub const HANDSHAKES_BEFORE_COOKIES: u64 = 4_000;
/// How often the engine looks at what is told in whole seconds.
pub const SECOND: Duration = Duration::from_secs(1);
/// How often tunnels look at their timers: `WireGuard`'s are whole seconds, so a quarter is enough.
pub const TUNNEL_TICK: Duration = Duration::from_millis(250);
/// After a handshake tunnels are looked at that often for so long; otherwise half as often.
pub const STIRRED: Duration = Duration::from_secs(10);
/// Between two heartbeats on a control connection.
pub const HEARTBEAT: Duration = Duration::from_secs(15);
/// A planet that takes a member for a stranger this long after its welcome is connected to anew.
pub const STRANGE: Duration = Duration::from_secs(45);
/// One that says why it does is connected to half as often each time, down to once in 48 minutes.
pub const STRANGE_DOUBLINGS: u32 = 6;
/// Silence after which a control connection is given up: three heartbeats and some delay.
pub const PLANET_SILENCE: Duration = Duration::from_secs(47);
/// Between two questions where a planet sees a socket; keeps a NAT's mapping open, too.
pub const OBSERVE: Duration = Duration::from_secs(15);
/// Between two tries of a question that got no answer, right after connecting.
pub const OBSERVE_RETRY: Duration = Duration::from_secs(1);
/// Between two proofs to a planet that this node is where it sends from.
pub const PROOF_GAP: Duration = Duration::from_millis(25);
/// At most this often is news about paths written to disk.
pub const PERSIST_PATHS: Duration = Duration::from_secs(30);
/// The default of [`crate::config::Thresholds::eager_peers`].
pub const EAGER_PEERS: usize = 256;
/// Per peer: how long the forwarding table, host plan and stored state may lag behind, so that
/// building them stays a small share of the work however many members arrive.
pub const REBUILD_PER_PEER: Duration = Duration::from_micros(100);
/// Health entries that one planet, the disk or the operator can cause.
pub const MAX_LIES: usize = 64;
/// The same of one member, of which there are more.
pub const MAX_LIES_OF_MEMBER: usize = 8;
/// Seconds that a record gets whose signature none of its node's known identities made: the renewal that
/// explains it may be on another way. Also what a planet gets that says the older, from when it is told the
/// newer: it believes at once, and tells on at once. Only afterwards is it a lie.
pub const DOUBT: u64 = 4;
/// Connections of a planet that may break while it is in doubt about something; on the next one it is named
/// at once.
pub const DOUBTS: u32 = 3;
/// Before a planet is told what is newer than its word: mostly it hears that from whom it is about.
pub const LATE: Duration = Duration::from_secs(1);
/// Between two such memberships to one planet: it verifies so many of one node in the long run.
pub const LATE_GAP: Duration = Duration::from_secs(2);
/// Quarantined members that are remembered.
pub const MAX_QUARANTINED: usize = 1_024;
/// Editions of a peer's endpoint record that count at once: a start brings about four, a move as many.
pub const EDITION_BURST: u32 = 8;
/// Between two editions after those. Each may have sixteen new places for every peer to probe.
pub const EDITION_GAP: Duration = Duration::from_secs(5);
/// Pings under way.
pub const MAX_PINGS: usize = 64;
/// How long a packet waits for a first path.
pub const MAX_WAIT: Duration = Duration::from_secs(5);
/// How long a ping waits for its answer.
pub const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// The default of [`crate::config::Thresholds::idle`].
pub const IDLE: Duration = Duration::from_secs(600);
/// The default of [`crate::config::Thresholds::in_vain`].
pub const IN_VAIN: Duration = Duration::from_secs(30);
/// Memberships per message of a report, and how often one goes out: a planet that relearns from
/// many members is not flooded.
pub const REPORT_GAP: Duration = Duration::from_millis(50);
/// Statements of the root that a peer is told when its path comes up, about 200 bytes each: the newest
/// revocations. The rest is compared.
pub const MAX_GREETING: usize = 8;
/// News of the root that are passed on to everybody at once, per second; of more, everybody compares.
pub const PUSHED_PER_SECOND: u32 = podmesh_proto::limits::PUSHED_PER_SECOND;
/// Members with which statements may be waiting to be compared.
pub const MAX_COMPARISONS: usize = 64;
/// How long planets have to tell what a member holds more, before the member is asked.
pub const PLANETS_FIRST: Duration = Duration::from_secs(3);
/// Parts of all statements that a member is asked for in one turn, a packet each.
pub const BUCKETS_ASKED: usize = 8;
/// A member that says it lacks the same again is told again after this.
pub const TOLD_AGAIN: Duration = Duration::from_secs(30);
/// Between two looks for revocations of tokens that change nothing any more.
pub const SPENT_LOOK: Duration = Duration::from_secs(3_600);
/// Seconds for which the revocation of a token is kept beyond the token's end: who lets go of it by a
/// clock that is ahead is told it again by others.
pub const TOKEN_AFTERLIFE: u64 = 30 * 24 * 3_600;
/// Per statement of the root: how long the stored state may lag behind, as with [`REBUILD_PER_PEER`].
pub const PERSIST_PER_STATEMENT: Duration = Duration::from_micros(10);
/// Members that news are told to through tunnels at once.
pub const GOSSIP_FANOUT: usize = 32;
/// Shortest and longest wait before a planet that said no is asked again, whatever it says.
pub const PATIENCE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Between two tries to have a renewal receipted, when no planet says otherwise.
pub const RENEW_RETRY: Duration = Duration::from_secs(20);
/// How long a tunnel of former keys goes on when no tunnel of the new ones comes about: as long as its
/// last session would (`Reject-After-Time`, `WireGuard` paper §6.1).
pub const FORMER_KEYS: Duration = Duration::from_secs(180);
/// How long what was sent by former keys may still arrive once the new ones have taken over.
pub const HANDOVER: Duration = Duration::from_secs(10);
/// Departures that are kept on disk when a planet says them of nodes that this one never knew.
pub const MAX_TOLD_DEPARTURES: usize = 4_096;
/// Departures of nodes that this one never knew that are remembered when members say them: anybody can
/// make a key and sign its departure.
pub const MAX_STRANGE_DEPARTURES: usize = 256;
/// The same of one member.
pub const MAX_STRANGE_DEPARTURES_OF_ONE: usize = 8;
/// How long the first telling of a directory counts as one batch, in which nobody was first. A planet
/// that never ends it must not keep what it told open for contest.
pub const FIRST_TELLING: Duration = Duration::from_secs(5);

/// Handshake initiations of a peer that are known again: far more than it makes between the first sign
/// of a new life and the first message through the new tunnel.
pub const KNOWN_INITIATIONS: usize = 16;
/// How long an initiation may be under way after a later one of the same peer has arrived by a shorter
/// way.
pub const OVERTAKEN: Duration = Duration::from_secs(2);
