//! Sending datagrams in batches.
#![allow(unsafe_code, reason = "sendmmsg has no safe form")]

use std::io;
use std::net::SocketAddr;
use std::ops::{AddAssign, Range};
use std::os::fd::AsRawFd;
use std::{mem, ptr};

use super::control::FourBytes;
use super::socket_options::{RawAddress, set_path_mtu};
use super::{BATCH_SLOTS, PathMtu, UdpSocket};

/// The batch has no free slot, or too few bytes for the datagram. Send it and go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the send batch is full")]
pub struct BatchFull;

/// What became of the datagrams of one batch. Each that was not sent is lost, as if the network
/// had lost it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SendCounts {
    /// Datagrams that the kernel took.
    pub sent: usize,
    /// No route to the destination, or an "unreachable" one.
    pub unreachable: usize,
    /// Refused by a firewall of this machine.
    pub refused: usize,
    /// No memory, or the device's queue was full.
    pub no_buffers: usize,
    /// The socket's own buffer was full.
    pub would_block: usize,
    /// Longer than the device or a datagram can carry.
    pub too_long: usize,
    /// Anything else, for instance the wrong address family.
    pub other: usize,
    /// The last error number behind `other`.
    pub other_errno: Option<i32>,
}

impl SendCounts {
    /// Datagrams that were not sent.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.unreachable
            + self.refused
            + self.no_buffers
            + self.would_block
            + self.too_long
            + self.other
    }

    /// Counts datagrams that the kernel refused for the reason `errno`.
    pub(super) fn count_losses(&mut self, errno: i32, number: usize) {
        match errno {
            libc::ENETUNREACH
            | libc::EHOSTUNREACH
            | libc::ENETDOWN
            | libc::EHOSTDOWN
            | libc::EADDRNOTAVAIL => self.unreachable += number,
            libc::EPERM | libc::EACCES => self.refused += number,
            libc::ENOBUFS | libc::ENOMEM => self.no_buffers += number,
            libc::EAGAIN => self.would_block += number,
            libc::EMSGSIZE => self.too_long += number,
            _ => {
                self.other += number;
                self.other_errno = Some(errno);
            }
        }
    }
}

impl AddAssign for SendCounts {
    fn add_assign(&mut self, more: Self) {
        self.sent += more.sent;
        self.unreachable += more.unreachable;
        self.refused += more.refused;
        self.no_buffers += more.no_buffers;
        self.would_block += more.would_block;
        self.too_long += more.too_long;
        self.other += more.other;
        self.other_errno = more.other_errno.or(self.other_errno);
    }
}

/// How far a datagram may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HopLimit {
    /// The time to live, or hop limit, that it leaves with.
    pub ttl: u8,
    /// Over IPv4 the router that would be the `ttl`-th doesn't take it for itself either. It leaves
    /// with a timestamp option without room, whose overflow counter each router raises, and which
    /// is an error once the counter is full (RFC 791 §3.1): Linux drops it before anybody sees it.
    /// For times to live from 2 to 16.
    pub strict: bool,
}

/// Up to 64 datagrams in one allocation, each with its destination.
pub struct SendBatch {
    arena: Box<[u8]>,
    used: usize,
    entries: Vec<Entry>,
}

struct Entry {
    to: SocketAddr,
    hop_limit: Option<HopLimit>,
    bytes: Range<usize>,
}

impl SendBatch {
    /// Makes room for 64 datagrams of together `capacity` bytes.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            arena: vec![0; capacity].into_boxed_slice(),
            used: 0,
            entries: Vec::with_capacity(BATCH_SLOTS),
        }
    }

    /// Copies a datagram in.
    ///
    /// # Errors
    ///
    /// [`BatchFull`].
    pub fn push(&mut self, to: SocketAddr, bytes: &[u8]) -> Result<(), BatchFull> {
        self.push_with(to, None, bytes.len(), |space| {
            space.copy_from_slice(bytes);
            Some(bytes.len())
        })
    }

    /// Lets `write` put a datagram of at most `most` bytes into the batch and say how long it has
    /// become; with `None` there is none. `hop_limit` keeps it from going far.
    ///
    /// # Errors
    ///
    /// [`BatchFull`], without having called `write`.
    pub fn push_with(
        &mut self,
        to: SocketAddr,
        hop_limit: Option<HopLimit>,
        most: usize,
        write: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> Result<(), BatchFull> {
        if self.entries.len() == BATCH_SLOTS {
            return Err(BatchFull);
        }
        let end = self.used.checked_add(most).ok_or(BatchFull)?;
        let space = self.arena.get_mut(self.used..end).ok_or(BatchFull)?;
        if let Some(length) = write(space) {
            let bytes = self.used..self.used + length.min(most);
            self.used = bytes.end;
            self.entries.push(Entry {
                to,
                hop_limit,
                bytes,
            });
        }
        Ok(())
    }

    /// Datagrams in the batch.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Throws all datagrams away.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.used = 0;
    }
}

