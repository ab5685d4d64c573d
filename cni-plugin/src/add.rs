//! ADD: everything is checked first, then made in order, and taken back if a step fails.

use ipnet::IpNet;
use podmesh_kernel::{
    netns::NetNamespace,
    veth::{self, PodLink},
};
use serde_json::Value;

use crate::{
    attachment::{Attachment, HOST_PREFIX},
    del, guard,
    ledger::{Ledger, Moment, Record, Supply},
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
    let link = describe(&record, request.config.mtu.unwrap_or(node.mtu));
    if veth::check(&link, &pod).is_err()
        && let Err(error) = veth::create(&link, &pod)
    {
        take_back(request, attachment);
        return Err(Failure::new(Code::Kernel, error.to_string()));
    }
    let attached = Attached {
        link: &link,
        netns: &netns.to_string_lossy(),
        dns: request.config.dns.as_ref(),
    };
    let previous = request.config.prev_result.as_ref();
    Ok(attached.to_json(&request.config.cni_version, previous))
}

/// The interface pair that belongs to a record.
pub(crate) fn describe(record: &Record, mtu: u32) -> PodLink {
    PodLink {
        host_name: record.attachment.host_name(),
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
