//! tinc as the distribution has it.

use std::fs;

use anyhow::{Result, ensure};

use podmesh_lab::process;

use super::{ENDS, Overlay, System, address, find, on_both, package_version};
use crate::ground::Ground;

/// tinc.
pub(crate) struct Tinc;

const SIDES: [&str; 2] = ["a", "b"];

impl System for Tinc {
    fn name(&self) -> &'static str {
        "tinc"
    }

    fn version(&self) -> Result<String> {
        find(None, "tincd")?;
        package_version("tinc")
    }

    fn start(&self, ground: &Ground) -> Result<Overlay> {
        let tincd = find(None, "tincd")?;
        let host = |at: &str, of: &str| ground.folder().join(at).join("hosts").join(of);
        for (side, name) in SIDES.iter().enumerate() {
            let far = SIDES[1 - side];
            let (at, end) = (Ground::UNDERLAY[side], ENDS[side]);
            ground.file(
                &format!("{name}/tinc.conf"),
                &format!(
                    "Name = {name}\nConnectTo = {far}\nInterface = tinc0\nDeviceType = tun\n\
                     BindToAddress = {at} 655\n"
                ),
            )?;
            ground.file(
                &format!("{name}/hosts/{name}"),
                &format!("Address = {at}\nSubnet = {end}/32\n"),
            )?;
            let mut make_key = std::process::Command::new(&tincd);
            make_key
                .arg("-c")
                .arg(ground.folder().join(name))
                .arg("-K2048");
            let made = process::output(&mut make_key, b"\n\n", process::SHORT)?;
            ensure!(made.status.success(), "tincd makes no key");
        }
        fs::copy(host("a", "a"), host("b", "a"))?;
        fs::copy(host("b", "b"), host("a", "b"))?;
        let daemons = on_both(ground, &tincd, |side| {
            let folder = ground.folder().join(SIDES[side]).display().to_string();
            let pid = format!("--pidfile={folder}/pid");
            ["-c".to_owned(), folder, "-D".to_owned(), pid].into()
        })?;
        address(ground, "tinc0", 1_400)?;
        Ok(Overlay::of(daemons))
    }
}
