//! Which pod has which address: the plugin's own memory, safe against a crash at any instruction.
//!
//! One small file per attachment, named after the node's end of its interface pair, and one with
//! the addresses that pods have given back. A file is written beside its place, flushed, renamed
//! into it, and the folder is flushed: at every instant it is there as a whole or not at all. This
//! is preferred to one journal for all, since no write can damage what other pods have, an
//! attachment is found and removed by its name alone, and a file that the disk itself has spoiled
//! costs one record. There is never more than a few hundred of them.
//!
//! The order of steps carries the rest. ADD writes its record before it makes the interface, and
//! DEL removes the record after the interface: whatever a killed plugin leaves behind is a record,
//! perhaps with an interface, never an interface that nobody knows.
//!
//! A lock on the folder keeps plugins that run at the same time apart. It is held for the few file
//! operations of one decision, never while the kernel works on interfaces.

mod disk;

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write as _,
    fs, io,
    net::IpAddr,
    path::Path,
};

use ipnet::IpNet;
use podmesh_kernel::{process, veth::MAX_OWNER_BYTES};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::{
    addresses::{self, Released},
    attachment::{self, Attachment, HOST_PREFIX},
    reply::{Code, Failure},
    request::Config,
    warn,
};

use disk::Folder;

const RELEASED: &str = "released.json";
const RECORD_SUFFIX: &str = ".json";
const RECORD_SCHEMA: &str = "podmesh.attachment/v1";
const RELEASED_SCHEMA: &str = "podmesh.released/v1";
/// A record without an interface counts as abandoned after this many seconds, three times as
/// long as an ADD may take.
const ABANDONED_AFTER_SECONDS: u64 = 60;

/// The ledger, locked for this process as long as it lives.
pub(crate) struct Ledger {
    folder: Folder,
    moment: Moment,
    records: BTreeMap<String, Option<Record>>,
    released: Vec<Released>,
}

/// What the node's end of a pair says about whose it is: the network and the folder of its ledger,
/// by the folder's real path, so that every way to write it says the same.
pub(crate) fn owner(config: &Config) -> String {
    let folder = fs::canonicalize(&config.data_dir).unwrap_or_else(|_| config.data_dir.clone());
    let words = format!("podmesh {} {}", config.name, folder.display());
    if words.len() <= MAX_OWNER_BYTES {
        return words;
    }
    let mut short = String::from("podmesh sha256:");
    for byte in digest(&SHA256, words.as_bytes()).as_ref() {
        // Writing to a string does not fail.
        let _ = write!(short, "{byte:02x}");
    }
    short
}

/// What is remembered of one attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    schema: String,
    /// The network in the runtime's configuration.
    pub(crate) network: String,
    /// Whose it is.
    #[serde(flatten)]
    pub(crate) attachment: Attachment,
    /// The pod's addresses.
    pub(crate) addresses: Vec<IpAddr>,
    boot: String,
    since: u64,
}

/// Addresses that a reservation must not give away, and where it may take them from.
pub(crate) struct Supply<'a> {
    /// This node's pod CIDRs.
    pub(crate) cidrs: &'a [IpNet],
    /// Addresses that pods have in the kernel's eyes, whatever the ledger says.
    pub(crate) present: &'a [IpAddr],
}

/// This boot of the machine, and how long it has lasted.
#[derive(Clone, Debug)]
pub(crate) struct Moment {
    boot: String,
    now: u64,
}

impl Moment {
    /// Asks the kernel.
    pub(crate) fn read() -> Result<Self, Failure> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let boot = boot.map_err(|cause| {
            Failure::new(Code::Io, format!("the boot id cannot be read: {cause}"))
        })?;
        Ok(Self {
            boot: boot.trim().to_owned(),
            now: process::since_boot().as_secs(),
        })
    }
}

#[derive(Serialize, Deserialize)]
struct ReleasedFile {
    schema: String,
    boot: String,
    released: Vec<Released>,
}

