//! More UDP than passes: what still arrives?
//!
//! The sender keeps to a rate by the clock; a counter in the kernel of the far side counts what
//! comes out of the tunnel and drops it, so that no receiver competes for the machine.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use podmesh_lab::Namespace;

const PORT: u16 = 9_999;
/// Bytes of IPv4 and UDP.
const HEADERS: f64 = 28.0;
const RULES: &str = "table inet flood {
    chain input {
        type filter hook input priority -500
        udp dport 9999 counter drop
    }
}
";
/// How long each rate is tried.
const TRY: Duration = Duration::from_millis(500);
/// How long it is too much.
const TOO_MUCH: Duration = Duration::from_secs(2);
/// Thousands of packets per second that the search begins with, and its step.
const FIRST_KPPS: f64 = 16.0;
const STEP: f64 = 1.25;
/// A rate passes if at most this share is lost.
const PASSES: f64 = 0.002;
/// Sleep is too coarse for single packets.
const TICK: Duration = Duration::from_micros(500);

/// What one size of packets gave, in thousands per second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flood<T> {
    /// The best rate without loss.
    pub(crate) free: f64,
    /// What arrived of four times that rate.
    pub(crate) flooded: f64,
    /// What was seen beside that.
    pub(crate) meanwhile: T,
}

/// Floods the far side with datagrams of `payload` bytes; `meanwhile` is called when it is too much, and
/// has two seconds.
pub(crate) fn flood<T: Send>(
    (near, far): (&Namespace, &Namespace),
    to: IpAddr,
    payload: usize,
    meanwhile: impl FnOnce() -> T + Send,
) -> Result<Flood<T>> {
    far.nft(RULES)?;
    let target = SocketAddr::new(to, PORT);
    let attempt = |kpps: f64, time: Duration| -> Result<(f64, f64)> {
        let before = counted(far, payload)?;
        let (sent, took) = near.inside(|| send(target, payload, kpps, time))??;
        // What is still in buffers counts.
        thread::sleep(Duration::from_millis(150));
        let arrived = counted(far, payload)? - before;
        let per_second = |count: f64| count / took.as_secs_f64() / 1e3;
        Ok((per_second(sent), per_second(arrived)))
    };
    let mut free = 0.0;
    let mut rate = FIRST_KPPS;
    loop {
        let (sent, arrived) = attempt(rate, TRY)?;
        // A sender that can't make the rate has shown all it can.
        let is_slow = sent < rate * 0.9;
        if arrived < sent * (1.0 - PASSES) {
            break;
        }
        free = f64::max(free, arrived);
        if is_slow {
            break;
        }
        rate *= STEP;
    }
    let (flooded, meanwhile) = thread::scope(|scope| {
        let beside = scope.spawn(meanwhile);
        let flooded = attempt(4.0 * free.max(FIRST_KPPS / 4.0), TOO_MUCH);
        let beside = beside
            .join()
            .map_err(|_| anyhow!("whoever looked on broke"));
        anyhow::Ok((flooded?.1, beside?))
    })?;
    far.nft("delete table inet flood")?;
    Ok(Flood {
        free,
        flooded,
        meanwhile,
    })
}

/// Sends at a rate for a time; how many went, and how long it took.
fn send(target: SocketAddr, payload: usize, kpps: f64, time: Duration) -> Result<(f64, Duration)> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(target)?;
    let bytes = vec![0x55; payload];
    let begin = Instant::now();
    let mut sent = 0.0;
    loop {
        let elapsed = begin.elapsed();
        if elapsed >= time {
            return Ok((sent, elapsed));
        }
        let due = elapsed.as_secs_f64() * kpps * 1e3;
        if due - sent < 1.0 {
            thread::sleep(TICK);
            continue;
        }
        // In small groups, so that the clock is read often enough to end in time.
        for _ in 0..64 {
            if sent >= due {
                break;
            }
            match socket.send(&bytes) {
                Ok(_) => sent += 1.0,
                // The device's queue is full.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => return Err(error).context("cannot send"),
            }
        }
    }
}

/// Datagrams that have come out of the tunnel so far. Several in one piece count as one packet there,
/// with one header, so that the bytes tell.
fn counted(far: &Namespace, payload: usize) -> Result<f64> {
    let listed = far.run(&["nft", "-j", "list", "table", "inet", "flood"])?;
    let listed: Value = serde_json::from_str(&listed)?;
    let rules = listed["nftables"].as_array().context("no nftables")?;
    let mut expressions = rules
        .iter()
        .filter_map(|one| one["rule"]["expr"].as_array());
    let counter = expressions.find_map(|all| all.iter().find(|one| one.get("counter").is_some()));
    let counter = &counter.context("no counter")?["counter"];
    let [pieces, bytes] = ["packets", "bytes"].map(|name| counter[name].as_f64());
    let (pieces, bytes) = pieces.zip(bytes).context("no counter")?;
    let payload = f64::from(u32::try_from(payload)?);
    Ok((bytes - pieces * HEADERS) / payload)
}
