//! A `WireGuard` tunnel that seals and opens many messages at once.
//!
//! It speaks what [boringtun's](super::boring) speaks. Handshakes are `snow`'s, limits and cookies
//! boringtun's, the cipher `ring`'s, or, if the configuration asks for it, the one of [`crate::simd`].
//! Sessions and timers are as the `WireGuard` paper has them: the present one, the one before, whose
//! messages may still arrive, and one that a peer has made and not yet used.

mod handshake;
mod session;
mod timers;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use boringtun::noise::TunnResult;
use boringtun::noise::rate_limiter::RateLimiter;
use podmesh_proto::time::Moment;
use zeroize::Zeroizing;

use self::handshake::{INITIATION, Initiated, Parties, Stamp};
use self::session::{HEADER, MOST, Session, counter_of};
use self::timers::{COOKIE_TIME, Due, REJECT_AFTER_TIME, Timers};
use super::clock::Clock;
use super::{Opened, Sealed, TunnelError};
use crate::limits;
use crate::packet::Header;
use crate::simd::{Registers, TAG};

/// TAI64's label of 1970 (paper §5.4.2 and <https://cr.yp.to/libtai/tai64.html>).
/// boringtun counts from there, too: a node may go from one to the other.
const EPOCH: u64 = (1 << 62) + 37;

/// The length of an inner packet.
type Outcome = Result<usize, TunnelError>;

/// One tunnel to one peer.
pub(super) struct Batched {
    parties: Parties,
    index: u32,
    limiter: Arc<RateLimiter>,
    clock: Arc<Clock>,
    registers: Option<Registers>,
    current: Option<Session>,
    previous: Option<Session>,
    /// Made by the peer, who has not used it yet.
    next: Option<Session>,
    /// Low byte of the next session's number.
    number: u8,
    initiated: Option<Box<(u32, Initiated)>>,
    /// Number and first MAC of the last handshake message, which a cookie may be for.
    sent: Option<(u32, [u8; 16])>,
    cookie: Option<(Moment, [u8; 16])>,
    timers: Timers,
    /// The peer's latest, and ours.
    stamps: (Stamp, Stamp),
    waiting: VecDeque<Vec<u8>>,
}

/// What the tunnels of a node share.
pub(super) struct Shared<'a> {
    pub(super) own: Zeroizing<[u8; 32]>,
    pub(super) limiter: &'a Arc<RateLimiter>,
    pub(super) clock: &'a Arc<Clock>,
    pub(super) registers: Option<Registers>,
}

impl Batched {
    pub(super) fn new(shared: &Shared<'_>, peer: [u8; 32], index: u32) -> Self {
        Self {
            parties: Parties {
                own: shared.own.clone(),
                peer,
            },
            index,
            limiter: Arc::clone(shared.limiter),
            clock: Arc::clone(shared.clock),
            registers: shared.registers,
            current: None,
            previous: None,
            next: None,
            number: 0,
            initiated: None,
            sent: None,
            cookie: None,
            timers: Timers::default(),
            stamps: ([0; 12], [0; 12]),
            waiting: VecDeque::new(),
        }
    }

    pub(super) fn handshake_age(&self) -> Option<Duration> {
        let session = self.current.as_ref()?;
        let age = self.clock.moment().since(session.born);
        (age < REJECT_AFTER_TIME).then_some(age)
    }

    pub(super) fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(super) fn seal(&mut self, packet: &[u8], out: &mut [u8]) -> Result<Sealed, TunnelError> {
        if let Some(length) = self.stage(packet, out) {
            self.seal_staged(out, &[(0, length)]);
            return Ok(Sealed::Data(length));
        }
        if self.handshake_age().is_some() {
            return Err(TunnelError::Size);
        }
        if self.waiting.len() >= limits::MAX_WAITING {
            return Err(TunnelError::Full);
        }
        self.waiting.push_back(packet.to_vec());
        if self.timers.is_trying() {
            return Ok(Sealed::Waiting);
        }
        let length = self.initiate(out).ok_or(TunnelError::NotAuthentic)?;
        Ok(Sealed::Initiation(length))
    }

    /// Writes a message whose content [`Self::seal_staged`] must still seal; gives its bytes, or `None`
    /// without a session.
    pub(super) fn stage(&mut self, packet: &[u8], out: &mut [u8]) -> Option<usize> {
        let now = self.clock.moment();
        let current = self.current.as_mut();
        let session = current.filter(|it| now.since(it.born) < REJECT_AFTER_TIME)?;
        let length = session.stage(packet, out)?;
        self.timers.sent(session, !packet.is_empty(), now);
        Some(length)
    }

    /// Seals what was staged since the tunnel was locked: where each message begins and ends.
    pub(super) fn seal_staged(&self, arena: &mut [u8], messages: &[(usize, usize)]) {
        for some in messages.chunks(MOST) {
            match &self.current {
                Some(session) => session.seal(arena, some),
                // It can't have gone since; but whatever happens, nothing leaves as it is.
                None => session::wipe(arena, some),
            }
        }
    }

