//! The command line: one place from which help, man pages and completions are made.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::commands;

/// Exit codes, for `--help` and the man page.
const AFTER_HELP: &str = "\
Exit codes:
  0 done                          5 not permitted
  1 failed                        6 not found
  2 check says: not ready         7 no answer in time
  3 wrong command line            8 reachable, but only by a relay
  4 daemon not reachable          9 some targets failed";

/// Control a podmesh network and this node.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, after_help = AFTER_HELP, arg_required_else_help = true)]
#[command(propagate_version = true, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// Socket of meshd
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        default_value = "/run/podmesh/meshd.sock"
    )]
    pub(crate) socket: PathBuf,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Join a network with a token
    Join(commands::join::Join),
    /// Leave the network; coming back needs a new token
    Leave(commands::leave::Leave),
    /// Show this node
    Status(commands::status::Status),
    /// List the peers and how each is reached
    Peers(commands::peers::Peers),
    /// Show one peer in full; add or remove an external one
    Peer(commands::peer::Peer),
    /// Send echoes through the tunnel to a peer
    Ping(commands::ping::Ping),
    /// Show the routes that this host should hold
    Routes(commands::routes::Routes),
    /// Wait until the node has reached a state
    Wait(commands::wait::Wait),
    /// Create and change a network (needs its root key)
    Network(commands::network::Network),
    /// Make, list and revoke join tokens (needs the root key)
    Token(commands::token::Token),
    /// Decide about nodes (needs the root key)
    Node(commands::node::Node),
    /// Show the versions of meshctl and meshd
    Version(commands::version::Version),
    /// Print completions for a shell
    Completions(commands::manual::Completions),
    /// Write the man pages into a folder
    #[command(hide = true)]
    Man(commands::manual::Man),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
