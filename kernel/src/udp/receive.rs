//! Receiving datagrams in batches.
#![allow(unsafe_code, reason = "recvmmsg has no safe form")]

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::{mem, ptr};

use super::control::Incoming;
use super::socket_options::{ADDRESS_LENGTH, RawAddress};
use super::{BATCH_SLOTS, UdpSocket};
use crate::memory;

/// Slots up to which a call is prepared with less.
const FEW: usize = 4;

/// At most [`BATCH_SLOTS`] buffers in one allocation, filled by [`UdpSocket::receive_batch`] and reused.
pub struct ReceiveBatch {
    arena: Box<[u8]>,
    slot: usize,
    slots: usize,
    /// Of them, those that the next call may fill.
    limit: usize,
    addresses: Box<[RawAddress; BATCH_SLOTS]>,
    controls: Box<[Incoming; BATCH_SLOTS]>,
    /// What was received, `None` for what did not fit.
    received: Vec<Option<Arrival>>,
    oversized: u64,
}

#[derive(Debug, Clone, Copy)]
struct Arrival {
    length: usize,
    segment: usize,
    ecn: u8,
}

/// One datagram that was received, or several of one sender in one piece.
#[derive(Debug)]
pub struct Datagram<'a> {
    /// Who sent it.
    pub from: SocketAddr,
    /// Its payload, to be decrypted in place.
    pub bytes: &'a mut [u8],
    /// Bytes of each datagram in it but the last, which may be shorter.
    pub segment: usize,
    /// Congestion marking of the outer header (RFC 3168), two bits.
    pub ecn: u8,
}

impl ReceiveBatch {
    /// Makes room for `slots` datagrams, at most 64, of at most `capacity` bytes each.
    #[must_use]
    pub fn new(slots: usize, capacity: usize) -> Self {
        let (slot, slots) = (capacity.max(1), slots.clamp(1, BATCH_SLOTS));
        Self {
            arena: vec![0; slots * slot].into_boxed_slice(),
            slot,
            slots,
            limit: slots,
            addresses: Box::new([RawAddress::EMPTY; BATCH_SLOTS]),
            controls: Box::new([Incoming::EMPTY; BATCH_SLOTS]),
            received: Vec::with_capacity(slots),
            oversized: 0,
        }
    }

    /// Has the next calls fill at most so many slots, at least one.
    pub fn set_limit(&mut self, slots: usize) {
        self.limit = slots.clamp(1, self.slots);
    }

    /// Slots that a call fills at most.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// The datagrams in the order of their arrival.
    pub fn datagrams(&mut self) -> impl Iterator<Item = Datagram<'_>> {
        self.arena
            .chunks_exact_mut(self.slot)
            .zip(self.addresses.iter())
            .zip(&self.received)
            .filter_map(|((slot, address), arrival)| {
                let arrival = (*arrival)?;
                Some(Datagram {
                    from: address.get()?,
                    bytes: slot.get_mut(..arrival.length)?,
                    segment: arrival.segment,
                    ecn: arrival.ecn,
                })
            })
    }

    /// Lets go of the memory behind the slots; whatever they held is gone.
    pub fn give_back(&mut self) {
        self.received.clear();
        memory::give_back(&mut self.arena);
    }

    /// Slots that the last call filled.
    #[must_use]
    pub fn len(&self) -> usize {
        self.received.len()
    }

    /// Whether the last call found nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.received.is_empty()
    }

    /// Datagrams dropped since the start because they were longer than a slot.
    #[must_use]
    pub fn oversized(&self) -> u64 {
        self.oversized
    }
}

impl UdpSocket {
    /// Receives the datagrams that wait, at most as many as the batch has slots, without blocking,
    /// and returns how many slots are filled.
    ///
    /// # Errors
    ///
    /// The kernel's answer. Nothing waiting is no error.
    pub fn receive_batch(&self, batch: &mut ReceiveBatch) -> io::Result<usize> {
        batch.received.clear();
        // What is prepared is touched whole, and after a sleep none of it is in the processor's caches.
        if batch.limit <= FEW {
            self.receive::<FEW>(batch)
        } else {
            self.receive::<BATCH_SLOTS>(batch)
        }
    }

    fn receive<const MOST: usize>(&self, batch: &mut ReceiveBatch) -> io::Result<usize> {
        let limit = batch.limit.min(MOST);
        let mut vectors = [libc::iovec {
            iov_base: ptr::null_mut(),
            iov_len: 0,
        }; MOST];
        // SAFETY: `mmsghdr` is plain memory for which zeroes are valid.
        let mut messages: [libc::mmsghdr; MOST] = unsafe { mem::zeroed() };
        let slots = batch
            .arena
            .chunks_exact_mut(batch.slot)
            .zip(batch.addresses.iter_mut())
            .zip(batch.controls.iter_mut());
        let parts = messages.iter_mut().zip(&mut vectors).take(limit);
        for ((message, vector), ((slot, address), control)) in parts.zip(slots) {
            vector.iov_base = slot.as_mut_ptr().cast();
            vector.iov_len = slot.len();
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_name = ptr::from_mut(address).cast();
            message.msg_hdr.msg_namelen = ADDRESS_LENGTH as libc::socklen_t;
            message.msg_hdr.msg_control = ptr::from_mut(control).cast();
            message.msg_hdr.msg_controllen = size_of::<Incoming>() as _;
        }
        let received = loop {
            // SAFETY: each of the messages points to one vector, one slot, one address and one room
            // for control messages of its own, which outlive the call and which nobody else touches meanwhile.
            let received = unsafe {
                libc::recvmmsg(
                    self.as_raw_fd(),
                    messages.as_mut_ptr(),
                    limit as libc::c_uint,
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
        for (message, control) in messages.iter().zip(batch.controls.iter()).take(received) {
            let cut = message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            batch.oversized += u64::from(cut);
            let length = message.msg_len as usize;
            let (segment, ecn) = control.read(message.msg_hdr.msg_controllen as _);
            batch.received.push((!cut).then_some(Arrival {
                length,
                segment: segment.unwrap_or(length),
                ecn,
            }));
        }
        Ok(received)
    }
}
