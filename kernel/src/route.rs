//! Routes: our own table, and what else the node has.

use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};

use crate::netlink::{Mode, Netlink, NetlinkError, family};

/// The routing table of podmesh.
pub const TABLE: u32 = 7077;
/// Who made a route, address or rule: this is podmesh's node side.
pub const PROTOCOL: u8 = 177;
/// Who made a route: this is podmesh's CNI plugin, for a pod of this node.
pub const POD_PROTOCOL: u8 = 178;
/// The kernel's main table.
pub const MAIN_TABLE: u32 = 254;
/// The kernel's table of own and broadcast addresses.
pub(crate) const LOCAL_TABLE: u32 = 255;

/// What happens to a packet that takes a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteKind {
    /// It goes on.
    Unicast,
    /// It is for this node itself.
    Local,
    /// It is dropped and its sender is told so.
    Unreachable,
    /// Another of the kernel's types, by its number.
    Other(u8),
}

impl RouteKind {
    /// What `ip` writes in front of the destination: nothing for the usual kind, else a word and a space.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::Local => "local ",
            Self::Unreachable => "unreachable ",
            Self::Other(6) => "blackhole ",
            Self::Other(8) => "prohibit ",
            Self::Unicast | Self::Other(_) => "",
        }
    }
}

/// One route of one table.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    /// Which destinations it is for.
    pub prefix: IpNet,
    /// The table it is in.
    pub table: u32,
    /// What happens to the packet.
    pub kind: RouteKind,
    /// Who made it, see [`origin`].
    pub protocol: u8,
    /// The lowest wins among routes to one prefix.
    pub metric: u32,
    /// Index of the interface it leaves by, of the first one if there are several.
    pub device: Option<u32>,
    /// Indices of the others, where there are several.
    pub more_devices: Vec<u32>,
    /// The next router.
    pub gateway: Option<IpAddr>,
    /// The address that the node itself uses as source.
    pub source: Option<IpAddr>,
    /// Longest packet, in bytes, where that is less than what the interface carries.
    pub mtu: Option<u32>,
}

impl Route {
    /// What identifies the route within its table.
    pub(crate) fn key(&self) -> (IpNet, u32) {
        (self.prefix, self.metric)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.kind.prefix())?;
        write!(
            out,
            "{} metric {} table {}",
            self.prefix, self.metric, self.table
        )
    }
}

/// A route of the node that podmesh did not make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignRoute {
    /// Which destinations it is for.
    pub prefix: IpNet,
    /// The table it is in.
    pub table: u32,
    /// The interface it leaves by, if by any.
    pub device: Option<String>,
    /// Who made it, in words.
    pub origin: String,
}

impl Netlink {
    /// All routes of all tables, without the kernel's cache.
    ///
    /// # Errors
    ///
    /// When the kernel can't be asked.
    pub async fn routes(&self) -> Result<Vec<Route>, NetlinkError> {
        let mut routes = Vec::new();
        for is_ipv4 in [true, false] {
            let mut question = RouteMessage::default();
            question.header.address_family = family(is_ipv4);
            let question = RouteNetlinkMessage::GetRoute(question);
            for answer in self.dump(question, "list the routes").await? {
                if let RouteNetlinkMessage::NewRoute(message) = answer
                    && message.header.address_family == family(is_ipv4)
                    && !message.header.flags.contains(RouteFlags::Cloned)
                {
                    routes.extend(read(&message));
                }
            }
        }
        Ok(routes)
    }

    /// The routes in every table that podmesh did not make and that lead somewhere, for the check
    /// whether a network's ranges collide with what the node already has. Without the node's own
    /// addresses, multicast and link-local; with the default route.
    ///
    /// # Errors
    ///
    /// When the kernel can't be asked.
    pub async fn foreign_routes(&self) -> Result<Vec<ForeignRoute>, NetlinkError> {
        let links = self.links().await?;
        let name = |index| {
            links
                .iter()
                .find(|link| link.index == index)
                .map(|link| link.name.clone())
        };
        let routes = self
            .routes()
            .await?
            .into_iter()
            .filter(is_foreign)
            .map(|route| ForeignRoute {
                prefix: route.prefix,
                table: route.table,
                device: route.device.and_then(name),
                origin: origin(route.protocol),
            });
        Ok(routes.collect())
    }

    /// Adds a route, or puts it in the place of the one with the same prefix and metric.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; without `replace` also when there is one.
    pub async fn add_route(&self, route: &Route, replace: bool) -> Result<(), NetlinkError> {
        let mode = if replace { Mode::Replace } else { Mode::Create };
        let message = RouteNetlinkMessage::NewRoute(describe(route));
        self.change(message, mode, format_args!("add route {route}"))
            .await
    }

    /// Removes a route.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, also when there is none.
    pub async fn remove_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::DelRoute(describe(route));
        self.change(
            message,
            Mode::Existing,
            format_args!("remove route {route}"),
        )
        .await
    }
}

/// Who made a route, in words. The numbers are those of `/etc/iproute2/rt_protos`.
#[must_use]
pub fn origin(protocol: u8) -> String {
    let name = match protocol {
        1 => "an ICMP redirect",
        2 => "the kernel, for an interface's address",
        3 => "boot or a script",
        4 => "an administrator",
        9 => "IPv6 router advertisement",
        11 => "zebra",
        12 => "BIRD",
        16 => "DHCP",
        42 => "babel",
        80 => "Cilium or Calico",
        186 => "BGP",
        188 => "OSPF",
        PROTOCOL => "podmesh",
        POD_PROTOCOL => "the podmesh CNI plugin",
        other => return format!("route protocol {other}"),
    };
    name.to_owned()
}

