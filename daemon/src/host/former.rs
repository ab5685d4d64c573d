//! What memberships leave on the host when they have ended: for as long as pods of theirs stand, nothing to or
//! from their ranges leaves in plaintext, whatever network the node has joined since. Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use podmesh_engine::host_plan::HostPlan;
use podmesh_kernel::nft::GuardRules;
use podmesh_proto::node_file::NodeFile;

use super::wanted::mark;
use super::{HostConfig, VETH_PREFIX};

/// Those of the `known` memberships, the `present` one aside, whose ranges must stay closed: a pod stands that
/// is of theirs, or may be. What lies in the present network's ranges altogether needs no care of its own.
/// `pods` has the addresses of each, as far as it tells.
pub(super) fn standing(
    known: Vec<NodeFile>,
    present: Option<&NodeFile>,
    pods: &[Vec<IpAddr>],
) -> Vec<NodeFile> {
    let ranges = known.iter().chain(present);
    let all: Vec<Vec<IpNet>> = ranges.map(|file| file.protected.clone()).collect();
    let mut standing = known;
    standing.retain(|file| {
        let is_covered = |range: &IpNet| {
            present.is_some_and(|present| present.protected.iter().any(|own| own.contains(range)))
        };
        let mut pods = pods.iter();
        !file.protected.iter().all(is_covered)
            && pods.any(|pod| may_be_of(pod, &file.protected, &all))
    });
    standing
}

/// Whether all that is known of a pod's addresses lies in these `ranges`. One that fits no membership, or says
/// nothing, may be of any. Networks with one range in common are told apart by the others.
fn may_be_of(pod: &[IpAddr], ranges: &[IpNet], all: &[Vec<IpNet>]) -> bool {
    let within =
        |ranges: &[IpNet], address: &IpAddr| ranges.iter().any(|range| range.contains(address));
    let is_known = |address: &&IpAddr| all.iter().any(|ranges| within(ranges, address));
    let known: Vec<&IpAddr> = pod.iter().filter(is_known).collect();
    let fits =
        |ranges: &[IpNet]| !known.is_empty() && known.iter().all(|address| within(ranges, address));
    fits(ranges) || !all.iter().any(|ranges| fits(ranges))
}

/// The node file of a member on whose node these `former` memberships stand, too. The network has its own
/// ranges and its services' to itself: only what is left of the others' is closed.
pub(super) fn beside(mut file: NodeFile, former: &[NodeFile]) -> NodeFile {
    let own = [&file.protected[..], &file.service_ranges[..]].concat();
    let left = former
        .iter()
        .flat_map(|gone| without(&gone.protected, &own));
    file.closed = IpNet::aggregate(&left.collect());
    file.closed.sort();
    let is_closed = |cidr: &&IpNet| file.closed.iter().any(|range| range.contains(*cidr));
    let cidrs = former.iter().flat_map(|gone| &gone.pod_cidrs);
    file.former_pod_cidrs = cidrs.filter(is_closed).copied().collect();
    file.former_pod_cidrs.sort();
    file.former_pod_cidrs.dedup();
    file
}

/// What is left of `ranges` without the addresses of the others.
fn without(ranges: &[IpNet], others: &[IpNet]) -> Vec<IpNet> {
    let mut left = ranges.to_vec();
    for other in others {
        left = left.iter().flat_map(|range| cut(range, other)).collect();
    }
    left
}

fn cut(range: &IpNet, other: &IpNet) -> Vec<IpNet> {
    if other.contains(range) {
        return Vec::new();
    }
    let halves = range.subnets(range.prefix_len() + 1);
    match halves {
        Ok(halves) if range.contains(other) => halves.flat_map(|half| cut(&half, other)).collect(),
        _ => vec![*range],
    }
}

