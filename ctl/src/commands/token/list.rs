//! `meshctl token list`.

use clap::Args;
use podmesh_proto::id::TokenId;
use serde::Serialize;

use crate::clock;
use crate::commands::Context;
use crate::operator::{Place, TokenRecord, TokenState};
use crate::problem::{Exit, Problem};
use crate::registry::{PlanetSocket, Registries};
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
    planet: PlanetSocket,
    #[command(flatten)]
    output: Output,
}

/// A token's state with what is known of its uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// It admits further nodes.
    Open,
    /// It has not expired, and nobody who counts its uses was asked.
    NotExpired,
    /// All its uses are spent.
    Spent,
    Expired,
    Revoked,
}

/// Uses that are spent, and whether that is all of them.
type Spent = Option<(u32, bool)>;

#[derive(Serialize)]
struct TokenView<'a> {
    id: TokenId,
    state: State,
    issued: String,
    expires: String,
    uses: u32,
    /// Absent if nobody could be asked.
    used: Option<u32>,
    /// Whether more may be spent than `used`.
    used_at_least: bool,
    site: Option<&'a str>,
    groups: Vec<&'a str>,
    ranges: &'a [ipnet::IpNet],
    membership_s: Option<u64>,
    for_name: Option<&'a str>,
    replaces: Option<String>,
    revoked: Option<String>,
}

impl List {
    pub(super) fn run(self, context: &Context) -> Result<Exit, Problem> {
        let desk = self.place.folder()?.open()?;
        let tokens = desk.tokens()?;
        let registries = Registries::ask(context, desk.network(), self.planet.path())?;
        let spent = |token: &TokenRecord| registries.spent(token);
        let screen = context.screen;
        if self.output.is_json() {
            let items = tokens.iter().map(|token| view(token, spent(token)));
            let items: Vec<TokenView<'_>> = items.collect();
            screen.print_json(SCHEMA, &Items { items: &items })?;
        } else {
            screen.print(&table(&tokens, spent, screen))?;
        }
        if let Some(why) = registries.why_not().filter(|_| !tokens.is_empty()) {
            screen.remark(&format!(
                "how many uses are spent is unknown: {why}; run it beside meshd, or a planet (--planet-socket)"
            ));
        }
        Ok(Exit::Ok)
    }
}

fn state(token: &TokenRecord, spent: Spent) -> State {
    match (token.state(clock::now()), spent) {
        (TokenState::Revoked, _) => State::Revoked,
        (TokenState::Expired, _) => State::Expired,
        (TokenState::Valid, Some((used, _))) if used >= token.uses => State::Spent,
        (TokenState::Valid, Some((_, true))) => State::Open,
        (TokenState::Valid, _) => State::NotExpired,
    }
}

fn uses(token: &TokenRecord, spent: Spent) -> String {
    let of = token.uses;
    match spent {
        Some((used, whole)) if whole || used >= of => format!("{used} of {of}"),
        Some((used, _)) if used > 0 => format!("at least {used} of {of}"),
        _ => format!("unknown of {of}"),
    }
}

fn view(token: &TokenRecord, spent: Spent) -> TokenView<'_> {
    TokenView {
        state: state(token, spent),
        used: spent.map(|(used, _)| used),
        used_at_least: spent.is_some_and(|(used, whole)| !whole && used < token.uses),
        ..TokenView::from(token)
    }
}

impl<'a> From<&'a TokenRecord> for TokenView<'a> {
    fn from(token: &'a TokenRecord) -> Self {
        Self {
            id: token.id,
            state: state(token, None),
            used: None,
            used_at_least: false,
            issued: token.issued.to_string(),
            expires: token.expires.to_string(),
            uses: token.uses,
            site: token.site.as_ref().map(|name| name.as_str()),
            groups: token.groups.iter().map(|name| name.as_str()).collect(),
            ranges: &token.ranges,
            membership_s: token.membership,
            for_name: token.for_name.as_ref().map(|name| name.as_str()),
            replaces: token.replaces.map(|node| node.to_string()),
            revoked: token.revoked.map(|time| time.to_string()),
        }
    }
}

fn table(tokens: &[TokenRecord], spent: impl Fn(&TokenRecord) -> Spent, screen: Screen) -> String {
    let now = clock::now();
    let mut table = Table::new(&[
        "ID",
        "STATE",
        "MADE",
        "EXPIRES",
        "USED",
        "SITE",
        "GROUPS",
        "MEMBERSHIP",
        "FOR",
    ]);
    for token in tokens {
        let spent = spent(token);
        let (word, tone) = match state(token, spent) {
            State::Open => ("open", Tone::Good),
            State::NotExpired => ("uses unknown", Tone::Neutral),
            State::Spent => ("spent", Tone::Neutral),
            State::Expired => ("expired", Tone::Neutral),
            State::Revoked => ("revoked", Tone::Bad),
        };
        let membership = token.membership.map(duration);
        table.row(vec![
            token.id.to_string().into(),
            Cell::toned(word, tone),
            relative(token.issued, now).into(),
            relative(token.expires, now).into(),
            uses(token, spent).into(),
            optional(token.site.as_ref()).into(),
            list(&token.groups).into(),
            membership.as_deref().unwrap_or("until revoked").into(),
            optional(token.for_name.as_ref()).into(),
        ]);
    }
    table.render(screen, None)
}
