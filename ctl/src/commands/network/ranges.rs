//! Rules for a network's ranges: private, canonical, of a size that works, and apart from each other.

use std::net::IpAddr;

use clap::Args;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use podmesh_proto::network::Ranges;

use crate::problem::Problem;

/// Ranges that an operator may choose (RFC 1918, RFC 6598 §7, RFC 2544 as lab space, RFC 4193).
const PRIVATE: [&str; 6] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "198.18.0.0/15",
    "fc00::/7",
];
/// Prefix lengths between which an IPv4 range has room for a network and is no typing error.
const V4_LENGTHS: std::ops::RangeInclusive<u8> = 8..=28;
/// Prefix length of one node's IPv4 pod CIDR, if that leaves room for several nodes.
const DEFAULT_BLOCK: u8 = 24;

/// Ranges on the command line.
#[derive(Debug, Args)]
pub(crate) struct RangeArgs {
    /// Overlay range, at most one per address family; IPv6 is a /64
    /// [default: 10.77.0.0/16 and a unique local /64]
    #[arg(long, value_name = "CIDR", value_parser = cidr)]
    overlay: Vec<IpNet>,
    /// Range of pods, at most one per address family
    /// [default: 10.42.0.0/16 and a unique local /49]
    #[arg(long, value_name = "CIDR", value_parser = cidr)]
    pods: Vec<IpNet>,
    /// Prefix length of one node's IPv4 pod CIDR [default: 24]
    #[arg(long, value_name = "LENGTH")]
    pod_block: Option<u8>,
    /// Range of the cluster's services, so that no node's network collides with it
    #[arg(long, value_name = "CIDR", value_parser = cidr)]
    services: Vec<IpNet>,
}

impl RangeArgs {
    /// The ranges of a network whose defaults are `ranges`.
    ///
    /// # Errors
    /// A range that breaks a rule, named.
    pub(crate) fn apply(&self, mut ranges: Ranges) -> Result<Ranges, Problem> {
        let (overlay4, overlay6) = families("--overlay", &self.overlay)?;
        let (pods4, pods6) = families("--pods", &self.pods)?;
        ranges.overlay4 = overlay4.unwrap_or(ranges.overlay4);
        ranges.overlay6 = overlay6.unwrap_or(ranges.overlay6);
        ranges.pods4 = pods4.unwrap_or(ranges.pods4);
        ranges.pods6 = pods6.unwrap_or(ranges.pods6);
        ranges.services.clone_from(&self.services);
        ranges.pods4_block = self.pod_block.unwrap_or(DEFAULT_BLOCK);
        check(&ranges)?;
        Ok(ranges)
    }
}

/// A range, told by what is wrong with it.
///
/// # Errors
/// It isn't one.
pub(crate) fn cidr(text: &str) -> Result<IpNet, String> {
    if let Ok(net) = text.parse() {
        return Ok(net);
    }
    let like = "write it like 10.77.0.0/16 or fd00:1::/64";
    let Some((address, length)) = text.split_once('/') else {
        return Err(format!("it has no prefix length; {like}"));
    };
    match address.parse::<IpAddr>() {
        Ok(address) => {
            let most = if address.is_ipv4() { 32 } else { 128 };
            Err(format!("'{length}' is no prefix length from 0 to {most}"))
        }
        Err(_) => Err(format!("'{address}' is no IP address; {like}")),
    }
}

/// Refuses a prefix with bits behind its length.
fn canonical(net: &IpNet) -> Result<(), Problem> {
    if net.addr() == net.network() {
        return Ok(());
    }
    let cause = format!("{net} has bits set behind its prefix length");
    Err(Problem::usage(cause).next(format!("write {}, if that is meant", net.trunc())))
}

/// Refuses a prefix that is not inside an overlay or pod range of the network.
///
/// # Errors
/// It is not.
pub(crate) fn inside(net: &IpNet, ranges: &Ranges) -> Result<(), Problem> {
    canonical(net)?;
    let of_network = [
        IpNet::V4(ranges.overlay4),
        IpNet::V6(ranges.overlay6),
        IpNet::V4(ranges.pods4),
        IpNet::V6(ranges.pods6),
    ];
    if of_network.iter().any(|range| range.contains(net)) {
        return Ok(());
    }
    let [a, b, c, d] = of_network;
    Err(Problem::usage(format!(
        "{net} is in no overlay or pod range of the network"
    ))
    .next(format!("choose a part of {a}, {b}, {c} or {d}")))
}

fn families(option: &str, nets: &[IpNet]) -> Result<(Option<Ipv4Net>, Option<Ipv6Net>), Problem> {
    let (mut v4, mut v6) = (None, None);
    for net in nets {
        canonical(net)?;
        let twice = match net {
            IpNet::V4(net) => v4.replace(*net).is_some(),
            IpNet::V6(net) => v6.replace(*net).is_some(),
        };
        if twice {
            let cause = format!("{option} is given twice for one address family");
            return Err(Problem::usage(cause).next("give one range per address family"));
        }
    }
    Ok((v4, v6))
}

