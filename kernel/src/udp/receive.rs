//! Receiving datagrams in batches.
#![allow(unsafe_code, reason = "recvmmsg has no safe form")]

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::{mem, ptr};

use super::socket_options::{ADDRESS_LENGTH, RawAddress};
use super::{BATCH_SLOTS, UdpSocket};

/// [`BATCH_SLOTS`] buffers in one allocation, filled by [`UdpSocket::receive_batch`] and reused.
pub struct ReceiveBatch {
    arena: Box<[u8]>,
    slot: usize,
    addresses: Box<[RawAddress; BATCH_SLOTS]>,
    /// Length of each datagram received, `None` for one that did not fit.
    lengths: Vec<Option<usize>>,
    oversized: u64,
}

/// One datagram that was received.
#[derive(Debug)]
pub struct Datagram<'a> {
    /// Who sent it.
    pub from: SocketAddr,
    /// Its payload, to be decrypted in place.
    pub bytes: &'a mut [u8],
}

impl ReceiveBatch {
    /// Makes room for 64 datagrams of at most `capacity` bytes each.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let slot = capacity.max(1);
        Self {
            arena: vec![0; BATCH_SLOTS * slot].into_boxed_slice(),
            slot,
            addresses: Box::new([RawAddress::EMPTY; BATCH_SLOTS]),
            lengths: Vec::with_capacity(BATCH_SLOTS),
            oversized: 0,
        }
    }

    /// The datagrams in the order of their arrival.
    pub fn datagrams(&mut self) -> impl Iterator<Item = Datagram<'_>> {
        self.arena
            .chunks_exact_mut(self.slot)
            .zip(self.addresses.iter())
            .zip(&self.lengths)
            .filter_map(|((slot, address), length)| {
                Some(Datagram {
                    from: address.get()?,
                    bytes: slot.get_mut(..(*length)?)?,
                })
            })
    }

    /// Slots that the last call filled.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether the last call found nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Datagrams dropped since the start because they were longer than a slot.
    #[must_use]
    pub fn oversized(&self) -> u64 {
        self.oversized
    }
}

impl UdpSocket {
    /// Receives the datagrams that wait, at most 64, without blocking, and returns how many there
    /// are.
    ///
    /// # Errors
    ///
    /// The kernel's answer. Nothing waiting is no error.
    pub fn receive_batch(&self, batch: &mut ReceiveBatch) -> io::Result<usize> {
        batch.lengths.clear();
        let mut vectors = [libc::iovec {
            iov_base: ptr::null_mut(),
            iov_len: 0,
        }; BATCH_SLOTS];
        // SAFETY: `mmsghdr` is plain memory for which zeroes are valid.
        let mut messages: [libc::mmsghdr; BATCH_SLOTS] = unsafe { mem::zeroed() };
        let slots = batch
            .arena
            .chunks_exact_mut(batch.slot)
            .zip(batch.addresses.iter_mut());
        for ((message, vector), (slot, address)) in messages.iter_mut().zip(&mut vectors).zip(slots)
        {
            vector.iov_base = slot.as_mut_ptr().cast();
            vector.iov_len = slot.len();
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_name = ptr::from_mut(address).cast();
            message.msg_hdr.msg_namelen = ADDRESS_LENGTH as libc::socklen_t;
        }
        let received = loop {
            // SAFETY: each of the 64 messages points to one vector, one slot and one address of
            // its own, which outlive the call and which nobody else touches meanwhile.
            let received = unsafe {
                libc::recvmmsg(
                    self.as_raw_fd(),
                    messages.as_mut_ptr(),
                    BATCH_SLOTS as libc::c_uint,
                    0,
                    ptr::null_mut(),
                )
            };
            if let Ok(received) = usize::try_from(received) {
                break received;
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => return Ok(0),
                _ => return Err(error),
            }
        };
        for message in messages.iter().take(received) {
            let cut = message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            batch.oversized += u64::from(cut);
            batch
                .lengths
                .push((!cut).then_some(message.msg_len as usize));
        }
        Ok(received)
    }
}
