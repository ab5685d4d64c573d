//! Listens on every underlay link of a lab and looks for what must never be there.
//!
//! One packet socket in the core and one in every router see each frame where it first enters a
//! link: in the core what sites and public hosts send, in a router what its LAN sends. A packet
//! from or to an address of the mesh on such a link has left a node unencrypted.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Result;
use ipnet::IpNet;

use crate::lab::Lab;
use crate::sys::{self, PacketSocket, Poller};

/// The ranges of a network that was created without other wishes: overlay, pods, and every
/// unique local IPv6 address, of which the underlay of a lab has none.
pub const MESH_RANGES: [&str; 3] = ["10.77.0.0/16", "10.42.0.0/16", "fd00::/8"];

/// A running capture; it ends when dropped.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What was seen so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Frames looked at.
    pub frames: u64,
    /// Frames that the kernel dropped before they could be looked at.
    pub missed: u64,
    /// Packets from or to an address of the mesh.
    pub leaks: u64,
    /// The first of them in words.
    pub first_leak: Option<String>,
    /// Leaks by place.
    pub by_place: BTreeMap<String, u64>,
}

#[derive(Debug)]
struct Shared {
    verdict: Mutex<Verdict>,
    stop: AtomicBool,
}

struct Listener {
    place: String,
    socket: PacketSocket,
}

impl Capture {
    /// Listens for addresses of [`MESH_RANGES`].
    ///
    /// # Errors
    ///
    /// If a socket can't be opened.
    pub fn start(lab: &Lab) -> Result<Self> {
        let ranges = MESH_RANGES.iter().map(|range| range.parse());
        Self::start_for(lab, ranges.collect::<Result<_, _>>()?)
    }

