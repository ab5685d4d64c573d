//! STATUS: whether an ADD would work now.

use crate::{
    add,
    ledger::{Ledger, Moment},
    meshd, node,
    reply::{Code, Failure},
    request::Request,
};

/// Asks for the three things that an attached pod needs: this node's ranges, a ledger that can be
/// written, and a meshd that forwards.
pub(crate) fn run(request: &Request) -> Result<(), Failure> {
    let unavailable = |sentence: String| Failure::new(Code::Unavailable, sentence);
    let node = node::read(&request.config).map_err(|failure| unavailable(failure.to_string()))?;
    if node.pod_cidrs.is_empty() {
        return Err(unavailable("this node has no pod CIDR yet".to_owned()));
    }
    probe_ledger(request).map_err(|failure| {
        meshd::tell_trouble(&request.config.runtime_dir, &failure.to_string());
        unavailable(failure.to_string())
    })?;
    let view = meshd::ready(&request.config.runtime_dir).map_err(unavailable)?;
    let reason = view
        .reason
        .unwrap_or_else(|| "meshd gives no reason".to_owned());
    match (view.ready, view.connected) {
        (true, true) => Ok(()),
        (true, false) => Err(Failure::new(
            Code::LimitedConnectivity,
            format!("no other node can be reached: {reason}"),
        )),
        (false, _) => Err(unavailable(format!(
            "this node is not ready for pods: {reason}"
        ))),
    }
}

fn probe_ledger(request: &Request) -> Result<(), Failure> {
    let interfaces = add::interfaces()?;
    let mut ledger = Ledger::open(&request.config.data_dir, Moment::read()?, &interfaces)?;
    ledger.probe()?;
    ledger.release_dead(&interfaces, add::interfaces)
}
