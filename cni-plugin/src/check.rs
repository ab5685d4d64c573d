//! CHECK: whether an attachment is still as ADD made it.

use std::net::IpAddr;

use ipnet::IpNet;
use podmesh_kernel::{netns::NetNamespace, veth};
use podmesh_proto::node_file::NodeFile;
use serde_json::Value;

use crate::{
    add, guard,
    ledger::{self, Ledger, Moment},
    node,
    reply::{Code, Failure},
    request::Request,
};

/// Compares the ledger, the earlier answer, both ends of the pair with everything that hangs on
/// them, and, as long as the node is a member, the guard.
pub(crate) fn run(request: &Request) -> Result<(), Failure> {
    let attachment = request.attachment()?;
    let pod = NetNamespace::open(request.netns()?)
        .map_err(|error| Failure::new(Code::InvalidEnvironment, format!("CNI_NETNS: {error}")))?;
    let interfaces = add::interfaces()?;
    let ledger = Ledger::open(&request.config.data_dir, Moment::read()?, &interfaces)?;
    let name = attachment.host_name();
    let record = ledger.records().find(|(known, _)| *known == name);
    let record = record.and_then(|(_, record)| record.cloned());
    drop(ledger);
    let record = record.ok_or_else(|| damaged(&format!("{attachment} is not in the ledger")))?;
    if let Some(previous) = &request.config.prev_result {
        let answered = answered_addresses(previous);
        if let Some(missing) = record.addresses.iter().find(|own| !answered.contains(own)) {
            return Err(damaged(&format!(
                "{attachment} has {missing}, which the earlier answer does not name"
            )));
        }
    }
    // Pods of a membership that has ended stand behind what meshd keeps closed.
    let node = node::read(&request.config).ok();
    if let Some(stray) = node
        .as_ref()
        .and_then(|node| stray(&record.addresses, node))
    {
        return Err(damaged(&format!("{attachment} has {stray}")));
    }
    // The MTU is not compared: meshd may have learned a better one since.
    let link = add::describe(&record, ledger::owner(&request.config), 0);
    veth::check(&link, &pod).map_err(|error| damaged(&error.to_string()))?;
    node.map_or(Ok(()), |node| guard::check(&node))
}

/// The first of a pod's addresses that is none of the node's, in words: the node has left and joined again, or
/// joined by a token of other ranges, and nobody reaches the pod there. Where the mesh's IPv6 is left out,
/// no node's ranges of it are known.
fn stray(addresses: &[IpAddr], node: &NodeFile) -> Option<String> {
    let has_v6 = node.overlay_addresses.iter().any(IpAddr::is_ipv6);
    let is_own = |address: &IpAddr| node.pod_cidrs.iter().any(|cidr| cidr.contains(address));
    let mut known = addresses.iter().filter(|one| one.is_ipv4() || has_v6);
    let stray = known.find(|address| !is_own(address))?;
    let own: Vec<_> = node.pod_cidrs.iter().map(IpNet::to_string).collect();
    Some(format!(
        "{stray}, which is in none of this node's present pod CIDRs ({}), so that nobody reaches it there; \
         delete the pod, and the runtime makes it anew",
        own.join(", ")
    ))
}

fn answered_addresses(previous: &Value) -> Vec<IpAddr> {
    let ips = previous.get("ips").and_then(Value::as_array);
    ips.into_iter()
        .flatten()
        .filter_map(|entry| {
            entry
                .get("address")?
                .as_str()?
                .split('/')
                .next()?
                .parse()
                .ok()
        })
        .collect()
}

fn damaged(sentence: &str) -> Failure {
    Failure::new(Code::Damaged, sentence)
}
