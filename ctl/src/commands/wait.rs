//! `meshctl wait`, and the patience of every command that waits.

use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::Args;
use podmesh_proto::local_api::{NodeState, StatusView};

use crate::client::Client;
use crate::commands::Context;
use crate::problem::{Exit, Problem};
use crate::show::quantity::parse_patience;
use crate::show::status::word;

/// Start of the health codes that are about a join.
pub(super) const JOIN_HEALTH: &str = "MESH-JOIN";
/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// Arguments of `meshctl wait`.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// What to wait for: online (a member with its interface up), planet (one is connected), peers=N
    /// (so many are reached), cni (pods can be attached)
    #[arg(long = "for", default_value = "online", value_name = "STATE")]
    goal: Goal,
    /// How long
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = parse_patience)]
    timeout: Duration,
}

/// What can be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    /// Member with its interface up; planets may be down.
    Online,
    /// A planet is connected.
    Planet,
    /// So many peers are reached, directly or by a relay.
    Peers(usize),
    /// Pods can be attached.
    Cni,
}

impl FromStr for Goal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let peers = text
            .strip_prefix("peers=")
            .and_then(|count| count.parse().ok());
        match (text, peers) {
            ("online", _) => Ok(Self::Online),
            ("planet", _) => Ok(Self::Planet),
            ("cni", _) => Ok(Self::Cni),
            (_, Some(count)) => Ok(Self::Peers(count)),
            _ => Err("write online, planet, peers=N or cni".to_owned()),
        }
    }
}

impl Wait {
    pub(super) fn run(self, context: &Context) -> Result<Exit, Problem> {
        Patience::new(self.timeout).until(|| self.goal.look(&context.meshd))?;
        Ok(Exit::Ok)
    }
}

impl Goal {
    /// Whether it is reached.
    ///
    /// # Errors
    /// meshd can't be asked.
    pub(crate) fn look(self, meshd: &Client) -> Result<Look<()>, Problem> {
        if self == Self::Cni {
            let ready = meshd.ready()?;
            let reason = ready.reason.unwrap_or_else(|| "no reason given".to_owned());
            return Ok(Look::at(
                ready.ready,
                format!("pods can't be attached: {reason}"),
            ));
        }
        let status = meshd.status()?;
        let state = word(status.state);
        if let Some(refused) = refused_join(&status) {
            return Ok(Look::Never(refused));
        }
        Ok(match self {
            Self::Planet => Look::at(
                status.planets.iter().any(|planet| planet.connected),
                format!("no planet is connected: {}", planets(&status, state)),
            ),
            Self::Peers(count) => {
                let reached = status.peers.direct.saturating_add(status.peers.relayed);
                Look::at(
                    reached >= count,
                    format!("{reached} of {count} peers are reached"),
                )
            }
            Self::Online | Self::Cni => {
                let member = matches!(status.state, NodeState::Online | NodeState::PlanetsDown);
                let up = status.interface.index.is_some();
                let missing = if member {
                    "its interface is missing"
                } else {
                    state
                };
                Look::at(member && up, format!("this node is not online: {missing}"))
            }
        })
    }
}

/// A node whose join was refused waits for nothing.
fn refused_join(status: &StatusView) -> Option<Problem> {
    let idle = status.state == NodeState::NotJoined;
    let mut health = status.health.iter().filter(|_| idle);
    let last = health.rfind(|health| health.code.starts_with(JOIN_HEALTH))?;
    let problem = Problem::failed(format!("this node is not admitted: {}", last.message));
    let next = last.next.as_deref();
    Some(problem.next(next.unwrap_or("meshctl join with another token")))
}

fn planets(status: &StatusView, state: &str) -> String {
    let errors = status.planets.iter().filter_map(|planet| {
        let error = planet.error.as_ref()?;
        Some(format!("{}: {error}", planet.name))
    });
    let errors: Vec<String> = errors.collect();
    if errors.is_empty() {
        format!("this node is {state}")
    } else {
        errors.join("; ")
    }
}

/// What a look at the daemon showed.
pub(crate) enum Look<T> {
    /// It is so.
    Done(T),
    /// It is not yet, for this reason.
    NotYet(String),
    /// It will never be.
    Never(Problem),
}

impl Look<()> {
    fn at(reached: bool, reason: String) -> Self {
        if reached {
            Self::Done(())
        } else {
            Self::NotYet(reason)
        }
    }
}

/// How long to go on looking.
pub(crate) struct Patience {
    limit: Duration,
    end: Option<Instant>,
}

impl Patience {
    /// Starts now.
    pub(crate) fn new(limit: Duration) -> Self {
        let end = Instant::now().checked_add(limit);
        Self { limit, end }
    }

    /// Looks until it is done. A daemon that can't be reached or is silent may only be starting, so
    /// that is looked at again too.
    ///
    /// # Errors
    /// Any other problem of a look, or the time is over: then the last look's problem, or 7.
    pub(crate) fn until<T>(
        &self,
        mut look: impl FnMut() -> Result<Look<T>, Problem>,
    ) -> Result<T, Problem> {
        loop {
            let problem = match look() {
                Ok(Look::Done(done)) => return Ok(done),
                Ok(Look::NotYet(reason)) => {
                    let seconds = self.limit.as_secs_f64();
                    Problem::new(Exit::Timeout, format!("{reason} (waited {seconds} s)"))
                        .next("meshctl status shows more")
                }
                Ok(Look::Never(problem)) => return Err(problem),
                Err(problem) if matches!(problem.exit, Exit::Unreachable | Exit::Timeout) => {
                    problem
                }
                Err(problem) => return Err(problem),
            };
            if self.end.is_some_and(|end| Instant::now() + PAUSE >= end) {
                return Err(problem);
            }
            std::thread::sleep(PAUSE);
        }
    }
}
