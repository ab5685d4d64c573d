//! What other people's firewalls were last seen to do.

use podmesh_kernel::firewall::{self, Advice, Traffic};
use tokio::time::Instant;

use super::Errand;

/// The last judgement, and when there is to be another one.
pub(super) struct Firewalls {
    pub(super) errand: Errand,
    /// What it was about.
    traffic: Option<Traffic>,
    found: Vec<Advice>,
}

impl Firewalls {
    pub(super) fn new() -> Self {
        Self {
            errand: Errand::new(),
            traffic: None,
            found: Vec::new(),
        }
    }

    /// What refuses this traffic, looked at anew when that is due.
    pub(super) fn look(&mut self, traffic: &Traffic) -> Vec<Advice> {
        if self.traffic.as_ref() != Some(traffic) {
            self.traffic = Some(traffic.clone());
            self.errand.ask();
        }
        let begin = Instant::now();
        if self.errand.begin(begin) {
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
