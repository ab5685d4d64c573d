//! No kind of line fills the log, whoever causes it: so many of a kind for one party, so many of a kind
//! for all of them, and one line that says how many more there were.
//!
//! A kind is a place in the code; a party is whom the line names (`peer`, `planet` or `node`). What a
//! person has asked for, DEBUG and finer, is not limited.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// Lines of one kind for one party, in a row and per minute.
const PARTY: f64 = 10.0;
/// Lines of one kind for all parties, in a row and per minute.
const KIND: f64 = 60.0;
/// What the budgets are for, and how long a line about more of them waits.
const WINDOW: Duration = Duration::from_secs(60);
/// Parties that are told apart, over all kinds; the rest shares a budget per kind.
const PARTIES: usize = 1_024;
/// Bytes of a party's name that count.
const NAME: usize = 64;
/// Fields that name a party, the first that there is.
const NAMING: [&str; 3] = ["peer", "planet", "node"];

/// The layer that stops lines.
#[derive(Debug)]
pub(super) struct Limiter {
    begin: Instant,
    budgets: Arc<Mutex<Budgets>>,
}

impl Default for Limiter {
    fn default() -> Self {
        Self {
            begin: Instant::now(),
            budgets: Arc::default(),
        }
    }
}

impl<S: Subscriber> Layer<S> for Limiter {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::INFO || metadata.target() == module_path!() {
            return true;
        }
        let mut words = Words::default();
        event.record(&mut words);
        let line = Line {
            place: (
                metadata.file().unwrap_or_default(),
                metadata.line().unwrap_or(0),
            ),
            level: *metadata.level(),
            words,
        };
        let verdict = lock(&self.budgets).judge(line, self.begin.elapsed());
        if verdict == Verdict::FirstOfMore {
            self.tell_later();
        }
        verdict == Verdict::Passes
    }
}

impl Limiter {
    /// Tells how many lines were left out, once the time is over; a thread does that, as nothing else may
    /// happen until then.
    fn tell_later(&self) {
        let (begin, budgets) = (self.begin, Arc::clone(&self.budgets));
        let tell = move || {
            loop {
                thread::sleep(WINDOW);
                let (left_out, is_last) = lock(&budgets).take_left_out(begin.elapsed());
                left_out.iter().for_each(LeftOut::tell);
                if is_last {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("log".to_owned()).spawn(tell);
        if thread.is_err() {
            // The next line that is left out tries again.
            lock(&self.budgets).is_telling = false;
        }
    }
}

fn lock(budgets: &Mutex<Budgets>) -> MutexGuard<'_, Budgets> {
    budgets.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A line that wants to be written.
#[derive(Debug, Clone)]
struct Line {
    place: (&'static str, u32),
    level: Level,
    words: Words,
}

/// What of an event counts.
#[derive(Debug, Clone, Default)]
struct Words {
    message: String,
    /// Index in [`NAMING`] of the field that named it, and the name.
    party: Option<(usize, String)>,
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
            return;
        }
        let Some(rank) = NAMING.iter().position(|name| *name == field.name()) else {
            return;
        };
        if self.party.as_ref().is_none_or(|(known, _)| rank < *known) {
            let name: String = format!("{value:?}").chars().take(NAME).collect();
            self.party = Some((rank, name));
        }
    }
}

/// What becomes of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Passes,
    LeftOut,
    /// Left out, and somebody has to tell later.
    FirstOfMore,
}

/// Tokens that come back with time.
#[derive(Debug, Clone, Copy)]
struct Budget {
    left: f64,
    at: Duration,
}

impl Budget {
    fn full(size: f64, now: Duration) -> Self {
        Self {
            left: size,
            at: now,
        }
    }

    fn refill(&mut self, size: f64, now: Duration) {
        let came = now.saturating_sub(self.at).as_secs_f64() / WINDOW.as_secs_f64() * size;
        self.left = (self.left + came).min(size);
        self.at = now;
    }

