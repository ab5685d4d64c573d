//! What may be done only when the state before it is on disk.

use std::collections::VecDeque;

use podmesh_engine::error::JoinError;
use podmesh_proto::id::PlanetId;
use podmesh_proto::local_api::Response;
use podmesh_proto::network::PlanetEntry;
use podmesh_proto::planet_api::NodeMessage;
use tokio::sync::oneshot;

use crate::state::Progress;

/// Something that others see and that a crash must not make untrue.
#[derive(Debug)]
pub(super) enum Effect {
    /// A message to a planet.
    Planet(PlanetId, Box<NodeMessage>),
    /// The request for a receipt of other keys: whoever forgot that could have keys that nobody knows.
    NewKeys(PlanetId, Box<NodeMessage>),
    /// The planets to stay connected to; after the last message to one that is left.
    Planets(Vec<PlanetEntry>),
    /// The outcome of a join.
    JoinDone(Result<(), JoinError>),
    /// The node is a member: the token that it used is let go of.
    TokenUsed,
    /// New keys are in force: the old ones leave the disk.
    KeysMoved,
    /// The node has left: whoever asked for that gets an answer with this at its end.
    Left(oneshot::Sender<Response>, String),
    /// The node has left: it gets other keys, and whoever asked for that an answer with this at its
    /// end.
    ForgetKeys(oneshot::Sender<Response>, String),
}

impl Effect {
    /// Whether it destroys what a start from an older state needs, or commits others to what such a start
    /// wouldn't know: it waits until the disk takes the state, however long that is. What doesn't is done
    /// without the disk, too: a node whose disk is full goes on.
    fn needs_disk(&self) -> bool {
        match self {
            Self::NewKeys(..) | Self::TokenUsed | Self::KeysMoved => true,
            // These two look themselves, as somebody waits for an answer.
            Self::Left(..) | Self::ForgetKeys(..) => false,
            Self::Planet(..) | Self::Planets(_) | Self::JoinDone(_) => false,
        }
    }
}

/// Effects that wait for the disk, in order.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// The last state that was handed to the writer.
    last: u64,
    /// The last that the writer was done with.
    done: u64,
    /// The last that is on disk.
    written: u64,
    effects: VecDeque<(u64, Effect)>,
}

impl Held {
    /// Effects from now on wait for the state with this number.
    pub(super) fn wait_for(&mut self, number: u64) {
        self.last = number;
    }

    /// Gives the effect back if it has to wait for nothing.
    pub(super) fn hold(&mut self, effect: Effect) -> Option<Effect> {
        let reached = self.reached(&effect);
        if reached >= self.last {
            return Some(effect);
        }
        self.effects.push_back((self.last, effect));
        None
    }

    /// The effects that have waited for no more than what the writer is done with.
    pub(super) fn release(&mut self, progress: &Progress) -> Vec<Effect> {
        self.done = progress.number;
        self.written = progress.written;
        let waiting = std::mem::take(&mut self.effects);
        let mut released = Vec::new();
        for (number, effect) in waiting {
            if self.reached(&effect) >= number {
                released.push(effect);
            } else {
                self.effects.push_back((number, effect));
            }
        }
        released
    }

    /// Whether a change of keys waits for the disk.
    pub(super) fn holds_keys(&self) -> bool {
        self.effects
            .iter()
            .any(|(_, effect)| matches!(effect, Effect::NewKeys(..) | Effect::KeysMoved))
    }

    fn reached(&self, effect: &Effect) -> u64 {
        if effect.needs_disk() {
            self.written
        } else {
            self.done
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;
    use crate::state::Trouble;

    fn message(number: u8) -> Effect {
        Effect::Planet(PlanetId([number; 32]), Box::new(NodeMessage::Heartbeat))
    }

    #[test]
    fn effects_come_after_the_state_before_them_and_in_order() {
        let mut held = Held::default();
        assert!(held.hold(message(0)).is_some());
        held.wait_for(1);
        assert!(held.hold(message(1)).is_none());
        held.wait_for(2);
        assert!(held.hold(message(2)).is_none());
        assert_eq!(held.release(&written(1)).len(), 1);
        assert!(held.hold(message(3)).is_none());
        let released = held.release(&written(2));
        let planets: Vec<u8> = released
            .iter()
            .map(|effect| match effect {
                Effect::Planet(planet, _) => planet.0[0],
                _ => 0,
            })
            .collect();
        assert_eq!(planets, [2, 3]);
        assert!(held.hold(message(4)).is_some());
    }

    #[test]
    fn what_destroys_the_old_waits_for_the_disk_and_nothing_else_does() {
        let mut held = Held::default();
        held.wait_for(1);
        let planet = PlanetId([7; 32]);
        let waits = [
            Effect::NewKeys(planet, Box::new(NodeMessage::Heartbeat)),
            Effect::KeysMoved,
            Effect::TokenUsed,
        ];
        let count = waits.len();
        for effect in waits {
            assert!(held.hold(effect).is_none());
        }
        let goes_on = [
            message(1),
            Effect::Planets(Vec::new()),
            Effect::JoinDone(Ok(())),
            Effect::Left(oneshot::channel().0, String::new()),
            Effect::ForgetKeys(oneshot::channel().0, String::new()),
        ];
        for effect in goes_on {
            assert!(held.hold(effect).is_none());
        }
        // Each failed try of the writer, and each value that takes the place of another one.
        for number in 1..5 {
            held.wait_for(number);
            let progress = Progress {
                number,
                trouble: Some(Trouble::from(&ErrorKind::StorageFull.into())),
                ..Progress::default()
            };
            let released = held.release(&progress);
            assert_eq!(released.len(), if number == 1 { 5 } else { 0 });
            assert!(released.iter().all(|effect| !effect.needs_disk()));
            assert!(held.holds_keys());
        }
        assert_eq!(held.release(&written(4)).len(), count);
        assert!(!held.holds_keys());
    }

    fn written(number: u64) -> Progress {
        Progress {
            number,
            written: number,
            ..Progress::default()
        }
    }
}
