//! A namespace, two folders and a meshd in them.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Node {
    namespace: String,
    folder: PathBuf,
}

impl Node {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("pmd{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(&namespace);
        fs::create_dir(&folder).expect("a folder for the test");
        let node = Self { namespace, folder };
        succeed(Command::new("ip").args(["netns", "add", &node.namespace]));
        node.configure("");
        node
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.folder.clone()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes the configuration; nothing outside the folder is touched by it.
    pub(crate) fn configure(&self, text: &str) {
        let text = format!("subnet-env = \"\"\n{text}");
        fs::write(self.path("meshd.toml"), text).expect("a configuration");
    }

    /// Starts meshd and waits until it answers.
    pub(crate) fn start(&self) -> Meshd {
        let mut meshd = self.spawn(&[]);
        self.wait_for_answers(&mut meshd);
        meshd
    }

    fn wait_for_answers(&self, meshd: &mut Meshd) {
        let start = Instant::now();
        while UnixStream::connect(self.path("run/meshd.sock")).is_err() {
            let ended = meshd.child.try_wait().expect("a process").is_some();
            let log = || fs::read_to_string(self.path("log")).unwrap_or_default();
            assert!(
                !ended && start.elapsed() < PATIENCE,
                "meshd doesn't start: {}",
                log()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts meshd in place of the one that runs, and waits until that one has ended.
    pub(crate) fn replace(&self, mut before: Meshd) -> Meshd {
        let mut heir = self.spawn(&["--replace"]);
        wait_until(PATIENCE, || {
            let failed = heir.child.try_wait().expect("a process").is_some();
            assert!(
                !failed,
                "{}",
                fs::read_to_string(self.path("log")).unwrap_or_default()
            );
            before.child.try_wait().expect("a process").is_some()
        });
        assert_eq!(before.wait(), Some(0));
        heir
    }

    fn spawn(&self, arguments: &[&str]) -> Meshd {
        self.spawn_command(self.command(arguments))
    }

    fn spawn_command(&self, mut command: Command) -> Meshd {
        let child = command.stderr(self.open_log()).spawn();
        Meshd {
            child: child.expect("a process"),
        }
    }

    fn open_log(&self) -> fs::File {
        let mut options = fs::File::options();
        let log = options.create(true).append(true);
        log.open(self.path("log")).expect("a log")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Starts meshd as a service manager does: with a socket that hears what it says of itself, and with
    /// the journal behind standard error.
    pub(crate) fn start_as_service(&self) -> (Meshd, Ear) {
        let ear = Ear::new(&self.path("notify"));
        let log = self.open_log().metadata().expect("a log");
        let mut command = self.command(&[]);
        command
            .env("NOTIFY_SOCKET", self.path("notify"))
            .env("RUNTIME_DIRECTORY", self.path(""))
            .env("JOURNAL_STREAM", format!("{}:{}", log.dev(), log.ino()));
        (self.spawn_command(command), ear)
    }

    /// Starts meshd where its state folder can't be written, and waits until it answers.
    pub(crate) fn start_read_only(&self) -> Meshd {
        let meshd = self.command(&[]);
        let state = self.path("state");
        let state = state.to_str().expect("text");
        let words = format!(
            "mount --bind {state} {state} && mount -o remount,bind,ro {state} && exec \"$@\""
        );
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation=private", "sh", "-c", &words, "sh"])
            .arg(meshd.get_program())
            .args(meshd.get_args())
            .stdin(Stdio::null());
        let mut meshd = self.spawn_command(command);
        self.wait_for_answers(&mut meshd);
        meshd
    }

    /// Has a meshd with too few descriptors ask for everything; it gets it, fails, and ends.
    pub(crate) fn fail_to_replace(&self) {
        let meshd = self.command(&["--replace"]);
        let mut limited = Command::new("prlimit");
        limited.arg("--nofile=50").arg(meshd.get_program());
        let output = limited.args(meshd.get_args()).output().expect("a process");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        // The other one begins anew.
        wait_until(PATIENCE, || {
            UnixStream::connect(self.path("run/meshd.sock")).is_ok()
        });
    }

    /// Runs meshd until it ends by itself: exit code and what it said.
    pub(crate) fn run_to_end(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.command(arguments).output().expect("a process");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    pub(crate) fn ip(&self, arguments: &[&str]) -> String {
        succeed(
            Command::new("ip")
                .args(["-n", &self.namespace])
                .args(arguments),
        )
    }

    /// Runs a command on the node.
    pub(crate) fn run(&self, command: &[&str]) -> String {
        let mut inside = Command::new("ip");
        succeed(
            inside
                .args(["netns", "exec", &self.namespace])
                .args(command),
        )
    }

    pub(crate) fn ask(&self, request: &str) -> String {
        ask(&self.path("run/meshd.sock"), request)
    }

    /// Names and contents of everything that meshd keeps.
    pub(crate) fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let entries = fs::read_dir(self.path("state"))
            .expect("a folder")
            .flatten();
        let mut files: Vec<_> = entries
            .map(|entry| (entry.path(), fs::read(entry.path()).expect("a file")))
            .collect();
        files.sort();
        files
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args([
            "netns",
            "exec",
            &self.namespace,
            env!("CARGO_BIN_EXE_meshd"),
        ]);
        if !arguments.contains(&"--config") {
            command.arg("--config").arg(self.path("meshd.toml"));
        }
        command.arg("--state-dir").arg(self.path("state"));
        command.arg("--runtime-dir").arg(self.path("run"));
        command.args(arguments).stdin(Stdio::null());
        command
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.namespace])
            .status();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The notification socket of a service manager (sd_notify(3)).
pub(crate) struct Ear(UnixDatagram);

impl Ear {
    fn new(path: &Path) -> Self {
        let _ = fs::remove_file(path);
        let socket = UnixDatagram::bind(path).expect("a socket");
        let patience = socket.set_read_timeout(Some(PATIENCE));
        patience.expect("a socket with patience");
        Self(socket)
    }

    /// The next message.
    pub(crate) fn hear(&self) -> String {
        let mut bytes = [0; 4_096];
        let length = self.0.recv(&mut bytes).expect("a message in time");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }
}

pub(crate) struct Meshd {
    child: Child,
}

impl Meshd {
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        succeed(Command::new("kill").args(["-s", name, &pid]));
    }

    /// KiB that it holds.
    pub(crate) fn memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(path).expect("a running process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.expect("a figure").parse().expect("a number")
    }

    /// Time of a processor that it has taken so far.
    pub(crate) fn worked(&self) -> Duration {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = fs::read_to_string(path).expect("a running process");
        // Behind the name; the two figures are in hundredths of a second.
        let figures = stat.rsplit(") ").next().expect("figures");
        let ticks = figures.split(' ').skip(11).take(2);
        let ticks: u64 = ticks
            .map(|tick| tick.parse::<u64>().expect("a number"))
            .sum();
        Duration::from_millis(ticks * 10)
    }

    pub(crate) fn wait(&mut self) -> Option<i32> {
        self.child.wait().expect("an ended process").code()
    }
}

impl Drop for Meshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One request and its one answer.
pub(crate) fn ask(socket: &Path, request: &str) -> String {
    ask_if_open(socket, request).expect("a connection and an answer")
}

/// The same where the socket may be closed to this process, or gone.
pub(crate) fn ask_if_open(socket: &Path, request: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    // A refusal may come before the request is taken.
    let _ = writeln!(stream, "{request}");
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(answer)
}

pub(crate) fn wait_until(patience: Duration, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < patience, "not so within {patience:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().expect("a process");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {words}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
