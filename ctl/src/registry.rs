//! Whom and what the network knows, as the daemons of this machine tell it: for commands of the root side,
//! which have to name somebody or build on what is newest.

use std::path::{Path, PathBuf};

use clap::Args;
use ipnet::IpNet;
use podmesh_proto::id::{Name, NodeId};
use podmesh_proto::key::PublicKey;
use podmesh_proto::local_api::{RegisteredExternal, RegisteredNode, RegistryView};
use podmesh_proto::network::{Network, RootStatement};
use podmesh_proto::signed::Signed;

use crate::client::Client;
use crate::commands::Context;
use crate::operator::TokenRecord;
use crate::problem::{Exit, Problem};

/// Where a planet on this machine has its socket.
const PLANET_SOCKET: &str = "/run/podmesh-planet/planet.sock";
/// Hex digits of an id that are enough, if they are of one node alone; logs print as many.
const SHORT: usize = 8;

/// Where to ask beside meshd.
#[derive(Debug, Args)]
pub(crate) struct PlanetSocket {
    /// Ask the planet at this socket [default, if it is there:
    /// /run/podmesh-planet/planet.sock]
    #[arg(long = "planet-socket", value_name = "PATH")]
    path: Option<PathBuf>,
}

/// One daemon's answer.
#[derive(Debug)]
pub(crate) struct Registry {
    /// Who answered.
    pub(crate) who: &'static str,
    /// The newest edition that it has.
    pub(crate) document: Signed<RootStatement>,
    /// The same, read.
    pub(crate) network: Network,
    view: RegistryView,
}

/// All answers.
#[derive(Debug)]
pub(crate) struct Registries {
    found: Vec<Registry>,
    silent: Vec<Problem>,
}

/// Somebody who has what is wanted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    /// For people.
    pub(crate) who: String,
    /// What it has.
    pub(crate) what: String,
}

impl PlanetSocket {
    /// The path, if it was named.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }
}

/// The planet of this machine, if it has a socket at the usual place.
pub(crate) fn usual_planet() -> Option<&'static Path> {
    let path = Path::new(PLANET_SOCKET);
    path.exists().then_some(path)
}

impl Registries {
    /// Asks meshd and a planet on this machine about `network`. Who is not there, or is in another
    /// network, is left out.
    ///
    /// # Errors
    /// The planet that was named doesn't answer.
    pub(crate) fn ask(
        context: &Context,
        network: &Network,
        planet: Option<&Path>,
    ) -> Result<Self, Problem> {
        let (mut found, mut silent) = (Vec::new(), Vec::new());
        if let Some(socket) = planet {
            let unheard = [Exit::Unreachable, Exit::Permission, Exit::Timeout];
            match one("the planet", &Client::planet(socket), network) {
                Ok(registry) => found.push(registry),
                Err(problem) if unheard.contains(&problem.exit) => return Err(problem),
                Err(problem) => silent.push(problem),
            }
        }
        let mut usual = vec![("meshd", context.meshd.clone())];
        if planet.is_none() {
            let planet = usual_planet().map(|socket| ("the planet", Client::planet(socket)));
            usual.extend(planet);
        }
        for (who, client) in usual {
            match one(who, &client, network) {
                Ok(registry) => found.push(registry),
                Err(problem) => silent.push(problem),
            }
        }
        Ok(Self { found, silent })
    }

    /// The answers.
    pub(crate) fn all(&self) -> &[Registry] {
        &self.found
    }

    /// Why nobody has answered.
    pub(crate) fn why_not(&self) -> Option<String> {
        let reasons: Vec<&str> = self.silent.iter().map(|why| why.cause.as_str()).collect();
        self.found.is_empty().then(|| reasons.join("; "))
    }

    /// The answer with the newest edition.
    pub(crate) fn newest(&self) -> Option<&Registry> {
        self.found.iter().max_by_key(|one| one.network.version)
    }

