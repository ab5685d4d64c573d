//! Telling the newer to whoever says the older: who was away tells in good faith what it knew.

use podmesh_proto::id::PlanetId;
use podmesh_proto::planet_api::NodeMessage;
use podmesh_proto::time::Now;

use crate::control::ControlMessage;
use crate::engine::Engine;
use crate::limits;
use crate::membership::lies::Source;
use crate::membership::{Better, Members};
use crate::timers::Timer;

impl Engine {
    /// After something was heard of `source`: it is told what it doesn't know, a planet in a moment.
    pub(super) fn answer_late(&mut self, source: Source, now: Now) {
        let Some(members) = self
            .members
            .as_mut()
            .filter(|members| members.has_untold(source))
        else {
            return;
        };
        match source {
            Source::Planet(planet) => {
                let at = now.moment + limits::LATE;
                self.timers.set_earlier(Timer::Late(planet), at);
            }
            Source::Member(node) => {
                let message = match members.take_untold(source, now.unix) {
                    Some(Better::Member(membership)) => {
                        let about = membership.application.certificate.unverified().ok();
                        let about = about.zip(membership.renewed);
                        about.map(|(about, renewed)| ControlMessage::Renewed {
                            node: about.node,
                            renewed,
                        })
                    }
                    Some(Better::Left(departure)) => {
                        Some(ControlMessage::Left(Box::new(departure)))
                    }
                    Some(Better::Statement(said)) => Some(ControlMessage::Statement(said)),
                    None => None,
                };
                if let Some(message) = message {
                    self.send_control(&node, &message, now);
                }
            }
            Source::Disk | Source::Operator => {}
        }
    }

    /// The next of what a planet has to be told, if it has not heard it from whom it is about.
    pub(super) fn tell_late_planet(&mut self, planet: PlanetId, now: Now) {
        let source = Source::Planet(planet);
        if !self.planets.connected().any(|one| one == planet) {
            return;
        }
        let better = self.members.as_mut();
        let better = better.and_then(|members| members.take_untold(source, now.unix));
        let message = match better {
            Some(Better::Member(membership)) => NodeMessage::Membership(membership),
            Some(Better::Left(departure)) => NodeMessage::Leave(departure),
            Some(Better::Statement(said)) => NodeMessage::Statement(said),
            None => return,
        };
        self.say(planet, message);
        let more = self.members.as_ref();
        if more.is_some_and(|members: &Members| members.has_untold(source)) {
            let next = now.moment + limits::LATE_GAP;
            self.timers.set(Timer::Late(planet), next);
        }
    }
}
