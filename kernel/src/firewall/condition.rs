//! Whether a condition holds for a packet and for all others of its kind.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{
    expression::Comparison,
    packet::{Nature, Value},
};

/// What a condition says of all packets of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// It holds for all.
    Yes,
    /// It holds for none.
    No,
    /// For some, or nobody knows.
    Perhaps,
    /// For packets of certain ports or protocols, which are few of many.
    Few,
}

/// An answer, and whether the condition names what is podmesh's own.
pub(super) type Judged = (Answer, bool);

pub(super) const UNKNOWN: Judged = (Answer::Perhaps, false);

/// Compares as the kernel does it.
pub(super) fn compare(
    value: &Value,
    comparison: Comparison,
    wanted: &[u8],
    veth_prefix: &str,
) -> Judged {
    let Some(found) = value.bytes.get(..wanted.len()) else {
        return UNKNOWN;
    };
    let holds = comparison.holds(found, wanted);
    let is_equality = matches!(comparison, Comparison::Equal | Comparison::Different);
    let plain = if holds { Answer::Yes } else { Answer::No };
    match value.nature {
        Nature::Certain => (plain, false),
        Nature::Own => (plain, comparison == Comparison::Equal && holds),
        Nature::Any if holds => UNKNOWN,
        Nature::Any => (Answer::Few, false),
        Nature::Pod | Nature::Underlay | Nature::Address(_) if !is_equality => UNKNOWN,
        Nature::Underlay if !is_loopback(wanted) => UNKNOWN,
        Nature::Underlay => (plain, false),
        Nature::Pod => {
            let is_one_of_them = wanted.len() > veth_prefix.len()
                && wanted.starts_with(veth_prefix.as_bytes())
                && found != wanted;
            let answer = if is_one_of_them {
                Answer::Perhaps
            } else {
                plain
            };
            (answer, found == wanted || is_one_of_them)
        }
        Nature::Address(others) => {
            let mask = value.mask.get(..wanted.len()).unwrap_or_default();
            match network(wanted, mask, &others.range) {
                None => UNKNOWN,
                Some(named) if others.lack(&named) => (plain, false),
                Some(named) if is_part(&named, &others.range) => (Answer::Perhaps, true),
                Some(named) => (plain, found == wanted && named.prefix_len() > 0),
            }
        }
    }
}

/// Whether a value lies between two.
pub(super) fn lies_between(value: &Value, least: &[u8], most: &[u8]) -> Judged {
    let Some(found) = value.bytes.get(..least.len()) else {
        return UNKNOWN;
    };
    let holds = found >= least && found <= most;
    match value.nature {
        Nature::Certain | Nature::Own if holds => (Answer::Yes, false),
        Nature::Certain | Nature::Own => (Answer::No, false),
        Nature::Any if !holds => (Answer::Few, false),
        Nature::Address(others) => {
            let ends = |range: &IpNet| (octets(&range.network()), octets(&range.broadcast()));
            let (first, last) = ends(&others.range);
            let is_lacking = others.without.is_some_and(|without| {
                let (first, last) = ends(&without);
                first.as_slice() <= least && last.as_slice() >= most
            });
            if is_lacking {
                (Answer::No, false)
            } else if first.as_slice() >= least && last.as_slice() <= most {
                (Answer::Yes, true)
            } else if last.as_slice() < least || first.as_slice() > most {
                (Answer::No, false)
            } else {
                (Answer::Perhaps, true)
            }
        }
        Nature::Any | Nature::Pod | Nature::Underlay => UNKNOWN,
    }
}

/// Whether a rule's bytes are the loopback's name.
fn is_loopback(name: &[u8]) -> bool {
    name.strip_prefix(b"lo")
        .is_some_and(|rest| !rest.is_empty() && rest.iter().all(|byte| *byte == 0))
}

/// The opposite.
pub(super) fn not((answer, names_own): Judged) -> Judged {
    let answer = match answer {
        Answer::Yes => Answer::No,
        Answer::No => Answer::Yes,
        Answer::Perhaps | Answer::Few => Answer::Perhaps,
    };
    (answer, names_own && answer != Answer::Yes)
}

/// What is left of a value behind a mask.
pub(super) fn masked(value: &Value, mask: &[u8], flip: &[u8]) -> Option<Value> {
    let bytes = value.bytes.iter().zip(mask).zip(flip);
    let bytes = bytes
        .map(|((byte, mask), flip)| byte & mask ^ flip)
        .collect();
    let left = value.mask.iter().zip(mask).map(|(left, mask)| left & mask);
    let is_plain = flip.iter().all(|byte| *byte == 0);
    let keeps_its_nature = is_plain || !matches!(value.nature, Nature::Address(_) | Nature::Pod);
    keeps_its_nature.then(|| Value {
        bytes,
        nature: value.nature,
        mask: left.collect(),
        is_index: value.is_index,
    })
}

/// Whether that address or name could be one of another packet of this kind.
pub(super) fn may_be(key: &[u8], nature: Nature, veth_prefix: &str) -> bool {
    match nature {
        Nature::Pod => key.starts_with(veth_prefix.as_bytes()),
        Nature::Underlay => !is_loopback(key),
        Nature::Address(others) => network(key, &vec![0xff; key.len()], &others.range)
            .is_none_or(|key| others.range.contains(&key) && !others.lack(&key)),
        Nature::Certain | Nature::Own | Nature::Any => false,
    }
}

/// The prefix that the first bytes of an address and a mask describe; `None` for other masks.
fn network(bytes: &[u8], mask: &[u8], range: &IpNet) -> Option<IpNet> {
    let ones = mask.iter().map(|byte| byte.count_ones()).sum::<u32>();
    let leading = mask.iter().take_while(|byte| **byte == 0xff).count();
    let next = mask.get(leading).map_or(0, |byte| byte.leading_ones());
    let prefix = u8::try_from(ones).ok()?;
    if usize::try_from(ones).ok()? != leading * 8 + usize::try_from(next).ok()? {
        return None;
    }
    let address = match range {
        IpNet::V4(_) => Ipv4Addr::from(padded::<4>(bytes)?).into(),
        IpNet::V6(_) => Ipv6Addr::from(padded::<16>(bytes)?).into(),
    };
    IpNet::new(address, prefix).ok()
}

fn padded<const LENGTH: usize>(bytes: &[u8]) -> Option<[u8; LENGTH]> {
    let mut padded = [0; LENGTH];
    padded.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(padded)
}

fn is_part(named: &IpNet, range: &IpNet) -> bool {
    named.prefix_len() > range.prefix_len() && range.contains(named)
}

fn octets(address: &std::net::IpAddr) -> Vec<u8> {
    match address {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    }
}
