//! A node's disk: a write takes a while, may be refused, and an older generation may come back.
//!
//! The shell's rule is played as it is: what the engine says to planets waits until the state before it is
//! on disk, or could not be written.

use std::collections::VecDeque;

use podmesh_engine::engine::Engine;
use podmesh_engine::output::Output;
use podmesh_engine::stored::StoredState;
use podmesh_proto::certificate::Membership;
use podmesh_proto::planet_api::NodeMessage;

use super::{Work, World};

/// Milliseconds that a write takes.
const WRITE: (u64, u64) = (1, 20);
/// Milliseconds until a disk that refused is tried again.
const RETRY: (u64, u64) = (5_000, 5_001);
/// States that are kept, as the shell keeps them.
const GENERATIONS: usize = 2;

#[derive(Default)]
pub struct Disk {
    /// The newest last.
    pub(super) generations: VecDeque<Box<StoredState>>,
    /// What the engine wanted written last, whether it is or not.
    handed: Option<Box<StoredState>>,
    waiting: Option<(u64, Box<StoredState>)>,
    number: u64,
    done: u64,
    writing: bool,
    held: VecDeque<(u64, Output)>,
    pub refuses: bool,
}

/// Serial of a membership's newest document.
fn serial(membership: &Membership) -> u64 {
    membership.renewed.as_ref().map_or(0, |renewed| {
        renewed.request.renewal.unverified().unwrap().serial
    })
}

impl Disk {
    /// A process begins; what the last one had not written is lost. With `older`, so is the newest
    /// generation, if there is one before it.
    pub(super) fn reopen(&mut self, older: bool) -> Option<Box<StoredState>> {
        if older && self.generations.len() > 1 {
            self.generations.pop_back();
        }
        let newest = self.generations.back().cloned();
        *self = Self {
            generations: std::mem::take(&mut self.generations),
            handed: newest.clone(),
            refuses: self.refuses,
            ..Self::default()
        };
        newest
    }

    /// Statements of the root in the state that was handed over last.
    pub fn statements(&self) -> usize {
        let state = self.handed.as_ref();
        state.map_or(0, |state| state.statements.len())
    }

    /// The certificate of the membership that the node is in by its newest state.
    pub(super) fn admitted(&self) -> Option<[u8; 32]> {
        let membership = self.newest()?.membership.as_ref()?;
        Some(membership.application.certificate.hash())
    }

    pub(super) fn newest(&self) -> Option<&StoredState> {
        self.generations.back().map(AsRef::as_ref)
    }

    /// Nothing that a crash would make untrue is said.
    fn allows(&self, message: &NodeMessage, engine: &Engine) {
        let handed = self.handed.as_ref();
        match message {
            NodeMessage::Membership(told) => {
                let kept = handed.and_then(|state| state.membership.as_ref());
                // What another has become is that one's to keep.
                let of = told.application.certificate.unverified().unwrap().node;
                assert!(
                    of != engine.node_id() || kept.map(serial) >= Some(serial(told)),
                    "a renewal is told that is not on disk"
                );
            }
            NodeMessage::Renew(asked) => {
                let of = |state: Option<&Box<StoredState>>| {
                    state.and_then(|state| state.renewing.clone()).as_ref() == Some(&**asked)
                };
                assert!(of(handed), "a renewal is asked for that is not on disk");
                // Others than those in force, which the disk may not have yet.
                let present = engine.keys().wireguard.public();
                let new_keys = asked.renewal.unverified().unwrap().wireguard != present;
                assert!(
                    !new_keys || of(self.generations.back()),
                    "new keys are asked for while the disk refuses"
                );
            }
            _ => {}
        }
    }
}

impl World {
    pub(super) fn persist(&mut self, index: usize, state: Box<StoredState>) {
        let disk = &mut self.nodes[index].disk;
        disk.number += 1;
        disk.handed = Some(state.clone());
        disk.waiting = Some((disk.number, state));
        if !disk.writing {
            disk.writing = true;
            self.write_after(index, WRITE);
        }
    }

    fn write_after(&mut self, index: usize, (low, high): (u64, u64)) {
        let at = self.net.now + self.net.random.millis(low, high);
        let (node, life) = (index, self.nodes[index].life);
        self.net.schedule(at, Work::Written { node, life });
    }

    /// The disk is done with a write.
    pub(super) fn written(&mut self, index: usize, life: u32) {
        let now = self.now_of(index);
        let node = &mut self.nodes[index];
        if node.life != life || node.engine.is_none() {
            return;
        }
        let disk = &mut node.disk;
        disk.writing = false;
        let Some((number, state)) = disk.waiting.take() else {
            return;
        };
        let written = !disk.refuses;
        if written {
            disk.generations.push_back(state);
            if disk.generations.len() > GENERATIONS {
                disk.generations.pop_front();
            }
        } else {
            disk.waiting = Some((number, state));
            disk.writing = true;
        }
        disk.done = number;
        let ready = disk
            .held
            .iter()
            .take_while(|(waits, _)| *waits <= number)
            .count();
        let released: Vec<Output> = disk.held.drain(..ready).map(|(_, output)| output).collect();
        for output in released {
            self.perform(index, output);
        }
        if let Some(engine) = &mut self.nodes[index].engine {
            engine.handle_persisted(number, written, now);
        }
        if !written {
            self.write_after(index, RETRY);
        }
        self.drain(index);
    }

    /// Does what an engine asked for, now or when the state before it is on disk.
    pub(super) fn in_order(&mut self, index: usize, output: Output) {
        let node = &mut self.nodes[index];
        if let (Output::Planet { message, .. }, Some(engine)) = (&output, &node.engine) {
            node.disk.allows(message, engine);
        }
        let waits = matches!(
            output,
            Output::Planet { .. } | Output::Planets(_) | Output::JoinDone(_)
        );
        if waits && node.disk.done < node.disk.number {
            let number = node.disk.number;
            node.disk.held.push_back((number, output));
        } else {
            self.perform(index, output);
        }
    }

    /// New keys may have come into force: the old ones go, which must not be missed.
    pub(super) fn move_keys(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if !node.engine.as_mut().is_some_and(Engine::take_moved) {
            return;
        }
        let next = node.next.take().expect("keys that were made before");
        let newest = node.disk.generations.back();
        let membership = newest.and_then(|state| state.membership.as_ref());
        let renewed = membership.and_then(|membership| membership.renewed.as_ref());
        let named = renewed.map(|renewed| renewed.request.renewal.unverified().unwrap().wireguard);
        assert_eq!(
            named,
            Some(next.wireguard()),
            "old keys go, and the disk names them"
        );
        node.keys = next;
    }
}
