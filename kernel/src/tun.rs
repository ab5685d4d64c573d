//! The TUN device: attach its queues, read and write packets in batches.
//!
//! The device is persistent and multi-queue, with a virtio-net header in front of each packet from
//! the first day on, because a persistent device can't change the first later. It keeps its index,
//! addresses and routes while no process holds it. A queue is a descriptor: it dies with the process,
//! unless that has handed it on, so no queue that nobody will read swallows packets.

mod batch;
mod inspect;
mod queue;

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::thread;
use std::time::{Duration, Instant};

pub use self::batch::{TunBatch, TunPacket};
pub use self::queue::{MAX_PARTS, Offloads, TunIoError, TunQueue, VnetHeader, WriteCounts};

use netlink_packet_route::link::LinkMessage;

use self::inspect::Existing;

/// Queues that one TUN device of Linux can have.
pub const MAX_QUEUES: usize = 256;

const CLONE_DEVICE: &str = "/dev/net/tun";

/// How long [`TunDevice::open`] waits for another process to let the device go.
const GRACE: Duration = Duration::from_millis(500);

/// Why a TUN device could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TunError {
    /// The name can't be one of an interface.
    #[error("{0:?} can't name an interface; use 1 to 15 letters, digits, '-', '_' or '.'")]
    Name(String),
    /// Zero queues, or more than [`MAX_QUEUES`].
    #[error("a TUN device has 1 to 256 queues, not {0}")]
    QueueCount(usize),
    /// The kernel has no TUN driver, or the container does not see it.
    #[error(
        "/dev/net/tun is missing; load it with `modprobe tun` or give the device to the container"
    )]
    Missing,
    /// The process may not create or attach to TUN devices.
    #[error(
        "no permission for TUN devices; run as root or with CAP_NET_ADMIN and access to /dev/net/tun"
    )]
    Permission,
    /// An interface has this name and can't become what is needed.
    #[error(
        "the interface {name} is somebody else's: {found}, not a TUN with several queues; set `device` in meshd's \
         configuration to a name that is free, or, if nobody needs it, remove it with `ip link del {name}`"
    )]
    OtherKind {
        /// The name asked for.
        name: String,
        /// What it is, in words.
        found: String,
    },
    /// Another process holds queues of the device and would swallow part of the packets.
    #[error(
        "{queues} queues of {name} are held by another process; if that is a meshd, stop it first, and if not, \
         set `device` in meshd's configuration to a name that is free"
    )]
    InUse {
        /// The name asked for.
        name: String,
        /// Queues that others hold.
        queues: u32,
    },
    /// The kernel refused a step.
    #[error("can't {step} {name}: {source}")]
    System {
        /// What was tried, as a verb.
        step: &'static str,
        /// The name asked for.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A TUN device with all its queues attached by this process.
#[derive(Debug)]
pub struct TunDevice {
    name: String,
    index: u32,
    queues: Vec<TunQueue>,
}

impl TunDevice {
    /// Attaches `queues` queues to the device `name` of the calling thread's network namespace, and
    /// creates the device, persistent, if there is none; with as many of `offloads` as the kernel
    /// knows. An existing one keeps its index, addresses
    /// and routes; it is left up or down as found. Blocks for at most half a second, while another
    /// process lets its queues go.
    ///
    /// # Errors
    ///
    /// See [`TunError`]; in particular when the name belongs to another kind of interface or when
    /// another process still holds queues.
    pub fn open(name: &str, queues: usize, offloads: Offloads) -> Result<Self, TunError> {
        if !is_interface_name(name) {
            return Err(TunError::Name(name.to_owned()));
        }
        if queues == 0 || queues > MAX_QUEUES {
            return Err(TunError::QueueCount(queues));
        }
        wait_until_free(name)?;
        let attached = (0..queues)
            .map(|_| attach_queue(name, offloads))
            .collect::<Result<Vec<_>, _>>()?;
        let device = Self {
            name: name.to_owned(),
            index: queue::index_of(name)?,
            queues: attached,
        };
        refuse_company(&device)?;
        // Last, so that a device that failed half-way disappears with its descriptors.
        for queue in device.queues.iter().take(1) {
            queue
                .set_persistent()
                .map_err(|source| system("keep", name, source))?;
        }
        Ok(device)
    }

    /// Takes over the device `name` with all its queues from another process.
    ///
    /// # Errors
    ///
    /// See [`TunError`]; in particular when the descriptors belong to another device, or others still
    /// hold queues of this one.
    pub fn adopt(name: &str, queues: Vec<OwnedFd>, offloads: Offloads) -> Result<Self, TunError> {
        let queues = queues
            .into_iter()
            .map(|fd| {
                TunQueue::adopt(fd, name, &[offloads, offloads.without_udp()])
                    .map_err(|source| system("take over a queue of", name, source))
            })
            .collect::<Result<Vec<_>, _>>()?;
        if queues.is_empty() || queues.len() > MAX_QUEUES {
            return Err(TunError::QueueCount(queues.len()));
        }
        let device = Self {
            name: name.to_owned(),
            index: queue::index_of(name)?,
            queues,
        };
        refuse_company(&device)?;
        Ok(device)
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interface's index.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The queues, in the order of the kernel's numbering.
    #[must_use]
    pub fn queues(&self) -> &[TunQueue] {
        &self.queues
    }

    /// Gives each queue away, one per shard.
    #[must_use]
    pub fn into_queues(self) -> Vec<TunQueue> {
        self.queues
    }
}

/// Queues of a process that just ended, or of a child between its fork and exec, are let go within
/// a moment.
fn wait_until_free(name: &str) -> Result<(), TunError> {
    let start = Instant::now();
    loop {
        match check_existing(name) {
            Err(TunError::InUse { .. }) if start.elapsed() < GRACE => thread::sleep(GRACE / 50),
            result => return result,
        }
    }
}

/// Gives way when another process attached its queues in the same moment.
fn refuse_company(device: &TunDevice) -> Result<(), TunError> {
    let own = u32::try_from(device.queues.len()).unwrap_or(u32::MAX);
    match check_existing(&device.name) {
        Err(TunError::InUse { queues, .. }) if queues == own => Ok(()),
        Err(TunError::InUse { name, queues }) => Err(TunError::InUse {
            name,
            queues: queues.saturating_sub(own),
        }),
        result => result,
    }
}

/// Refuses what can't be attached to, with the reason, since the kernel says only EINVAL.
fn check_existing(name: &str) -> Result<(), TunError> {
    let found = inspect::inspect(name).map_err(|source| system("look up", name, source))?;
    if let Existing::Tun {
        multi_queue: true,
        queues: queues @ 1..,
    } = found
    {
        return Err(TunError::InUse {
            name: name.to_owned(),
            queues,
        });
    }
    match found.unfit() {
        None => Ok(()),
        Some(found) => Err(TunError::OtherKind {
            name: name.to_owned(),
            found,
        }),
    }
}

/// What an interface is, in words, if it is no TUN with several queues.
pub(crate) fn unfit(link: &LinkMessage) -> Option<String> {
    inspect::classify(link).unfit()
}

fn attach_queue(name: &str, offloads: Offloads) -> Result<TunQueue, TunError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(CLONE_DEVICE)
        .map_err(|source| match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => TunError::Missing,
            Some(libc::EACCES | libc::EPERM) => TunError::Permission,
            _ => system("open /dev/net/tun for", name, source),
        })?;
    let wanted = [offloads, offloads.without_udp()];
    TunQueue::attach(OwnedFd::from(file), name, &wanted).map_err(|source| {
        match source.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => TunError::Permission,
            _ => system("attach a queue to", name, source),
        }
    })
}

