//! What a thief with real keys can do to a network, and what not.
//!
//! The lies are told by the program `rogue`, which holds the keys of a planet or of a member and
//! speaks the words of the protocol; the nodes under attack are ordinary ones.
#![allow(
    clippy::print_stdout,
    reason = "figures and what nodes said are shown when a scenario is read"
)]

mod forgetful_planet;
mod health;
mod listener;
mod rogue_member;
mod stolen_planet;
mod two_claimants;
