//! The kernel's memory of connections: what it decided about the first packet of a connection holds
//! for all later ones, whatever the rules say by then.

use std::{collections::HashSet, io, net::IpAddr};

use ipnet::IpNet;

use crate::blocking_netlink::{Attributes, Conversation, Message, Reply};

use super::{GuardRules, rules};

/// Connections that are forgotten in one go at most; the next go takes more.
pub const MOST_STRAYS: usize = 16_384;

const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;
const HEADER_BYTES: usize = 4;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_STATUS_MASK: u16 = 26;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const IPPROTO_UDP: u8 = 17;
/// Sources of IPv4 and IPv6; a destination has the next number.
const CTA_IP: [u16; 2] = [1, 3];
/// "The source is translated", among the bits of the status.
const SOURCE_NAT: u32 = 1 << 4;
/// Requests in one datagram.
const BATCH: usize = 64;

/// Who speaks with whom in one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flow {
    /// Whoever began it.
    from: IpAddr,
    /// Who answers, after the translation of the destination.
    to: IpAddr,
    /// Where the answer goes: `from`, or what it was translated to.
    answer_to: IpAddr,
}

/// What decides whether a source must be translated.
struct Edge<'a> {
    guard: &'a GuardRules,
    /// Addresses of this node, of every interface: what goes there leaves by none.
    own: HashSet<IpAddr>,
}

/// See [`forget_strays`](super::forget_strays).
pub(super) fn forget_strays(guard: &GuardRules) -> io::Result<usize> {
    let edge = Edge {
        guard,
        own: own_addresses()?,
    };
    forget(0, |reply| {
        flow(reply).is_some_and(|flow| edge.is_stray(&flow))
    })
}

/// See [`forget_translated`](super::forget_translated).
pub(super) fn forget_translated(ports: &[u16]) -> io::Result<usize> {
    let own: HashSet<IpAddr> = own_addresses()?;
    forget(SOURCE_NAT, |reply| {
        let begun_here = flow(reply).is_some_and(|flow| own.contains(&flow.from));
        begun_here
            && udp_ports(reply).is_some_and(|(from, seen)| ports.contains(&from) && from != seen)
    })
}