fn system(step: &'static str, name: &str, source: io::Error) -> TunError {
    TunError::System {
        step,
        name: name.to_owned(),
        source,
    }
}

/// Whether `name` may be an interface's name. Stricter than the kernel, which takes nearly all bytes
/// and expands a `%d`.
#[must_use]
pub fn is_interface_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..libc::IFNAMSIZ).contains(&name.len())
        && name.bytes().all(allowed)
        && name != "."
        && name != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_would_expand_or_cut_are_refused() {
        for good in ["mesh0", "a", "pm0123456789abc", "eth0.5"] {
            assert!(is_interface_name(good), "{good}");
        }
        for bad in [
            "",
            "mesh%d",
            "a/b",
            "a b",
            "..",
            "sixteen-letters-",
            "mesh\0",
        ] {
            assert!(!is_interface_name(bad), "{bad:?}");
            assert!(matches!(
                TunDevice::open(bad, 1, Offloads::ALL),
                Err(TunError::Name(_))
            ));
        }
    }

    #[test]
    fn a_queue_count_out_of_range_is_refused() {
        assert!(matches!(
            TunDevice::open("pmtest", 0, Offloads::ALL),
            Err(TunError::QueueCount(0))
        ));
        assert!(matches!(
            TunDevice::open("pmtest", 257, Offloads::ALL),
            Err(TunError::QueueCount(257))
        ));
    }
}
