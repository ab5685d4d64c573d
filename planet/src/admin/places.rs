//! A fixed number of conversations of one kind of caller; those without a question yet give way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// By the order in which they began; with a bell, whose loss ends a conversation, until the
/// question is there.
type Held = Arc<Mutex<BTreeMap<u64, Option<oneshot::Sender<()>>>>>;

/// All conversations of one kind.
pub(super) struct Places {
    held: Held,
    most: usize,
    next: u64,
}

/// One conversation's place, given back when dropped.
pub(super) struct Place {
    held: Held,
    number: u64,
    taken_away: oneshot::Receiver<()>,
}

impl Places {
    pub(super) fn new(most: usize) -> Self {
        Self {
            held: Held::default(),
            most,
            next: 0,
        }
    }

    /// A place for a new conversation, if need be that of the oldest one without a question; `None`
    /// if all are waiting for their answers.
    pub(super) fn take(&mut self) -> Option<Place> {
        let mut held = lock(&self.held);
        if held.len() >= self.most {
            let silent = held.iter().find(|(_, bell)| bell.is_some());
            let oldest = silent.map(|(number, _)| *number)?;
            held.remove(&oldest);
        }
        let (bell, taken_away) = oneshot::channel();
        self.next += 1;
        held.insert(self.next, Some(bell));
        Some(Place {
            held: Arc::clone(&self.held),
            number: self.next,
            taken_away,
        })
    }
}

impl Place {
    /// What `question` yields, after which the place is the conversation's own; `None` if it was
    /// taken away before.
    pub(super) async fn until<T>(&mut self, question: impl Future<Output = T>) -> Option<T> {
        let question = tokio::select! {
            question = question => question,
            _ = &mut self.taken_away => return None,
        };
        let mut held = lock(&self.held);
        *held.get_mut(&self.number)? = None;
        Some(question)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.held).remove(&self.number);
    }
}

fn lock<T>(held: &Mutex<T>) -> MutexGuard<'_, T> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}
