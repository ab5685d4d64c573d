//! The kinds of NAT that a site's router can have, as nftables rules.
//!
//! Words of RFC 4787: a mapping is endpoint-independent (one public port per inner socket) or
//! address-and-port-dependent (another one per destination); a filter is endpoint-independent
//! (everybody may answer) or address-and-port-dependent (only who was spoken to). Linux adds
//! *poisoning*: a packet from outside that the router itself accepts takes the public port for
//! that peer, and the inner socket is moved to another one when it speaks to the same peer later.

use std::net::Ipv4Addr;

use crate::site::WAN;

/// What a router does with UDP of its site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Nat {
    /// No router at all: every node has a public address of its own. N0 in the grid.
    #[default]
    Open,
    /// Every node has a public address that the router translates, as clouds do. N1.
    OneToOne,
    /// One public port per inner socket, and everybody may send to it. N2.
    FullCone,
    /// One public port per inner socket, only who was spoken to may answer, the router drops
    /// what nobody asked for. The usual home router. N4.
    PortRestricted,
    /// The same, but the router accepts what nobody asked for, so that a packet that is too early
    /// poisons the mapping. N5.
    Poisonable,
    /// Another random public port for every destination. N8.
    Symmetric,
}

impl Nat {
    /// All kinds, from the most to the least open.
    pub const ALL: [Self; 6] = [
        Self::Open,
        Self::OneToOne,
        Self::FullCone,
        Self::PortRestricted,
        Self::Poisonable,
        Self::Symmetric,
    ];

    /// The short name in grids.
    pub fn label(self) -> &'static str {
        match self {
            Self::Open => "N0",
            Self::OneToOne => "N1",
            Self::FullCone => "N2",
            Self::PortRestricted => "N4",
            Self::Poisonable => "N5",
            Self::Symmetric => "N8",
        }
    }

    /// The kind in words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Open => "public addresses",
            Self::OneToOne => "1:1 translation",
            Self::FullCone => "full cone",
            Self::PortRestricted => "masquerading, port-restricted",
            Self::Poisonable => "masquerading, accepts inbound packets",
            Self::Symmetric => "symmetric, a random port per destination",
        }
    }

    /// The rules of a router with this kind, for nft.
    pub(crate) fn rules(self, public: Ipv4Addr) -> String {
        let translation = match self {
            Self::Open => String::new(),
            Self::OneToOne => one_to_one_tables(),
            Self::FullCone => full_cone(public),
            Self::PortRestricted | Self::Poisonable => masquerade(""),
            Self::Symmetric => masquerade("fully-random"),
        };
        let unasked = if self == Self::Poisonable {
            "accept"
        } else {
            "drop"
        };
        translation + &filter(unasked)
    }

    /// One more node behind a 1:1 router.
    pub(crate) fn one_to_one_node(inner: Ipv4Addr, public: Ipv4Addr) -> String {
        format!(
            "add element ip translation public_of {{ {inner} : {public} }}\n\
             add element ip translation inner_of {{ {public} : {inner} }}\n"
        )
    }
}

fn masquerade(flags: &str) -> String {
    format!(
        "table ip translation {{
           chain outbound {{
             type nat hook postrouting priority srcnat
             oifname {WAN} masquerade {flags}
           }}
         }}\n"
    )
}

fn one_to_one_tables() -> String {
    format!(
        "table ip translation {{
           map public_of {{ type ipv4_addr : ipv4_addr; }}
           map inner_of {{ type ipv4_addr : ipv4_addr; }}
           chain outbound {{
             type nat hook postrouting priority srcnat
             oifname {WAN} snat to ip saddr map @public_of
           }}
           chain inbound {{
             type nat hook prerouting priority dstnat
             iifname {WAN} dnat to ip daddr map @inner_of
           }}
         }}\n"
    )
}

/// Linux has no full cone; a map that every outgoing packet refreshes plays one.
fn full_cone(public: Ipv4Addr) -> String {
    format!(
        "table ip translation {{
           map inner_of {{
             type inet_service : ipv4_addr . inet_service
             flags dynamic
             timeout 300s
             size 65535
           }}
           chain note_mapping {{
             type filter hook postrouting priority srcnat - 1
             oifname {WAN} meta l4proto udp update @inner_of {{ udp sport : ip saddr . udp sport }}
           }}
           chain outbound {{
             type nat hook postrouting priority srcnat
             oifname {WAN} snat to {public}
           }}
           chain inbound {{
             type nat hook prerouting priority dstnat
             iifname {WAN} meta l4proto udp dnat ip to udp dport map @inner_of
           }}
         }}\n"
    )
}

/// What the router accepts for itself, and whom it lets in: only answers and translated packets.
fn filter(unasked: &str) -> String {
    format!(
        "table inet filter {{
           chain input {{
             type filter hook input priority filter
             iifname != {WAN} accept
             ct state established,related accept
             icmp type echo-request accept
             meta l4proto ipv6-icmp accept
             {unasked}
           }}
           chain forward {{
             type filter hook forward priority filter
             iifname != {WAN} accept
             ct state established,related accept
             ct status dnat accept
             drop
           }}
         }}\n"
    )
}