    /// Listens for addresses of these ranges.
    ///
    /// # Errors
    ///
    /// If a socket can't be opened.
    pub fn start_for(lab: &Lab, ranges: Vec<IpNet>) -> Result<Self> {
        let mut listeners = Vec::new();
        let socket = lab.wire().core().inside(|| open(&[]))??;
        listeners.push(Listener {
            place: "the core".into(),
            socket,
        });
        for site in lab.sites() {
            let Some(router) = site.router() else {
                continue;
            };
            // The bridge shows again what came in by its ports, and the core has seen the rest.
            let socket = router.inside(|| open(&[crate::site::LAN, crate::site::WAN]))??;
            listeners.push(Listener {
                place: format!("the LAN of {}", site.name()),
                socket,
            });
        }
        let shared = Arc::new(Shared {
            verdict: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let thread = {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name("capture".into())
                .spawn(move || listen(&listeners, &ranges, &shared))?
        };
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// What was seen so far.
    pub fn verdict(&self) -> Verdict {
        // Two rounds of the thread, so that what was sent before this call is counted.
        thread::sleep(2 * ROUND);
        self.shared
            .verdict
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Fails with the first example if anything leaked, if frames were missed, or if nothing was
    /// seen at all.
    ///
    /// # Errors
    ///
    /// As said.
    pub fn must_be_clean(&self) -> Result<Verdict> {
        let verdict = self.verdict();
        anyhow::ensure!(
            verdict.frames > 0,
            "the capture saw nothing and proves nothing"
        );
        anyhow::ensure!(verdict.leaks == 0 && verdict.missed == 0, "{verdict}");
        Ok(verdict)
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

fn open(skipped: &[&str]) -> std::io::Result<PacketSocket> {
    let skipped: Vec<u32> = skipped
        .iter()
        .map(|name| sys::interface_index(name))
        .collect::<Result<_, _>>()?;
    let socket = PacketSocket::open(None)?;
    socket.keep_only(HEADERS, &skipped)?;
    Ok(socket)
}

fn listen(listeners: &[Listener], ranges: &[IpNet], shared: &Shared) {
    let mut poller = Poller::default();
    poller.watch(listeners.iter().map(|listener| listener.socket.as_raw_fd()));
    let mut buffer = [0; HEADERS as usize];
    while !shared.stop.load(Ordering::SeqCst) {
        if poller.wait(Some(ROUND)).is_err() {
            return;
        }
        for (place, listener) in listeners.iter().enumerate() {
            if poller.ready(place) {
                drain(listener, &mut buffer, ranges, shared);
            }
        }
    }
}

fn drain(listener: &Listener, buffer: &mut [u8], ranges: &[IpNet], shared: &Shared) {
    let mut frames = 0;
    // An error here is an interface that has gone; the socket lives on without it.
    while let Ok(Some(received)) = listener.socket.receive(buffer) {
        frames += 1;
        let Some(packet) = buffer.get(..received.len).and_then(addresses) else {
            continue;
        };
        if ranges
            .iter()
            .any(|range| range.contains(&packet.from) || range.contains(&packet.to))
        {
            note_leak(&listener.place, packet, shared);
        }
        if frames >= MOST_AT_ONCE {
            break;
        }
    }
    let missed = listener.socket.take_dropped().unwrap_or(0);
    let mut verdict = shared
        .verdict
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    verdict.frames += frames;
    verdict.missed += missed;
}

fn note_leak(place: &str, packet: Addresses, shared: &Shared) {
    let mut verdict = shared
        .verdict
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    verdict.leaks += 1;
    *verdict.by_place.entry(place.to_owned()).or_default() += 1;
    let Addresses { from, to, protocol } = packet;
    verdict
        .first_leak
        .get_or_insert_with(|| format!("from {from} to {to} (protocol {protocol}) in {place}"));
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Addresses {
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
}

/// The innermost unencrypted addresses of a frame: inside VLAN tags and IP in IP.
fn addresses(frame: &[u8]) -> Option<Addresses> {
    let mut rest = frame.get(12..)?;
    loop {
        let (kind, after) = rest.split_at_checked(2)?;
        match kind {
            [0x81, 0x00] | [0x88, 0xa8] => rest = after.get(2..)?,
            [0x08, 0x00] | [0x86, 0xdd] => return packet_addresses(after, 3),
            _ => return None,
        }
    }
}

fn packet_addresses(packet: &[u8], depth: u8) -> Option<Addresses> {
    let first = *packet.first()?;
    let (found, payload) = match first >> 4 {
        4 => {
            let from: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
            let to: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
            let (from, to) = (Ipv4Addr::from(from).into(), Ipv4Addr::from(to).into());
            let protocol = *packet.get(9)?;
            (
                Addresses { from, to, protocol },
                packet.get(usize::from(first & 15) * 4..),
            )
        }
        6 => {
            let from: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            let to: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            let (from, to) = (Ipv6Addr::from(from).into(), Ipv6Addr::from(to).into());
            (
                Addresses {
                    from,
                    to,
                    protocol: *packet.get(6)?,
                },
                packet.get(40..),
            )
        }
        _ => return None,
    };
    let tunnelled = matches!(found.protocol, 4 | 41) && depth > 0;
    let inner = payload
        .filter(|_| tunnelled)
        .and_then(|inner| packet_addresses(inner, depth - 1));
    Some(inner.unwrap_or(found))
}

/// Bytes of each frame that are kept: Ethernet, VLAN tags and three IP headers fit.
const HEADERS: u32 = 192;

/// How often the thread looks whether it shall stop.
const ROUND: Duration = Duration::from_millis(50);

/// Frames of one socket before the others get their turn.
const MOST_AT_ONCE: u64 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv4(protocol: u8, from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, protocol, 0, 0];
        packet.extend(from);
        packet.extend(to);
        packet
    }

    fn framed(tags: &[u8], packet: &[u8]) -> Vec<u8> {
        [&[0; 12], tags, &[0x08, 0x00], packet].concat()
    }

    #[test]
    fn addresses_are_found_under_vlan_tags_and_in_tunnels() {
        let inner = ipv4(1, [10, 42, 1, 2], [10, 42, 2, 3]);
        let expected = addresses(&framed(&[], &inner)).expect("plain IPv4");
        assert_eq!(expected.from, "10.42.1.2".parse::<IpAddr>().unwrap());
        let tags = [0x88, 0xa8, 0, 7, 0x81, 0x00, 0, 9];
        assert_eq!(addresses(&framed(&tags, &inner)), Some(expected));
        let tunnel = [ipv4(4, [198, 51, 100, 10], [198, 51, 100, 11]), inner].concat();
        assert_eq!(addresses(&framed(&[], &tunnel)), Some(expected));
    }

    #[test]
    fn a_cut_frame_has_no_addresses() {
        let frame = framed(&[], &ipv4(1, [10, 42, 1, 2], [10, 42, 2, 3]));
        for len in 0..frame.len() {
            assert_eq!(addresses(&frame[..len]), None, "at {len} bytes");
        }
    }
}
