//! Whose an address is, as far as a node knows. Pure.

use std::net::IpAddr;

use ipnet::IpNet;

/// Who holds which addresses in the network of which the node is a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// Ranges of this node's pods.
    pub own: Vec<IpNet>,
    /// What leads to other nodes.
    pub others: Vec<IpNet>,
}

impl Holders {
    /// Whether packets to `address` belong to another node.
    pub(super) fn is_anothers(&self, address: &IpAddr) -> bool {
        let contains = |range: &IpNet| range.contains(address);
        !self.own.iter().any(contains) && self.others.iter().any(contains)
    }

    /// The first of a pod's addresses that is none of this node's, in words. Pods stand longer than what they
    /// were attached under: a membership that was left and begun anew, a token of other ranges, an edition of
    /// the network.
    pub(super) fn stray(&self, addresses: &[IpAddr]) -> Option<String> {
        let is_own = |address: &IpAddr| self.own.iter().any(|range| range.contains(address));
        let address = addresses.iter().find(|address| !is_own(address))?;
        let own: Vec<_> = self.own.iter().map(IpNet::to_string).collect();
        let own = match &own[..] {
            [] => "and this node has none".to_owned(),
            own => format!("which are {}", own.join(" and ")),
        };
        let holder = match self.is_anothers(address) {
            true => "another node holds it by now, to which its packets go",
            false => "nobody outside of this node reaches it there",
        };
        Some(format!(
            "{address} is in none of this node's present pod CIDRs, {own}; {holder}"
        ))
    }
}
