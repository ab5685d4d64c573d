//! What has no encryption: the limits.

use std::fs;
use std::net::IpAddr;

use anyhow::Result;

use podmesh_lab::node;

use super::{MTU, Overlay, System, address, on_both};
use crate::ground::{DEVICE, Ground};

/// The cable itself.
pub(crate) struct Raw;

/// The kernel's VXLAN, which flannel uses.
pub(crate) struct Vxlan;

/// A TUN and a UDP socket with all offloads, and nothing in between.
pub(crate) struct Pipe;

impl System for Raw {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn version(&self) -> Result<String> {
        kernel()
    }

    fn start(&self, _: &Ground) -> Result<Overlay> {
        Ok(Overlay {
            ends: Ground::UNDERLAY.map(IpAddr::V4),
            ..Overlay::of(Vec::new())
        })
    }
}

impl System for Vxlan {
    fn name(&self) -> &'static str {
        "vxlan"
    }

    fn version(&self) -> Result<String> {
        kernel()
    }

    fn start(&self, ground: &Ground) -> Result<Overlay> {
        for (side, number) in ground.sides.iter().zip(0..) {
            let (local, remote) = (Ground::UNDERLAY[number], Ground::UNDERLAY[1 - number]);
            side.ip(&format!(
                "link add vx0 type vxlan id 1 dev {DEVICE} local {local} remote {remote} dstport 8472"
            ))?;
        }
        address(ground, "vx0", 1_450)?;
        Ok(Overlay::of(Vec::new()))
    }
}

impl System for Pipe {
    fn name(&self) -> &'static str {
        "pipe"
    }

    fn version(&self) -> Result<String> {
        node::program("pipe")?;
        Ok("no encryption".into())
    }

    fn is_yardstick(&self) -> bool {
        true
    }

    fn start(&self, ground: &Ground) -> Result<Overlay> {
        let daemons = on_both(ground, &node::program("pipe")?, |side| {
            let place = |side: usize| format!("{}:5555", Ground::UNDERLAY[side]);
            vec!["pipe0".to_owned(), place(side), place(1 - side)]
        })?;
        address(ground, "pipe0", MTU)?;
        Ok(Overlay::of(daemons))
    }
}

fn kernel() -> Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(format!("Linux {}", release.trim()))
}
