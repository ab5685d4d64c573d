//! The longest inner packet that a path carries (RFC 8899, datagram packetization layer path MTU
//! discovery), found by probes through the tunnel that no router may fragment.
//!
//! A search sends several sizes at once, narrows the gap between the longest that was answered and the
//! shortest that wasn't, and ends when the gap is a few bytes. Afterwards two probes at a time check
//! that what was found still passes, and that a little more doesn't. Only the answer to a probe changes
//! anything: what the network says about itself (ICMP) is not heard at all, so nobody can forge it.
//!
//! Nothing is lost while a search goes on, or where a path carries less than the least MTU: ordinary
//! datagrams may be fragmented.

use std::time::Duration;

use podmesh_proto::time::Moment;

use crate::limits;

/// Bytes. Every path is taken to carry this, in fragments if need be.
pub(super) const LEAST: u16 = limits::MIN_MTU;
/// Bytes of a probe that passes wherever anything passes: its loss says that the path is at fault.
const SENTINEL: u16 = 1_100;
/// Bytes. A search ends with a gap of this width.
const PRECISION: u16 = 4;
/// Bytes more than what was found that a check tries.
const MORE: u16 = 8;
/// Sizes of one round of a search.
const SIZES: u16 = 8;
/// How often each of them is sent.
const ROUND_TRIES: u8 = 2;
/// How often what was found may be lost in a row. One lost in five each way costs a search in sixty.
const CHECK_TRIES: u8 = 4;
/// Until a first search that got no answer at all is tried again; doubled by each, up to the second.
const AGAIN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// Answers that are waited for at once.
const MAX_OUTSTANDING: usize = 32;
/// Inner packets that fit Ethernet, over IPv4 and over IPv6: what a path most likely carries.
const LIKELY: [u16; 2] = [1_440, 1_420];

/// How often what was found is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CheckPace {
    /// Much is being sent.
    Heavy,
    /// Something is being sent: a connection that begins on a path that has shrunk meanwhile must not
    /// wait for long.
    Busy,
    /// Nothing.
    Idle,
}

impl CheckPace {
    const fn gap(self) -> Duration {
        Duration::from_secs(match self {
            Self::Heavy => 1,
            Self::Busy => 5,
            Self::Idle => 60,
        })
    }
}

/// What is known of one path.
#[derive(Debug)]
pub(super) struct PathMtu {
    found: Option<u16>,
    phase: Phase,
    outstanding: Vec<(u64, u16)>,
    /// First searches in a row that got no answer at all.
    unanswered: u32,
}

#[derive(Debug)]
enum Phase {
    /// Nothing is under way since then.
    Rest(Moment),
    Checking {
        tries: u8,
        sent: Moment,
    },
    Searching(Search),
}

#[derive(Debug)]
struct Search {
    /// The longest that is known to pass.
    low: u16,
    /// The shortest that is known not to.
    high: u16,
    /// Whether anything was answered at all.
    alive: bool,
    sizes: Vec<u16>,
    tries: u8,
    sent: Moment,
}

impl Default for PathMtu {
    fn default() -> Self {
        Self {
            found: None,
            phase: Phase::Rest(Moment::ZERO),
            outstanding: Vec::new(),
            unanswered: 0,
        }
    }
}

impl PathMtu {
    /// What the path carries, bytes of an inner packet; none before the first search has ended.
    pub(super) fn found(&self) -> Option<u16> {
        self.found
    }

    /// When [`Self::drive`] has something to do.
    pub(super) fn due(&self, pace: CheckPace, rtt: Option<Duration>) -> Moment {
        match &self.phase {
            Phase::Rest(since) if self.found.is_none() && *since == Moment::ZERO => *since,
            Phase::Rest(since) if self.found.is_none() => {
                let doubled = AGAIN.0 * 2_u32.saturating_pow(self.unanswered.clamp(1, 6) - 1);
                *since + doubled.min(AGAIN.1)
            }
            Phase::Rest(since) => *since + pace.gap(),
            Phase::Checking { sent, .. } => *sent + patience(rtt),
            Phase::Searching(search) => search.sent + patience(rtt),
        }
    }

    /// Does what is due, and says which sizes are to be probed now. `most` is what the device carries.
    pub(super) fn drive(
        &mut self,
        (pace, rtt): (CheckPace, Option<Duration>),
        most: u16,
        now: Moment,
    ) -> Vec<u16> {
        if self.due(pace, rtt) > now {
            return Vec::new();
        }
        match (&mut self.phase, self.found) {
            (Phase::Rest(_), None) if most <= LEAST => {
                self.found = Some(LEAST);
                self.phase = Phase::Rest(now);
                Vec::new()
            }
            (Phase::Rest(_), None) => self.search(LEAST, most.saturating_add(1), most, now),
            (Phase::Rest(_), Some(found)) => self.check(found, 1, most, now),
            (Phase::Checking { tries, .. }, Some(found)) if *tries < CHECK_TRIES => {
                let tries = *tries + 1;
                self.check(found, tries, most, now)
            }
            (Phase::Checking { .. }, found) => {
                let high = found.unwrap_or(most).max(LEAST).saturating_add(1);
                self.search(LEAST, high, most, now)
            }
            (Phase::Searching(search), _) if search.tries < ROUND_TRIES => {
                search.tries += 1;
                search.sent = now;
                search.missing()
            }
            (Phase::Searching(_), _) => self.end_round(most, now),
        }
    }

