//! Whose addresses a frame carries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    pub(super) protocol: u8,
}

/// The innermost unencrypted addresses of a frame: inside VLAN tags and IP in IP.
pub(super) fn addresses(frame: &[u8]) -> Option<Addresses> {
    let mut rest = frame.get(12..)?;
    loop {
        let (kind, after) = rest.split_at_checked(2)?;
        match kind {
            [0x81, 0x00] | [0x88, 0xa8] => rest = after.get(2..)?,
            [0x08, 0x00] | [0x86, 0xdd] => return packet_addresses(after, 3),
            _ => return None,
        }
    }
}

fn packet_addresses(packet: &[u8], depth: u8) -> Option<Addresses> {
    let first = *packet.first()?;
    let (found, payload) = match first >> 4 {
        4 => {
            let from: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
            let to: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
            let (from, to) = (Ipv4Addr::from(from).into(), Ipv4Addr::from(to).into());
            let protocol = *packet.get(9)?;
            (
                Addresses { from, to, protocol },
                packet.get(usize::from(first & 15) * 4..),
            )
        }
        6 => {
            let from: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            let to: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            let (from, to) = (Ipv6Addr::from(from).into(), Ipv6Addr::from(to).into());
            (
                Addresses {
                    from,
                    to,
                    protocol: *packet.get(6)?,
                },
                packet.get(40..),
            )
        }
        _ => return None,
    };
    let tunnelled = matches!(found.protocol, 4 | 41) && depth > 0;
    let inner = payload
        .filter(|_| tunnelled)
        .and_then(|inner| packet_addresses(inner, depth - 1));
    Some(inner.unwrap_or(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv4(protocol: u8, from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, protocol, 0, 0];
        packet.extend(from);
        packet.extend(to);
        packet
    }

    fn framed(tags: &[u8], packet: &[u8]) -> Vec<u8> {
        [&[0; 12], tags, &[0x08, 0x00], packet].concat()
    }

    #[test]
    fn addresses_are_found_under_vlan_tags_and_in_tunnels() {
        let inner = ipv4(1, [10, 42, 1, 2], [10, 42, 2, 3]);
        let expected = addresses(&framed(&[], &inner)).expect("plain IPv4");
        assert_eq!(expected.from, "10.42.1.2".parse::<IpAddr>().unwrap());
        let tags = [0x88, 0xa8, 0, 7, 0x81, 0x00, 0, 9];
        assert_eq!(addresses(&framed(&tags, &inner)), Some(expected));
        let tunnel = [ipv4(4, [198, 51, 100, 10], [198, 51, 100, 11]), inner].concat();
        assert_eq!(addresses(&framed(&[], &tunnel)), Some(expected));
    }

    #[test]
    fn a_cut_frame_has_no_addresses() {
        let frame = framed(&[], &ipv4(1, [10, 42, 1, 2], [10, 42, 2, 3]));
        for len in 0..frame.len() {
            assert_eq!(addresses(&frame[..len]), None, "at {len} bytes");
        }
    }
}
