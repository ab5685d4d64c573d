//! One `WireGuard` tunnel: the only file that knows boringtun.
//!
//! boringtun 0.7.1 is a state machine with sharp edges, and each of them is taken off here:
//! it panics when a buffer is too small ([`Tunnel`] checks every size first), its replay window
//! overflows on counters near 2^64 ([`Tunnel::open`] refuses them unseen), it leaves packets that
//! waited for a session of the other side's making in its queue ([`Tunnel::flush`]), it takes low-order
//! keys ([`Tunnel::new`] doesn't), and it limits handshakes by one counter for everybody (the engine
//! asks [`crate::limiter`] first and gives it a high limit). It reads the clock and the system's
//! randomness by itself; with the feature `virtual-time` its clock is the simulator's.
//!
//! It logs by itself, also at ERROR when a tunnel merely falls asleep: a program should show nothing of
//! the target `boringtun`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519;

use podmesh_proto::key::{PublicKey, SecretKey};

use crate::limits;

const MESSAGE_DATA: u8 = 4;
/// Session counters take the low byte of a `WireGuard` index, so tunnels are numbered with 24 bits.
pub const INDEX_BITS: u32 = 24;

/// What all tunnels of a node share: its key and the count of handshakes.
pub struct TunnelKeys {
    secret: x25519::StaticSecret,
    public: x25519::PublicKey,
    limiter: Arc<RateLimiter>,
    /// Only ever asked for the first MAC; never under load.
    mac: RateLimiter,
}

/// One tunnel to one peer.
pub struct Tunnel {
    tunn: Tunn,
    waiting: usize,
}

/// What became of an inner packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealed {
    /// A data message of this many bytes was written.
    Data(usize),
    /// The packet waits for a session; a handshake initiation of this many bytes was written.
    Initiation(usize),
    /// The packet waits for a session that is being made already.
    Waiting,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// An inner packet of this many bytes was written.
    Packet(usize),
    /// An answer of this many bytes was written: a handshake response, a cookie, or the first
    /// message on a new session.
    Reply(usize),
    /// Authentic and empty.
    Keepalive,
}

/// Why a tunnel didn't take something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TunnelError {
    /// The caller's buffer, or the packet, has the wrong size.
    #[error("packet or buffer of the wrong size")]
    Size,
    /// Too many packets wait for a session.
    #[error("too many packets wait for a session")]
    Full,
    /// The message isn't authentic, was seen before, or belongs to no session.
    #[error("not authentic, or of no session")]
    NotAuthentic,
    /// Authentic, but its content is no IP packet.
    #[error("no IP packet inside")]
    NotIp,
}

impl TunnelKeys {
    /// Of a node's `WireGuard` key.
    #[must_use]
    pub fn new(secret: &SecretKey) -> Self {
        let secret = secret.to_dalek();
        let public = x25519::PublicKey::from(&secret);
        let limit = limits::HANDSHAKES_BEFORE_COOKIES;
        Self {
            limiter: Arc::new(RateLimiter::new(&public, limit)),
            mac: RateLimiter::new(&public, u64::MAX),
            secret,
            public,
        }
    }

    /// Starts a new second of counting handshakes; without it, cookies would be asked for ever.
    pub fn start_second(&self) {
        self.limiter.reset_count();
        self.mac.reset_count();
    }

    /// Whether a handshake message was made by somebody who knows this node's public key: the
    /// cheapest of all checks.
    #[must_use]
    pub fn first_mac_holds(&self, datagram: &[u8]) -> bool {
        let mut cookie = [0; limits::MIN_TUNNEL_BUFFER];
        self.mac.verify_packet(None, datagram, &mut cookie).is_ok()
    }

    /// Whose key a handshake initiation says it is from. Only its holder's tunnel can tell if that
    /// is true.
    #[must_use]
    pub fn initiator_of(&self, datagram: &[u8]) -> Option<PublicKey> {
        let Ok(Packet::HandshakeInit(initiation)) = Tunn::parse_incoming_packet(datagram) else {
            return None;
        };
        let half = parse_handshake_anon(&self.secret, &self.public, &initiation).ok()?;
        Some(PublicKey(half.peer_static_public))
    }
}

