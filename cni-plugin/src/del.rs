//! DEL: whatever is left of an attachment goes; that nothing is left is no failure.

use std::{fs, io};

use podmesh_kernel::veth::{self, VethError};

use crate::{
    attachment::HOST_PREFIX,
    ledger::{Ledger, Moment},
    reply::{Code, Failure},
    request::{Config, Request},
    warn,
};

/// Takes a pod off. The attachment alone says what to remove: neither the namespace, nor an
/// earlier result, nor meshd is asked.
pub(crate) fn run(request: &Request) -> Result<(), Failure> {
    let attachment = request.attachment()?;
    remove(&request.config, &attachment.host_name())
}

/// Removes an attachment by the name of its node's end: first what the kernel holds, then the
/// record, so that no address is given away while packets still go to the old pod.
pub(crate) fn remove(config: &Config, host_name: &str) -> Result<(), Failure> {
    match veth::remove(host_name) {
        Ok(_) => {}
        Err(error @ VethError::Damaged(_)) => warn(&error.to_string()),
        Err(error) => return Err(Failure::new(Code::Kernel, error.to_string())),
    }
    match fs::symlink_metadata(&config.data_dir) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        _ => {}
    }
    let interfaces =
        veth::list(HOST_PREFIX).map_err(|error| Failure::new(Code::Kernel, error.to_string()))?;
    let mut ledger = Ledger::open(&config.data_dir, Moment::read()?, &interfaces)?;
    ledger.release(host_name).map(|_| ())
}
