//! What must stand before any pod is attached: forwarding, and the two layers that keep packets
//! for the network from leaving unencrypted.

use std::{net::IpAddr, sync::Arc};

use podmesh_kernel::{
    host,
    mark::Mark,
    netlink::Netlink,
    nft::{self, GuardRules},
    sysctl::{self, IpFamily, OwnInterfaces},
    veth,
};
use podmesh_proto::node_file::NodeFile;

use crate::{
    attachment::HOST_PREFIX,
    node,
    reply::{Code, Failure},
};

/// Puts in place what is missing; cheap when nothing is.
pub(crate) fn ensure(node: &NodeFile) -> Result<(), Failure> {
    refuse_own_underlay(node)?;
    ensure_routes(node)?;
    let rules = rules(node);
    if nft::ensure(&rules).map_err(|error| not_yet(&error))? {
        // Whether they can be forgotten or not, none of them leaves with a pod's address any more.
        let _ = nft::forget_strays(&rules);
    }
    let own = OwnInterfaces {
        device: &node.device,
        veth_prefix: HOST_PREFIX,
    };
    for family in families(node) {
        sysctl::ensure_forwarding(family, own).map_err(|error| not_yet(&error))?;
    }
    // meshd says what this finds; here it is done because meshd may not run.
    let _ = sysctl::keep_learning(own, &[]);
    Ok(())
}

/// Whether both layers stand and the node forwards; changes nothing.
pub(crate) fn check(node: &NodeFile) -> Result<(), Failure> {
    let damaged = |sentence: &str| Failure::new(Code::Damaged, sentence);
    match nft::check(&rules(node)) {
        Ok(true) => {}
        Ok(false) => return Err(damaged("the nftables rules of podmesh are not as wanted")),
        Err(error) => return Err(damaged(&error.to_string())),
    }
    let protected = node::routable(&node.guarded());
    let missing = with_netlink(async |netlink| {
        host::missing_fail_closed_routes(&netlink, &protected, mark(node))
            .await
            .map_err(|error| damaged(&error.to_string()))
    })?;
    if let Some(missing) = missing {
        return Err(damaged(&format!("the node has no {missing}")));
    }
    let off = families(node)
        .into_iter()
        .find(|family| !sysctl::forwards(*family));
    match off {
        Some(IpFamily::V4) => Err(damaged("the node does not forward IPv4")),
        Some(IpFamily::V6) => Err(damaged("the node does not forward IPv6")),
        None => Ok(()),
    }
}

/// The first layer: a rule for every range, and behind it a route that leads nowhere.
fn ensure_routes(node: &NodeFile) -> Result<(), Failure> {
    with_netlink(async |netlink| {
        host::ensure_fail_closed_routes(&netlink, &node::routable(&node.guarded()), mark(node))
            .await
            .map_err(|error| not_yet(&error))?;
        Ok(())
    })
}

fn with_netlink<T>(
    work: impl AsyncFnOnce(Arc<Netlink>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(|error| not_yet(&error))?;
    runtime.block_on(async {
        let netlink = Netlink::connect().map_err(|error| not_yet(&error))?;
        work(Arc::new(netlink)).await
    })
}

fn rules(node: &NodeFile) -> GuardRules {
    GuardRules {
        device: node.device.clone(),
        veth_prefix: HOST_PREFIX.to_owned(),
        local_devices: node.local_devices.clone(),
        protected: node.guarded(),
        own_pod_cidrs: node.standing_pod_cidrs(),
        own_overlay: node.overlay_addresses.clone(),
        mark: mark(node),
    }
}

fn mark(node: &NodeFile) -> Mark {
    Mark {
        value: node.mark.value(),
        mask: node.mark.mask(),
    }
}

fn families(node: &NodeFile) -> Vec<IpFamily> {
    node::routable(&node.pod_cidrs)
        .iter()
        .map(|cidr| match cidr.addr() {
            IpAddr::V4(_) => IpFamily::V4,
            IpAddr::V6(_) => IpFamily::V6,
        })
        .collect()
}

/// A range that holds an address of the node's own underlay would cut the node off.
fn refuse_own_underlay(node: &NodeFile) -> Result<(), Failure> {
    let is_own = |name: &str| {
        name == node.device
            || name == "lo"
            || name.starts_with(HOST_PREFIX)
            || node.local_devices.iter().any(|device| device == name)
    };
    let found = veth::find_address(|name, address| {
        !is_own(name)
            && !node.overlay_addresses.contains(address)
            && node.protected.iter().any(|range| range.contains(address))
    })
    .map_err(|error| Failure::new(Code::Kernel, error.to_string()))?;
    match found {
        None => Ok(()),
        Some((name, address)) => Err(Failure::new(
            Code::NodeFile,
            format!(
                "{address} on {name} lies in a range of the network: \
                 one of the two must move, or {name} be named in local_devices"
            ),
        )),
    }
}

fn not_yet(error: &dyn std::error::Error) -> Failure {
    Failure::new(
        Code::TryAgainLater,
        format!("packets of pods could leave unencrypted, so no pod is attached: {error}"),
    )
}
