//! Ranges of the network that the node, or the network itself, has for something else already.

use std::process::Command;

use anyhow::Result;
use podmesh_lab::node::program;
use podmesh_lab::process;

use super::joins::planet_of;
use super::stand::{Said, Stand, text};

const BRIDGE: &str = "link add bridge9 type bridge\nlink set bridge9 up\n";
const NO_BRIDGE: &str = "link delete bridge9";

pub(super) fn inside_pods(stand: &Stand<'_>) -> Result<Said> {
    let route = "10.42.7.0/24 via GATEWAY dev eth0 proto static";
    join_with(
        stand,
        &format!("route add {route}"),
        &format!("route delete {route}"),
    )
}

pub(super) fn bridge_in_pods(stand: &Stand<'_>) -> Result<Said> {
    join_with(
        stand,
        &format!("{BRIDGE}address add 10.42.9.1/24 dev bridge9"),
        NO_BRIDGE,
    )
}

pub(super) fn vpn_in_overlay(stand: &Stand<'_>) -> Result<Said> {
    let route = "10.77.3.0/24 via GATEWAY dev eth0 proto dhcp table 52";
    join_with(
        stand,
        &format!("route add {route}"),
        &format!("route delete {route}"),
    )
}

pub(super) fn around_overlay(stand: &Stand<'_>) -> Result<Said> {
    let route = "10.64.0.0/11 via GATEWAY dev eth0";
    join_with(
        stand,
        &format!("route add {route}"),
        &format!("route delete {route}"),
    )
}

pub(super) fn inside_pods6(stand: &Stand<'_>) -> Result<Said> {
    let inside = stand.network()?.ranges.pods6.network();
    join_with(
        stand,
        &format!("{BRIDGE}address add {inside}/80 dev bridge9 nodad"),
        NO_BRIDGE,
    )
}

pub(super) fn services_over_lan(stand: &Stand<'_>) -> Result<Said> {
    let services = ["--services", "192.168.0.0/16"];
    stand.join(&stand.token_of_other(&planet_of(stand)?, &services)?)
}

pub(super) fn of_new_network(stand: &Stand<'_>) -> Result<Said> {
    let mut command = Command::new(program("meshctl")?);
    command.args(["network", "create", "other", "--no-passphrase"]);
    command.args(["--planet", &planet_of(stand)?, "--overlay", "10.42.0.0/17"]);
    command.args(["--dir", text(&stand.fresh("other"))?]);
    Ok(process::output(&mut command, b"", process::SHORT)?.into())
}

/// Joins while the node's network is changed; the token must be good again afterwards.
fn join_with(stand: &Stand<'_>, change: &str, undo: &str) -> Result<Said> {
    let novice = stand.node("novice-1")?;
    let [a, b, c, _] = novice.seat().v4.octets();
    let gateway = format!("{a}.{b}.{c}.1");
    let namespace = novice.namespace();
    namespace.ip(&change.replace("GATEWAY", &gateway))?;
    let said = stand.join(&stand.good_token);
    namespace.ip(&undo.replace("GATEWAY", &gateway))?;
    said
}
