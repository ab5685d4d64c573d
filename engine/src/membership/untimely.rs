//! Memberships that were told outside of their time, by this node's clock.
//!
//! A planet tells each once. Where it was the clock that was wrong, the planet has to be asked again when
//! the clock is right.

use std::collections::{BTreeMap, BTreeSet};

use podmesh_proto::certificate::Member;
use podmesh_proto::id::PlanetId;
use podmesh_proto::limits::CLOCK_SKEW;
use podmesh_proto::time::UnixSeconds;

use super::lies::Source;

/// Spans that are remembered of one planet: one that fits is enough to ask for everything.
const MAX_SPANS: usize = 64;
/// Seconds of the wall clock in which a planet is not asked twice, whatever it says.
const GAP: u64 = 60;

/// When what planets told would have been believed.
#[derive(Debug, Default)]
pub(super) struct Untimely {
    planets: BTreeMap<PlanetId, Spans>,
}

#[derive(Debug, Default)]
struct Spans {
    /// First and last second of each.
    open: BTreeSet<(UnixSeconds, UnixSeconds)>,
    asked: Option<UnixSeconds>,
}

impl Untimely {
    /// Notes that `source` told of a member outside of its time.
    pub(super) fn note(&mut self, source: Source, member: &Member, now: UnixSeconds) {
        let (Source::Planet(planet), Some(expires)) = (source, member.expires) else {
            return;
        };
        let span = (member.issued.minus(CLOCK_SKEW), expires.plus(CLOCK_SKEW));
        let open = &mut self.planets.entry(planet).or_default().open;
        // What is over by a clock that is right stays so: the spans that are nearest matter most.
        open.insert(span);
        if open.len() > MAX_SPANS {
            let far = |(from, to): &(UnixSeconds, UnixSeconds)| {
                from.0.saturating_sub(now.0).max(now.0.saturating_sub(to.0))
            };
            if let Some(farthest) = open.iter().copied().max_by_key(far) {
                open.remove(&farthest);
            }
        }
    }

    /// The planets to be asked again at this time.
    pub(super) fn take(&mut self, now: UnixSeconds) -> Vec<PlanetId> {
        let mut timely = Vec::new();
        for (planet, spans) in &mut self.planets {
            let fits = |(from, to): &(UnixSeconds, UnixSeconds)| (*from..=*to).contains(&now);
            let lately = spans.asked.is_some_and(|at| now.0.abs_diff(at.0) < GAP);
            if !lately && spans.open.iter().any(fits) {
                spans.open.clear();
                spans.asked = Some(now);
                timely.push(*planet);
            }
        }
        timely
    }
}
