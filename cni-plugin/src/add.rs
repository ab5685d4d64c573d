//! ADD: everything is checked first, then made in order, and taken back if a step fails.

use ipnet::IpNet;
use podmesh_kernel::{
    netns::NetNamespace,
    veth::{self, PodLink},
};
use podmesh_proto::node_file::NodeFile;
use serde_json::Value;

use crate::{
    attachment::{Attachment, HOST_PREFIX},
    del, guard,
    ledger::{self, Ledger, Moment, Record, Supply},
    node,
    reply::{Attached, Code, Failure},
    request::Request,
    warn,
};

/// Attaches a pod and describes it. The same call again gives the same addresses.
pub(crate) fn run(request: &Request) -> Result<Value, Failure> {
    let attachment = request.attachment()?;
    let netns = request.netns()?;
    let node = node::read(&request.config)?;
    let cidrs = node::routable(&node.pod_cidrs);
    if cidrs.is_empty() {
        return Err(Failure::new(
            Code::TryAgainLater,
            "this node has no pod CIDR yet: `meshctl status` says what it waits for",
        ));
    }
    let pod = NetNamespace::open(netns)
        .map_err(|error| Failure::new(Code::InvalidEnvironment, format!("CNI_NETNS: {error}")))?;
    guard::ensure(&node)?;
    let record = reserve(request, attachment, &cidrs)?;
    let owner = ledger::owner(&request.config);
    let link = describe(&record, owner, request.config.mtu.unwrap_or(node.mtu));
    if veth::check(&link, &pod).is_err() {
        let made = veth::create(&link, &pod)
            .map_err(|error| Failure::new(Code::Kernel, error.to_string()))
            .and_then(|()| still_member(request, &node));
        if let Err(failure) = made {
            take_back(request, attachment);
            return Err(failure);
        }
    }
    let attached = Attached {
        link: &link,
        netns: &netns.to_string_lossy(),
        dns: request.config.dns.as_ref(),
    };
    let previous = request.config.prev_result.as_ref();
    Ok(attached.to_json(&request.config.cni_version, previous))
}

/// A membership may end while a pod is being attached. meshd first takes its file away, then looks
/// for pods, and only then removes the guard: either it has seen this pod, or this sees the file gone.
fn still_member(request: &Request, before: &NodeFile) -> Result<(), Failure> {
    let after = node::read(&request.config)?;
    if after.network == before.network && after.pod_cidrs == before.pod_cidrs {
        return Ok(());
    }
    Err(Failure::new(
        Code::TryAgainLater,
        "this node's membership has changed while the pod was being attached",
    ))
}

/// The interface pair that belongs to a record.
pub(crate) fn describe(record: &Record, owner: String, mtu: u32) -> PodLink {
    PodLink {
        host_name: record.attachment.host_name(),
        owner,
        pod_name: record.attachment.ifname.clone(),
        host_mac: record.attachment.host_mac(),
        pod_mac: record.attachment.pod_mac(),
        mtu,
        addresses: record.addresses.clone(),
    }
}

fn reserve(request: &Request, attachment: &Attachment, cidrs: &[IpNet]) -> Result<Record, Failure> {
    let kernel = |error: veth::VethError| Failure::new(Code::Kernel, error.to_string());
    let interfaces = veth::list(HOST_PREFIX).map_err(kernel)?;
    let supply = Supply {
        cidrs,
        present: &veth::present_pods(HOST_PREFIX).map_err(kernel)?,
    };
    let config = &request.config;
    let mut ledger = Ledger::open(&config.data_dir, Moment::read()?, &interfaces)?;
    match ledger.reserve(&config.name, attachment, &supply) {
        Err(full) if full.code() == Code::NoAddressLeft => {
            if !ledger.release_abandoned(&interfaces)? {
                return Err(full);
            }
            ledger.reserve(&config.name, attachment, &supply)
        }
        reserved => reserved,
    }
}

fn take_back(request: &Request, attachment: &Attachment) {
    if let Err(failure) = del::remove(&request.config, &attachment.host_name()) {
        // The runtime's DEL, which follows a failed ADD, tries again.
        warn(&failure.to_string());
    }
}
