//! `podmesh`, the CNI plugin: attaches pods to the mesh and takes them off again.
//!
//! It speaks the Container Network Interface, version 1.1.0 and its predecessors back to 0.3.1:
//! the verb and the attachment come in `CNI_*` variables, the configuration on standard input, the
//! one answer goes to standard output. It needs meshd for none of ADD, DEL, CHECK and GC: it reads
//! the file that meshd wrote about this node ([`node`]), keeps its own crash-safe [`ledger`], and
//! does the work in the kernel itself, so that pods come and go while meshd restarts.
//!
//! No pod exists without the two layers that keep its packets from leaving unencrypted:
//! [`add`] puts both in place before it touches the pod ([`guard`]).

mod add;
mod addresses;
mod attachment;
mod check;
mod del;
#[cfg(test)]
mod fuzz;
mod gc;
mod guard;
mod ledger;
mod meshd;
mod node;
mod reply;
mod request;
mod routing;
mod status;

use std::{
    env,
    io::{self, Read, Write},
    process::ExitCode,
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::{
    reply::{Code, Failure},
    request::{Request, Verb},
};

/// However stuck a verb is, it ends after this time and says so.
const DEADLINE: Duration = Duration::from_secs(20);
const MAX_INPUT_BYTES: u64 = 1024 * 1024;

fn main() -> ExitCode {
    let verb = env::var("CNI_COMMAND").unwrap_or_default();
    watch_the_clock(verb);
    let mut input = Vec::new();
    let read = io::stdin()
        .take(MAX_INPUT_BYTES + 1)
        .read_to_end(&mut input);
    let answer = match read {
        Err(cause) => Err(Failure::new(
            Code::Io,
            format!("the network configuration cannot be read from standard input: {cause}"),
        )),
        Ok(_) if input.len() as u64 > MAX_INPUT_BYTES => Err(Failure::new(
            Code::Decoding,
            format!("the network configuration is larger than {MAX_INPUT_BYTES} bytes"),
        )),
        Ok(_) => answer(&input),
    };
    let version = request::version_of(&input);
    match answer {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(answer)) => print(&answer),
        Err(failure) => {
            print(&failure.to_json(&version));
            ExitCode::FAILURE
        }
    }
}

fn answer(input: &[u8]) -> Result<Option<Value>, Failure> {
    let request = Request::parse(|name| env::var(name).ok(), input)?;
    if request.verb == Verb::Version {
        return Ok(Some(reply::versions(&request.config.cni_version)));
    }
    let user = podmesh_kernel::process::effective_uid();
    if user != 0 {
        return Err(Failure::new(
            Code::NotRoot,
            format!("the plugin was started as user {user}: start the container runtime as root"),
        ));
    }
    match request.verb {
        Verb::Add => add::run(&request).map(Some),
        Verb::Del => del::run(&request).map(|()| None),
        Verb::Check => check::run(&request).map(|()| None),
        Verb::Gc => gc::run(&request).map(|()| None),
        Verb::Status => status::run(&request).map(|()| None),
        Verb::Version => Ok(None),
    }
}

/// Ends the process when the time is up, whatever it waits for. A pod that was half made by then
/// stands in the ledger, so that the runtime's DEL finds all of it.
fn watch_the_clock(verb: String) {
    thread::spawn(move || {
        thread::sleep(DEADLINE);
        let failure = Failure::new(
            Code::Deadline,
            format!("{verb} was not done after {} seconds", DEADLINE.as_secs()),
        );
        print(&failure.to_json(request::NEWEST_VERSION));
        std::process::exit(1);
    });
}

fn print(answer: &Value) -> ExitCode {
    let mut output = io::stdout().lock();
    match writeln!(output, "{answer}").and_then(|()| output.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody listens any more, so there is nobody to tell.
        Err(_) => ExitCode::FAILURE,
    }
}

/// Tells the runtime's log about something that was put right or left alone.
#[expect(
    clippy::print_stderr,
    reason = "standard error is where a CNI plugin's remarks belong"
)]
fn warn(sentence: &str) {
    eprintln!("podmesh: {sentence}");
}
