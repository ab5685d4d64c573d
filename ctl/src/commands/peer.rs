//! `meshctl peer`: one peer in full, and external peers, which only the root can name.

use std::net::{IpAddr, SocketAddr};

use clap::{Args, Subcommand};
use ipnet::IpNet;
use podmesh_proto::id::Name;
use podmesh_proto::key::PublicKey;
use podmesh_proto::limits::MAX_PREFIXES;
use podmesh_proto::local_api::schema;
use podmesh_proto::network::{ExternalPeer, RootStatement};

use crate::clock;
use crate::commands::Context;
use crate::commands::delivery::Delivery;
use crate::commands::network::inside;
use crate::operator::{Desk, Signer};
use crate::problem::{Exit, Problem};
use crate::show::{Output, peers};

/// Arguments of `meshctl peer`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Peer {
    /// Name, overlay address, pod address or node id
    #[arg(required = true, value_name = "PEER")]
    target: Option<String>,
    #[command(flatten)]
    output: Output,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a stock WireGuard machine a member (needs the root key)
    AddExternal(AddExternal),
    /// Put an external peer out (needs the root key)
    RemoveExternal(RemoveExternal),
}

#[derive(Debug, Args)]
struct AddExternal {
    /// Its name
    name: Name,
    /// Its WireGuard public key
    #[arg(long)]
    key: PublicKey,
    /// Address or prefix inside the network that is its own
    #[arg(long = "address", required = true, value_name = "CIDR", value_parser = parse_prefix)]
    addresses: Vec<IpNet>,
    /// Where it listens, if that is fixed
    #[arg(long, value_name = "ADDRESS:PORT")]
    endpoint: Option<SocketAddr>,
    #[command(flatten)]
    signer: Signer,
    #[command(flatten)]
    delivery: Delivery,
}

#[derive(Debug, Args)]
struct RemoveExternal {
    /// Its name, or its WireGuard public key
    peer: String,
    #[command(flatten)]
    signer: Signer,
    #[command(flatten)]
    delivery: Delivery,
}

impl Peer {
    pub(super) fn run(self, context: &Context) -> Result<Exit, Problem> {
        match (self.action, self.target) {
            (Some(Action::AddExternal(add)), _) => add.run(context),
            (Some(Action::RemoveExternal(remove)), _) => remove.run(context),
            (None, Some(target)) => {
                let detail = context.meshd.peer(&target)?;
                let screen = context.screen;
                if self.output.is_json() {
                    screen.print_json(schema::PEER, &detail)?;
                } else {
                    screen.print(&peers::detail(&detail, screen))?;
                }
                Ok(Exit::Ok)
            }
            (None, None) => {
                Err(Problem::usage("no peer is named").next("meshctl peers lists them"))
            }
        }
    }
}

impl AddExternal {
    fn run(self, context: &Context) -> Result<Exit, Problem> {
        let desk = self.signer.desk()?;
        let network = desk.network();
        if self.key.is_low_order() {
            return Err(
                Problem::usage("with this key anybody could speak as the peer")
                    .next("make a proper one: wg genkey | tee private | wg pubkey"),
            );
        }
        if self.addresses.len() > MAX_PREFIXES {
            let cause = format!("a peer has at most {MAX_PREFIXES} prefixes");
            return Err(Problem::usage(cause));
        }
        for address in &self.addresses {
            inside(address, &network.ranges)?;
        }
        if let Some(endpoint) = self.endpoint {
            check_endpoint(endpoint, &desk)?;
        }
        let said = RootStatement::External(ExternalPeer {
            network: network.id,
            name: self.name.clone(),
            wireguard: self.key,
            prefixes: self.addresses.clone(),
            endpoint: self.endpoint,
            issued: clock::now_for_signing(network.issued)?,
        });
        let statement = self.signer.sign(&desk, &said)?;
        let what = format!("external peer {}", self.name);
        self.delivery.send(context, &statement, &what)?;
        Ok(Exit::Ok)
    }
}

impl RemoveExternal {
    fn run(self, context: &Context) -> Result<Exit, Problem> {
        let desk = self.signer.desk()?;
        let wireguard = self.key(context)?;
        let said = RootStatement::RevokeExternal {
            network: desk.network().id,
            wireguard,
            issued: clock::now_for_signing(desk.network().issued)?,
        };
        let statement = self.signer.sign(&desk, &said)?;
        let what = format!("external peer with key {wireguard} removed");
        self.delivery.send(context, &statement, &what)?;
        Ok(Exit::Ok)
    }

    fn key(&self, context: &Context) -> Result<PublicKey, Problem> {
        if let Ok(key) = self.peer.parse() {
            return Ok(key);
        }
        let found = context.meshd.peer(&self.peer)?;
        if found.peer.external {
            return Ok(found.wireguard);
        }
        Err(
            Problem::usage(format!("{} is a node, no external peer", found.peer.name))
                .next(format!("meshctl node revoke {}", found.peer.name)),
        )
    }
}

fn check_endpoint(endpoint: SocketAddr, desk: &Desk) -> Result<(), Problem> {
    let ip = endpoint.ip();
    let inside = desk
        .network()
        .protected()
        .iter()
        .any(|range| range.contains(&ip));
    if inside
        || ip.is_unspecified()
        || ip.is_loopback()
        || ip.is_multicast()
        || endpoint.port() == 0
    {
        return Err(
            Problem::usage(format!("{endpoint} can't be where a peer listens"))
                .next("give its address in the network underneath, or leave --endpoint away"),
        );
    }
    Ok(())
}

fn parse_prefix(text: &str) -> Result<IpNet, String> {
    text.parse::<IpAddr>()
        .map(IpNet::from)
        .or_else(|_| text.parse())
        .map_err(|_: ipnet::AddrParseError| format!("'{text}' is neither an address nor a prefix"))
}
