//! Control messages of datagrams: how they are cut, and how congested their way is.
#![allow(unsafe_code, reason = "control messages are laid out by hand")]

use std::mem;
use std::net::SocketAddr;

use super::runs::SendRun;

/// `UDP_SEGMENT` and `UDP_GRO` of the level `SOL_UDP` (linux/udp.h).
const SOL_UDP: libc::c_int = 17;
pub(super) const UDP_SEGMENT: (libc::c_int, libc::c_int) = (SOL_UDP, 103);
pub(super) const UDP_GRO: (libc::c_int, libc::c_int) = (SOL_UDP, 104);

/// A control message with four bytes of data, laid out as CMSG_SPACE(4) is.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct FourBytes {
    header: libc::cmsghdr,
    value: [u8; 4],
}

impl FourBytes {
    // SAFETY: only integers, for which zeroes are valid.
    pub(super) const EMPTY: Self = unsafe { mem::zeroed() };

    pub(super) fn set(&mut self, kind: (libc::c_int, libc::c_int), value: &[u8]) {
        // The value's own bytes, without the padding behind it, as CMSG_LEN.
        self.header.cmsg_len = (mem::offset_of!(Self, value) + value.len()) as _;
        (self.header.cmsg_level, self.header.cmsg_type) = kind;
        for (to, from) in self.value.iter_mut().zip(value) {
            *to = *from;
        }
    }
}

/// What goes with a run.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Outgoing([FourBytes; 2]);

impl Outgoing {
    pub(super) const EMPTY: Self = Self([FourBytes::EMPTY; 2]);

    /// The number of bytes that are meant.
    pub(super) fn set(&mut self, run: &SendRun<'_>) -> usize {
        let mut messages = self.0.iter_mut();
        let mut length = 0;
        let segment = u16::try_from(run.segment).ok();
        if let Some(segment) = segment.filter(|_| run.count() > 1)
            && let Some(message) = messages.next()
        {
            message.set(UDP_SEGMENT, &segment.to_ne_bytes());
            length += size_of::<FourBytes>();
        }
        if run.ecn != 0
            && let Some(message) = messages.next()
        {
            let value = libc::c_int::from(run.ecn & 3).to_ne_bytes();
            message.set(traffic_class(run.to), &value);
            length += size_of::<FourBytes>();
        }
        length
    }
}

fn traffic_class(to: SocketAddr) -> (libc::c_int, libc::c_int) {
    if to.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_TOS)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)
    }
}

/// Room for what comes with a datagram.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Incoming([FourBytes; 3]);

impl Incoming {
    pub(super) const EMPTY: Self = Self([FourBytes::EMPTY; 3]);

    /// Bytes per datagram, if several arrived in one piece, and the congestion marking; of as many
    /// bytes as the kernel has written.
    pub(super) fn read(&self, written: usize) -> (Option<usize>, u8) {
        let (mut segment, mut ecn) = (None, 0);
        let mut left = written;
        for message in &self.0 {
            if left < size_of::<libc::cmsghdr>() {
                break;
            }
            left = left.saturating_sub(size_of::<FourBytes>());
            let [first, ..] = message.value;
            match (message.header.cmsg_level, message.header.cmsg_type) {
                UDP_GRO => segment = usize::try_from(i32::from_ne_bytes(message.value)).ok(),
                // The one is a byte, the other an int in the machine's order; the bits are the
                // lowest.
                (libc::IPPROTO_IP, libc::IP_TOS) => ecn = first & 3,
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    ecn = i32::from_ne_bytes(message.value).to_le_bytes()[0] & 3;
                }
                _ => {}
            }
        }
        (segment.filter(|segment| *segment > 0), ecn)
    }
}
