//! Programs that must not start, and callers that must not be served.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use podmesh_lab::node::program;
use podmesh_lab::{Node, process};

use super::stand::{Said, Stand, text};

/// Nobody's number on every Debian.
const STRANGER: u32 = 65_534;

pub(super) fn unknown_key(stand: &Stand<'_>) -> Result<Said> {
    with_configuration(stand, "prot = 41000\n")
}

pub(super) fn bad_value(stand: &Stand<'_>) -> Result<Said> {
    with_configuration(stand, "mtu = 100\n")
}

pub(super) fn no_toml(stand: &Stand<'_>) -> Result<Said> {
    with_configuration(stand, "shards = 1\nmtu is large\n")
}

pub(super) fn no_configuration(stand: &Stand<'_>) -> Result<Said> {
    run(&mut meshd(stand.node("idle-1")?, "no-such-file".as_ref())?)
}

pub(super) fn open_folder(stand: &Stand<'_>) -> Result<Said> {
    let idle = stand.node("idle-1")?;
    with_mode(&idle.state_dir(), 0o755, || run(&mut usual(idle)?))
}

pub(super) fn foreign_folder(stand: &Stand<'_>) -> Result<Said> {
    let idle = stand.node("idle-1")?;
    chown(idle.state_dir(), Some(STRANGER), None)?;
    let said = run(&mut usual(idle)?);
    chown(idle.state_dir(), Some(0), None)?;
    said
}

pub(super) fn open_file(stand: &Stand<'_>) -> Result<Said> {
    let idle = stand.node("idle-1")?;
    let file = idle.state_dir().join("identity");
    with_mode(&file, 0o644, || run(&mut usual(idle)?))
}

pub(super) fn closed_socket(stand: &Stand<'_>) -> Result<Said> {
    run(&mut as_stranger(stand.node("member-1")?, &["status"])?)
}

pub(super) fn open_socket(stand: &Stand<'_>) -> Result<Said> {
    let member = stand.node("member-1")?;
    let socket = member.runtime_dir().join("meshd.sock");
    with_mode(&socket, 0o666, || {
        run(&mut as_stranger(member, &["peers"])?)
    })
}

/// The token is in a file that the stranger may read: it is the socket that says no.
pub(super) fn join_of_a_stranger(stand: &Stand<'_>) -> Result<Said> {
    let novice = stand.node("novice-1")?;
    let token = stand.file("token", fs::read(&stand.good_token)?)?;
    chown(&token, Some(STRANGER), None)?;
    let socket = novice.runtime_dir().join("meshd.sock");
    with_mode(&socket, 0o666, || {
        run(&mut as_stranger(novice, &["join", text(&token)?])?)
    })
}

pub(super) fn no_daemon(stand: &Stand<'_>) -> Result<Said> {
    let idle = stand.node("idle-1")?;
    Ok(idle.meshctl_output(&["status"], process::SHORT)?.into())
}

pub(super) fn second_meshd(stand: &Stand<'_>) -> Result<Said> {
    run(&mut usual(stand.node("member-1")?)?)
}

/// It has its own keys, and finds everything else of the node in use.
pub(super) fn second_meshd_elsewhere(stand: &Stand<'_>) -> Result<Said> {
    let member = stand.node("member-1")?;
    let mut command = member.namespace().command(program("meshd")?);
    command
        .arg("--config")
        .arg(member.folder().join("meshd.toml"));
    command.arg("--state-dir").arg(stand.fresh("state"));
    command.arg("--runtime-dir").arg(member.runtime_dir());
    let said = run(&mut command)?;
    ensure!(
        member.runtime_dir().join("meshd.sock").exists(),
        "the first meshd has lost its socket ({})",
        said.words
    );
    Ok(said)
}

fn with_configuration(stand: &Stand<'_>, text: &str) -> Result<Said> {
    let file = stand.fresh("wrong.toml");
    fs::write(&file, text)?;
    run(&mut meshd(stand.node("idle-1")?, file.as_os_str())?)
}

fn with_mode(path: &Path, mode: u32, run: impl FnOnce() -> Result<Said>) -> Result<Said> {
    let before = fs::metadata(path)?.permissions();
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    let said = run();
    fs::set_permissions(path, before)?;
    said
}

/// meshd as the lab starts it.
pub(super) fn usual(node: &Node) -> Result<Command> {
    meshd(node, node.folder().join("meshd.toml").as_os_str())
}

fn meshd(node: &Node, configuration: &OsStr) -> Result<Command> {
    let mut command = node.namespace().command(program("meshd")?);
    command.arg("--config").arg(configuration);
    command.arg("--state-dir").arg(node.state_dir());
    command.arg("--runtime-dir").arg(node.runtime_dir());
    Ok(command)
}

fn as_stranger(node: &Node, words: &[&str]) -> Result<Command> {
    let mut command = node.namespace().command("setpriv");
    command.args([
        "--reuid",
        &STRANGER.to_string(),
        "--regid",
        &STRANGER.to_string(),
    ]);
    command.arg("--clear-groups").arg(program("meshctl")?);
    command
        .arg("--socket")
        .arg(node.runtime_dir().join("meshd.sock"))
        .args(words);
    Ok(command)
}

/// Runs a program that must end by itself.
pub(super) fn run(command: &mut Command) -> Result<Said> {
    Ok(process::output(command, b"", process::SHORT)?.into())
}
