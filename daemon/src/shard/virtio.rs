//! The kernel's words for super-packets (virtio 1.2, 5.1.6) and the engine's.

use podmesh_engine::offload::{ChecksumGap, Cut, Merged, Offload, SegmentKind};
use podmesh_kernel::tun::VnetHeader;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
/// Beside one of the others: the first segment carries a congestion mark of TCP.
const GSO_ECN: u8 = 0x80;
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;

/// What has to be done to a packet that the kernel gave; none if it says what nobody knows.
pub(super) fn offload(header: VnetHeader) -> Option<Offload> {
    let kind = match header.gso_type & !GSO_ECN {
        GSO_NONE => None,
        GSO_TCP4 => Some(SegmentKind::Tcp4),
        GSO_TCP6 => Some(SegmentKind::Tcp6),
        GSO_UDP => Some(SegmentKind::Udp),
        _ => return None,
    };
    let gap = ChecksumGap {
        start: header.checksum_start,
        offset: header.checksum_offset,
    };
    Some(Offload {
        checksum: (header.flags & NEEDS_CHECKSUM != 0).then_some(gap),
        cut: kind.map(|kind| Cut {
            kind,
            size: header.segment_size,
        }),
    })
}

/// How the kernel is told of several packets in one piece.
pub(super) fn header(merged: Merged) -> VnetHeader {
    let (gso_type, checksum_offset) = match merged.kind {
        SegmentKind::Tcp4 => (GSO_TCP4, TCP_CHECKSUM),
        SegmentKind::Tcp6 => (GSO_TCP6, TCP_CHECKSUM),
        SegmentKind::Udp => (GSO_UDP, UDP_CHECKSUM),
    };
    VnetHeader {
        flags: NEEDS_CHECKSUM,
        gso_type,
        header_length: merged.headers,
        segment_size: merged.size,
        checksum_start: merged.transport,
        checksum_offset,
    }
}
