//! A tunnel of boringtun.
//!
//! boringtun 0.7.1 is a state machine with sharp edges, and each of them is taken off here or by the caller:
//! it panics when a buffer is too small ([`Tunnel`](super::Tunnel) checks every size first), its replay
//! window overflows on counters near 2^64 (which are refused unseen), it leaves packets that
//! waited for a session of the other side's making in its queue ([`Boring::flush`]), it takes low-order
//! keys, and it limits handshakes by one counter for everybody (the engine
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

/// One tunnel to one peer.
pub(super) struct Boring {
    tunn: Tunn,
    waiting: usize,
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
        Self { tunn, waiting: 0 }
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

    pub(super) fn open(
        &mut self,
        from: Option<IpAddr>,
        message: &[u8],
        out: &mut [u8],
    ) -> Result<Opened, TunnelError> {
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

    pub(super) fn initiate(&mut self, out: &mut [u8]) -> Option<usize> {
        match self.tunn.format_handshake_initiation(out, true) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            _ => None,
        }
    }

    pub(super) fn tick(&mut self, out: &mut [u8]) -> Option<usize> {
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
