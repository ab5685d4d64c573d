//! What the shell adds to the engine's views: the host, the disk, the fast half.

use podmesh_kernel::memory;
use podmesh_proto::local_api::{HealthView, MemoryView, ReadyView, StatusView};

use super::Node;
use crate::clock;
use crate::config::TUNNELS;
use crate::offloads::OffloadSet;

impl Node {
    /// The node as a whole.
    pub(super) fn status(&self) -> StatusView {
        let mut status = self.engine.status(clock::now());
        status.interface.index = self.report.device;
        status.pods = Some(self.report.pods);
        status.interface.shards = self.queues.len();
        status.interface.offloads = self.offloads().names().map(str::to_owned).collect();
        let mut tunnels = TUNNELS.iter();
        let tunnel = tunnels.find(|(_, kind)| *kind == self.config.tunnel);
        status.interface.tunnel = tunnel.map_or("", |(name, _)| name).to_owned();
        status.drops.extend(self.shards.shared().counters.views());
        status.health.extend(self.health());
        if let Ok(held) = memory::in_use() {
            status.memory = MemoryView {
                resident: held.resident,
                peak: held.peak,
            };
        }
        status
    }

    /// What is in force.
    fn offloads(&self) -> OffloadSet {
        let tun = self.queues.first().map(|queue| queue.offloads());
        let tun = tun.unwrap_or_default();
        let sockets = &self.shards.shared().sockets;
        OffloadSet {
            tso: tun.tcp,
            uso: tun.udp,
            udp_gso: sockets.segments(),
            udp_gro: sockets.merges(),
        }
    }

    /// Whether pods can be attached.
    pub(super) fn ready(&self) -> ReadyView {
        let mut ready = self.engine.ready();
        let missing = match self.problems().next() {
            Some(problem) => Some(problem.to_owned()),
            None if self.report.device.is_none() => {
                Some("the mesh interface is not there yet".to_owned())
            }
            None => None,
        };
        if ready.ready && missing.is_some() {
            ready.ready = false;
            ready.reason = missing;
        }
        if ready.ready
            && let Some(trouble) = self.ledger.trouble(clock::now().moment)
        {
            ready.ready = false;
            ready.waits_for_ledger = true;
            ready.reason = Some(trouble.to_owned());
        }
        ready
    }

    /// What keeps pods from being attached.
    fn problems(&self) -> impl Iterator<Item = &str> {
        let device = self.device_trouble.iter();
        let others = self.report.problems.iter();
        let others = others.filter(|problem| Some(*problem) != self.device_trouble.as_ref());
        device.chain(others).map(String::as_str)
    }

    /// Whether this may be the copy of a machine.
    fn copied(&self) -> Option<HealthView> {
        let next = "if that machine still runs, `meshctl leave --forget-keys` here, then join anew; if it is \
                    gone for good, `meshctl node rotate-keys` makes the keys this machine's";
        self.identity.is_from_elsewhere().then(|| HealthView {
            code: "MESH-IDENTITY-001".to_owned(),
            message:
                "this node's keys were made on another machine: its state folder or disk was copied"
                    .to_owned(),
            next: Some(next.to_owned()),
        })
    }

    fn health(&self) -> Vec<HealthView> {
        let entry = |code: &str, message: &str, next: &str| HealthView {
            code: code.to_owned(),
            message: message.to_owned(),
            next: Some(next.to_owned()),
        };
        let trouble = self.disk_trouble();
        let trouble = trouble.or_else(|| self.identity.trouble().cloned());
        let disk = trouble.iter().map(|trouble| {
            entry(
                "MESH-DISK-001",
                &format!("the state can't be written to disk: {trouble}"),
                &format!("{}; meshd tries again by itself", trouble.remedy),
            )
        });
        let vanished = self.vanished.health(clock::now().moment);
        let problems = self.problems().map(|problem| {
            entry(
                "MESH-HOST-001",
                problem,
                "no pod can be attached until this is repaired; meshd keeps trying",
            )
        });
        let remarks = self.report.remarks.iter();
        let remarks = remarks.map(|remark| entry(remark.code, &remark.message, &remark.next));
        let join = self.join_trouble.iter().map(|failure| {
            let next = failure.next.as_deref();
            let next = next.unwrap_or("`meshctl join` with a new token");
            entry("MESH-JOIN-001", &failure.message, next)
        });
        let doors = self.doors.trouble();
        let doors = doors.iter().map(|(trouble, next)| {
            let message = format!("not everybody can reach this meshd: {trouble}");
            entry("MESH-HOST-003", &message, next)
        });
        let ledger = self.ledger.health(clock::now().moment);
        let refusals = self.report.refusals.iter();
        let refusals =
            refusals.map(|refusal| entry("MESH-FIREWALL-001", &refusal.message, &refusal.next));
        let awaited = self.awaited_token().map(|file| {
            let message = format!(
                "this node is in no network, and its join-token-file {} is not there",
                file.display()
            );
            let next = "put a token there, meshd looks every few seconds; or `meshctl join FILE`";
            entry("MESH-TOKEN-001", &message, next)
        });
        let own = self.copied().into_iter().chain(join).chain(awaited);
        problems
            .chain(disk)
            .chain(vanished)
            .chain(ledger)
            .chain(own)
            .chain(doors)
            .chain(refusals)
            .chain(remarks)
            .collect()
    }
}
