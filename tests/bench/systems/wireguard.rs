//! Programs that speak `WireGuard` and are set up by `wg`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use podmesh_lab::{Namespace, process, wait};

use super::{
    ENDS, MTU, Overlay, System, THIRD, address, address_of, find, on_both, package_version,
    said_version, start,
};
use crate::gauge::Extent;
use crate::ground::{Ground, LinkMode};

/// One of them.
pub(crate) struct WireGuard {
    name: &'static str,
    program: &'static str,
    /// Where it was installed to, if not by the distribution.
    folder: Option<PathBuf>,
    words: &'static [&'static str],
}

const PORT: &str = "51820";
const BORINGTUN: &str = "boringtun";

/// Cloudflare's, whose tunnel podmesh uses.
pub(crate) fn boringtun(peers: &Path) -> WireGuard {
    WireGuard {
        name: BORINGTUN,
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

    fn extent(&self, mode: LinkMode) -> Extent {
        match mode {
            LinkMode::Wire => Extent::OneStream,
            // Floods take most of the time, and this one alone is held against in them.
            LinkMode::Whole if self.name == BORINGTUN => Extent::WithFloods,
            LinkMode::Whole => Extent::Streams,
        }
    }

    fn start(&self, ground: &Ground) -> Result<Overlay> {
        let program = find(self.folder.as_deref(), self.program)?;
        let words = |number: usize| -> Vec<String> {
            let words = self.words.iter().map(|word| (*word).to_owned());
            words.chain([device(ground, number)]).collect()
        };
        let daemons = on_both(ground, &program, words)?;
        let third = start(ground, (&ground.third, 2), &program, words(2))?;
        let keys = [key(ground, "a")?, key(ground, "b")?, key(ground, "c")?];
        let [near, far] = &ground.sides;
        for (number, namespace) in [near, far, &ground.third].into_iter().enumerate() {
            set(ground, namespace, number, &["listen-port", PORT])?;
            let secret = keys[number].0.display().to_string();
            set(ground, namespace, number, &["private-key", &secret])?;
        }
        let [one, other] = Ground::UNDERLAY;
        let [second, third_end] = Ground::SECOND;
        let pairs = [
            ((near, 0), (1, ENDS[1], other)),
            ((far, 1), (0, ENDS[0], one)),
            ((near, 0), (2, THIRD, third_end)),
            ((&ground.third, 2), (0, ENDS[0], second)),
        ];
        for ((namespace, number), (peer, address, endpoint)) in pairs {
            let allowed = format!("{address}/32");
            let endpoint = format!("{endpoint}:{PORT}");
            let words = [
                "peer",
                &keys[peer].1,
                "allowed-ips",
                &allowed,
                "endpoint",
                &endpoint,
            ];
            set(ground, namespace, number, &words)?;
        }
        for (number, namespace) in [near, far, &ground.third].into_iter().enumerate() {
            namespace.ip(&format!("link set {} name wg0", device(ground, number)))?;
        }
        address(ground, "wg0", MTU)?;
        address_of(&ground.third, THIRD, ("wg0", MTU))?;
        Ok(Overlay {
            third: Some(THIRD.into()),
            _helpers: vec![third],
            ..Overlay::of(daemons)
        })
    }
}

/// The control socket of a device lies in a folder that all namespaces share.
fn device(ground: &Ground, number: usize) -> String {
    format!("bw{}{number}", ground.number)
}

fn set(ground: &Ground, namespace: &Namespace, number: usize, words: &[&str]) -> Result<()> {
    let device = device(ground, number);
    wait::until("the control socket", process::SHORT, || {
        namespace.run(&["wg", "show", &device])?;
        Ok(wait::Now(()))
    })?;
    namespace.run(&[&["wg", "set", &device], words].concat())?;
    Ok(())
}

/// A new key: the file of its secret half, and the public one.
fn key(ground: &Ground, name: &str) -> Result<(PathBuf, String)> {
    let secret = process::succeed(Command::new("wg").arg("genkey"), b"")?;
    let public = process::succeed(Command::new("wg").arg("pubkey"), secret.as_bytes())?;
    Ok((ground.file(name, &secret)?, public.trim().to_owned()))
}
