//! The messages of routing netlink that a pod's interface needs, and the answers in short.
//!
//! Numbers are those of the kernel's `linux/rtnetlink.h`, `if_link.h`, `if_addr.h`, `neighbour.h`.

mod found;

use std::{
    io,
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

use ipnet::IpNet;

use crate::{
    blocking_netlink::{Conversation, Message},
    route::{MAIN_TABLE, POD_PROTOCOL},
};

use super::PodLink;

pub(super) use self::found::{Found, Neighbour, Route, SourceRule};

use self::found::{address_of, found_link, found_route, mac_of};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_GETNEIGH: u16 = 30;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;

const LINK_HEADER_BYTES: usize = 16;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_OPERSTATE: u16 = 16;
const IF_OPER_UP: u8 = 6;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_TARGET_NETNSID: u16 = 46;
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_CONF: u16 = 2;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const FAMILY_V4: u16 = 2;
const FAMILY_V6: u16 = 10;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_MACVLAN_MODE: u16 = 1;
const MACVLAN_MODE_PASSTHRU: u32 = 8;
const VETH_INFO_PEER: u16 = 1;
const IFF_UP: u32 = 1;

const ADDRESS_HEADER_BYTES: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_TARGET_NETNSID: u16 = 10;
const IFA_F_NODAD: u32 = 2;

const ROUTE_HEADER_BYTES: usize = 12;
const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_IIF: u16 = 3;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_TABLE: u16 = 15;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
/// In a request to remove a route: whatever its scope.
const SCOPE_NOWHERE: u8 = 255;
const PROTOCOL_BOOT: u8 = 3;
/// The gateway is on the link whatever the routes say.
const RTNH_F_ONLINK: u32 = 4;

const RULE_HEADER_BYTES: usize = 12;
const FRA_SRC: u16 = 2;
const FRA_PRIORITY: u16 = 6;
const FRA_TABLE: u16 = 15;
const FRA_PROTOCOL: u16 = 21;
const FR_ACT_TO_TBL: u8 = 1;

const NEIGHBOUR_HEADER_BYTES: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;

/// In which table, and as whose, a route is made.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) table: u32,
    pub(super) protocol: u8,
}

impl Place {
    pub(super) const MAIN: Self = Self {
        table: MAIN_TABLE,
        protocol: PROTOCOL_BOOT,
    };
}

pub(super) fn create_pair(link: &PodLink, pod: BorrowedFd<'_>) -> Message {
    let mut message = Message::new(
        RTM_NEWLINK,
        Message::CREATE | Message::EXCLUSIVE,
        &[0; LINK_HEADER_BYTES],
    );
    message
        .text(IFLA_IFNAME, &link.host_name)
        .number(IFLA_MTU, link.mtu)
        .bytes(IFLA_ADDRESS, &link.host_mac)
        .nested(IFLA_LINKINFO, |kind| {
            kind.bytes(IFLA_INFO_KIND, b"veth");
            kind.nested(IFLA_INFO_DATA, |pair| {
                pair.nested(VETH_INFO_PEER, |peer| {
                    peer.raw(&[0; LINK_HEADER_BYTES])
                        .text(IFLA_IFNAME, &link.pod_name)
                        .number(IFLA_MTU, link.mtu)
                        .bytes(IFLA_ADDRESS, &link.pod_mac)
                        .bytes(IFLA_NET_NS_FD, &pod.as_raw_fd().to_ne_bytes());
                });
            });
        });
    message
}

pub(super) fn delete_link(index: u32) -> Message {
    Message::new(RTM_DELLINK, 0, &link_header(index, 0))
}

pub(super) fn set_up(index: u32) -> Message {
    Message::new(RTM_NEWLINK, 0, &link_header(index, IFF_UP))
}

pub(super) fn set_down(index: u32) -> Message {
    let mut header = link_header(index, 0);
    if let Some(mask) = header.get_mut(12..16) {
        mask.copy_from_slice(&IFF_UP.to_ne_bytes());
    }
    Message::new(RTM_NEWLINK, 0, &header)
}

pub(super) fn set_name(index: u32, name: &str) -> Message {
    let mut message = Message::new(RTM_NEWLINK, 0, &link_header(index, 0));
    message.text(IFLA_IFNAME, name);
    message
}

pub(super) fn set_mac(index: u32, mac: [u8; 6]) -> Message {
    let mut message = Message::new(RTM_NEWLINK, 0, &link_header(index, 0));
    message.bytes(IFLA_ADDRESS, &mac);
    message
}

