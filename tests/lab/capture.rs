//! Listens on every underlay link of a lab and looks for what must never be there.
//!
//! One packet socket in the core and one in every router see each frame where it first enters a
//! link: in the core what sites and public hosts send, in a router what its LAN sends. A packet
//! from or to an address of the mesh on such a link has left a node unencrypted. The kernel
//! passes on only what could be such a packet (`filter`); how much else went by is known from its
//! statistics (`tally`), and that a leak would be seen is proved with one (`canary`).

mod canary;
mod filter;
mod frame;
mod tally;

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ipnet::IpNet;

use crate::namespace::Namespace;
use crate::site::{self, Site};
use crate::sys::{self, PacketSocket, Poller};
use crate::wire::Wire;
use filter::HEADERS;
use frame::Addresses;
use tally::Tally;

/// The ranges of a network that was created without other wishes: overlay, pods, and every
/// unique local IPv6 address, of which the underlay of a lab has none.
pub const MESH_RANGES: [&str; 3] = ["10.77.0.0/16", "10.42.0.0/16", "fd00::/8"];

/// A running capture; it ends when dropped.
#[derive(Debug)]
pub struct Capture {
    places: Vec<Place>,
    ranges: Vec<IpNet>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What was seen so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Frames that went by; what a link brought in the moment before it was pulled may be
    /// missing in the number.
    pub frames: u64,
    /// Frames that could be of the mesh and that nobody could look at in time.
    pub missed: u64,
    /// Packets from or to an address of the mesh.
    pub leaks: u64,
    /// The first of them in words.
    pub first_leak: Option<String>,
    /// Leaks by place.
    pub by_place: BTreeMap<String, u64>,
}

#[derive(Debug)]
enum Place {
    Core(Arc<Wire>),
    Lan(Arc<Site>),
}

#[derive(Debug)]
struct Shared {
    findings: Mutex<Findings>,
    stop: AtomicBool,
}

#[derive(Debug, Default)]
struct Findings {
    verdict: Verdict,
    /// Places and interfaces where a canary was seen.
    canaries: Vec<(String, u32)>,
    /// The place and interface where one is flying.
    canary: Option<(String, u32)>,
}

struct Listener {
    place: String,
    socket: PacketSocket,
    tally: Tally,
}

impl Capture {
    /// Listens in the core and in the LANs of these sites for addresses of the ranges.
    pub(crate) fn start<'site>(
        wire: &Arc<Wire>,
        sites: impl Iterator<Item = &'site Arc<Site>>,
        ranges: &[IpNet],
    ) -> Result<Self> {
        let mut places = vec![Place::Core(Arc::clone(wire))];
        let behind_routers = sites.filter(|site| site.router().is_some());
        places.extend(behind_routers.map(|site| Place::Lan(Arc::clone(site))));
        let listeners: Vec<Listener> = places
            .iter()
            .map(|place| place.listen(ranges))
            .collect::<Result<_>>()?;
        let shared = Arc::new(Shared {
            findings: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let thread = {
            let (shared, ranges) = (Arc::clone(&shared), ranges.to_vec());
            thread::Builder::new()
                .name("capture".into())
                .spawn(move || listen(listeners, &ranges, &shared))?
        };
        Ok(Self {
            places,
            ranges: ranges.to_vec(),
            shared,
            thread: Some(thread),
        })
    }

    /// What was seen so far.
    pub fn verdict(&self) -> Verdict {
        // Two rounds of the thread, so that what was sent before this call is counted.
        thread::sleep(2 * ROUND);
        self.shared.findings().verdict.clone()
    }

    /// Fails with the first example if anything leaked, if frames were missed, or if a leak would
    /// not have been seen.
    ///
    /// # Errors
    ///
    /// As said.
    pub fn must_be_clean(&self) -> Result<Verdict> {
        self.must_hear()?;
        let verdict = self.verdict();
        anyhow::ensure!(verdict.leaks == 0 && verdict.missed == 0, "{verdict}");
        Ok(verdict)
    }

    /// Fails if a packet of the mesh that is sent on purpose isn't seen at each place.
    fn must_hear(&self) -> Result<()> {
        let range = self.ranges.first().context("no range is watched")?;
        for place in &self.places {
            let name = place.name();
            canary::fly(place.namespace()?, range, |index| {
                let bird = (name.clone(), index);
                let mut findings = self.shared.findings();
                findings.canary = Some(bird.clone());
                findings.canaries.contains(&bird)
            })
            .with_context(|| format!("the capture is deaf in {name}"))?;
        }
        Ok(())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by itself.
            let _ = thread.join();
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} frames, {} in plaintext", self.frames, self.leaks)?;
        if let Some(first) = &self.first_leak {
            write!(f, ", the first {first}")?;
        }
        if self.missed > 0 {
            write!(f, ", {} missed", self.missed)?;
        }
        Ok(())
    }
}

