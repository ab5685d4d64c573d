//! A network in memory for the tests of this crate: an operator, one planet's behaviour towards
//! nodes, and engines on a wire with 10 ms of delay.

mod authority;
mod planet;
mod world;

use std::net::Ipv4Addr;

use ipnet::IpNet;

use podmesh_proto::id::Name;
use podmesh_proto::time::UnixSeconds;

pub(crate) use authority::{Authority, Draft, Keys};
pub(crate) use world::{Fault, World};

pub(crate) const START: UnixSeconds = UnixSeconds(1_800_000_000);

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// An IPv4 packet with this payload.
pub(crate) fn packet4(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    let (source, destination): (Ipv4Addr, Ipv4Addr) =
        (source.parse().unwrap(), destination.parse().unwrap());
    let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut packet = vec![0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    packet
}