impl Ledger {
    /// Opens and locks the ledger, and repairs it. `interfaces` are the node's ends that exist.
    pub(crate) fn open(
        path: &Path,
        moment: Moment,
        interfaces: &[String],
    ) -> Result<Self, Failure> {
        let folder =
            Folder::open(path, is_content).map_err(|cause| failed(path, "opened", &cause))?;
        let mut ledger = Self {
            records: BTreeMap::new(),
            released: Vec::new(),
            folder,
            moment,
        };
        ledger
            .read()
            .map_err(|cause| failed(path, "read", &cause))?;
        ledger.repair(interfaces)?;
        Ok(ledger)
    }

    /// Gives the attachment its addresses, one of each CIDR, and makes that durable. An attachment
    /// that has fitting ones already keeps them.
    pub(crate) fn reserve(
        &mut self,
        network: &str,
        attachment: &Attachment,
        supply: &Supply<'_>,
    ) -> Result<Record, Failure> {
        let name = attachment.host_name();
        match self.records.get(&name) {
            Some(Some(record)) if record.attachment != *attachment => {
                return Err(Failure::new(
                    Code::Ledger,
                    format!("{attachment} and {} have the same hash", record.attachment),
                ));
            }
            Some(Some(record)) if fits(&record.addresses, supply.cidrs) => {
                let addresses = record.addresses.clone();
                return self.remember(network, attachment, addresses);
            }
            _ => {}
        }
        let taken: HashSet<IpAddr> = self
            .records
            .iter()
            .filter(|(other, _)| **other != name)
            .flat_map(|(_, record)| record.iter().flat_map(|record| &record.addresses))
            .chain(supply.present)
            .copied()
            .collect();
        let mut chosen = Vec::new();
        for cidr in supply.cidrs {
            let address = addresses::choose(cidr, &taken, &self.released, self.moment.now);
            chosen.push(address.ok_or_else(|| {
                Failure::new(
                    Code::NoAddressLeft,
                    format!("all addresses of {cidr} are taken: give this node a larger pod CIDR"),
                )
            })?);
        }
        self.remember(network, attachment, chosen)
    }

    /// Makes durable, as of this moment, which addresses an attachment has. One that has had them
    /// for long is written again: it must not count as abandoned before its interface is there.
    fn remember(
        &mut self,
        network: &str,
        attachment: &Attachment,
        addresses: Vec<IpAddr>,
    ) -> Result<Record, Failure> {
        let name = attachment.host_name();
        let record = Record {
            schema: RECORD_SCHEMA.to_owned(),
            network: network.to_owned(),
            attachment: attachment.clone(),
            addresses,
            boot: self.moment.boot.clone(),
            since: self.moment.now,
        };
        self.write(&name, &record)?;
        self.records.insert(name, Some(record.clone()));
        Ok(record)
    }

    /// Forgets an attachment by the name of its node's end; its addresses begin to rest. True if
    /// it was known.
    pub(crate) fn release(&mut self, host_name: &str) -> Result<bool, Failure> {
        let Some(record) = self.records.remove(host_name) else {
            return Ok(false);
        };
        let freed = record.map(|record| record.addresses).unwrap_or_default();
        self.released
            .retain(|released| !freed.contains(&released.address));
        let at = self.moment.now;
        self.released
            .extend(freed.into_iter().map(|address| Released { address, at }));
        if let Err(cause) = self.write_released() {
            // A full disk must not keep a pod from being taken off.
            warn(&format!("freed addresses will not rest: {cause}"));
        }
        let file = format!("{host_name}{RECORD_SUFFIX}");
        let removed = self.folder.remove(&file);
        removed.map_err(|cause| failed(self.folder.path(), "written", &cause))?;
        Ok(true)
    }

    /// The attachments that are known, by the names of their node's ends; `None` where the disk
    /// has spoiled the record of an interface that exists.
    pub(crate) fn records(&self) -> impl Iterator<Item = (&str, Option<&Record>)> {
        self.records
            .iter()
            .map(|(name, record)| (name.as_str(), record.as_ref()))
    }

