//! What matters of the kernel's answers.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    blocking_netlink::{Attributes, Reply},
    route::{POD_PROTOCOL, TABLE},
};

use super::{
    FAMILY_V4, FAMILY_V6, IF_OPER_UP, IFF_UP, IFLA_ADDRESS, IFLA_AF_SPEC, IFLA_IFALIAS,
    IFLA_IFNAME, IFLA_INET_CONF, IFLA_INET6_ADDR_GEN_MODE, IFLA_INET6_CONF, IFLA_INFO_DATA,
    IFLA_INFO_KIND, IFLA_LINK, IFLA_LINK_NETNSID, IFLA_LINKINFO, IFLA_MACVLAN_MODE, IFLA_MASTER,
    IFLA_MTU, IFLA_OPERSTATE, LINK_HEADER_BYTES, MACVLAN_MODE_PASSTHRU, ROUTE_HEADER_BYTES,
    RTA_DST, RTA_GATEWAY, RTA_OIF, RTA_PRIORITY, RTA_TABLE, RTN_UNICAST,
};

/// What matters of an interface.
pub(in crate::veth) struct Found {
    pub(in crate::veth) index: u32,
    pub(in crate::veth) name: String,
    pub(in crate::veth) is_up: bool,
    /// Up, with a carrier, and switched on by the kernel.
    pub(in crate::veth) is_operational: bool,
    pub(in crate::veth) is_veth: bool,
    pub(in crate::veth) mac: Option<[u8; 6]>,
    pub(in crate::veth) mtu: u32,
    pub(in crate::veth) alias: Option<String>,
    /// Index of its counterpart, and the kernel's number for the namespace of that, if another.
    pub(in crate::veth) peer: Option<u32>,
    pub(in crate::veth) peer_namespace: Option<u32>,
    /// Index of the bridge, bond or virtual router that it is a part of.
    pub(in crate::veth) master: Option<u32>,
    /// It takes everything that comes in by its counterpart, which then hears nothing.
    pub(in crate::veth) takes_all: bool,
    pub(in crate::veth) settings: Settings,
}

/// The kernel's settings of one interface, as the kernel lists them with it; empty for a family
/// that it doesn't have.
#[derive(Default)]
pub(in crate::veth) struct Settings {
    pub(in crate::veth) v4: Vec<u32>,
    pub(in crate::veth) v6: Vec<u32>,
    pub(in crate::veth) v6_address_mode: Option<u32>,
}

/// What matters of a neighbour that was told and not learned.
pub(in crate::veth) struct Neighbour {
    pub(in crate::veth) index: u32,
    pub(in crate::veth) address: IpAddr,
    pub(in crate::veth) mac: Option<[u8; 6]>,
}

/// What matters of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::veth) struct SourceRule {
    pub(in crate::veth) source: IpAddr,
    pub(in crate::veth) table: u32,
}

/// What matters of a route.
pub(in crate::veth) struct Route {
    pub(in crate::veth) table: u32,
    pub(in crate::veth) protocol: u8,
    pub(in crate::veth) is_unicast: bool,
    pub(in crate::veth) prefix: Option<IpNet>,
    pub(in crate::veth) metric: u32,
    pub(in crate::veth) gateway: Option<IpAddr>,
    pub(in crate::veth) oif: Option<u32>,
}

impl Route {
    /// Whether it is one of those that lead to this node's pods.
    pub(in crate::veth) fn is_to_pod(&self) -> bool {
        self.table == TABLE && self.protocol == POD_PROTOCOL
    }

    /// The address that it is for, if it is for one alone.
    pub(in crate::veth) fn address(&self) -> Option<IpAddr> {
        let prefix = self.prefix?;
        (prefix.prefix_len() == prefix.max_prefix_len()).then(|| prefix.addr())
    }
}

pub(super) fn found_link(reply: &Reply) -> Option<Found> {
    let attributes = reply.attributes(LINK_HEADER_BYTES);
    let info = attributes.nested(IFLA_LINKINFO);
    let kind = info.text(IFLA_INFO_KIND);
    let is_passthru = || {
        let mode = info.nested(IFLA_INFO_DATA).number(IFLA_MACVLAN_MODE);
        mode == Some(MACVLAN_MODE_PASSTHRU)
    };
    Some(Found {
        index: reply.header_number(4)?,
        name: attributes.text(IFLA_IFNAME)?,
        is_up: reply.header_number(8)? & IFF_UP != 0,
        is_operational: attributes.find(IFLA_OPERSTATE) == Some(&[IF_OPER_UP]),
        is_veth: kind.as_deref() == Some("veth"),
        mac: attributes.find(IFLA_ADDRESS).and_then(mac_of),
        mtu: attributes.number(IFLA_MTU).unwrap_or(0),
        alias: attributes.text(IFLA_IFALIAS),
        peer: attributes.number(IFLA_LINK),
        peer_namespace: attributes.number(IFLA_LINK_NETNSID),
        master: attributes.number(IFLA_MASTER).filter(|index| *index > 0),
        takes_all: matches!(kind.as_deref(), Some("macvlan" | "macvtap")) && is_passthru(),
        settings: found_settings(attributes.nested(IFLA_AF_SPEC)),
    })
}

fn found_settings(families: Attributes<'_>) -> Settings {
    let numbers = |bytes: Option<&[u8]>| {
        let (words, _) = bytes.unwrap_or_default().as_chunks::<4>();
        words.iter().copied().map(u32::from_ne_bytes).collect()
    };
    let v6 = families.nested(FAMILY_V6);
    let mode = v6.find(IFLA_INET6_ADDR_GEN_MODE);
    Settings {
        v4: numbers(families.nested(FAMILY_V4).find(IFLA_INET_CONF)),
        v6: numbers(v6.find(IFLA_INET6_CONF)),
        v6_address_mode: mode.and_then(|mode| mode.first().copied().map(u32::from)),
    }
}

pub(super) fn found_route(reply: &Reply) -> Option<Route> {
    let [family, prefix_length, _, _, table, protocol, _, kind] =
        *reply.payload.first_chunk::<8>()?;
    let attributes = reply.attributes(ROUTE_HEADER_BYTES);
    let everything = match family {
        2 => Some(IpAddr::from([0; 4])),
        10 => Some(IpAddr::from([0; 16])),
        _ => None,
    };
    let destination = attributes.find(RTA_DST).and_then(address_of).or(everything);
    Some(Route {
        table: attributes.number(RTA_TABLE).unwrap_or(u32::from(table)),
        protocol,
        is_unicast: kind == RTN_UNICAST,
        prefix: destination.and_then(|address| IpNet::new(address, prefix_length).ok()),
        metric: attributes.number(RTA_PRIORITY).unwrap_or(0),
        gateway: attributes.find(RTA_GATEWAY).and_then(address_of),
        oif: attributes.number(RTA_OIF),
    })
}

pub(super) fn mac_of(bytes: &[u8]) -> Option<[u8; 6]> {
    bytes.try_into().ok()
}

pub(super) fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(*bytes.first_chunk::<4>()?)),
        16 => Some(IpAddr::from(*bytes.first_chunk::<16>()?)),
        _ => None,
    }
}
