//! Programs that the lab starts: bounded in time, killed by process id, never by name.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::registry::{self, Entry};
use crate::sys;
use crate::unit::Unit;
use crate::wait;

/// Seconds that a short program of the lab may take.
pub const SHORT: Duration = Duration::from_secs(30);

/// A long-running program, killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: u32,
    body: Body,
    log: PathBuf,
}

/// Who holds the program.
#[derive(Debug)]
enum Body {
    /// This process.
    Child(Mutex<Child>),
    /// systemd.
    Unit(Unit),
}

impl Process {
    /// Starts `command` with both outputs appended to the file `log`.
    ///
    /// # Errors
    ///
    /// If the log can't be written or the program can't be started.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let pid = child.id();
        registry::enter(Entry::Process(pid));
        Ok(Self {
            name: name.to_owned(),
            pid,
            body: Body::Child(Mutex::new(child)),
            log: log.to_owned(),
        })
    }

    /// Takes over the program of a unit that has been started.
    pub(crate) fn of_unit(name: &str, unit: Unit, log: &Path) -> Result<Self> {
        let pid = unit.pid()?;
        registry::enter(Entry::Process(pid));
        Ok(Self {
            name: name.to_owned(),
            pid,
            body: Body::Unit(unit),
            log: log.to_owned(),
        })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The file with everything that the program printed.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How the program ended, if it has.
    pub fn ended(&self) -> Option<ExitStatus> {
        match &self.body {
            Body::Child(child) => lock(child).try_wait().ok().flatten(),
            Body::Unit(unit) => unit.ended(),
        }
    }

    /// Ends the program at once, as `kill -9` does, and returns when it is gone.
    pub fn kill(&self) {
        // All of it fails only for a process that is gone, which is what is wanted.
        match &self.body {
            Body::Child(child) => {
                let mut child = lock(child);
                let _ = child.kill();
                let _ = child.wait();
            }
            Body::Unit(unit) => {
                let _ = unit.signal(libc::SIGKILL);
                let _ = self.wait_for_end(SHORT);
            }
        }
    }

    /// Sends a signal to the program.
    ///
    /// # Errors
    ///
    /// If the program has ended.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let refused = || format!("cannot signal {}", self.name);
        // The lock keeps the process unreaped, so that its id can't belong to somebody else.
        let mut child = match &self.body {
            Body::Child(child) => lock(child),
            Body::Unit(unit) => return unit.signal(signal).with_context(refused),
        };
        if child.try_wait()?.is_some() {
            bail!(
                "{} has ended already, see {}",
                self.name,
                self.log.display()
            );
        }
        sys::kill(self.pid, signal).with_context(refused)
    }

    /// Asks the program to end with SIGTERM and waits for it.
    ///
    /// # Errors
    ///
    /// If it still runs after `patience`; it is killed then.
    pub fn stop(&self, patience: Duration) -> Result<ExitStatus> {
        self.signal(libc::SIGTERM)?;
        let ended = self.wait_for_end(patience);
        if ended.is_err() {
            self.kill();
        }
        ended
    }

    fn wait_for_end(&self, patience: Duration) -> Result<ExitStatus> {
        wait::until(&format!("{} to stop", self.name), patience, || {
            match self.ended() {
                Some(status) => Ok(wait::Now(status)),
                None => Ok(wait::NotYet(format!(
                    "it still runs, see {}",
                    self.log.display()
                ))),
            }
        })
    }

    /// The last `lines` lines that the program printed.
    pub fn last_words(&self, lines: usize) -> String {
        match &self.body {
            Body::Child(_) => last_lines(&self.log, lines),
            Body::Unit(unit) => unit.last_words(lines),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        registry::strike_out(&Entry::Process(self.pid));
    }
}

fn lock(child: &Mutex<Child>) -> MutexGuard<'_, Child> {
    child.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The last `lines` lines of a text file, or an empty text.
pub fn last_lines(file: &Path, lines: usize) -> String {
    let text = String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..)
        .unwrap_or_default()
        .join("\n")
}

/// Runs a short program to its end and returns what it printed.
///
/// # Errors
///
/// If it can't be started or takes longer than `patience`; a bad exit code is not an error here.
pub fn output(command: &mut Command, input: &[u8], patience: Duration) -> Result<Output> {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(if input.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {shown}"))?;
    let entry = Entry::Process(child.id());
    registry::enter(entry.clone());
    let stdin = child.stdin.take();
    let stdout = child.stdout.take();
    let stderr = child.stderr.take();
    let result = thread::scope(|scope| {
        scope.spawn(move || {
            // A program that does not want its input closes the pipe; its exit code will tell.
            stdin.map(|mut pipe| pipe.write_all(input))
        });
        let stdout = scope.spawn(|| read_all(stdout));
        let stderr = scope.spawn(|| read_all(stderr));
        let status = wait_or_kill(&mut child, patience);
        let stdout = stdout.join().unwrap_or_default();
        let stderr = stderr.join().unwrap_or_default();
        (status, stdout, stderr)
    });
    registry::strike_out(&entry);
    let (status, stdout, stderr) = result;
    let said = String::from_utf8_lossy(&stderr);
    let status = status.with_context(|| format!("{shown}: {}", said.trim()))?;
    Ok(Output {
        status,
        stdout,
        stderr,
    })
}

/// Runs a short program that must succeed and returns its standard output.
///
/// # Errors
///
/// If it can't be started, takes too long, or ends with a bad exit code.
pub fn succeed(command: &mut Command, input: &[u8]) -> Result<String> {
    let output = output(command, input, SHORT)?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{command:?}: {}: {}{}",
            output.status,
            stderr.trim(),
            stdout.trim()
        );
    }
    Ok(stdout)
}

fn read_all(pipe: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        // What came before an error is still worth showing.
        let _ = pipe.read_to_end(&mut bytes);
    }
    bytes
}

fn wait_or_kill(child: &mut Child, patience: Duration) -> Result<ExitStatus> {
    let deadline = Instant::now() + patience;
    let mut nap = Duration::from_micros(500);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            bail!("did not end within {patience:?}");
        }
        thread::sleep(nap);
        nap = (nap * 2).min(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_hangs_is_ended_with_a_clear_error() {
        let error = output(
            Command::new("sleep").arg("60"),
            b"",
            Duration::from_millis(50),
        )
        .expect_err("sleep must not end by itself");
        assert!(
            format!("{error:#}").contains("did not end within 50ms"),
            "{error:#}"
        );
    }

    #[test]
    fn input_is_handed_over_and_output_comes_back() {
        let text = succeed(&mut Command::new("cat"), b"hello").expect("cat works");
        assert_eq!(text, "hello");
    }
}
