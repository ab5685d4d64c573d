//! The kernel settings that packets of the mesh depend on, but for those of the node's ends of pods, which are
//! kept with all else that their pairs need; and the care for what the machine learns from
//! router advertisements while it forwards.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use podmesh_kernel::sysctl::{self, IpFamily, OwnInterfaces, SysctlError};
use podmesh_proto::node_file::NodeFile;

use super::fights::Fights;
use super::{HostReport, Remark, VETH_PREFIX};

/// Routers say that they are there at least this often (RFC 4861 §6.2.1).
const ADVERTISEMENTS: Duration = Duration::from_secs(1800);
/// What is remembered about the settings from look to look.
#[derive(Debug, Default)]
pub(super) struct Settings {
    /// Those that were put back.
    fights: Fights,
    /// Interfaces whose default route was lost, and since when that is known.
    missed: BTreeMap<String, Instant>,
}

impl Settings {
    /// Brings the mesh interface's settings in order; whether it can have IPv6.
    pub(super) fn keep_device(&mut self, file: &NodeFile, report: &mut HostReport) -> bool {
        let (repairs, errors) = sysctl::keep_device(&file.device, &forwarded(file));
        for repair in repairs {
            self.note(repair.to_string());
        }
        for error in errors.iter().filter(|error| error.stops_packets()) {
            if error.turns_off_v6() {
                let left_out = format!(
                    "IPv6 of the mesh is left out on this node, its pods get no IPv6 address: {error}"
                );
                let next = "let meshd's service write that setting, or set it by hand; meshd takes IPv6 up by \
                            itself then";
                report.remarks.push(Remark::new(left_out, next));
            } else {
                report.problems.push(lost(IpFamily::V4, error));
            }
        }
        sysctl::has_family(IpFamily::V6) && !errors.iter().any(SysctlError::turns_off_v6)
    }

    /// Lets the machine forward what its pods need.
    pub(super) fn keep_forwarding(&mut self, file: &NodeFile, report: &mut HostReport) {
        let own = OwnInterfaces {
            device: &file.device,
            veth_prefix: VETH_PREFIX,
        };
        for family in forwarded(file) {
            match sysctl::ensure_forwarding(family, own) {
                Ok(false) => {}
                Ok(true) => self.note(format!("forwarding of {family}")),
                Err(error) => report.problems.push(lost(family, &error)),
            }
        }
        self.keep_learning(own, report);
        let next = "look at the network manager, sysctl.d and hardening tools of this machine";
        let fights = self.fights.going_on().into_iter().map(|setting| {
            format!("somebody changes {setting} again and again, and packets are lost until it is put back")
        });
        report
            .remarks
            .extend(fights.map(|fight| Remark::new(fight, next)));
    }

    fn keep_learning(&mut self, own: OwnInterfaces<'_>, report: &mut HostReport) {
        // Who has not said by then that it is a router for everything is none.
        self.missed
            .retain(|_, since| since.elapsed() < ADVERTISEMENTS);
        let before: Vec<String> = self.missed.keys().cloned().collect();
        let found = sysctl::keep_learning(own, &before);
        for name in &found.resumed {
            tracing::info!(
                interface = name,
                "router advertisements are heard again, though this machine forwards (accept_ra = 2)"
            );
        }
        self.missed
            .retain(|name, _| found.without_route.contains(name));
        for name in found.without_route {
            let gone = format!(
                "the IPv6 default route by {name} is gone: IPv6 forwarding was switched on while the kernel \
                 learned that route from router advertisements, which makes it forget the route"
            );
            let next = format!(
                "wait for the next advertisement, which brings it back once \
                 net.ipv6.conf.{name}.accept_ra is 2"
            );
            report.remarks.push(Remark::new(gone, next));
            self.missed.entry(name).or_insert_with(Instant::now);
        }
        let by_hand = "let meshd's service write that setting, or set it by hand";
        let errors = found.errors.iter();
        let errors = errors.map(|error| Remark::new(error, by_hand));
        report.remarks.extend(errors);
    }

    /// A setting was not as wanted, and is. Whoever changes it again and again gets a few lines a minute.
    fn note(&mut self, setting: String) {
        if self.fights.note(setting.clone()) {
            tracing::info!(setting, "put a kernel setting in order");
        }
    }
}

/// The families that the node has pods of.
fn forwarded(file: &NodeFile) -> Vec<IpFamily> {
    let wanted = |family: &IpFamily| {
        let is_ipv4 = *family == IpFamily::V4;
        let mut cidrs = file.pod_cidrs.iter();
        sysctl::has_family(*family) && cidrs.any(|cidr| cidr.addr().is_ipv4() == is_ipv4)
    };
    [IpFamily::V4, IpFamily::V6]
        .into_iter()
        .filter(wanted)
        .collect()
}

fn lost(family: IpFamily, error: &SysctlError) -> String {
    format!("pods get no {family} packets of others: {error}")
}

/// The node without IPv6: no pod gets such an address, and none of its own is used. What is protected
/// stays so.
pub(super) fn without_v6(mut file: NodeFile) -> NodeFile {
    file.pod_cidrs.retain(|cidr| cidr.addr().is_ipv4());
    file.overlay_addresses.retain(std::net::IpAddr::is_ipv4);
    file
}