    /// The node of this name, id, or beginning of an id.
    ///
    /// # Errors
    /// None (6), or several (3).
    pub(crate) fn node(&self, text: &str) -> Result<RegisteredNode, Problem> {
        let all = self.found.iter().flat_map(|one| &one.view.nodes);
        let named = all.clone().filter(|node| node.name.as_str() == text);
        let mut matching: Vec<&RegisteredNode> = named.collect();
        let hex = text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if matching.is_empty() && hex && text.len() >= SHORT {
            matching = all
                .filter(|node| node.id.to_string().starts_with(text))
                .collect();
        }
        matching.sort_by_key(|node| node.id);
        matching.dedup_by_key(|node| node.id);
        match matching.as_slice() {
            [node] => Ok((*node).clone()),
            [] => Err(self.no_node(text)),
            many => {
                let ids: Vec<String> = many.iter().map(|node| node.id.to_string()).collect();
                let cause = format!("'{text}' is {} nodes: {}", many.len(), ids.join(", "));
                Err(Problem::usage(cause).next("write the id of the one that is meant"))
            }
        }
    }

    fn no_node(&self, text: &str) -> Problem {
        if let Some(why) = self.why_not() {
            let cause = format!("can't find the id of '{text}': {why}");
            return Problem::new(Exit::Unreachable, cause).next(
                "write the node's whole id, which needs nobody; or run it beside meshd or a planet, or name \
                 the planet's socket with --planet-socket",
            );
        }
        if self.externals().any(|peer| peer.name.as_str() == text) {
            return Problem::usage(format!("{text} is an external peer, no node"))
                .next(format!("meshctl peer remove-external {text}"));
        }
        let cause = format!(
            "no node is called '{text}'; one that was revoked or has left has no name any more"
        );
        Problem::new(Exit::NotFound, cause).next(format!(
            "write its name, its id, or the first {SHORT} digits of the id; `meshctl peers` on a node or \
             `planet status` lists them"
        ))
    }

    /// External peers, those of several daemons several times.
    pub(crate) fn externals(&self) -> impl Iterator<Item = &RegisteredExternal> {
        self.found.iter().flat_map(|one| &one.view.externals)
    }

    /// Whether a node has this name.
    pub(crate) fn is_node(&self, name: &str) -> bool {
        let mut nodes = self.found.iter().flat_map(|one| &one.view.nodes);
        nodes.any(|node| node.name.as_str() == name)
    }

    /// Who among nodes and external peers has something of what an external peer is to get.
    pub(crate) fn holder(
        &self,
        name: &Name,
        wireguard: &PublicKey,
        prefixes: &[IpNet],
    ) -> Option<Holder> {
        let nodes = self.found.iter().flat_map(|one| &one.view.nodes);
        let nodes = nodes.map(|node| ("node", &node.name, &node.wireguard, &node.prefixes));
        let externals = self.externals().filter(|peer| peer.wireguard != *wireguard);
        let externals =
            externals.map(|peer| ("external peer", &peer.name, &peer.wireguard, &peer.prefixes));
        let mut all = nodes.chain(externals);
        all.find_map(|(kind, theirs, key, taken)| {
            let what = held((name, wireguard, prefixes), (theirs, key, taken))?;
            let who = format!("{kind} {theirs}");
            Some(Holder { who, what })
        })
    }

    /// How many uses of a token are spent, and whether that is all of them; absent if nobody knows. The one use
    /// of a token is spent, too, where the planet that admits can't know better.
    pub(crate) fn spent(&self, token: &TokenRecord) -> Option<(u32, bool)> {
        let counted = self.found.iter().map(|one| {
            let uses = one.view.tokens.iter().find(|used| used.token == token.id);
            let unknown = one.view.unknown_until.filter(|_| one.view.counts);
            let refused = token.uses == 1 && unknown.is_some_and(|until| token.issued < until);
            (
                uses.map_or(u32::from(refused), |used| used.used),
                one.view.counts,
            )
        });
        // Who counts knows; of the others, whoever has seen most.
        counted.max_by_key(|(used, counts)| (*counts, *used))
    }

    /// The name of a node.
    pub(crate) fn name_of(&self, id: &NodeId) -> Option<&Name> {
        let mut nodes = self.found.iter().flat_map(|one| &one.view.nodes);
        nodes.find(|node| node.id == *id).map(|node| &node.name)
    }
}

/// What of the first somebody with the second has.
pub(crate) fn held(
    (name, key, prefixes): (&Name, &PublicKey, &[IpNet]),
    (theirs, their_key, taken): (&Name, &PublicKey, &[IpNet]),
) -> Option<String> {
    if name == theirs {
        return Some(format!("the name {name}"));
    }
    if key == their_key {
        return Some(format!("the WireGuard key {key}"));
    }
    let overlaps = |one: &IpNet, other: &IpNet| one.contains(other) || other.contains(one);
    let found = taken
        .iter()
        .find(|taken| prefixes.iter().any(|prefix| overlaps(prefix, taken)))?;
    Some(found.to_string())
}

