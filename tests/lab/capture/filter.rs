//! What the kernel lets through to a capture: next to nothing, so that listening costs next to
//! nothing.
//!
//! A frame passes if an outer address of it lies in a watched range, or if it may hide another
//! packet (VLAN tags, IP in IP), which [`super::frame`] then takes apart.

use std::io;

use ipnet::IpNet;

use crate::sys::FilterStep;

/// Bytes of each frame that are kept: Ethernet, VLAN tags and three IP headers fit.
pub(super) const HEADERS: u32 = 192;

const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// `SKF_AD_OFF + SKF_AD_IFINDEX` of linux/filter.h, as the kernel's u32.
const INTERFACE_INDEX: u32 = (-0x1000_i32 + 8).cast_unsigned();

const ETHERTYPE: u32 = 12;
const PROTOCOL_V4: u32 = 23;
const ADDRESSES_V4: [u32; 2] = [26, 30];
const PROTOCOL_V6: u32 = 20;
const ADDRESSES_V6: [u32; 2] = [22, 38];

/// IP in IP, and IPv6 in IP.
const TUNNELS: [u32; 2] = [4, 41];

/// The filter for these ranges, blind for the interfaces in `skipped`.
pub(super) fn program(ranges: &[IpNet], skipped: &[u32]) -> io::Result<Vec<FilterStep>> {
    let mut steps = vec![step(LOAD_WORD, INTERFACE_INDEX)];
    for index in skipped {
        steps.extend([unless_equal(*index, 1), step(RETURN, 0)]);
    }
    steps.push(step(LOAD_HALF, ETHERTYPE));
    for tagged in [0x8100, 0x88a8] {
        steps.extend([unless_equal(tagged, 1), step(RETURN, HEADERS)]);
    }
    let (v4, v6): (Vec<IpNet>, Vec<IpNet>) =
        ranges.iter().partition(|range| range.addr().is_ipv4());
    let families = [
        (0x0800, PROTOCOL_V4, ADDRESSES_V4, v4),
        (0x86dd, PROTOCOL_V6, ADDRESSES_V6, v6),
    ];
    for (ethertype, protocol, addresses, ranges) in families {
        let block = family(protocol, addresses, &ranges)?;
        let length = u32::try_from(block.len()).map_err(io::Error::other)?;
        steps.extend([
            unless_equal(ethertype, 1),
            step(JUMP, 1),
            step(JUMP, length),
        ]);
        steps.extend(block);
    }
    steps.push(step(RETURN, 0));
    Ok(steps)
}

fn family(protocol: u32, addresses: [u32; 2], ranges: &[IpNet]) -> io::Result<Vec<FilterStep>> {
    let mut steps = vec![step(LOAD_BYTE, protocol)];
    for tunnel in TUNNELS {
        steps.extend([unless_equal(tunnel, 1), step(RETURN, HEADERS)]);
    }
    for (range, at) in ranges
        .iter()
        .flat_map(|range| addresses.map(|at| (range, at)))
    {
        steps.extend(address_in(range, at)?);
    }
    steps.push(step(RETURN, 0));
    Ok(steps)
}

/// Passes the frame if the address at this offset lies in the range, goes on otherwise.
fn address_in(range: &IpNet, at: u32) -> io::Result<Vec<FilterStep>> {
    let words = words(range);
    // Three steps for each word, and one that passes.
    let length = 3 * words.len() + 1;
    let mut steps = Vec::new();
    for (place, (mask, network)) in (0_u32..).zip(words) {
        steps.extend([step(LOAD_WORD, at + 4 * place), step(AND, mask)]);
        let rest = u8::try_from(length - steps.len() - 1).map_err(io::Error::other)?;
        steps.push(unless_equal(network, rest));
    }
    steps.push(step(RETURN, HEADERS));
    Ok(steps)
}

/// Mask and network of a range, in words of four bytes as far as the mask goes.
fn words(range: &IpNet) -> Vec<(u32, u32)> {
    let (mask, network) = match range {
        IpNet::V4(range) => (
            range.netmask().octets().to_vec(),
            range.network().octets().to_vec(),
        ),
        IpNet::V6(range) => (
            range.netmask().octets().to_vec(),
            range.network().octets().to_vec(),
        ),
    };
    let word = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0, |word, byte| word << 8 | u32::from(*byte))
    };
    let pairs = mask.chunks(4).zip(network.chunks(4));
    pairs
        .map(|(mask, network)| (word(mask), word(network)))
        .take_while(|(mask, _)| *mask != 0)
        .collect()
}

