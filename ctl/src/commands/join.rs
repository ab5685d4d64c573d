//! `meshctl join`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use clap::Args;
use podmesh_proto::certificate::Grant;
use podmesh_proto::id::{Name, NetworkId};
use podmesh_proto::limits::{CLOCK_SKEW, MAX_MESSAGE};
use podmesh_proto::local_api::{NodeState, Request, StatusView};
use podmesh_proto::network::Network;
use podmesh_proto::token::JoinToken;
use zeroize::Zeroizing;

use crate::commands::Context;
use crate::commands::wait::{JOIN_HEALTH, Look, Patience};
use crate::problem::{Exit, Problem};
use crate::show::peers::list;
use crate::show::quantity::{counted, parse_patience};
use crate::{clock, files};

/// How long meshd's answer may come after its state says that the join is over.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Arguments of `meshctl join`.
#[derive(Debug, Args)]
pub(crate) struct Join {
    /// File with the join token, or '-' for standard input; never the token itself
    #[arg(value_name = "FILE")]
    token: PathBuf,
    /// Name of this node [default: the machine's host name]
    #[arg(long)]
    name: Option<Name>,
    /// Return as soon as meshd has taken the token
    #[arg(long)]
    no_wait: bool,
    /// How long to wait until the node is online
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = parse_patience)]
    timeout: Duration,
}

impl Join {
    pub(super) fn run(self, context: &Context) -> Result<Exit, Problem> {
        let text = self.read()?;
        let (network, grant) = check(&text)?;
        warn_of_readers(context, &self.token);
        refuse_members(&context.meshd.status()?)?;
        let request = Request::Join {
            token: text.trim().to_owned(),
            name: self.name.clone(),
        };
        let site = grant.site.map(|site| format!(", site {site}"));
        context.screen.remark(&format!(
            "joining network {} ({}){}",
            network.name,
            network.id,
            site.unwrap_or_default()
        ));
        let mut joining = Joining::begin(context, network.id, request)?;
        let until_taken = self.no_wait;
        let status = Patience::new(self.timeout)
            .until(|| joining.look(context, until_taken))
            .map_err(|problem| unfinished(problem, joining.is_heard))?;
        let said = if status.state == NodeState::Online {
            summary(&status)
        } else {
            "meshd has the token and goes on\nnext: meshctl wait\n".to_owned()
        };
        context.screen.print(&said)?;
        Ok(Exit::Ok)
    }

    fn read(&self) -> Result<Zeroizing<String>, Problem> {
        if self.token != Path::new("-") {
            if self.token.to_string_lossy().starts_with("podmesh1-") {
                return Err(Problem::usage(
                    "the token itself is on the command line, where every process can read it",
                )
                .next("revoke it if others use this machine; give its file, or '-' for input"));
            }
            return files::read_text(&self.token);
        }
        let mut text = Zeroizing::new(String::with_capacity(MAX_MESSAGE));
        let limit = u64::try_from(MAX_MESSAGE).unwrap_or(u64::MAX);
        let read = std::io::stdin().take(limit).read_to_string(&mut text);
        read.map_err(|error| Problem::failed(format!("can't read standard input: {error}")))?;
        Ok(text)
    }
}

/// What can be said about a token before anybody is asked.
fn check(text: &str) -> Result<(Network, Grant), Problem> {
    let bad = |cause: String| {
        Problem::usage(format!("the join token can't be used: {cause}"))
            .next("copy the file again, or ask the operator: meshctl token create")
    };
    let token: JoinToken = text.parse().map_err(|error| bad(format!("{error}")))?;
    let (network, grant) = token.verify().map_err(|error| bad(error.to_string()))?;
    let now = clock::now();
    if now > grant.expires.plus(CLOCK_SKEW) {
        return Err(Problem::usage(format!(
            "the join token expired at {}, and the clock of this machine says {now}",
            grant.expires
        ))
        .next(
            "put the clock right if it is wrong; else ask the operator for a new token: meshctl token create",
        ));
    }
    if now.plus(CLOCK_SKEW) < grant.issued {
        return Err(Problem::usage(format!(
            "the join token was made at {}, and the clock of this machine says {now}",
            grant.issued
        ))
        .next("put the clock right: run a time service"));
    }
    Ok((network, grant))
}

/// meshd refuses members, too; but not before this command has said that it joins.
fn refuse_members(status: &StatusView) -> Result<(), Problem> {
    let member = matches!(status.state, NodeState::Online | NodeState::PlanetsDown);
    match (&status.network, &status.node) {
        (Some(network), Some(node)) if member => Err(Problem::failed(format!(
            "this node is already a member of network {} as {}",
            network.name, node.name
        ))
        .next("to join anew: meshctl leave")),
        _ => Ok(()),
    }
}

fn warn_of_readers(context: &Context, file: &Path) {
    use std::os::unix::fs::MetadataExt;
    let mode = std::fs::metadata(file).map(|meta| meta.mode() & 0o077);
    if mode.is_ok_and(|mode| mode != 0) {
        context.screen.remark(&format!(
            "{} may be read by others than its owner: chmod 600, or delete it after the join",
            file.display()
        ));
    }
}

