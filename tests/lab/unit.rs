//! Programs of the product as systemd runs them: the shipped unit and a drop-in for the lab.
//!
//! With `LAB_UNITS` in the environment every meshd and every planet of a lab is a unit of its own,
//! named like the namespace of its host. The unit is the installed `meshd.service` or
//! `planet.service` with all its filters; the drop-in moves it into the lab's namespace and folders,
//! leaves a program that the lab has killed dead, and lets a forbidden system call kill its program,
//! so that none goes unseen.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

use crate::namespace::Namespace;
use crate::process::{self, Process};

/// Where systemd looks for units that a boot wipes.
const UNITS: &str = "/run/systemd/system";

/// What `StateDirectory=` is relative to.
const STATES: &str = "/var/lib";

/// A program of the product on a host of the lab.
#[derive(Debug)]
pub(crate) struct Service<'a> {
    /// Name of the shipped unit, without its ending.
    pub(crate) shipped: &'a str,
    /// What messages call it.
    pub(crate) title: &'a str,
    /// Where it runs.
    pub(crate) namespace: &'a Namespace,
    /// Its state folder.
    pub(crate) state: &'a Path,
    /// The file for everything that it prints; a unit's output goes to the journal.
    pub(crate) log: &'a Path,
    /// The program and its arguments.
    pub(crate) words: Vec<OsString>,
}

/// A unit of the lab that has been started.
#[derive(Debug)]
pub(crate) struct Unit {
    name: String,
}

/// Whether programs run as units.
pub(crate) fn wanted() -> bool {
    std::env::var_os("LAB_UNITS").is_some()
}

/// The runtime folder of the host with this namespace, if it is systemd that makes it.
pub(crate) fn runtime_dir(namespace: &str) -> Option<PathBuf> {
    wanted().then(|| Path::new("/run").join(namespace))
}

impl Service<'_> {
    /// Starts it, as a unit if that is wanted.
    ///
    /// # Errors
    ///
    /// If it can't be started, or ends before it says that it is ready.
    pub(crate) fn start(&self) -> Result<Process> {
        if wanted() {
            let unit = self.start_unit();
            let unit = unit.with_context(|| format!("cannot start {} as a unit", self.title))?;
            return Process::of_unit(self.title, unit, self.log);
        }
        let (program, arguments) = self.words.split_first().context("no program named")?;
        let mut command = self.namespace.command(program);
        command.args(arguments);
        Process::start(self.title, command, self.log)
    }

    fn start_unit(&self) -> Result<Unit> {
        let shipped = self.shipped;
        let file = properties(&format!("{shipped}.service"), &["FragmentPath"])?.remove(0);
        let text = fs::read_to_string(&file)
            .with_context(|| format!("{shipped}.service is not installed ({file:?})"))?;
        let unit = Unit {
            name: self.namespace.name().to_owned(),
        };
        let (file, folder) = files(&unit.name);
        fs::create_dir_all(&folder)?;
        fs::write(file, text)?;
        fs::write(folder.join("lab.conf"), self.drop_in()?)?;
        systemctl(&["daemon-reload"])?;
        let started = systemctl(&["start", &unit.name]);
        started.with_context(|| unit.last_words(5))?;
        Ok(unit)
    }

    /// The drop-in. Whatever narrows the sandbox stays as it is shipped; the modes are said again
    /// because systemd forgets them with the folders.
    fn drop_in(&self) -> Result<String> {
        let state = self.state.strip_prefix(STATES);
        let state = state
            .with_context(|| format!("a unit's state lies below {STATES}; set TMPDIR to there"))?;
        let words: Vec<String> = self.words.iter().map(quoted).collect::<Result<_>>()?;
        Ok(format!(
            "[Unit]\n\
             ConditionPathExists=\n\
             [Service]\n\
             ExecStart=\n\
             ExecStart={command}\n\
             NetworkNamespacePath={namespace}\n\
             StateDirectory=\n\
             StateDirectory={state}\n\
             StateDirectoryMode=0700\n\
             RuntimeDirectory=\n\
             RuntimeDirectory={name}\n\
             RuntimeDirectoryMode=0750\n\
             Restart=no\n\
             SystemCallErrorNumber=kill\n",
            command = words.join(" "),
            namespace = self.namespace.path().display(),
            state = state.display(),
            name = self.namespace.name(),
        ))
    }
}

