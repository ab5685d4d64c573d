//! How long a packet the mesh interface takes: what the best of this machine's networks could carry.
//! The paths to the peers carry less, perhaps; their routes say so.

use podmesh_kernel::netlink::{Netlink, NetlinkError};

use crate::config::{Config, is_excluded};

/// Bytes that an inner packet grows by on its way over IPv4: IP 20, UDP 8, `WireGuard` 32. Over IPv6 it
/// is 20 more, which is for the routes to say.
const OVERHEAD: u32 = 60;
/// Bytes. What Ethernet takes, when nothing is known yet.
const USUAL: u32 = 1_500 - OVERHEAD;
const LEAST: u32 = 1_280;
/// Bytes. Larger than any Ethernet.
pub(crate) const MOST: u32 = 9_000;

/// Bytes, as configured or as the machine's networks suggest. A machine that has no network yet keeps
/// what the interface has.
pub(crate) async fn choose(config: &Config) -> u32 {
    if let Some(mtu) = config.mtu {
        return mtu;
    }
    match suggested(config).await {
        Ok(mtu) => mtu,
        Err(error) => {
            tracing::warn!(reason = %error, mtu = USUAL, "can't tell what the networks carry");
            USUAL
        }
    }
}

async fn suggested(config: &Config) -> Result<u32, NetlinkError> {
    let device = &config.device;
    let netlink = Netlink::connect()?;
    let links = netlink.links().await?;
    let addresses = netlink.underlay_addresses().await?;
    let mtu_of = |name: &str| {
        links
            .iter()
            .find(|link| link.name == name)
            .map(|link| link.mtu)
    };
    let usable = addresses
        .iter()
        .filter(|address| address.is_usable(device, &[]))
        .filter(|address| !is_excluded(&config.exclude_interfaces, &address.interface));
    let best = usable
        .filter_map(|address| mtu_of(&address.interface))
        .max()
        .map(|underlay| underlay.saturating_sub(OVERHEAD));
    let present = || mtu_of(device);
    Ok(best.or_else(present).unwrap_or(USUAL).clamp(LEAST, MOST))
}
