//! `rogue`: a stolen planet and a rogue member, each with the real keys of its role.
//!
//! No program of podmesh can lie; this one speaks the same words and does nothing else. Both
//! puppets behave well until an order comes in over a local socket, one JSON object per line, and
//! answer it with one line that says what they told to whom and what came of it.

mod clock;
mod control;
mod forge;
mod knock;
mod loot;
mod member;
mod packet;
mod planet;
mod random;
mod tls;

use anyhow::Result;
use clap::Parser;

/// Play a stolen planet or a rogue member of a podmesh network.
#[derive(Debug, Parser)]
#[command(name = "rogue")]
enum Rogue {
    /// A planet whose key was stolen
    Planet(planet::Planet),
    /// A member that joins by a real token and then misbehaves
    Member(member::Member),
    /// Many members that join by one token and are never seen again
    Crowd(member::Absentees),
    /// A stranger that says hello to a planet again and again, and measures how long that takes
    Greeter(member::Greeter),
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match Rogue::parse() {
        Rogue::Planet(planet) => runtime.block_on(planet.run()),
        Rogue::Member(member) => runtime.block_on(member.run()),
        Rogue::Crowd(absentees) => runtime.block_on(absentees.run()),
        Rogue::Greeter(greeter) => runtime.block_on(greeter.run()),
    }
}
