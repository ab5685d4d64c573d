//! Work that looks at everything in one of the kernel's tables, so often as there is room for it.

use std::time::Duration;

use tokio::time::Instant;

/// Between two pieces of work that looks at everything in a table of the kernel's.
const REST: Duration = Duration::from_secs(2);
/// So many times what the work has taken, where that is longer: a twentieth of a processor.
const REST_FOR_WORK: u32 = 20;

/// Work that many occasions ask for and that costs more than most of them: it rests after each time.
pub(super) struct Errand {
    is_due: bool,
    not_before: Instant,
}

impl Errand {
    /// Due at once.
    pub(super) fn new() -> Self {
        Self {
            is_due: true,
            not_before: Instant::now(),
        }
    }

    /// One more occasion.
    pub(super) fn ask(&mut self) {
        self.is_due = true;
    }

    /// When it is to be done, if it is.
    pub(super) fn at(&self) -> Option<Instant> {
        self.is_due.then_some(self.not_before)
    }

    /// Whether to do it now; the caller says when it is done.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        let begins = self.is_due && now >= self.not_before;
        self.is_due &= !begins;
        begins
    }

    /// It is done.
    pub(super) fn end(&mut self, begin: Instant, now: Instant) {
        self.not_before = now + REST.max((now - begin) * REST_FOR_WORK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(10);

    /// How often it is done in ten seconds in which it is asked for a hundred times each, and takes so
    /// long.
    fn times(takes: Duration) -> u32 {
        let mut errand = Errand::new();
        let begin = Instant::now() + REST;
        let (mut now, mut done) = (begin, 0);
        while now < begin + 5 * REST {
            errand.ask();
            if errand.begin(now) {
                errand.end(now, now + takes);
                now += takes;
                done += 1;
            }
            now += STEP;
        }
        done
    }

    #[test]
    fn however_often_it_is_asked_for_it_rests_after_each_time() {
        assert_eq!(times(Duration::ZERO), 5);
        assert_eq!(times(Duration::from_millis(200)), 3);
    }

    #[test]
    fn no_occasion_is_forgotten() {
        let mut errand = Errand::new();
        let now = Instant::now() + REST;
        assert!(errand.begin(now));
        // While it is done.
        errand.ask();
        errand.end(now, now);
        assert!(!errand.begin(now));
        let at = errand.at().expect("due");
        assert!(errand.begin(at));
        errand.end(at, at);
        assert_eq!(errand.at(), None);
        assert!(!errand.begin(at + REST), "nobody has asked");
    }
}
