//! To the TUN: segments of one flow that came together are put together again.

use std::io::IoSlice;

use crate::segment::{finish_ip, put, sum, u16_at};
use crate::sys::{HEADER, Tun};

const MAX_PARTS: usize = 64;
const MAX_LENGTH: usize = 65_000;
const NEEDS_CHECKSUM: u8 = 1;
const GSO_TCP4: u8 = 1;
const PSH: u8 = 0x08;
const ACK_AND_PSH: u8 = 0x18;
const TCP: u8 = 6;

/// Segments that belong together.
pub(crate) struct Run<'a> {
    first: &'a mut [u8],
    /// Payloads of the others.
    more: [&'a [u8]; MAX_PARTS],
    count: usize,
    /// Bytes of the headers, 0 if nothing can be joined.
    headers: usize,
    segment: usize,
    length: usize,
    next: u32,
    closed: bool,
    pushes: bool,
}

impl<'a> Run<'a> {
    pub(crate) fn new(first: &'a mut [u8]) -> Self {
        let headers = headers_of(first);
        let segment = first.len() - headers.min(first.len());
        let flags = if headers > 0 { first[33] } else { 0 };
        let joins = headers > 0 && segment > 0 && flags & !ACK_AND_PSH == 0;
        let length = u32::try_from(segment).unwrap_or(0);
        Self {
            next: if headers > 0 {
                u32_at(first, 24).wrapping_add(length)
            } else {
                0
            },
            length: first.len(),
            closed: !joins || flags & PSH != 0,
            pushes: false,
            first,
            more: [&[]; MAX_PARTS],
            count: 0,
            headers,
            segment,
        }
    }

    /// Takes the next segment of the flow; gives it back if it isn't that.
    pub(crate) fn join(&mut self, packet: &'a mut [u8]) -> Result<(), &'a mut [u8]> {
        let headers = headers_of(packet);
        let payload = packet.len() - headers.min(packet.len());
        let fits = !self.closed
            && headers == self.headers
            && payload > 0
            && payload <= self.segment
            && self.count < MAX_PARTS
            && self.length + payload < MAX_LENGTH
            && u32_at(packet, 24) == self.next
            && packet[33] & !ACK_AND_PSH == 0
            && packet[12..24] == self.first[12..24]
            && packet[28..32] == self.first[28..32]
            && packet[34..36] == self.first[34..36]
            && packet[40..headers] == self.first[40..headers];
        if !fits {
            return Err(packet);
        }
        self.pushes = packet[33] & PSH != 0;
        self.closed = self.pushes || payload < self.segment;
        self.next = self.next.wrapping_add(u32::try_from(payload).unwrap_or(0));
        self.length += payload;
        self.more[self.count] = &packet[headers..];
        self.count += 1;
        Ok(())
    }

    pub(crate) fn write(self, tun: &Tun) {
        let mut virtio = [0_u8; HEADER];
        if self.headers > 0 {
            virtio[0] = NEEDS_CHECKSUM;
            set(&mut virtio, 2, self.headers);
            set(&mut virtio, 6, 20);
            set(&mut virtio, 8, 16);
            if self.count > 0 {
                virtio[1] = GSO_TCP4;
                set(&mut virtio, 4, self.segment);
                finish_ip(self.first, self.length);
                self.first[33] |= if self.pushes { PSH } else { 0 };
            }
            // The pseudo-header's share, as a card expects it that fills the checksum in.
            let protocol_and_length = u32::from(TCP) + u32::try_from(self.length - 20).unwrap_or(0);
            let partial = sum(&self.first[12..20], protocol_and_length);
            put(self.first, 36, partial);
        }
        let mut parts = [IoSlice::new(&[]); MAX_PARTS + 2];
        parts[0] = IoSlice::new(&virtio);
        parts[1] = IoSlice::new(self.first);
        for (part, more) in parts[2..].iter_mut().zip(&self.more) {
            *part = IoSlice::new(more);
        }
        tun.write(&parts[..self.count + 2]);
    }
}

/// Bytes of the headers of a plain TCP segment over IPv4, 0 for anything else.
fn headers_of(packet: &[u8]) -> usize {
    if packet.len() < 40 || packet[0] != 0x45 || packet[9] != TCP {
        return 0;
    }
    let headers = 20 + usize::from(packet[32] >> 4) * 4;
    if headers > packet.len() { 0 } else { headers }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at, u16::from_be_bytes)) << 16
        | u32::from(u16_at(bytes, at + 2, u16::from_be_bytes))
}

fn set(virtio: &mut [u8; HEADER], at: usize, value: usize) {
    let value = u16::try_from(value).unwrap_or(0);
    virtio[at..at + 2].copy_from_slice(&value.to_ne_bytes());
}
