//! What other people's firewalls were last seen to do.

use std::time::Duration;

use podmesh_kernel::firewall::{self, Advice, Traffic};
use tokio::time::Instant;

use super::Errand;

/// Between two glances at rules whose changes nobody announces.
const GLANCE: Duration = Duration::from_secs(3);
/// A glance takes at most this share of the time, as one of so many.
const REST_FOR_GLANCE: u32 = 20;

/// The last judgement, and when there is to be another one.
pub(super) struct Firewalls {
    pub(super) errand: Errand,
    /// What it was about.
    traffic: Option<Traffic>,
    found: Vec<Advice>,
    /// What rules of iptables-legacy there were at the last judgement or glance, and when the next glance is due.
    legacy: Option<u64>,
    glance_at: Instant,
}

impl Firewalls {
    pub(super) fn new() -> Self {
        Self {
            errand: Errand::new(),
            traffic: None,
            found: Vec::new(),
            legacy: None,
            glance_at: Instant::now() + GLANCE,
        }
    }

    /// When to [`Self::glance`] again.
    pub(super) fn glance_at(&self) -> Instant {
        self.glance_at
    }

    /// Whether rules have changed without a notice, so that a judgement is due.
    pub(super) fn glance(&mut self) -> bool {
        let begin = Instant::now();
        let print = Some(firewall::legacy_print());
        let end = Instant::now();
        self.glance_at = end + GLANCE.max((end - begin) * REST_FOR_GLANCE);
        let is_news = self.legacy != print && self.legacy.is_some();
        self.legacy = print;
        if is_news {
            self.errand.ask();
        }
        is_news
    }

    /// What refuses this traffic, looked at anew when that is due.
    pub(super) fn look(&mut self, traffic: &Traffic) -> Vec<Advice> {
        if self.traffic.as_ref() != Some(traffic) {
            self.traffic = Some(traffic.clone());
            self.errand.ask();
        }
        let begin = Instant::now();
        if self.errand.begin(begin) {
            // What a glance is held against is what was judged: others may come and go between two glances.
            self.legacy = Some(firewall::legacy_print());
            match firewall::refusals(traffic) {
                Ok(refusals) => {
                    self.take(refusals.iter().map(firewall::Refusal::advice).collect());
                }
                // Mostly because they change all the time.
                Err(error) => {
                    tracing::debug!(reason = %error, "the rules of others can't be read");
                    self.errand.ask();
                }
            }
            self.errand.end(begin, Instant::now());
        }
        self.found.clone()
    }

    fn take(&mut self, found: Vec<Advice>) {
        for advice in found.iter().filter(|advice| !self.found.contains(advice)) {
            tracing::warn!(
                reason = advice.message,
                next = advice.next,
                "packets are refused"
            );
        }
        self.found = found;
    }
}
