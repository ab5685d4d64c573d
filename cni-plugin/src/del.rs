//! DEL: whatever is left of an attachment goes; that nothing is left is no failure.

use std::{fs, io};

use podmesh_kernel::{
    netns::NetNamespace,
    veth::{self, VethError},
};

use crate::{
    add,
    ledger::{Ledger, Moment},
    meshd,
    reply::{Code, Failure},
    request::{Config, Request},
    warn,
};

/// Takes a pod off. The attachment alone says what to remove: neither the namespace, nor an
/// earlier result, nor meshd is asked.
pub(crate) fn run(request: &Request) -> Result<(), Failure> {
    let attachment = request.attachment()?;
    remove(&request.config, &attachment.host_name())?;
    // Whatever else the pod has stays; what leads to this interface alone goes, if it can.
    if let Some(pod) = request
        .netns()
        .ok()
        .and_then(|path| NetNamespace::open(path).ok())
    {
        veth::forget_rules(&pod);
    }
    Ok(())
}

/// Removes an attachment by the name of its node's end: first what the kernel holds, then the
/// record, so that no address is given away while packets still go to the old pod. A disk that
/// refuses keeps no pod from going: the record is then one without an interface, whose addresses
/// stay taken until a later call can free them.
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
    match forget(config, host_name) {
        Err(failure) if failure.is_of_storage() => {
            warn(&format!(
                "{host_name} is gone, and its addresses are freed later: {failure}"
            ));
            meshd::tell_trouble(&config.runtime_dir, &failure.to_string());
            Ok(())
        }
        done => done,
    }
}

fn forget(config: &Config, host_name: &str) -> Result<(), Failure> {
    let interfaces = add::interfaces()?;
    let mut ledger = Ledger::open(&config.data_dir, Moment::read()?, &interfaces)?;
    ledger.release(host_name)?;
    ledger.release_dead(&interfaces, add::interfaces)
}
