//! Two namespaces and one cable: what every system is measured on. A third namespace on a cable of its
//! own has the peer that somebody talks to besides.

use std::fmt;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::ValueEnum;

use podmesh_lab::{Namespace, process, registry};

/// How the cable takes super-packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LinkMode {
    /// They pass in one piece, as between virtual machines of one host.
    Whole,
    /// The kernel cuts them before the device, as most network cards have it.
    Wire,
}

impl fmt::Display for LinkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Whole => "whole",
            Self::Wire => "wire",
        })
    }
}

/// The device of the cable, on either side.
pub(crate) const DEVICE: &str = "u0";

/// That of the third side's.
const SECOND_DEVICE: &str = "u1";

/// The sides; gone when dropped.
pub(crate) struct Ground {
    pub(crate) number: u32,
    pub(crate) sides: [Arc<Namespace>; 2],
    /// On another cable of the first side.
    pub(crate) third: Arc<Namespace>,
    folder: PathBuf,
}

impl Ground {
    pub(crate) fn new(mode: LinkMode) -> Result<Self> {
        let number = registry::next_lab_number();
        let sides = [
            Arc::new(Namespace::create(number, "a")?),
            Arc::new(Namespace::create(number, "b")?),
        ];
        let [a, b] = &sides;
        let mut link = Command::new("ip");
        link.args(["link", "add", DEVICE, "netns", a.name(), "type", "veth"]);
        link.args(["peer", "name", DEVICE, "netns", b.name()]);
        process::succeed(&mut link, b"")?;
        for (side, address) in sides.iter().zip(Self::UNDERLAY) {
            side.ip(&format!(
                "address add {address}/24 dev {DEVICE}\nlink set {DEVICE} up"
            ))?;
            if mode == LinkMode::Wire {
                let off = ["tso", "off", "gso", "off", "tx-udp-segmentation", "off"];
                let words = [&["ethtool", "-K", DEVICE], &off[..], &["gro", "on"]].concat();
                side.run(&words)?;
            }
        }
        let third = Arc::new(Namespace::create(number, "c")?);
        let mut link = Command::new("ip");
        link.args([
            "link",
            "add",
            SECOND_DEVICE,
            "netns",
            sides[0].name(),
            "type",
            "veth",
        ]);
        link.args(["peer", "name", SECOND_DEVICE, "netns", third.name()]);
        process::succeed(&mut link, b"")?;
        for (side, address) in [&sides[0], &third].into_iter().zip(Self::SECOND) {
            side.ip(&format!(
                "address add {address}/24 dev {SECOND_DEVICE}\nlink set {SECOND_DEVICE} up"
            ))?;
        }
        third.ip(&format!("route add default via {}", Self::SECOND[0]))?;
        let folder = registry::new_folder(number)?;
        Ok(Self {
            number,
            sides,
            third,
            folder,
        })
    }

    /// Addresses on the cable.
    pub(crate) const UNDERLAY: [Ipv4Addr; 2] =
        [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];

    /// Addresses on the other cable.
    pub(crate) const SECOND: [Ipv4Addr; 2] = [
        Ipv4Addr::new(198, 51, 100, 1),
        Ipv4Addr::new(198, 51, 100, 2),
    ];

    /// A folder for the files of one system.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes a file and returns its path.
    pub(crate) fn file(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        registry::delete_folder(&self.folder);
    }
}
