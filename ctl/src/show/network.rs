//! A network as its document says, for people and as JSON.

use ipnet::IpNet;
use podmesh_proto::id::{Name, NetworkId};
use podmesh_proto::key::VerifyingKey;
use podmesh_proto::network::{Network, PlanetEntry};
use serde::Serialize;

use crate::show::Screen;
use crate::show::peers::{line, list};
use crate::show::plain;
use crate::show::table::Table;

/// Schema of [`NetworkDocument`].
pub(crate) const SCHEMA: &str = "podmesh.network/v1";

/// A network document as JSON shows it.
#[derive(Debug, Serialize)]
pub(crate) struct NetworkDocument<'a> {
    id: NetworkId,
    name: &'a Name,
    version: u64,
    issued: String,
    root: String,
    second_root: Option<String>,
    overlay: [IpNet; 2],
    pods: [IpNet; 2],
    pod_block_v4: u8,
    pod_block_v6: u8,
    services: &'a [IpNet],
    planets: &'a [PlanetEntry],
    retired: Vec<Retired>,
}

#[derive(Debug, Serialize)]
struct Retired {
    id: podmesh_proto::id::PlanetId,
    until: String,
}

impl<'a> From<&'a Network> for NetworkDocument<'a> {
    fn from(network: &'a Network) -> Self {
        let ranges = &network.ranges;
        let retired = network.retired.iter().map(|gone| Retired {
            id: gone.id,
            until: gone.until.to_string(),
        });
        Self {
            id: network.id,
            name: &network.name,
            version: network.version,
            issued: network.issued.to_string(),
            root: hex(&network.root),
            second_root: network.second_root.as_ref().map(hex),
            overlay: [IpNet::V4(ranges.overlay4), IpNet::V6(ranges.overlay6)],
            pods: [IpNet::V4(ranges.pods4), IpNet::V6(ranges.pods6)],
            pod_block_v4: ranges.pods4_block,
            pod_block_v6: ranges.pods6_block,
            services: &ranges.services,
            planets: &network.planets,
            retired: retired.collect(),
        }
    }
}

/// The document for people.
pub(crate) fn text(network: &Network, screen: Screen) -> String {
    let document = NetworkDocument::from(network);
    let mut text = String::new();
    let edition = format!("{} of {}", document.version, document.issued);
    let roots = match &document.second_root {
        Some(second) => format!("{}, second {second}", document.root),
        None => document.root.clone(),
    };
    let blocks = (document.pod_block_v4, document.pod_block_v6);
    let pods = format!(
        "{} (/{} and /{} per node)",
        list(&document.pods),
        blocks.0,
        blocks.1
    );
    for (name, value) in [
        ("network", network.name.to_string()),
        ("id", network.id.to_string()),
        ("edition", edition),
        ("root key", roots),
        ("overlay", list(&document.overlay)),
        ("pods", pods),
        ("services", list(document.services)),
    ] {
        line(&mut text, name, &value);
    }
    let mut table = Table::new(&["PLANET", "ADDRESS", "LEASES", "KEY"]);
    for (number, planet) in network.planets.iter().enumerate() {
        let arbiter = if number == 0 { "arbiter" } else { "" };
        table.row(vec![
            planet.name.as_str().into(),
            plain(&planet.address).into(),
            arbiter.into(),
            planet.id.to_string().into(),
        ]);
    }
    text.push('\n');
    text.push_str(&table.render(screen, None));
    for gone in &document.retired {
        text.push_str(&format!("retired: {} at {}\n", gone.id, gone.until));
    }
    text
}

fn hex(key: &VerifyingKey) -> String {
    podmesh_proto::id::NodeId(key.0).to_string()
}
