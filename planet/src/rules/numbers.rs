//! Sets of receipt numbers, kept as ranges.

use std::collections::BTreeMap;

/// A set of numbers as disjoint inclusive ranges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Numbers {
    /// First number of a range to its last.
    ranges: BTreeMap<u64, u64>,
}

impl Numbers {
    /// Adds `first` to `last`, both included; nothing if they are the wrong way round.
    pub fn add(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        let (mut first, mut last) = (first, last);
        let touching: Vec<(u64, u64)> = self
            .ranges
            .range(..=last.saturating_add(1))
            .rev()
            .take_while(|(_, end)| end.saturating_add(1) >= first)
            .map(|(start, end)| (*start, *end))
            .collect();
        for (start, end) in touching {
            self.ranges.remove(&start);
            first = first.min(start);
            last = last.max(end);
        }
        self.ranges.insert(first, last);
    }

    /// Adds every number of `other`.
    pub fn add_all(&mut self, other: impl IntoIterator<Item = (u64, u64)>) {
        other
            .into_iter()
            .for_each(|(first, last)| self.add(first, last));
    }

    /// The ranges in ascending order.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().map(|(first, last)| (*first, *last))
    }

    /// The highest number; zero for the empty set.
    #[must_use]
    pub fn highest(&self) -> u64 {
        self.ranges.last_key_value().map_or(0, |(_, last)| *last)
    }

    /// Whether every number from `first` to `last` is in the set.
    #[must_use]
    pub fn has_all(&self, first: u64, last: u64) -> bool {
        let holding = self.ranges.range(..=first).next_back();
        holding.is_some_and(|(_, end)| *end >= last)
    }

    /// The first range of numbers between 1 and `highest` that are not in the set.
    #[must_use]
    pub fn first_gap(&self, highest: u64) -> Option<(u64, u64)> {
        let mut next: u64 = 1;
        for (first, last) in self.ranges() {
            if first > next {
                break;
            }
            next = next.max(last.checked_add(1)?);
        }
        if next > highest {
            return None;
        }
        let following = self.ranges.range(next..).next().map(|(first, _)| *first);
        let last = following.map_or(highest, |first| highest.min(first.saturating_sub(1)));
        Some((next, last))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn agrees_with_a_set_of_single_numbers() {
        let (mut numbers, mut single) = (Numbers::default(), BTreeSet::new());
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..400 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let first = 1 + (state >> 33) % 300;
            let last = first + (state >> 20) % 4;
            numbers.add(first, last);
            single.extend(first..=last);
            let expected = (1..=310).find(|number| !single.contains(number));
            assert_eq!(numbers.first_gap(310).map(|(gap, _)| gap), expected);
            assert_eq!(numbers.highest(), *single.last().unwrap());
            let holds = (first..=last + 1).all(|number| single.contains(&number));
            assert_eq!(numbers.has_all(first, last + 1), holds);
            let expanded: BTreeSet<u64> = numbers.ranges().flat_map(|(a, b)| a..=b).collect();
            assert_eq!(expanded, single);
        }
    }

    #[test]
    fn the_extremes_of_the_type_do_no_harm() {
        let mut numbers = Numbers::default();
        numbers.add(0, 0);
        numbers.add(u64::MAX, u64::MAX);
        numbers.add(9, 3);
        assert_eq!(numbers.first_gap(u64::MAX), Some((1, u64::MAX - 1)));
        numbers.add(1, u64::MAX);
        assert_eq!(numbers.first_gap(u64::MAX), None);
    }
}