impl Place {
    fn name(&self) -> String {
        match self {
            Self::Core(_) => "the core".into(),
            Self::Lan(site) => format!("the LAN of {}", site.name()),
        }
    }

    fn namespace(&self) -> Result<&Namespace> {
        match self {
            Self::Core(wire) => Ok(wire.core()),
            Self::Lan(site) => site.router().context("the site has no router"),
        }
    }

    /// Interfaces whose frames another place or interface has shown already: the bridge shows
    /// again what came in by its ports, and the core has seen the rest.
    fn skipped(&self) -> &'static [&'static str] {
        match self {
            Self::Core(_) => &[],
            Self::Lan(_) => &[site::LAN, site::WAN],
        }
    }

    fn listen(&self, ranges: &[IpNet]) -> Result<Listener> {
        let (namespace, skipped) = (self.namespace()?, self.skipped());
        let socket = namespace.inside(|| {
            let skipped: Vec<u32> = skipped
                .iter()
                .map(|name| sys::interface_index(name))
                .collect::<Result<_, _>>()?;
            PacketSocket::open_filtered(&filter::program(ranges, &skipped)?)
        })??;
        Ok(Listener {
            place: self.name(),
            socket,
            tally: Tally::open(namespace, skipped)?,
        })
    }
}

impl Shared {
    fn findings(&self) -> MutexGuard<'_, Findings> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn listen(mut listeners: Vec<Listener>, ranges: &[IpNet], shared: &Shared) {
    let mut poller = Poller::default();
    poller.watch(listeners.iter().map(|listener| listener.socket.as_raw_fd()));
    let mut buffer = [0; HEADERS as usize];
    let mut counted = Instant::now();
    while !shared.stop.load(Ordering::SeqCst) {
        if poller.wait(Some(ROUND)).is_err() {
            return;
        }
        for (place, listener) in listeners.iter().enumerate() {
            if poller.ready(place) {
                drain(listener, &mut buffer, ranges, shared);
            }
        }
        if counted.elapsed() >= ROUND {
            counted = Instant::now();
            let frames = listeners
                .iter_mut()
                .filter_map(|listener| listener.tally.look().ok());
            shared.findings().verdict.frames = frames.sum();
        }
    }
}

fn drain(listener: &Listener, buffer: &mut [u8], ranges: &[IpNet], shared: &Shared) {
    for _ in 0..MOST_AT_ONCE {
        // An error here is an interface that has gone; the socket lives on without it.
        let Ok(Some(received)) = listener.socket.receive(buffer) else {
            break;
        };
        let Some(packet) = buffer.get(..received.len).and_then(frame::addresses) else {
            continue;
        };
        if ranges
            .iter()
            .any(|range| range.contains(&packet.from) || range.contains(&packet.to))
        {
            note_leak((&listener.place, received.interface), packet, shared);
        }
    }
    let missed = listener.socket.take_dropped().unwrap_or(0);
    shared.findings().verdict.missed += missed;
}

fn note_leak((place, interface): (&str, u32), packet: Addresses, shared: &Shared) {
    let mut findings = shared.findings();
    let here = (place.to_owned(), interface);
    if findings.canary.as_ref() == Some(&here) {
        findings.canaries.push(here);
        return;
    }
    let verdict = &mut findings.verdict;
    verdict.leaks += 1;
    *verdict.by_place.entry(place.to_owned()).or_default() += 1;
    let Addresses { from, to, protocol } = packet;
    verdict
        .first_leak
        .get_or_insert_with(|| format!("from {from} to {to} (protocol {protocol}) in {place}"));
}

/// How often the thread looks whether it shall stop, and counts.
const ROUND: Duration = Duration::from_millis(50);

/// Frames of one socket before the others get their turn.
const MOST_AT_ONCE: u64 = 10_000;
