//! The operator has this node's keys changed.

use std::time::Duration;

use podmesh_engine::error::RequestError;
use podmesh_proto::local_api::{Failure, FailureCode, NodeState, Response};
use podmesh_proto::planet_api::NodeMessage;
use podmesh_proto::time::Moment;
use tokio::sync::oneshot;

use super::Node;
use super::durable::Effect;
use super::requests::{done, not_done};
use crate::clock;
use crate::local_socket::failed;
use crate::state::Trouble;

/// For a planet to receipt the rotation before whoever asked is told that it takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

impl Node {
    /// Makes new keys, has them on disk, and asks for their receipt. The answer follows when they are in
    /// force.
    pub(super) fn begin_rotation(&mut self, identity: bool, answer: oneshot::Sender<Response>) {
        if let Some(reason) = self.engine.renewal_waits() {
            let message = format!("a renewal of this node is under way: {reason}");
            let _ = answer.send(failed(FailureCode::NotReady, message));
            return;
        }
        if let Some(trouble) = self.disk_trouble() {
            let _ = answer.send(Response::Failed(Failure {
                code: FailureCode::Failed,
                message: format!("the keys stay, as the disk can't be written: {trouble}"),
                next: Some(format!(
                    "{}, then `meshctl node rotate-keys` again",
                    trouble.remedy
                )),
            }));
            return;
        }
        if let Err(error) = self.engine.may_rotate() {
            let _ = answer.send(not_done(&error));
            return;
        }
        let keys = match self.identity.prepare_rotation(identity) {
            Ok(keys) => keys,
            Err(error) => {
                let message = format!("the new keys can't be written to disk: {error}");
                let _ = answer.send(failed(FailureCode::Failed, message));
                return;
            }
        };
        let now = clock::now();
        match self.engine.handle_rotation(keys, now) {
            Ok(()) => self.waiting.rotations.push((now.moment + PATIENCE, answer)),
            Err(error) => {
                self.identity.discard_rotation();
                let _ = answer.send(not_done(&error));
            }
        }
    }

    /// Whether this is the request for a receipt of keys that aren't the present ones.
    pub(super) fn brings_new_keys(&self, message: &NodeMessage) -> bool {
        let NodeMessage::Renew(request) = message else {
            return false;
        };
        let present = self.engine.keys().wireguard.public();
        let renewal = request.renewal.unverified();
        renewal.is_ok_and(|renewal| renewal.wireguard != present)
    }

    /// The disk doesn't take what has to be on it before keys change: nobody waits for that.
    pub(super) fn postpone_rotation(&mut self, trouble: &Trouble) {
        let response = Response::Failed(Failure {
            code: FailureCode::Failed,
            message: format!(
                "the change of keys waits, as the disk can't be written: {trouble}; the old keys \
                 stay until it can"
            ),
            next: Some(format!(
                "{}; meshd goes on by itself then, also over a restart",
                trouble.remedy
            )),
        });
        for (_, answer) in self.waiting.rotations.drain(..) {
            let _ = answer.send(response.clone());
        }
    }

    /// Why the state is not on disk, if it isn't.
    pub(super) fn disk_trouble(&self) -> Option<Trouble> {
        self.writer.progress().borrow().trouble.clone()
    }

    /// The new keys are in force: the old ones leave the disk.
    pub(super) fn finish_rotation(&mut self) {
        let response = match self.identity.complete_rotation() {
            Ok(()) => done(
                "new keys are in force, and the old ones are gone from the disk; \
                 external peers have to be given the new public key (`meshctl status`)",
            ),
            Err(error) => {
                tracing::warn!(reason = %error, "the identity file can't be written");
                Response::Failed(Failure {
                    code: FailureCode::Failed,
                    message: format!(
                        "new keys are in force, but the old ones can't be removed from the disk: {error}"
                    ),
                    next: Some(format!(
                        "{}; meshd removes them by itself then",
                        Trouble::from(&error).remedy
                    )),
                })
            }
        };
        for (_, answer) in self.waiting.rotations.drain(..) {
            let _ = answer.send(response.clone());
        }
    }

    /// Leaves the network, if the node is in one, and gives it other keys once that is on disk, in both
    /// generations: in the other order, a crash would leave a membership that isn't the node's. A copy of
    /// another machine leaves that one a member: both have the same identity, and the word of one would put
    /// both out.
    pub(super) fn leave_and_forget_keys(&mut self, answer: oneshot::Sender<Response>) {
        let mut untold = self.untold();
        let left = if self.identity.is_from_elsewhere() {
            untold = self.stays_a_member();
            self.engine.handle_abandon(clock::now())
        } else {
            self.engine.handle_leave(clock::now())
        };
        match left {
            Ok(()) | Err(RequestError::NotJoined) => {}
            Err(error) => {
                let _ = answer.send(not_done(&error));
                return;
            }
        }
        self.do_outputs();
        self.held.wait_for(self.writer.outdate());
        self.do_in_order(Effect::ForgetKeys(answer, untold));
    }

    /// What becomes of the membership of a machine that this one is a copy of.
    fn stays_a_member(&self) -> String {
        let node = self.engine.status(clock::now()).node;
        node.map_or_else(String::new, |node| {
            format!(
                "; the machine that they were copied from stays the member {}: if that one is gone for good, \
                 `meshctl node revoke {}` puts it out",
                node.name, node.id
            )
        })
    }

    /// Forgets the keys, on disk first. A node that could not write down that it has left keeps them.
    pub(super) fn forget_keys(&mut self, answer: oneshot::Sender<Response>, untold: &str) {
        let response = match self.other_keys() {
            Ok(()) => {
                self.join_trouble = None;
                done(&format!(
                    "this node is in no network and has forgotten its keys; the next join makes new \
                     ones{untold}"
                ))
            }
            Err(message) => Response::Failed(Failure {
                code: FailureCode::Failed,
                message,
                next: Some("`meshctl leave --forget-keys` again".to_owned()),
            }),
        };
        let _ = answer.send(response);
    }

    fn other_keys(&mut self) -> Result<(), String> {
        if let Some(trouble) = self.disk_trouble() {
            return Err(format!(
                "the keys stay, as the disk can't be written: {trouble}"
            ));
        }
        if self.engine.status(clock::now()).state != NodeState::NotJoined {
            return Err("the keys stay, as a join has begun meanwhile".to_owned());
        }
        let keys = self
            .identity
            .forget()
            .map_err(|error| format!("the keys can't be removed from the disk: {error}"))?;
        let replaced = self.engine.handle_new_keys(keys, clock::now());
        replaced.map_err(|error| error.to_string())?;
        tracing::info!("the node has forgotten its keys");
        Ok(())
    }

    /// Answers those whose patience is over.
    pub(super) fn expire_rotations(&mut self, now: Moment) {
        let reason = self.engine.renewal_waits();
        let late = |(deadline, _): &mut (Moment, _)| *deadline <= now;
        for (_, answer) in self.waiting.rotations.extract_if(.., late) {
            let reason = reason.clone().unwrap_or_else(|| "it has ended".to_owned());
            let _ = answer.send(Response::Failed(Failure {
                code: FailureCode::Timeout,
                message: format!("no planet has receipted the new keys yet ({reason})"),
                next: Some(
                    "meshd goes on by itself, also over a restart; until then the old keys are in force"
                        .to_owned(),
                ),
            }));
        }
    }
}
