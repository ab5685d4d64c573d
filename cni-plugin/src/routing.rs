//! Where to a pod goes by the interface that it is given. Pure.
//!
//! A pod that has a default route by another interface keeps it: by ours it reaches the mesh and
//! the cluster's services, and nothing else of its traffic changes its way without being told to.

use ipnet::IpNet;
use podmesh_kernel::veth::{self, OtherRoute};

use crate::reply::{Code, Failure};

/// Metrics of routes for which nobody names one; a second of them to one destination can't be.
const USUAL_METRIC_V4: u32 = 0;
const USUAL_METRIC_V6: u32 = 1024;

/// What is known of a pod and its network before its interface is made.
pub(crate) struct Situation<'a> {
    /// The ranges of the mesh and its services.
    pub(crate) ranges: &'a [IpNet],
    /// Whether the configuration says who has the default routes.
    pub(crate) default_route: Option<bool>,
    /// What the pod's main table holds by other interfaces.
    pub(crate) others: &'a [OtherRoute],
    /// Where to the pod goes by its other interfaces of this plugin.
    pub(crate) siblings: &'a [IpNet],
}

/// The destinations for pods with an address of each of these families (true for IPv4).
pub(crate) fn destinations(
    situation: &Situation<'_>,
    families: impl IntoIterator<Item = bool>,
) -> Result<Vec<IpNet>, Failure> {
    let mut destinations = Vec::new();
    for is_v4 in families {
        destinations.extend(of_family(situation, is_v4)?);
    }
    Ok(destinations)
}

fn of_family(situation: &Situation<'_>, is_v4: bool) -> Result<Vec<IpNet>, Failure> {
    let everything = veth::everything(is_v4);
    let usual_metric = if is_v4 {
        USUAL_METRIC_V4
    } else {
        USUAL_METRIC_V6
    };
    let to = |destination: IpNet| {
        let others = situation.others.iter();
        others.filter(move |other| other.destination == destination)
    };
    let has_other = to(everything).next().is_some();
    if situation.default_route.unwrap_or(!has_other) {
        if to(everything).any(|other| other.metric == usual_metric) {
            let family = if is_v4 { "IPv4" } else { "IPv6" };
            return Err(Failure::new(
                Code::InvalidConfig,
                format!(
                    "defaultRoute is true, but the pod has an {family} default route by another \
                     interface already: leave defaultRoute out or set it to false"
                ),
            ));
        }
        return Ok(vec![everything]);
    }
    // A sibling reaches the mesh already; what speaks under this interface's address goes by it.
    if situation.siblings.contains(&everything) {
        return Ok(Vec::new());
    }
    let mut ranges: Vec<_> = situation
        .ranges
        .iter()
        .filter(|range| range.addr().is_ipv4() == is_v4)
        .filter(|range| !to(**range).any(|other| other.metric == usual_metric))
        .copied()
        .collect();
    ranges.sort();
    ranges.dedup();
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGES: [&str; 4] = [
        "10.42.0.0/16",
        "10.96.0.0/12",
        "fd00:1::/48",
        "10.42.0.0/16",
    ];

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn other(destination: &str, metric: u32) -> OtherRoute {
        OtherRoute {
            destination: net(destination),
            metric,
            gateway: None,
        }
    }

    fn decide(
        default_route: Option<bool>,
        others: &[OtherRoute],
        siblings: &[&str],
    ) -> Result<Vec<String>, Code> {
        let situation = Situation {
            ranges: &RANGES.map(net),
            default_route,
            others,
            siblings: &siblings.iter().map(|text| net(text)).collect::<Vec<_>>(),
        };
        let decided = destinations(&situation, [true, false]);
        let texts = |nets: Vec<IpNet>| nets.iter().map(IpNet::to_string).collect();
        decided.map(texts).map_err(|failure| failure.code())
    }

    #[test]
    fn an_only_interface_has_the_default_routes() {
        let lan = [other("192.168.9.0/24", 0)];
        assert_eq!(decide(None, &lan, &[]).unwrap(), ["0.0.0.0/0", "::/0"]);
        assert_eq!(
            decide(Some(true), &lan, &[]).unwrap(),
            ["0.0.0.0/0", "::/0"]
        );
    }

    #[test]
    fn each_family_is_decided_by_itself() {
        assert_eq!(
            decide(None, &[other("0.0.0.0/0", 0)], &[]).unwrap(),
            ["10.42.0.0/16", "10.96.0.0/12", "::/0"]
        );
        assert_eq!(
            decide(None, &[other("::/0", 1024)], &[]).unwrap(),
            ["0.0.0.0/0", "fd00:1::/48"]
        );
    }

    #[test]
    fn a_default_route_of_any_metric_stays_the_pods_way() {
        let others = [other("0.0.0.0/0", 100), other("::/0", 512)];
        let ranges = ["10.42.0.0/16", "10.96.0.0/12", "fd00:1::/48"];
        assert_eq!(decide(None, &others, &[]).unwrap(), ranges);
        assert_eq!(decide(Some(false), &[], &[]).unwrap(), ranges);
        // Unless the configuration says so.
        assert_eq!(
            decide(Some(true), &others, &[]).unwrap(),
            ["0.0.0.0/0", "::/0"]
        );
    }

    #[test]
    fn what_can_not_be_is_refused_and_what_others_have_is_left() {
        let taken = [other("0.0.0.0/0", 0)];
        assert_eq!(decide(Some(true), &taken, &[]), Err(Code::InvalidConfig));
        let taken = [other("::/0", 1024)];
        assert_eq!(decide(Some(true), &taken, &[]), Err(Code::InvalidConfig));
        let taken = [other("0.0.0.0/0", 0), other("10.96.0.0/12", 0)];
        assert_eq!(decide(None, &taken, &[]).unwrap(), ["10.42.0.0/16", "::/0"]);
    }

    #[test]
    fn a_second_interface_of_the_mesh_adds_no_second_way_to_it() {
        let others = [other("0.0.0.0/0", 0), other("::/0", 1024)];
        let none: [&str; 0] = [];
        assert_eq!(decide(None, &others, &["0.0.0.0/0", "::/0"]).unwrap(), none);
    }
}