pub(super) fn set_mtu(index: u32, mtu: u32) -> Message {
    let mut message = Message::new(RTM_NEWLINK, 0, &link_header(index, 0));
    message.number(IFLA_MTU, mtu);
    message
}

pub(super) fn release(index: u32) -> Message {
    let mut message = Message::new(RTM_NEWLINK, 0, &link_header(index, 0));
    message.number(IFLA_MASTER, 0);
    message
}

pub(super) fn set_alias(index: u32, alias: &str) -> Message {
    let mut message = Message::new(RTM_NEWLINK, 0, &link_header(index, 0));
    message.bytes(IFLA_IFALIAS, alias.as_bytes());
    message
}

/// The kernel takes the alias before it switches the interface on, and both under one lock, so that
/// an interface that is up has its alias.
pub(super) fn set_up_as(index: u32, alias: &str) -> Message {
    let mut message = set_up(index);
    // Without a NUL, which would count towards the longest alias.
    message.bytes(IFLA_IFALIAS, alias.as_bytes());
    message
}

pub(super) fn add_address(index: u32, address: IpAddr, prefix_length: u8) -> Message {
    let mut header = vec![family(&address), prefix_length, 0, SCOPE_UNIVERSE];
    if matches!(address, IpAddr::V6(address) if address.is_unicast_link_local()) {
        header = vec![family(&address), prefix_length, 0, SCOPE_LINK];
    }
    header.extend_from_slice(&index.to_ne_bytes());
    let mut message = Message::new(RTM_NEWADDR, Message::CREATE | Message::REPLACE, &header);
    message
        .bytes(IFA_LOCAL, &octets(&address))
        .bytes(IFA_ADDRESS, &octets(&address));
    if address.is_ipv6() {
        message.number(IFA_FLAGS, IFA_F_NODAD);
    }
    message
}

pub(super) fn add_neighbour(index: u32, address: IpAddr, mac: [u8; 6]) -> Message {
    let mut header = vec![family(&address), 0, 0, 0];
    header.extend_from_slice(&index.to_ne_bytes());
    header.extend_from_slice(&NUD_PERMANENT.to_ne_bytes());
    header.extend_from_slice(&[0, 0]);
    let mut message = Message::new(RTM_NEWNEIGH, Message::CREATE | Message::REPLACE, &header);
    message
        .bytes(NDA_DST, &octets(&address))
        .bytes(NDA_LLADDR, &mac);
    message
}

pub(super) fn add_host_route(index: u32, address: IpAddr, place: Place) -> Message {
    let scope = if address.is_ipv4() {
        SCOPE_LINK
    } else {
        SCOPE_UNIVERSE
    };
    let mut message = route(&address, host_prefix(&address), place, scope);
    message.add_flags(Message::REPLACE);
    message
        .bytes(RTA_DST, &octets(&address))
        .number(RTA_OIF, index);
    message
}

pub(super) fn delete_host_route(index: u32, address: IpAddr, place: Place) -> Message {
    let kind = (SCOPE_NOWHERE, 0);
    let header = route_header(&address, host_prefix(&address), place, kind);
    let mut message = Message::new(RTM_DELROUTE, 0, &header);
    message
        .number(RTA_TABLE, place.table)
        .bytes(RTA_DST, &octets(&address))
        .number(RTA_OIF, index);
    message
}

/// Never in the place of another: the pod may have more interfaces than this one. An IPv4 gateway
/// counts as being on the link, whatever routes to it there are.
pub(super) fn add_route(index: u32, prefix: &IpNet, gateway: IpAddr, table: u32) -> Message {
    let place = Place {
        table,
        protocol: PROTOCOL_BOOT,
    };
    let flags = if gateway.is_ipv4() { RTNH_F_ONLINK } else { 0 };
    let mut message = route_with_flags(
        &gateway,
        prefix.prefix_len(),
        place,
        (SCOPE_UNIVERSE, flags),
    );
    message.add_flags(Message::EXCLUSIVE);
    if prefix.prefix_len() > 0 {
        message.bytes(RTA_DST, &octets(&prefix.network()));
    }
    message
        .bytes(RTA_GATEWAY, &octets(&gateway))
        .number(RTA_OIF, index);
    message
}

pub(super) fn add_rule(rule: &SourceRule, priority: u32) -> Message {
    let mut message = source_rule(RTM_NEWRULE, Message::CREATE | Message::EXCLUSIVE, rule);
    message.number(FRA_PRIORITY, priority);
    message
}

