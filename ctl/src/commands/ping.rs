//! `meshctl ping`.

use std::time::Duration;

use clap::Args;
use podmesh_proto::local_api::{PingView, Request, Response, schema};
use serde::Serialize;

use crate::commands::Context;
use crate::problem::{Exit, Problem};
use crate::show::quantity::{parse_patience, percent};
use crate::show::{Output, peers, plain};

/// Time that meshd gets on top of the echo's own.
const GRACE: Duration = Duration::from_secs(2);
/// The longest wait for one echo that meshd accepts.
const MAX_TIMEOUT: Duration = Duration::from_secs(10);

/// Arguments of `meshctl ping`.
#[derive(Debug, Args)]
pub(crate) struct Ping {
    /// Name, overlay address, pod address or node id; the node of a pod answers, not the pod
    #[arg(value_name = "PEER")]
    target: String,
    /// How many echoes
    #[arg(short, long, default_value_t = 10, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// How long to wait for each answer, at most 10s
    #[arg(long, default_value = "2s", value_name = "TIME", value_parser = parse_patience)]
    timeout: Duration,
    /// Time between two echoes
    #[arg(long, default_value = "1s", value_name = "TIME", value_parser = parse_patience)]
    interval: Duration,
    /// Stop at the first answer over a direct path; exit code 8 if there is none
    #[arg(long)]
    until_direct: bool,
    #[command(flatten)]
    output: Output,
}

/// What came of all echoes.
#[derive(Serialize)]
struct Summary<'a> {
    target: &'a str,
    sent: u32,
    received: usize,
    loss_percent: f64,
    min_ms: Option<f64>,
    avg_ms: Option<f64>,
    max_ms: Option<f64>,
    items: &'a [PingView],
}

impl Ping {
    pub(super) fn run(self, context: &Context) -> Result<Exit, Problem> {
        if self.timeout > MAX_TIMEOUT {
            return Err(Problem::usage("an echo is waited for at most 10 s")
                .next("choose a shorter --timeout"));
        }
        let (mut sent, mut answers) = (0, Vec::new());
        while sent < self.count {
            if sent > 0 {
                std::thread::sleep(self.interval);
            }
            sent += 1;
            match self.echo(context)? {
                Some(answer) => {
                    self.say(context, &pong(&answer))?;
                    let direct = answer.path.is_direct();
                    answers.push(answer);
                    if self.until_direct && direct {
                        break;
                    }
                }
                None => {
                    let ms = self.timeout.as_millis();
                    self.say(
                        context,
                        &format!("no answer from {} within {ms} ms", self.target),
                    )?;
                }
            }
        }
        let summary = summary(&self.target, sent, &answers);
        if self.output.is_json() {
            context.screen.print_json(schema::PING, &summary)?;
        } else {
            self.say(context, &summary.line())?;
        }
        Ok(self.verdict(&answers))
    }

    /// One echo; `None` if it was not answered.
    fn echo(&self, context: &Context) -> Result<Option<PingView>, Problem> {
        let request = Request::Ping {
            target: self.target.clone(),
            timeout_ms: u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX),
        };
        match context.meshd.ask(request, self.timeout + GRACE) {
            Ok(Response::Ping(answer)) => Ok(Some(answer)),
            Ok(_) => Err(Problem::failed("meshd answered another question")
                .next("check that both have the same version: meshctl version")),
            Err(problem) if problem.exit == Exit::Timeout => Ok(None),
            Err(problem) => Err(problem),
        }
    }

    fn say(&self, context: &Context, line: &str) -> Result<(), Problem> {
        if self.output.is_json() {
            return Ok(());
        }
        context.screen.print(&format!("{}\n", plain(line)))
    }

    fn verdict(&self, answers: &[PingView]) -> Exit {
        let direct = answers.last().is_some_and(|last| last.path.is_direct());
        match answers {
            [] => Exit::Timeout,
            _ if self.until_direct && !direct => Exit::Relayed,
            _ => Exit::Ok,
        }
    }
}

impl Summary<'_> {
    fn line(&self) -> String {
        let loss = percent(self.loss_percent);
        let mut line = format!(
            "{} sent, {} received, {loss} loss",
            self.sent, self.received
        );
        if let (Some(min), Some(avg), Some(max)) = (self.min_ms, self.avg_ms, self.max_ms) {
            line.push_str(&format!(", min/avg/max {min:.1}/{avg:.1}/{max:.1} ms"));
        }
        line
    }
}

fn pong(answer: &PingView) -> String {
    // The node answers, not the pod: nothing is said about whether there is one.
    let address = answer
        .address
        .map(|address| format!(", the node of {address},"));
    let way = peers::endpoint(&answer.path).unwrap_or_else(|| peers::path(&answer.path));
    format!(
        "pong from {}{} via {way} in {:.1} ms",
        answer.name,
        address.unwrap_or_default(),
        answer.rtt_ms
    )
}

fn summary<'a>(target: &'a str, sent: u32, items: &'a [PingView]) -> Summary<'a> {
    let times = || items.iter().map(|answer| answer.rtt_ms);
    let received = items.len();
    let count = u32::try_from(received).unwrap_or(u32::MAX);
    let lost = f64::from(sent.saturating_sub(count));
    let some = |value: f64| (received > 0).then_some(value);
    Summary {
        target,
        sent,
        received,
        loss_percent: lost * 100.0 / f64::from(sent.max(1)),
        min_ms: some(times().fold(f64::INFINITY, f64::min)),
        avg_ms: some(times().sum::<f64>() / f64::from(count.max(1))),
        max_ms: some(times().fold(0.0, f64::max)),
        items,
    }
}