    fn has_one(&self) -> bool {
        self.left >= 1.0
    }
}

type Place = (&'static str, u32);

#[derive(Debug, Default)]
struct Budgets {
    kinds: BTreeMap<Place, Budget>,
    parties: BTreeMap<(Place, String), Budget>,
    left_out: BTreeMap<(Place, String), LeftOut>,
    is_telling: bool,
}

/// Lines that were not written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct LeftOut {
    level: Level,
    message: String,
    party: String,
    count: u64,
}

impl Budgets {
    fn judge(&mut self, line: Line, now: Duration) -> Verdict {
        let party = line.words.party.map(|(_, name)| name).unwrap_or_default();
        let party = self.known(line.place, party, now);
        let kind = self.kinds.entry(line.place);
        let kind = kind.or_insert_with(|| Budget::full(KIND, now));
        kind.refill(KIND, now);
        let own = if party.is_empty() { KIND } else { PARTY };
        let key = (line.place, party);
        let budget = self.parties.entry(key.clone());
        let budget = budget.or_insert_with(|| Budget::full(own, now));
        budget.refill(own, now);
        if kind.has_one() && budget.has_one() {
            kind.left -= 1.0;
            budget.left -= 1.0;
            return Verdict::Passes;
        }
        let left_out = self.left_out.entry(key.clone()).or_insert(LeftOut {
            level: line.level,
            message: line.words.message,
            party: key.1,
            count: 0,
        });
        left_out.count += 1;
        if std::mem::replace(&mut self.is_telling, true) {
            Verdict::LeftOut
        } else {
            Verdict::FirstOfMore
        }
    }

    /// The party itself, if there is room to tell it apart.
    fn known(&mut self, place: Place, party: String, now: Duration) -> String {
        let key = (place, party);
        if self.parties.len() >= PARTIES && !self.parties.contains_key(&key) {
            // Whoever has been silent for so long has its whole budget again, known or not.
            self.parties
                .retain(|_, budget| now.saturating_sub(budget.at) < WINDOW);
            if self.parties.len() >= PARTIES {
                return String::new();
            }
        }
        key.1
    }

    /// What was left out since this was asked last, in one line per kind; and whether nothing was.
    fn take_left_out(&mut self, now: Duration) -> (Vec<LeftOut>, bool) {
        let mut kinds: BTreeMap<Place, Vec<LeftOut>> = BTreeMap::new();
        for ((place, _), left_out) in std::mem::take(&mut self.left_out) {
            kinds.entry(place).or_default().push(left_out);
        }
        self.parties
            .retain(|_, budget| now.saturating_sub(budget.at) < WINDOW);
        let told: Vec<LeftOut> = kinds.into_values().filter_map(LeftOut::of_a_kind).collect();
        if told.is_empty() {
            self.is_telling = false;
        }
        (told, !self.is_telling)
    }
}

impl LeftOut {
    /// All of one kind: the party is named if it is the only one.
    fn of_a_kind(all: Vec<Self>) -> Option<Self> {
        let (parties, count) = (all.len(), all.iter().map(|one| one.count).sum());
        let mut one = all.into_iter().next()?;
        one.count = count;
        if parties > 1 {
            one.party = format!("{parties} different ones");
        }
        Some(one)
    }