fn step(code: u16, k: u32) -> FilterStep {
    FilterStep {
        code,
        jump_true: 0,
        jump_false: 0,
        k,
    }
}

fn unless_equal(k: u32, jump_false: u8) -> FilterStep {
    FilterStep {
        jump_false,
        ..step(JUMP_IF_EQUAL, k)
    }
}

#[cfg(test)]
mod tests {
    use super::super::MESH_RANGES;
    use super::*;

    /// What the kernel's interpreter makes of a frame.
    fn run(program: &[FilterStep], interface: u32, frame: &[u8]) -> u32 {
        let (mut at, mut a) = (0, 0);
        let load = |from: u32, count: usize| {
            let bytes = frame.get(from as usize..)?.get(..count)?;
            Some(
                bytes
                    .iter()
                    .fold(0, |word, byte| word << 8 | u32::from(*byte)),
            )
        };
        loop {
            let FilterStep {
                code,
                jump_true,
                jump_false,
                k,
            } = program[at];
            at += 1;
            let loaded = match code {
                LOAD_WORD if k == INTERFACE_INDEX => Some(interface),
                LOAD_WORD => load(k, 4),
                LOAD_HALF => load(k, 2),
                LOAD_BYTE => load(k, 1),
                AND => Some(a & k),
                _ => Some(a),
            };
            let Some(loaded) = loaded else { return 0 };
            a = loaded;
            match code {
                JUMP => at += k as usize,
                JUMP_IF_EQUAL => at += usize::from(if a == k { jump_true } else { jump_false }),
                RETURN => return k,
                _ => {}
            }
        }
    }

    fn mesh() -> Vec<FilterStep> {
        let ranges: Vec<IpNet> = MESH_RANGES.map(|range| range.parse().unwrap()).into();
        program(&ranges, &[7, 8]).expect("a program")
    }

    fn framed(ethertype: u16, packet: &[u8]) -> Vec<u8> {
        [&[0; 12], ethertype.to_be_bytes().as_slice(), packet].concat()
    }

    fn ipv4(protocol: u8, from: &str, to: &str) -> Vec<u8> {
        let octets = |text: &str| text.parse::<std::net::Ipv4Addr>().unwrap().octets();
        let mut packet = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, protocol, 0, 0];
        packet.extend(octets(from));
        packet.extend(octets(to));
        framed(0x0800, &packet)
    }

    fn ipv6(next: u8, from: &str, to: &str) -> Vec<u8> {
        let octets = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        packet.extend(octets(from));
        packet.extend(octets(to));
        framed(0x86dd, &packet)
    }

    #[test]
    fn what_could_be_of_the_mesh_passes_and_nothing_else() {
        let program = mesh();
        let passing = [
            ipv4(17, "10.77.0.1", "198.51.100.1"),
            ipv4(17, "198.51.100.1", "10.77.255.255"),
            ipv4(6, "198.51.100.1", "10.42.3.4"),
            ipv4(4, "198.51.100.1", "198.51.100.2"),
            ipv4(41, "198.51.100.1", "198.51.100.2"),
            ipv6(17, "fd12:3456::1", "2001:db8::1"),
            ipv6(17, "2001:db8::1", "fd00::1"),
            ipv6(41, "2001:db8::1", "2001:db8::2"),
            framed(0x8100, &[0, 7, 8, 0]),
            framed(0x88a8, &[0, 7, 8, 0]),
        ];
        for frame in passing {
            assert_eq!(run(&program, 3, &frame), HEADERS, "{frame:?}");
            assert_eq!(run(&program, 8, &frame), 0, "of a skipped interface");
        }
        let stopped = [
            ipv4(17, "10.76.255.255", "10.78.0.0"),
            ipv4(17, "198.51.100.1", "203.0.113.10"),
            ipv6(17, "fe80::1", "ff02::1"),
            ipv6(17, "2001:db8::1", "2001:db8::2"),
            framed(0x0806, &[0, 1, 8, 0, 6, 4]),
            vec![0; 10],
        ];
        for frame in stopped {
            assert_eq!(run(&program, 3, &frame), 0, "{frame:?}");
        }
    }

    #[test]
    fn long_prefixes_are_compared_to_their_end() {
        let range = "fd12:3456:789a:1007::/64".parse().unwrap();
        let program = program(&[range], &[]).expect("a program");
        let inside = ipv6(17, "2001:db8::1", "fd12:3456:789a:1007:1::2");
        let beside = ipv6(17, "2001:db8::1", "fd12:3456:789a:1008::2");
        assert_eq!(run(&program, 3, &inside), HEADERS);
        assert_eq!(run(&program, 3, &beside), 0);
    }
}
