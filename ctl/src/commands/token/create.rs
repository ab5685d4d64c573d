//! `meshctl token create`.

use std::path::{Path, PathBuf};

use clap::Args;
use ipnet::IpNet;
use podmesh_proto::certificate::Grant;
use podmesh_proto::id::{Name, NodeId, TokenId};
use podmesh_proto::key::VerifyingKey;
use podmesh_proto::limits::{MAX_GROUPS, MAX_PREFIXES};
use podmesh_proto::network::Network;
use podmesh_proto::signed::Signed;
use podmesh_proto::token::JoinToken;

use crate::commands::Context;
use crate::commands::network::{cidr, inside};
use crate::operator::{Signer, TokenRecord};
use crate::problem::{Exit, Problem};
use crate::show::quantity::{duration, parse_duration};
use crate::{clock, files, root_key};

/// Seconds. A token that admits for longer is a password, not a token.
const MAX_EXPIRY: u64 = 366 * 86_400;

/// Arguments of `meshctl token create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// How many nodes it may admit
    #[arg(long, default_value_t = 1, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    uses: u32,
    /// How long it admits nodes; members stay beyond
    #[arg(long, default_value = "1h", value_name = "TIME", value_parser = parse_duration)]
    expires: u64,
    /// Site of its nodes
    #[arg(long, value_name = "NAME")]
    site: Option<Name>,
    /// Group of its nodes (carried and shown, not enforced)
    #[arg(long = "group", value_name = "NAME")]
    groups: Vec<Name>,
    /// Range in which its nodes may claim addresses [default: all ranges of the network]
    #[arg(long = "range", value_name = "CIDR", value_parser = cidr)]
    ranges: Vec<IpNet>,
    /// How long a membership lasts [default: until it is revoked]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    membership: Option<u64>,
    /// Only for a node of this name
    #[arg(long = "for", value_name = "NAME")]
    for_name: Option<Name>,
    /// The node that holds that name now: it is out as soon as the new one is in
    #[arg(long, value_name = "NODE-ID", requires = "for_name")]
    replaces: Option<NodeId>,
    /// The file to write (mode 0600), or '-' for standard output
    /// [default: a file in the network's folder]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    signer: Signer,
}

impl Create {
    pub(super) fn run(self, context: &Context) -> Result<Exit, Problem> {
        if let Some(file) = self.out.as_deref().filter(|file| file.exists()) {
            return Err(
                Problem::failed(format!("{} exists already", file.display()))
                    .next("name another file with --out"),
            );
        }
        self.check_folder()?;
        let desk = self.signer.desk()?;
        let token_key = root_key::new_key()?;
        let grant = self.grant(desk.network(), token_key.public())?;
        let mut tokens = desk.tokens()?;
        let token = JoinToken {
            network: desk.document().clone(),
            grant: Signed::seal(&grant, &self.signer.key(&desk)?)?,
            key: token_key,
        };
        // First, so that no token exists that nobody can revoke.
        tokens.push(TokenRecord::from(&grant));
        desk.record_tokens(&tokens)?;
        let mut text = token.to_text()?;
        text.push('\n');
        let until = format!("admits {} until {}", nodes(grant.uses), grant.expires);
        if self.out.as_deref() == Some(Path::new("-")) {
            context.screen.print(&text)?;
            context
                .screen
                .remark(&format!("token {} {until}", grant.token.short()));
            return Ok(Exit::Ok);
        }
        let file = match self.out {
            Some(file) => file,
            None => desk.folder().token_file(&grant.token.short())?,
        };
        if let Err(problem) = files::create(&file, text.as_bytes()) {
            // Nobody has it: the record of it would be of a token that can't be found.
            tokens.retain(|token| token.id != grant.token);
            desk.record_tokens(&tokens)?;
            return Err(problem);
        }
        context.screen.print(&format!("{}\n", file.display()))?;
        context.screen.remark(&format!(
            "token {} {until} ({} from now)",
            grant.token.short(),
            duration(self.expires)
        ));
        context.screen.remark(
            "next: carry the file to the node by a safe way, then there: meshctl join FILE",
        );
        Ok(Exit::Ok)
    }

    /// Before anybody is asked for a passphrase.
    fn check_folder(&self) -> Result<(), Problem> {
        let folder = self.out.as_deref().and_then(Path::parent);
        match folder.filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()) {
            Some(folder) => Err(Problem::new(
                Exit::NotFound,
                format!("there is no folder {}", folder.display()),
            )
            .next("make it, or name another file with --out")),
            None => Ok(()),
        }
    }

    fn grant(&self, network: &Network, token_key: VerifyingKey) -> Result<Grant, Problem> {
        self.check(network)?;
        let issued = clock::now_for_signing(network.issued)?;
        let mut groups = self.groups.clone();
        groups.sort();
        groups.dedup();
        Ok(Grant {
            network: network.id,
            token: TokenId(root_key::random()?),
            token_key,
            issued,
            expires: issued.plus(self.expires),
            uses: self.uses,
            site: self.site.clone(),
            groups,
            // No node relays for others; the field is part of what is signed.
            relay: false,
            ranges: self.ranges.clone(),
            membership: self.membership,
            for_name: self.for_name.clone(),
            replaces: self.replaces,
        })
    }

    fn check(&self, network: &Network) -> Result<(), Problem> {
        if self.expires > MAX_EXPIRY {
            return Err(Problem::usage("a token admits nodes for at most 366 days")
                .next("choose a shorter --expires; members stay after it"));
        }
        if self.for_name.is_some() && self.uses != 1 {
            return Err(
                Problem::usage("a token for one name has one use").next("leave --uses away")
            );
        }
        if self.groups.len() > MAX_GROUPS || self.ranges.len() > MAX_PREFIXES {
            return Err(Problem::usage(format!(
                "a token has at most {MAX_GROUPS} groups and {MAX_PREFIXES} ranges"
            )));
        }
        self.ranges
            .iter()
            .try_for_each(|range| inside(range, &network.ranges))
    }
}

fn nodes(uses: u32) -> String {
    if uses == 1 {
        "one node".to_owned()
    } else {
        format!("{uses} nodes")
    }
}
