//! A planet's books in one file, to be kept elsewhere.
//!
//! A first line that names the format, the checksum of the rest, and the rest.

use podmesh_proto::id::PlanetId;
use podmesh_proto::key::digest;

use crate::rules::records::Record;
use crate::store::StoreError;

/// The records alone.
const FIRST: &[u8] = b"podmesh planet backup v1\n";
/// The planet and the records.
const SECOND: &[u8] = b"podmesh planet backup v2\n";
const FIRST_SUM: &str = "podmesh planet backup v1";
const SECOND_SUM: &str = "podmesh planet backup v2";

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// The planet whose books these are; backups of the first format don't say it.
    pub planet: Option<PlanetId>,
    /// Everything in its store.
    pub records: Vec<Record>,
}

impl Backup {
    /// Reads a backup of any format.
    ///
    /// # Errors
    /// It is damaged, or none.
    pub fn read(content: &[u8]) -> Result<Self, StoreError> {
        decode(content).map_err(|reason| StoreError::Io {
            path: "the backup".to_owned(),
            reason,
            permission: false,
        })
    }
}

pub(super) fn encode(planet: &PlanetId, records: &[Record]) -> Result<Vec<u8>, String> {
    let body = postcard::to_allocvec(&(planet, records)).map_err(|error| error.to_string())?;
    let hash = digest(SECOND_SUM, &body);
    Ok([SECOND, hash.as_slice(), &body].concat())
}

fn decode(content: &[u8]) -> Result<Backup, String> {
    let damaged = |_| "it is damaged; use another one".to_owned();
    if let Some(rest) = content.strip_prefix(FIRST) {
        let body = checked(FIRST_SUM, rest)?;
        let records = postcard::from_bytes(body).map_err(damaged)?;
        let planet = None;
        return Ok(Backup { planet, records });
    }
    let rest = content.strip_prefix(SECOND).ok_or_else(|| {
        let is_newer = content.starts_with(b"podmesh planet backup v");
        let reason = match is_newer {
            true => "it is of a format that this version of planet doesn't know; use a newer one",
            false => "it is no backup of a planet",
        };
        reason.to_owned()
    })?;
    let body = checked(SECOND_SUM, rest)?;
    let (planet, records) = postcard::from_bytes(body).map_err(damaged)?;
    let planet = Some(planet);
    Ok(Backup { planet, records })
}

fn checked<'a>(sum: &str, rest: &'a [u8]) -> Result<&'a [u8], String> {
    let damaged = || "it is damaged; use another one".to_owned();
    let (hash, body) = rest.split_first_chunk::<32>().ok_or_else(damaged)?;
    if digest(sum, body) != *hash {
        return Err(damaged());
    }
    Ok(body)
}
