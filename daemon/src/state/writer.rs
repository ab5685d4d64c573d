//! The thread that writes a document, so that nobody waits for the disk.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

use super::{Document, Loaded};

/// How long after a failure the disk is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Bytes a second that are written in the long run: a document that is large and changes all the time is
/// written now and then.
const PACE: f64 = (2 * 1024 * 1024) as f64;
/// The longest rest after a write. What is said to others waits for the disk.
const LONGEST_REST: Duration = Duration::from_secs(1);
/// Bytes of a document after which there is no rest.
const SMALL: usize = 64 * 1024;

/// Writes the latest of the values it is given; those that come while it writes, or rests, replace each
/// other.
pub(crate) struct Writer<T> {
    shared: Arc<Shared<T>>,
    progress: watch::Receiver<Progress>,
    thread: Option<JoinHandle<()>>,
}

/// How far the thread has come.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    /// Number of the last value that was written, or could not be.
    pub(crate) number: u64,
    /// Number of the last value that is on disk.
    pub(crate) written: u64,
    /// Why it could not be.
    pub(crate) trouble: Option<String>,
}

struct Shared<T> {
    slot: Mutex<Slot<T>>,
    changed: Condvar,
}

/// What is to be written.
enum Value<T> {
    One(T),
    /// This, or what is on disk already, as both generations.
    Both(Option<T>),
}

struct Slot<T> {
    /// The latest value and its number.
    waiting: Option<(u64, Value<T>)>,
    number: u64,
    closing: bool,
}

