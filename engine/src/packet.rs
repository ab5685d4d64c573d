//! Inner IP packets, read without trust.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IPv6 next header of the tunnels' own messages (RFC 3692 §2.1, "use for experimentation").
pub const CONTROL_PROTOCOL: u8 = 253;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

/// What the fast half needs of a packet's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// From.
    pub source: IpAddr,
    /// To.
    pub destination: IpAddr,
    /// IPv4 protocol or IPv6 next header.
    pub protocol: u8,
    /// Bytes of the whole packet as its header says; never more than there are.
    pub length: usize,
}

impl Header {
    /// Reads the header of a packet; `None` if version or lengths are wrong.
    #[must_use]
    pub fn parse(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::parse_v4(packet),
            6 => Self::parse_v6(packet),
            _ => None,
        }
    }

    fn parse_v4(packet: &[u8]) -> Option<Self> {
        let header = packet.first_chunk::<IPV4_HEADER>()?;
        let [
            first,
            _,
            l0,
            l1,
            _,
            _,
            _,
            _,
            _,
            protocol,
            _,
            _,
            s0,
            s1,
            s2,
            s3,
            d0,
            d1,
            d2,
            d3,
        ] = *header;
        let header_length = usize::from(first & 0x0f) * 4;
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        (IPV4_HEADER..=length)
            .contains(&header_length)
            .then_some(())?;
        (length <= packet.len()).then_some(Self {
            source: Ipv4Addr::new(s0, s1, s2, s3).into(),
            destination: Ipv4Addr::new(d0, d1, d2, d3).into(),
            protocol,
            length,
        })
    }

    fn parse_v6(packet: &[u8]) -> Option<Self> {
        let header = packet.first_chunk::<IPV6_HEADER>()?;
        let (fixed, addresses) = header.split_first_chunk::<8>()?;
        let (source, rest) = addresses.split_first_chunk::<16>()?;
        let destination = rest.first_chunk::<16>()?;
        let [_, _, _, _, l0, l1, protocol, _] = *fixed;
        let length = IPV6_HEADER + usize::from(u16::from_be_bytes([l0, l1]));
        (length <= packet.len()).then_some(Self {
            source: Ipv6Addr::from(*source).into(),
            destination: Ipv6Addr::from(*destination).into(),
            protocol,
            length,
        })
    }

    /// Whether this is a message of the tunnels' own.
    #[must_use]
    pub fn is_control(&self) -> bool {
        self.protocol == CONTROL_PROTOCOL && self.source.is_ipv6()
    }

    /// Whether both addresses are of a kind that a mesh may carry.
    #[must_use]
    pub fn is_routable(&self) -> bool {
        may_be_routed(self.source) && may_be_routed(self.destination)
    }
}

/// Whether packets from or to `address` may ever be in a tunnel: not loopback, multicast, broadcast,
/// unspecified, link-local, reserved, nor IPv4 in the clothes of IPv6.
#[must_use]
pub fn may_be_routed(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => {
            let [first, ..] = ip.octets();
            !(first == 0 || first == 127 || first >= 224 || ip.is_link_local())
        }
        IpAddr::V6(ip) => {
            !(ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_unicast_link_local()
                || ip.to_ipv4().is_some())
        }
    }
}

/// An IPv6 packet of the tunnels' own, with `payload` inside.
#[must_use]
pub fn control_packet(source: Ipv6Addr, destination: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX);
    let payload = payload.get(..usize::from(length)).unwrap_or(payload);
    let [l0, l1] = length.to_be_bytes();
    let mut packet = Vec::with_capacity(IPV6_HEADER + payload.len());
    packet.extend_from_slice(&[0x60, 0, 0, 0, l0, l1, CONTROL_PROTOCOL, 1]);
    packet.extend_from_slice(&source.octets());
    packet.extend_from_slice(&destination.octets());
    packet.extend_from_slice(payload);
    packet
}

/// The payload of a packet that [`control_packet`] made.
#[must_use]
pub fn control_payload(packet: &[u8]) -> Option<&[u8]> {
    let header = Header::parse(packet).filter(Header::is_control)?;
    packet.get(IPV6_HEADER..header.length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_packets_are_read_back() {
        let (a, b) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        let packet = control_packet(a, b, b"echo");
        let header = Header::parse(&packet).unwrap();
        assert_eq!((header.source, header.destination), (a.into(), b.into()));
        assert!(header.is_control() && header.is_routable());
        assert_eq!(control_payload(&packet), Some(b"echo".as_slice()));
        for cut in 0..packet.len() {
            assert_eq!(Header::parse(&packet[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn any_first_byte_and_length_is_survived() {
        for first in 0..=255 {
            for length in 0..80 {
                let mut packet = vec![0xff; length];
                if let Some(byte) = packet.first_mut() {
                    *byte = first;
                }
                assert_eq!(Header::parse(&packet), None, "{first:#x} {length}");
            }
        }
    }
}
