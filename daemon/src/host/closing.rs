//! What stays on the host when a membership has ended.

use std::net::IpAddr;

use podmesh_engine::host_plan::HostPlan;
use podmesh_kernel::{nft, veth};
use podmesh_proto::node_file::NodeFile;

use super::former::{closed_guard, standing};
use super::wanted::{has_v6, host_state, usable};
use super::{HostReport, Keeper, Remark, VETH_PREFIX};
use crate::node_file::NodeFiles;

impl Keeper {
    /// Nothing of a membership that has ended stays, with one exception: while the root or the time has
    /// put the node out, or pods stand, nothing to or from the mesh's ranges leaves in plaintext.
    pub(super) async fn keep_closed(&mut self, plan: &HostPlan, report: &mut HostReport) {
        let (former, pods) = self.former(None, report);
        say(self.files.remember(&former), report);
        let mut state = host_state(plan, (self.config.mark, has_v6()));
        if pods == 0 && former.is_empty() && plan.protected.is_empty() {
            self.apply(&state, None, report).await;
            match nft::remove() {
                Ok(_) => self.was_member = false,
                Err(error) => report.remarks.push(Remark::of_kernel(&error)),
            }
            return;
        }
        report.pods = pods;
        if pods > 0 {
            report.remarks.push(Remark::of_ended(pods));
        }
        if former.is_empty() && plan.protected.is_empty() {
            // Without its file it can't be repaired; it must not be taken away either.
            return;
        }
        let guard = closed_guard(plan, &self.config, &former);
        if let Err(error) = nft::ensure(&guard) {
            report.problems.push(error.to_string());
        }
        state.protected = usable(&guard.protected);
        state.local_prefixes = usable(&guard.own_pod_cidrs);
        self.apply(&state, None, report).await;
    }

    /// The memberships before the `present` one of which pods stand, and how many pods stand in all.
    pub(super) fn former(
        &mut self,
        present: Option<&NodeFile>,
        report: &mut HostReport,
    ) -> (Vec<NodeFile>, usize) {
        let mut problems = Vec::new();
        let look = || match veth::host_ends(VETH_PREFIX) {
            Ok(ends) => ends.into_iter().map(|end| end.addresses).collect(),
            Err(error) => {
                problems.push(error.to_string());
                // One of which nothing is known.
                vec![Vec::new()]
            }
        };
        let (former, pods, trouble) = former_after(&mut self.files, present, look);
        report.problems.extend(problems);
        say(trouble, report);
        report.former = former.len();
        (former, pods)
    }
}

/// What went wrong with files, once each.
fn say(trouble: Vec<String>, report: &mut HostReport) {
    for remark in trouble.into_iter().map(Remark::of_file) {
        if !report.remarks.contains(&remark) {
            report.remarks.push(remark);
        }
    }
}

