//! A tunnel of boringtun.
//!
//! boringtun 0.7.1 is a state machine with sharp edges, and each of them is taken off here or by the caller:
//! it panics when a buffer is too small ([`Tunnel`](super::Tunnel) checks every size first), its replay
//! window overflows on counters near 2^64 (which are refused unseen), it leaves packets that
//! waited for a session of the other side's making in its queue ([`Boring::flush`]), it sends on a session
//! that the other side hasn't confirmed if that falls into the place of the present one ([`Ring`]), it takes
//! low-order keys, and it limits handshakes by one counter for everybody (the engine
//! asks [`crate::limiter`] first and gives it a high limit). It reads the clock and the system's
//! randomness by itself; with the feature `virtual-time` its clock is the simulator's.
//!
//! It logs by itself, also at ERROR when a tunnel merely falls asleep: a program should show nothing of
//! the target `boringtun`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;

use super::{Opened, Sealed, TunnelError, is_data};
use crate::limits;
use crate::mutation::{self, Mutant};

/// One tunnel to one peer.
pub(super) struct Boring {
    tunn: Tunn,
    waiting: usize,
    ring: Ring,
}

/// boringtun's sessions lie in a ring of eight by the low bits of their numbers, which each initiation sent and
/// each one answered use up, whatever becomes of it. It sends on what lies in the place of the session that was
/// used last (place 0 before there is any). A session that the other side begins is put into its place at once:
/// in that one it would end a session that works, and be sent on before the other side has confirmed it, which
/// only a message of data does (`WireGuard` paper §5.4.4 and §5.4.6). This knows what boringtun doesn't show.
#[derive(Default)]
struct Ring {
    /// Place of the last number.
    last: usize,
    /// Place of the session that is sent on.
    current: usize,
    /// The tick after which the session in each place was made; boringtun's times are those of its ticks.
    made: [u64; PLACES],
    ticks: u64,
}

/// Sessions of a ring.
const PLACES: usize = 8;
/// First bytes of handshakes (`WireGuard` paper §5.4).
const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;

impl Ring {
    /// The place of the session whose number stands there in a message.
    fn place(message: &[u8], at: usize) -> Option<usize> {
        let low = message.get(at)?;
        Some(usize::from(*low) % PLACES)
    }

    /// Whether the next number is in the place of the session that is sent on.
    fn is_closed(&self) -> bool {
        (self.last + 1) % PLACES == self.current && !mutation::is(Mutant::SendsUnconfirmed)
    }

    /// A message was made, which may have used up a number.
    fn wrote(&mut self, message: &[u8]) {
        if let (Some(&INITIATION | &RESPONSE), Some(place)) =
            (message.first(), Self::place(message, 4))
        {
            self.last = place;
            if message.first() == Some(&RESPONSE)
                && let Some(made) = self.made.get_mut(place)
            {
                *made = self.ticks;
            }
        }
    }

    /// A message of the other side was authentic.
    fn read(&mut self, message: &[u8]) {
        match message.first() {
            Some(&RESPONSE) => {
                if let Some(place) = Self::place(message, 8)
                    && let Some(made) = self.made.get_mut(place)
                {
                    *made = self.ticks;
                    self.current = place;
                }
            }
            Some(_) if is_data(message) => {
                let made = |place: usize| self.made.get(place).copied().unwrap_or(0);
                if let Some(place) = Self::place(message, 4)
                    && made(place) >= made(self.current)
                {
                    self.current = place;
                }
            }
            _ => {}
        }
    }
}

impl Boring {
    pub(super) fn new(
        secret: &x25519::StaticSecret,
        peer: [u8; 32],
        index: u32,
        limiter: &Arc<RateLimiter>,
    ) -> Self {
        let limiter = Some(Arc::clone(limiter));
        let peer = x25519::PublicKey::from(peer);
        #[cfg(not(feature = "virtual-time"))]
        let tunn = Tunn::new(secret.clone(), peer, None, None, index, limiter);
        #[cfg(feature = "virtual-time")]
        let tunn = at_the_start_of_the_clock(|| {
            Tunn::new(secret.clone(), peer, None, None, index, limiter)
        });
        Self {
            tunn,
            waiting: 0,
            ring: Ring::default(),
        }
    }

    pub(super) fn seal(&mut self, packet: &[u8], out: &mut [u8]) -> Result<Sealed, TunnelError> {
        if self.waiting >= limits::MAX_WAITING && !self.has_session() {
            return Err(TunnelError::Full);
        }
        match self.tunn.encapsulate(packet, out) {
            TunnResult::WriteToNetwork(message) if is_data(message) => {
                Ok(Sealed::Data(message.len()))
            }
            TunnResult::WriteToNetwork(message) => {
                self.ring.wrote(message);
                self.waiting += 1;
                Ok(Sealed::Initiation(message.len()))
            }
            TunnResult::Done => {
                self.waiting += 1;
                Ok(Sealed::Waiting)
            }
            _ => Err(TunnelError::NotAuthentic),
        }
    }

    pub(super) fn open(
        &mut self,
        from: Option<IpAddr>,
        message: &[u8],
        out: &mut [u8],
    ) -> Result<Opened, TunnelError> {
        if message.first() == Some(&INITIATION) && self.ring.is_closed() {
            // Uses up the number. Answering ends the attempt that this begins; if the message is a forged one,
            // the attempt goes on: a handshake more, once in eight numbers.
            self.initiate(&mut [0; limits::MIN_TUNNEL_BUFFER]);
        }
        let opened = match self.tunn.decapsulate(from, message, out) {
            TunnResult::Done => Ok(Opened::Keepalive),
            TunnResult::WriteToNetwork(reply) => {
                self.ring.wrote(reply);
                Ok(Opened::Reply(reply.len()))
            }
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                Ok(Opened::Packet(packet.len()))
            }
            // It says the same of what is no message at all.
            TunnResult::Err(WireGuardError::InvalidPacket)
                if Tunn::parse_incoming_packet(message).is_ok() =>
            {
                Err(TunnelError::NotIp)
            }
            TunnResult::Err(_) => Err(TunnelError::NotAuthentic),
        };
        if opened != Err(TunnelError::NotAuthentic) {
            self.ring.read(message);
        }
        opened
    }

    pub(super) fn initiate(&mut self, out: &mut [u8]) -> Option<usize> {
        match self.tunn.format_handshake_initiation(out, true) {
            TunnResult::WriteToNetwork(message) => {
                self.ring.wrote(message);
                Some(message.len())
            }
            _ => None,
        }
    }

    pub(super) fn tick(&mut self, out: &mut [u8]) -> Option<usize> {
        self.ring.ticks += 1;
        match self.tunn.update_timers(out) {
            TunnResult::WriteToNetwork(message) => {
                self.ring.wrote(message);
                Some(message.len())
            }
            TunnResult::Err(WireGuardError::ConnectionExpired) => {
                // It has thrown its queue away.
                self.waiting = 0;
                None
            }
            _ => None,
        }
    }

    pub(super) fn flush(&mut self, out: &mut [u8]) -> Option<usize> {
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

    pub(super) fn waits(&self) -> bool {
        self.waiting > 0
    }

    fn has_session(&self) -> bool {
        self.handshake_age().is_some()
    }

    pub(super) fn handshake_age(&self) -> Option<Duration> {
        self.tunn.time_since_last_handshake()
    }
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
