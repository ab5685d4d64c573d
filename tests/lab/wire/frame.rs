//! Ethernet frames as a router sees them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ETHERNET: usize = 14;

/// A hardware address in the usual notation.
pub(super) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The destination of an IP packet in a frame; nothing for ARP, multicast or a cut frame.
pub(super) fn destination(frame: &[u8]) -> Option<IpAddr> {
    let address = match frame.get(12..ETHERNET)? {
        [0x08, 0x00] => {
            let bytes: [u8; 4] = frame.get(30..34)?.try_into().ok()?;
            IpAddr::V4(Ipv4Addr::from(bytes))
        }
        [0x86, 0xdd] => {
            let bytes: [u8; 16] = frame.get(38..54)?.try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    (!address.is_multicast()).then_some(address)
}

/// Lowers the TTL or hop limit as a router does. False if the packet ends here.
pub(super) fn pass_one_hop(frame: &mut [u8]) -> bool {
    match frame.get(12..ETHERNET) {
        Some([0x08, 0x00]) => {
            let Some([ttl, _, high, low]) = frame.get_mut(22..26) else {
                return false;
            };
            if *ttl <= 1 {
                return false;
            }
            *ttl -= 1;
            // RFC 1141: one less in the high byte of a word is 0x0100 more in the checksum.
            let (sum, carry) = u16::from_be_bytes([*high, *low]).overflowing_add(0x0100);
            [*high, *low] = (sum + u16::from(carry)).to_be_bytes();
            true
        }
        Some([0x86, 0xdd]) => match frame.get_mut(21) {
            Some(hop_limit) if *hop_limit > 1 => {
                *hop_limit -= 1;
                true
            }
            _ => false,
        },
        _ => false,
    }
}

/// Addresses the frame to the next station on its way.
pub(super) fn address_to(frame: &mut [u8], station: [u8; 6]) {
    const CORE: [u8; 6] = [0x02, 0x00, 0x5e, 0x00, 0x00, 0x01];
    if let Some(head) = frame.get_mut(..12) {
        let (destination, source) = head.split_at_mut(6);
        destination.copy_from_slice(&station);
        source.copy_from_slice(&CORE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv4_frame(ttl: u8) -> Vec<u8> {
        let mut frame = vec![0; ETHERNET];
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        let header = [
            0x45, 0, 0, 20, 0, 1, 0, 0, ttl, 17, 0, 0, 198, 51, 100, 10, 203, 0, 113, 10,
        ];
        frame.extend(header);
        let sum = checksum(&frame[ETHERNET..]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    fn checksum(header: &[u8]) -> u16 {
        let mut sum: u32 = header
            .chunks(2)
            .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
            .sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_header_checksum_stays_right_over_every_hop() {
        let mut frame = ipv4_frame(255);
        for _ in 0..254 {
            assert!(pass_one_hop(&mut frame));
            assert_eq!(
                checksum(&frame[ETHERNET..]),
                0,
                "sum over a right header is zero"
            );
        }
        assert!(
            !pass_one_hop(&mut frame),
            "a packet with TTL 1 goes no further"
        );
    }

    #[test]
    fn only_unicast_ip_has_a_destination() {
        let mut frame = ipv4_frame(64);
        assert_eq!(destination(&frame), Some("203.0.113.10".parse().unwrap()));
        frame[30] = 224;
        assert_eq!(destination(&frame), None);
        frame[13] = 6;
        assert_eq!(
            destination(&frame),
            None,
            "ARP is none of the core's business"
        );
    }
}
