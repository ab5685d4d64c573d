//! Congestion marks across a tunnel (RFC 6040, normal mode).

use std::cmp::Ordering;

/// What a router says that is congested.
const CE: u8 = 3;
/// No mark, because the sender doesn't know what it means.
const NOT_CAPABLE: u8 = 0;
const CAPABLE_1: u8 = 1;

/// The mark of an inner packet, which the outer header gets (§4.1); none for what is no IP packet.
#[must_use]
pub fn of(packet: &[u8]) -> u8 {
    match packet {
        [first, class, ..] if first >> 4 == 4 => class & 3,
        [first, class, ..] if first >> 4 == 6 => class >> 4 & 3,
        _ => NOT_CAPABLE,
    }
}

/// Gives an inner packet the mark that follows from its own and the outer one (§4.2). False if it
/// must be dropped: a router wanted to drop it, and its sender can't be told otherwise.
pub fn combine(packet: &mut [u8], outer: u8) -> bool {
    let inner = of(packet);
    match (inner, outer) {
        (NOT_CAPABLE, CE) => return false,
        (NOT_CAPABLE | CE, _) | (_, NOT_CAPABLE) => {}
        (_, CE) => set(packet, CE),
        // ECT(1) means more than ECT(0).
        (_, CAPABLE_1) if inner.cmp(&CAPABLE_1) != Ordering::Equal => set(packet, CAPABLE_1),
        _ => {}
    }
    true
}

fn set(packet: &mut [u8], mark: u8) {
    match packet {
        [first, class, ..] if *first >> 4 == 6 => *class = *class & 0xcf | mark << 4,
        [first, class, rest @ ..] if *first >> 4 == 4 => {
            let before = u16::from_be_bytes([*first, *class]);
            *class = *class & 0xfc | mark;
            let after = u16::from_be_bytes([*first, *class]);
            if let Some(sum) = rest
                .get_mut(8..10)
                .and_then(|sum| sum.first_chunk_mut::<2>())
            {
                // RFC 1624, eqn. 3.
                let old = !u16::from_be_bytes(*sum);
                let new = u32::from(old) + u32::from(!before) + u32::from(after);
                let new = (new & 0xffff) + (new >> 16);
                let new = (new & 0xffff) + (new >> 16);
                *sum = (!u16::try_from(new).unwrap_or(u16::MAX)).to_be_bytes();
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(mark: u8) -> Vec<u8> {
        let mut packet = vec![0x45, 0xb8 | mark, 0, 20, 1, 2, 0x40, 0, 63, 17, 0, 0];
        packet.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        let sum = checksum(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    fn checksum(header: &[u8]) -> u16 {
        let sum = header
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum::<u32>();
        let sum = (sum & 0xffff) + (sum >> 16);
        !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
    }

    #[test]
    fn marks_are_combined_as_the_table_says() {
        // RFC 6040 figure 4; rows are inner, columns outer: Not-ECT, ECT(1), ECT(0), CE.
        let table = [
            (0, [Some(0), Some(0), Some(0), None]),
            (2, [Some(2), Some(1), Some(2), Some(3)]),
            (1, [Some(1), Some(1), Some(1), Some(3)]),
            (3, [Some(3), Some(3), Some(3), Some(3)]),
        ];
        for (inner, row) in table {
            for (outer, wanted) in [0, 1, 2, 3].into_iter().zip(row) {
                let mut packet = v4(inner);
                let kept = combine(&mut packet, outer).then(|| of(&packet));
                assert_eq!(kept, wanted, "{inner} in {outer}");
                assert_eq!(checksum(&packet), 0);
                assert_eq!(packet[1] >> 2, 0xb8 >> 2);
                let mut packet = vec![0x6a, 0xbc & 0xcf | inner << 4, 1, 2];
                let kept = combine(&mut packet, outer).then(|| of(&packet));
                assert_eq!(kept, wanted, "{inner} in {outer}");
                assert_eq!(packet[1] & 0xcf, 0xbc & 0xcf);
            }
        }
    }
}
