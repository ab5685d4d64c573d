//! A fixed number of places for connections; the silent ones can be taken away.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// All places.
#[derive(Clone)]
pub(super) struct Places {
    shared: Arc<Mutex<Shared>>,
    most: usize,
}

/// One connection's place, given back when dropped.
pub(super) struct Place {
    shared: Arc<Mutex<Shared>>,
    number: u64,
    taken_away: oneshot::Receiver<()>,
    silent: bool,
}

#[derive(Default)]
struct Shared {
    used: usize,
    next: u64,
    /// Those that have not asked anything yet, oldest first.
    silent: VecDeque<(u64, oneshot::Sender<()>)>,
}

impl Places {
    pub(super) fn new(most: usize) -> Self {
        Self {
            shared: Arc::default(),
            most,
        }
    }

    /// A place for a new connection, if need be that of the one that has been silent for longest;
    /// `None` if all have asked something and are waiting for their answers.
    pub(super) fn take(&self) -> Option<Place> {
        let mut shared = lock(&self.shared);
        if shared.used >= self.most {
            let (_, oldest) = shared.silent.pop_front()?;
            // It gives its place back when it hears of this.
            let _ = oldest.send(());
        }
        let (bell, taken_away) = oneshot::channel();
        shared.used += 1;
        shared.next += 1;
        let number = shared.next;
        shared.silent.push_back((number, bell));
        Some(Place {
            shared: Arc::clone(&self.shared),
            number,
            taken_away,
            silent: true,
        })
    }
}

impl Place {
    /// Ends when the place was taken away.
    pub(super) async fn lost(&mut self) {
        if !self.silent || (&mut self.taken_away).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The connection has asked something: the place is its own.
    pub(super) fn keep(&mut self) {
        self.silent = false;
        lock(&self.shared)
            .silent
            .retain(|(number, _)| *number != self.number);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut shared = lock(&self.shared);
        shared.used -= 1;
        shared.silent.retain(|(number, _)| *number != self.number);
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
