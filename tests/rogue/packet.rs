//! Inner packets with any addresses that one likes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, bail};

/// Next header of the tunnels' own messages.
pub(crate) const CONTROL: u8 = 253;
const UDP: u8 = 17;
const HOP_LIMIT: u8 = 64;

/// A UDP packet to `port` with `text` inside.
pub(crate) fn udp(source: IpAddr, destination: IpAddr, port: u16, text: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(8 + text.len())?;
    let mut datagram = Vec::new();
    for field in [port, port, length, 0] {
        datagram.extend(field.to_be_bytes());
    }
    datagram.extend_from_slice(text);
    let sum = checksum(&[&pseudo_header(source, destination, length), &datagram]);
    if let Some(field) = datagram.get_mut(6..8) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => v4(source, destination, &datagram),
        (IpAddr::V6(source), IpAddr::V6(destination)) => v6(source, destination, UDP, &datagram),
        _ => bail!("{source} and {destination} are of two families"),
    }
}

/// A message of the tunnels' own.
pub(crate) fn control(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> Result<Vec<u8>> {
    v6(source, destination, CONTROL, message)
}

/// Source, destination and next protocol of a packet.
pub(crate) fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr, u8)> {
    let octets4 = |at: usize| packet.get(at..at + 4)?.first_chunk::<4>().copied();
    let octets6 = |at: usize| packet.get(at..at + 16)?.first_chunk::<16>().copied();
    match packet.first()? >> 4 {
        4 => Some((octets4(12)?.into(), octets4(16)?.into(), *packet.get(9)?)),
        6 => Some((octets6(8)?.into(), octets6(24)?.into(), *packet.get(6)?)),
        _ => None,
    }
}

fn v4(source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(20 + payload.len())?;
    let [high, low] = length.to_be_bytes();
    let mut packet = vec![0x45, 0, high, low, 0, 0, 0, 0, HOP_LIMIT, UDP, 0, 0];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let sum = checksum(&[&packet]);
    if let Some(field) = packet.get_mut(10..12) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    packet.extend_from_slice(payload);
    Ok(packet)
}

fn v6(source: Ipv6Addr, destination: Ipv6Addr, next: u8, payload: &[u8]) -> Result<Vec<u8>> {
    let [high, low] = u16::try_from(payload.len())?.to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, high, low, next, HOP_LIMIT];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend_from_slice(payload);
    Ok(packet)
}

/// RFC 768, and RFC 8200 §8.1, whose sum is the same.
fn pseudo_header(source: IpAddr, destination: IpAddr, length: u16) -> Vec<u8> {
    let mut header = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => header.extend(address.octets()),
            IpAddr::V6(address) => header.extend(address.octets()),
        }
    }
    header.extend([0, UDP]);
    header.extend(length.to_be_bytes());
    header
}

/// The internet checksum (RFC 1071) of parts of even length but for the last.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        for pair in part.chunks(2) {
            let high = u64::from(pair.first().copied().unwrap_or(0)) << 8;
            sum += high + u64::from(pair.get(1).copied().unwrap_or(0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // Zero means "none" to UDP.
    match !u16::try_from(sum).unwrap_or(0) {
        0 => 0xffff,
        sum => sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_say_what_they_were_told_and_their_checksums_hold() {
        let pairs = [("10.77.0.1", "10.42.3.9"), ("fd00::1", "fd00::2:3")];
        for (source, destination) in pairs {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            let packet = udp(source, destination, 4_242, b"odd").unwrap();
            assert_eq!(addresses(&packet), Some((source, destination, UDP)));
            let datagram = &packet[if source.is_ipv4() { 20 } else { 40 }..];
            let header = pseudo_header(source, destination, 11);
            assert_eq!(checksum(&[&header, datagram]), 0xffff, "sums up to nothing");
        }
        let control = control("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap(), b"x");
        assert_eq!(addresses(&control.unwrap()).unwrap().2, CONTROL);
        assert_eq!(addresses(&[0x45; 3]), None);
    }
}
