//! The thinking of podmesh, without a clock, a socket, a thread or a file.
//!
//! An [`Engine`](engine::Engine) is one node. A shell (meshd, or a simulator) owns it, tells it what
//! happens and does what it says:
//!
//! * **in:** `handle_join`, `handle_leave`, `handle_statement`, `handle_planet`, `handle_item`,
//!   `handle_underlay`, `handle_timeout`, each with [`Now`](podmesh_proto::time::Now);
//! * **out:** `poll_output` until it gives `None`, after every call of a `handle_*`; `poll_timeout`
//!   says when to call `handle_timeout` next;
//! * **views:** `status`, `peers`, `peer`, `routes`, `ready`: what people see.
//!
//! That is the *slow half*: membership, paths, handshakes, planets, the host's plan. The *fast half*
//! is two functions, [`outbound::seal_batch`] and [`inbound::open_batch`], which any number of threads
//! call with the [`ForwardingTable`](forwarding::ForwardingTable) that the slow half published last.
//! They never wait, never decide, and take one lock per peer and batch; what they can't do they hand to
//! the slow half as [`SlowItem`](output::SlowItem)s, over a bounded queue.
//!
//! A shell without threads may give every datagram to `handle_datagram` and every inner packet to
//! `handle_pod_packet`, which run the same two functions inside.
//!
//! Membership is judged in [`membership`], a join in [`join`], paths in [`paths`]; [`tunnel`] is the
//! only file that knows the `WireGuard` implementation.

pub mod config;
pub mod control;
pub mod drops;
pub mod ecn;
pub mod engine;
pub mod error;
pub mod forwarding;
pub mod host_plan;
pub mod inbound;
pub mod join;
pub mod limiter;
pub mod limits;
pub mod membership;
pub mod mutation;
pub mod offload;
pub mod outbound;
pub mod output;
pub mod packet;
pub mod path_id;
pub mod paths;
mod peer;
mod peers;
pub mod planets;
pub mod prefix_table;
pub mod publishing;
mod random;
pub mod reach;
mod simd;
pub mod stored;
#[cfg(test)]
mod testing;
mod timers;
pub mod tunnel;
pub mod turns;
mod views;