    pub(super) fn open(
        &mut self,
        from: Option<IpAddr>,
        message: &[u8],
        out: &mut [u8],
    ) -> Result<Opened, TunnelError> {
        if message.first() != Some(&4) {
            return self
                .open_handshake(from, message, out)
                .ok_or(TunnelError::NotAuthentic);
        }
        let place = out.get_mut(..message.len()).ok_or(TunnelError::Size)?;
        place.copy_from_slice(message);
        let mut outcome = [Err(TunnelError::NotAuthentic)];
        self.open_many(out, &[(0, message.len())], &mut outcome);
        let [outcome] = outcome;
        let length = outcome?;
        if length == 0 {
            return Ok(Opened::Keepalive);
        }
        out.copy_within(HEADER..HEADER + length, 0);
        Ok(Opened::Packet(length))
    }

    /// Opens the data messages at `messages`, in order; each becomes the length of the inner packet, which
    /// lies 16 bytes behind where the message began, and is zero for a keepalive.
    pub(super) fn open_many(
        &mut self,
        arena: &mut [u8],
        messages: &[(usize, usize)],
        outcomes: &mut [Outcome],
    ) {
        let whose = |arena: &[u8], (start, end): (usize, usize)| {
            let is_whole = end - start >= HEADER + TAG;
            let index = arena.get(start + 4..start + 8).filter(|_| is_whole)?;
            index.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
        };
        let mut done = 0;
        while let Some(first) = messages.get(done) {
            let session = whose(arena, *first);
            let rest = messages.get(done..).unwrap_or_default();
            let count = rest
                .iter()
                .take(MOST)
                .take_while(|it| whose(arena, **it) == session)
                .count();
            let alike = rest.get(..count).unwrap_or_default();
            let outcomes = outcomes.get_mut(done..done + count).unwrap_or_default();
            if let Some(local) = session {
                self.open_alike(local, arena, (alike, outcomes));
            }
            done += count;
        }
    }

    fn open_alike(
        &mut self,
        local: u32,
        arena: &mut [u8],
        (messages, outcomes): (&[(usize, usize)], &mut [Outcome]),
    ) {
        let now = self.clock.moment();
        let has = |session: &Session| {
            session.local == local && now.since(session.born) < REJECT_AFTER_TIME
        };
        let is_next =
            !self.current.as_ref().is_some_and(has) && self.next.as_ref().is_some_and(has);
        let sessions = [&mut self.current, &mut self.next, &mut self.previous];
        let Some(session) = sessions.into_iter().flatten().find(|it| has(it)) else {
            return;
        };
        let authentic = session.open(arena, messages);
        let mut heard = false;
        for (number, ((start, end), outcome)) in messages.iter().zip(outcomes).enumerate() {
            let message = arena.get(*start..*end).unwrap_or_default();
            let counter = counter_of(message).unwrap_or(u64::MAX);
            if authentic >> number & 1 == 0 || !session.is_new(counter) {
                continue;
            }
            heard = true;
            let inner = message.get(HEADER..message.len() - TAG).unwrap_or_default();
            self.timers.received(session, !inner.is_empty(), now);
            *outcome = match Header::parse(inner) {
                _ if inner.is_empty() => Ok(0),
                Some(header) => Ok(header.length),
                None => Err(TunnelError::NotIp),
            };
        }
        if heard && is_next {
            // The peer has it, too: from now on it is the one to send on.
            self.previous = std::mem::replace(&mut self.current, self.next.take());
            self.initiated = None;
            self.timers.established();
        }
    }

    fn open_handshake(
        &mut self,
        from: Option<IpAddr>,
        message: &[u8],
        out: &mut [u8],
    ) -> Option<Opened> {
        match message.first() {
            Some(1 | 2) => match self.limiter.verify_packet(from, message, out) {
                Ok(_) => {}
                Err(TunnResult::WriteToNetwork(cookie)) => {
                    return Some(Opened::Reply(cookie.len()));
                }
                Err(_) => return None,
            },
            Some(3) => return self.open_cookie(message),
            _ => return None,
        }
        if message.len() == INITIATION {
            self.respond(message, out)
        } else {
            self.finish(message, out)
        }
    }

    fn respond(&mut self, initiation: &[u8], out: &mut [u8]) -> Option<Opened> {
        let local = self.free_number();
        let latest = self.stamps.0;
        let mut stamp = latest;
        let accept = |given: &Stamp| {
            stamp = *given;
            *given > latest
        };
        let agreed = self.parties.respond(
            initiation,
            (local, self.fresh_cookie().as_ref()),
            accept,
            out,
        )?;
        // Only what was authentic uses up a number.
        self.number = local.to_le_bytes()[0];
        self.stamps.0 = stamp;
        self.sent = Some((local, agreed.mac1));
        self.next = Session::new(&agreed, local, (self.clock.moment(), false), self.registers);
        Some(Opened::Reply(handshake::RESPONSE))
    }