pub(super) fn delete_rule(rule: &SourceRule) -> Message {
    source_rule(RTM_DELRULE, 0, rule)
}

fn source_rule(kind: u16, flags: u16, rule: &SourceRule) -> Message {
    let length = host_prefix(&rule.source);
    let header = [
        family(&rule.source),
        0,
        length,
        0,
        0,
        0,
        0,
        FR_ACT_TO_TBL,
        0,
        0,
        0,
        0,
    ];
    let mut message = Message::new(kind, flags, &header);
    message
        .bytes(FRA_SRC, &octets(&rule.source))
        .number(FRA_TABLE, rule.table)
        .bytes(FRA_PROTOCOL, &[POD_PROTOCOL]);
    message
}

/// The rules of the plugin that send an address of this namespace to a table.
pub(super) fn source_rules(kernel: &mut Conversation) -> io::Result<Vec<SourceRule>> {
    let replies = kernel.dump(Message::new(RTM_GETRULE, 0, &[0; RULE_HEADER_BYTES]))?;
    let rules = replies.iter().filter_map(|reply| {
        let attributes = reply.attributes(RULE_HEADER_BYTES);
        let is_ours = attributes.find(FRA_PROTOCOL) == Some(&[POD_PROTOCOL]);
        let rule = SourceRule {
            source: attributes.find(FRA_SRC).and_then(address_of)?,
            table: attributes.number(FRA_TABLE)?,
        };
        is_ours.then_some(rule)
    });
    Ok(rules.collect())
}

