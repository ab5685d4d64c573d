//! One file per command: its arguments, what it does, what it says.

pub(crate) mod delivery;
pub(crate) mod join;
pub(crate) mod leave;
pub(crate) mod manual;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod peer;
pub(crate) mod peers;
pub(crate) mod ping;
pub(crate) mod routes;
pub(crate) mod status;
pub(crate) mod token;
pub(crate) mod version;
pub(crate) mod wait;

use podmesh_proto::local_api::NodeState;

use crate::cli::{Cli, Command};
use crate::client::Client;
use crate::problem::{Exit, Problem};
use crate::show::Screen;

/// What every command gets.
#[derive(Debug)]
pub(crate) struct Context {
    /// meshd on this machine.
    pub(crate) meshd: Client,
    /// Where to print.
    pub(crate) screen: Screen,
}

impl Context {
    /// For commands whose table is empty: on a node in no network it can't be anything else.
    fn need_network(&self) -> Result<(), Problem> {
        if self.meshd.status()?.state == NodeState::NotJoined {
            let cause = "this node has not joined a network";
            return Err(Problem::new(Exit::NotReady, cause).next("meshctl join"));
        }
        Ok(())
    }
}

/// Runs the command.
///
/// # Errors
/// The command failed; [`Problem::exit`] is the program's exit code.
pub(crate) fn run(cli: Cli, screen: Screen) -> Result<Exit, Problem> {
    let meshd = Client::meshd(&cli.socket);
    let context = Context { meshd, screen };
    match cli.command {
        Command::Join(join) => join.run(&context),
        Command::Leave(leave) => leave.run(&context),
        Command::Status(status) => status.run(&context),
        Command::Peers(peers) => peers.run(&context),
        Command::Peer(peer) => peer.run(&context),
        Command::Ping(ping) => ping.run(&context),
        Command::Routes(routes) => routes.run(&context),
        Command::Wait(wait) => wait.run(&context),
        Command::Network(network) => network.run(&context),
        Command::Token(token) => token.run(&context),
        Command::Node(node) => node.run(&context),
        Command::Version(version) => version.run(&context),
        Command::Completions(completions) => completions.run(&context),
        Command::Man(man) => man.run(),
    }
}
