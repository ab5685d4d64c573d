//! `meshctl node`: what only the root may decide about nodes, and the keys of this one.

use clap::{Args, Subcommand};
use podmesh_proto::id::{Name, NodeId};
use podmesh_proto::local_api::Request;
use podmesh_proto::network::RootStatement;

use crate::clock;
use crate::commands::Context;
use crate::commands::delivery::Delivery;
use crate::confirm::Confirm;
use crate::operator::{Desk, Signer};
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
    Revoke(Revoke),
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
struct Revoke {
    #[command(flatten)]
    decision: Decision,
    #[command(flatten)]
    confirm: Confirm,
}

#[derive(Debug, Args)]
struct Decision {
    /// Node id or its first 8 digits, or the name by which meshd or a planet on this machine knows the
    /// node
    node: String,
    #[command(flatten)]
    signer: Signer,
    #[command(flatten)]
    delivery: Delivery,
}

/// The node that is meant.
struct Subject {
    id: NodeId,
    /// With its name, if somebody knows it.
    words: String,
}

impl Node {
    pub(super) fn run(self, context: &Context) -> Result<Exit, Problem> {
        match self.action {
            Action::Revoke(revoke) => revoke.run(context),
            Action::Resolve(decision) => decision.resolve(context),
            Action::RotateKeys(RotateKeys { identity }) => {
                let message = context.meshd.change(Request::RotateKeys { identity })?;
                context.screen.remark(&message);
                Ok(Exit::Ok)
            }
        }
    }
}

impl Revoke {
    fn run(self, context: &Context) -> Result<Exit, Problem> {
        let Self { decision, confirm } = self;
        let desk = decision.signer.desk()?;
        let Subject { id: node, words } = decision.subject(context, &desk)?;
        confirm.ask(|| {
            Ok(format!(
                "{words} is put out of network {} for good: everybody closes its tunnels, and this can't be \
                 taken back.",
                desk.network().name
            ))
        })?;
        let (network, issued) = (
            desk.network().id,
            clock::now_for_signing(desk.network().issued)?,
        );
        let said = RootStatement::RevokeNode {
            network,
            node,
            issued,
        };
        decision.say(context, &desk, (&said, &format!("{words} revoked")))
    }
}

impl Decision {
    fn resolve(&self, context: &Context) -> Result<Exit, Problem> {
        let desk = self.signer.desk()?;
        let Subject { id: node, words } = self.subject(context, &desk)?;
        let said = RootStatement::Resolve {
            network: desk.network().id,
            node,
            issued: clock::now_for_signing(desk.network().issued)?,
        };
        let what = format!("conflict resolved for {words}");
        self.say(context, &desk, (&said, &what))
    }

    fn say(
        &self,
        context: &Context,
        desk: &Desk,
        (said, what): (&RootStatement, &str),
    ) -> Result<Exit, Problem> {
        let statement = self.signer.sign(desk, said)?;
        self.delivery.send(context, &statement, what)?;
        Ok(Exit::Ok)
    }

    /// A whole id needs nobody who knows it; a name or a part of an id is looked up.
    fn subject(&self, context: &Context, desk: &Desk) -> Result<Subject, Problem> {
        let registries = self.delivery.registries(context, desk.network());
        if let Ok(id) = self.node.parse::<NodeId>() {
            let name = registries.ok().and_then(|all| all.name_of(&id).cloned());
            let words = words(name.as_ref(), &id);
            return Ok(Subject { id, words });
        }
        let node = registries?.node(&self.node)?;
        let words = words(Some(&node.name), &node.id);
        Ok(Subject { id: node.id, words })
    }
}

fn words(name: Option<&Name>, id: &NodeId) -> String {
    match name {
        Some(name) => format!("node {name} ({})", id.short()),
        None => format!("node {id}"),
    }
}
