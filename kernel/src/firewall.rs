//! What other people's firewalls do to the packets of podmesh: chains of nftables, made by `nft`,
//! firewalld, Docker or iptables-nft, that drop every packet of some kind.
//!
//! No table can overrule another's refusal, so that all that can be done is to name the chain and the
//! command that helps. A chain is reported only when it would certainly drop every packet between pods
//! of two nodes or of this one, between this machine itself and pods or other nodes, or every datagram of the
//! tunnels; keep the kernel from tracking what pods send to the world; or mark packets of pods as datagrams of
//! the tunnels. A condition that can't be judged may
//! let packets pass, and so may one that names podmesh's interfaces or ranges together with a port.
//! A rule about ports or protocols alone lets nothing pass that was not meant. A chain that refuses everybody who
//! begins a conversation with this machine, and lets the answers to its own pass, is how machines are kept, and is
//! not reported: tunnels, pods and other nodes need no more.
//!
//! Rules of iptables-legacy are outside of nftables, and are judged as its are. The kernel announces no change of
//! them, but [`legacy_print`] tells.

mod advice;
mod compat;
mod condition;
mod evaluate;
mod expression;
mod legacy;
mod lookup;
mod packet;
mod registers;
mod ruleset;

use std::{collections::BTreeSet, fmt, io, net::IpAddr};

use ipnet::IpNet;

use crate::mark::Mark;

use self::packet::Way;

pub use self::advice::Advice;

/// What podmesh sends and receives here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traffic {
    /// Name of the mesh interface.
    pub device: String,
    /// What the names of pod interfaces on the host begin with.
    pub veth_prefix: String,
    /// This node's pod CIDRs.
    pub own_pod_cidrs: Vec<IpNet>,
    /// This node's addresses in the overlay.
    pub own_overlay: Vec<IpAddr>,
    /// Every overlay and pod range of the network.
    pub protected: Vec<IpNet>,
    /// The first UDP port of the tunnels.
    pub port: Option<u16>,
    /// The mark on their datagrams.
    pub mark: Mark,
    /// The interfaces with addresses of IPv4, and of IPv6, by which this node's tunnels reach others.
    pub uplinks: [Vec<String>; 2],
}

impl Traffic {
    fn uplinks(&self, is_ipv4: bool) -> &[String] {
        let [v4, v6] = &self.uplinks;
        if is_ipv4 { v4 } else { v6 }
    }

    /// Whether this node has addresses of a family by which packets go that way.
    fn has_family(&self, way: Way, is_ipv4: bool) -> bool {
        if Way::TUNNEL.contains(&way) {
            return !self.uplinks(is_ipv4).is_empty();
        }
        let mut own = self.own_overlay.iter();
        own.any(|address| address.is_ipv4() == is_ipv4)
    }
}

/// A chain of somebody else's that drops what podmesh lives by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// Where it is.
    pub(crate) chain: Place,
    /// The hook's name, as `nft` writes it.
    pub(crate) hook: Hook,
    /// What it does.
    pub(crate) harm: Harm,
    /// To which packets.
    pub(crate) ways: BTreeSet<Way>,
    /// Whether nothing but its policy does.
    pub(crate) by_policy: bool,
    /// Whether it is meant to translate, so that nothing should be let past it.
    pub(crate) translates: bool,
    /// A chain that is asked first and is kept for rules like ours.
    pub(crate) entrance: Option<String>,
    /// The tunnels' port.
    pub(crate) port: Option<u16>,
    /// Name of the mesh interface.
    pub(crate) device: String,
    /// What the names of pod interfaces begin with.
    pub(crate) veth_prefix: String,
}

/// What a chain does to packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Harm {
    Drops,
    /// It keeps the kernel from tracking connections, without which nothing is translated.
    Untracks,
    /// It gives them the mark of the tunnels' datagrams, which are kept out of the mesh.
    Marks,
}

/// A chain by its names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    pub(crate) family: Family,
    pub(crate) table: String,
    pub(crate) chain: String,
}

/// Tables that IP packets of hosts and routers pass: a family of nftables, or what is beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Family {
    Inet,
    Ip,
    Ip6,
    /// Of one interface or several, before and after all others.
    Netdev,
    /// Of iptables-legacy, outside of nftables.
    IpLegacy,
    /// The same for IPv6.
    Ip6Legacy,
}

/// Where on a packet's way a chain is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    /// As packets come in by an interface.
    Ingress,
    /// As they go out by one.
    Egress,
}

/// The chains of others that certainly drop one kind of podmesh's packets or another, sorted. Cost: one
/// listing of all chains, and the rules of those that are reached.
///
/// # Errors
///
/// The kernel has no nftables, the caller may not read them, or they change all the time.
pub fn refusals(traffic: &Traffic) -> io::Result<Vec<Refusal>> {
    let mut ruleset = ruleset::Ruleset::read()?;
    evaluate::refusals(&mut ruleset, traffic)
}

/// A number that changes whenever rules of iptables-legacy or ip6tables-legacy do. Cost: one copy of each of
/// their tables, and next to nothing where there are none.
#[must_use]
pub fn legacy_print() -> u64 {
    legacy::print()
}

impl Family {
    const OF_NFTABLES: [Self; 4] = [Self::Inet, Self::Ip, Self::Ip6, Self::Netdev];

    /// As netfilter counts them.
    fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip | Self::IpLegacy => 2,
            Self::Ip6 | Self::Ip6Legacy => 10,
            Self::Netdev => 5,
        }
    }

    fn of(number: u8) -> Option<Self> {
        Self::OF_NFTABLES
            .into_iter()
            .find(|family| family.number() == number)
    }

    fn is_legacy(self) -> bool {
        matches!(self, Self::IpLegacy | Self::Ip6Legacy)
    }

    /// Whether packets of that kind pass its chains.
    fn has(self, is_ipv4: bool) -> bool {
        match self {
            Self::Inet | Self::Netdev => true,
            Self::Ip | Self::IpLegacy => is_ipv4,
            Self::Ip6 | Self::Ip6Legacy => !is_ipv4,
        }
    }
}

impl Hook {
    /// Their positions are the kernel's numbers, but for chains of single interfaces.
    const ALL: [Self; 6] = [
        Self::Prerouting,
        Self::Input,
        Self::Forward,
        Self::Output,
        Self::Postrouting,
        Self::Ingress,
    ];
    /// Whether the mark that a packet has afterwards decides where it goes.
    fn is_before_routing(self) -> bool {
        matches!(self, Self::Prerouting | Self::Output)
    }

    const OF_NETDEV: [Self; 2] = [Self::Ingress, Self::Egress];

    fn of(family: Family, number: u32) -> Option<Self> {
        let all: &[Self] = match family {
            Family::Netdev => &Self::OF_NETDEV,
            _ => &Self::ALL,
        };
        all.get(usize::try_from(number).ok()?).copied()
    }
}

impl fmt::Display for Family {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Netdev => "netdev",
            Self::IpLegacy => "iptables-legacy",
            Self::Ip6Legacy => "ip6tables-legacy",
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {} {}", self.family, self.table, self.chain)
    }
}
