//! The own nftables table `inet podmesh`: the second of the two layers that fail closed, and the
//! translation of addresses at the network's edge.
//!
//! The table holds five chains. A packet from a pod passes `pod-source`, one from outside
//! `foreign-arrival`; TCP through the mesh gets a fitting segment size; `source-nat` decides under
//! which address a packet leaves; and `fail-closed` has the last word, after routing and every
//! translation: whatever is for the network leaves through the mesh, or not at all.
//!
//! A sixth chain without rules carries the fingerprint of the wanted rules in its name, which tells
//! most differences at once; the rules themselves are compared step by step. Replacing is one
//! transaction of the kernel: there is no moment without rules.
//!
//! Rules of other tables are never touched; a foreign chain that drops forwarded packets still
//! drops them, since no table can overrule another's refusal.

mod connections;
mod expression;
mod rules;
mod table;

use std::{io, net::IpAddr};

use ipnet::IpNet;

use crate::mark::Mark;

pub use connections::MOST_STRAYS;

/// Name of the table.
pub(crate) const TABLE: &str = "podmesh";

/// What the guard has to know. meshd and the CNI plugin must build it from the same node file:
/// otherwise they replace each other's rules in turns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardRules {
    /// Name of the mesh interface.
    pub device: String,
    /// What the names of pod interfaces on the host begin with.
    pub veth_prefix: String,
    /// Other interfaces of this node whose containers may use the mesh (`docker0`, `cni0`).
    pub local_devices: Vec<String>,
    /// Every overlay and pod range of the network.
    pub protected: Vec<IpNet>,
    /// This node's pod CIDRs.
    pub own_pod_cidrs: Vec<IpNet>,
    /// This node's overlay addresses.
    pub own_overlay: Vec<IpAddr>,
    /// The mark on datagrams of this program's underlay sockets.
    pub mark: Mark,
}

impl GuardRules {
    /// The same rules in the one order that everybody derives from the same sets.
    fn sorted(&self) -> Self {
        let mut sorted = self.clone();
        for ranges in [&mut sorted.protected, &mut sorted.own_pod_cidrs] {
            *ranges = IpNet::aggregate(&ranges.iter().map(IpNet::trunc).collect());
            ranges.sort();
        }
        sorted.own_overlay.sort();
        sorted.own_overlay.dedup();
        sorted.local_devices.sort();
        sorted.local_devices.dedup();
        sorted
    }

    fn pods(&self) -> String {
        format!("{}*", self.veth_prefix)
    }

    fn own_devices(&self) -> impl Iterator<Item = String> + '_ {
        [self.device.clone(), self.pods(), "lo".to_owned()]
            .into_iter()
            .chain(self.local_devices.iter().cloned())
    }
}

/// Why the table is not as wanted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NftError {
    /// No netlink socket, or the table could not be read.
    #[error("the kernel's nftables cannot be read: {0}")]
    Read(#[source] io::Error),
    /// The kernel refused the whole replacement; what was there before still stands.
    #[error("the kernel refused the nftables rules of podmesh: {0}")]
    Write(#[source] io::Error),
}

/// Makes the table hold exactly these rules, in one transaction. True if something was changed: then
/// connections may have begun without the rules, which [`forget_strays`] knows how to find.
///
/// # Errors
///
/// When the kernel has no nftables, or the caller may not change them.
pub fn ensure(guard: &GuardRules) -> Result<bool, NftError> {
    let chains = rules::chains(&guard.sorted());
    if table::holds(&chains).map_err(NftError::Read)? {
        return Ok(false);
    }
    table::replace(&chains).map_err(NftError::Write)?;
    Ok(true)
}

/// Has the kernel forget the connections that these rules would translate and that it remembers as not
/// translated, because they began while the rules were away; their next packets begin them anew. Every
/// other connection goes on. Gives how many were forgotten, [`MOST_STRAYS`] at most. It looks at all
/// connections of the namespace, which takes a tenth of a second for some 100,000.
///
/// # Errors
///
/// When the kernel's connections or this namespace's addresses can't be read.
pub fn forget_strays(guard: &GuardRules) -> io::Result<usize> {
    connections::forget_strays(guard)
}

/// Has the kernel forget the UDP connections that this machine began from one of these ports and gives
/// another source port. For sockets that somebody's rules took for theirs and take no more: what such a
/// rule decided once holds as long as there are packets. Gives how many were forgotten.
///
/// # Errors
///
/// When the kernel's connections or this namespace's addresses can't be read.
pub fn forget_translated(ports: &[u16]) -> io::Result<usize> {
    connections::forget_translated(ports)
}

/// Whether the table holds exactly these rules.
///
/// # Errors
///
/// When the kernel has no nftables, or the caller may not read them.
pub fn check(guard: &GuardRules) -> Result<bool, NftError> {
    table::holds(&rules::chains(&guard.sorted())).map_err(NftError::Read)
}

/// Removes the table with everything in it. True if there was one.
///
/// # Errors
///
/// When the kernel has no nftables, or the caller may not change them.
pub fn remove() -> Result<bool, NftError> {
    table::remove().map_err(NftError::Write)
}