pub(super) fn find_link(kernel: &mut Conversation, name: &str) -> io::Result<Found> {
    let mut message = Message::new(RTM_GETLINK, 0, &[0; LINK_HEADER_BYTES]);
    message.text(IFLA_IFNAME, name);
    let replies = kernel.get(message)?;
    let found = replies.iter().find_map(found_link);
    found.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The interface with this index.
pub(super) fn link(kernel: &mut Conversation, index: u32) -> io::Result<Found> {
    let replies = kernel.get(Message::new(RTM_GETLINK, 0, &link_header(index, 0)))?;
    let found = replies.iter().find_map(found_link);
    found.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The interface with this index in the namespace that the kernel has given this number.
pub(super) fn link_elsewhere(
    kernel: &mut Conversation,
    index: u32,
    namespace: u32,
) -> io::Result<Found> {
    let mut message = Message::new(RTM_GETLINK, 0, &link_header(index, 0));
    message.number(IFLA_TARGET_NETNSID, namespace);
    let replies = kernel.get(message)?;
    let found = replies.iter().find_map(found_link);
    found.ok_or_else(|| io::ErrorKind::NotFound.into())
}

pub(super) fn links(kernel: &mut Conversation) -> io::Result<Vec<Found>> {
    let replies = kernel.dump(Message::new(RTM_GETLINK, 0, &[0; LINK_HEADER_BYTES]))?;
    Ok(replies.iter().filter_map(found_link).collect())
}

/// Every address with the index of its interface.
pub(crate) fn addresses(kernel: &mut Conversation) -> io::Result<Vec<(u32, IpAddr)>> {
    let replies = kernel.dump(Message::new(RTM_GETADDR, 0, &[0; ADDRESS_HEADER_BYTES]))?;
    let addresses = replies.iter().filter_map(|reply| {
        let attributes = reply.attributes(ADDRESS_HEADER_BYTES);
        // On point-to-point links the plain address is the peer's.
        let own = attributes.find(IFA_LOCAL).or(attributes.find(IFA_ADDRESS));
        Some((reply.header_number(4)?, address_of(own?)?))
    });
    Ok(addresses.collect())
}

/// The addresses of one family that an interface has in the namespace that the kernel has given
/// this number. Only a conversation with filters asks there.
pub(super) fn addresses_elsewhere(
    filtering: &mut Conversation,
    (index, namespace): (u32, u32),
    like: &IpAddr,
) -> io::Result<Vec<IpAddr>> {
    let mut header = vec![family(like), 0, 0, 0];
    header.extend_from_slice(&index.to_ne_bytes());
    let mut message = Message::new(RTM_GETADDR, 0, &header);
    message.number(IFA_TARGET_NETNSID, namespace);
    let replies = filtering.dump(message)?;
    let addresses = replies.iter().filter_map(|reply| {
        let attributes = reply.attributes(ADDRESS_HEADER_BYTES);
        let own = attributes.find(IFA_LOCAL).or(attributes.find(IFA_ADDRESS));
        address_of(own?)
    });
    Ok(addresses.collect())
}

/// By which interface the kernel sends on what comes from `source` in by the interface `index`, to
/// `to`; `None` if it would not.
pub(super) fn way_onward(
    kernel: &mut Conversation,
    (index, source): (u32, IpAddr),
    to: IpAddr,
) -> Option<u32> {
    let length = host_prefix(&to);
    let header = [
        family(&to),
        length,
        host_prefix(&source),
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    let mut message = Message::new(RTM_GETROUTE, 0, &header);
    message
        .bytes(RTA_DST, &octets(&to))
        .bytes(RTA_SRC, &octets(&source))
        .number(RTA_IIF, index);
    let replies = kernel.get(message).ok()?;
    let found = replies.iter().find_map(found_route)?;
    found.oif.filter(|_| found.is_unicast)
}

/// Whether the kernel takes in what is sent to that address.
pub(super) fn is_local(kernel: &mut Conversation, address: IpAddr) -> io::Result<bool> {
    let mut header = [0; ROUTE_HEADER_BYTES];
    (header[0], header[1]) = (family(&address), host_prefix(&address));
    let mut message = Message::new(RTM_GETROUTE, 0, &header);
    message.bytes(RTA_DST, &octets(&address));
    let replies = match kernel.get(message) {
        Ok(replies) => replies,
        // A pod may have no other route that leads there.
        Err(cause) if cause.kind() == io::ErrorKind::NetworkUnreachable => return Ok(false),
        Err(cause) => return Err(cause),
    };
    let mut kinds = replies.iter().map(|reply| reply.payload.get(7));
    Ok(kinds.any(|kind| kind == Some(&RTN_LOCAL)))
}

pub(super) fn routes(kernel: &mut Conversation) -> io::Result<Vec<Route>> {
    let replies = kernel.dump(Message::new(RTM_GETROUTE, 0, &[0; ROUTE_HEADER_BYTES]))?;
    Ok(replies.iter().filter_map(found_route).collect())
}

/// Every neighbour that was told and not learned.
pub(super) fn permanent_neighbours(kernel: &mut Conversation) -> io::Result<Vec<Neighbour>> {
    let question = Message::new(RTM_GETNEIGH, 0, &[0; NEIGHBOUR_HEADER_BYTES]);
    let replies = kernel.dump(question)?;
    let neighbours = replies.iter().filter_map(|reply| {
        let [low, high] = *reply.payload.get(8..10)?.first_chunk()?;
        let attributes = reply.attributes(NEIGHBOUR_HEADER_BYTES);
        let is_permanent = u16::from_ne_bytes([low, high]) & NUD_PERMANENT != 0;
        let neighbour = Neighbour {
            index: reply.header_number(4)?,
            address: address_of(attributes.find(NDA_DST)?)?,
            mac: attributes.find(NDA_LLADDR).and_then(mac_of),
        };
        is_permanent.then_some(neighbour)
    });
    Ok(neighbours.collect())
}

/// The prefix length that stands for one address alone.
pub(super) fn host_prefix(address: &IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn link_header(index: u32, flags: u32) -> Vec<u8> {
    let mut header = vec![0; 4];
    header.extend_from_slice(&index.to_ne_bytes());
    // The second time as the mask of the flags to change.
    header.extend_from_slice(&flags.to_ne_bytes());
    header.extend_from_slice(&flags.to_ne_bytes());
    header
}

fn route(address: &IpAddr, prefix_length: u8, place: Place, scope: u8) -> Message {
    route_with_flags(address, prefix_length, place, (scope, 0))
}

fn route_with_flags(address: &IpAddr, prefix_length: u8, place: Place, kind: (u8, u32)) -> Message {
    let header = route_header(address, prefix_length, place, kind);
    let mut message = Message::new(RTM_NEWROUTE, Message::CREATE, &header);
    message.number(RTA_TABLE, place.table);
    message
}

fn route_header(
    address: &IpAddr,
    prefix_length: u8,
    place: Place,
    (scope, flags): (u8, u32),
) -> Vec<u8> {
    // Tables beyond 255 are named by the attribute alone.
    let table = u8::try_from(place.table).unwrap_or(0);
    let mut header = vec![family(address), prefix_length, 0, 0];
    header.extend_from_slice(&[table, place.protocol, scope, RTN_UNICAST]);
    header.extend_from_slice(&flags.to_ne_bytes());
    header
}

fn family(address: &IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 2,
        IpAddr::V6(_) => 10,
    }
}

fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
