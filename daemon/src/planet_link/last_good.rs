//! Where planets' names led when somebody there proved the planet's key, kept on disk: a node that
//! starts while its resolver is dead finds them again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use podmesh_proto::id::PlanetId;
use podmesh_proto::network::PlanetEntry;

use crate::state::{Document, Loaded, StateDir};

const FILE: &str = "planet-addresses";
const KIND: &str = "podmesh planet addresses";
const VERSION: u16 = 1;

/// By planet: what the network said its address was, and the endpoints which that led to.
type Places = BTreeMap<PlanetId, (String, Vec<SocketAddr>)>;

/// The last good endpoints of each planet that the network knows by a name.
#[derive(Debug, Clone)]
pub(crate) struct LastGood(Arc<Mutex<Book>>);

#[derive(Debug)]
struct Book {
    places: Places,
    document: Document,
}

impl LastGood {
    /// Reads the file. One that can't be read is as good as none: the node only has to ask the
    /// resolver.
    pub(crate) fn load(dir: &StateDir) -> Self {
        let mut document = Document::new(dir, FILE, KIND, VERSION);
        let places = match document.load() {
            Ok(Loaded::Nothing) => Places::new(),
            Ok(Loaded::Current(content) | Loaded::Previous(content, _)) => {
                postcard::from_bytes(&content).unwrap_or_default()
            }
            Err(error) => {
                tracing::warn!(reason = %error, "the planets' last addresses are forgotten");
                Places::new()
            }
        };
        Self(Arc::new(Mutex::new(Book { places, document })))
    }

    /// The endpoints of a planet, if its name is still the same.
    pub(super) fn of(&self, entry: &PlanetEntry) -> Vec<SocketAddr> {
        let book = self.lock();
        let place = book.places.get(&entry.id);
        let same = place.filter(|(address, _)| *address == entry.address);
        same.map(|(_, endpoints)| endpoints.clone())
            .unwrap_or_default()
    }

    /// Keeps the endpoints of a planet that has proven its key at the first of them.
    pub(super) fn note(&self, entry: &PlanetEntry, endpoints: Vec<SocketAddr>) {
        self.change(|places| {
            places.insert(entry.id, (entry.address.clone(), endpoints));
        });
    }

    /// Forgets all planets but these.
    pub(super) fn keep(&self, planets: &[PlanetEntry]) {
        self.change(|places| {
            places.retain(|id, _| planets.iter().any(|entry| entry.id == *id));
        });
    }

    /// Writes what has changed, on a thread that may wait for the disk.
    fn change(&self, change: impl FnOnce(&mut Places)) {
        let mut book = self.lock();
        let before = book.places.clone();
        change(&mut book.places);
        if book.places == before {
            return;
        }
        drop(book);
        let all = self.clone();
        tokio::task::spawn_blocking(move || all.write());
    }

    fn write(&self) {
        let mut book = self.lock();
        let written = postcard::to_allocvec(&book.places)
            .map_err(|error| error.to_string())
            .and_then(|bytes| {
                let stored = book.document.store(&bytes);
                stored.map_err(|error| error.to_string())
            });
        if let Err(reason) = written {
            tracing::debug!(reason, "the planets' addresses can't be written to disk");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
