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
use crate::confirm::Confirm;
use crate::operator::{Desk, ExternalRecord, Signer};
use crate::problem::{Exit, Problem};
use crate::registry::{Holder, Registries, held};
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
    confirm: Confirm,
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
        self.free(context, &desk)?;
        let peer = ExternalPeer {
            network: network.id,
            name: self.name.clone(),
            wireguard: self.key,
            prefixes: self.addresses.clone(),
            endpoint: self.endpoint,
            issued: clock::now_for_signing(network.issued)?,
        };
        let said = RootStatement::External(peer.clone());
        let statement = self.signer.sign(&desk, &said)?;
        let what = format!("external peer {}", self.name);
        self.delivery.send(context, &statement, &what)?;
        desk.record_external(ExternalRecord::from(&peer))?;
        Ok(Exit::Ok)
    }

    /// Nobody has its name, its key or one of its addresses, as far as can be asked here.
    fn free(&self, context: &Context, desk: &Desk) -> Result<(), Problem> {
        let registries = self.delivery.registries(context, desk.network())?;
        let mut holder = registries.holder(&self.name, &self.key, &self.addresses);
        for peer in desk.externals()? {
            if holder.is_some() || peer.wireguard == self.key {
                continue;
            }
            let mine = (&self.name, &self.key, self.addresses.as_slice());
            let theirs = (&peer.name, &peer.wireguard, peer.prefixes.as_slice());
            holder = held(mine, theirs).map(|what| {
                let who = format!("external peer {}", peer.name);
                Holder { who, what }
            });
        }
        if let Some(Holder { who, what }) = holder {
            return Err(Problem::usage(format!(
                "external peer {} can't have its place: {who} has {what}",
                self.name
            ))
            .next("choose a name, key and addresses that nobody has; `meshctl peers --wide` lists them"));
        }
        if let Some(why) = registries.why_not() {
            context.screen.remark(&format!(
                "nobody here could be asked whether somebody has its addresses ({why}); who takes the \
                 statement refuses it then"
            ));
        }
        Ok(())
    }
}

impl RemoveExternal {
    fn run(self, context: &Context) -> Result<Exit, Problem> {
        let desk = self.signer.desk()?;
        let network = desk.network();
        let known = self.known(context, &desk)?;
        let (wireguard, words) = match &known {
            Some(peer) => (peer.wireguard, format!("external peer {}", peer.name)),
            None => {
                let key = self.peer.parse()?;
                (key, format!("the external peer with key {key}"))
            }
        };
        self.confirm.ask(|| {
            Ok(format!(
                "{words} is put out of network {}: everybody closes its tunnel.",
                network.name
            ))
        })?;
        // Said with an earlier time than its naming, the removal would count for nothing.
        let named = known.as_ref().map_or(network.issued, |peer| peer.issued);
        let issued = clock::now_for_signing(network.issued.max(named))?;
        let said = RootStatement::RevokeExternal {
            network: network.id,
            wireguard,
            issued,
        };
        let statement = self.signer.sign(&desk, &said)?;
        self.delivery
            .send(context, &statement, &format!("{words} removed"))?;
        if let Some(peer) = known {
            let revoked = Some(issued);
            desk.record_external(ExternalRecord { revoked, ..peer })?;
        }
        Ok(Exit::Ok)
    }

    /// The peer of this name or key, as a daemon or the folder's record knows it. A key that nobody knows
    /// is enough.
    fn known(&self, context: &Context, desk: &Desk) -> Result<Option<ExternalRecord>, Problem> {
        let key = self.peer.parse::<PublicKey>().ok();
        let registries = match self.delivery.registries(context, desk.network()) {
            Err(_) if key.is_some() => None,
            asked => Some(asked?),
        };
        let told = registries.iter().flat_map(|all| all.externals());
        let told = told.map(|peer| ExternalRecord {
            name: peer.name.clone(),
            wireguard: peer.wireguard,
            prefixes: peer.prefixes.clone(),
            endpoint: peer.endpoint,
            issued: peer.issued,
            revoked: None,
        });
        let mut all: Vec<ExternalRecord> = told.chain(desk.externals()?).collect();
        let meant = |peer: &ExternalRecord| match key {
            Some(key) => peer.wireguard == key,
            None => peer.name.as_str() == self.peer,
        };
        all.sort_by_key(|peer| (peer.wireguard, std::cmp::Reverse(peer.issued)));
        all.dedup_by_key(|peer| peer.wireguard);
        let names: Vec<String> = all.iter().map(|peer| peer.name.to_string()).collect();
        all.retain(meant);
        match (all.len(), key) {
            (0, Some(_)) => Ok(None),
            (0, None) => Err(self.unknown(registries.as_ref(), &names)),
            (1, _) => Ok(all.pop()),
            (count, _) => {
                let keys: Vec<String> = all.iter().map(|peer| peer.wireguard.to_string()).collect();
                let cause = format!(
                    "'{}' is {count} external peers, with the keys {}",
                    self.peer,
                    keys.join(", ")
                );
                Err(Problem::usage(cause).next("write the key of the one that is meant"))
            }
        }
    }

    fn unknown(&self, registries: Option<&Registries>, names: &[String]) -> Problem {
        let peer = &self.peer;
        if registries.is_some_and(|all| all.is_node(peer)) {
            return Problem::usage(format!("{peer} is a node, no external peer"))
                .next(format!("meshctl node revoke {peer}"));
        }
        let known = if names.is_empty() {
            "none is known here".to_owned()
        } else {
            format!("known here: {}", names.join(", "))
        };
        let cause = format!("no external peer is called '{peer}' ({known})");
        Problem::new(Exit::NotFound, cause).next(
            "write its WireGuard key, which needs nobody who knows it; `meshctl peers` on a node lists the \
             external peers, `meshctl peer NAME` shows the key of one",
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
