//! What exists outside of this process and must be gone when it ends.
//!
//! Namespaces, processes and folders are entered when they are made and struck out when their
//! owner is dropped. A signal tears down what is left; what a killed run left behind is found by
//! the process id in its name and removed by the next run.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context;

use crate::sys;
use crate::unit;
use crate::wait;

/// Every namespace of every lab starts with this; process id, lab number and name follow.
pub const NAMESPACE_PREFIX: &str = "pmlab-";

/// Every folder of every running lab starts with this inside the temporary folder.
pub const FOLDER_PREFIX: &str = "podmesh-lab-";

/// The same of the crates' own tests, which end what they made when they fail, and not when they are killed.
const NAMESPACES_OF_TESTS: [&str; 3] = ["pmc", "pmd", "pmk"];

/// Their folders, inside the temporary one.
const FOLDERS_OF_TESTS: [&str; 7] = [
    "meshctl-test-",
    "pmc",
    "pmd",
    "podmesh-meshd-",
    "podmesh-program-",
    "podmesh-store-",
    "podmesh-wire-",
];

/// Where `ip netns` keeps the names.
pub const NAMESPACE_FOLDER: &str = "/run/netns";

static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    namespaces: BTreeSet::new(),
    processes: BTreeSet::new(),
    folders: BTreeSet::new(),
});

/// Set while the teardown runs, so that nothing new is started behind its back.
static CLOSING: AtomicBool = AtomicBool::new(false);

#[derive(Debug)]
struct Registry {
    namespaces: BTreeSet<String>,
    processes: BTreeSet<u32>,
    folders: BTreeSet<PathBuf>,
}

/// Something that must not outlive this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    Namespace(String),
    Process(u32),
    Folder(PathBuf),
}

/// Notes down an entry before or right after the thing is made.
pub(crate) fn enter(entry: Entry) {
    if CLOSING.load(Ordering::SeqCst) {
        // The signal thread is removing everything and ends the process in a moment.
        loop {
            thread::park();
        }
    }
    let mut registry = lock();
    match entry {
        Entry::Namespace(name) => registry.namespaces.insert(name),
        Entry::Process(pid) => registry.processes.insert(pid),
        Entry::Folder(path) => registry.folders.insert(path),
    };
}

/// Strikes an entry out after its owner removed the thing.
pub(crate) fn strike_out(entry: &Entry) {
    let mut registry = lock();
    match entry {
        Entry::Namespace(name) => registry.namespaces.remove(name),
        Entry::Process(pid) => registry.processes.remove(pid),
        Entry::Folder(path) => registry.folders.remove(path),
    };
}

/// A number for the next lab of this process.
#[must_use]
pub fn next_lab_number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Makes the folder of the lab with this number.
///
/// # Errors
///
/// If the temporary folder can't be written.
pub fn new_folder(number: u32) -> anyhow::Result<PathBuf> {
    let name = format!("{FOLDER_PREFIX}{}-{number}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    enter(Entry::Folder(folder.clone()));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// Removes a folder that [`new_folder`] has made.
pub fn delete_folder(folder: &Path) {
    // What can't be removed now is removed by the next run.
    let _ = fs::remove_dir_all(folder);
    strike_out(&Entry::Folder(folder.to_owned()));
}

/// Prepares the process for labs: signals tear down, leftovers of dead runs are removed.
pub fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        remove_leftovers();
        watch_signals();
    });
}

/// Removes everything that this process has entered: processes first, then namespaces, folders.
pub fn tear_down() {
    CLOSING.store(true, Ordering::SeqCst);
    let registry = lock();
    for pid in &registry.processes {
        // A process that is gone already is as good.
        let _ = sys::kill(*pid, libc::SIGKILL);
    }
    // A person may have started some in there, too.
    end_processes_inside(registry.namespaces.iter());
    for name in &registry.namespaces {
        delete_namespace(name);
    }
    for folder in &registry.folders {
        let _ = fs::remove_dir_all(folder);
    }
}

/// Removes what runs that no longer live have left behind, labs and the crates' tests, and returns the names.
///
/// Processes are ended only if they live inside such a namespace.
pub fn remove_leftovers() -> Vec<String> {
    let of_dead = |folder: &Path, own: &str, others: &[&str]| -> Vec<String> {
        let prefixes = std::iter::once(&own).chain(others);
        prefixes
            .flat_map(|prefix| names_of_dead_runs(folder, prefix))
            .collect()
    };
    let folder = Path::new(NAMESPACE_FOLDER);
    let namespaces = of_dead(folder, NAMESPACE_PREFIX, &NAMESPACES_OF_TESTS);
    end_processes_inside(namespaces.iter());
    for name in &namespaces {
        delete_namespace(name);
    }
    let folders = of_dead(&std::env::temp_dir(), FOLDER_PREFIX, &FOLDERS_OF_TESTS);
    for folder in &folders {
        let _ = fs::remove_dir_all(std::env::temp_dir().join(folder));
    }
    namespaces.into_iter().chain(folders).collect()
}

