//! Whether the kernel cuts what a socket sends.

use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Seconds for which it isn't tried again on a way where it failed: devices come and go.
const PAUSE: u64 = 3_600;
/// Ways that are told apart, a power of two. Those that share a place share the pause, too.
const WAYS: usize = 64;

/// The memory of one socket.
#[derive(Debug)]
pub(super) struct Segmentation {
    wanted: bool,
    /// Seconds since the first look at the clock, by the destination: which device it leaves by is the
    /// routing table's affair.
    off_until: [AtomicU64; WAYS],
}

impl Segmentation {
    /// Tried, unless it isn't wanted.
    pub(super) fn new(wanted: bool) -> Self {
        Self {
            wanted,
            off_until: [const { AtomicU64::new(0) }; WAYS],
        }
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.wanted
    }

    pub(super) fn is_off(&self, to: SocketAddr) -> bool {
        !self.wanted
            || match self
                .way(to)
                .map_or(0, |until| until.load(Ordering::Relaxed))
            {
                0 => false,
                until => seconds() < until,
            }
    }

    pub(super) fn switch_off(&self, to: SocketAddr) {
        if let Some(until) = self.way(to) {
            until.store(seconds() + PAUSE, Ordering::Relaxed);
        }
    }

    fn way(&self, to: SocketAddr) -> Option<&AtomicU64> {
        let sum = |octets: &[u8]| {
            octets
                .iter()
                .fold(0, |sum, octet| sum * 31 + usize::from(*octet))
        };
        let place = match to.ip() {
            IpAddr::V4(ip) => sum(&ip.octets()),
            // Half of the address names the network.
            IpAddr::V6(ip) => sum(ip.octets().first_chunk::<8>()?),
        };
        self.off_until.get(place % WAYS)
    }
}

fn seconds() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_where_it_failed_says_nothing_of_the_others() {
        let to = |text: &str| -> SocketAddr { text.parse().expect("an address") };
        let segmentation = Segmentation::new(true);
        segmentation.switch_off(to("192.0.2.1:7"));
        segmentation.switch_off(to("[2001:db8:0:9::1]:7"));
        let off = ["192.0.2.1:9", "[2001:db8:0:9::2]:9"].map(to);
        let on = ["192.0.2.2:9", "198.51.100.1:7", "[2001:db8:0:8::1]:7"].map(to);
        assert!(off.into_iter().all(|to| segmentation.is_off(to)));
        assert!(!on.into_iter().any(|to| segmentation.is_off(to)));
        assert!(Segmentation::new(false).is_off(on[0]));
    }
}
