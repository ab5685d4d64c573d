//! What is measured of a system that runs.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use podmesh_lab::Namespace;
use podmesh_lab::process::{self, Process};

use crate::flood::flood;
use crate::ground::Ground;
use crate::iperf::{self, Stream};
use crate::systems::Overlay;

/// All figures of one system in one round; what was not measured is absent.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Sample {
    /// Gbit/s of one TCP stream.
    pub(crate) tcp1_gbps: Option<f64>,
    /// The same, the far side sending.
    pub(crate) tcp1_reverse_gbps: Option<f64>,
    /// Of four streams together.
    pub(crate) tcp4_gbps: Option<f64>,
    /// From a pod to a pod.
    pub(crate) pods_gbps: Option<f64>,
    /// Seconds of both programs' CPU time per 10^9 bytes of one TCP stream.
    pub(crate) cpu_s_per_gb: Option<f64>,
    /// Segments that TCP sent again in one stream.
    pub(crate) retransmits: Option<f64>,
    /// Mean of pings, with nothing else going on.
    pub(crate) rtt_idle_ms: Option<f64>,
    /// Mean of pings beside one TCP stream.
    pub(crate) rtt_load_ms: Option<f64>,
    /// Mean of pings to another peer beside one TCP stream.
    pub(crate) rtt_beside_ms: Option<f64>,
    /// Thousands of UDP datagrams of 1,300 bytes per second that pass without loss.
    pub(crate) udp1300_free_kpps: Option<f64>,
    /// How many arrive when four times as many are sent.
    pub(crate) udp1300_flood_kpps: Option<f64>,
    /// The same with 64 bytes.
    pub(crate) udp64_free_kpps: Option<f64>,
    /// The same with 64 bytes.
    pub(crate) udp64_flood_kpps: Option<f64>,
    /// Percentage of pings to another peer that were answered while four times as many were sent, the
    /// lower one of both sizes.
    pub(crate) flood_answered_pct: Option<f64>,
    /// Their mean, the higher one of both sizes.
    pub(crate) flood_rtt_ms: Option<f64>,
    /// Memory of one program after all of it.
    pub(crate) rss_mib: Option<f64>,
}

impl Sample {
    /// All figures with their names.
    pub(crate) fn figures(&self) -> [(&'static str, Option<f64>); 16] {
        [
            ("tcp1_gbps", self.tcp1_gbps),
            ("tcp1_reverse_gbps", self.tcp1_reverse_gbps),
            ("tcp4_gbps", self.tcp4_gbps),
            ("pods_gbps", self.pods_gbps),
            ("cpu_s_per_gb", self.cpu_s_per_gb),
            ("retransmits", self.retransmits),
            ("rtt_idle_ms", self.rtt_idle_ms),
            ("rtt_load_ms", self.rtt_load_ms),
            ("rtt_beside_ms", self.rtt_beside_ms),
            ("udp1300_free_kpps", self.udp1300_free_kpps),
            ("udp1300_flood_kpps", self.udp1300_flood_kpps),
            ("udp64_free_kpps", self.udp64_free_kpps),
            ("udp64_flood_kpps", self.udp64_flood_kpps),
            ("flood_answered_pct", self.flood_answered_pct),
            ("flood_rtt_ms", self.flood_rtt_ms),
            ("rss_mib", self.rss_mib),
        ]
    }

    /// More than passes, of long and of short datagrams.
    fn add_floods(&mut self, ground: &Ground, overlay: &Overlay) -> Result<()> {
        let [near, far] = [&*ground.sides[0], &*ground.sides[1]];
        let target = overlay.ends[1];
        let meanwhile = || {
            let others = overlay.third;
            let pings = others.map(|third| ping(near, third, 80, Duration::from_millis(20)));
            pings.transpose()
        };
        let large = flood((near, far), target, 1_300, meanwhile)?;
        self.udp1300_free_kpps = Some(large.free);
        self.udp1300_flood_kpps = Some(large.flooded);
        let small = flood((near, far), target, 64, meanwhile)?;
        self.udp64_free_kpps = Some(small.free);
        self.udp64_flood_kpps = Some(small.flooded);
        if let (Some(large), Some(small)) = (large.meanwhile?, small.meanwhile?) {
            self.flood_answered_pct = Some(large.answered_pct.min(small.answered_pct));
            let means = large.mean_ms.zip(small.mean_ms);
            self.flood_rtt_ms = means.map(|(large, small)| large.max(small));
        }
        Ok(())
    }

    /// For a line while it goes on.
    pub(crate) fn in_short(&self) -> String {
        let mut line = String::new();
        for (name, value) in self.figures() {
            if let Some(value) = value {
                // Writing to a String can't fail.
                let _ = write!(line, "{name} {value:.2}  ");
            }
        }
        line.trim_end().to_owned()
    }
}

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// What differs on a wire.
    OneStream,
    /// All but floods.
    Streams,
    /// Everything.
    WithFloods,
}