fn is_foreign(route: &Route) -> bool {
    let local_only = match route.prefix {
        IpNet::V4(prefix) => prefix.addr().is_link_local() || prefix.addr().is_multicast(),
        IpNet::V6(prefix) => prefix.addr().is_unicast_link_local() || prefix.addr().is_multicast(),
    };
    let ours = route.table == TABLE || matches!(route.protocol, PROTOCOL | POD_PROTOCOL);
    route.kind == RouteKind::Unicast && route.table != LOCAL_TABLE && !ours && !local_only
}

fn describe(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(route.prefix.addr().is_ipv4());
    header.destination_prefix_length = route.prefix.prefix_len();
    header.protocol = RouteProtocol::from(route.protocol);
    header.kind = match route.kind {
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Local => RouteType::Local,
        RouteKind::Unreachable => RouteType::Unreachable,
        RouteKind::Other(number) => RouteType::from(number),
    };
    header.scope = match route.kind {
        // IPv6 has no scopes.
        _ if !route.prefix.addr().is_ipv4() => RouteScope::Universe,
        RouteKind::Local => RouteScope::Host,
        RouteKind::Unicast if route.gateway.is_none() => RouteScope::Link,
        _ => RouteScope::Universe,
    };
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Table(route.table));
    attributes.push(RouteAttribute::Destination(route.prefix.network().into()));
    attributes.push(RouteAttribute::Priority(route.metric));
    attributes.extend(route.device.map(RouteAttribute::Oif));
    attributes.extend(
        route
            .gateway
            .map(|address| RouteAttribute::Gateway(address.into())),
    );
    attributes.extend(
        route
            .source
            .map(|address| RouteAttribute::PrefSource(address.into())),
    );
    attributes.extend(
        route
            .mtu
            .map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])),
    );
    message
}

fn read(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let length = header.destination_prefix_length;
    let any = if header.address_family == family(true) {
        IpNet::V4(Ipv4Net::default())
    } else {
        IpNet::V6(Ipv6Net::default())
    };
    let mut route = Route {
        prefix: any,
        table: header.table.into(),
        kind: match header.kind {
            RouteType::Unicast => RouteKind::Unicast,
            RouteType::Local => RouteKind::Local,
            RouteType::Unreachable => RouteKind::Unreachable,
            other => RouteKind::Other(other.into()),
        },
        protocol: header.protocol.into(),
        metric: 0,
        device: None,
        more_devices: Vec::new(),
        gateway: None,
        source: None,
        mtu: None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                route.prefix = IpNet::new(ip(address)?, length).ok()?;
            }
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Oif(index) => route.device = Some(*index),
            RouteAttribute::MultiPath(hops) => {
                let mut devices = hops.iter().map(|hop| hop.interface_index);
                route.device = devices.next();
                route.more_devices = devices.collect();
            }
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    if !matches!(route.kind, RouteKind::Unicast | RouteKind::Local) {
        // IPv6 lists these with the loopback as device.
        route.device = None;
    }
    Some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_survives_its_message() {
        for (prefix, source) in [
            ("10.42.7.0/24", "10.77.0.1"),
            ("fd00:1:2:3::/64", "fd00::1"),
        ] {
            for kind in [RouteKind::Unicast, RouteKind::Local, RouteKind::Unreachable] {
                let unicast = kind != RouteKind::Unreachable;
                let route = Route {
                    prefix: prefix.parse().expect("a prefix"),
                    table: TABLE,
                    kind,
                    protocol: PROTOCOL,
                    metric: 128,
                    device: unicast.then_some(7),
                    more_devices: Vec::new(),
                    gateway: None,
                    source: unicast.then(|| source.parse().expect("an address")),
                    mtu: unicast.then_some(1280),
                };
                assert_eq!(read(&describe(&route)), Some(route));
            }
        }
    }

    #[test]
    fn only_routes_of_others_that_lead_somewhere_are_foreign() {
        let foreign = |prefix: &str, table, protocol, kind| {
            is_foreign(&Route {
                prefix: prefix.parse().expect("a prefix"),
                table,
                kind,
                protocol,
                metric: 0,
                device: Some(2),
                more_devices: Vec::new(),
                gateway: None,
                source: None,
                mtu: None,
            })
        };
        let unicast = RouteKind::Unicast;
        assert!(foreign("10.0.0.0/8", MAIN_TABLE, 4, unicast));
        assert!(foreign("0.0.0.0/0", 100, 16, unicast));
        assert!(!foreign("10.42.0.0/16", TABLE, PROTOCOL, unicast));
        assert!(!foreign("10.42.1.9/32", TABLE, POD_PROTOCOL, unicast));
        assert!(!foreign("192.0.2.1/32", LOCAL_TABLE, 2, RouteKind::Local));
        assert!(!foreign("fe80::/64", MAIN_TABLE, 2, unicast));
        assert!(!foreign("ff00::/8", LOCAL_TABLE, 2, RouteKind::Other(5)));
        assert!(!foreign(
            "10.0.0.0/8",
            MAIN_TABLE,
            4,
            RouteKind::Unreachable
        ));
    }
}
