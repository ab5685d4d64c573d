//! `meshctl node`: what only the root may decide about nodes, and the keys of this one.

use clap::{Args, Subcommand};
use podmesh_proto::id::NodeId;
use podmesh_proto::local_api::Request;
use podmesh_proto::network::RootStatement;

use crate::clock;
use crate::commands::Context;
use crate::commands::delivery::Delivery;
use crate::operator::Signer;
use crate::problem::{Exit, Problem};

/// Arguments of `meshctl node`.
#[derive(Debug, Args)]
pub(crate) struct Node {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Put a node out of the network, for good
    Revoke(Decision),
    /// Of several nodes that claim the same, say which one is right
    Resolve(Decision),
    /// Give this node new keys; needs its meshd and a planet, not the root key
    RotateKeys(RotateKeys),
}

#[derive(Debug, Args)]
struct RotateKeys {
    /// Also replace the identity key; the node's id, name and addresses stay
    #[arg(long)]
    identity: bool,
}

#[derive(Debug, Args)]
struct Decision {
    /// Node id, or the name by which meshd on this machine knows the node
    node: String,
    #[command(flatten)]
    signer: Signer,
    #[command(flatten)]
    delivery: Delivery,
}

impl Node {
    pub(super) fn run(self, context: &Context) -> Result<Exit, Problem> {
        let (decision, revoke) = match self.action {
            Action::Revoke(decision) => (decision, true),
            Action::Resolve(decision) => (decision, false),
            Action::RotateKeys(RotateKeys { identity }) => {
                let message = context.meshd.change(Request::RotateKeys { identity })?;
                context.screen.remark(&message);
                return Ok(Exit::Ok);
            }
        };
        let desk = decision.signer.desk()?;
        let (network, node) = (desk.network().id, decision.id(context)?);
        let issued = clock::now_for_signing(desk.network().issued)?;
        let (said, what) = if revoke {
            let said = RootStatement::RevokeNode {
                network,
                node,
                issued,
            };
            (said, format!("node {} revoked", decision.node))
        } else {
            let said = RootStatement::Resolve {
                network,
                node,
                issued,
            };
            (
                said,
                format!("conflict resolved for node {}", decision.node),
            )
        };
        let statement = decision.signer.sign(&desk, &said)?;
        decision.delivery.send(context, &statement, &what)?;
        Ok(Exit::Ok)
    }
}

impl Decision {
    /// A name is looked up at meshd: as itself, or as one of its peers.
    fn id(&self, context: &Context) -> Result<NodeId, Problem> {
        if let Ok(id) = self.node.parse() {
            return Ok(id);
        }
        let own = context.meshd.status().map_err(|problem| {
            Problem {
                cause: format!("can't find the id of '{}': {problem}", self.node),
                ..problem
            }
            .next("write the node's id, which needs no meshd: `planet status` shows it")
        })?;
        if let Some(node) = own.node
            && node.name.as_str() == self.node
        {
            return Ok(node.id);
        }
        let found = context.meshd.peer(&self.node)?;
        found.peer.id.ok_or_else(|| {
            let name = found.peer.name;
            Problem::usage(format!("{name} is an external peer, no node"))
                .next(format!("meshctl peer remove-external {name}"))
        })
    }
}
