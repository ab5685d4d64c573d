//! `meshctl token revoke`.

use clap::Args;
use podmesh_proto::id::TokenId;
use podmesh_proto::network::RootStatement;

use crate::clock;
use crate::commands::Context;
use crate::commands::delivery::Delivery;
use crate::confirm::Confirm;
use crate::operator::{Signer, TokenRecord};
use crate::problem::{Exit, Problem};

/// Arguments of `meshctl token revoke`.
#[derive(Debug, Args)]
pub(crate) struct Revoke {
    /// Id of the token, or its first digits, as `meshctl token list` shows it
    id: String,
    #[command(flatten)]
    confirm: Confirm,
    #[command(flatten)]
    signer: Signer,
    #[command(flatten)]
    delivery: Delivery,
}

impl Revoke {
    pub(super) fn run(self, context: &Context) -> Result<Exit, Problem> {
        let desk = self.signer.desk()?;
        let mut tokens = desk.tokens()?;
        let token = self.find(&tokens)?;
        self.confirm.ask(|| {
            Ok(format!(
                "Join token {} of network {} admits nobody any more, for good. Members that came by it stay; a \
                 membership with an end is not renewed.",
                token.short(),
                desk.network().name
            ))
        })?;
        let network = desk.network().id;
        let issued = clock::now_for_signing(desk.network().issued)?;
        let said = RootStatement::RevokeToken {
            network,
            token,
            issued,
        };
        let statement = self.signer.sign(&desk, &said)?;
        let what = format!("token {} revoked", token.short());
        self.delivery.send(context, &statement, &what)?;
        let record = tokens.iter_mut().find(|record| record.id == token);
        if let Some(record) = record {
            record.revoked = Some(issued);
            desk.record_tokens(&tokens)?;
        }
        Ok(Exit::Ok)
    }

    /// A whole id needs no record of it: the token may have been made in another folder.
    fn find(&self, tokens: &[TokenRecord]) -> Result<TokenId, Problem> {
        if let Ok(id) = self.id.parse() {
            return Ok(id);
        }
        let mut found = tokens
            .iter()
            .filter(|token| token.id.to_string().starts_with(&self.id));
        match (found.next(), found.next()) {
            (Some(token), None) if !self.id.is_empty() => Ok(token.id),
            (Some(_), Some(_)) => Err(Problem::usage(format!(
                "several tokens begin with {}",
                self.id
            ))
            .next("write more digits of the id")),
            _ => Err(Problem::new(
                Exit::NotFound,
                format!("no token made in this folder begins with '{}'", self.id),
            )
            .next("see meshctl token list, or write the whole id")),
        }
    }
}
