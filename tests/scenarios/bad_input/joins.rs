//! Joins that can't work.

use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use podmesh_lab::process;
use podmesh_proto::key::SigningKey;
use podmesh_proto::signed::Signed;
use podmesh_proto::time::UnixSeconds;
use podmesh_proto::token::JoinToken;
use serde_json::Value;

use super::stand::{Said, Stand, text};

pub(super) fn wrong_letter(stand: &Stand<'_>) -> Result<Said> {
    let mut token = fs::read(&stand.good_token)?;
    let middle = token.len() / 2;
    token[middle] = if token[middle] == b'a' { b'b' } else { b'a' };
    stand.join(&stand.file("token", token)?)
}

pub(super) fn half(stand: &Stand<'_>) -> Result<Said> {
    let token = fs::read(&stand.good_token)?;
    stand.join(&stand.file("token", &token[..token.len() / 2])?)
}

pub(super) fn no_token(stand: &Stand<'_>) -> Result<Said> {
    stand.join(&stand.mesh().operator().document())
}

pub(super) fn no_file(stand: &Stand<'_>) -> Result<Said> {
    stand.join(&stand.lab.folder().join("no-such-file"))
}

pub(super) fn as_argument(stand: &Stand<'_>) -> Result<Said> {
    let token = fs::read_to_string(&stand.good_token)?;
    stand.join(token.trim().as_ref())
}

/// Signed with the real root key, which no command does for a time that is over.
pub(super) fn expired_yesterday(stand: &Stand<'_>) -> Result<Said> {
    let key = fs::read_to_string(stand.mesh().operator().folder().join("root.key"))?;
    let key: Value = serde_json::from_str(&key)?;
    let seed = key["seed"]["seed"]
        .as_str()
        .context("the root key is not plain")?;
    let mut bytes = [0; 32];
    for (byte, digits) in bytes.iter_mut().zip(seed.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits)?, 16)?;
    }
    let mut token: JoinToken = fs::read_to_string(&stand.good_token)?.parse()?;
    let mut grant = token.grant.unverified()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    grant.issued = UnixSeconds(now - 90_000);
    grant.expires = UnixSeconds(now - 86_400);
    token.grant = Signed::seal(&grant, &SigningKey::from_seed(bytes))?;
    stand.join(&stand.file("token", token.to_text()?.as_bytes())?)
}

/// Within the tolerance for clocks a node still asks; the planet counts exactly.
pub(super) fn expired_just_now(stand: &Stand<'_>) -> Result<Said> {
    let token = stand.token(&["--expires", "1s"])?;
    thread::sleep(Duration::from_millis(2_200));
    stand.join(&token)
}

/// The token that the first member came in with.
pub(super) fn used_up(stand: &Stand<'_>) -> Result<Said> {
    stand.join(&stand.mesh().operator().folder().join("member-1.token"))
}

/// Its planet is the real one, which has never been told of that network.
pub(super) fn other_network(stand: &Stand<'_>) -> Result<Said> {
    let planet = planet_of(stand)?;
    stand.join(&stand.token_of_other(&planet, &[])?)
}

pub(super) fn taken_name(stand: &Stand<'_>) -> Result<Said> {
    let token = text(&stand.good_token)?;
    let words = ["join", token, "--name", "member-1", "--timeout", "4s"];
    Ok(stand
        .node("novice-1")?
        .meshctl_output(&words, process::SHORT)?
        .into())
}

pub(super) fn second_network(stand: &Stand<'_>) -> Result<Said> {
    let token = stand.token_of_other(&planet_of(stand)?, &[])?;
    let member = stand.node("member-1")?;
    Ok(member
        .meshctl_output(&["join", text(&token)?, "--timeout", "4s"], process::SHORT)?
        .into())
}

pub(super) fn planet_unreachable(stand: &Stand<'_>) -> Result<Said> {
    let real = planet_of(stand)?;
    let key = real.split('@').next().unwrap_or_default();
    stand.join(&stand.token_of_other(&format!("{key}@203.0.113.99:7077"), &[])?)
}

/// Where the token says that a planet is, another one answers.
pub(super) fn planet_with_another_key(stand: &Stand<'_>) -> Result<Said> {
    let endpoint: SocketAddr = stand.lab.planet("planet-1")?.endpoint();
    let key = SigningKey::from_seed([7; 32]).planet_id();
    stand.join(&stand.token_of_other(&format!("{key}@{endpoint}"), &[])?)
}

/// The real planet as an argument of `meshctl network create`.
pub(super) fn planet_of(stand: &Stand<'_>) -> Result<String> {
    let network = stand.network()?;
    let entry = network
        .planets
        .first()
        .context("the network has no planet")?;
    Ok(format!("{}@{}", entry.id, entry.address))
}
