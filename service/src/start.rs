//! A start that fails: tried again by the same process for a while, since most causes pass (a disk, an
//! address, a port, a module that isn't there yet). A service manager that had to begin a new process for
//! each try would write half a dozen lines each time.
//!
//! A program that dies at its start can't do that. [`Brake`] counts its starts, and makes those beyond the
//! first few wait, so that a start that never succeeds costs little.

use std::env;
use std::fmt::Display;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// How long one process tries. Far below the service manager's own patience, 90 s by default, and short
/// enough for whoever waits for `systemctl start`.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(250);
/// Reasons that are told at most; a start may fail for several in turn.
const REASONS: usize = 8;
/// Starts in a row that don't wait.
const AT_ONCE: u32 = 5;
/// What the others wait.
const WAIT: Duration = Duration::from_millis(1_500);
/// A process that is this old has not died at its start.
const GROWN_UP: Duration = Duration::from_secs(10);
/// The file with the count, in the runtime folder.
const FILE: &str = "starts";

/// Tries `attempt` until it succeeds, `may_try` says no, or patience is over, and gives its last outcome.
/// `tell` hears each reason once.
///
/// # Errors
/// Those of the last attempt.
pub fn patiently<T, E: Display>(
    mut attempt: impl FnMut() -> Result<T, E>,
    may_try: impl Fn() -> bool,
    tell: impl FnMut(&E),
) -> Result<T, E> {
    Patience::default().with(&mut attempt, &may_try, tell)
}

struct Patience {
    all: Duration,
    pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            all: PATIENCE,
            pause: PAUSE,
        }
    }
}

impl Patience {
    fn with<T, E: Display>(
        &self,
        attempt: &mut dyn FnMut() -> Result<T, E>,
        may_try: &dyn Fn() -> bool,
        mut tell: impl FnMut(&E),
    ) -> Result<T, E> {
        let begin = Instant::now();
        let mut told: Vec<String> = Vec::new();
        loop {
            let error = match attempt() {
                Err(error) if may_try() && begin.elapsed() < self.all => error,
                outcome => return outcome,
            };
            let reason = error.to_string();
            if !told.contains(&reason) && told.len() < REASONS {
                tell(&error);
                told.push(reason);
            }
            thread::sleep(self.pause);
        }
    }
}

/// Counts the starts that a service manager makes in a row.
#[derive(Debug)]
pub struct Brake {
    file: Option<PathBuf>,
}

impl Brake {
    /// Counts this start, and waits if there were many before it. Where the service manager names no
    /// runtime folder, or one that can't be written, nobody waits.
    #[must_use]
    pub fn pull() -> Self {
        let folders = env::var_os("RUNTIME_DIRECTORY");
        let folder = folders.and_then(|folders| env::split_paths(&folders).next());
        let brake = Self {
            file: folder.map(|folder| folder.join(FILE)),
        };
        thread::sleep(brake.count());
        brake.forgive_when_grown_up();
        brake
    }

    /// This process has ended in order: the next start is no repetition.
    pub fn forgive(&self) {
        if let Some(file) = &self.file {
            // One that stays makes a start wait, no more.
            let _ = fs::remove_file(file);
        }
    }

    /// What this start has to wait.
    fn count(&self) -> Duration {
        let Some(file) = &self.file else {
            return Duration::ZERO;
        };
        let before = fs::read_to_string(file).unwrap_or_default();
        let count = before.trim().parse::<u32>().unwrap_or(0).saturating_add(1);
        match fs::write(file, format!("{count}\n")) {
            Ok(()) if count > AT_ONCE => WAIT,
            _ => Duration::ZERO,
        }
    }

    fn forgive_when_grown_up(&self) {
        let later = Self {
            file: self.file.clone(),
        };
        let forgive = move || {
            thread::sleep(GROWN_UP);
            later.forgive();
        };
        let thread: io::Result<_> = thread::Builder::new()
            .name("brake".to_owned())
            .spawn(forgive);
        drop(thread);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn play(outcomes: &[Result<u8, &str>], final_at: usize) -> (Result<u8, String>, Vec<String>) {
        let (count, said) = (RefCell::new(0), RefCell::new(Vec::new()));
        let patience = Patience {
            all: Duration::from_secs(60),
            pause: Duration::ZERO,
        };
        let outcome = patience.with(
            &mut || {
                let mut count = count.borrow_mut();
                *count += 1;
                outcomes[*count - 1].map_err(str::to_owned)
            },
            &|| *count.borrow() < final_at,
            |reason: &String| said.borrow_mut().push(reason.clone()),
        );
        (outcome, said.into_inner())
    }

    #[test]
    fn a_start_is_tried_until_it_succeeds_and_each_reason_is_told_once() {
        let outcomes = [Err("disk"), Err("disk"), Err("port"), Err("disk"), Ok(7)];
        let (outcome, said) = play(&outcomes, usize::MAX);
        assert_eq!(outcome, Ok(7));
        assert_eq!(said, ["disk", "port"]);
    }

    #[test]
    fn who_had_begun_is_not_begun_again() {
        let (outcome, said) = play(&[Err("disk"), Err("died"), Ok(7)], 2);
        assert_eq!(outcome, Err("died".to_owned()));
        assert_eq!(said, ["disk"]);
    }

    #[test]
    fn patience_ends_and_a_changing_reason_is_not_told_for_ever() {
        let (mut tries, mut said) = (0, 0);
        let patience = Patience {
            all: Duration::from_millis(50),
            pause: Duration::ZERO,
        };
        let outcome: Result<(), String> = patience.with(
            &mut || {
                tries += 1;
                Err(format!("try {tries}"))
            },
            &|| true,
            |_| said += 1,
        );
        assert!(outcome.is_err());
        assert_eq!(said, REASONS);
    }

    #[test]
    fn only_starts_in_a_row_wait_and_an_orderly_end_forgives_them() {
        let name = format!("podmesh-brake-{}", std::process::id());
        let brake = Brake {
            file: Some(env::temp_dir().join(name)),
        };
        brake.forgive();
        for _ in 0..2 {
            for start in 1..10 {
                let waits = !brake.count().is_zero();
                assert_eq!(waits, start > AT_ONCE, "start {start}");
            }
            brake.forgive();
        }
        // What is no number counts from the beginning, and a folder that is gone lets everybody pass.
        fs::write(brake.file.as_ref().unwrap(), "no number").unwrap();
        assert!(brake.count().is_zero());
        brake.forgive();
        let nowhere = Brake {
            file: Some(PathBuf::from("/nowhere/starts")),
        };
        assert!((0..9).all(|_| nowhere.count().is_zero()));
    }
}
