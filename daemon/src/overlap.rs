//! Whether a network's ranges collide with what this node can reach already.
//!
//! Checked before a join is accepted: afterwards a packet to such an address would go into the mesh
//! or to its old place, depending on luck.

use std::fmt;

use ipnet::IpNet;
use podmesh_kernel::route::ForeignRoute;
use podmesh_proto::network::Ranges;

/// kube-proxy's device for service addresses in its IPVS mode: they are the cluster's own.
const SERVICE_DEVICE: &str = "kube-ipvs0";
const MAIN_TABLE: u32 = 254;
/// Routes that have a line of their own.
const MOST_NAMED: usize = 3;

/// What helps a node with a route in a range of the network.
pub(crate) const NEXT: &str =
    "take this node off that range, or create the network with another one";

/// A range of the network and a route of the node that hold common addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the network's {kind} range {range} overlaps the route {route}{place}; take this node off that range, or create the network with another one"
)]
pub(crate) struct Overlap {
    kind: RangeKind,
    range: IpNet,
    route: IpNet,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RangeKind {
    Overlay,
    Pod,
    Service,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    device: Option<String>,
    table: u32,
    origin: String,
}

/// Refuses ranges that hold an address of another route, or lie within one. Default routes lead
/// everywhere and collide with nothing; `device` is the mesh's own.
///
/// # Errors
/// The first collision.
pub(crate) fn check(ranges: &Ranges, device: &str, routes: &[ForeignRoute]) -> Result<(), Overlap> {
    let real = |route: &&ForeignRoute| {
        route.prefix.prefix_len() > 0 && route.device.as_deref() != Some(device)
    };
    for (kind, range) in kinds(ranges) {
        let collides = |route: &&ForeignRoute| {
            let cluster =
                kind == RangeKind::Service && route.device.as_deref() == Some(SERVICE_DEVICE);
            overlap(&range, &route.prefix) && !cluster
        };
        if let Some(route) = routes.iter().filter(real).find(collides) {
            return Err(Overlap {
                kind,
                range,
                route: route.prefix,
                place: Place::of(route),
            });
        }
    }
    Ok(())
}

/// Routes that came after the join and lie in one of the network's ranges, or around it: sentences for
/// `meshctl status`. The service ranges are the cluster's own.
pub(crate) fn later(protected: &[IpNet], device: &str, routes: &[ForeignRoute]) -> Vec<String> {
    let real = routes
        .iter()
        .filter(|route| route.prefix.prefix_len() > 0 && route.device.as_deref() != Some(device));
    let found = real.filter_map(|route| {
        let range = protected.iter().find(|range| overlap(range, &route.prefix))?;
        let place = Place::of(route);
        Some(format!(
            "packets for the route {}{place} go to the mesh, where nobody has them, as the network's range \
             {range} has common addresses with it",
            route.prefix
        ))
    });
    let mut found: Vec<_> = found.collect();
    found.sort();
    found.dedup();
    let more = found.len().saturating_sub(MOST_NAMED);
    found.truncate(MOST_NAMED);
    if more > 0 {
        found.push(format!("and {more} more routes like these"));
    }
    found
}

fn kinds(ranges: &Ranges) -> impl Iterator<Item = (RangeKind, IpNet)> {
    let services = ranges
        .services
        .iter()
        .map(|range| (RangeKind::Service, *range));
    [
        (RangeKind::Overlay, IpNet::V4(ranges.overlay4)),
        (RangeKind::Overlay, IpNet::V6(ranges.overlay6)),
        (RangeKind::Pod, IpNet::V4(ranges.pods4)),
        (RangeKind::Pod, IpNet::V6(ranges.pods6)),
    ]
    .into_iter()
    .chain(services)
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

impl fmt::Display for RangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Overlay => "overlay",
            Self::Pod => "pod",
            Self::Service => "service",
        })
    }
}

