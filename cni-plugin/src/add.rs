//! ADD: everything is checked first, then made in order, and taken back if a step fails.

use std::{error::Error, net::IpAddr, thread, time::Duration};

use ipnet::IpNet;
use podmesh_kernel::{
    netns::NetNamespace,
    veth::{self, HostEnd, OtherRoute, PodLink, VethError},
};
use podmesh_proto::node_file::NodeFile;
use serde_json::Value;

use crate::{
    attachment::{Attachment, HOST_PREFIX},
    del, guard,
    ledger::{self, Claim, Ledger, Moment, Record, Sandbox, Supply},
    meshd, node,
    reply::{Attached, Code, Failure},
    request::{Config, Request},
    routing::{self, Situation},
    warn,
};

/// Interfaces that are about to go with their namespaces are waited for this long before an ADD is
/// refused for want of an address: together a second.
const DYING_LOOKS: u32 = 20;
const DYING_POLL: Duration = Duration::from_millis(50);

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
    let no_namespace =
        |cause: &dyn Error| Failure::new(Code::InvalidEnvironment, format!("CNI_NETNS: {cause}"));
    let pod = NetNamespace::open(netns).map_err(|error| no_namespace(&error))?;
    let sandbox = Sandbox::at(netns).map_err(|error| no_namespace(&error))?;
    guard::ensure(&node)?;
    let asked = Asked {
        request,
        node: &node,
        cidrs: &cidrs,
        others: &veth::other_routes(&pod, &attachment.ifname).map_err(|error| kernel(&error))?,
        sandbox: &sandbox,
    };
    let record = asked.reserve(attachment).inspect_err(|failure| {
        if failure.is_of_storage() {
            meshd::tell_trouble(&request.config.runtime_dir, &failure.to_string());
        }
    })?;
    let owner = ledger::owner(&request.config);
    let link = describe(&record, owner, request.config.mtu.unwrap_or(node.mtu));
    if veth::check(&link, &pod).is_err() {
        let made = veth::create(&link, &pod)
            .map_err(|error| kernel(&error))
            .and_then(|()| still_member(request, &node))
            .and_then(|()| still_held(request, &record));
        if let Err(failure) = made {
            take_back(request, attachment);
            return Err(failure);
        }
        meshd::tell_recovery(&request.config.runtime_dir);
    }
    let attached = Attached {
        link: &link,
        netns: &netns.to_string_lossy(),
        dns: request.config.dns.as_ref(),
    };
    let previous = request.config.prev_result.as_ref();
    Ok(attached.to_json(&request.config.cni_version, previous))
}

/// The addresses of a pod whose sandbox goes while it is being attached may be another's by now.
fn still_held(request: &Request, record: &Record) -> Result<(), Failure> {
    if ledger::still_holds(&request.config.data_dir, record)? {
        return Ok(());
    }
    Err(Failure::new(
        Code::TryAgainLater,
        "the pod's sandbox went away while the pod was being attached",
    ))
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
        pod: record.attachment.container_id.clone(),
        pod_name: record.attachment.ifname.clone(),
        host_mac: record.attachment.host_mac(),
        pod_mac: record.mac.unwrap_or_else(|| record.attachment.pod_mac()),
        mtu,
        addresses: record.addresses.clone(),
        destinations: record.destinations.clone(),
    }
}

/// Names of the node's ends that exist.
pub(crate) fn interfaces() -> Result<Vec<String>, Failure> {
    veth::list(HOST_PREFIX).map_err(|error| kernel(&error))
}

/// What an ADD is about, as far as its addresses go.
struct Asked<'a> {
    request: &'a Request,
    node: &'a NodeFile,
    cidrs: &'a [IpNet],
    others: &'a [OtherRoute],
    sandbox: &'a Sandbox,
}

