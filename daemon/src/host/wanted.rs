//! What the plan of the engine asks of the kernel: pure but for the question which families there are.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use podmesh_engine::host_plan::HostPlan;
use podmesh_kernel::firewall::Traffic;
use podmesh_kernel::host::{HostState, PeerRoute};
use podmesh_kernel::mark::Mark;
use podmesh_kernel::nft::GuardRules;
use podmesh_kernel::sysctl::{self, IpFamily};
use podmesh_kernel::veth::Holders;
use podmesh_proto::mark::Mark as UnderlayMark;
use podmesh_proto::node_file::NodeFile;

use super::{HostConfig, VETH_PREFIX};

/// Those of the families that the kernel has.
pub(super) fn usable(nets: &[IpNet]) -> Vec<IpNet> {
    of_families(nets, has_v6())
}

fn of_families(nets: &[IpNet], v6: bool) -> Vec<IpNet> {
    let is_usable = |net: &&IpNet| v6 || net.addr().is_ipv4();
    nets.iter().filter(is_usable).copied().collect()
}

/// Whether the kernel has IPv6 at all.
pub(super) fn has_v6() -> bool {
    sysctl::has_family(IpFamily::V6)
}

/// What the kernel should hold; nothing but refusals of IPv6 if the interface can't have it.
pub(super) fn host_state(plan: &HostPlan, (underlay_mark, v6): (UnderlayMark, bool)) -> HostState {
    let routes = plan
        .peer_routes
        .iter()
        .filter(|route| v6 || route.prefix.addr().is_ipv4());
    HostState {
        device: plan.device.clone(),
        mtu: plan.mtu,
        addresses: of_families(&plan.addresses, v6),
        protected: usable(&plan.protected),
        peer_routes: routes
            .map(|route| PeerRoute {
                prefix: route.prefix,
                mtu: route.mtu,
            })
            .collect(),
        local_prefixes: usable(&plan.pod_cidrs),
        source_v4: plan
            .overlay_addresses
            .iter()
            .find_map(|address| match address {
                IpAddr::V4(v4) => Some(*v4),
                IpAddr::V6(_) => None,
            }),
        source_v6: plan
            .overlay_addresses
            .iter()
            .find_map(|address| match address {
                IpAddr::V6(address) if v6 => Some(*address),
                _ => None,
            }),
        mark: mark(underlay_mark),
    }
}

/// Who holds which addresses, of both families whether this kernel has them or not.
pub(super) fn holders(plan: &HostPlan) -> Holders {
    Holders {
        own: plan.pod_cidrs.clone(),
        others: plan.peer_routes.iter().map(|route| route.prefix).collect(),
    }
}

/// In the words of the kernel crate.
pub(super) fn mark(mark: UnderlayMark) -> Mark {
    Mark {
        value: mark.value(),
        mask: mark.mask(),
    }
}

/// What passes this node, for the judgement of others' firewalls.
/// `uplinks` are interfaces with the addresses by which tunnels reach others.
pub(super) fn traffic(
    plan: &HostPlan,
    config: &HostConfig,
    uplinks: &[(String, IpAddr)],
) -> Traffic {
    let with = |is_ipv4: bool| {
        let of_family = uplinks
            .iter()
            .filter(|(_, address)| address.is_ipv4() == is_ipv4);
        let names: BTreeSet<&String> = of_family.map(|(name, _)| name).collect();
        names.into_iter().cloned().collect()
    };
    Traffic {
        device: plan.device.clone(),
        veth_prefix: VETH_PREFIX.to_owned(),
        own_pod_cidrs: usable(&plan.pod_cidrs),
        own_overlay: plan.overlay_addresses.clone(),
        protected: usable(&plan.protected),
        port: config.ports.first().copied(),
        mark: mark(config.mark),
        uplinks: [with(true), with(false)],
    }
}

/// From the node file and nothing else, as the CNI plugin does it: both must want the same.
pub(super) fn guard(file: &NodeFile) -> GuardRules {
    GuardRules {
        device: file.device.clone(),
        veth_prefix: VETH_PREFIX.to_owned(),
        local_devices: file.local_devices.clone(),
        protected: file.guarded(),
        own_pod_cidrs: file.standing_pod_cidrs(),
        own_overlay: file.overlay_addresses.clone(),
        mark: mark(file.mark),
    }
}
