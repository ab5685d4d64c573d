//! `meshctl leave`.

use clap::Args;
use podmesh_proto::local_api::Request;

use crate::commands::Context;
use crate::problem::{Exit, Problem};

/// Arguments of `meshctl leave`.
#[derive(Debug, Args)]
pub(crate) struct Leave {
    /// Also replace all keys: this machine becomes another node. What a revoked node needs to come
    /// back; works on a node that is in no network, too
    #[arg(long)]
    forget_keys: bool,
}

impl Leave {
    /// Leaves the network.
    ///
    /// # Errors
    /// meshd can't be reached or refuses.
    pub(super) fn run(self, context: &Context) -> Result<Exit, Problem> {
        let forget_keys = self.forget_keys;
        let message = context.meshd.change(Request::Leave { forget_keys })?;
        context.screen.remark(&message);
        Ok(Exit::Ok)
    }
}