impl Asked<'_> {
    /// Where every address is taken, pods whose sandboxes have just gone are waited for.
    fn reserve(&self, attachment: &Attachment) -> Result<Record, Failure> {
        for _ in 0..DYING_LOOKS {
            match self.try_to_reserve(attachment)? {
                Ok(record) => return Ok(record),
                Err(full) if !full.may_change => return Err(full.failure),
                Err(_) => thread::sleep(DYING_POLL),
            }
        }
        self.try_to_reserve(attachment)?
            .map_err(|full| full.failure)
    }

    fn try_to_reserve(&self, attachment: &Attachment) -> Result<Result<Record, Full>, Failure> {
        let config = &self.request.config;
        let ends = veth::host_ends(HOST_PREFIX).map_err(|error| kernel(&error))?;
        let interfaces: Vec<String> = ends.iter().map(|end| end.name.clone()).collect();
        let supply = Supply {
            cidrs: self.cidrs,
            present: &veth::present_pods(HOST_PREFIX).map_err(|error| kernel(&error))?,
            own: own_addresses(&ends, config, &attachment.host_name()),
            interfaces: &interfaces,
        };
        let mut ledger = Ledger::open(&config.data_dir, Moment::read()?, &interfaces)?;
        if let Some(record) = ledger.standing(attachment, self.sandbox, &supply) {
            return Ok(Ok(record.clone()));
        }
        ledger.release_dead(&interfaces, self::interfaces)?;
        let claim = Claim {
            network: &config.name,
            attachment,
            sandbox: Some(self.sandbox.clone()),
            destinations: self.destinations(attachment, &ledger)?,
            mac: config.mac()?,
        };
        match ledger.reserve(claim, &supply) {
            Err(failure) if failure.code() == Code::NoAddressLeft => Ok(Err(Full {
                may_change: ledger.has_dying(&interfaces),
                failure,
            })),
            reserved => reserved.map(Ok),
        }
    }

    fn destinations(
        &self,
        attachment: &Attachment,
        ledger: &Ledger,
    ) -> Result<Vec<IpNet>, Failure> {
        let is_sibling = |other: &Attachment| {
            other.container_id == attachment.container_id && other.ifname != attachment.ifname
        };
        let siblings: Vec<IpNet> = ledger
            .records()
            .filter_map(|(_, record)| record)
            .filter(|record| is_sibling(&record.attachment))
            .flat_map(|record| record.destinations.iter().copied())
            .collect();
        let ranges = [&self.node.protected[..], &self.node.service_ranges[..]].concat();
        let situation = Situation {
            ranges: &ranges,
            default_route: self.request.config.default_route()?,
            others: self.others,
            siblings: &siblings,
        };
        let families = self.cidrs.iter().map(|cidr| cidr.addr().is_ipv4());
        routing::destinations(&situation, families)
    }
}

/// What the node's end of that name tells of its pod's addresses, if it is this ledger's and no other
/// says the same.
fn own_addresses<'a>(ends: &'a [HostEnd], config: &Config, name: &str) -> &'a [IpAddr] {
    let is_ours = |end: &&HostEnd| {
        end.owner
            .as_ref()
            .is_some_and(|owner| ledger::is_owner(config, owner))
    };
    let Some(own) = ends.iter().filter(is_ours).find(|end| end.name == name) else {
        return &[];
    };
    let mut others = ends.iter().filter(|end| end.name != name);
    if others.any(|other| {
        own.addresses
            .iter()
            .any(|one| other.addresses.contains(one))
    }) {
        return &[];
    }
    &own.addresses
}

/// Every address is taken.
struct Full {
    failure: Failure,
    /// Whether another look may find one.
    may_change: bool,
}

fn kernel(error: &VethError) -> Failure {
    Failure::new(Code::Kernel, error.to_string())
}

fn take_back(request: &Request, attachment: &Attachment) {
    if let Err(failure) = del::remove(&request.config, &attachment.host_name()) {
        // The runtime's DEL, which follows a failed ADD, tries again.
        warn(&failure.to_string());
    }
}