    /// Notes a probe that goes out.
    pub(super) fn sent(&mut self, id: u64, size: u16) {
        if self.outstanding.len() >= MAX_OUTSTANDING {
            self.outstanding.remove(0);
        }
        self.outstanding.push((id, size));
    }

    /// Takes an answer. The next [`Self::drive`] may have something to do at once.
    pub(super) fn answer(&mut self, id: u64, most: u16, now: Moment) {
        let Some(place) = self.outstanding.iter().position(|(sent, _)| *sent == id) else {
            return;
        };
        let (_, size) = self.outstanding.remove(place);
        self.unanswered = 0;
        match &mut self.phase {
            Phase::Searching(search) => {
                search.alive = true;
                if size > search.low && size < search.high {
                    search.low = size;
                }
                if search.low + 1 >= search.high {
                    self.end_search(now);
                }
            }
            _ if self.found.is_some_and(|found| size > found) => {
                // More passes than was thought.
                self.phase =
                    Phase::Searching(Search::new((size, most.saturating_add(1)), most, now));
                if size >= most {
                    self.end_search(now);
                } else {
                    self.hurry();
                }
            }
            Phase::Checking { .. } if self.found == Some(size) => self.phase = Phase::Rest(now),
            Phase::Checking { .. } | Phase::Rest(_) => {}
        }
    }

    /// The device carries another size now.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// The path may have changed under us: what was found is checked at once.
    pub(super) fn doubt(&mut self) {
        if self.found.is_some() && matches!(self.phase, Phase::Rest(_)) {
            self.phase = Phase::Checking {
                tries: 0,
                sent: Moment::ZERO,
            };
        }
    }

    /// Makes the search that has just been planned due at once.
    fn hurry(&mut self) {
        if let Phase::Searching(search) = &mut self.phase {
            (search.tries, search.sent) = (0, Moment::ZERO);
        }
    }

    fn check(&mut self, found: u16, tries: u8, most: u16, now: Moment) -> Vec<u16> {
        self.phase = Phase::Checking { tries, sent: now };
        let more = found.saturating_add(MORE).min(most);
        // What everything carries needs no check.
        if found <= LEAST {
            self.phase = Phase::Rest(now);
        }
        let mine = (found > LEAST).then_some(found);
        mine.into_iter()
            .chain((more > found && tries == 1).then_some(more))
            .collect()
    }

    fn search(&mut self, low: u16, high: u16, most: u16, now: Moment) -> Vec<u16> {
        let mut search = Search::new((low, high), most, now);
        let sizes = search.missing();
        search.tries = 1;
        self.phase = Phase::Searching(search);
        sizes
    }

    /// The sizes of a round have been sent often enough.
    fn end_round(&mut self, most: u16, now: Moment) -> Vec<u16> {
        let Phase::Searching(search) = &mut self.phase else {
            return Vec::new();
        };
        if !search.alive {
            // The path itself is at fault, and others look after that. What was found stays.
            self.phase = Phase::Rest(now);
            self.unanswered = self.unanswered.saturating_add(1);
            self.outstanding.clear();
            return Vec::new();
        }
        let lost = search
            .sizes
            .iter()
            .copied()
            .filter(|size| *size > search.low);
        search.high = lost.min().unwrap_or(search.high).min(search.high);
        if search.high - search.low <= PRECISION {
            self.end_search(now);
            return Vec::new();
        }
        let (low, high) = (search.low, search.high);
        self.search(low, high, most, now)
    }

    fn end_search(&mut self, now: Moment) {
        if let Phase::Searching(search) = &self.phase {
            self.found = Some(search.low);
        }
        self.phase = Phase::Rest(now);
        self.outstanding.clear();
    }
}

impl Search {
    /// Spreads the sizes of a round over the gap.
    fn new((low, high): (u16, u16), most: u16, now: Moment) -> Self {
        let width = u32::from(high - low);
        let spread = (1..=SIZES).map(|number| {
            let part = width * u32::from(number) / u32::from(SIZES + 1);
            low + u16::try_from(part).unwrap_or(0)
        });
        let mut sizes: Vec<u16> = spread
            .chain(LIKELY)
            .chain([most, SENTINEL])
            .filter(|size| *size == SENTINEL || (*size > low && *size < high))
            .collect();
        sizes.sort_unstable();
        sizes.dedup();
        Self {
            low,
            high,
            alive: false,
            sizes,
            tries: 0,
            sent: now,
        }
    }

