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
mod record;
mod sweep;

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    net::IpAddr,
    path::Path,
};

use ipnet::IpNet;
use podmesh_kernel::process;
use serde::{Deserialize, Serialize};

use crate::{
    addresses::{self, Released},
    attachment::{self, Attachment, HOST_PREFIX},
    reply::{Code, Failure},
    warn,
};

pub(crate) use record::{Record, Sandbox, is_owner, owner};

use disk::Folder;
use record::RECORD_SCHEMA;

const RELEASED: &str = "released.json";
const RECORD_SUFFIX: &str = ".json";
/// What a killed probe leaves goes with the unfinished files.
const PROBE: &str = "probe.unfinished";
const PROBE_BYTES: usize = 4096;
const RELEASED_SCHEMA: &str = "podmesh.released/v1";
/// The ledger, locked for this process as long as it lives.
pub(crate) struct Ledger {
    folder: Folder,
    moment: Moment,
    records: BTreeMap<String, Option<Record>>,
    released: Vec<Released>,
}

/// Who asks for addresses, and what is remembered of it besides them.
pub(crate) struct Claim<'a> {
    /// The network in the runtime's configuration.
    pub(crate) network: &'a str,
    /// Whose the addresses shall be.
    pub(crate) attachment: &'a Attachment,
    /// The pod's network namespace.
    pub(crate) sandbox: Option<Sandbox>,
    /// Where to the pod goes by this interface.
    pub(crate) destinations: Vec<IpNet>,
    /// Hardware address of the pod's end, if not the one that follows from the attachment.
    pub(crate) mac: Option<[u8; 6]>,
}

/// Addresses that a reservation must not give away, and where it may take them from.
pub(crate) struct Supply<'a> {
    /// This node's pod CIDRs.
    pub(crate) cidrs: &'a [IpNet],
    /// Addresses that pods have in the kernel's eyes, whatever the ledger says.
    pub(crate) present: &'a [IpAddr],
    /// Addresses of the attachment's own pod, as far as its node's end stands and tells: a ledger that
    /// was lost mustn't take them from a pod that lives.
    pub(crate) own: &'a [IpAddr],
    /// The node's ends that exist.
    pub(crate) interfaces: &'a [String],
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
        ledger.repair(interfaces);
        Ok(ledger)
    }

    /// The record of an attachment that needs nothing written: its addresses are of these CIDRs,
    /// its interface exists, and it is for this sandbox.
    pub(crate) fn standing(
        &self,
        attachment: &Attachment,
        sandbox: &Sandbox,
        supply: &Supply<'_>,
    ) -> Option<&Record> {
        let name = attachment.host_name();
        let record = self.records.get(&name)?.as_ref()?;
        let is_it = record.attachment == *attachment && record.sandbox.as_ref() == Some(sandbox);
        let stands = supply.interfaces.contains(&name);
        (is_it && stands && fits(&record.addresses, supply.cidrs)).then_some(record)
    }

    /// Gives the attachment its addresses, one of each CIDR, and makes that durable. An attachment
    /// that has fitting ones already keeps them, be it that its interface alone knows.
    pub(crate) fn reserve(
        &mut self,
        claim: Claim<'_>,
        supply: &Supply<'_>,
    ) -> Result<Record, Failure> {
        let attachment = claim.attachment;
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
                return self.remember(claim, addresses);
            }
            _ => {}
        }
        let recorded: HashSet<IpAddr> = self
            .records
            .iter()
            .filter(|(other, _)| **other != name)
            .flat_map(|(_, record)| record.iter().flat_map(|record| &record.addresses))
            .copied()
            .collect();
        let is_free = |address: &IpAddr| !recorded.contains(address);
        if fits(supply.own, supply.cidrs) && supply.own.iter().all(is_free) {
            return self.remember(claim, supply.own.to_vec());
        }
        let taken: HashSet<IpAddr> = recorded
            .into_iter()
            .chain(supply.present.to_vec())
            .collect();
        let mut chosen = Vec::new();
        for cidr in supply.cidrs {
            let address = addresses::choose(cidr, &taken, &self.released, self.moment.now);
            chosen.push(address.ok_or_else(|| self.full(cidr, supply))?);
        }
        self.remember(claim, chosen)
    }

    /// Makes durable, as of this moment, which addresses an attachment has. One that has had them
    /// for long is written again: it must not count as abandoned before its interface is there.
    fn remember(&mut self, claim: Claim<'_>, addresses: Vec<IpAddr>) -> Result<Record, Failure> {
        let name = claim.attachment.host_name();
        let record = Record {
            schema: RECORD_SCHEMA.to_owned(),
            network: claim.network.to_owned(),
            attachment: claim.attachment.clone(),
            addresses,
            destinations: claim.destinations,
            mac: claim.mac,
            sandbox: claim.sandbox,
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
        let Some(record) = self.records.get(host_name) else {
            return Ok(false);
        };
        let freed = record.clone().map(|record| record.addresses);
        let freed = freed.unwrap_or_default();
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
        self.records.remove(host_name);
        Ok(true)
    }

    /// Writes and removes a file as large as any of a ledger, so that whoever asks whether an ADD
    /// can work isn't told so by a disk that refuses.
    pub(crate) fn probe(&self) -> Result<(), Failure> {
        let written = self.folder.write(PROBE, &[b' '; PROBE_BYTES]);
        let done = written.and_then(|()| self.folder.remove(PROBE));
        done.map_err(|cause| failed(self.folder.path(), "written", &cause))
    }

    /// The attachments that are known, by the names of their node's ends; `None` where the disk
    /// has spoiled the record of an interface that exists.
    pub(crate) fn records(&self) -> impl Iterator<Item = (&str, Option<&Record>)> {
        self.records
            .iter()
            .map(|(name, record)| (name.as_str(), record.as_ref()))
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
    fn repair(&mut self, interfaces: &[String]) {
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
            if let Err(failure) = self.release(&name) {
                warn(&format!("{name} is left for later: {failure}"));
            }
        }
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

/// Whether the ledger still says so of an attachment: ADD asks once its interface is there, since
/// a sandbox may have gone meanwhile, and then somebody else may have freed the addresses.
pub(crate) fn still_holds(path: &Path, record: &Record) -> Result<bool, Failure> {
    let folder = Folder::open(path, is_content).map_err(|cause| failed(path, "opened", &cause))?;
    let name = record.attachment.host_name();
    let bytes = match folder.read(&format!("{name}{RECORD_SUFFIX}")) {
        Ok(bytes) => bytes,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(cause) => return Err(failed(path, "read", &cause)),
    };
    Ok(serde_json::from_slice(&bytes).is_ok_and(|present: Record| present == *record))
}

fn failed(path: &Path, what: &str, cause: &io::Error) -> Failure {
    const EIO: i32 = 5;
    let next = match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some("make room there"),
        io::ErrorKind::ReadOnlyFilesystem => Some("mount it writable"),
        _ if cause.raw_os_error() == Some(EIO) => Some("look after that disk"),
        _ => None,
    };
    let sentence = format!("the ledger {} cannot be {what}: {cause}", path.display());
    match next {
        Some(next) => Failure::of_storage(Code::Ledger, format!("{sentence}; {next}")),
        None => Failure::new(Code::Ledger, sentence),
    }
}

#[cfg(test)]
mod tests;
