//! The one room for Linux: everything podmesh asks of the kernel.
//!
//! Two kinds of callers share it. The data shards of `meshd` move packets with [`tun`], [`udp`] and
//! [`wait`]: plain calls, no allocation per packet, no async. The slow half of `meshd` and the CNI
//! plugin keep links, addresses, routes and rules in order with the netlink modules, all async.
//!
//! This is also the only crate of the workspace with `unsafe` code.
#![cfg(target_os = "linux")]

mod blocking_netlink;
mod release;

pub mod address;
pub mod alarm;
pub mod descriptors;
pub mod firewall;
pub mod host;
pub mod link;
pub mod mark;
pub mod memory;
pub mod messages;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod process;
pub mod route;
pub mod rule;
pub mod sysctl;
pub mod tun;
pub mod udp;
pub mod underlay;
pub mod veth;
pub mod wait;
pub mod watch;
pub mod xfrm;