    fn finish(&mut self, response: &[u8], out: &mut [u8]) -> Option<Opened> {
        let receiver = response
            .get(8..12)?
            .first_chunk()
            .map(|bytes| u32::from_le_bytes(*bytes));
        let waits = self.timers.is_trying()
            && self
                .initiated
                .as_ref()
                .is_some_and(|initiated| Some(initiated.0) == receiver);
        let (local, initiated) = *self.initiated.take_if(|_| waits)?;
        match initiated.finish(response) {
            Ok(agreed) => {
                let born = (self.clock.moment(), true);
                let session = Session::new(&agreed, local, born, self.registers)?;
                let former = self.current.replace(session);
                // Both ends may begin at once: then the peer sends on the one that it began.
                self.previous = self.next.take().or(former);
                self.timers.established();
            }
            Err(initiated) => {
                self.initiated = Some(Box::new((local, *initiated)));
                return None;
            }
        }
        // The first message tells the peer that it can use the session.
        let length = self.stage(&[], out)?;
        self.seal_staged(out, &[(0, length)]);
        Some(Opened::Reply(length))
    }

    fn open_cookie(&mut self, message: &[u8]) -> Option<Opened> {
        let receiver = message
            .get(4..8)?
            .first_chunk()
            .map(|bytes| u32::from_le_bytes(*bytes));
        let (_, mac1) = self.sent.filter(|(local, _)| Some(*local) == receiver)?;
        let cookie = self.parties.cookie(&mac1, message)?;
        self.cookie = Some((self.clock.moment(), cookie));
        Some(Opened::Keepalive)
    }

    pub(super) fn initiate(&mut self, out: &mut [u8]) -> Option<usize> {
        let local = self.free_number();
        let stamp = self.next_stamp();
        let cookie = self.fresh_cookie();
        let initiated = self.parties.initiate(local, &stamp, cookie.as_ref(), out)?;
        self.number = local.to_le_bytes()[0];
        self.sent = Some((local, initiated.mac1));
        self.initiated = Some(Box::new((local, initiated)));
        self.timers.initiated(self.clock.moment());
        Some(INITIATION)
    }

    pub(super) fn tick(&mut self, out: &mut [u8]) -> Option<usize> {
        let now = self.clock.moment();
        for session in [&mut self.current, &mut self.previous, &mut self.next] {
            session.take_if(|session| now.since(session.born) >= REJECT_AFTER_TIME);
        }
        let scatter = Duration::from_millis(u64::from(self.index.wrapping_mul(0x9e37) % 334));
        match self.timers.look(now, scatter) {
            Due::Nothing => None,
            Due::Initiation => self.initiate(out),
            Due::Keepalive => {
                let length = self.stage(&[], out)?;
                self.seal_staged(out, &[(0, length)]);
                Some(length)
            }
            Due::GiveUp => {
                // Sessions go on until they are too old: that this end can't renew one says nothing of it.
                self.initiated = None;
                self.waiting.clear();
                None
            }
        }
    }

    /// Seals the next packet that waited for a session.
    pub(super) fn flush(&mut self, out: &mut [u8]) -> Option<usize> {
        let packet = self.waiting.pop_front()?;
        let length = self.stage(&packet, out)?;
        self.seal_staged(out, &[(0, length)]);
        Some(length)
    }

    /// The next number that no session of this tunnel has.
    fn free_number(&self) -> u32 {
        let sessions = [&self.current, &self.previous, &self.next];
        let used = |local: u32| {
            sessions.into_iter().flatten().any(|it| it.local == local)
                || self.initiated.as_ref().is_some_and(|it| it.0 == local)
        };
        let numbers = (1..=u8::MAX).map(|step| self.number.wrapping_add(step));
        let mut locals = numbers.map(|number| self.index << 8 | u32::from(number));
        // Four at most are in use.
        locals
            .find(|local| !used(*local))
            .unwrap_or(self.index << 8)
    }

    fn fresh_cookie(&self) -> Option<[u8; 16]> {
        let (since, cookie) = self.cookie?;
        (self.clock.moment().since(since) < COOKIE_TIME).then_some(cookie)
    }

    /// The time as TAI64N, later than any before.
    fn next_stamp(&mut self) -> Stamp {
        let time = self.clock.unix();
        let mut stamp = [0; 12];
        stamp[..8].copy_from_slice(&(EPOCH + time.as_secs()).to_be_bytes());
        stamp[8..].copy_from_slice(&time.subsec_nanos().to_be_bytes());
        if stamp <= self.stamps.1 {
            stamp = self.stamps.1;
            // One nanosecond more; the highest bytes never overflow before the year 2 x 10^11.
            for byte in stamp.iter_mut().rev() {
                *byte = byte.wrapping_add(1);
                if *byte != 0 {
                    break;
                }
            }
        }
        self.stamps.1 = stamp;
        stamp
    }
}
