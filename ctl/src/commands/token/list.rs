//! `meshctl token list`.

use clap::Args;
use podmesh_proto::id::TokenId;
use serde::Serialize;

use crate::clock;
use crate::commands::Context;
use crate::operator::{Place, TokenRecord, TokenState};
use crate::problem::{Exit, Problem};
use crate::show::peers::{list, optional};
use crate::show::quantity::{duration, relative};
use crate::show::table::{Cell, Table};
use crate::show::{Items, Output, Screen, Tone};

const SCHEMA: &str = "podmesh.tokens/v1";

/// Arguments of `meshctl token list`.
#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct TokenView<'a> {
    id: TokenId,
    state: TokenState,
    issued: String,
    expires: String,
    uses: u32,
    site: Option<&'a str>,
    groups: Vec<&'a str>,
    relay: bool,
    ranges: &'a [ipnet::IpNet],
    membership_s: Option<u64>,
    for_name: Option<&'a str>,
    replaces: Option<String>,
    revoked: Option<String>,
}

impl List {
    pub(super) fn run(self, context: &Context) -> Result<Exit, Problem> {
        let tokens = self.place.folder()?.open()?.tokens()?;
        let screen = context.screen;
        if self.output.is_json() {
            let items: Vec<TokenView<'_>> = tokens.iter().map(TokenView::from).collect();
            screen.print_json(SCHEMA, &Items { items: &items })?;
        } else {
            screen.print(&table(&tokens, screen))?;
        }
        Ok(Exit::Ok)
    }
}

impl<'a> From<&'a TokenRecord> for TokenView<'a> {
    fn from(token: &'a TokenRecord) -> Self {
        Self {
            id: token.id,
            state: token.state(clock::now()),
            issued: token.issued.to_string(),
            expires: token.expires.to_string(),
            uses: token.uses,
            site: token.site.as_ref().map(|name| name.as_str()),
            groups: token.groups.iter().map(|name| name.as_str()).collect(),
            relay: token.relay,
            ranges: &token.ranges,
            membership_s: token.membership,
            for_name: token.for_name.as_ref().map(|name| name.as_str()),
            replaces: token.replaces.map(|node| node.to_string()),
            revoked: token.revoked.map(|time| time.to_string()),
        }
    }
}

fn table(tokens: &[TokenRecord], screen: Screen) -> String {
    let now = clock::now();
    let mut table = Table::new(&[
        "ID",
        "STATE",
        "MADE",
        "EXPIRES",
        "USES",
        "SITE",
        "GROUPS",
        "MEMBERSHIP",
        "FOR",
    ]);
    for token in tokens {
        let (word, tone) = match token.state(now) {
            // Whether its uses are spent only the planets know.
            TokenState::Valid => ("not expired", Tone::Good),
            TokenState::Expired => ("expired", Tone::Neutral),
            TokenState::Revoked => ("revoked", Tone::Bad),
        };
        let membership = token.membership.map(duration);
        table.row(vec![
            token.id.to_string().into(),
            Cell::toned(word, tone),
            relative(token.issued, now).into(),
            relative(token.expires, now).into(),
            token.uses.to_string().into(),
            optional(token.site.as_ref()).into(),
            list(&token.groups).into(),
            membership.as_deref().unwrap_or("until revoked").into(),
            optional(token.for_name.as_ref()).into(),
        ]);
    }
    table.render(screen, None)
}