impl Tunnel {
    /// A tunnel to the holder of `peer`, numbered `index` (24 bits); `None` for a low-order key.
    #[must_use]
    pub fn new(keys: &TunnelKeys, peer: &PublicKey, index: u32) -> Option<Self> {
        if peer.is_low_order() || index >> INDEX_BITS != 0 {
            return None;
        }
        let limiter = Some(Arc::clone(&keys.limiter));
        let peer = x25519::PublicKey::from(peer.0);
        #[cfg(not(feature = "virtual-time"))]
        let tunn = Tunn::new(keys.secret.clone(), peer, None, None, index, limiter);
        #[cfg(feature = "virtual-time")]
        let tunn = at_the_start_of_the_clock(|| {
            Tunn::new(keys.secret.clone(), peer, None, None, index, limiter)
        });
        Some(Self { tunn, waiting: 0 })
    }

    /// Seals an inner packet into `out`; an empty one is a keepalive.
    ///
    /// # Errors
    /// `out` is shorter than [`buffer_for`] says, or too many packets wait already.
    pub fn seal(&mut self, packet: &[u8], out: &mut [u8]) -> Result<Sealed, TunnelError> {
        if packet.len() > limits::MAX_PACKET || out.len() < buffer_for(packet.len()) {
            return Err(TunnelError::Size);
        }
        if self.waiting >= limits::MAX_WAITING && !self.has_session() {
            return Err(TunnelError::Full);
        }
        match self.tunn.encapsulate(packet, out) {
            TunnResult::WriteToNetwork(message) if is_data(message) => {
                Ok(Sealed::Data(message.len()))
            }
            TunnResult::WriteToNetwork(message) => {
                let length = message.len();
                self.waiting += 1;
                Ok(Sealed::Initiation(length))
            }
            TunnResult::Done => {
                self.waiting += 1;
                Ok(Sealed::Waiting)
            }
            _ => Err(TunnelError::NotAuthentic),
        }
    }

    /// Opens a message of any kind into `out`. `from` is where a cookie would be sent to.
    ///
    /// # Errors
    /// Not for this tunnel, not authentic, a replay, or no IP packet inside.
    pub fn open(
        &mut self,
        from: Option<IpAddr>,
        message: &[u8],
        out: &mut [u8],
    ) -> Result<Opened, TunnelError> {
        if message.is_empty() || out.len() < message.len().max(limits::MIN_TUNNEL_BUFFER) {
            return Err(TunnelError::Size);
        }
        if counter_of(message).is_some_and(|counter| counter >= limits::REJECT_AFTER_MESSAGES) {
            return Err(TunnelError::NotAuthentic);
        }
        match self.tunn.decapsulate(from, message, out) {
            TunnResult::Done => Ok(Opened::Keepalive),
            TunnResult::WriteToNetwork(reply) => Ok(Opened::Reply(reply.len())),
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                Ok(Opened::Packet(packet.len()))
            }
            TunnResult::Err(WireGuardError::InvalidPacket) => Err(TunnelError::NotIp),
            TunnResult::Err(_) => Err(TunnelError::NotAuthentic),
        }
    }

    /// Starts a handshake, also when one is under way, and writes its initiation into `out`.
    pub fn initiate(&mut self, out: &mut [u8]) -> Option<usize> {
        if out.len() < limits::MIN_TUNNEL_BUFFER {
            return None;
        }
        match self.tunn.format_handshake_initiation(out, true) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            _ => None,
        }
    }

    /// Drives the timers: rekeys, retries, keepalives and the end of keys all happen in here, and
    /// only in here. May write one message into `out`.
    pub fn tick(&mut self, out: &mut [u8]) -> Option<usize> {
        if out.len() < limits::MIN_TUNNEL_BUFFER {
            return None;
        }
        match self.tunn.update_timers(out) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            TunnResult::Err(WireGuardError::ConnectionExpired) => {
                // It has thrown its queue away.
                self.waiting = 0;
                None
            }
            _ => None,
        }
    }

    /// Seals the next packet that waited for a session into `out`, which must be as long as the
    /// longest packet needs. `None` when nothing can go.
    pub fn flush(&mut self, out: &mut [u8]) -> Option<usize> {
        if !self.can_flush() || out.len() < buffer_for(limits::MAX_PACKET) {
            return None;
        }
        match self.tunn.decapsulate(None, &[], out) {
            TunnResult::WriteToNetwork(message) => {
                self.waiting = self.waiting.saturating_sub(1);
                Some(message.len())
            }
            _ => {
                self.waiting = 0;
                None
            }
        }
    }

    /// Whether packets wait that could go now.
    #[must_use]
    pub fn can_flush(&self) -> bool {
        self.waiting > 0 && self.has_session()
    }

    /// Whether there is a session to send on.
    #[must_use]
    pub fn has_session(&self) -> bool {
        self.handshake_age().is_some()
    }

    /// Time since the handshake that made the present session.
    #[must_use]
    pub fn handshake_age(&self) -> Option<Duration> {
        self.tunn.time_since_last_handshake()
    }
}

