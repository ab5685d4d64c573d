//! Disks that are full, and files that a crash has torn.
//!
//! A full disk is a tmpfs of a few pages in a mount namespace of its own, so that it is gone with
//! the program that lives on it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podmesh_lab::node::program;
use podmesh_lab::process::{self, Process};
use podmesh_lab::{Node, mesh, wait};

use super::stand::{Said, Stand, addresses, status, text, wait_for_status};
use super::starts::{run, usual};

/// Lays a disk of `$1` bytes over the folder `$2` with what is in it; with `$3` it is full.
const ON_A_SMALL_DISK: &str = "set -e; mkdir -p -m 700 \"$2\"; mkdir -m 700 \"$2.disk\"
mount -t tmpfs -o size=$1,mode=700 podmesh-test \"$2.disk\"; cp -a \"$2/.\" \"$2.disk/\"
mount --move \"$2.disk\" \"$2\"; rmdir \"$2.disk\"
[ -z \"$3\" ] || cat /dev/zero > \"$2/filler\" 2> /dev/null || true
shift 3; exec \"$@\"";

/// meshd runs there, since nothing of a node that has not joined needs the disk.
pub(super) fn join_when_full(stand: &Stand<'_>) -> Result<Said> {
    let idle = stand.node("idle-1")?;
    let (state, runtime) = (stand.fresh("state"), stand.fresh("run"));
    let mut command = on_small_disk(idle, (&state, "16k"), true)?;
    command
        .arg(program("meshd")?)
        .arg("--state-dir")
        .arg(&state);
    command
        .arg("--config")
        .arg(idle.folder().join("meshd.toml"));
    command.arg("--runtime-dir").arg(&runtime);
    let meshd = Process::start("meshd on a full disk", command, &idle.log())?;
    let socket = runtime.join("meshd.sock");
    wait_for_socket(&meshd, &socket)?;
    let mut join = idle.namespace().command(program("meshctl")?);
    join.arg("--socket").arg(&socket).arg("join");
    join.arg(stand.token(&[])?);
    let said = run(&mut join)?;
    drop(meshd);
    Ok(said)
}

/// A member whose disk has room for the join and is full after it: it goes on, says so, and writes
/// again as soon as it can.
pub(super) fn filling_up(stand: &Stand<'_>) -> Result<Said> {
    let (node, member) = (stand.node("cramped-1")?, stand.node("member-2")?);
    let meshd = start_on_small_disk(node)?;
    let token = stand.token(&[])?;
    node.meshctl(&["join", text(&token)?])?;
    let nodes = [node, member];
    stand
        .mesh()
        .wait_for(&nodes, "a path", Duration::from_secs(15), mesh::is_up)?;
    let target = addresses(member)?.remove(0).to_string();
    let before = status(node)?.node;
    let disk = format!("/proc/{}/root{}", meshd.pid(), text(&node.state_dir())?);
    let filler = Path::new(&disk).join("filler");
    // A disk that is full takes less than it is given; that is what is wanted.
    let _ = fs::write(&filler, vec![0; 1 << 20]);

    change_something(stand, node)?;
    wait_for_status(node, "the full disk to be named", |status| {
        status
            .health
            .iter()
            .any(|view| view.message.contains("No space"))
    })?;
    let shown = node.meshctl_output(&["status"], process::SHORT)?;
    let pings = ["ping", "-c", "10", "-i", "0.1", "-W", "2", &target];
    let answered = node.namespace().run(&pings)?;
    ensure!(answered.contains(" 0% packet loss"), "{answered}");
    fs::remove_file(&filler)?;
    let after = wait_for_status(node, "the disk to be used again", |status| {
        !status
            .health
            .iter()
            .any(|view| view.message.contains("No space"))
    })?;
    ensure!(after.node == before, "{before:?} became {:?}", after.node);
    node.meshctl(&["leave", "--yes"])?;
    drop(meshd);
    Ok(Said {
        code: shown.status.code(),
        words: String::from_utf8_lossy(&shown.stdout).into_owned(),
    })
}

pub(super) fn operators_folder(stand: &Stand<'_>) -> Result<Said> {
    let folder = stand.mesh().operator().folder();
    let mut command = on_small_disk(stand.node("idle-1")?, (folder, "1m"), true)?;
    command
        .arg(program("meshctl")?)
        .args(["token", "create", "--out"]);
    command.arg(stand.fresh("token")).arg("--dir").arg(folder);
    let before = fs::read(folder.join("tokens.json"))?;
    let said = run(&mut command)?;
    ensure!(
        fs::read(folder.join("tokens.json"))? == before,
        "the record has changed"
    );
    Ok(said)
}

/// With no whole generation a node would be somebody else; nothing is touched.
pub(super) fn torn_identities(stand: &Stand<'_>) -> Result<Said> {
    let idle = stand.node("idle-1")?;
    let files = ["identity", "identity.previous"].map(|name| idle.state_dir().join(name));
    let whole = fs::read(&files[0])?;
    let mut last = None;
    for torn in torn(&whole) {
        for file in &files {
            fs::write(file, &torn)?;
        }
        let said = run(&mut usual(idle)?)?;
        for file in &files {
            let kept = fs::read(file)? == torn;
            fs::write(file, &whole)?;
            let length = torn.len();
            ensure!(kept, "the torn file was changed ({length} bytes)");
        }
        ensure!(
            said.code == Some(1),
            "torn at {}: {}",
            torn.len(),
            said.words
        );
        last = Some(said);
    }
    last.context("nothing was torn")
}

pub(super) fn torn_generations(stand: &Stand<'_>) -> Result<Said> {
    let idle = stand.node("idle-1")?;
    let files = ["state", "state.previous"].map(|name| idle.state_dir().join(name));
    let whole = [fs::read(&files[0])?, fs::read(&files[1])?];
    for (file, content) in files.iter().zip(&whole) {
        fs::write(file, &content[..content.len() / 2])?;
    }
    let said = run(&mut usual(idle)?);
    for (file, content) in files.iter().zip(&whole) {
        fs::write(file, content)?;
    }
    said
}

/// With a whole generation before it, the node is who it was; the log says what happened.
pub(super) fn torn_state(stand: &Stand<'_>) -> Result<Said> {
    torn_newest(stand, "state")
}

/// Keys, too, have a generation before them from the first write on.
pub(super) fn torn_identity(stand: &Stand<'_>) -> Result<Said> {
    torn_newest(stand, "identity")
}

fn torn_newest(stand: &Stand<'_>, name: &str) -> Result<Said> {
    let idle = stand.node("idle-1")?;
    let file = idle.state_dir().join(name);
    let (mut words, mut code) = (String::new(), None);
    for offset in 0..torn(&fs::read(&file)?).len() {
        fs::write(&file, &torn(&fs::read(&file)?)[offset])?;
        let seen = fs::read_to_string(idle.log())?.len();
        idle.start()
            .with_context(|| format!("torn in place {offset}"))?;
        idle.wait_online(Duration::from_secs(10))?;
        code = idle.meshd()?.stop(Duration::from_secs(10))?.code();
        let log = fs::read_to_string(idle.log())?.split_off(seen);
        let warning = log
            .lines()
            .find(|line| line.contains("file is damaged, its previous"));
        words = warning
            .with_context(|| format!("no warning in place {offset}"))?
            .to_owned();
    }
    Ok(Said { code, words })
}

/// A file cut or zeroed from several places on.
fn torn(whole: &[u8]) -> Vec<Vec<u8>> {
    let length = whole.len();
    let cuts = [0, 1, 17, length / 2, length - 33, length - 1];
    let zeroed = |cut: usize| [&whole[..cut], &vec![0; length - cut]].concat();
    let cut_off = cuts.iter().map(|cut| whole[..*cut].to_vec());
    cut_off.chain([zeroed(9), zeroed(length / 2)]).collect()
}

/// Something that meshd wants on its disk: a token of the network is void.
fn change_something(stand: &Stand<'_>, node: &Node) -> Result<()> {
    stand.token(&[])?;
    let tokens = fs::read_to_string(stand.mesh().operator().folder().join("tokens.json"))?;
    let tokens: serde_json::Value = serde_json::from_str(&tokens)?;
    let newest = tokens["tokens"].as_array().and_then(|all| all.last());
    let id = newest
        .and_then(|token| token["id"].as_str())
        .context("no token is on record")?;
    let folder = text(stand.mesh().operator().folder())?;
    node.meshctl(&["token", "revoke", id, "--yes", "--dir", folder])
        .map(drop)
}

/// A program's command line goes behind this one.
fn on_small_disk(node: &Node, (folder, size): (&Path, &str), full: bool) -> Result<Command> {
    let mut command = node.namespace().command("unshare");
    command.args([
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        ON_A_SMALL_DISK,
        "sh",
    ]);
    command.args([size, text(folder)?, if full { "full" } else { "" }]);
    Ok(command)
}

fn start_on_small_disk(node: &Node) -> Result<Process> {
    let configuration = node.folder().join("meshd.toml");
    fs::write(&configuration, "subnet-env = \"\"\nlog = \"info\"\n")?;
    let mut command = on_small_disk(node, (&node.state_dir(), "256k"), false)?;
    command
        .arg(program("meshd")?)
        .arg("--config")
        .arg(configuration);
    command.arg("--state-dir").arg(node.state_dir());
    command.arg("--runtime-dir").arg(node.runtime_dir());
    command.args(["--name", node.name()]);
    let meshd = Process::start("meshd on a small disk", command, &node.log())?;
    wait_for_socket(&meshd, &node.runtime_dir().join("meshd.sock"))?;
    Ok(meshd)
}

fn wait_for_socket(meshd: &Process, socket: &Path) -> Result<()> {
    wait::until("meshd on a small disk", Duration::from_secs(10), || {
        Ok(if socket.exists() {
            wait::Now(())
        } else {
            wait::NotYet(meshd.last_words(3))
        })
    })
}