impl<T: Serialize + Send + 'static> Writer<T> {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread left.
    pub(crate) fn start(document: Document) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            slot: Mutex::new(Slot {
                waiting: None,
                number: 0,
                closing: false,
            }),
            changed: Condvar::new(),
        });
        let (report, progress) = watch::channel(Progress::default());
        let thread = thread::Builder::new()
            .name("state-writer".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || write_until_closed(document, &shared, &report)
            })?;
        Ok(Self {
            shared,
            progress,
            thread: Some(thread),
        })
    }

    /// Has `value` written soon and gives its number. Never waits for the disk.
    pub(crate) fn put(&self, value: T) -> u64 {
        self.change(|waiting| match waiting {
            Some(Value::Both(_)) => Value::Both(Some(value)),
            Some(Value::One(_)) | None => Value::One(value),
        })
    }

    /// Has the latest value take the place of the generation before it, too, and gives this a number: what
    /// that one holds is worth nothing from now on.
    pub(crate) fn outdate(&self) -> u64 {
        self.change(|waiting| match waiting {
            Some(Value::One(value)) => Value::Both(Some(value)),
            Some(Value::Both(value)) => Value::Both(value),
            None => Value::Both(None),
        })
    }

    fn change(&self, change: impl FnOnce(Option<Value<T>>) -> Value<T>) -> u64 {
        let mut slot = self.shared.lock();
        slot.number += 1;
        let number = slot.number;
        let waiting = slot.waiting.take().map(|(_, value)| value);
        slot.waiting = Some((number, change(waiting)));
        drop(slot);
        self.shared.changed.notify_all();
        number
    }

    /// How far the thread has come, also to wait for.
    pub(crate) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Writes what waits, tries no longer than once, and ends the thread.
    pub(crate) fn finish(mut self) {
        self.shared.lock().closing = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Slot<T>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next value to write, after a rest; `None` once there is none and no more will come.
    fn next(&self, rest: Duration) -> Option<(u64, Value<T>)> {
        let open = |slot: &mut Slot<T>| !slot.closing;
        let rested = self.changed.wait_timeout_while(self.lock(), rest, open);
        let (mut slot, _) = rested.unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(value) = slot.waiting.take() {
                return Some(value);
            }
            if slot.closing {
                return None;
            }
            slot = self
                .changed
                .wait(slot)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Puts `value` back unless there is a newer one, and sleeps; `false` if nobody wants a retry.
    fn put_back(&self, value: (u64, Value<T>)) -> bool {
        let mut slot = self.lock();
        if slot.closing {
            return false;
        }
        slot.waiting = Some(match (slot.waiting.take(), value) {
            (None, value) => value,
            (Some((number, Value::One(newer))), (_, Value::Both(_))) => {
                (number, Value::Both(Some(newer)))
            }
            (
                Some((number, Value::Both(None))),
                (_, Value::One(older) | Value::Both(Some(older))),
            ) => (number, Value::Both(Some(older))),
            (Some(newer), _) => newer,
        });
        let closing = |slot: &mut Slot<T>| !slot.closing;
        let waited = self.changed.wait_timeout_while(slot, RETRY, closing);
        drop(waited);
        true
    }
}

fn write_until_closed<T: Serialize>(
    mut document: Document,
    shared: &Shared<T>,
    report: &watch::Sender<Progress>,
) {
    let mut progress = Progress::default();
    let mut rest = Duration::ZERO;
    while let Some((number, value)) = shared.next(rest) {
        let written = write(&mut document, &value);
        rest = rest_after(*written.as_ref().unwrap_or(&0));
        let trouble = written.err();
        if trouble != progress.trouble {
            match &trouble {
                Some(cause) => tracing::warn!(reason = cause, "the state can't be written to disk"),
                None => tracing::info!("the state is on disk again"),
            }
        }
        progress.number = number;
        if trouble.is_none() {
            progress.written = number;
        }
        progress.trouble = trouble;
        report.send_replace(progress.clone());
        if progress.trouble.is_some() && !shared.put_back((number, value)) {
            return;
        }
    }
}

fn rest_after(bytes: usize) -> Duration {
    if bytes <= SMALL {
        return Duration::ZERO;
    }
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    Duration::from_secs_f64(f64::from(bytes) / PACE).min(LONGEST_REST)
}

/// Gives the bytes that were written.
fn write<T: Serialize>(document: &mut Document, value: &Value<T>) -> Result<usize, String> {
    let bytes = |value: &T| postcard::to_allocvec(value).map_err(|error| error.to_string());
    let bytes = match value {
        Value::One(value) | Value::Both(Some(value)) => bytes(value)?,
        Value::Both(None) => match document.load().map_err(|error| error.to_string())? {
            Loaded::Current(content) | Loaded::Previous(content, _) => content,
            Loaded::Nothing => return Ok(0),
        },
    };
    let times = match value {
        Value::One(_) => 1,
        Value::Both(_) => 2,
    };
    (0..times)
        .try_for_each(|_| document.store(&bytes))
        .map(|()| bytes.len() * times)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Instant;

    use super::*;
    use crate::scratch::Scratch;
    use crate::state::StateDir;

    #[test]
    fn the_last_of_many_values_is_on_disk_after_the_end() {
        let scratch = Scratch::new();
        let dir = StateDir::open(&scratch.path("state")).unwrap();
        let writer = Writer::start(Document::new(&dir, "state", "test", 1)).unwrap();
        for number in 0..1000_u32 {
            writer.put(number);
        }
        writer.finish();
        let loaded = Document::new(&dir, "state", "test", 1).load().unwrap();
        assert_eq!(
            loaded,
            Loaded::Current(postcard::to_allocvec(&999_u32).unwrap())
        );
    }

    #[test]
    fn a_large_state_that_changes_all_the_time_is_written_now_and_then_and_at_the_end() {
        let scratch = Scratch::new();
        let dir = StateDir::open(&scratch.path("state")).unwrap();
        let writer = Writer::start(Document::new(&dir, "state", "test", 1)).unwrap();
        let progress = writer.progress();
        let large = |number: u8| vec![number; 1024 * 1024];
        let first = writer.put(large(1));
        while progress.borrow().written < first {
            thread::sleep(Duration::from_millis(1));
        }
        let mut last = first;
        for number in 2..20 {
            last = writer.put(large(number));
        }
        thread::sleep(Duration::from_millis(100));
        assert_eq!(progress.borrow().written, first, "it rests");
        writer.finish();
        assert_eq!(progress.borrow().written, last, "the end waits for no rest");
        assert_eq!(rest_after(SMALL), Duration::ZERO);
    }

    #[test]
    fn a_full_disk_is_reported_and_does_not_hold_up_the_end() {
        let scratch = Scratch::new();
        let dir = StateDir::open(&scratch.path("state")).unwrap();
        fs::create_dir_all(dir.path().join("state.new/in-the-way")).unwrap();
        let writer = Writer::start(Document::new(&dir, "state", "test", 1)).unwrap();
        let start = Instant::now();
        writer.put(1_u32);
        while writer.progress().borrow().trouble.is_none() {
            assert!(
                start.elapsed() < Duration::from_secs(5),
                "no trouble reported"
            );
            thread::yield_now();
        }
        fs::remove_dir_all(dir.path().join("state.new")).unwrap();
        writer.put(2_u32);
        writer.finish();
        assert!(start.elapsed() < Duration::from_secs(5));
        let loaded = Document::new(&dir, "state", "test", 1).load().unwrap();
        assert_eq!(
            loaded,
            Loaded::Current(postcard::to_allocvec(&2_u32).unwrap())
        );
    }

    #[test]
    fn an_outdated_generation_is_gone_when_its_number_is_written() {
        let scratch = Scratch::new();
        let dir = StateDir::open(&scratch.path("state")).unwrap();
        let bytes = |value: u32| postcard::to_allocvec(&value).unwrap();
        let generations = || {
            let read = |name: &str| {
                let mut document = Document::new(&dir, name, "test", 1);
                document.load().unwrap()
            };
            let previous = dir.path().join("copy");
            fs::copy(dir.path().join("state.previous"), previous).unwrap();
            (read("state"), read("copy"))
        };
        let writer = Writer::start(Document::new(&dir, "state", "test", 1)).unwrap();
        let wait_for = |number| {
            let start = Instant::now();
            while writer.progress().borrow().written < number {
                assert!(start.elapsed() < Duration::from_secs(10));
                thread::yield_now();
            }
        };
        for (begin, value) in [(1_u32, 2_u32), (3, 4)] {
            wait_for(writer.put(begin));
            wait_for(writer.put(value));
            let before = (Loaded::Current(bytes(value)), Loaded::Current(bytes(begin)));
            assert_eq!(generations(), before);
            wait_for(writer.outdate());
            let after = (Loaded::Current(bytes(value)), Loaded::Current(bytes(value)));
            assert_eq!(generations(), after);
        }
        // Whatever comes between.
        writer.put(5);
        writer.outdate();
        wait_for(writer.put(6));
        assert_eq!(generations().0, Loaded::Current(bytes(6)));
        assert_ne!(generations().1, Loaded::Current(bytes(4)));
    }
}
