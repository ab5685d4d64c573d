//! From the TUN: super-packets of TCP are cut, without a copy of what they carry.

use std::io::IoSlice;

use crate::sys::{HEADER, Socket};

/// Segments of one send.
const MAX_SEGMENTS: usize = 64;
const LONGEST_HEADERS: usize = 20 + 60;
const GSO_TCP4: u8 = 1;
const GSO_ECN: u8 = 0x80;
const NEEDS_CHECKSUM: u8 = 1;
const FIN_AND_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// Room for the headers of the segments of one send.
pub(crate) struct Headers([[u8; LONGEST_HEADERS]; MAX_SEGMENTS]);

impl Default for Headers {
    fn default() -> Self {
        Self([[0; LONGEST_HEADERS]; MAX_SEGMENTS])
    }
}

/// Sends what was read, cut if need be.
pub(crate) fn send(read: &mut [u8], headers: &mut Headers, socket: &Socket) {
    if read.len() < HEADER + 40 {
        return;
    }
    let (virtio, packet) = read.split_at_mut(HEADER);
    if packet[0] >> 4 != 4 {
        return;
    }
    if virtio[1] & !GSO_ECN == GSO_TCP4 {
        cut(
            packet,
            usize::from(u16_at(virtio, 4, u16::from_ne_bytes)),
            headers,
            socket,
        );
        return;
    }
    if virtio[0] & NEEDS_CHECKSUM != 0 {
        let start = usize::from(u16_at(virtio, 6, u16::from_ne_bytes));
        let at = start + usize::from(u16_at(virtio, 8, u16::from_ne_bytes));
        if at + 2 <= packet.len() {
            let checksum = !sum(&packet[start..], 0);
            put(packet, at, if checksum == 0 { 0xffff } else { checksum });
        }
    }
    socket.send(&[IoSlice::new(packet)], None);
}

fn cut(packet: &[u8], size: usize, headers: &mut Headers, socket: &Socket) {
    let length = 20 + usize::from(packet[32] >> 4) * 4;
    let Some((header, mut payload)) = packet.split_at_checked(length) else {
        return;
    };
    let full = length + size;
    let at_once = (65_000 / full.max(1)).clamp(1, MAX_SEGMENTS);
    let (mut id, mut done) = (u16_at(header, 4, u16::from_be_bytes), 0_u32);
    let sequence = u32::from_be_bytes([header[24], header[25], header[26], header[27]]);
    while !payload.is_empty() {
        let mut parts = [IoSlice::new(&[]); 2 * MAX_SEGMENTS];
        let mut count = 0;
        for space in headers.0.iter_mut().take(at_once) {
            if payload.is_empty() {
                break;
            }
            let (mine, rest) = payload.split_at(size.clamp(1, payload.len()));
            payload = rest;
            let head = &mut space[..length];
            head.copy_from_slice(header);
            put(head, 4, id);
            id = id.wrapping_add(1);
            head[24..28].copy_from_slice(&sequence.wrapping_add(done).to_be_bytes());
            // The end, and the wish to be read at once, belong to the last one alone; that the
            // window was made smaller, to the first one.
            head[33] &= if payload.is_empty() { !0 } else { !FIN_AND_PSH };
            head[33] &= if done == 0 { !0 } else { !CWR };
            finish_ip(head, length + mine.len());
            done += u32::try_from(mine.len()).unwrap_or(0);
            parts[2 * count + 1] = IoSlice::new(mine);
            count += 1;
        }
        for (part, head) in parts
            .iter_mut()
            .step_by(2)
            .zip(headers.0.iter().take(count))
        {
            *part = IoSlice::new(&head[..length]);
        }
        let segment = u16::try_from(full).ok().filter(|_| count > 1);
        socket.send(&parts[..2 * count], segment);
    }
}

/// Sets the length and checksum of an IPv4 header.
pub(crate) fn finish_ip(header: &mut [u8], length: usize) {
    put(header, 2, u16::try_from(length).unwrap_or(u16::MAX));
    put(header, 10, 0);
    let checksum = !sum(&header[..20], 0);
    put(header, 10, checksum);
}

/// The Internet checksum's sum (RFC 1071), starting from `start`.
pub(crate) fn sum(bytes: &[u8], start: u32) -> u16 {
    let mut words = bytes.chunks_exact(2);
    let mut sum = u64::from(start);
    for word in &mut words {
        sum += u64::from(u16::from_be_bytes([word[0], word[1]]));
    }
    if let [last] = words.remainder() {
        sum += u64::from(u16::from_be_bytes([*last, 0]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(0)
}

pub(crate) fn u16_at(bytes: &[u8], at: usize, read: fn([u8; 2]) -> u16) -> u16 {
    read([bytes[at], bytes[at + 1]])
}

pub(crate) fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
