//! A laboratory of real network namespaces for podmesh.
//!
//! It builds a small internet on one machine: sites behind routers of chosen NAT kinds, a public
//! core with delay and loss, nodes that run the real `meshd`, planets, and pods that come up
//! through the real CNI plugin. A scenario describes the world with one line per thing and then
//! plays its story:
//!
//! ```no_run
//! use std::time::Duration;
//! use podmesh_lab::{Lab, Nat};
//!
//! # fn main() -> anyhow::Result<()> {
//! let mut plan = Lab::plan("two-homes");
//! plan.planet("planet-1");
//! plan.site("home").nat(Nat::PortRestricted);
//! plan.site("cabin").nat(Nat::Poisonable);
//! plan.node("home-1").at("home");
//! plan.node("cabin-1").at("cabin");
//! plan.delay("home", "cabin", Duration::from_millis(20));
//! let lab = plan.up()?;
//! lab.node("home-1")?.namespace().run(&["ip", "address"])?;
//! # Ok(())
//! # }
//! ```
//!
//! The lab shells out to `ip`, `nft` and friends and runs the release binaries; it links none of
//! the product's code but the words of its local API, because a test must not build its world with
//! what it judges. Everything
//! it makes carries its process id in the name and is removed when the lab is dropped, on a
//! panic, on Ctrl-C, and at the latest by the next run.

pub mod capture;
pub mod lab;
pub mod mesh;
pub mod namespace;
pub mod nat;
pub mod node;
pub mod operator;
pub mod ping;
pub mod planet;
pub mod pod;
pub mod process;
pub mod registry;
pub mod site;
pub mod story;
mod sys;
mod unit;
pub mod wait;
pub mod wire;

pub use lab::{Lab, Plan};
pub use mesh::Mesh;
pub use namespace::Namespace;
pub use nat::Nat;
pub use node::Node;
pub use operator::Operator;
pub use planet::Planet;
pub use pod::Pod;
pub use wire::Link;
