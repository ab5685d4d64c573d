//! Joining: by request, or by itself with a token from a file or the service manager.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use podmesh_engine::error::JoinError;
use podmesh_kernel::netlink::Netlink;
use podmesh_kernel::process;
use podmesh_proto::id::Name;
use podmesh_proto::local_api::{Failure, FailureCode, NodeState, Response};
use podmesh_proto::network::Ranges;
use podmesh_proto::token::JoinToken;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::durable::Effect;
use super::{Awaited, Node};
use crate::local_socket::failed;
use crate::state::Trouble;
use crate::{clock, overlap, service};

/// Name of the service manager's credential.
const CREDENTIAL: &str = "join-token";
/// Memberships that have ended and of which pods stand, with which a node still joins.
const MOST_FORMER: usize = 8;
/// Bytes. The longest token file.
const MAX_TOKEN_FILE: u64 = 64 * 1024;

/// A join whose ranges have been held against the node's routes.
pub(crate) struct Checked {
    token: JoinToken,
    name: Name,
    answer: Option<oneshot::Sender<Response>>,
    outcome: Result<(), Failure>,
}

impl Node {
    /// Joins with the token that the configuration or the service manager provides, if the node is no
    /// member yet.
    pub(super) fn join_unattended(&mut self) {
        let awaited = self.join_waits.take() == Some(Awaited::Token);
        if self.engine.status(clock::now()).state != NodeState::NotJoined {
            return;
        }
        let configured = self.config.join_token_file.as_deref();
        let Some(file) = token_file(configured, service::credential(CREDENTIAL)) else {
            self.join_waits = configured.map(|_| Awaited::Token);
            if let Some(file) = configured.filter(|_| !awaited) {
                tracing::warn!(file = %file.display(), "no join token is there yet; not joining");
            }
            return;
        };
        let outcome = read_token(&file).and_then(|text| self.begin_join(&text, None, None));
        if let Err(message) = outcome {
            tracing::warn!(file = %file.display(), reason = message, "can't join by itself");
            self.join_trouble = Some(Failure {
                code: FailureCode::Usage,
                message: format!("can't join with {}: {message}", file.display()),
                next: None,
            });
        }
    }

    /// The token file of the configuration, if this node waits for it.
    pub(super) fn awaited_token(&self) -> Option<&Path> {
        let file = self.config.join_token_file.as_deref()?;
        let idle = self.engine.status(clock::now()).state == NodeState::NotJoined;
        (self.join_waits == Some(Awaited::Token) && idle).then_some(file)
    }

    /// Looks at the token and has its ranges checked; [`Self::take_checked`] goes on.
    ///
    /// # Errors
    /// One sentence. `answer` gets it as well.
    pub(super) fn begin_join(
        &mut self,
        text: &str,
        name: Option<Name>,
        answer: Option<oneshot::Sender<Response>>,
    ) -> Result<(), String> {
        let prepared = text
            .parse::<JoinToken>()
            .map_err(|error| format!("the join token can't be read: {error}; copy it as a whole"))
            .and_then(|token| {
                let (network, _) = token.verify().map_err(|error| {
                    format!("the join token is not valid: {error}; ask for a new one")
                })?;
                Ok((token, network, self.node_name(name)?))
            });
        let (token, network, name) = match prepared {
            Ok(prepared) => prepared,
            Err(message) => {
                if let Some(answer) = answer {
                    let _ = answer.send(failed(FailureCode::Usage, message.clone()));
                }
                return Err(message);
            }
        };
        let (device, checked) = (self.config.device.clone(), self.checked.clone());
        self.helpers.spawn(async move {
            let outcome = check_ranges(&network.ranges, &device).await;
            let result = Checked {
                token,
                name,
                answer,
                outcome,
            };
            let _ = checked.send(result).await;
        });
        Ok(())
    }

    /// Hands a checked join to the engine.
    pub(super) fn take_checked(&mut self, checked: Checked) {
        let by_itself = checked.answer.is_none();
        let begun = checked.outcome.and_then(|()| {
            room_for_former(self.report.former)?;
            self.join_waits = by_itself.then_some(Awaited::Disk);
            self.prepare_disk()?;
            self.join_waits = None;
            self.engine
                .handle_join(&checked.token, checked.name, clock::now())
                .map_err(|error| refused(&error))
        });
        match (begun, checked.answer) {
            (Ok(()), Some(answer)) => self.waiting.add_join(answer),
            (Ok(()), None) => {}
            (Err(failure), answer) => {
                // One that tries again by itself says each cause once.
                if answer.is_some() || self.join_trouble.as_ref() != Some(&failure) {
                    tracing::warn!(reason = failure.message, "not joining");
                }
                match answer {
                    Some(answer) => drop(answer.send(Response::Failed(failure))),
                    None => self.join_trouble = Some(failure),
                }
            }
        }
    }

    /// Answers those who wait for the join, and lets go of the token.
    pub(super) fn finish_join(&mut self, outcome: Result<(), JoinError>) {
        let response = match outcome {
            Ok(()) => {
                let status = self.engine.status(clock::now());
                let name =
                    |name: Option<Name>| name.map_or_else(String::new, |name| name.to_string());
                let message = format!(
                    "joined network {} as {}",
                    name(status.network.map(|network| network.name)),
                    name(status.node.map(|node| node.name))
                );
                tracing::info!("{message}");
                self.join_trouble = None;
                self.do_in_order(Effect::TokenUsed);
                Response::Done { message }
            }
            Err(error) => {
                tracing::warn!(reason = %error, next = error.next(), "not joined");
                let failure = refused(&error);
                self.join_trouble = (error != JoinError::Cancelled).then(|| failure.clone());
                Response::Failed(failure)
            }
        };
        self.waiting.finish_joins(&response);
    }

