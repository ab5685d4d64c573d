//! How many handshakes of one source are looked at: a token bucket each, the longest unused one
//! forgotten first.
//!
//! The tunnel library counts handshakes of all sources together, so one flooder would put everybody
//! into cookie mode; this stands before it. A relay's word says whose a relayed datagram is, so that
//! nodes behind one relay don't share a bucket.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use podmesh_proto::id::RelayAddress;
use podmesh_proto::time::Moment;

use crate::limits::{HANDSHAKE_BURST, HANDSHAKES_PER_SECOND, MAX_HANDSHAKE_SOURCES};

/// Who is counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HandshakeSource {
    /// An IPv4 address.
    V4(u32),
    /// An IPv6 /64: everybody who has one has 2^64 addresses.
    V6(u64),
    /// A node, as a relay names it.
    Relayed(RelayAddress),
}

impl HandshakeSource {
    /// The source that an address belongs to.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.to_bits()),
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, g, h, ..] = ip.octets();
                Self::V6(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
            }
        }
    }
}

/// The buckets of all sources.
#[derive(Debug, Default)]
pub struct HandshakeLimiter {
    buckets: BTreeMap<HandshakeSource, Bucket>,
    by_use: BTreeSet<(Moment, HandshakeSource)>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Time whose worth of handshakes is left.
    credit: Duration,
    used: Moment,
}

impl HandshakeLimiter {
    /// Whether one more handshake of `source` may be looked at.
    pub fn take(&mut self, source: HandshakeSource, now: Moment) -> bool {
        let one = Duration::from_secs(1) / HANDSHAKES_PER_SECOND;
        let full = one * HANDSHAKE_BURST;
        let bucket = self.buckets.entry(source).or_insert(Bucket {
            credit: full,
            used: now,
        });
        self.by_use.remove(&(bucket.used, source));
        bucket.credit = bucket
            .credit
            .saturating_add(now.since(bucket.used))
            .min(full);
        bucket.used = now.max(bucket.used);
        let granted = bucket.credit >= one;
        if granted {
            bucket.credit -= one;
        }
        self.by_use.insert((bucket.used, source));
        while self.buckets.len() > MAX_HANDSHAKE_SOURCES {
            let Some((_, oldest)) = self.by_use.pop_first() else {
                break;
            };
            self.buckets.remove(&oldest);
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_start(Duration::from_millis(millis))
    }

    #[test]
    fn a_flooder_gets_its_share_and_nobody_elses() {
        let mut limiter = HandshakeLimiter::default();
        let flooder = HandshakeSource::of("203.0.113.9".parse().unwrap());
        let other = HandshakeSource::of("203.0.113.10".parse().unwrap());
        let granted = (0..10_000)
            .filter(|ms| limiter.take(flooder, at(*ms)))
            .count();
        assert!((200..=205).contains(&granted), "{granted} in 10 s");
        assert!(limiter.take(other, at(10_000)));
        assert!(limiter.take(flooder, at(10_060)), "the flood is over");
    }

    #[test]
    fn an_ipv6_network_is_one_source_and_mapped_addresses_are_ipv4() {
        let of = |text: &str| HandshakeSource::of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:203.0.113.9"), of("203.0.113.9"));
    }

    #[test]
    fn memory_is_bounded_and_the_newest_sources_are_kept() {
        let mut limiter = HandshakeLimiter::default();
        for source in 0..200_000 {
            limiter.take(HandshakeSource::V4(source), at(u64::from(source)));
        }
        assert_eq!(limiter.buckets.len(), MAX_HANDSHAKE_SOURCES);
        assert_eq!(limiter.by_use.len(), MAX_HANDSHAKE_SOURCES);
        assert!(limiter.buckets.contains_key(&HandshakeSource::V4(199_999)));
        assert!(!limiter.buckets.contains_key(&HandshakeSource::V4(0)));
    }
}