    fn tell(&self) {
        let Self {
            message: like,
            party,
            count,
            ..
        } = self;
        const WORDS: &str = "lines were left out";
        match self.level {
            Level::ERROR => tracing::error!(count, like, party, "{WORDS}"),
            Level::WARN => tracing::warn!(count, like, party, "{WORDS}"),
            _ => tracing::info!(count, like, party, "{WORDS}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn line(place: u32, party: &str) -> Line {
        Line {
            place: ("file.rs", place),
            level: Level::INFO,
            words: Words {
                message: "path".to_owned(),
                party: Some((0, party.to_owned())),
            },
        }
    }

    fn passed(budgets: &mut Budgets, lines: impl Iterator<Item = Line>, now: Duration) -> usize {
        let verdicts = lines.map(|line| budgets.judge(line, now));
        verdicts
            .filter(|verdict| *verdict == Verdict::Passes)
            .count()
    }

    #[test]
    fn one_party_can_not_take_the_lines_of_another_one() {
        let mut budgets = Budgets::default();
        let flood = (0..1_000).map(|_| line(1, "loud"));
        assert_eq!(passed(&mut budgets, flood, SECOND), 10);
        assert_eq!(
            passed(&mut budgets, [line(1, "quiet")].into_iter(), SECOND),
            1
        );
        assert_eq!(
            passed(&mut budgets, [line(2, "loud")].into_iter(), SECOND),
            1
        );
    }

    #[test]
    fn an_hour_of_ten_thousand_parties_is_so_many_lines_of_a_kind_a_minute() {
        let mut budgets = Budgets::default();
        let mut lines = 0;
        for second in 0..3_600 {
            let now = Duration::from_secs(second);
            let crowd = (0..20).map(|n| line(1, &format!("n{}", second * 20 + n)));
            lines += passed(&mut budgets, crowd, now);
            assert!(budgets.parties.len() <= PARTIES + 1);
            if second % 60 == 59 {
                let (told, _) = budgets.take_left_out(now);
                assert!(told.len() <= 1, "{told:?}");
                assert!(budgets.left_out.is_empty());
            }
        }
        assert!((3_600..=3_720).contains(&lines), "{lines}");
    }

    #[test]
    fn what_was_left_out_is_told_once_and_with_its_number() {
        let mut budgets = Budgets::default();
        let flood = (0..25).map(|_| line(1, "loud"));
        let verdicts: Vec<_> = flood.map(|line| budgets.judge(line, SECOND)).collect();
        let told_later = |verdict: &&Verdict| **verdict == Verdict::FirstOfMore;
        assert_eq!(verdicts.iter().filter(told_later).count(), 1);
        budgets.judge(line(2, "other"), SECOND);
        let (told, is_last) = budgets.take_left_out(61 * SECOND);
        assert!(!is_last);
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].count, told[0].party.as_str()), (15, "loud"));
        let (told, is_last) = budgets.take_left_out(122 * SECOND);
        assert!(told.is_empty() && is_last);
        let flood = (0..11).map(|_| line(1, "loud"));
        let verdicts: Vec<_> = flood
            .map(|line| budgets.judge(line, 200 * SECOND))
            .collect();
        assert_eq!(verdicts.last(), Some(&Verdict::FirstOfMore));
    }

    #[test]
    fn a_party_is_the_first_that_the_line_names() {
        use std::sync::Mutex;
        use tracing_subscriber::layer::SubscriberExt as _;

        #[derive(Default)]
        struct Ear(Arc<Mutex<Vec<Option<String>>>>);
        impl<S: Subscriber> Layer<S> for Ear {
            fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
                let mut words = Words::default();
                event.record(&mut words);
                let party = words.party.map(|(_, name)| name);
                self.0.lock().unwrap().push(party);
            }
        }

        let heard = Arc::default();
        let layers = tracing_subscriber::registry()
            .with(Ear(Arc::clone(&heard)))
            .with(Limiter::default());
        tracing::subscriber::with_default(layers, || {
            tracing::info!(node = %"id", peer = %"n1", "a member is gone");
            tracing::info!(planet = "p1", "planet lost");
            tracing::info!(reason = "x", "left");
            for _ in 0..100 {
                tracing::info!(peer = "loud", "path");
                tracing::debug!(peer = "loud", "why");
            }
        });
        let heard = heard.lock().unwrap();
        assert_eq!(heard[0].as_deref(), Some("n1"));
        assert_eq!(heard[1].as_deref(), Some("\"p1\""));
        assert_eq!(heard[2], None);
        // What a person has asked for is not limited.
        assert_eq!(heard.len(), 3 + 10 + 100);
    }
}
