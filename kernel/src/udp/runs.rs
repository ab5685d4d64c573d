//! Sending runs of datagrams of equal length, each run with one pass through the network stack.
#![allow(
    unsafe_code,
    reason = "sendmmsg and its control messages have no safe form"
)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::{io, mem, ptr};

use super::control::Outgoing;
use super::socket_options::RawAddress;
use super::{SendCounts, UdpSocket};

/// Datagrams that the kernel cuts one send into at most (`UDP_MAX_SEGMENTS` before Linux 6.9).
pub const MAX_SEGMENTS: usize = 64;
/// Runs per system call.
const SLOTS: usize = 16;
/// Bytes of one send at most: what an IPv4 packet can hold behind its headers.
pub const MAX_RUN: usize = 65_507;

/// Datagrams to one destination, one behind the other, all of `segment` bytes but the last, which may
/// be shorter.
#[derive(Debug, Clone, Copy)]
pub struct SendRun<'a> {
    /// To here.
    pub to: SocketAddr,
    /// The datagrams: at most [`MAX_SEGMENTS`], and [`MAX_RUN`] bytes.
    pub bytes: &'a [u8],
    /// Bytes of each.
    pub segment: usize,
    /// Congestion marking of the outer header (RFC 3168), two bits.
    pub ecn: u8,
}

impl SendRun<'_> {
    const EMPTY: Self = Self {
        to: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
        bytes: &[],
        segment: 0,
        ecn: 0,
    };

    /// Datagrams of the run.
    #[must_use]
    pub fn count(&self) -> usize {
        self.bytes.len().div_ceil(self.segment.max(1)).max(1)
    }
}

/// What became of runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SentRuns {
    /// Their datagrams, but for those behind `blocked`, which weren't tried.
    pub counts: SendCounts,
    /// Where the socket had no room for more.
    pub blocked: Option<Blocked>,
}

/// How far sending has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Blocked {
    /// Runs before this one are dealt with.
    pub run: usize,
    /// So are these first bytes of it.
    pub bytes: usize,
}