    /// Those that could still say something.
    fn missing(&self) -> Vec<u16> {
        let sentinel = |size: u16| size == SENTINEL && !self.alive;
        let sizes = self.sizes.iter().copied();
        sizes
            .filter(|size| *size > self.low || sentinel(*size))
            .collect()
    }
}

/// How long an answer is waited for. A full queue on the way makes it late, not lost.
fn patience(rtt: Option<Duration>) -> Duration {
    let rtt = rtt.unwrap_or(Duration::from_millis(100));
    (rtt * 3).clamp(Duration::from_millis(150), Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Option<Duration> = Some(Duration::from_millis(40));

    /// A path of which the bigger packets vanish.
    struct Link {
        carries: u16,
        /// Of that many probes one is lost, whatever its size.
        loss: Option<u32>,
        sent: u32,
    }

    impl Link {
        fn new(carries: u16) -> Self {
            Self {
                carries,
                loss: None,
                sent: 0,
            }
        }

        fn passes(&mut self, size: u16) -> bool {
            self.sent += 1;
            let lost = self
                .loss
                .is_some_and(|one_in| self.sent.is_multiple_of(one_in));
            size <= self.carries && !lost
        }
    }

    /// Runs for so long; the values that were found on the way, with their times.
    fn run(
        mtu: &mut PathMtu,
        link: &mut Link,
        most: u16,
        (from, to): (u64, u64),
    ) -> Vec<(u64, u16)> {
        let mut found = Vec::new();
        let mut coming: Vec<(u64, u64)> = Vec::new();
        for millis in from..to {
            let now = Moment::ZERO + Duration::from_millis(millis);
            let before = mtu.found();
            for (_, id) in coming.extract_if(.., |(at, _)| *at == millis) {
                mtu.answer(id, most, now);
            }
            for (number, size) in (0_u64..).zip(mtu.drive((CheckPace::Heavy, RTT), most, now)) {
                let id = millis * 100 + number;
                mtu.sent(id, size);
                if link.passes(size) {
                    coming.push((millis + 40, id));
                }
            }
            if mtu.found() != before {
                found.extend(mtu.found().map(|size| (millis, size)));
            }
        }
        found
    }

    #[test]
    fn what_the_device_carries_is_found_in_one_round_trip() {
        let mut mtu = PathMtu::default();
        let found = run(&mut mtu, &mut Link::new(9_000), 8_940, (10, 10_000));
        assert_eq!(found, [(50, 8_940)]);
    }

    #[test]
    fn any_size_is_found_within_a_few_bytes_and_once() {
        for most in [1_440, 8_940] {
            for carries in (1_280..=1_440).chain([2_000, 4_321, 8_920]) {
                let mut mtu = PathMtu::default();
                let found = run(&mut mtu, &mut Link::new(carries), most, (10, 20_000));
                let [(at, size)] = found[..] else {
                    panic!("{carries} of {most}: {found:?}");
                };
                let best = carries.min(most);
                assert!(at < 2_000, "{carries} of {most}: {found:?}");
                assert!(
                    size <= best && size + 8 >= best,
                    "{carries} of {most}: {size}"
                );
            }
        }
    }

    #[test]
    fn a_path_that_carries_less_than_the_least_gets_the_least() {
        let mut mtu = PathMtu::default();
        let found = run(&mut mtu, &mut Link::new(1_220), 1_440, (10, 20_000));
        assert!(matches!(found[..], [(_, 1_280)]), "{found:?}");
    }

    #[test]
    fn each_change_of_the_path_is_followed_in_three_seconds_by_one_change() {
        let mut mtu = PathMtu::default();
        let mut link = Link::new(1_440);
        run(&mut mtu, &mut link, 1_440, (10, 5_000));
        let mut at = 5_000;
        for carries in [1_340, 1_220, 1_400, 1_432, 1_392, 1_440] {
            link.carries = carries;
            let found = run(&mut mtu, &mut link, 1_440, (at, at + 10_000));
            let [(when, size)] = found[..] else {
                panic!("{carries}: {found:?}");
            };
            let best = carries.max(1_280);
            assert!(when - at <= 3_000, "{carries}: {found:?} from {at}");
            assert!(size <= best && size + 8 >= best, "{carries}: {size}");
            at += 10_000;
        }
    }

    #[test]
    fn a_dead_path_changes_nothing() {
        let mut mtu = PathMtu::default();
        run(&mut mtu, &mut Link::new(1_440), 1_440, (10, 5_000));
        let found = run(&mut mtu, &mut Link::new(0), 1_440, (5_000, 60_000));
        assert_eq!((found, mtu.found()), (Vec::new(), Some(1_440)));
    }

    #[test]
    fn loss_is_not_mistaken_for_a_short_path() {
        let mut mtu = PathMtu::default();
        let mut link = Link::new(1_440);
        run(&mut mtu, &mut link, 1_440, (10, 5_000));
        link.loss = Some(3);
        let found = run(&mut mtu, &mut link, 1_440, (5_000, 120_000));
        assert_eq!(found, []);
    }
}
