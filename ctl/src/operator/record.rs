//! The root side's record of the tokens it made. It holds no secret: enough to list and revoke them.

use std::path::Path;

use ipnet::IpNet;
use podmesh_proto::certificate::Grant;
use podmesh_proto::id::{Name, NodeId, TokenId};
use podmesh_proto::time::UnixSeconds;
use serde::{Deserialize, Serialize};

use crate::files;
use crate::problem::{Exit, Problem};

/// Name of the record's file.
pub(super) const FILE: &str = "tokens.json";
const SCHEMA: &str = "podmesh.token-record/v1";

/// What is known of a token after it has been given away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TokenRecord {
    pub(crate) id: TokenId,
    pub(crate) issued: UnixSeconds,
    pub(crate) expires: UnixSeconds,
    pub(crate) uses: u32,
    pub(crate) site: Option<Name>,
    pub(crate) groups: Vec<Name>,
    pub(crate) ranges: Vec<IpNet>,
    /// Seconds.
    pub(crate) membership: Option<u64>,
    pub(crate) for_name: Option<Name>,
    pub(crate) replaces: Option<NodeId>,
    pub(crate) revoked: Option<UnixSeconds>,
}

/// What the record says of a token. How many of its uses are spent, only planets know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TokenState {
    Valid,
    Expired,
    Revoked,
}

#[derive(Serialize, Deserialize)]
struct Record {
    schema: String,
    tokens: Vec<TokenRecord>,
}

impl TokenRecord {
    /// Whether it still admits anybody.
    pub(crate) fn state(&self, now: UnixSeconds) -> TokenState {
        if self.revoked.is_some() {
            TokenState::Revoked
        } else if now > self.expires {
            TokenState::Expired
        } else {
            TokenState::Valid
        }
    }
}

impl From<&Grant> for TokenRecord {
    fn from(grant: &Grant) -> Self {
        Self {
            id: grant.token,
            issued: grant.issued,
            expires: grant.expires,
            uses: grant.uses,
            site: grant.site.clone(),
            groups: grant.groups.clone(),
            ranges: grant.ranges.clone(),
            membership: grant.membership,
            for_name: grant.for_name.clone(),
            replaces: grant.replaces,
            revoked: None,
        }
    }
}

/// The record in `folder`; empty if there is none.
///
/// # Errors
/// It can't be read, or is damaged.
pub(super) fn read(folder: &Path) -> Result<Vec<TokenRecord>, Problem> {
    let path = folder.join(FILE);
    let text = match files::read_text(&path) {
        Err(problem) if problem.exit == Exit::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let damaged = |cause: String| {
        Problem::failed(format!("{} is damaged: {cause}", path.display()))
            .next("move it away: tokens go on working, only their list starts anew")
    };
    let record: Record = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    if record.schema == SCHEMA {
        Ok(record.tokens)
    } else {
        Err(damaged(format!("it says '{}'", record.schema)))
    }
}

/// Replaces the record in `folder`.
///
/// # Errors
/// It can't be written.
pub(super) fn write(folder: &Path, tokens: &[TokenRecord]) -> Result<(), Problem> {
    let (schema, tokens) = (SCHEMA.to_owned(), tokens.to_vec());
    let text = serde_json::to_string_pretty(&Record { schema, tokens })
        .map_err(|error| Problem::failed(error.to_string()))?;
    files::replace(&folder.join(FILE), format!("{text}\n").as_bytes())
}
