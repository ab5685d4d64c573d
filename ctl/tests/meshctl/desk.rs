//! A folder of the test, and meshctl run with it as its home.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use podmesh_proto::armor::decode_statement;
use podmesh_proto::network::{Network, RootStatement};
use podmesh_proto::signed::Signed;
use serde_json::Value;

/// A planet's key and address.
pub(crate) const PLANET: &str =
    "abababababababababababababababababababababababababababababababab@198.51.100.1:7077";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A folder that goes away with the test.
pub(crate) struct Desk {
    folder: PathBuf,
}

/// What meshctl said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Desk {
    pub(crate) fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("meshctl-test-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        Self { folder }
    }

    /// A desk with a network `lab`, its root key plain.
    pub(crate) fn with_network() -> Self {
        let desk = Self::new();
        desk.good(&[
            "network",
            "create",
            "lab",
            "--planet",
            PLANET,
            "--no-passphrase",
        ]);
        desk
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The same as text for the command line.
    pub(crate) fn at(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The socket of a fake meshd, which every run of meshctl uses.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path("meshd.sock")
    }

    /// A file of the network `lab`.
    pub(crate) fn lab(&self, name: &str) -> PathBuf {
        self.path(".config/podmesh/lab").join(name)
    }

    /// The verified document of the network `lab`.
    pub(crate) fn network(&self) -> Network {
        Network::from_statement(&statement(&self.lab("network.podmesh"))).unwrap()
    }

    pub(crate) fn write(&self, name: &str, content: &str) -> String {
        let path = self.path(name);
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path);
        file.as_mut()
            .unwrap()
            .write_all(content.as_bytes())
            .unwrap();
        path.display().to_string()
    }

    pub(crate) fn run(&self, words: &[&str]) -> Said {
        self.run_with(words, "")
    }

    pub(crate) fn run_with(&self, words: &[&str], input: &str) -> Said {
        let mut child = Command::new(env!("CARGO_BIN_EXE_meshctl"))
            .args(words)
            .arg("--socket")
            .arg(self.socket())
            .env_clear()
            .env("HOME", &self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // meshctl may end without reading it.
        let _written = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        Said {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs meshctl, which must succeed, and returns its standard output.
    pub(crate) fn good(&self, words: &[&str]) -> String {
        let said = self.run(words);
        assert_eq!(said.code, 0, "{words:?}: {said:?}");
        said.out
    }

    /// The same with `--json`.
    pub(crate) fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.good(&[words, &["--json"]].concat())).unwrap()
    }

    /// Runs meshctl, which must fail with this code, one sentence with these words, and a next step.
    pub(crate) fn refused(&self, words: &[&str], code: i32, expected: &str) {
        let said = self.run(words);
        assert_eq!(said.code, code, "{words:?}: {said:?}");
        assert!(
            said.err.contains(expected),
            "{words:?}: {said:?}, expected '{expected}'"
        );
        assert_eq!(said.out, "", "{words:?}");
        let lines: Vec<&str> = said.err.lines().collect();
        let [.., sentence, next] = lines.as_slice() else {
            panic!("{words:?}: {said:?}");
        };
        assert!(sentence.starts_with("meshctl: "), "{said:?}");
        assert!(next.starts_with("next: "), "{said:?}");
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.folder);
    }
}

/// The statement in an armored file.
pub(crate) fn statement(path: &Path) -> Signed<RootStatement> {
    decode_statement(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Permission bits.
pub(crate) fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