impl UdpSocket {
    /// Sends all datagrams of `batch`, which is empty afterwards. One that can't be sent is counted
    /// and does not stop the others.
    pub fn send_batch(&self, batch: &mut SendBatch) -> SendCounts {
        let mut counts = SendCounts::default();
        if batch.is_empty() {
            return counts;
        }
        let mut addresses = [RawAddress::EMPTY; BATCH_SLOTS];
        let mut vectors = [libc::iovec {
            iov_base: ptr::null_mut(),
            iov_len: 0,
        }; BATCH_SLOTS];
        let mut controls = [Control::EMPTY; BATCH_SLOTS];
        // SAFETY: `mmsghdr` is plain memory for which zeroes are valid.
        let mut messages: [libc::mmsghdr; BATCH_SLOTS] = unsafe { mem::zeroed() };
        let parts = messages
            .iter_mut()
            .zip(&mut vectors)
            .zip(&mut addresses)
            .zip(&mut controls);
        for (entry, (((message, vector), address), control)) in batch.entries.iter().zip(parts) {
            let bytes = batch.arena.get(entry.bytes.clone()).unwrap_or_default();
            vector.iov_base = bytes.as_ptr().cast_mut().cast();
            vector.iov_len = bytes.len();
            let header = &mut message.msg_hdr;
            header.msg_namelen = address.set(entry.to);
            header.msg_name = ptr::from_mut(address).cast();
            header.msg_iov = vector;
            header.msg_iovlen = 1;
            if let Some(hop_limit) = entry.hop_limit {
                header.msg_controllen = control.set(entry.to, hop_limit) as _;
                header.msg_control = ptr::from_mut(control).cast();
            }
        }
        if let Some(messages) = messages.get_mut(..batch.entries.len()) {
            self.send_messages(messages, &mut counts);
        }
        batch.clear();
        counts
    }

    /// Sends a datagram that is lost where it would have to be fragmented. There is no such flag for a
    /// single datagram, so whatever else goes out by this socket in that moment is treated alike.
    ///
    /// # Errors
    ///
    /// The kernel's answer; `EMSGSIZE` if the device itself carries less.
    pub fn send_whole(&self, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        set_path_mtu(&self.inner, to.is_ipv4(), PathMtu::Probe)?;
        let sent = self.inner.send_to(bytes, to);
        set_path_mtu(&self.inner, to.is_ipv4(), self.path_mtu)?;
        sent.map(drop)
    }

    /// Sends what `messages` point to, which must be live.
    fn send_messages(&self, mut messages: &mut [libc::mmsghdr], counts: &mut SendCounts) {
        while !messages.is_empty() {
            // SAFETY: the callers' messages point to addresses, vectors, datagrams and control
            // messages on their stack or in the batch they hold; at most 64 fit the count.
            let sent = unsafe {
                libc::sendmmsg(
                    self.as_raw_fd(),
                    messages.as_mut_ptr(),
                    messages.len() as libc::c_uint,
                    0,
                )
            };
            // The call stops at a datagram that fails; its error comes with the next call.
            let done = match usize::try_from(sent) {
                Ok(sent) if sent > 0 => {
                    counts.sent += sent;
                    sent
                }
                _ => match io::Error::last_os_error()
                    .raw_os_error()
                    .unwrap_or(libc::EIO)
                {
                    libc::EINTR => 0,
                    errno => {
                        counts.count_losses(errno, 1);
                        1
                    }
                },
            };
            messages = messages.get_mut(done..).unwrap_or_default();
        }
    }
}

/// What limits the way of one datagram.
#[derive(Clone, Copy)]
#[repr(C)]
struct Control {
    ttl: FourBytes,
    options: FourBytes,
}

impl Control {
    const EMPTY: Self = Self {
        ttl: FourBytes::EMPTY,
        options: FourBytes::EMPTY,
    };

    /// The number of bytes that are meant.
    fn set(&mut self, to: SocketAddr, limit: HopLimit) -> usize {
        let kind = if to.is_ipv4() {
            (libc::IPPROTO_IP, libc::IP_TTL)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT)
        };
        self.ttl
            .set(kind, &libc::c_int::from(limit.ttl).to_ne_bytes());
        if !limit.strict || !to.is_ipv4() {
            return size_of::<FourBytes>();
        }
        // Type, length and pointer of a timestamp option without room, then the overflow counter,
        // which has four bits and is full at 15, and the flag "timestamps only".
        let counter = 16_u8.saturating_sub(limit.ttl).min(14);
        let option = [libc::IPOPT_TIMESTAMP, 4, 5, counter << 4];
        self.options
            .set((libc::IPPROTO_IP, libc::IP_RETOPTS), &option);
        size_of::<Self>()
    }
}
