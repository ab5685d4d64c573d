//! `meshctl leave`.

use podmesh_proto::local_api::Request;

use crate::commands::Context;
use crate::problem::{Exit, Problem};

/// Leaves the network.
///
/// # Errors
/// meshd can't be reached or refuses.
pub(super) fn run(context: &Context) -> Result<Exit, Problem> {
    let message = context.meshd.change(Request::Leave)?;
    context.screen.remark(&message);
    Ok(Exit::Ok)
}
