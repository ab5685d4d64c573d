//! `meshctl network add-planet` and `retire-planet`: new editions of the network document.

use std::str::FromStr;

use clap::Args;
use podmesh_proto::id::{Name, PlanetId};
use podmesh_proto::limits::MAX_PLANETS;
use podmesh_proto::network::{Network, PlanetEntry, RetiredPlanet, RootStatement};
use podmesh_proto::signed::Signed;

use crate::clock;
use crate::commands::Context;
use crate::commands::delivery::Delivery;
use crate::commands::network::pull::bring_up_to_date;
use crate::confirm::Confirm;
use crate::operator::{Desk, Signer};
use crate::problem::{Exit, Problem};

/// A planet on the command line.
#[derive(Debug, Clone)]
pub(crate) struct PlanetArg {
    name: Option<Name>,
    id: PlanetId,
    address: String,
}

/// Arguments of `meshctl network add-planet`.
#[derive(Debug, Args)]
pub(crate) struct AddPlanet {
    /// Key and address of the planet
    #[arg(value_name = "[NAME=]KEY@HOST:PORT")]
    planet: PlanetArg,
    /// Name or key of the planet whose place it takes; that one is retired
    #[arg(long, value_name = "PLANET")]
    replaces: Option<String>,
    #[command(flatten)]
    signer: Signer,
    #[command(flatten)]
    delivery: Delivery,
}

/// Arguments of `meshctl network retire-planet`.
#[derive(Debug, Args)]
pub(crate) struct RetirePlanet {
    /// Name or key of the planet
    planet: String,
    #[command(flatten)]
    confirm: Confirm,
    #[command(flatten)]
    signer: Signer,
    #[command(flatten)]
    delivery: Delivery,
}

impl AddPlanet {
    pub(super) fn run(self, context: &Context) -> Result<Exit, Problem> {
        let desk = newest_desk(context, &self.signer, &self.delivery)?;
        self.refuse_again(&desk)?;
        let mut next = edition_after(desk.network())?;
        let place = match &self.replaces {
            Some(old) => retire(&mut next, old)?,
            None => next.planets.len(),
        };
        let added = entries(&next.planets, std::slice::from_ref(&self.planet))?;
        let Some(entry) = added.last().cloned() else {
            return Err(Problem::failed("no planet was named"));
        };
        next.retired.retain(|gone| gone.id != entry.id);
        next.planets.insert(place, entry);
        publish(context, &desk, (&self.signer, &self.delivery), next)
    }
}

impl AddPlanet {
    /// Repeated because the edition didn't get through: it is the delivery that is left to do.
    fn refuse_again(&self, desk: &Desk) -> Result<(), Problem> {
        let PlanetArg { name, id, address } = &self.planet;
        let same = |entry: &&PlanetEntry| {
            let named = name.as_ref().is_none_or(|name| *name == entry.name);
            entry.id == *id && entry.address == *address && named
        };
        let network = desk.network();
        let Some(entry) = network.planets.iter().find(same) else {
            return Ok(());
        };
        let (planet, edition) = (&entry.name, network.version);
        let cause = format!(
            "planet {planet} is in edition {edition} of network {} already",
            network.name
        );
        Err(Problem::usage(cause).next(
            "if that edition was not delivered: meshctl network publish, on a node, with --planet-socket on a \
             planet, or with --out",
        ))
    }
}

impl RetirePlanet {
    pub(super) fn run(self, context: &Context) -> Result<Exit, Problem> {
        let desk = newest_desk(context, &self.signer, &self.delivery)?;
        let mut next = edition_after(desk.network())?;
        let place = retire(&mut next, &self.planet)?;
        let Some(first) = next.planets.first() else {
            return Err(Problem::usage("this is the only planet of the network")
                .next("replace it: meshctl network add-planet NEW --replaces OLD"));
        };
        self.confirm.ask(|| {
            Ok(format!(
                "Planet {} of network {} serves nobody any more: nodes leave it, what it signs from now on is \
                 void.",
                self.planet,
                desk.network().name
            ))
        })?;
        if place == 0 {
            context
                .screen
                .remark(&format!("{} arbitrates leases from now on", first.name));
        }
        publish(context, &desk, (&self.signer, &self.delivery), next)
    }
}

impl FromStr for PlanetArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = match text.split_once('=') {
            Some((name, rest)) => {
                let name = Name::from_str(name).map_err(|error| error.to_string())?;
                (Some(name), rest)
            }
            None => (None, text),
        };
        let (id, address) = rest
            .split_once('@')
            .ok_or("write KEY@HOST:PORT, with the key that `planet init` prints")?;
        let id = PlanetId::from_str(id)
            .map_err(|_| "the key before '@' is not 64 hex digits, as `planet init` prints it")?;
        let address = address.to_owned();
        check_address(&address)?;
        Ok(Self { name, id, address })
    }
}