/// The guard of a node that is no member: what the `plan` keeps closed, and what the pods of the former
/// memberships were attached under, with the interfaces that the configuration names by now.
pub(super) fn closed_guard(
    plan: &HostPlan,
    config: &HostConfig,
    former: &[NodeFile],
) -> GuardRules {
    let of_all = |ranges: fn(&NodeFile) -> &[IpNet]| -> Vec<IpNet> {
        former.iter().flat_map(ranges).copied().collect()
    };
    let mut protected = plan.protected.clone();
    protected.extend(of_all(|file| &file.protected));
    protected.sort();
    protected.dedup();
    let overlay = former.iter().flat_map(|file| &file.overlay_addresses);
    GuardRules {
        device: plan.device.clone(),
        veth_prefix: VETH_PREFIX.to_owned(),
        local_devices: config.local_devices.clone(),
        protected,
        own_pod_cidrs: of_all(|file| &file.pod_cidrs),
        own_overlay: overlay.copied().collect(),
        mark: mark(config.mark),
    }
}

#[cfg(test)]
mod tests {
    use podmesh_proto::mark::Mark;
    use podmesh_proto::node_file::NODE_FILE_SCHEMA;

    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn pod(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// A network of these ranges, the node's pods in the first.
    fn network(name: &str, protected: &[&str], pod_cidrs: &[&str]) -> NodeFile {
        NodeFile {
            schema: NODE_FILE_SCHEMA.to_owned(),
            network: name.to_owned(),
            node: "alpha".to_owned(),
            device: "mesh0".to_owned(),
            mtu: 1280,
            pod_cidrs: nets(pod_cidrs),
            overlay_addresses: Vec::new(),
            protected: nets(protected),
            service_ranges: Vec::new(),
            local_devices: Vec::new(),
            mark: Mark::DEFAULT,
            closed: Vec::new(),
            former_pod_cidrs: Vec::new(),
        }
    }

    fn lab() -> NodeFile {
        let protected = ["10.42.0.0/16", "10.77.0.0/16", "fd01::/48"];
        network("lab", &protected, &["10.42.3.0/24", "fd01:0:0:3::/64"])
    }

    fn two() -> NodeFile {
        let protected = ["10.50.0.0/16", "10.78.0.0/16", "fd02::/48"];
        network("two", &protected, &["10.50.1.0/24", "fd02:0:0:1::/64"])
    }

    fn names(known: Vec<NodeFile>, present: Option<&NodeFile>, pods: &[Vec<IpAddr>]) -> String {
        let standing = standing(known, present, pods).into_iter();
        standing
            .map(|file| file.network)
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn a_former_network_stays_closed_until_its_last_pod_is_gone_whatever_the_node_has_joined() {
        let of_lab = pod(&["10.42.3.2", "fd01:0:0:3::2"]);
        let of_two = pod(&["10.50.1.2", "fd02:0:0:1::2"]);
        let three = network("three", &["10.60.0.0/16", "fd03::/48"], &["10.60.1.0/24"]);
        let known = || vec![two(), lab()];
        for present in [None, Some(&three)] {
            let names = |pods: &[Vec<IpAddr>]| names(known(), present, pods);
            assert_eq!(names(&[of_lab.clone(), of_two.clone()]), "two lab");
            assert_eq!(names(std::slice::from_ref(&of_lab)), "lab");
            assert_eq!(names(std::slice::from_ref(&of_two)), "two");
            assert_eq!(names(&[]), "");
            // What can't be told is taken for the worse.
            assert_eq!(names(&[pod(&[])]), "two lab");
            assert_eq!(names(&[pod(&["10.9.9.9"])]), "two lab");
        }
        let of_three = pod(&["10.60.1.2", "fd03::2"]);
        assert_eq!(names(known(), Some(&three), &[of_three]), "");
        assert_eq!(names(known(), Some(&two()), &[of_lab, of_two]), "lab");
    }

    #[test]
    fn a_new_membership_of_the_same_ranges_takes_the_pods_over() {
        let again = network(
            "lab",
            &["10.42.0.0/16", "10.77.0.0/16", "fd01::/48"],
            &["10.42.9.0/24"],
        );
        let stands = [pod(&["10.42.3.2", "fd01:0:0:3::2"])];
        assert_eq!(names(vec![lab()], Some(&again), &stands), "");
        // When it has ended, too, its own record is that of all of them.
        assert_eq!(names(vec![again], None, &stands), "lab");
        // An edition of the network with one range moved leaves the other.
        let moved = network(
            "lab",
            &["10.43.0.0/16", "10.77.0.0/16", "fd01::/48"],
            &["10.43.3.0/24"],
        );
        assert_eq!(names(vec![lab()], Some(&moved), &stands), "lab");
        assert_eq!(beside(moved, &[lab()]).closed, nets(&["10.42.0.0/16"]));
    }

    #[test]
    fn networks_with_ranges_in_common_are_told_apart_by_the_others() {
        // As by default: one IPv4 range for all, IPv6 by the network's id.
        let usual = |name, v6| network(name, &["10.42.0.0/16", v6], &["10.42.3.0/24"]);
        let (first, second) = (usual("first", "fd01::/48"), usual("second", "fd02::/48"));
        let pods = [pod(&["10.42.3.2", "fd02::2"])];
        assert_eq!(names(vec![first.clone()], Some(&second), &pods), "");
        let pods = [pod(&["10.42.3.3", "fd01::3"])];
        assert_eq!(names(vec![first.clone()], Some(&second), &pods), "first");
        let file = beside(second, &[first]);
        assert_eq!(file.closed, nets(&["fd01::/48"]));
        assert_eq!(file.former_pod_cidrs, nets(&[]), "others' by now");
    }

    #[test]
    fn what_the_new_network_has_of_a_former_ones_ranges_is_its_own() {
        let own = "10.42.3.0/24";
        let old = || network("old", &["10.0.0.0/14", "10.77.0.0/16"], &["10.2.3.0/24"]);
        for (protected, services, closed, former) in [
            (
                vec!["10.50.0.0/16"],
                vec![],
                vec!["10.0.0.0/14", "10.77.0.0/16"],
                vec!["10.2.3.0/24"],
            ),
            (vec!["10.0.0.0/14"], vec![], vec!["10.77.0.0/16"], vec![]),
            (vec!["10.0.0.0/8"], vec![], vec![], vec![]),
            (
                vec!["10.2.0.0/16"],
                vec![],
                vec!["10.0.0.0/15", "10.3.0.0/16", "10.77.0.0/16"],
                vec![],
            ),
            (
                vec!["10.50.0.0/16"],
                vec!["10.0.0.0/15", "10.77.0.0/17"],
                vec!["10.2.0.0/15", "10.77.128.0/17"],
                vec!["10.2.3.0/24"],
            ),
        ] {
            let mut new = network("new", &protected, &[own]);
            new.service_ranges = nets(&services);
            let file = beside(new.clone(), &[old()]);
            assert_eq!(file.closed, nets(&closed), "{protected:?} {services:?}");
            assert_eq!(
                file.former_pod_cidrs,
                nets(&former),
                "{protected:?} {services:?}"
            );
            assert_eq!(
                (&file.protected, &file.pod_cidrs),
                (&new.protected, &new.pod_cidrs)
            );
            assert_eq!(beside(file.clone(), &[old()]), file, "settled");
            assert_eq!(beside(file, &[]), new, "gone with the last pod");
        }
    }

    #[test]
    fn every_address_is_the_networks_or_closed_and_never_both() {
        let old = network("old", &["fd01::/48"], &[]);
        let new = network("new", &["fd01:0:0:ffff:ffff:ffff:ffff:ffff/128"], &[]);
        let file = beside(new, &[old.clone(), old]);
        assert_eq!(file.closed.len(), 80);
        file.validate().unwrap();
        let own = file.protected[0];
        assert!(file.closed.iter().all(|range| !range.contains(&own)));
        for bit in 0..80 {
            let IpNet::V6(own) = own else { unreachable!() };
            let other = IpAddr::from((u128::from(own.addr()) ^ (1 << bit)).to_be_bytes());
            assert_eq!(
                file.closed
                    .iter()
                    .filter(|range| range.contains(&other))
                    .count(),
                1
            );
        }
    }
}
