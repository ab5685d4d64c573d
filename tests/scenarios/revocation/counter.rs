//! Counts packets by rules of nft in the namespaces where they arrive or leave.

use anyhow::{Context, Result};
use podmesh_lab::{Namespace, Planet, Pod};
use serde_json::Value;

/// A rule that counts; it is gone with its namespace.
pub(super) struct Counter<'lab> {
    namespace: &'lab Namespace,
    table: String,
}

impl<'lab> Counter<'lab> {
    /// Packets from one pod that arrive at another.
    pub(super) fn from_pod(at: &'lab Pod, from: &Pod) -> Result<Self> {
        let (v4, v6) = (from.address(false)?, from.address(true)?);
        let table = format!("from-{}", from.name());
        let rules = format!("ip saddr {v4} counter\nip6 saddr {v6} counter");
        Self::count(at.namespace(), table, "input", &rules)
    }

    /// Datagrams that a planet passes on to a node for another one; their first byte says so.
    pub(super) fn relayed(planet: &'lab Planet) -> Result<Self> {
        let rules = format!("udp sport {} @th,64,8 0x31 counter", Planet::PORT);
        Self::count(planet.namespace(), "relayed".to_owned(), "output", &rules)
    }

    /// Packets so far.
    pub(super) fn packets(&self) -> u64 {
        self.read().unwrap()
    }

    fn count(namespace: &'lab Namespace, table: String, hook: &str, rules: &str) -> Result<Self> {
        namespace.nft(&format!(
            "table inet {table} {{ chain seen {{ type filter hook {hook} priority 0\n{rules}\n}}\n}}\n"
        ))?;
        Ok(Self { namespace, table })
    }

    fn read(&self) -> Result<u64> {
        let listed = ["nft", "-j", "list", "table", "inet", &self.table];
        let listed: Value = serde_json::from_str(&self.namespace.run(&listed)?)?;
        let items = listed["nftables"].as_array().context("nft lists nothing")?;
        let expressions = items
            .iter()
            .filter_map(|item| item["rule"]["expr"].as_array());
        let counts = expressions
            .flatten()
            .filter_map(|one| one["counter"]["packets"].as_u64());
        Ok(counts.sum())
    }
}