/// `known` planets and the new ones after them, those without a name called `planet-1` and so on.
///
/// # Errors
/// Too many, or two with the same key, name or address.
pub(crate) fn entries(
    known: &[PlanetEntry],
    new: &[PlanetArg],
) -> Result<Vec<PlanetEntry>, Problem> {
    let mut entries = known.to_vec();
    for planet in new {
        let name = match &planet.name {
            Some(name) => name.clone(),
            None => free_name(&entries)?,
        };
        let entry = PlanetEntry {
            id: planet.id,
            name,
            address: planet.address.clone(),
        };
        let same = |other: &&PlanetEntry| {
            other.id == entry.id || other.name == entry.name || other.address == entry.address
        };
        if let Some(other) = entries.iter().find(same) {
            return Err(Problem::usage(format!(
                "planet {} at {} has the key, name or address of planet {}",
                entry.name, entry.address, other.name
            ))
            .next("give each planet a key, a name and an address of its own"));
        }
        entries.push(entry);
    }
    if entries.len() > MAX_PLANETS {
        return Err(Problem::usage(format!(
            "a network has at most {MAX_PLANETS} planets"
        )));
    }
    Ok(entries)
}

fn free_name(entries: &[PlanetEntry]) -> Result<Name, Problem> {
    let free = (1..=entries.len().saturating_add(1))
        .map(|number| format!("planet-{number}"))
        .find(|name| entries.iter().all(|entry| entry.name.as_str() != name));
    Ok(free.unwrap_or_default().parse()?)
}

fn check_address(address: &str) -> Result<(), String> {
    if PlanetEntry::is_address(address) {
        return Ok(());
    }
    Err(format!(
        "'{address}' is not HOST:PORT, with a name, an IPv4 address like 192.0.2.1 or an IPv6 address like \
         [2001:db8::1]"
    ))
}

/// The folder, with the newest edition that can be asked for here.
fn newest_desk(context: &Context, signer: &Signer, delivery: &Delivery) -> Result<Desk, Problem> {
    let mut desk = signer.desk()?;
    let registries = delivery.registries(context, desk.network())?;
    bring_up_to_date(context, &mut desk, &registries)?;
    Ok(desk)
}

fn edition_after(network: &Network) -> Result<Network, Problem> {
    let mut next = network.clone();
    next.version = next.version.saturating_add(1);
    next.issued = clock::now_for_signing(network.issued)?;
    Ok(next)
}

/// Takes the planet out of service and returns the place it had.
fn retire(network: &mut Network, planet: &str) -> Result<usize, Problem> {
    let matches =
        |entry: &PlanetEntry| entry.name.as_str() == planet || entry.id.to_string() == planet;
    let place = network.planets.iter().position(matches).ok_or_else(|| {
        let names: Vec<&str> = network
            .planets
            .iter()
            .map(|entry| entry.name.as_str())
            .collect();
        Problem::new(
            Exit::NotFound,
            format!("the network has no planet '{planet}'"),
        )
        .next(format!("name one of {}", names.join(", ")))
    })?;
    let gone = network.planets.remove(place);
    let until = network.issued;
    network.retired.push(RetiredPlanet { id: gone.id, until });
    Ok(place)
}

fn publish(
    context: &Context,
    desk: &Desk,
    (signer, delivery): (&Signer, &Delivery),
    network: Network,
) -> Result<Exit, Problem> {
    let version = network.version;
    let document = signer.sign(desk, &RootStatement::Network(network))?;
    desk.replace(&document)?;
    let what = format!("edition {version} of network {}", desk.network().name);
    deliver(context, delivery, &document, &what)?;
    if !delivery.is_file() {
        desk.folder().published()?;
    }
    Ok(Exit::Ok)
}

/// Delivers an edition that is already kept in the folder.
fn deliver(
    context: &Context,
    delivery: &Delivery,
    document: &Signed<RootStatement>,
    what: &str,
) -> Result<(), Problem> {
    delivery
        .send(context, document, what)
        .map_err(|problem| {
            Problem {
        cause: format!("{what} is signed and kept, but not delivered: {}", problem.cause),
        // Whoever refuses it says what to do; who wasn't there can be tried again.
        next: problem.next.filter(|_| problem.exit == Exit::Failed).or_else(|| {
            Some(
                "meshctl network publish, on a node, with --planet-socket on a planet, or with --out"
                    .to_owned(),
            )
        }),
        exit: problem.exit,
    }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planets_are_written_with_key_and_address() {
        let key = "ab".repeat(32);
        for good in [
            format!("{key}@198.51.100.1:7077"),
            format!("home={key}@planet.example.org:443"),
            format!("{key}@7seas.example2.:443"),
            format!("{key}@[2001:db8::1]:7077"),
        ] {
            assert!(good.parse::<PlanetArg>().is_ok(), "{good}");
        }
        for wrong in [
            key.clone(),
            format!("{key}@198.51.100.1"),
            format!("{key}@2001:db8::1:"),
            format!("{key}@host:0"),
            format!("{key}@host:+77"),
            format!("{key}@host:70000"),
            format!("{key}@ho st:7077"),
            format!("{key}@300.0.113.10:7077"),
            format!("{key}@203.0.113:7077"),
            format!("{key}@planet.0x1f:7077"),
            format!("{key}@planet..example.org:7077"),
            format!("Home={key}@host:7077"),
            format!("{}@host:7077", &key[2..]),
        ] {
            assert!(wrong.parse::<PlanetArg>().is_err(), "{wrong}");
        }
    }
}