impl Unit {
    /// Id of the unit's main process.
    pub(crate) fn pid(&self) -> Result<u32> {
        match properties(&self.name, &["MainPID"])?[0].parse() {
            Ok(0) | Err(_) => bail!("{} has ended: {}", self.name, self.last_words(5)),
            Ok(pid) => Ok(pid),
        }
    }

    /// How its program ended, if it has.
    pub(crate) fn ended(&self) -> Option<ExitStatus> {
        let wanted = ["ActiveState", "ExecMainCode", "ExecMainStatus"];
        let values = properties(&self.name, &wanted).ok()?;
        if !["inactive", "failed"].contains(&values[0].as_str()) {
            return None;
        }
        let status = values[2].parse().unwrap_or_default();
        // An exit by itself has the code 1 (CLD_EXITED); every other one is by a signal.
        let raw = if values[1] == "1" {
            status << 8
        } else {
            status
        };
        Some(ExitStatus::from_raw(raw))
    }

    /// Sends a signal to its program.
    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        let signal = signal.to_string();
        systemctl(&["kill", "--kill-whom=main", "--signal", &signal, &self.name])
    }

    /// The last `lines` lines of its journal.
    pub(crate) fn last_words(&self, lines: usize) -> String {
        let mut command = Command::new("journalctl");
        command.args(["--quiet", "--no-pager", "--output=cat", "--unit"]);
        command.arg(&self.name).arg(format!("--lines={lines}"));
        process::succeed(&mut command, b"").unwrap_or_default()
    }
}

/// Forgets the unit of a host that is gone, if it had one.
pub(crate) fn forget(namespace: &str) {
    let (file, folder) = files(namespace);
    if !file.exists() {
        return;
    }
    // What can't be removed is gone with the next boot. A teardown after a signal comes by here, too,
    // so nothing of it is entered into the registry.
    let _ = fs::remove_dir_all(folder);
    let _ = fs::remove_file(file);
    for words in [&["daemon-reload"][..], &["reset-failed", namespace]] {
        let mut command = Command::new("systemctl");
        let _ = command.args(words).stderr(Stdio::null()).status();
    }
}

/// The unit's file and the folder of its drop-ins.
fn files(name: &str) -> (PathBuf, PathBuf) {
    let file = |ending: &str| Path::new(UNITS).join(format!("{name}.service{ending}"));
    (file(""), file(".d"))
}

fn systemctl(words: &[&str]) -> Result<()> {
    process::succeed(Command::new("systemctl").args(words), b"").map(drop)
}

/// The values of these properties of a unit, in this order.
fn properties(unit: &str, names: &[&str]) -> Result<Vec<String>> {
    let mut command = Command::new("systemctl");
    command.args(["show", unit]);
    command.args(names.iter().flat_map(|name| ["--property", name]));
    let printed = process::succeed(&mut command, b"")?;
    let value = |name: &&str| {
        let mut lines = printed.lines().filter_map(|line| line.split_once('='));
        let (_, value) = lines.find(|(key, _)| key == name)?;
        Some(value.to_owned())
    };
    let values: Option<Vec<String>> = names.iter().map(value).collect();
    values.with_context(|| format!("{unit} lacks one of {names:?}: {printed}"))
}

/// A word of a command line as a unit file wants it, systemd.syntax(7) and systemd.service(5).
fn quoted(word: &OsString) -> Result<String> {
    let word = word.to_str().context("a word that is not UTF-8")?;
    let mut text = String::from('"');
    for letter in word.chars() {
        match letter {
            '"' | '\\' => text.push('\\'),
            '%' | '$' => text.push(letter),
            _ => {}
        }
        text.push(letter);
    }
    text.push('"');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_reaches_the_program_as_it_is() {
        let word = quoted(&OsString::from(r#"a b "c" \d 5% $HOME"#)).expect("it is UTF-8");
        assert_eq!(word, r#""a b \"c\" \\d 5%% $$HOME""#);
    }
}