/// What to do about a join that takes too long, where a planet is connected or none is.
fn unfinished(problem: Problem, is_heard: bool) -> Problem {
    if problem.exit != Exit::Timeout {
        return problem;
    }
    problem.next(if is_heard {
        "meshd goes on trying (meshctl status); `planet status` on the planet says more, or give up: \
         meshctl leave"
    } else {
        "meshd goes on trying (meshctl status); look whether a firewall stops UDP to the planet, \
         or ask for a new token, as the planets may have changed since this one was made; to give up: meshctl \
         leave"
    })
}

/// A join under way: meshd answers when a planet has admitted the node, or after its own patience;
/// meanwhile its status tells how it goes.
struct Joining {
    network: NetworkId,
    answer: Receiver<Result<String, Problem>>,
    /// meshd has begun: from now on its state is about this join.
    begun: bool,
    /// meshd says that the node is a member.
    admitted: bool,
    /// A planet is connected.
    is_heard: bool,
    said: String,
}

impl Joining {
    /// When this returns, meshd will get the token, even if this process ends at once: a state that
    /// shows a join may be that of an earlier one.
    fn begin(context: &Context, network: NetworkId, request: Request) -> Result<Self, Problem> {
        let (sender, answer) = mpsc::channel();
        let asked = context.meshd.begin_change(request)?;
        std::thread::spawn(move || sender.send(asked.done()));
        Ok(Self {
            network,
            answer,
            begun: false,
            admitted: false,
            is_heard: false,
            said: String::new(),
        })
    }

    fn look(&mut self, context: &Context, until_taken: bool) -> Result<Look<StatusView>, Problem> {
        match self.answer.try_recv() {
            // meshd goes on trying after its patience.
            Ok(Ok(_)) => self.admitted = true,
            Ok(Err(problem)) if problem.exit == Exit::Timeout => {
                self.begun = true;
                self.progress(context, &problem.cause);
            }
            Ok(Err(problem)) => return Ok(Look::Never(problem)),
            Err(_) => {}
        }
        let status = context.meshd.status()?;
        let of = status.network.as_ref().map(|of| of.id);
        match status.state {
            NodeState::Joining if until_taken => return Ok(Look::Done(status)),
            NodeState::Joining => self.begun = true,
            NodeState::Online if self.may_be_online() && of == Some(self.network) => {
                return Ok(Look::Done(status));
            }
            NodeState::NotJoined if self.begun && !self.admitted => {
                return Ok(Look::Never(self.refusal(&status)));
            }
            _ => {}
        }
        self.is_heard = status.planets.iter().any(|planet| planet.connected);
        let progress = progress(&status);
        self.progress(context, &progress);
        Ok(Look::NotYet(format!("this node is not online: {progress}")))
    }

    /// Before meshd has begun, the state may be that of an earlier join.
    fn may_be_online(&self) -> bool {
        self.begun || self.admitted
    }

    /// Says how it goes, if that has changed.
    fn progress(&mut self, context: &Context, progress: &str) {
        if progress != self.said {
            context.screen.remark(progress);
            progress.clone_into(&mut self.said);
        }
    }

    /// Why meshd gave up: its answer, or what its status says.
    fn refusal(&self, status: &StatusView) -> Problem {
        if let Ok(Err(problem)) = self.answer.recv_timeout(LAST_WORD) {
            return problem;
        }
        let mut health = status.health.iter().rev();
        let last = health.find(|health| health.code.starts_with(JOIN_HEALTH));
        let cause = last.map_or("no reason given", |health| health.message.as_str());
        let problem = Problem::failed(format!("this node was not admitted: {cause}"));
        let next = last.and_then(|health| health.next.as_deref());
        problem.next(next.unwrap_or("ask the operator for a new token: meshctl token create"))
    }
}

/// What the node waits for, in one line.
fn progress(status: &StatusView) -> String {
    let planets = status.planets.iter().map(|planet| {
        let state = match (&planet.error, planet.connected) {
            (Some(error), true) => format!("connected, and says: {error}"),
            (None, true) => "connected".to_owned(),
            (Some(error), false) => error.clone(),
            (None, false) => "connecting".to_owned(),
        };
        format!("planet {} at {}: {state}", planet.name, planet.address)
    });
    let planets: Vec<String> = planets.collect();
    if planets.is_empty() {
        "asking for a planet".to_owned()
    } else {
        planets.join("; ")
    }
}

fn summary(status: &StatusView) -> String {
    let (Some(node), Some(network)) = (&status.node, &status.network) else {
        return "online\n".to_owned();
    };
    format!(
        "{} is online in network {}: addresses {}, pod CIDRs {}, {}\nnext: meshctl peers\n",
        node.name,
        network.name,
        list(&node.addresses),
        list(&node.pod_cidrs),
        counted(status.peers.total, "peer")
    )
}
