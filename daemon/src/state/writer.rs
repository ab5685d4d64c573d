//! The thread that writes a document, so that nobody waits for the disk.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

use super::{Document, Loaded, Trouble};
use crate::kept::Kept;

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
    /// How many values had been put by then: [`Writer::outdate`] has a number and brings none.
    pub(crate) values: u64,
    /// Why it could not be.
    pub(crate) trouble: Option<Trouble>,
    /// What the last look, or the last write before it wrote, has found not to be as this process had left
    /// it.
    pub(crate) fallen: Vec<PathBuf>,
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
    waiting: Option<(Number, Value<T>)>,
    last: Number,
    /// A look at the document's files and these.
    look: Option<Vec<Kept>>,
    closing: bool,
}

/// Of what was asked for.
#[derive(Debug, Clone, Copy, Default)]
struct Number {
    number: u64,
    /// Those of it that brought a value.
    values: u64,
}

enum Work<T> {
    Write(Number, Value<T>),
    Look(Vec<Kept>),
}

impl<T: Serialize + Send + 'static> Writer<T> {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread left.
    pub(crate) fn start(document: Document) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            slot: Mutex::new(Slot {
                waiting: None,
                last: Number::default(),
                look: None,
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
        self.change(1, |waiting| match waiting {
            Some(Value::Both(_)) => Value::Both(Some(value)),
            Some(Value::One(_)) | None => Value::One(value),
        })
    }

    /// Has the latest value take the place of the generation before it, too, and gives this a number: what
    /// that one holds is worth nothing from now on.
    pub(crate) fn outdate(&self) -> u64 {
        self.change(0, |waiting| match waiting {
            Some(Value::One(value)) => Value::Both(Some(value)),
            Some(Value::Both(value)) => Value::Both(value),
            None => Value::Both(None),
        })
    }

    fn change(&self, values: u64, change: impl FnOnce(Option<Value<T>>) -> Value<T>) -> u64 {
        let mut slot = self.shared.lock();
        slot.last.number += 1;
        slot.last.values += values;
        let last = slot.last;
        let waiting = slot.waiting.take().map(|(_, value)| value);
        slot.waiting = Some((last, change(waiting)));
        drop(slot);
        self.shared.changed.notify_all();
        last.number
    }

    /// Has the thread look, when it has nothing to write, whether the document's files and `others` are
    /// as this process has left them. Never waits for the disk.
    pub(crate) fn look(&self, others: Vec<Kept>) {
        self.shared.lock().look = Some(others);
        self.shared.changed.notify_all();
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

    /// What to do next, after a rest; `None` once there is nothing and no more will come.
    fn next(&self, rest: Duration) -> Option<Work<T>> {
        let open = |slot: &mut Slot<T>| !slot.closing;
        let rested = self.changed.wait_timeout_while(self.lock(), rest, open);
        let (mut slot, _) = rested.unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some((number, value)) = slot.waiting.take() {
                return Some(Work::Write(number, value));
            }
            if slot.closing {
                return None;
            }
            if let Some(others) = slot.look.take() {
                return Some(Work::Look(others));
            }
            slot = self
                .changed
                .wait(slot)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Puts `value` back unless there is a newer one, and sleeps; `false` if nobody wants a retry.
    fn put_back(&self, value: (Number, Value<T>)) -> bool {
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
    while let Some(work) = shared.next(rest) {
        let (number, value) = match work {
            Work::Write(number, value) => (number, value),
            Work::Look(others) => {
                rest = Duration::ZERO;
                progress.fallen = fallen(document.left().into_iter().chain(others));
                if !progress.fallen.is_empty() {
                    report.send_replace(progress.clone());
                }
                continue;
            }
        };
        let gone = fallen(document.left());
        let written = write(&mut document, &value);
        rest = rest_after(*written.as_ref().unwrap_or(&0));
        let trouble = written.err();
        if trouble != progress.trouble {
            match &trouble {
                Some(trouble) => {
                    tracing::warn!(reason = %trouble, "the state can't be written to disk");
                }
                None => tracing::info!("the state is on disk again"),
            }
        }
        progress.number = number.number;
        progress.values = number.values;
        progress.fallen = gone;
        if trouble.is_none() {
            progress.written = number.number;
        }
        progress.trouble = trouble;
        report.send_replace(progress.clone());
        if progress.trouble.is_some() && !shared.put_back((number, value)) {
            return;
        }
    }
}

/// Those that are not as they were left.
fn fallen(left: impl IntoIterator<Item = Kept>) -> Vec<PathBuf> {
    let fallen = left.into_iter().filter(|kept| !kept.stands());
    fallen.map(|kept| kept.path().to_owned()).collect()
}

fn rest_after(bytes: usize) -> Duration {
    if bytes <= SMALL {
        return Duration::ZERO;
    }
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    Duration::from_secs_f64(f64::from(bytes) / PACE).min(LONGEST_REST)
}

/// Gives the bytes that were written.
fn write<T: Serialize>(document: &mut Document, value: &Value<T>) -> Result<usize, Trouble> {
    let refused = |error: io::Error| Trouble::from(&error);
    let bytes = |value: &T| {
        let bytes = postcard::to_allocvec(value);
        bytes.map_err(|error| refused(io::Error::other(error)))
    };
    match value {
        Value::One(value) => {
            let bytes = bytes(value)?;
            document.store(&bytes).map_err(refused)?;
            Ok(bytes.len())
        }
        Value::Both(value) => {
            let bytes = match value {
                Some(value) => bytes(value)?,
                None if !fallen(document.left()).is_empty() => {
                    let gone = io::Error::new(io::ErrorKind::NotFound, "its file was taken away");
                    return Err(refused(gone));
                }
                None => match document.load() {
                    Ok(Loaded::Current(content) | Loaded::Previous(content, _)) => content,
                    Ok(Loaded::Nothing) => return Ok(0),
                    Err(error) => return Err(refused(io::Error::other(error))),
                },
            };
            document.store_both(&bytes).map_err(refused)?;
            Ok(bytes.len() * 2)
        }
    }
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
    fn a_look_finds_what_was_taken_away_and_memory_is_what_counts() {
        let scratch = Scratch::new();
        let dir = StateDir::open(&scratch.path("state")).unwrap();
        let [path, other] = ["state", "other"].map(|name| dir.path().join(name));
        let writer = Writer::start(Document::new(&dir, "state", "test", 1)).unwrap();
        let wait_for = |is_so: &dyn Fn(&Progress) -> bool| {
            let start = Instant::now();
            while !is_so(&writer.progress().borrow()) {
                assert!(start.elapsed() < Duration::from_secs(10));
                thread::yield_now();
            }
        };
        for value in [1_u32, 2] {
            let number = writer.put(value);
            wait_for(&|progress| progress.written == number);
        }
        fs::write(&other, b"other").unwrap();
        let others = vec![Kept::at(&other).unwrap()];
        fs::remove_file(&other).unwrap();
        writer.look(others);
        wait_for(&|progress| progress.fallen == [other.clone()]);
        fs::remove_file(&path).unwrap();
        writer.look(Vec::new());
        wait_for(&|progress| progress.fallen == [path.clone()]);
        // The generation before is not taken for the newest one.
        let number = writer.outdate();
        wait_for(&|progress| progress.number == number && progress.trouble.is_some());
        assert_eq!(writer.progress().borrow().fallen, [path]);
        let values = writer.progress().borrow().values;
        writer.put(2);
        writer.finish();
        assert_eq!(values, 2, "what outdates brings no value");
        let loaded = Document::new(&dir, "state", "test", 1).load().unwrap();
        assert_eq!(
            loaded,
            Loaded::Current(postcard::to_allocvec(&2_u32).unwrap())
        );
        let previous = fs::read(dir.path().join("state.previous")).unwrap();
        assert_eq!(previous, fs::read(dir.path().join("state")).unwrap());
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