    /// Forgets old records whose interface does not exist. True if there were any.
    pub(crate) fn release_abandoned(&mut self, interfaces: &[String]) -> Result<bool, Failure> {
        let now = self.moment.now;
        let abandoned: Vec<_> = self
            .records
            .iter()
            .filter(|(name, _)| !interfaces.contains(name))
            .filter(|(_, record)| {
                let age = record
                    .as_ref()
                    .map(|record| now.saturating_sub(record.since));
                age.is_none_or(|age| age > ABANDONED_AFTER_SECONDS)
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in &abandoned {
            self.release(name)?;
        }
        Ok(!abandoned.is_empty())
    }

    fn read(&mut self) -> io::Result<()> {
        for file in self.folder.files()? {
            let Some(name) = file.strip_suffix(RECORD_SUFFIX) else {
                continue;
            };
            if !name.starts_with(HOST_PREFIX) {
                continue;
            }
            // What cannot be read costs this record alone, as what cannot be understood does.
            let bytes = self.folder.read(&file).unwrap_or_default();
            let record: Option<Record> = serde_json::from_slice(&bytes).ok();
            // A record in the place of another is as wrong as one that cannot be read.
            let record = record.filter(|record| {
                record.schema == RECORD_SCHEMA && record.attachment.host_name() == name
            });
            self.records.insert(name.to_owned(), record);
        }
        let bytes = match self.folder.read(RELEASED) {
            Ok(bytes) => bytes,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(cause) => {
                warn(&format!("the list of freed addresses is spoiled: {cause}"));
                return Ok(());
            }
        };
        match serde_json::from_slice::<ReleasedFile>(&bytes) {
            Ok(file) => {
                let same_boot = file.boot == self.moment.boot;
                self.released = file.released;
                for released in &mut self.released {
                    // Whatever came before this boot has rested; the order still counts.
                    released.at = if same_boot { released.at } else { 0 };
                }
            }
            Err(cause) => warn(&format!("the list of freed addresses is spoiled: {cause}")),
        }
        Ok(())
    }

    /// Forgets what the disk has spoiled and what a former boot has left: no pod survives a boot.
    fn repair(&mut self, interfaces: &[String]) -> Result<(), Failure> {
        let boot = self.moment.boot.clone();
        let over: Vec<_> = self
            .records
            .iter()
            .filter(|(name, _)| !interfaces.contains(name))
            .filter(|(_, record)| record.as_ref().is_none_or(|record| record.boot != boot))
            .map(|(name, record)| (name.clone(), record.is_none()))
            .collect();
        for (name, spoiled) in over {
            if spoiled {
                warn(&format!(
                    "removed the spoiled record {name}{RECORD_SUFFIX} of no interface"
                ));
            }
            self.release(&name)?;
        }
        Ok(())
    }

    fn write(&self, name: &str, record: &Record) -> Result<(), Failure> {
        let bytes = serde_json::to_vec(record).map_err(io::Error::from);
        bytes
            .and_then(|bytes| self.folder.write(&format!("{name}{RECORD_SUFFIX}"), &bytes))
            .map_err(|cause| failed(self.folder.path(), "written", &cause))
    }

    fn write_released(&self) -> io::Result<()> {
        let file = ReleasedFile {
            schema: RELEASED_SCHEMA.to_owned(),
            boot: self.moment.boot.clone(),
            released: self.released.clone(),
        };
        self.folder.write(RELEASED, &serde_json::to_vec(&file)?)
    }
}

/// Whether a file of this name makes a folder a ledger.
fn is_content(name: &str) -> bool {
    let record = name.strip_suffix(RECORD_SUFFIX);
    name == RELEASED || record.is_some_and(attachment::is_host_name)
}

/// Whether addresses that were given earlier are one of each pod CIDR still.
fn fits(given: &[IpAddr], cidrs: &[IpNet]) -> bool {
    given.len() == cidrs.len()
        && cidrs.iter().all(|cidr| {
            given
                .iter()
                .any(|address| addresses::is_in_pool(cidr, address))
        })
}

fn failed(path: &Path, what: &str, cause: &io::Error) -> Failure {
    Failure::new(
        Code::Ledger,
        format!("the ledger {} cannot be {what}: {cause}", path.display()),
    )
}

#[cfg(test)]
mod tests;
