//! What stays on the host when a membership has ended.

use podmesh_engine::host_plan::HostPlan;
use podmesh_kernel::{nft, veth};
use podmesh_proto::node_file::NodeFile;

use super::former::{closed_guard, standing};
use super::wanted::{has_v6, host_state, usable};
use super::{HostReport, Keeper, Remark, VETH_PREFIX};

impl Keeper {
    /// Nothing of a membership that has ended stays, with one exception: while the root or the time has
    /// put the node out, or pods stand, nothing to or from the mesh's ranges leaves in plaintext.
    pub(super) async fn keep_closed(&mut self, plan: &HostPlan, report: &mut HostReport) {
        let (former, pods) = self.former(None, report);
        let trouble = self.files.retire(&former);
        report
            .remarks
            .extend(trouble.into_iter().map(Remark::of_file));
        let mut state = host_state(plan, (self.config.mark, has_v6()));
        if pods == 0 && plan.protected.is_empty() {
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
        let pods = match veth::host_ends(VETH_PREFIX) {
            Ok(ends) => ends.into_iter().map(|end| end.addresses).collect(),
            Err(error) => {
                report.problems.push(error.to_string());
                // One of which nothing is known.
                vec![Vec::new()]
            }
        };
        let former = standing(self.files.former(), present, &pods);
        report.former = former.len();
        (former, pods.len())
    }
}
