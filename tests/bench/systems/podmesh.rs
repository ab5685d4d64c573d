//! podmesh: a planet, two nodes, and a pod on each.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use podmesh_lab::pod::CniPlace;
use podmesh_lab::process::{self, Process};
use podmesh_lab::{Namespace, Pod, node, wait};

use super::{MTU, Overlay, System, said_version};
use crate::gauge::Extent;
use crate::ground::{Ground, LinkMode};

/// podmesh.
pub(crate) struct Podmesh {
    name: &'static str,
    /// As its configuration calls it.
    tunnel: &'static str,
}

/// As it comes.
pub(crate) fn plain() -> Podmesh {
    Podmesh {
        name: "podmesh",
        tunnel: PLAIN,
    }
}

/// With many messages sealed at once, on processors that can.
pub(crate) fn wide() -> Podmesh {
    Podmesh {
        name: "podmesh-wide",
        tunnel: "batched-wide",
    }
}

const PLAIN: &str = "boringtun";
const PLANET: &str = "192.0.2.1:7077";
const SIDES: [&str; 2] = ["a", "b"];
const THIRD: &str = "c";

impl System for Podmesh {
    fn name(&self) -> &'static str {
        self.name
    }

    fn version(&self) -> Result<String> {
        said_version(&node::program("meshd")?, &["--version"], "meshd")
    }

    fn is_yardstick(&self) -> bool {
        true
    }

    fn extent(&self, mode: LinkMode) -> Extent {
        match mode {
            LinkMode::Wire => Extent::OneStream,
            // Floods take most of the time.
            LinkMode::Whole if self.tunnel == PLAIN => Extent::WithFloods,
            LinkMode::Whole => Extent::Streams,
        }
    }

    fn start(&self, ground: &Ground) -> Result<Overlay> {
        let planet = found(ground)?;
        let mut daemons = Vec::new();
        for (side, name) in ground.sides.iter().zip(SIDES) {
            daemons.push(self.start_node(ground, side, name)?);
        }
        let third = self.start_node(ground, &ground.third, THIRD)?;
        for (side, name) in ground.sides.iter().zip(SIDES) {
            join(ground, side, name)?;
        }
        join(ground, &ground.third, THIRD)?;
        wait::until("the direct paths", Duration::from_secs(20), || {
            let peers = meshctl(ground, &ground.sides[0], "a", &["peers"])?;
            Ok(if peers.matches("direct").count() == 2 {
                wait::Now(())
            } else {
                wait::NotYet(peers)
            })
        })?;
        let mut pods = Vec::new();
        for name in SIDES {
            pods.push(add_pod(ground, name)?);
        }
        Ok(Overlay {
            ends: [
                overlay_address(&ground.sides[0])?,
                overlay_address(&ground.sides[1])?,
            ],
            pods,
            third: Some(overlay_address(&ground.third)?),
            _helpers: vec![planet, third],
            ..Overlay::of(daemons)
        })
    }
}

impl Podmesh {
    fn start_node(&self, ground: &Ground, side: &Namespace, name: &str) -> Result<Process> {
        let config = ground.file(
            &format!("{name}/meshd.toml"),
            &format!(
                "mtu = {MTU}\nsubnet-env = \"\"\ntunnel = {:?}\n",
                self.tunnel
            ),
        )?;
        let folder = ground.folder().join(name);
        let mut meshd = side.command(node::program("meshd")?);
        meshd.arg("--config").arg(config);
        meshd.arg("--state-dir").arg(folder.join("state"));
        meshd.arg("--runtime-dir").arg(folder.join("run"));
        Process::start("meshd", meshd, &folder.join("log"))
    }
}

/// Makes a network whose planet runs on side A.
fn found(ground: &Ground) -> Result<Process> {
    let folder = ground.folder();
    let (state, run) = (folder.join("planet"), folder.join("planet-run"));
    let planet = |verb: &str| -> Result<Command> {
        let mut command = ground.sides[0].command(node::program("planet")?);
        command.arg(verb).arg("--state-dir").arg(&state);
        Ok(command)
    };
    let key = process::succeed(&mut planet("init")?, b"")?;
    let key = key.trim().trim_start_matches("planet key: ");
    operator(
        folder,
        &[
            "network",
            "create",
            "bench",
            "--no-passphrase",
            "--planet",
            &format!("{key}@{PLANET}"),
        ],
    )?;
    let mut adopt = planet("adopt")?;
    adopt.arg(folder.join("operator/network.podmesh"));
    process::succeed(adopt.arg("--runtime-dir").arg(&run), b"")?;
    let mut serve = planet("run")?;
    serve
        .arg("--runtime-dir")
        .arg(&run)
        .args(["--listen", PLANET]);
    Process::start("planet", serve, &folder.join("planet.log"))
}

fn operator(folder: &Path, words: &[&str]) -> Result<()> {
    let mut command = node::program_command("meshctl")?;
    command
        .args(words)
        .arg("--dir")
        .arg(folder.join("operator"));
    process::succeed(&mut command, b"").map(drop)
}

fn join(ground: &Ground, side: &Namespace, name: &str) -> Result<()> {
    let token = ground
        .folder()
        .join(format!("{name}.token"))
        .display()
        .to_string();
    operator(ground.folder(), &["token", "create", "--out", &token])?;
    wait::until("meshd to join", Duration::from_secs(10), || {
        meshctl(ground, side, name, &["join", &token, "--name", name]).map(wait::Now)
    })?;
    Ok(())
}

fn meshctl(ground: &Ground, side: &Namespace, name: &str, words: &[&str]) -> Result<String> {
    let mut command = side.command(node::program("meshctl")?);
    command
        .arg("--socket")
        .arg(ground.folder().join(name).join("run/meshd.sock"));
    process::succeed(command.args(words), b"")
}

fn add_pod(ground: &Ground, name: &str) -> Result<Pod> {
    let folder = ground.folder().join(name);
    let side = SIDES.iter().position(|side| *side == name).unwrap_or(0);
    let place = CniPlace {
        node: Arc::clone(&ground.sides[side]),
        program: node::program("podmesh")?,
        config: serde_json::json!({
            "cniVersion": "1.0.0",
            "name": "podmesh",
            "type": "podmesh",
            "runtimeDir": folder.join("run"),
            "stateDir": folder.join("state"),
            "dataDir": folder.join("ledger"),
        }),
    };
    Pod::add(ground.number, name, place)
}

/// The address of a node inside of the mesh.
fn overlay_address(side: &Namespace) -> Result<IpAddr> {
    let shown = side.run(&["ip", "-json", "-4", "address", "show", "mesh0"])?;
    let shown: Value = serde_json::from_str(&shown)?;
    let address = shown[0]["addr_info"][0]["local"].as_str();
    Ok(address.context("mesh0 has no address")?.parse()?)
}
