//! Which of the node's addresses other nodes could reach it by.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::netlink::{Netlink, NetlinkError};
use crate::route::{Route, RouteKind, TABLE};

/// Interfaces of containers and of their networks, by the beginning of their names. The kind can't
/// decide: a machine's uplink may itself be a veth or a bridge.
const CONTAINER_PREFIXES: [&str; 12] = [
    "veth",
    "cali",
    "cni",
    "docker",
    "flannel",
    "cilium",
    "lxc",
    "virbr",
    "nodelocaldns",
    "kube-ipvs",
    "podman",
    "pm",
];
/// Docker names the bridge of a network by this and twelve digits of the network's number. Uplinks begin the
/// same: `br-ex` of OpenStack, `br-lan` of OpenWrt.
const DOCKER_BRIDGE: &str = "br-";
const DOCKER_BRIDGE_DIGITS: usize = 12;

/// An address of the node, with what is needed to judge it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnderlayAddress {
    /// The address with the length of its prefix.
    pub address: IpNet,
    /// Name of the interface.
    pub interface: String,
    /// What the interface is ("veth", "bridge"); `None` for hardware.
    pub kind: Option<String>,
    /// Whether the interface is up.
    pub up: bool,
    /// Whether the interface is the loopback.
    pub loopback: bool,
    /// Whether a default route leads out by the interface, which none of containers has, whatever its name.
    pub is_uplink: bool,
    /// Duplicate detection is not over or has failed.
    pub tentative: bool,
    /// Not to be used for anything new.
    pub deprecated: bool,
}

impl UnderlayAddress {
    /// Whether others could reach the node by it: not on the loopback, on `device` or on an
    /// interface of containers, not link-local, multicast, tentative or deprecated, and outside
    /// all `excluded` ranges.
    #[must_use]
    pub fn is_usable(&self, device: &str, excluded: &[IpNet]) -> bool {
        let address = self.address.addr();
        self.up
            && !self.loopback
            && !self.tentative
            && !self.deprecated
            && self.interface != device
            && (self.is_uplink || !is_container_interface(&self.interface))
            && is_routable(address)
            && !excluded.iter().any(|range| range.contains(&address))
    }
}

impl Netlink {
    /// All addresses of the node, usable or not.
    ///
    /// # Errors
    ///
    /// When the kernel can't be asked.
    pub async fn underlay_addresses(&self) -> Result<Vec<UnderlayAddress>, NetlinkError> {
        let links = self.links().await?;
        // Only of those whose names speak against them it matters.
        let asks = links.iter().any(|link| is_container_interface(&link.name));
        let uplinks = if asks {
            self.uplinks().await?
        } else {
            HashSet::new()
        };
        let found = self.addresses().await?.into_iter().filter_map(|address| {
            let link = links.iter().find(|link| link.index == address.index)?;
            Some(UnderlayAddress {
                address: address.address,
                interface: link.name.clone(),
                kind: link.kind.clone(),
                up: link.up,
                loopback: link.loopback,
                is_uplink: uplinks.contains(&link.index),
                tentative: address.tentative,
                deprecated: address.deprecated,
            })
        });
        Ok(found.collect())
    }

    /// Interfaces by which a default route of somebody else's leads out, of whatever table.
    async fn uplinks(&self) -> Result<HashSet<u32>, NetlinkError> {
        let routes = self.routes().await?;
        let leads_out = |route: &&Route| {
            route.prefix.prefix_len() == 0
                && route.kind == RouteKind::Unicast
                && route.table != TABLE
        };
        Ok(routes
            .iter()
            .filter(leads_out)
            .flat_map(|route| route.device.into_iter().chain(route.more_devices.clone()))
            .collect())
    }
}

/// Whether an interface belongs to containers, virtual machines or their networks.
#[must_use]
pub fn is_container_interface(name: &str) -> bool {
    let is_dockers = name.strip_prefix(DOCKER_BRIDGE).is_some_and(|digits| {
        digits.len() == DOCKER_BRIDGE_DIGITS
            && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
    });
    is_dockers
        || CONTAINER_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix))
}

fn is_routable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_unspecified()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast())
        }
        IpAddr::V6(v6) => {
            !(v6.is_unspecified()
                || v6.is_loopback()
                || v6.is_unicast_link_local()
                || v6.is_multicast()
                || v6.to_ipv4_mapped().is_some())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(address: &str, interface: &str) -> UnderlayAddress {
        UnderlayAddress {
            address: address.parse().expect("an address"),
            interface: interface.to_owned(),
            kind: None,
            up: true,
            loopback: false,
            is_uplink: false,
            tentative: false,
            deprecated: false,
        }
    }

    fn is_usable(address: &UnderlayAddress) -> bool {
        let ranges = ["10.77.0.0/16", "10.42.0.0/16", "fd00:1::/48"];
        let excluded = ranges.map(|range| range.parse().expect("a range"));
        address.is_usable("mesh0", &excluded)
    }

    #[test]
    fn uplinks_are_usable_even_when_they_are_veths_or_bridges() {
        for (address, interface, kind) in [
            ("192.0.2.7/24", "eth0", Some("veth")),
            ("10.0.0.4/24", "up0", Some("veth")),
            ("192.168.1.5/24", "br0", Some("bridge")),
            ("192.168.1.5/24", "br-ex", Some("bridge")),
            ("192.168.1.5/24", "br-lan", Some("bridge")),
            ("192.168.1.5/24", "br-0123456789abc", Some("bridge")),
            ("2001:db8::7/64", "enp1s0", None),
            ("fd12:3456::7/64", "wlan0", None),
            ("10.78.0.1/16", "ens3", None),
        ] {
            let kind = kind.map(str::to_owned);
            assert!(
                is_usable(&UnderlayAddress {
                    kind,
                    ..plain(address, interface)
                }),
                "{address}"
            );
        }
    }

    #[test]
    fn container_interfaces_and_our_own_are_not() {
        for interface in [
            "mesh0",
            "pm0123456789a",
            "veth12ab",
            "cali123",
            "cni0",
            "docker0",
            "br-0123456789ab",
            "flannel.1",
            "cilium_host",
            "lxc1234",
            "virbr0",
            "nodelocaldns",
            "kube-ipvs0",
            "podman1",
        ] {
            let address = plain("192.0.2.7/24", interface);
            assert!(!is_usable(&address), "{interface}");
            let uplink = UnderlayAddress {
                is_uplink: true,
                ..address
            };
            assert_eq!(is_usable(&uplink), interface != "mesh0", "{interface}");
        }
    }

    #[test]
    fn addresses_that_nobody_else_can_reach_are_not() {
        for address in [
            "127.0.0.1/8",
            "169.254.1.1/16",
            "224.0.0.1/4",
            "0.0.0.0/8",
            "::1/128",
            "fe80::1/64",
            "ff02::1/128",
            "10.77.0.1/32",
            "10.42.9.1/24",
            "fd00:1::1/128",
            "::ffff:192.0.2.1/128",
        ] {
            assert!(!is_usable(&plain(address, "eth0")), "{address}");
        }
        let good = plain("192.0.2.7/24", "eth0");
        assert!(is_usable(&good));
        assert!(!is_usable(&UnderlayAddress {
            up: false,
            ..good.clone()
        }));
        assert!(!is_usable(&UnderlayAddress {
            loopback: true,
            ..good.clone()
        }));
        assert!(!is_usable(&UnderlayAddress {
            tentative: true,
            ..good.clone()
        }));
        assert!(!is_usable(&UnderlayAddress {
            deprecated: true,
            ..good
        }));
    }
}
