//! Sending runs of datagrams of equal length, each run with one pass through the network stack.
#![allow(
    unsafe_code,
    reason = "sendmmsg and its control messages have no safe form"
)]

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::{io, mem, ptr};

use super::control::Outgoing;
use super::socket_options::RawAddress;
use super::{BATCH_SLOTS, SendCounts, UdpSocket};

/// Datagrams that the kernel cuts one send into at most (`UDP_MAX_SEGMENTS` before Linux 6.9).
pub const MAX_SEGMENTS: usize = 64;
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
    /// Datagrams of the run.
    #[must_use]
    pub fn count(&self) -> usize {
        self.bytes.len().div_ceil(self.segment.max(1)).max(1)
    }
}

impl UdpSocket {
    /// Sends runs, in order, and tells what became of their datagrams. A run that fails does not stop
    /// the others. Where the kernel or a device can't cut, the datagrams go one by one, and so do
    /// those of the next hour.
    pub fn send_runs<'a>(&self, runs: impl IntoIterator<Item = SendRun<'a>>) -> SendCounts {
        let mut counts = SendCounts::default();
        let mut batch = [None; BATCH_SLOTS];
        let mut runs = runs.into_iter().fuse();
        loop {
            let mut filled = 0;
            for (slot, run) in batch.iter_mut().zip(runs.by_ref()) {
                *slot = Some(run);
                filled += 1;
            }
            if filled == 0 {
                return counts;
            }
            self.send_some(batch.get(..filled).unwrap_or_default(), &mut counts);
        }
    }

    fn send_some(&self, runs: &[Option<SendRun<'_>>], counts: &mut SendCounts) {
        if self.segmentation.is_off() {
            for run in runs.iter().flatten() {
                self.send_singly(run, counts);
            }
            return;
        }
        let mut addresses = [RawAddress::EMPTY; BATCH_SLOTS];
        let mut controls = [Outgoing::EMPTY; BATCH_SLOTS];
        let mut vectors = [EMPTY_VECTOR; BATCH_SLOTS];
        // SAFETY: `mmsghdr` is plain memory for which zeroes are valid.
        let mut messages: [libc::mmsghdr; BATCH_SLOTS] = unsafe { mem::zeroed() };
        let parts = messages
            .iter_mut()
            .zip(&mut vectors)
            .zip(&mut addresses)
            .zip(&mut controls);
        for (run, (((message, vector), address), control)) in runs.iter().flatten().zip(parts) {
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
            // to bytes that the runs borrow; at most 64 fit the count.
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
            counts.sent += gone.iter().flatten().map(SendRun::count).sum::<usize>();
            done += next;
            if next > 0 {
                continue;
            }
            let Some(Some(run)) = runs.get(done) else {
                return;
            };
            if self.survive(run, counts) {
                done += 1;
            }
        }
    }

    /// What the last call said about `run`; whether that is dealt with.
    fn survive(&self, run: &SendRun<'_>, counts: &mut SendCounts) -> bool {
        match last_errno() {
            libc::EINTR => return false,
            // A device without checksum offload says EIO, an older kernel EINVAL.
            libc::EIO | libc::EINVAL if run.count() > 1 => {
                self.segmentation.switch_off();
                self.send_singly(run, counts);
            }
            // Longer than the device carries: what is sent alone may go in fragments.
            libc::EMSGSIZE if run.count() > 1 => self.send_singly(run, counts),
            errno => counts.count_losses(errno, run.count()),
        }
        true
    }

    fn send_singly(&self, run: &SendRun<'_>, counts: &mut SendCounts) {
        for bytes in run.bytes.chunks(run.segment.max(1)) {
            let mut address = RawAddress::EMPTY;
            let mut control = Outgoing::EMPTY;
            let mut vector = libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            };
            // SAFETY: `msghdr` is plain memory for which zeroes are valid.
            let mut header: libc::msghdr = unsafe { mem::zeroed() };
            header.msg_namelen = address.set(run.to);
            header.msg_name = ptr::from_mut(&mut address).cast();
            header.msg_iov = &raw mut vector;
            header.msg_iovlen = 1;
            let length = control.set(&SendRun {
                bytes,
                segment: bytes.len(),
                ..*run
            });
            if length > 0 {
                header.msg_control = ptr::from_mut(&mut control).cast();
                header.msg_controllen = length as _;
            }
            // SAFETY: everything that the header points to is on this stack or borrowed by the run.
            let sent = unsafe { libc::sendmsg(self.as_raw_fd(), &raw const header, 0) };
            if sent < 0 {
                counts.count_losses(last_errno(), 1);
            } else {
                counts.sent += 1;
            }
        }
    }
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
