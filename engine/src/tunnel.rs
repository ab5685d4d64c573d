//! One `WireGuard` tunnel, by either of two machines: boringtun's, and one that seals and opens many
//! messages at once, for those who want the speed and take newer code for it.

mod batched;
mod boring;
mod clock;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519;

use podmesh_proto::key::{PublicKey, SecretKey};
use podmesh_proto::time::{Moment, Now};
use zeroize::Zeroizing;

use self::batched::{Batched, Shared};
use self::boring::Boring;
#[cfg(feature = "virtual-time")]
pub use self::boring::{advance_virtual_clock, start_virtual_clock};
use self::clock::Clock;
use crate::limits;
use crate::path_id::PathId;
use crate::simd::Registers;

/// First bytes of messages (`WireGuard` paper §5.4).
const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;
const MESSAGE_DATA: u8 = 4;
/// Where a handshake message has its sender's number; its receiver's follows in a response, and data has that
/// one in the sender's place.
const SENDER: usize = 4;
/// Bytes of a number.
const INDEX: usize = 4;
/// Session counters take the low byte of a `WireGuard` index, so tunnels are numbered with 24 bits.
pub const INDEX_BITS: u32 = 24;

/// Which machine makes tunnels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TunnelKind {
    /// boringtun's.
    #[default]
    Boringtun,
    /// The one for many messages at once.
    Batched {
        /// With a cipher of its own for them, where the processor has AVX-512 with IFMA, else with `ring`'s.
        wide: bool,
    },
}

/// What all tunnels of a node share: its key and the count of handshakes.
pub struct TunnelKeys {
    kind: TunnelKind,
    registers: Option<Registers>,
    clock: Arc<Clock>,
    secret: x25519::StaticSecret,
    public: x25519::PublicKey,
    limiter: Arc<RateLimiter>,
    /// Only ever asked for the first MAC; never under load.
    mac: RateLimiter,
    /// Counts initiations of everybody.
    gate: RateLimiter,
}

/// One tunnel to one peer.
pub struct Tunnel {
    machine: Machine,
    asked: Option<Asked>,
}

/// The last handshake message that went out.
struct Asked {
    /// First byte of what can answer it: numbers are used again, also of sessions that are still good.
    answer: u8,
    number: [u8; INDEX],
    path: PathId,
    at: Moment,
}

enum Machine {
    Boring(Box<Boring>),
    Batched(Box<Batched>),
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
    /// Of a node's `WireGuard` key, for tunnels of the default kind.
    #[must_use]
    pub fn new(secret: &SecretKey) -> Self {
        Self::of_kind(secret, TunnelKind::default())
    }

    /// The same for tunnels of a kind.
    #[must_use]
    pub fn of_kind(secret: &SecretKey, kind: TunnelKind) -> Self {
        let wide = kind == TunnelKind::Batched { wide: true };
        let registers = Registers::detect().filter(|_| wide);
        Self::with(secret, (kind, registers), Arc::default())
    }

    /// The same for another key.
    #[must_use]
    pub fn renewed(&self, secret: &SecretKey) -> Self {
        Self::with(secret, (self.kind, self.registers), Arc::clone(&self.clock))
    }

    fn with(
        secret: &SecretKey,
        (kind, registers): (TunnelKind, Option<Registers>),
        clock: Arc<Clock>,
    ) -> Self {
        let secret = secret.to_dalek();
        let public = x25519::PublicKey::from(&secret);
        let limit = limits::HANDSHAKES_BEFORE_COOKIES;
        Self {
            kind,
            registers,
            clock,
            limiter: Arc::new(RateLimiter::new(&public, limit)),
            mac: RateLimiter::new(&public, u64::MAX),
            gate: RateLimiter::new(&public, limits::INITIATIONS_BEFORE_COOKIES),
            secret,
            public,
        }
    }

    /// Tells the time, as all tunnels of these keys know it; boringtun's look at a clock of their own.
    pub fn tell(&self, now: Now) {
        self.clock.tell(now);
    }

    /// Starts a new second of counting handshakes; without it, cookies would be asked for ever.
    pub fn start_second(&self) {
        self.limiter.reset_count();
        self.mac.reset_count();
        self.gate.reset_count();
    }

    /// Whether a handshake message was made by somebody who knows this node's public key: the
    /// cheapest of all checks.
    #[must_use]
    pub fn first_mac_holds(&self, datagram: &[u8]) -> bool {
        let mut cookie = [0; limits::MIN_TUNNEL_BUFFER];
        self.mac.verify_packet(None, datagram, &mut cookie).is_ok()
    }

    /// Counts an initiation from `from`, whose first MAC holds. While there are many, it has to show that
    /// its sender is there, before it costs any more; otherwise the answer that asks for that is written
    /// into `out`, and its length given.
    #[must_use]
    pub fn asks_for_cookie(&self, from: IpAddr, datagram: &[u8], out: &mut [u8]) -> Option<usize> {
        match self.gate.verify_packet(Some(from), datagram, out) {
            Err(TunnResult::WriteToNetwork(cookie)) => Some(cookie.len()),
            _ => None,
        }
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
        let machine = match keys.kind {
            TunnelKind::Boringtun => {
                let tunnel = Boring::new(&keys.secret, peer.0, index, &keys.limiter);
                Machine::Boring(Box::new(tunnel))
            }
            TunnelKind::Batched { .. } => {
                let shared = Shared {
                    own: Zeroizing::new(keys.secret.to_bytes()),
                    limiter: &keys.limiter,
                    clock: &keys.clock,
                    registers: keys.registers,
                };
                Machine::Batched(Box::new(Batched::new(&shared, peer.0, index)))
            }
        };
        let asked = None;
        Some(Self { machine, asked })
    }

