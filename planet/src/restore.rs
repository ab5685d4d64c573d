//! Whether a backup may take the place of a planet's books, and what goes with them if it does.

use std::io::{self, IsTerminal as _, Write as _};

use podmesh_proto::error::CertificateError;
use podmesh_proto::id::PlanetId;
use podmesh_proto::network::Network;
use podmesh_proto::renewal::Standing;

use crate::problem::{Problem, USAGE};
use crate::rules::books::{Books, Entry};
use crate::rules::records::Record;
use crate::store::Backup;

/// What speaks against a restore, in words, and its operator may want all the same: the backup is of another planet
/// of this one's network, or lacks what is in the books. Empty if that is nothing.
///
/// A backup of the first format doesn't say whose it is, but its document names planets, the retired ones as well.
/// One that was made before this planet was added names it nowhere: the books of the same network vouch for that.
///
/// # Errors
/// The backup is of another network than the books, of a network that doesn't know this planet, or holds no
/// network where the books have one.
pub fn judge(
    backup: Backup,
    present: Option<Vec<Record>>,
    planet: &PlanetId,
) -> Result<Vec<String>, Problem> {
    let of = backup.planet;
    let backup = books(backup.records).map_err(|error| {
        Problem::failed(format!(
            "the backup can't be used ({error}); use another one"
        ))
    })?;
    // Books that make no sense are what a backup is for.
    let present = present.and_then(|records| books(records).ok().flatten());
    let mut doubts = Vec::new();
    if let Some(other) = of.filter(|of| of != planet) {
        let network = backup.as_ref().or(present.as_ref());
        let name = |planet| named_planet(network.map(|books| &books.network), planet);
        doubts.push(format!(
            "the backup is of planet {}, and this one is {}",
            name(&other),
            name(planet)
        ));
    }
    match (backup, present) {
        (None, None) => {}
        (None, Some(present)) => {
            return Err(Problem::failed(format!(
                "the backup is of a planet that served no network yet, and this one serves {}; use another one",
                named(&present.network)
            )));
        }
        (Some(backup), None) if of != Some(*planet) && !knows(&backup.network, planet) => {
            let network = &backup.network;
            return Err(Problem::failed(format!(
                "the backup is of a planet of network {}, whose edition {} names {} and not this planet, {planet}; \
                 use this planet's own backup, or put the planet.key of the right one into the state \
                 directory; if this planet was added later, `planet adopt` the network's newest document first",
                named(network),
                network.version,
                planets(network)
            )));
        }
        (Some(_), None) => {}
        (Some(backup), Some(present)) if backup.network.id != present.network.id => {
            return Err(Problem::failed(format!(
                "the backup is of network {}, and this planet serves {}; use this planet's own backup, or name \
                 the planet that the backup is of by --state-dir",
                named(&backup.network),
                named(&present.network)
            )));
        }
        (Some(backup), Some(present)) => {
            let newer = newer(&present, &backup);
            if !newer.is_empty() {
                let newer = newer.join(", ");
                doubts.push(format!(
                    "the books here have what the backup lacks: {newer}"
                ));
            }
        }
    }
    Ok(doubts)
}

/// The books in these records; none if they hold no network.
fn books(records: Vec<Record>) -> Result<Option<Books>, CertificateError> {
    if records
        .iter()
        .any(|record| matches!(record, Record::Network(_)))
    {
        return Books::from_records(records).map(Some);
    }
    Ok(None)
}

fn named(network: &Network) -> String {
    format!("{} ({})", network.name, network.id)
}

/// A planet's name and id, or its id alone where the network doesn't name it.
fn named_planet(network: Option<&Network>, planet: &PlanetId) -> String {
    let mut entries = network.iter().flat_map(|network| &network.planets);
    let entry = entries.find(|entry| entry.id == *planet);
    entry.map_or_else(
        || planet.to_string(),
        |entry| format!("{} ({planet})", entry.name),
    )
}

fn knows(network: &Network, planet: &PlanetId) -> bool {
    network.planets.iter().any(|entry| entry.id == *planet)
        || network.retired.iter().any(|gone| gone.id == *planet)
}

fn planets(network: &Network) -> String {
    let named = network
        .planets
        .iter()
        .map(|entry| format!("{} ({})", entry.name, entry.id));
    named.collect::<Vec<_>>().join(", ")
}

fn newer(present: &Books, backup: &Books) -> Vec<String> {
    let mut newer = Vec::new();
    let (edition, saved) = (present.network.version, backup.network.version);
    if edition > saved {
        newer.push(format!(
            "edition {edition} of the network (the backup has {saved})"
        ));
    }
    let members = present.entries().filter(|(node, entry)| {
        let old = backup.entry(node);
        old.is_none_or(|old| goes_on(entry, old))
    });
    newer.extend(counted(members.count(), "membership"));
    let said = present.statements().iter();
    let said = said.filter(|(hash, _)| backup.statements().get(hash).is_none());
    newer.extend(counted(said.count(), "statement of the root"));
    let left = present.departures();
    let left = left.filter(|node| backup.departure(node).is_none());
    newer.extend(counted(left.count(), "departure"));
    let (last, saved) = (present.shown(), backup.shown());
    if last > saved {
        newer.push(format!("receipts {} to {last}", saved.saturating_add(1)));
    }
    newer
}

fn goes_on(entry: &Entry, old: &Entry) -> bool {
    let renewed = match (&entry.member, &old.member) {
        (Some(member), Some(old)) => member.standing(old) == Standing::Newer,
        _ => false,
    };
    renewed || entry.newest() > old.newest()
}

fn counted(count: usize, what: &str) -> Option<String> {
    match count {
        0 => None,
        1 => Some(format!("1 {what}")),
        _ => Some(match what.split_once(' ') {
            Some((first, rest)) => format!("{count} {first}s {rest}"),
            None => format!("{count} {what}s"),
        }),
    }
}

/// Whether to ask before something goes.
#[derive(Debug, clap::Args)]
pub struct Confirm {
    /// Do it without asking; needed where there is no terminal
    #[arg(long, short = 'y')]
    yes: bool,
}

impl Confirm {
    /// Goes on only if the caller wants it although `lost`.
    ///
    /// # Errors
    /// The caller doesn't, or can't be asked.
    pub fn ask(&self, lost: &str) -> Result<(), Problem> {
        if self.yes {
            return Ok(());
        }
        let input = io::stdin();
        if !input.is_terminal() {
            return Err(Problem::new(
                USAGE,
                format!("{lost}; nothing was changed, `--yes` restores it all the same"),
            ));
        }
        let mut answer = String::new();
        write!(io::stderr(), "{lost}\nGo on? [y/N] ")
            .and_then(|()| input.read_line(&mut answer))
            .map_err(|error| Problem::failed(error.to_string()))?;
        if matches!(answer.trim(), "y" | "Y" | "yes") {
            return Ok(());
        }
        Err(Problem::failed("nothing was changed"))
    }
}
