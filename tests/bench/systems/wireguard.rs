//! Programs that speak `WireGuard` and are set up by `wg`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use podmesh_lab::{process, wait};

use super::{ENDS, MTU, Overlay, System, address, find, on_both, package_version, said_version};
use crate::ground::Ground;

/// One of them.
pub(crate) struct WireGuard {
    name: &'static str,
    program: &'static str,
    /// Where it was installed to, if not by the distribution.
    folder: Option<PathBuf>,
    words: &'static [&'static str],
}

/// Cloudflare's, whose tunnel podmesh uses.
pub(crate) fn boringtun(peers: &Path) -> WireGuard {
    WireGuard {
        name: "boringtun",
        program: "boringtun-cli",
        folder: Some(peers.to_owned()),
        words: &["-f", "--disable-drop-privileges"],
    }
}

/// Mullvad's.
pub(crate) fn gotatun(peers: &Path) -> WireGuard {
    WireGuard {
        name: "gotatun",
        program: "gotatun",
        folder: Some(peers.to_owned()),
        words: &["-f", "--disable-drop-privileges"],
    }
}

/// The one that the distribution has.
pub(crate) fn wireguard_go() -> WireGuard {
    WireGuard {
        name: "wireguard-go",
        program: "wireguard-go",
        folder: None,
        words: &["-f"],
    }
}

impl System for WireGuard {
    fn name(&self) -> &'static str {
        self.name
    }

    fn version(&self) -> Result<String> {
        let program = find(self.folder.as_deref(), self.program)?;
        if self.folder.is_none() {
            return package_version(self.program);
        }
        said_version(&program, &["--version"], self.program)
    }

    fn is_yardstick(&self) -> bool {
        self.folder.is_some()
    }

    fn start(&self, ground: &Ground) -> Result<Overlay> {
        let program = find(self.folder.as_deref(), self.program)?;
        // Its control socket lies in a folder that all namespaces share.
        let device = |side: usize| format!("bw{}{side}", ground.number);
        let daemons = on_both(ground, &program, |side| {
            let words = self.words.iter().map(|word| (*word).to_owned());
            words.chain([device(side)]).collect()
        })?;
        let keys = [key(ground, "a")?, key(ground, "b")?];
        for (side, namespace) in ground.sides.iter().enumerate() {
            let device = device(side);
            wait::until("the control socket", process::SHORT, || {
                namespace.run(&["wg", "show", &device])?;
                Ok(wait::Now(()))
            })?;
            let far = format!("{}:51820", Ground::UNDERLAY[1 - side]);
            let allowed = format!("{}/32", ENDS[1 - side]);
            let secret = keys[side].0.display().to_string();
            let mine = [
                "wg",
                "set",
                &device,
                "listen-port",
                "51820",
                "private-key",
                &secret,
            ];
            let peer = [
                "peer",
                &keys[1 - side].1,
                "allowed-ips",
                &allowed,
                "endpoint",
                &far,
            ];
            namespace.run(&[&mine[..], &peer[..]].concat())?;
            namespace.ip(&format!("link set {device} name wg0"))?;
        }
        address(ground, "wg0", MTU)?;
        Ok(Overlay::of(daemons))
    }
}

/// A new key: the file of its secret half, and the public one.
fn key(ground: &Ground, name: &str) -> Result<(PathBuf, String)> {
    let secret = process::succeed(Command::new("wg").arg("genkey"), b"")?;
    let public = process::succeed(Command::new("wg").arg("pubkey"), secret.as_bytes())?;
    Ok((ground.file(name, &secret)?, public.trim().to_owned()))
}