    /// The keys are on disk before anybody hears of them, and a membership that would be gone after a
    /// restart is not asked for.
    fn prepare_disk(&mut self) -> Result<(), Failure> {
        let refusal = match self.disk_trouble() {
            None => self.identity.keep().err().as_ref().map(Trouble::from),
            trouble => trouble,
        };
        refusal.map_or(Ok(()), |trouble| {
            Err(Failure {
                code: FailureCode::Failed,
                message: format!(
                    "not joining, as the disk can't be written and the membership would be lost: {trouble}"
                ),
                next: Some(format!("{}, then join again", trouble.remedy)),
            })
        })
    }

    /// The membership is on disk: nobody needs the token any more.
    pub(super) fn let_token_go(&self) {
        if let Some(file) = &self.config.join_token_file {
            let_go(file);
        }
    }

    fn node_name(&self, asked: Option<Name>) -> Result<Name, String> {
        if let Some(name) = asked.or_else(|| self.config.name.clone()) {
            return Ok(name);
        }
        let host =
            process::host_name().map_err(|error| format!("the machine has no name: {error}"))?;
        host.to_ascii_lowercase().parse().map_err(|_| {
            format!("the machine's name {host:?} can't name a node; give one with --name")
        })
    }
}

/// Each of them costs rules of the kernel, which every packet of the node passes.
fn room_for_former(former: usize) -> Result<(), Failure> {
    if former < MOST_FORMER {
        return Ok(());
    }
    Err(Failure {
        code: FailureCode::Failed,
        message: format!(
            "not joining, as pods of {former} memberships that have ended stand on this node, whose ranges are kept \
             closed"
        ),
        next: Some("delete those pods (`kubectl delete pod`), then join again".to_owned()),
    })
}

async fn check_ranges(ranges: &Ranges, device: &str) -> Result<(), Failure> {
    let failure = |code, message| Failure {
        code,
        message,
        next: None,
    };
    let unreadable = |error: podmesh_kernel::netlink::NetlinkError| {
        failure(
            FailureCode::Failed,
            format!("the node's routes can't be read: {error}"),
        )
    };
    let netlink = Netlink::connect().map_err(unreadable)?;
    let routes = netlink.foreign_routes().await.map_err(unreadable)?;
    overlap::check(ranges, device, &routes)
        .map_err(|overlap| failure(FailureCode::Failed, overlap.to_string()))
}

fn refused(error: &JoinError) -> Failure {
    let code = match error {
        JoinError::Token(_) | JoinError::TokenExpired { .. } | JoinError::TokenName { .. } => {
            FailureCode::Usage
        }
        _ => FailureCode::Failed,
    };
    Failure {
        code,
        message: error.to_string(),
        next: error.next().map(str::to_owned),
    }
}

/// The configured file, or else the service manager's credential.
///
/// A blank credential is none: the shipped unit sets one for nodes without a token file, because
/// systemd 252 starts no service whose credential it can't find.
fn token_file(configured: Option<&Path>, credential: Option<PathBuf>) -> Option<PathBuf> {
    let blank = |file: &Path| read_token(file).is_ok_and(|text| text.trim().is_empty());
    let credential = credential.filter(|file| !blank(file));
    [configured.map(Path::to_owned), credential]
        .into_iter()
        .flatten()
        .find(|file| file.exists())
}

fn read_token(file: &Path) -> Result<Zeroizing<String>, String> {
    let metadata = fs::metadata(file).map_err(|error| error.to_string())?;
    if metadata.mode() & 0o007 != 0 {
        return Err(
            "everybody on this machine can read the token; run `chmod 600` on its file".to_owned(),
        );
    }
    if metadata.len() > MAX_TOKEN_FILE {
        return Err("the file is too long for a token".to_owned());
    }
    fs::read_to_string(file)
        .map(Zeroizing::new)
        .map_err(|error| error.to_string())
}

fn let_go(file: &Path) {
    match fs::remove_file(file) {
        Ok(()) => tracing::info!(file = %file.display(), "removed the used join token"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::info!(file = %file.display(), reason = %error, "the used join token stays; remove it");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_blank_credential_is_no_token() {
        let scratch = Scratch::new();
        let credential = scratch.path("join-token");
        for (text, wanted) in [("\n", None), ("podmesh1-x\n", Some(credential.clone()))] {
            fs::write(&credential, text).unwrap();
            fs::set_permissions(&credential, fs::Permissions::from_mode(0o400)).unwrap();
            assert_eq!(token_file(None, Some(credential.clone())), wanted);
        }
    }

    #[test]
    fn a_node_full_of_former_memberships_joins_no_other_network() {
        room_for_former(MOST_FORMER - 1).unwrap();
        let refused = room_for_former(MOST_FORMER).unwrap_err();
        assert!(refused.message.contains("pods of 8 memberships"));
        assert!(refused.next.unwrap().contains("then join again"));
    }

    #[test]
    fn a_token_that_everybody_can_read_is_not_used() {
        let scratch = Scratch::new();
        let file = scratch.path("token");
        fs::write(&file, "podmesh1-x").unwrap();
        for (mode, good) in [(0o600, true), (0o640, true), (0o644, false), (0o606, false)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read_token(&file).is_ok(), good, "{mode:o}");
        }
    }
}
