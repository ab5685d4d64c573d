//! The root side's record of the external peers it named: enough to find one by its name where no daemon
//! can be asked, and to see that two don't want the same.

use std::net::SocketAddr;
use std::path::Path;

use ipnet::IpNet;
use podmesh_proto::id::Name;
use podmesh_proto::key::PublicKey;
use podmesh_proto::network::ExternalPeer;
use podmesh_proto::time::UnixSeconds;
use serde::{Deserialize, Serialize};

use crate::files;
use crate::problem::{Exit, Problem};

/// Name of the record's file.
pub(super) const FILE: &str = "externals.json";
const SCHEMA: &str = "podmesh.external-record/v1";

/// What is known of an external peer that this folder named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExternalRecord {
    pub(crate) name: Name,
    pub(crate) wireguard: PublicKey,
    pub(crate) prefixes: Vec<IpNet>,
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) issued: UnixSeconds,
    pub(crate) revoked: Option<UnixSeconds>,
}

#[derive(Serialize, Deserialize)]
struct Record {
    schema: String,
    externals: Vec<ExternalRecord>,
}

impl From<&ExternalPeer> for ExternalRecord {
    fn from(peer: &ExternalPeer) -> Self {
        Self {
            name: peer.name.clone(),
            wireguard: peer.wireguard,
            prefixes: peer.prefixes.clone(),
            endpoint: peer.endpoint,
            issued: peer.issued,
            revoked: None,
        }
    }
}

/// The record in `folder`; empty if there is none.
///
/// # Errors
/// It can't be read, or is damaged.
pub(super) fn read(folder: &Path) -> Result<Vec<ExternalRecord>, Problem> {
    let path = folder.join(FILE);
    let text = match files::read_text(&path) {
        Err(problem) if problem.exit == Exit::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let damaged = |cause: String| {
        Problem::failed(format!("{} is damaged: {cause}", path.display()))
            .next("move it away: external peers go on, only their list starts anew")
    };
    let record: Record = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    if record.schema == SCHEMA {
        Ok(record.externals)
    } else {
        Err(damaged(format!("it says '{}'", record.schema)))
    }
}

/// Replaces the record in `folder`.
///
/// # Errors
/// It can't be written.
pub(super) fn write(folder: &Path, externals: Vec<ExternalRecord>) -> Result<(), Problem> {
    let schema = SCHEMA.to_owned();
    let text = serde_json::to_string_pretty(&Record { schema, externals })
        .map_err(|error| Problem::failed(error.to_string()))?;
    files::replace(&folder.join(FILE), format!("{text}\n").as_bytes())
}
