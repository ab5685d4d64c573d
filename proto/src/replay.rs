//! Sliding window against replayed counters (RFC 6479's idea, one word array).

const WORDS: usize = 32;
/// Counters that the window looks back.
pub const WINDOW: u64 = (WORDS as u64 - 1) * 64;

/// Remembers which of the last [`WINDOW`] counters were seen.
#[derive(Debug, Clone)]
pub struct ReplayWindow {
    next: u64,
    words: [u64; WORDS],
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self {
            next: 0,
            words: [0; WORDS],
        }
    }
}

impl ReplayWindow {
    /// Marks `counter` as seen; `false` if it was seen before or is too old to tell.
    pub fn accept(&mut self, counter: u64) -> bool {
        if counter == u64::MAX || counter.saturating_add(WINDOW) < self.next {
            return false;
        }
        if counter >= self.next {
            let first_new = self.next.div_ceil(64);
            let last_new = counter / 64;
            if last_new.saturating_sub(first_new) >= WORDS as u64 {
                self.words = [0; WORDS];
            } else {
                (first_new..=last_new).for_each(|word| *self.word(word) = 0);
            }
            self.next = counter + 1;
        }
        let bit = 1 << (counter % 64);
        let word = self.word(counter / 64);
        let fresh = *word & bit == 0;
        *word |= bit;
        fresh
    }

    fn word(&mut self, index: u64) -> &mut u64 {
        // The remainder is below WORDS, so the index is always in range.
        &mut self.words[(index % WORDS as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn agrees_with_a_set_of_all_counters() {
        let (mut window, mut seen, mut highest) = (ReplayWindow::default(), BTreeSet::new(), 0);
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..200_000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let spread = [3, 100, 3_000, 70_000][(state >> 60) as usize % 4];
            let counter = (highest + (state >> 33) % spread).saturating_sub((state >> 20) % 2_500);
            let too_old = counter + WINDOW < highest + 1 && !seen.is_empty();
            let fresh = seen.insert(counter) && !too_old;
            assert_eq!(
                window.accept(counter),
                fresh,
                "counter {counter}, highest {highest}"
            );
            highest = highest.max(counter);
        }
        assert!(!window.accept(u64::MAX));
    }
}
