//! CHECK: whether an attachment is still as ADD made it.

use std::net::IpAddr;

use podmesh_kernel::{netns::NetNamespace, veth};
use serde_json::Value;

use crate::{
    add, guard,
    ledger::{self, Ledger, Moment},
    node,
    reply::{Code, Failure},
    request::Request,
};

/// Compares the ledger, the earlier answer, both ends of the pair with everything that hangs on
/// them, and, as long as the node is a member, the guard.
pub(crate) fn run(request: &Request) -> Result<(), Failure> {
    let attachment = request.attachment()?;
    let pod = NetNamespace::open(request.netns()?)
        .map_err(|error| Failure::new(Code::InvalidEnvironment, format!("CNI_NETNS: {error}")))?;
    let interfaces = add::interfaces()?;
    let ledger = Ledger::open(&request.config.data_dir, Moment::read()?, &interfaces)?;
    let name = attachment.host_name();
    let record = ledger.records().find(|(known, _)| *known == name);
    let record = record.and_then(|(_, record)| record.cloned());
    drop(ledger);
    let record = record.ok_or_else(|| damaged(&format!("{attachment} is not in the ledger")))?;
    if let Some(previous) = &request.config.prev_result {
        let answered = answered_addresses(previous);
        if let Some(missing) = record.addresses.iter().find(|own| !answered.contains(own)) {
            return Err(damaged(&format!(
                "{attachment} has {missing}, which the earlier answer does not name"
            )));
        }
    }
    // The MTU is not compared: meshd may have learned a better one since.
    let link = add::describe(&record, ledger::owner(&request.config), 0);
    veth::check(&link, &pod).map_err(|error| damaged(&error.to_string()))?;
    match node::read(&request.config) {
        Ok(node) => guard::check(&node),
        // Pods of a membership that has ended stand behind what meshd keeps closed.
        Err(_) => Ok(()),
    }
}

fn answered_addresses(previous: &Value) -> Vec<IpAddr> {
    let ips = previous.get("ips").and_then(Value::as_array);
    ips.into_iter()
        .flatten()
        .filter_map(|entry| {
            entry
                .get("address")?
                .as_str()?
                .split('/')
                .next()?
                .parse()
                .ok()
        })
        .collect()
}

fn damaged(sentence: &str) -> Failure {
    Failure::new(Code::Damaged, sentence)
}
