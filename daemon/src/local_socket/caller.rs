//! Who may use the socket on this machine.

use std::fs;

use podmesh_kernel::process;
use podmesh_proto::caller::Group;
pub(super) use podmesh_proto::caller::{Callers, Right};

const GROUP: &str = "podmesh";

/// From the machine's user and group files.
pub(super) fn of_this_machine() -> Callers {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    Callers::from_files(
        process::effective_uid(),
        Group::Named(GROUP),
        &read("/etc/group"),
        &read("/etc/passwd"),
    )
}

/// As if the caller of a test were a stranger.
#[cfg(test)]
pub(super) fn nobody_but(own: u32) -> Callers {
    Callers {
        owners: vec![own],
        group: None,
        members: Vec::new(),
    }
}

/// As if the caller of a test were in the group.
#[cfg(test)]
pub(super) fn readers() -> Callers {
    Callers {
        owners: Vec::new(),
        group: None,
        members: vec![process::effective_uid()],
    }
}
