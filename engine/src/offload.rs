//! Super-packets: what the kernel leaves undone on packets that it hands over, and what it does with
//! packets that are handed to it in one piece.
//!
//! A TUN with offloads gives up to 64 KiB of one TCP or UDP flow with a single header, and takes the
//! same. [`Segments`] cuts such a packet into those that go through a tunnel; [`Merger`] puts packets
//! of a flow together again. Both only look at headers and sums: no I/O, no allocation per packet.

mod checksum;
mod merge;
mod segment;

pub use merge::{Merge, Merged, Merger, Run};
pub use segment::{NotCuttable, Segments};

/// What is still to be done to a packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offload {
    /// Its transport checksum is missing.
    pub checksum: Option<ChecksumGap>,
    /// It has to be cut.
    pub cut: Option<Cut>,
}

impl Offload {
    /// About how many packets one of `length` bytes becomes.
    #[must_use]
    pub fn segments(&self, length: usize) -> usize {
        self.cut
            .map_or(1, |cut| length.div_ceil(usize::from(cut.size.max(1))))
    }
}

/// Where a checksum is missing. Its field holds the sum of the pseudo header already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChecksumGap {
    /// The sum begins at this byte of the packet, which is where the transport header begins.
    pub start: u16,
    /// It belongs to this byte, counted from `start`.
    pub offset: u16,
}

/// How a packet is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// What the segments are.
    pub kind: SegmentKind,
    /// Bytes of payload in each but the last.
    pub size: u16,
}

/// What a super-packet is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either.
    Udp,
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;

#[cfg(test)]
mod tests;
