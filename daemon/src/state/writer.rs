//! The thread that writes a document, so that nobody waits for the disk.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

use super::Document;

/// How long after a failure the disk is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Writes the latest of the values it is given; those that come while it writes replace each other.
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
    /// Why it could not be.
    pub(crate) trouble: Option<String>,
}

struct Shared<T> {
    slot: Mutex<Slot<T>>,
    changed: Condvar,
}

struct Slot<T> {
    /// The latest value and its number.
    waiting: Option<(u64, T)>,
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
        let mut slot = self.shared.lock();
        slot.number += 1;
        let number = slot.number;
        slot.waiting = Some((number, value));
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

    /// The next value to write; `None` once there is none and no more will come.
    fn next(&self) -> Option<(u64, T)> {
        let mut slot = self.lock();
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
    fn put_back(&self, value: (u64, T)) -> bool {
        let mut slot = self.lock();
        if slot.closing {
            return false;
        }
        slot.waiting.get_or_insert(value);
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
    while let Some((number, value)) = shared.next() {
        let written = postcard::to_allocvec(&value)
            .map_err(|error| error.to_string())
            .and_then(|bytes| document.store(&bytes).map_err(|error| error.to_string()));
        let trouble = written.err();
        if let Some(cause) = &trouble {
            tracing::warn!(reason = cause, "the state can't be written to disk");
        }
        let failed = trouble.is_some();
        report.send_replace(Progress { number, trouble });
        if failed && !shared.put_back((number, value)) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Instant;

    use super::*;
    use crate::scratch::Scratch;
    use crate::state::{Loaded, StateDir};

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
}
