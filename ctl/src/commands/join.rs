//! `meshctl join`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use podmesh_proto::certificate::Grant;
use podmesh_proto::id::Name;
use podmesh_proto::limits::{CLOCK_SKEW, MAX_MESSAGE};
use podmesh_proto::local_api::{NodeState, Request, StatusView};
use podmesh_proto::network::Network;
use podmesh_proto::token::JoinToken;
use zeroize::Zeroizing;

use crate::commands::Context;
use crate::commands::wait::{Look, Patience};
use crate::problem::{Exit, Problem};
use crate::show::peers::list;
use crate::show::quantity::parse_patience;
use crate::{clock, files};

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
        let request = Request::Join {
            token: text.trim().to_owned(),
            name: self.name.clone(),
        };
        let message = context.meshd.change(request)?;
        context.screen.remark(&message);
        if self.no_wait {
            return Ok(Exit::Ok);
        }
        let site = grant.site.map(|site| format!(", site {site}"));
        context.screen.remark(&format!(
            "joining network {} ({}){}",
            network.name,
            network.id,
            site.unwrap_or_default()
        ));
        let status = wait_until_online(context, &network, self.timeout)?;
        context.screen.print(&summary(&status))?;
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
        Problem::failed(format!("the join token can't be used: {cause}"))
            .next("copy the file again, or ask the operator: meshctl token create")
    };
    let token: JoinToken = text.parse().map_err(|error| bad(format!("{error}")))?;
    let (network, grant) = token.verify().map_err(|error| bad(error.to_string()))?;
    let now = clock::now();
    if now > grant.expires.plus(CLOCK_SKEW) {
        return Err(Problem::failed(format!(
            "the join token expired at {}; the clock here says {now}",
            grant.expires
        ))
        .next("ask the operator for a new one: meshctl token create"));
    }
    Ok((network, grant))
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

fn wait_until_online(
    context: &Context,
    network: &Network,
    timeout: Duration,
) -> Result<StatusView, Problem> {
    let mut said = String::new();
    let mut asked = false;
    Patience::new(timeout).until(|| {
        let status = context.meshd.status()?;
        let here = status
            .network
            .as_ref()
            .is_some_and(|of| of.id == network.id);
        match status.state {
            NodeState::Online if here => return Ok(Look::Done(status)),
            NodeState::NotJoined if asked => return Err(refused(&status)),
            NodeState::Revoked => return Err(refused(&status)),
            // The first look may come before meshd has begun.
            state => asked = state == NodeState::Joining || asked,
        }
        let progress = progress(&status);
        if progress != said {
            context.screen.remark(&progress);
            said.clone_from(&progress);
        }
        Ok(Look::NotYet(format!("this node is not online: {progress}")))
    })
}

/// What the node waits for, in one line.
fn progress(status: &StatusView) -> String {
    if let Some(health) = status.health.first() {
        return health.message.clone();
    }
    let planets = status.planets.iter().map(|planet| {
        let state = match (&planet.error, planet.connected) {
            (_, true) => "connected",
            (Some(error), false) => error.as_str(),
            (None, false) => "connecting",
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

fn refused(status: &StatusView) -> Problem {
    let health = status.health.first();
    let cause = health.map_or("no reason given", |health| health.message.as_str());
    let problem = Problem::failed(format!("this node was not admitted: {cause}"));
    let next = health.and_then(|health| health.next.as_deref());
    problem.next(next.unwrap_or("ask the operator for a new token: meshctl token create"))
}

fn summary(status: &StatusView) -> String {
    let (Some(node), Some(network)) = (&status.node, &status.network) else {
        return "online\n".to_owned();
    };
    format!(
        "{} is online in network {}: addresses {}, pod CIDRs {}, {} peers\nnext: meshctl peers\n",
        node.name,
        network.name,
        list(&node.addresses),
        list(&node.pod_cidrs),
        status.peers.total
    )
}