/// Forgets those that are meant, of the connections whose source is translated (`status`) or not.
fn forget(status: u32, is_meant: impl Fn(&Reply) -> bool) -> io::Result<usize> {
    let mut conversation = Conversation::netfilter()?;
    let mut meant = Vec::new();
    // Kernels that don't know the condition tell of all.
    let mut question = message(GET, 0);
    question
        .be32(CTA_STATUS, status)
        .be32(CTA_STATUS_MASK, SOURCE_NAT);
    conversation.walk(question, |reply| {
        if meant.len() < MOST_STRAYS
            && is_meant(&reply)
            && let Some(deletion) = deletion(&reply)
        {
            meant.push(deletion);
        }
    })?;
    let number = meant.len();
    while !meant.is_empty() {
        let batch = meant.split_off(meant.len().saturating_sub(BATCH));
        match conversation.requests(batch) {
            Ok(()) => {}
            // Over meanwhile.
            Err((_, error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err((_, error)) => return Err(error),
        }
    }
    Ok(number)
}

impl Edge<'_> {
    /// Whether the rules would give this connection another source than it has.
    fn is_stray(&self, flow: &Flow) -> bool {
        let is_in = |ranges: &[IpNet], address| ranges.iter().any(|range| range.contains(address));
        let guard = self.guard;
        let (from, to) = (&flow.from, &flow.to);
        if flow.answer_to != *from {
            return false;
        }
        if is_in(&guard.own_pod_cidrs, from) {
            let stays_inside = rules::inside(guard).any(|range| range.contains(to));
            return !stays_inside && !self.own.contains(to);
        }
        let goes_to_a_peer = is_in(&guard.protected, to)
            && !is_in(&guard.own_pod_cidrs, to)
            && !guard.own_overlay.contains(to)
            && !self.own.contains(to);
        goes_to_a_peer && !is_in(&guard.protected, from)
    }
}

fn own_addresses() -> io::Result<HashSet<IpAddr>> {
    let addresses = crate::veth::own_addresses(&mut Conversation::route()?)?;
    Ok(addresses.into_iter().map(|(_, address)| address).collect())
}

fn flow(reply: &Reply) -> Option<Flow> {
    let attributes = reply.attributes(HEADER_BYTES);
    let ends = |kind| {
        let addresses = attributes.nested(kind).nested(CTA_TUPLE_IP);
        let end = |offset| CTA_IP.iter().find_map(|at| address(addresses, at + offset));
        Some((end(0)?, end(1)?))
    };
    let (from, _) = ends(CTA_TUPLE_ORIG)?;
    let (to, answer_to) = ends(CTA_TUPLE_REPLY)?;
    Some(Flow {
        from,
        to,
        answer_to,
    })
}

/// The port that a UDP connection began from, and the one that it is answered at.
fn udp_ports(reply: &Reply) -> Option<(u16, u16)> {
    let attributes = reply.attributes(HEADER_BYTES);
    let port = |tuple, kind| {
        let end = attributes.nested(tuple).nested(CTA_TUPLE_PROTO);
        let is_udp = end.find(CTA_PROTO_NUM) == Some(&[IPPROTO_UDP]);
        let bytes = <[u8; 2]>::try_from(end.find(kind)?).ok()?;
        is_udp.then_some(u16::from_be_bytes(bytes))
    };
    let from = port(CTA_TUPLE_ORIG, CTA_PROTO_SRC_PORT)?;
    Some((from, port(CTA_TUPLE_REPLY, CTA_PROTO_DST_PORT)?))
}

fn address(attributes: Attributes<'_>, kind: u16) -> Option<IpAddr> {
    let bytes = attributes.find(kind)?;
    let v4 = || <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    v4().or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}

/// The request to forget exactly this connection, and not one that has taken its place since.
fn deletion(reply: &Reply) -> Option<Message> {
    let family = *reply.payload.first()?;
    let attributes = reply.attributes(HEADER_BYTES);
    let ends = attributes.find(CTA_TUPLE_ORIG)?;
    let mut message = message(DELETE, family);
    message.nested(CTA_TUPLE_ORIG, |tuple| {
        tuple.raw(ends);
    });
    for kind in [CTA_ID, CTA_ZONE] {
        if let Some(value) = attributes.find(kind) {
            message.bytes(kind, value);
        }
    }
    Some(message)
}

fn message(kind: u16, family: u8) -> Message {
    Message::new(SUBSYSTEM << 8 | kind, 0, &[family, 0, 0, 0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mark::Mark;

    fn is_stray(from: &str, to: &str, answer_to: &str) -> bool {
        let ranges = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let guard = GuardRules {
            device: "mesh0".to_owned(),
            veth_prefix: "pm".to_owned(),
            local_devices: vec!["docker0".to_owned()],
            protected: ranges(&["10.42.0.0/16", "10.77.0.0/16", "fd12::/48"]),
            own_pod_cidrs: ranges(&["10.42.3.0/24", "fd12:0:0:103::/64"]),
            own_overlay: vec!["10.77.0.3".parse().unwrap()],
            mark: Mark { value: 1, mask: 1 },
        };
        let own = ["127.0.0.1", "192.0.2.1", "172.17.0.1", "10.77.0.3"];
        let edge = Edge {
            guard: &guard,
            own: own.iter().map(|text| text.parse().unwrap()).collect(),
        };
        edge.is_stray(&Flow {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            answer_to: answer_to.parse().unwrap(),
        })
    }

    #[test]
    fn only_sources_that_the_rules_would_translate_are_strays() {
        for (from, to) in [
            ("10.42.3.2", "198.51.100.1"),
            ("10.42.3.2", "172.17.0.2"),
            ("fd12:0:0:103::2", "2001:db8::1"),
            ("172.17.0.2", "10.42.9.9"),
            ("192.0.2.1", "10.77.0.4"),
        ] {
            assert!(is_stray(from, to, from), "{from} {to}");
            assert!(!is_stray(from, to, "203.0.113.9"), "{from} {to} translated");
        }
        for (from, to) in [
            ("10.42.3.2", "10.42.9.9"),
            ("10.42.3.2", "10.42.3.3"),
            ("10.42.3.2", "192.0.2.1"),
            ("10.42.3.2", "224.0.0.251"),
            ("10.42.9.9", "10.42.3.2"),
            ("10.77.0.3", "10.42.9.9"),
            ("10.77.0.9", "10.77.0.3"),
            ("172.17.0.2", "198.51.100.1"),
            ("172.17.0.2", "10.42.3.2"),
            ("198.51.100.1", "10.42.3.2"),
            ("192.0.2.1", "198.51.100.1"),
        ] {
            assert!(!is_stray(from, to, from), "{from} {to}");
        }
    }
}
