//! `meshctl leave`.

use clap::Args;
use ipnet::IpNet;
use podmesh_proto::local_api::{NodeState, Request};

use crate::commands::Context;
use crate::confirm::Confirm;
use crate::problem::{Exit, Problem};

/// Arguments of `meshctl leave`.
#[derive(Debug, Args)]
pub(crate) struct Leave {
    /// Also replace all keys: this machine becomes another node. What a revoked node needs to come
    /// back; works on a node that is in no network, too
    #[arg(long)]
    forget_keys: bool,
    #[command(flatten)]
    confirm: Confirm,
}

impl Leave {
    /// Leaves the network.
    ///
    /// # Errors
    /// meshd can't be reached or refuses, or the caller doesn't want it.
    pub(super) fn run(self, context: &Context) -> Result<Exit, Problem> {
        let forget_keys = self.forget_keys;
        self.confirm.ask(|| happens(context, forget_keys))?;
        let message = context.meshd.change(Request::Leave { forget_keys })?;
        context.screen.remark(&message);
        Ok(Exit::Ok)
    }
}

fn happens(context: &Context, forget_keys: bool) -> Result<String, Problem> {
    let status = context.meshd.status()?;
    let leaves = match (&status.node, &status.network) {
        (Some(node), Some(network)) if status.state == NodeState::Revoked => {
            let (name, network) = (&node.name, &network.name);
            let keys = if forget_keys {
                ""
            } else {
                ", and with these keys it can't come back: that needs --forget-keys"
            };
            format!("{name} gives up network {network}, whose root revoked it{keys}.")
        }
        (Some(node), Some(network)) => {
            let peers = match status.peers.total {
                0 => "the network".to_owned(),
                1 => "its one peer".to_owned(),
                many => format!("all {many} peers"),
            };
            let (name, network) = (&node.name, &network.name);
            format!(
                "{name} leaves network {network}: it and its pods lose {peers}, and coming back needs a valid \
                 join token."
            )
        }
        _ => "This machine gives up its join, if there is one.".to_owned(),
    };
    let keys =
        forget_keys.then_some("All its keys are replaced: it can only come back as another node.");
    let standing = status.node.as_ref().zip(status.pods);
    let pods = standing.and_then(|(node, standing)| pods(standing, &node.pod_cidrs));
    let lines = [Some(leaves.as_str()), pods.as_deref(), keys];
    Ok(lines.into_iter().flatten().collect::<Vec<_>>().join("\n"))
}

/// What becomes of so many pods that stand.
fn pods(standing: usize, cidrs: &[IpNet]) -> Option<String> {
    let stand = match standing {
        0 => return None,
        1 => "One pod stands on it: its address".to_owned(),
        more => format!("{more} pods stand on it: their addresses"),
    };
    let cidrs: Vec<_> = cidrs.iter().map(ToString::to_string).collect();
    Some(format!(
        "{stand} of {} can be reached no more. Delete what stands, or join again under this name: the node \
         gets its pod CIDRs back as long as nobody else needs them.",
        cidrs.join(" and ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_that_stand_are_counted_with_what_becomes_of_them() {
        let cidrs = ["10.42.1.0/24", "fd00:1::/64"].map(|one| one.parse().unwrap());
        assert_eq!(pods(0, &cidrs), None);
        for (standing, begins) in [(1, "One pod stands"), (3, "3 pods stand")] {
            let said = pods(standing, &cidrs).unwrap();
            assert!(said.starts_with(begins), "{said}");
            assert!(said.contains("10.42.1.0/24 and fd00:1::/64"), "{said}");
        }
    }
}