fn check(ranges: &Ranges) -> Result<(), Problem> {
    let mut named = vec![
        ("overlay range", IpNet::V4(ranges.overlay4)),
        ("overlay range", IpNet::V6(ranges.overlay6)),
        ("pod range", IpNet::V4(ranges.pods4)),
        ("pod range", IpNet::V6(ranges.pods6)),
    ];
    let services = ranges.services.iter();
    named.extend(services.map(|net| ("service range", *net)));
    for (what, net) in &named {
        canonical(net)?;
        private(what, net)?;
    }
    sizes(ranges)?;
    let mut rest = named.as_slice();
    while let Some(((what, net), others)) = rest.split_first() {
        let overlap = others
            .iter()
            .find(|(_, other)| net.contains(other) || other.contains(net));
        if let Some((other_what, other)) = overlap {
            return Err(Problem::usage(format!(
                "the {what} {net} and the {other_what} {other} overlap"
            ))
            .next("choose ranges that have no address in common"));
        }
        rest = others;
    }
    Ok(())
}

fn private(what: &str, net: &IpNet) -> Result<(), Problem> {
    let mut allowed = PRIVATE.iter().filter_map(|text| text.parse::<IpNet>().ok());
    if allowed.any(|range| range.contains(net)) {
        return Ok(());
    }
    Err(Problem::usage(format!("the {what} {net} is not private"))
        .next(format!("choose a part of {}", PRIVATE.join(", "))))
}

fn sizes(ranges: &Ranges) -> Result<(), Problem> {
    let (overlay4, pods4) = (ranges.overlay4, ranges.pods4);
    for (what, net) in [("overlay range", overlay4), ("pod range", pods4)] {
        if !V4_LENGTHS.contains(&net.prefix_len()) {
            let (low, high) = (V4_LENGTHS.start(), V4_LENGTHS.end());
            return Err(
                Problem::usage(format!("the {what} {net} has no sensible size"))
                    .next(format!("choose a prefix length from {low} to {high}")),
            );
        }
    }
    let block = ranges.pods4_block;
    if !(pods4.prefix_len()..=30).contains(&block) {
        return Err(Problem::usage(format!(
            "pod CIDRs of /{block} per node don't fit into {pods4}"
        ))
        .next("choose a wider range with --pods, or a longer --pod-block (at most 30)"));
    }
    if ranges.overlay6.prefix_len() != 64 {
        let cause = format!("the IPv6 overlay range {} is no /64", ranges.overlay6);
        return Err(Problem::usage(cause)
            .next("choose a /64: the other half of an address follows from the node's key"));
    }
    if !(16..=ranges.pods6_block).contains(&ranges.pods6.prefix_len()) {
        let cause = format!(
            "IPv6 pod CIDRs of /64 per node don't fit into {}",
            ranges.pods6
        );
        return Err(Problem::usage(cause).next("choose a prefix length from 16 to 64"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use podmesh_proto::id::NetworkId;

    use super::*;

    fn ranges(overlay: &[&str], pods: &[&str], services: &[&str]) -> Result<Ranges, Problem> {
        let parse = |nets: &[&str]| nets.iter().map(|net| net.parse().unwrap()).collect();
        let args = RangeArgs {
            overlay: parse(overlay),
            pods: parse(pods),
            pod_block: None,
            services: parse(services),
        };
        args.apply(Ranges::default_of(&NetworkId([3; 16])))
    }

    #[test]
    fn what_is_wrong_with_a_range_is_said() {
        for (text, word) in [
            ("10.77.0.0/33", "from 0 to 32"),
            ("fd00::/129", "from 0 to 128"),
            ("10.77.0.0/", "''"),
            ("10.77.0.0", "no prefix length"),
            ("10.77.0/16", "'10.77.0' is no IP address"),
        ] {
            let said = cidr(text).unwrap_err();
            assert!(said.contains(word), "{text}: {said}");
        }
        assert!(cidr("10.77.0.0/16").is_ok());
    }

    #[test]
    fn defaults_and_sensible_choices_pass() {
        assert!(ranges(&[], &[], &["10.43.0.0/16"]).is_ok());
        let chosen = ranges(
            &["100.64.0.0/10", "fd00:1::/64"],
            &["172.20.0.0/14", "fd00:2::/56"],
            &["10.96.0.0/12", "fd00:3::/112"],
        );
        assert_eq!(chosen.unwrap().pods4.to_string(), "172.20.0.0/14");
    }

    #[test]
    fn every_bad_range_is_refused_by_name() {
        type Case = (
            &'static [&'static str],
            &'static [&'static str],
            &'static [&'static str],
        );
        let cases: [(Case, &str); 10] = [
            ((&["10.77.0.1/16"], &[], &[]), "10.77.0.1/16 has bits"),
            ((&["8.0.0.0/16"], &[], &[]), "8.0.0.0/16 is not private"),
            ((&["10.0.0.0/7"], &[], &[]), "10.0.0.0/7 is not private"),
            (
                (&["10.1.0.0/30"], &[], &[]),
                "10.1.0.0/30 has no sensible size",
            ),
            (
                (&["10.42.0.0/17"], &[], &[]),
                "10.42.0.0/17 and the pod range 10.42.0.0/16 overlap",
            ),
            (
                (&[], &[], &["10.0.0.0/8"]),
                "service range 10.0.0.0/8 overlap",
            ),
            ((&[], &["10.1.0.0/25"], &[]), "don't fit into 10.1.0.0/25"),
            ((&["fd00::/48"], &[], &[]), "fd00::/48 is no /64"),
            (
                (&[], &["2001:db8::/48"], &[]),
                "2001:db8::/48 is not private",
            ),
            (
                (&["10.1.0.0/16", "10.2.0.0/16"], &[], &[]),
                "--overlay is given twice",
            ),
        ];
        for ((overlay, pods, services), expected) in cases {
            let problem = ranges(overlay, pods, services).unwrap_err();
            assert!(
                problem.cause.contains(expected),
                "{} | {expected}",
                problem.cause
            );
        }
    }
}
