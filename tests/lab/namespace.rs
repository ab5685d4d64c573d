//! Throw-away network namespaces with names that say whose they are.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow};

use crate::process;
use crate::registry::{self, Entry, NAMESPACE_FOLDER, NAMESPACE_PREFIX};
use crate::sys;

/// One network namespace, deleted when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes the namespace `what` of the lab with this number; its loopback is up.
    ///
    /// # Errors
    ///
    /// If the kernel or `ip` refuses, for instance without root.
    pub fn create(lab: u32, what: &str) -> Result<Self> {
        let name = Self::name_of(lab, what);
        registry::enter(Entry::Namespace(name.clone()));
        let namespace = Self { name };
        process::succeed(
            Command::new("ip").args(["netns", "add", &namespace.name]),
            b"",
        )
        .context("cannot make a network namespace, which needs root")?;
        namespace.ip("link set lo up")?;
        // Lets every program send pings without a raw socket.
        namespace.sysctl("net.ipv4.ping_group_range", "0 2147483647")?;
        Ok(namespace)
    }

    /// The name of the namespace `what` of the lab with this number.
    pub(crate) fn name_of(lab: u32, what: &str) -> String {
        format!("{NAMESPACE_PREFIX}{}-{lab}-{what}", std::process::id())
    }

    /// The name that `ip netns` knows it by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        Path::new(NAMESPACE_FOLDER).join(&self.name)
    }

    /// A command that will run inside. Its process id is the one of the program itself.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .arg("--")
            .arg(program);
        command
    }

    /// Runs a program inside to its end and returns what it printed.
    ///
    /// # Errors
    ///
    /// If the program is missing, fails, or takes longer than [`process::SHORT`].
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let (program, arguments) = words.split_first().context("no program named")?;
        process::succeed(self.command(program).args(arguments), b"")
    }

    /// Runs lines of `ip` commands inside, all or an error.
    ///
    /// # Errors
    ///
    /// With the line that was refused.
    pub fn ip(&self, lines: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["-netns", &self.name, "-batch", "-"]);
        process::succeed(&mut command, lines.as_bytes()).with_context(|| lines.to_owned())?;
        Ok(())
    }

    /// Loads rules in nft's language inside.
    ///
    /// # Errors
    ///
    /// If `nft` refuses them; nothing of them is loaded then.
    pub fn nft(&self, rules: &str) -> Result<()> {
        process::succeed(self.command("nft").args(["-f", "-"]), rules.as_bytes())
            .with_context(|| rules.to_owned())?;
        Ok(())
    }

    /// Sets a network sysctl inside, named with dots; a dot in an interface name is a slash.
    ///
    /// # Errors
    ///
    /// If there is no such switch or the value is refused.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let swapped: String = name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect();
        let file = Path::new("/proc/sys").join(swapped);
        self.inside(|| fs::write(&file, value))?
            .with_context(|| format!("cannot set {name} to {value} in {}", self.name))
    }

    /// Runs a closure on a thread inside. Sockets that it opens stay in this namespace.
    ///
    /// # Errors
    ///
    /// If the namespace is gone, or the closure panics.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file =
            File::open(self.path()).with_context(|| format!("namespace {} is gone", self.name))?;
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                sys::enter_net_namespace(&file)?;
                Ok::<T, std::io::Error>(work())
            });
            match inside.join() {
                Ok(result) => result.with_context(|| format!("cannot enter {}", self.name)),
                Err(_) => Err(anyhow!("a thread inside {} panicked", self.name)),
            }
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        registry::delete_namespace(&self.name);
        registry::strike_out(&Entry::Namespace(self.name.clone()));
    }
}