impl UdpSocket {
    /// Sends runs, in order, until the socket has no room, and tells what became of their datagrams. A
    /// run that fails does not stop the others. Where the kernel or a device can't cut, the datagrams go
    /// one by one, and so do those on that way in the next hour.
    pub fn send_runs<'a>(&self, runs: impl IntoIterator<Item = SendRun<'a>>) -> SentRuns {
        let mut runs = runs.into_iter();
        match (runs.next(), runs.next()) {
            (None, _) => SentRuns::default(),
            // What is prepared for a call is touched whole, and after a sleep none of it is in the
            // processor's caches.
            (Some(run), None) => {
                let mut counts = SendCounts::default();
                let blocked = self.send_some::<1>(&[run], &mut counts);
                SentRuns { counts, blocked }
            }
            (Some(first), Some(second)) => self.send_many([first, second].into_iter().chain(runs)),
        }
    }

    fn send_many<'a>(&self, runs: impl Iterator<Item = SendRun<'a>>) -> SentRuns {
        let mut sent = SentRuns::default();
        let mut batch = [SendRun::EMPTY; SLOTS];
        let mut runs = runs.fuse();
        let mut done = 0;
        loop {
            let mut filled = 0;
            for (slot, run) in batch.iter_mut().zip(runs.by_ref()) {
                *slot = run;
                filled += 1;
            }
            let some = batch.get(..filled).unwrap_or_default();
            if let Some(blocked) = self.send_some::<SLOTS>(some, &mut sent.counts) {
                let run = done + blocked.run;
                sent.blocked = Some(Blocked { run, ..blocked });
            }
            if filled == 0 || sent.blocked.is_some() {
                return sent;
            }
            done += filled;
        }
    }

    /// Sends at most `MOST` runs.
    fn send_some<const MOST: usize>(
        &self,
        runs: &[SendRun<'_>],
        counts: &mut SendCounts,
    ) -> Option<Blocked> {
        let is_alone = |run: &SendRun<'_>| run.count() > 1 && self.segmentation.is_off(run.to);
        let mut done = 0;
        for alike in runs.chunk_by(|a, b| !is_alone(a) && !is_alone(b)) {
            let blocked = match alike {
                [run] if is_alone(run) => self.send_singly(run, counts),
                _ => self.send_at_once::<MOST>(alike, counts),
            };
            if let Some(blocked) = blocked {
                let run = done + blocked.run;
                return Some(Blocked { run, ..blocked });
            }
            done += alike.len();
        }
        None
    }

    /// Sends at most `MOST` runs with one call, if the kernel likes them.
    fn send_at_once<const MOST: usize>(
        &self,
        runs: &[SendRun<'_>],
        counts: &mut SendCounts,
    ) -> Option<Blocked> {
        debug_assert!(runs.len() <= MOST, "{} runs at once", runs.len());
        let mut addresses = [RawAddress::EMPTY; MOST];
        let mut controls = [Outgoing::EMPTY; MOST];
        let mut vectors = [EMPTY_VECTOR; MOST];
        // SAFETY: `mmsghdr` is plain memory for which zeroes are valid.
        let mut messages: [libc::mmsghdr; MOST] = unsafe { mem::zeroed() };
        let parts = messages
            .iter_mut()
            .zip(&mut vectors)
            .zip(&mut addresses)
            .zip(&mut controls);
        for (run, (((message, vector), address), control)) in runs.iter().zip(parts) {
            vector.iov_base = run.bytes.as_ptr().cast_mut().cast();
            vector.iov_len = run.bytes.len();
            let header = &mut message.msg_hdr;
            header.msg_namelen = address.set(run.to);
            header.msg_name = ptr::from_mut(address).cast();
            header.msg_iov = vector;
            header.msg_iovlen = 1;
            let length = control.set(run);
            if length > 0 {
                header.msg_control = ptr::from_mut(control).cast();
                header.msg_controllen = length as _;
            }
        }
        let mut done = 0;
        while let Some(rest) = messages
            .get_mut(done..runs.len())
            .filter(|rest| !rest.is_empty())
        {
            // SAFETY: the messages point to addresses, vectors and control messages on this stack, and
            // to bytes that the runs borrow; at most `MOST` fit the count.
            let sent = unsafe {
                libc::sendmmsg(
                    self.as_raw_fd(),
                    rest.as_mut_ptr(),
                    rest.len() as libc::c_uint,
                    0,
                )
            };
            let next = usize::try_from(sent).unwrap_or(0);
            let gone = runs.get(done..done + next).unwrap_or_default();
            counts.sent += gone.iter().map(SendRun::count).sum::<usize>();
            done += next;
            let Some(run) = runs.get(done).filter(|_| next == 0) else {
                continue;
            };
            match self.survive(run, last_errno(), counts) {
                Survival::Again => {}
                Survival::Done => done += 1,
                Survival::Blocked(bytes) => return Some(Blocked { run: done, bytes }),
            }
        }
        None
    }

    /// Deals with what the kernel said about `run`.
    fn survive(&self, run: &SendRun<'_>, errno: libc::c_int, counts: &mut SendCounts) -> Survival {
        match errno {
            libc::EINTR => return Survival::Again,
            libc::EAGAIN => return Survival::Blocked(0),
            libc::EIO | libc::EINVAL | libc::EMSGSIZE if run.count() > 1 => {
                // A device without checksum offload. The others are about this run: it is longer than
                // the device carries (EINVAL before Linux 6.14), and what goes alone may be fragmented.
                if errno == libc::EIO {
                    self.segmentation.switch_off(run.to);
                }
                if let Some(blocked) = self.send_singly(run, counts) {
                    return Survival::Blocked(blocked.bytes);
                }
            }
            errno => counts.count_losses(errno, run.count()),
        }
        Survival::Done
    }

    /// Sends the datagrams of one run without having the kernel cut it.
    fn send_singly(&self, run: &SendRun<'_>, counts: &mut SendCounts) -> Option<Blocked> {
        let segment = run.segment.max(1);
        for (number, several) in run.bytes.chunks(segment * SLOTS).enumerate() {
            let mut singles = [SendRun::EMPTY; SLOTS];
            let mut filled = 0;
            for (slot, bytes) in singles.iter_mut().zip(several.chunks(segment)) {
                let segment = bytes.len();
                *slot = SendRun {
                    bytes,
                    segment,
                    ..*run
                };
                filled += 1;
            }
            let singles = singles.get(..filled).unwrap_or_default();
            if let Some(blocked) = self.send_at_once::<SLOTS>(singles, counts) {
                let bytes = (number * SLOTS + blocked.run) * segment;
                return Some(Blocked { run: 0, bytes });
            }
        }
        None
    }
}

/// What follows from an error.
enum Survival {
    Again,
    Done,
    /// After these bytes of the run.
    Blocked(usize),
}

const EMPTY_VECTOR: libc::iovec = libc::iovec {
    iov_base: ptr::null_mut(),
    iov_len: 0,
};

fn last_errno() -> libc::c_int {
    io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}
