//! A frame that the lab lets slip itself, so that silence means something.
//!
//! A capture that has seen no leak may be deaf: a filter that lets nothing pass, a socket that
//! has ended. A packet from an address of the mesh, sent over a link that exists for it alone,
//! tells the two apart.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ipnet::IpNet;

use crate::namespace::Namespace;
use crate::sys::{self, PacketSocket};

/// The link that the canary flies on, and its other end.
pub(super) const LINK: &str = "canary";
const FAR: &str = "canary-far";

/// How long it may take to be seen.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends a packet from the first of these ranges into the namespace until `seen` says so of the
/// index of the link.
///
/// # Errors
///
/// If it is never seen, or can't be sent.
pub(super) fn fly(
    namespace: &Namespace,
    range: &IpNet,
    mut seen: impl FnMut(u32) -> bool,
) -> Result<()> {
    namespace.ip(&format!(
        "link add {LINK} type veth peer name {FAR}\n\
         link set {LINK} up\n\
         link set {FAR} up\n"
    ))?;
    let (index, socket) = namespace.inside(|| {
        let index = sys::interface_index(LINK)?;
        Ok::<_, std::io::Error>((index, PacketSocket::open(FAR)?))
    })??;
    let start = Instant::now();
    let mut found = seen(index);
    while !found && start.elapsed() < PATIENCE {
        // The link takes a moment to come up; until then nothing can be sent.
        let _ = socket.send(&frame(range));
        thread::sleep(Duration::from_millis(10));
        found = seen(index);
    }
    namespace.ip(&format!("link delete {LINK}"))?;
    ensure!(found, "it did not see a packet that was sent on purpose");
    Ok(())
}

/// A frame for nobody with nothing in it but addresses of the range.
fn frame(range: &IpNet) -> Vec<u8> {
    // Hardware addresses that no interface has: 02:00:00:00:00:0b to 02:00:00:00:00:0a.
    let mut frame = vec![2, 0, 0, 0, 0, 0x0a, 2, 0, 0, 0, 0, 0x0b];
    match range {
        IpNet::V4(range) => {
            frame.extend([0x08, 0x00, 0x45, 0, 0, 20, 0, 0, 0, 0, 1, EXPERIMENT, 0, 0]);
            frame.extend(range.network().octets());
            frame.extend(range.network().octets());
        }
        IpNet::V6(range) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, EXPERIMENT, 1]);
            frame.extend(range.network().octets());
            frame.extend(range.network().octets());
        }
    }
    frame
}

/// The protocol number for experiments (RFC 3692).
const EXPERIMENT: u8 = 253;
