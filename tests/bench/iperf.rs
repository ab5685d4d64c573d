//! Streams of TCP.

use std::fs;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use podmesh_lab::process::{self, Process};
use podmesh_lab::{Namespace, wait};

/// What is to be sent.
#[derive(Clone, Copy)]
pub(crate) struct Stream<'a> {
    pub(crate) from: &'a Namespace,
    pub(crate) to: &'a Namespace,
    pub(crate) target: IpAddr,
    /// After one second of warming up.
    pub(crate) seconds: u32,
    pub(crate) parallel: u8,
    pub(crate) reverse: bool,
}

/// What came of it.
pub(crate) struct Outcome<T> {
    pub(crate) gbps: f64,
    pub(crate) retransmits: Option<f64>,
    /// Of what was done beside it, once it was warm.
    pub(crate) meanwhile: T,
}

/// A second for TCP to find its speed.
const WARM_UP: Duration = Duration::from_secs(1);
/// The default port 5201, as the kernel's tables show it.
const PORT_SHOWN: &str = ":1451 ";
const LISTENS: &str = " 0A ";

/// Runs a stream, and `beside` on another thread once the stream is warm.
pub(crate) fn run<T: Send>(
    stream: &Stream<'_>,
    beside: impl FnOnce() -> T + Send,
) -> Result<Outcome<T>> {
    let server = serve(stream)?;
    let mut client = stream.from.command("iperf3");
    client.args(["--client", &stream.target.to_string(), "--json"]);
    client.args(["--time", &stream.seconds.to_string(), "--omit", "1"]);
    client.args(["--parallel", &stream.parallel.to_string()]);
    client.args(["--connect-timeout", "5000"]);
    if stream.reverse {
        client.arg("--reverse");
    }
    let patience = Duration::from_secs(u64::from(stream.seconds) + 20);
    let (output, meanwhile) = thread::scope(|scope| {
        let beside = scope.spawn(|| {
            thread::sleep(WARM_UP + Duration::from_millis(200));
            beside()
        });
        let output = process::output(&mut client, b"", patience);
        (output, beside.join())
    });
    drop(server);
    let report: Value =
        serde_json::from_slice(&output?.stdout).context("iperf3 printed no JSON")?;
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let end = &report["end"];
    let rate = end["sum_received"]["bits_per_second"].as_f64();
    let Ok(meanwhile) = meanwhile else {
        bail!("what ran beside the stream panicked");
    };
    Ok(Outcome {
        gbps: rate.context("iperf3 reported no rate")? / 1e9,
        retransmits: end["sum_sent"]["retransmits"].as_f64(),
        meanwhile,
    })
}

/// A server for one stream that listens already.
fn serve(stream: &Stream<'_>) -> Result<Process> {
    let mut command = stream.to.command("iperf3");
    command.args([
        "--server",
        "--one-off",
        "--bind",
        &stream.target.to_string(),
    ]);
    let log = std::env::temp_dir().join(format!("{}-iperf3.log", stream.to.name()));
    let server = Process::start("iperf3", command, &log)?;
    // The open file is enough for the server; its name would only be litter.
    let _ = fs::remove_file(&log);
    wait::until("iperf3 to listen", Duration::from_secs(5), || {
        let table = stream
            .to
            .inside(|| fs::read_to_string("/proc/thread-self/net/tcp"))??;
        let open = |line: &str| line.contains(PORT_SHOWN) && line.contains(LISTENS);
        Ok(if table.lines().any(open) {
            wait::Now(())
        } else {
            wait::NotYet("not yet".into())
        })
    })?;
    Ok(server)
}
