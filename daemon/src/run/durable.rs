//! What may be done only when the state before it is on disk.

use std::collections::VecDeque;

use podmesh_engine::error::JoinError;
use podmesh_proto::id::PlanetId;
use podmesh_proto::local_api::Response;
use podmesh_proto::network::PlanetEntry;
use podmesh_proto::planet_api::NodeMessage;
use tokio::sync::oneshot;

/// Something that others see and that a crash must not make untrue.
#[derive(Debug)]
pub(super) enum Effect {
    /// A message to a planet.
    Planet(PlanetId, Box<NodeMessage>),
    /// The planets to stay connected to; after the last message to one that is left.
    Planets(Vec<PlanetEntry>),
    /// The outcome of a join.
    JoinDone(Result<(), JoinError>),
    /// New keys are in force: the old ones leave the disk.
    KeysMoved,
    /// The node has left: it gets other keys, and whoever asked for that an answer with this at its
    /// end.
    ForgetKeys(oneshot::Sender<Response>, String),
}

/// Effects that wait for the disk, in order.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// The last state that was handed to the writer.
    last: u64,
    /// The last that the writer was done with.
    done: u64,
    effects: VecDeque<(u64, Effect)>,
}

impl Held {
    /// Effects from now on wait for the state with this number.
    pub(super) fn wait_for(&mut self, number: u64) {
        self.last = number;
    }

    /// Gives the effect back if it has to wait for nothing.
    pub(super) fn hold(&mut self, effect: Effect) -> Option<Effect> {
        if self.done >= self.last {
            return Some(effect);
        }
        self.effects.push_back((self.last, effect));
        None
    }

    /// The effects that have waited for states up to this number. A state that can't be written is
    /// done as well: a node whose disk is full goes on, and says so.
    pub(super) fn release(&mut self, number: u64) -> Vec<Effect> {
        self.done = number;
        let count = self
            .effects
            .partition_point(|(waits_for, _)| *waits_for <= number);
        self.effects
            .drain(..count)
            .map(|(_, effect)| effect)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(held.release(1).len(), 1);
        assert!(held.hold(message(3)).is_none());
        let released = held.release(2);
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
}