impl Place {
    fn of(route: &ForeignRoute) -> Self {
        Self {
            device: route.device.clone(),
            table: route.table,
            origin: route.origin.clone(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(device) = &self.device {
            write!(f, " of {device}")?;
        }
        write!(f, " (from {}", self.origin)?;
        if self.table != MAIN_TABLE {
            write!(f, ", table {}", self.table)?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use podmesh_proto::id::NetworkId;

    use super::*;

    fn route(prefix: &str, device: &str) -> ForeignRoute {
        ForeignRoute {
            prefix: prefix.parse().unwrap(),
            table: MAIN_TABLE,
            device: Some(device.to_owned()),
            origin: "DHCP".to_owned(),
        }
    }

    fn ranges() -> Ranges {
        let mut ranges = Ranges::default_of(&NetworkId([7; 16]));
        ranges.services = vec!["192.168.0.0/16".parse().unwrap()];
        ranges
    }

    #[test]
    fn each_kind_of_range_is_held_against_every_real_route() {
        for (prefix, device, expected) in [
            ("192.0.2.0/24", "eth0", None),
            ("0.0.0.0/0", "eth0", None),
            ("::/0", "eth0", None),
            ("10.77.0.0/16", "mesh0", None),
            ("172.17.0.0/16", "docker0", None),
            ("192.168.7.1/32", "kube-ipvs0", None),
            ("10.42.1.0/24", "kube-ipvs0", Some("pod range 10.42.0.0/16")),
            ("10.77.3.0/24", "eth0", Some("overlay range 10.77.0.0/16")),
            ("10.0.0.0/8", "tun9", Some("overlay range 10.77.0.0/16")),
            ("10.42.0.1/32", "wg0", Some("pod range 10.42.0.0/16")),
            (
                "192.168.1.0/24",
                "wlan0",
                Some("service range 192.168.0.0/16"),
            ),
            (
                "fd07:707:707::/48",
                "eth1",
                Some("overlay range fd07:707:707::/64"),
            ),
            (
                "fd07:707:707:8001::/64",
                "eth1",
                Some("pod range fd07:707:707:8000::/49"),
            ),
        ] {
            let found = check(&ranges(), "mesh0", &[route(prefix, device)]).err();
            let message = found.map(|overlap| overlap.to_string());
            match (expected, &message) {
                (None, None) => {}
                (Some(words), Some(message)) => {
                    assert!(message.contains(words), "{prefix}: {message}");
                    assert!(
                        message.contains(&format!("route {prefix} of {device} (from DHCP)")),
                        "{message}"
                    );
                }
                _ => panic!("{prefix} of {device}: {message:?}"),
            }
        }
    }

    #[test]
    fn routes_that_come_later_are_named_but_for_the_services_own() {
        let protected: Vec<IpNet> = ["10.77.0.0/16", "10.42.0.0/16"]
            .map(|one| one.parse().unwrap())
            .into();
        let said = |routes: &[ForeignRoute]| later(&protected, "mesh0", routes);
        let harmless = [
            route("0.0.0.0/0", "eth0"),
            route("10.42.0.0/16", "mesh0"),
            route("172.17.0.0/16", "docker0"),
            route("192.168.7.1/32", "kube-ipvs0"),
        ];
        assert_eq!(said(&harmless), Vec::<String>::new());
        let found = said(&[
            route("10.42.9.0/24", "flannel.1"),
            route("10.42.9.0/24", "flannel.1"),
        ]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].contains("10.42.9.0/24 of flannel.1 (from DHCP)"),
            "{found:?}"
        );
        let many: Vec<_> = (0..9)
            .map(|net| route(&format!("10.77.{net}.0/24"), "docker0"))
            .collect();
        let found = said(&many);
        assert_eq!(found.len(), MOST_NAMED + 1);
        assert_eq!(found[MOST_NAMED], "and 6 more routes like these");
    }

    #[test]
    fn another_table_is_named() {
        let mut vpn = route("10.42.0.0/24", "tun9");
        (vpn.table, vpn.device) = (52, None);
        let message = check(&ranges(), "mesh0", &[vpn]).unwrap_err().to_string();
        assert!(
            message.contains("route 10.42.0.0/24 (from DHCP, table 52)"),
            "{message}"
        );
    }
}
