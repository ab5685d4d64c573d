//! Pings that can't be.

use anyhow::Result;
use podmesh_lab::process;

use super::stand::{Said, Stand};

pub(super) fn of_nobody(stand: &Stand<'_>) -> Result<Said> {
    ping(stand, "member-1", "nobody-1")
}

pub(super) fn of_itself(stand: &Stand<'_>) -> Result<Said> {
    ping(stand, "member-1", "member-1")
}

pub(super) fn without_a_network(stand: &Stand<'_>) -> Result<Said> {
    ping(stand, "novice-1", "member-1")
}

fn ping(stand: &Stand<'_>, from: &str, to: &str) -> Result<Said> {
    let node = stand.node(from)?;
    Ok(node.meshctl_output(&["ping", to], process::SHORT)?.into())
}