/// Measures a system that runs.
pub(crate) fn measure(
    ground: &Ground,
    overlay: &Overlay,
    seconds: u32,
    extent: Extent,
) -> Result<Sample> {
    let [near, far] = [&*ground.sides[0], &*ground.sides[1]];
    let target = overlay.ends[1];
    let hosts = |seconds| Stream {
        from: near,
        to: far,
        target,
        seconds,
        parallel: 1,
        reverse: false,
    };
    let mut sample = Sample::default();
    if extent != Extent::OneStream {
        sample.rtt_idle_ms = Some(ping(near, target, 150, Duration::from_millis(10))?.mean()?);
    }
    let gauge = CpuGauge::new(&overlay.daemons, seconds);
    let one = iperf::run(&hosts(seconds), || gauge.watch())?;
    sample.tcp1_gbps = Some(one.gbps);
    sample.retransmits = one.retransmits;
    sample.cpu_s_per_gb = one.meanwhile.per_gb(one.gbps);
    if extent != Extent::OneStream {
        let reverse = Stream {
            reverse: true,
            ..hosts(seconds)
        };
        sample.tcp1_reverse_gbps = Some(iperf::run(&reverse, || ())?.gbps);
        let four = Stream {
            parallel: 4,
            ..hosts(seconds)
        };
        sample.tcp4_gbps = Some(iperf::run(&four, || ())?.gbps);
        let pings = seconds * 1_000 / 20 - 20;
        let beside = |whom| {
            let stream = iperf::run(&hosts(seconds), || {
                ping(near, whom, pings, Duration::from_millis(20))
            });
            stream.and_then(|stream| stream.meanwhile?.mean())
        };
        sample.rtt_load_ms = Some(beside(target)?);
        sample.rtt_beside_ms = overlay.third.map(beside).transpose()?;
    }
    if let [one, other] = overlay.pods.as_slice() {
        let pods = Stream {
            from: one.namespace(),
            to: other.namespace(),
            target: other.address(false)?,
            ..hosts(seconds)
        };
        sample.pods_gbps = Some(iperf::run(&pods, || ())?.gbps);
    }
    if extent == Extent::WithFloods {
        sample.add_floods(ground, overlay)?;
    }
    sample.rss_mib = mean(overlay.daemons.iter().map(rss_mib))?;
    Ok(sample)
}

/// CPU time of some programs in the middle of a stream.
struct CpuGauge<'a> {
    programs: &'a [Process],
    seconds: u32,
}

/// What they used in which time.
struct CpuTime {
    cpu: Result<Option<f64>>,
    time: Duration,
}

impl<'a> CpuGauge<'a> {
    fn new(programs: &'a [Process], seconds: u32) -> Self {
        Self { programs, seconds }
    }

    /// To be called when the stream is warm; returns shortly before its end.
    fn watch(&self) -> CpuTime {
        let begin = Instant::now();
        let before = self.cpu();
        let time = Duration::from_secs(self.seconds.into()) - Duration::from_millis(500);
        thread::sleep(time);
        let cpu = before.and_then(|before| {
            let after = self.cpu()?;
            Ok(before.zip(after).map(|(before, after)| after - before))
        });
        CpuTime {
            cpu,
            time: begin.elapsed(),
        }
    }

    /// Seconds that all of them have used; none if there is no program.
    fn cpu(&self) -> Result<Option<f64>> {
        if self.programs.is_empty() {
            return Ok(None);
        }
        let used = self.programs.iter().map(cpu_seconds).sum::<Result<f64>>();
        used.map(Some)
    }
}

impl CpuTime {
    fn per_gb(self, gbps: f64) -> Option<f64> {
        let gb = gbps * self.time.as_secs_f64() / 8.0;
        self.cpu.ok().flatten().map(|cpu| cpu / gb)
    }
}

/// User and system time of a program.
fn cpu_seconds(program: &Process) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", program.pid()))?;
    let fields = stat.rsplit_once(") ").context("no process table")?.1;
    let mut times = fields.split_whitespace().skip(11);
    let mut next = || -> Result<f64> { Ok(times.next().context("too few fields")?.parse()?) };
    // In hundredths of a second on every Linux there is.
    Ok((next()? + next()?) / 100.0)
}

fn rss_mib(program: &Process) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", program.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.context("no VmRSS")?.parse::<f64>()? / 1_024.0)
}

fn mean(values: impl Iterator<Item = Result<f64>>) -> Result<Option<f64>> {
    let values = values.collect::<Result<Vec<f64>>>()?;
    let count = u32::try_from(values.len())?;
    Ok((count > 0).then(|| values.iter().sum::<f64>() / f64::from(count)))
}

/// What became of some pings.
struct Pings {
    answered_pct: f64,
    mean_ms: Option<f64>,
}

impl Pings {
    /// Mean round trip in milliseconds.
    fn mean(&self) -> Result<f64> {
        self.mean_ms.context("no answer to pings")
    }
}

fn ping(from: &Namespace, target: IpAddr, count: u32, interval: Duration) -> Result<Pings> {
    let mut ping = from.command("ping");
    let interval = interval.as_secs_f32().to_string();
    ping.args(["-q", "-c", &count.to_string(), "-i", &interval, "-W", "1"]);
    ping.arg(target.to_string());
    let output = process::output(&mut ping, b"", process::SHORT)?;
    let text = String::from_utf8_lossy(&output.stdout);
    // 90 packets transmitted, 89 received, ...
    let answered = text.split_once(" received").map(|(before, _)| before);
    let answered = answered.and_then(|before| before.rsplit(' ').next()?.parse::<f64>().ok());
    let answered = answered.with_context(|| format!("ping says nothing: {text}"))?;
    // rtt min/avg/max/mdev = 0.030/0.041/0.092/0.010 ms
    let times = text.rsplit_once(" = ").map(|(_, times)| times);
    let mean = times.and_then(|times| times.split('/').nth(1));
    Ok(Pings {
        answered_pct: 100.0 * answered / f64::from(count),
        mean_ms: mean.map(str::parse).transpose()?,
    })
}