/// The memberships before the `present` one of which pods stand, how many pods stand in all, and what went wrong.
/// `look` gives the addresses of the pods that stand, as far as they tell; it comes after the last moment at which
/// an ADD may find that it is of a former membership and go on.
fn former_after(
    files: &mut NodeFiles,
    present: Option<&NodeFile>,
    look: impl FnOnce() -> Vec<Vec<IpAddr>>,
) -> (Vec<NodeFile>, usize, Vec<String>) {
    let aside = files.set_aside(present);
    let known = files.former();
    let mut pods = look();
    let number = pods.len();
    if aside.is_err() {
        // Where a file can't be taken away, one of which nothing is known may come at any time.
        pods.push(Vec::new());
    }
    let former = standing(known, present, &pods);
    (former, number, aside.err().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use podmesh_proto::mark::Mark;
    use podmesh_proto::node_file::{NODE_FILE_NAME, NODE_FILE_SCHEMA};

    use super::*;
    use crate::scratch::Scratch;

    fn network(number: u8) -> NodeFile {
        NodeFile {
            schema: NODE_FILE_SCHEMA.to_owned(),
            network: number.to_string(),
            node: "alpha".to_owned(),
            device: "mesh0".to_owned(),
            mtu: 1280,
            pod_cidrs: vec![format!("10.{number}.3.0/24").parse().unwrap()],
            overlay_addresses: Vec::new(),
            protected: vec![format!("10.{number}.0.0/16").parse().unwrap()],
            service_ranges: Vec::new(),
            local_devices: Vec::new(),
            mark: Mark::DEFAULT,
            closed: Vec::new(),
            former_pod_cidrs: Vec::new(),
        }
    }

    /// What an ADD that has read the file of a network reads once its pod stands, from the runtime folder or,
    /// where there is nothing, from the state folder: it takes its pod back if that is another network.
    fn goes_on(folders: &[&Path], begun: &NodeFile) -> bool {
        let mut found = folders
            .iter()
            .filter_map(|folder| fs::read(folder.join(NODE_FILE_NAME)).ok());
        found.next().is_some_and(|bytes| {
            let file: NodeFile = serde_json::from_slice(&bytes).unwrap();
            file.network == begun.network && file.pod_cidrs == begun.pod_cidrs
        })
    }

    #[test]
    fn an_add_in_flight_while_the_node_leaves_or_joins_is_seen_or_sees_it() {
        let (old, new) = (network(42), network(50));
        for present in [None, Some(&new)] {
            for is_seen in [true, false] {
                let scratch = Scratch::new();
                let (runtime, state) = (scratch.path("run"), scratch.path("state"));
                fs::create_dir(&runtime).unwrap();
                fs::create_dir(&state).unwrap();
                let folders = [runtime.as_path(), state.as_path()];
                let mut files = NodeFiles::new(&runtime, &state, None);
                files.write(&old, &[]).unwrap();
                // The pod turns up before the look, or just after it.
                let look = || {
                    let is_left = goes_on(&folders, &old);
                    assert!(is_seen || !is_left, "it would stand and nobody knew it");
                    let other = NodeFiles::new(&runtime, &state, None);
                    let after_crash = other.former();
                    assert_eq!(after_crash, std::slice::from_ref(&old));
                    match is_seen {
                        true => vec![vec!["10.42.3.2".parse().unwrap()]],
                        false => Vec::new(),
                    }
                };
                let (former, pods, trouble) = former_after(&mut files, present, look);
                assert_eq!(trouble, [""; 0]);
                assert_eq!(
                    (former.len(), pods),
                    (usize::from(is_seen), usize::from(is_seen))
                );
                files.remember(&former);
                let later = || match is_seen {
                    true => vec![vec!["10.42.3.2".parse().unwrap()]],
                    false => Vec::new(),
                };
                let (again, ..) = former_after(&mut files, present, later);
                assert_eq!(again, former, "settled");
            }
        }
    }

    #[test]
    fn a_membership_whose_file_stays_needs_its_guard_without_a_pod() {
        let scratch = Scratch::new();
        let (runtime, state) = (scratch.path("run"), scratch.path("state"));
        fs::create_dir(&runtime).unwrap();
        fs::create_dir(&state).unwrap();
        let mut files = NodeFiles::new(&runtime, &state, None);
        files.write(&network(42), &[]).unwrap();
        // As on a file system that takes nothing any more.
        fs::remove_file(runtime.join(NODE_FILE_NAME)).unwrap();
        fs::create_dir(runtime.join(NODE_FILE_NAME)).unwrap();
        let (former, pods, trouble) = former_after(&mut files, None, Vec::new);
        assert_eq!((former, pods), (vec![network(42)], 0));
        assert!(trouble[0].contains("can't remove"), "{trouble:?}");
        fs::remove_dir(runtime.join(NODE_FILE_NAME)).unwrap();
        assert_eq!(former_after(&mut files, None, Vec::new).0, []);
    }
}