    /// Takes note that a message goes out over a path, for [`Self::reached`].
    pub fn asks(&mut self, message: &[u8], path: PathId, at: Moment) {
        let answer = match message.first() {
            Some(&INITIATION) => RESPONSE,
            Some(&RESPONSE) => MESSAGE_DATA,
            _ => return,
        };
        let number = number_at(message, SENDER);
        self.asked = number.map(|number| Asked {
            answer,
            number,
            path,
            at,
        });
    }

    /// When the last handshake message went out over `path`, if this authentic message, which came over it, is
    /// the first that nobody can send but who has got that one (RFC 9000 §8.1): the response to an initiation,
    /// data on the session of a response.
    #[inline]
    pub fn reached(&mut self, message: &[u8], path: PathId) -> Option<Moment> {
        let asked = self.asked.as_ref()?;
        let at = match asked.answer {
            RESPONSE => SENDER + INDEX,
            _ => SENDER,
        };
        let answers = message.first() == Some(&asked.answer)
            && asked.path == path
            && number_at(message, at) == Some(asked.number);
        let since = asked.at;
        if answers {
            self.asked = None;
        }
        answers.then_some(since)
    }

    /// Seals an inner packet into `out`; an empty one is a keepalive.
    ///
    /// # Errors
    /// `out` is shorter than [`buffer_for`] says, or too many packets wait already.
    pub fn seal(&mut self, packet: &[u8], out: &mut [u8]) -> Result<Sealed, TunnelError> {
        if packet.len() > limits::MAX_PACKET || out.len() < buffer_for(packet.len()) {
            return Err(TunnelError::Size);
        }
        match &mut self.machine {
            Machine::Boring(tunnel) => tunnel.seal(packet, out),
            Machine::Batched(tunnel) => tunnel.seal(packet, out),
        }
    }

    /// Writes a message into `out` whose content [`Self::seal_staged`] has to seal before it is sent, and
    /// gives its length. `None` if the tunnel has no session or seals one by one: use [`Self::seal`] then.
    pub fn stage(&mut self, packet: &[u8], out: &mut [u8]) -> Option<usize> {
        match &mut self.machine {
            Machine::Boring(_) => None,
            Machine::Batched(tunnel) => tunnel.stage(packet, out),
        }
    }

    /// Seals what was staged since the tunnel was locked: where each message begins and ends in `arena`.
    pub fn seal_staged(&self, arena: &mut [u8], messages: &[(usize, usize)]) {
        if let Machine::Batched(tunnel) = &self.machine {
            tunnel.seal_staged(arena, messages);
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
        match &mut self.machine {
            Machine::Boring(tunnel) => tunnel.open(from, message, out),
            Machine::Batched(tunnel) => tunnel.open(from, message, out),
        }
    }

    /// Whether [`Self::open_many`] opens anything.
    #[must_use]
    pub fn opens_many(&self) -> bool {
        matches!(self.machine, Machine::Batched(_))
    }

    /// Opens data messages, which begin and end there in `arena`, in order. `outcomes`, all
    /// [`TunnelError::NotAuthentic`] before, become the lengths of the inner packets: each lies 16 bytes
    /// behind its message's beginning, and is empty in a keepalive.
    pub fn open_many(
        &mut self,
        arena: &mut [u8],
        messages: &[(usize, usize)],
        outcomes: &mut [Result<usize, TunnelError>],
    ) {
        if let Machine::Batched(tunnel) = &mut self.machine {
            tunnel.open_many(arena, messages, outcomes);
        }
    }

    /// Starts a handshake, also when one is under way, and writes its initiation into `out`.
    pub fn initiate(&mut self, out: &mut [u8]) -> Option<usize> {
        if out.len() < limits::MIN_TUNNEL_BUFFER {
            return None;
        }
        match &mut self.machine {
            Machine::Boring(tunnel) => tunnel.initiate(out),
            Machine::Batched(tunnel) => tunnel.initiate(out),
        }
    }

    /// Drives the timers: rekeys, retries, keepalives and the end of keys all happen in here, and
    /// only in here. May write one message into `out`.
    pub fn tick(&mut self, out: &mut [u8]) -> Option<usize> {
        if out.len() < limits::MIN_TUNNEL_BUFFER {
            return None;
        }
        match &mut self.machine {
            Machine::Boring(tunnel) => tunnel.tick(out),
            Machine::Batched(tunnel) => tunnel.tick(out),
        }
    }

    /// Seals the next packet that waited for a session into `out`, which must be as long as the
    /// longest packet needs. `None` when nothing can go.
    pub fn flush(&mut self, out: &mut [u8]) -> Option<usize> {
        if !self.can_flush() || out.len() < buffer_for(limits::MAX_PACKET) {
            return None;
        }
        match &mut self.machine {
            Machine::Boring(tunnel) => tunnel.flush(out),
            Machine::Batched(tunnel) => tunnel.flush(out),
        }
    }

    /// Whether packets wait that could go now.
    #[must_use]
    pub fn can_flush(&self) -> bool {
        let waits = match &self.machine {
            Machine::Boring(tunnel) => tunnel.waits(),
            Machine::Batched(tunnel) => tunnel.waits(),
        };
        waits && self.has_session()
    }

    /// Whether there is a session to send on.
    #[must_use]
    pub fn has_session(&self) -> bool {
        self.handshake_age().is_some()
    }

    /// Time since the handshake that made the present session.
    #[must_use]
    pub fn handshake_age(&self) -> Option<Duration> {
        match &self.machine {
            Machine::Boring(tunnel) => tunnel.handshake_age(),
            Machine::Batched(tunnel) => tunnel.handshake_age(),
        }
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

fn number_at(message: &[u8], at: usize) -> Option<[u8; INDEX]> {
    message.get(at..at + INDEX)?.first_chunk().copied()
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
