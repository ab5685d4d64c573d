//! `meshctl leave`.

use clap::Args;
use podmesh_proto::local_api::Request;

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
        (Some(node), Some(network)) => format!(
            "{} leaves network {}: it and its pods lose all {} peers, and coming back needs a valid \
             join token.",
            node.name, network.name, status.peers.total
        ),
        _ => "This machine gives up its join, if there is one.".to_owned(),
    };
    Ok(if forget_keys {
        format!("{leaves}\nAll its keys are replaced: it can only come back as another node.")
    } else {
        leaves
    })
}