/// Process ids of living runs that hold namespaces.
pub fn living_runs() -> BTreeSet<u32> {
    names(Path::new(NAMESPACE_FOLDER))
        .filter_map(|name| run_of(&name, NAMESPACE_PREFIX))
        .filter(|pid| is_alive(*pid))
        .collect()
}

/// Names of the namespaces that the run with this process id holds.
pub fn namespaces_of(run: u32) -> Vec<String> {
    let mut found: Vec<String> = names(Path::new(NAMESPACE_FOLDER))
        .filter(|name| run_of(name, NAMESPACE_PREFIX) == Some(run))
        .collect();
    found.sort();
    found
}

/// Asks a living run to end with SIGTERM and waits until its namespaces are gone.
///
/// # Errors
///
/// If it does not end within ten seconds.
pub fn end_run(run: u32) -> anyhow::Result<()> {
    sys::kill(run, libc::SIGTERM)?;
    wait::until(
        &format!("run {run} to end"),
        Duration::from_secs(10),
        || {
            let namespaces = namespaces_of(run).len();
            let folders = names(&std::env::temp_dir())
                .filter(|name| run_of(name, FOLDER_PREFIX) == Some(run))
                .count();
            let gone = namespaces + folders == 0 || !is_alive(run);
            Ok(if gone {
                wait::Now(())
            } else {
                wait::NotYet(format!(
                    "{namespaces} namespaces and {folders} folders are left"
                ))
            })
        },
    )
}

/// Deletes the name of a namespace, and the unit that is named after it; the namespace goes with
/// its last user.
pub(crate) fn delete_namespace(name: &str) {
    unit::forget(name);
    let quiet = Command::new("ip")
        .args(["netns", "delete", name])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    // Whoever else removed it has done our work.
    drop(quiet);
}

fn lock() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the thread that ends this process cleanly on SIGINT, SIGTERM and SIGHUP.
fn watch_signals() {
    let Ok(mut signals) = sys::termination_signals() else {
        return;
    };
    thread::spawn(move || {
        let mut signal = [0];
        if signals.read_exact(&mut signal).is_ok() {
            tear_down();
            sys::die_of(signal[0].into());
        }
    });
}

fn names_of_dead_runs(folder: &Path, prefix: &str) -> Vec<String> {
    names(folder)
        .filter(|name| run_of(name, prefix).is_some_and(|pid| !is_alive(pid)))
        .collect()
}

fn names(folder: &Path) -> impl Iterator<Item = String> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

/// The process id in a name such as `pmlab-4711-1-home`.
fn run_of(name: &str, prefix: &str) -> Option<u32> {
    name.strip_prefix(prefix)?.split('-').next()?.parse().ok()
}

fn is_alive(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

fn namespace_inode(name: &str) -> Option<u64> {
    Some(
        fs::metadata(Path::new(NAMESPACE_FOLDER).join(name))
            .ok()?
            .ino(),
    )
}

/// Ends all processes that live inside of these namespaces, but this one.
fn end_processes_inside<'a>(namespaces: impl Iterator<Item = &'a String>) {
    let inodes: BTreeSet<u64> = namespaces
        .filter_map(|name| namespace_inode(name))
        .collect();
    if inodes.is_empty() {
        return;
    }
    for pid in processes_inside(&inodes) {
        if pid != std::process::id() {
            let _ = sys::kill(pid, libc::SIGKILL);
        }
    }
}

fn processes_inside(inodes: &BTreeSet<u64>) -> Vec<u32> {
    names(Path::new("/proc"))
        .filter_map(|name| name.parse().ok())
        .filter(|pid: &u32| {
            fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|metadata| inodes.contains(&metadata.ino()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_run_is_read_from_a_name() {
        assert_eq!(run_of("pmlab-4711-1-home-1", NAMESPACE_PREFIX), Some(4711));
        assert_eq!(run_of("pmlab-home", NAMESPACE_PREFIX), None);
        assert_eq!(run_of("other-4711-1", NAMESPACE_PREFIX), None);
    }
}
