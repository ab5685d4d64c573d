//! Whether grants come back by themselves, and when.

use std::time::Duration;

use podmesh_proto::time::Moment;

use super::{LISTENING, Relearning, Rumour};
use crate::rules::books::Books;
use crate::rules::records::Origin;

impl Relearning {
    /// How long nothing is granted if nobody does anything; none if that takes a member who shows what is
    /// missing, or the operator's word.
    pub(in crate::rules) fn patience(&self, books: &Books, now: Moment) -> Option<Duration> {
        let accounted = books.accounted();
        if accounted.first_gap(accounted.highest()).is_some() {
            return None;
        }
        let since = match books.origin {
            Origin::Lost | Origin::Restored => self.first_report?,
            Origin::Fresh | Origin::Relearned => self.started,
        };
        let listening = LISTENING.saturating_sub(now.since(since));
        // What somebody merely says to have seen counts for a while.
        let rumours = self.rumours.values().filter_map(|rumour| match rumour {
            Rumour::Believed(sequence, until) if *sequence > accounted.highest() => {
                Some(until.since(now))
            }
            _ => None,
        });
        Some(rumours.fold(listening, Duration::max))
    }

    /// Why nothing may be granted now, and how that ends.
    pub(in crate::rules) fn prospect(&self, books: &Books, now: Moment) -> Option<String> {
        let reason = self.why_not(books, now)?;
        let accounted = books.accounted();
        let lacking = accounted.first_gap(accounted.highest()).is_some();
        Some(match self.patience(books, now) {
            Some(left) => {
                let seconds = left.as_secs().saturating_add(1);
                format!("{reason}; this ends by itself within {seconds} s")
            }
            None if lacking => {
                format!("{reason}; only if none of them comes back: `planet trust-empty`")
            }
            None => format!(
                "{reason}; this ends {} s after the first one has connected; only if none comes back: \
                 `planet trust-empty`",
                LISTENING.as_secs()
            ),
        })
    }
}