fn one(who: &'static str, client: &Client, known: &Network) -> Result<Registry, Problem> {
    let view = client.registry()?;
    let document = Signed::from_base64(&view.statement)?;
    let said = known.verify(&document).map_err(|_| {
        let cause = format!(
            "{who} on this machine is in another network than {}",
            known.name
        );
        Problem::failed(cause).next("name the folder of that network with --dir")
    })?;
    match said {
        RootStatement::Network(network) => Ok(Registry {
            who,
            document,
            network,
            view,
        }),
        _ => Err(Problem::failed(format!(
            "{who} answered with no network document"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registries(names: &[(&str, u8)]) -> Registries {
        let nodes = names.iter().map(|(name, number)| RegisteredNode {
            id: NodeId([*number; 32]),
            name: name.parse().unwrap(),
            wireguard: PublicKey([*number; 32]),
            prefixes: vec![format!("10.77.0.{number}/32").parse().unwrap()],
        });
        let root = podmesh_proto::key::SigningKey::from_seed([1; 32]);
        let id = Network::id_of(&root.public());
        let network = Network {
            id,
            name: "lab".parse().unwrap(),
            root: root.public(),
            second_root: None,
            version: 1,
            issued: podmesh_proto::time::UnixSeconds(1_800_000_000),
            ranges: podmesh_proto::network::Ranges::default_of(&id),
            planets: Vec::new(),
            retired: Vec::new(),
        };
        let document = Signed::seal(&RootStatement::Network(network.clone()), &root).unwrap();
        let view = RegistryView {
            statement: String::new(),
            nodes: nodes.collect(),
            externals: Vec::new(),
            tokens: Vec::new(),
            counts: true,
            unknown_until: None,
        };
        let who = "meshd";
        let found = vec![Registry {
            who,
            document,
            network,
            view,
        }];
        let silent = Vec::new();
        Registries { found, silent }
    }

    #[test]
    fn a_node_is_found_by_its_name_or_by_enough_of_its_id() {
        let all = registries(&[("a", 0x1a), ("b", 0x2b), ("1a1a1a1a", 0x3c)]);
        let id = |text: &str| all.node(text).map(|node| node.id.0[0]);
        assert_eq!(id("a"), Ok(0x1a));
        assert_eq!(id("2b2b2b2b"), Ok(0x2b));
        assert_eq!(id(&"2b".repeat(32)), Ok(0x2b));
        assert_eq!(id("1a1a1a1a"), Ok(0x3c), "a name comes before an id");
        assert_eq!(id("1a1a1a1a1"), Ok(0x1a));
        for (text, exit) in [
            ("2b2b2b2", Exit::NotFound),
            ("c", Exit::NotFound),
            ("", Exit::NotFound),
            ("2b2b2b2c", Exit::NotFound),
        ] {
            assert_eq!(id(text).unwrap_err().exit, exit, "{text}");
        }
        let twice = registries(&[("a", 1), ("a", 2)]);
        let problem = twice.node("a").unwrap_err();
        assert!(problem.cause.contains(&"02".repeat(32)), "{problem}");
    }

    #[test]
    fn what_somebody_has_is_named_with_its_holder() {
        let all = registries(&[("home", 7)]);
        let (key, other) = (PublicKey([9; 32]), PublicKey([7; 32]));
        let name: Name = "phone".parse().unwrap();
        let taken = |name: &Name, key, prefix: &str| {
            let prefix: IpNet = prefix.parse().unwrap();
            all.holder(name, key, &[prefix]).map(|holder| holder.what)
        };
        for (prefix, what) in [
            ("10.77.0.7/32", Some("10.77.0.7/32")),
            ("10.77.0.0/24", Some("10.77.0.7/32")),
            ("10.77.0.6/31", Some("10.77.0.7/32")),
            ("10.77.0.8/32", None),
        ] {
            assert_eq!(taken(&name, &key, prefix).as_deref(), what, "{prefix}");
        }
        assert!(taken(&name, &other, "10.77.9.9/32").is_some_and(|what| what.contains("key")));
        let home: Name = "home".parse().unwrap();
        assert!(taken(&home, &key, "10.77.9.9/32").is_some_and(|what| what.contains("name")));
    }
}
