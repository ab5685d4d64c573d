//! What a rogue member holds, as a file that it shares with a stolen planet: real keys, a real
//! membership, and everything that it has ever seen of others.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use podmesh_proto::certificate::{Departure, Membership};
use podmesh_proto::id::NetworkId;
use podmesh_proto::key::{SecretKey, SigningKey};
use podmesh_proto::probe::ProbeKeys;
use podmesh_proto::signed::Signed;
use serde::{Deserialize, Serialize};

use crate::random;

/// Keys of a node.
pub(crate) struct Keys {
    /// Its identity.
    pub(crate) identity: SigningKey,
    /// Its tunnels' key.
    pub(crate) wireguard: SecretKey,
    /// Its probes' key.
    pub(crate) probe: SecretKey,
}

impl Keys {
    /// Fresh ones.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            identity: SigningKey::from_seed(random::bytes()?),
            wireguard: SecretKey::from_bytes(random::bytes()?),
            probe: SecretKey::from_bytes(random::bytes()?),
        })
    }

    /// The keys of probes with a member.
    pub(crate) fn probes_with(
        &self,
        member: &podmesh_proto::certificate::NodeCertificate,
        network: &NetworkId,
    ) -> Option<ProbeKeys> {
        let me = self.identity.node_id();
        ProbeKeys::derive(&self.probe, &me, &member.probe, &member.node, network)
    }
}

/// The file.
#[derive(Serialize, Deserialize)]
pub(crate) struct Loot {
    identity: [u8; 32],
    wireguard: [u8; 32],
    probe: [u8; 32],
    /// The member's own chain.
    pub(crate) membership: Membership,
    /// Every chain that it ever saw, oldest first.
    pub(crate) seen: Vec<Membership>,
    /// Every departure that it ever saw.
    pub(crate) departures: Vec<Signed<Departure>>,
}

impl Loot {
    /// What `keys` and `membership` are worth.
    pub(crate) fn new(
        keys: &Keys,
        membership: Membership,
        (seen, departures): (Vec<Membership>, Vec<Signed<Departure>>),
    ) -> Self {
        Self {
            identity: *keys.identity.seed(),
            wireguard: *keys.wireguard.to_bytes(),
            probe: *keys.probe.to_bytes(),
            membership,
            seen,
            departures,
        }
    }

    /// The member's keys.
    pub(crate) fn keys(&self) -> Keys {
        Keys {
            identity: SigningKey::from_seed(self.identity),
            wireguard: SecretKey::from_bytes(self.wireguard),
            probe: SecretKey::from_bytes(self.probe),
        }
    }

    /// Reads the file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        postcard::from_bytes(&bytes).map_err(|_| anyhow!("{} is no loot", path.display()))
    }

    /// Writes the file, all of it or nothing.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let bytes = postcard::to_allocvec(self).map_err(|_| anyhow!("cannot encode the loot"))?;
        let fresh = path.with_extension("new");
        fs::write(&fresh, bytes)?;
        fs::rename(&fresh, path).with_context(|| format!("cannot write {}", path.display()))
    }
}
