//! GC: frees what belongs to no pod any more, and what crashes and reboots have left behind.

use std::collections::HashSet;

use podmesh_kernel::veth;

use crate::{
    attachment::HOST_PREFIX,
    del,
    ledger::{Ledger, Moment},
    reply::{Code, Failure},
    request::Request,
    warn,
};

/// Removes every attachment of this network that the runtime does not list, and every interface
/// of the plugin's that no record knows.
pub(crate) fn run(request: &Request) -> Result<(), Failure> {
    let config = &request.config;
    let valid = config.valid_attachments.as_ref().ok_or_else(|| {
        Failure::new(
            Code::InvalidConfig,
            "cni.dev/valid-attachments is missing: without it every pod would be removed",
        )
    })?;
    let valid: HashSet<_> = valid
        .iter()
        .map(|attachment| attachment.host_name())
        .collect();
    // In this order: an ADD that runs meanwhile has its record before it has its interface.
    let interfaces =
        veth::list(HOST_PREFIX).map_err(|error| Failure::new(Code::Kernel, error.to_string()))?;
    let ledger = Ledger::open(&config.data_dir, Moment::read()?, &interfaces)?;
    let mut known = HashSet::new();
    let mut stale = Vec::new();
    for (name, record) in ledger.records() {
        known.insert(name.to_owned());
        let ours = record.is_none_or(|record| record.network == config.name);
        if ours && !valid.contains(name) {
            stale.push(name.to_owned());
        }
    }
    drop(ledger);
    let orphans = interfaces
        .into_iter()
        .filter(|name| is_own_name(name) && !known.contains(name) && !valid.contains(name));
    let mut result = Ok(());
    for name in stale.into_iter().chain(orphans) {
        // One that resists must not keep the others.
        if let Err(failure) = del::remove(config, &name) {
            warn(&format!("{name} is left: {failure}"));
            result = Err(failure);
        }
    }
    result
}

/// Names that the plugin itself could have given.
fn is_own_name(name: &str) -> bool {
    name.strip_prefix(HOST_PREFIX).is_some_and(|digits| {
        digits.len() == 11 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
    })
}
