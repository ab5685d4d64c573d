//! The words of podmesh: everything that two of its programs must agree on.
//!
//! Ids, keys, join tokens, certificates, the messages between node and planet, the sealed
//! datagrams between nodes, and the API of meshd's local socket. The crate has no sockets, files,
//! threads, clock or randomness of its own: callers tell it the time ([`time::Now`]) and give it
//! random bytes. Who sends what and when is decided elsewhere (`engine`, `planet::rules`).
//!
//! Trust in one paragraph: a network is its root key ([`network`]). The root signs a [`token`]'s
//! grant, the token's one-time key signs a node's [`certificate`], a planet receipts that
//! admission, and the node itself signs what it claims; every peer verifies all of it
//! ([`certificate::Membership::verify`]) before a tunnel exists.

pub mod armor;
pub mod caller;
pub mod candidate;
pub mod certificate;
pub mod conversation;
pub mod datagram;
pub mod error;
pub mod frame;
pub mod id;
pub mod key;
pub mod limits;
pub mod local_api;
pub mod mark;
pub mod network;
pub mod node_file;
pub mod planet_api;
pub mod probe;
pub mod relayed;
pub mod renewal;
pub mod replay;
pub mod signed;
pub mod spki;
pub mod statements;
pub mod time;
pub mod token;