/// Bytes that a buffer must have for a packet of `length` bytes.
#[must_use]
pub const fn buffer_for(length: usize) -> usize {
    let sealed = length + limits::WIREGUARD_OVERHEAD;
    if sealed < limits::MIN_TUNNEL_BUFFER {
        limits::MIN_TUNNEL_BUFFER
    } else {
        sealed
    }
}

/// The tunnel that a response, cookie or data message is for: the upper 24 bits of its receiver
/// index.
#[must_use]
pub fn receiver_of(message: &[u8]) -> Option<u32> {
    let at = match message.first()? {
        2 => 8,
        3 | 4 => 4,
        _ => return None,
    };
    let index = message.get(at..at + 4)?.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*index) >> 8)
}

/// The ephemeral key of a handshake initiation, by which it is known again (the `WireGuard` paper,
/// §5.4.2).
#[must_use]
pub fn ephemeral_of(message: &[u8]) -> Option<[u8; 32]> {
    let initiation = message.first() == Some(&1);
    let key = message.get(8..40).filter(|_| initiation)?;
    key.first_chunk().copied()
}

/// Sets boringtun's clock on this thread to zero.
#[cfg(feature = "virtual-time")]
pub fn start_virtual_clock() {
    mock_instant::MockClock::set_time(Duration::ZERO);
}

/// Makes a tunnel as if at time zero. Handshakes carry the wall clock of the tunnel's making plus
/// the time since then. The wall clock stands still beside the virtual one, so the tunnels of two
/// lives of a node must count from the same instant, or the second one's handshakes look replayed.
#[cfg(feature = "virtual-time")]
fn at_the_start_of_the_clock(make: impl FnOnce() -> Tunn) -> Tunn {
    let now = mock_instant::MockClock::time();
    start_virtual_clock();
    let mut tunn = make();
    mock_instant::MockClock::set_time(now);
    // Its timers begin now: the first look at them starts what seems long overdue afresh.
    let _ = tunn.update_timers(&mut [0; limits::MIN_TUNNEL_BUFFER]);
    tunn
}

/// Advances boringtun's clock on this thread.
#[cfg(feature = "virtual-time")]
pub fn advance_virtual_clock(by: Duration) {
    mock_instant::MockClock::advance(by);
}

fn is_data(message: &[u8]) -> bool {
    message.first() == Some(&MESSAGE_DATA)
}

fn counter_of(message: &[u8]) -> Option<u64> {
    let counter = message
        .get(8..16)
        .filter(|_| is_data(message))?
        .first_chunk::<8>()?;
    Some(u64::from_le_bytes(*counter))
}

#[cfg(test)]
mod tests;
