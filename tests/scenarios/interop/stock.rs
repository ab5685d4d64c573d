//! A machine of the lab that runs somebody else's WireGuard in place of meshd.

use std::cell::RefCell;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use podmesh_lab::namespace::Namespace;
use podmesh_lab::process::{self, Process};
use podmesh_lab::{Node, wait};
use podmesh_proto::local_api::StatusView;

const PORT: u16 = 51_820;

/// What a stock machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    /// Debian's.
    WireguardGo,
    /// Cloudflare's.
    Boringtun,
}

impl Program {
    /// Its name in figures.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::WireguardGo => "go",
            Self::Boringtun => "boring",
        }
    }

    fn words(self) -> (PathBuf, &'static [&'static str]) {
        match self {
            Self::WireguardGo => ("wireguard-go".into(), &["--foreground"]),
            Self::Boringtun => {
                let folder =
                    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench/peers/bin");
                let installed = folder.join("boringtun-cli");
                assert!(
                    installed.exists(),
                    "{} is missing; `make peers` installs it",
                    installed.display()
                );
                (installed, &["--foreground", "--disable-drop-privileges"])
            }
        }
    }
}

/// A stock WireGuard machine.
pub(super) struct Stock<'lab> {
    program: Program,
    node: &'lab Node,
    address: &'static str,
    /// The control socket has its name, and all of them are in one folder.
    device: String,
    secret: PathBuf,
    key: String,
    running: RefCell<Option<Process>>,
}

impl<'lab> Stock<'lab> {
    /// Makes a key and starts `wireguard-go` on a machine without meshd.
    pub(super) fn start(node: &'lab Node, address: &'static str) -> Result<Self> {
        Self::of(Program::WireguardGo, node, address)
    }

    /// As [`Self::start`], with this program.
    pub(super) fn of(program: Program, node: &'lab Node, address: &'static str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let device = format!(
            "wg{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let secret = process::succeed(Command::new("wg").arg("genkey"), b"")?;
        let key = process::succeed(Command::new("wg").arg("pubkey"), secret.as_bytes())?;
        let file = node.folder().join("wireguard.key");
        fs::write(&file, &secret)?;
        let stock = Self {
            program,
            node,
            address,
            device,
            secret: file,
            key: key.trim().to_owned(),
            running: RefCell::default(),
        };
        stock.restart()?;
        Ok(stock)
    }

    /// Starts the program anew; what it knew of peers is gone.
    pub(super) fn restart(&self) -> Result<()> {
        self.stop();
        let namespace = self.node.namespace();
        let (program, words) = self.program.words();
        let mut command = namespace.command(&program);
        command.args(words).arg(&self.device);
        let name = self.program.name();
        let log = self.node.folder().join(format!("{name}.log"));
        let process = Process::start(name, command, &log)?;
        let shown = || namespace.run(&["wg", "show", &self.device]);
        wait::until("a stock machine to start", Duration::from_secs(5), || {
            Ok(match shown() {
                Ok(_) => wait::Now(()),
                Err(_) => wait::NotYet(process.last_words(3)),
            })
        })?;
        *self.running.borrow_mut() = Some(process);
        let (device, address) = (&self.device, self.address);
        let secret = self
            .secret
            .to_str()
            .context("the lab's folder is not UTF-8")?;
        self.wg(&["listen-port", &PORT.to_string(), "private-key", secret])?;
        namespace.ip(&format!(
            "address add {address}/32 dev {device}\nlink set {device} mtu 1380 up\n\
             route add 10.77.0.0/16 dev {device} src {address}\n\
             route add 10.42.0.0/16 dev {device} src {address}\n"
        ))
    }

    /// Tells it of a node, and where that is found if it is to speak first.
    pub(super) fn know(&self, node: &Node, found_at: Option<&Node>) -> Result<()> {
        let status: StatusView = serde_json::from_value(node.meshctl_json(&["status"])?)?;
        let own = status.node.context("the node is no member")?;
        let key = own.wireguard.to_string();
        let prefixes = own.addresses.iter().map(|ip| ip.to_string());
        let prefixes = prefixes.chain(own.pod_cidrs.iter().map(|net| net.to_string()));
        let prefixes = prefixes.collect::<Vec<_>>().join(",");
        let mut words = vec!["peer", &key, "allowed-ips", &prefixes];
        let endpoint = found_at.map(|node| format!("{}:{}", node.public_address(), own.port));
        if let Some(endpoint) = &endpoint {
            words.extend(["endpoint", endpoint]);
        }
        self.wg(&words)
    }

    /// Gives it one more address, which is not in its certificate.
    pub(super) fn also_has(&self, address: &str) -> Result<()> {
        let device = &self.device;
        self.node
            .namespace()
            .ip(&format!("address add {address}/32 dev {device}"))
    }

    /// Whether two echoes from this address come back.
    pub(super) fn pings_from(&self, source: &str, target: IpAddr) -> Result<bool> {
        let mut command = self.node.namespace().command("ping");
        command.args([
            "-c",
            "2",
            "-i",
            "0.2",
            "-W",
            "1",
            "-I",
            source,
            &target.to_string(),
        ]);
        let output = process::output(&mut command, b"", process::SHORT)?;
        Ok(String::from_utf8_lossy(&output.stdout).contains(" 0% packet loss"))
    }

    pub(super) fn namespace(&self) -> Arc<Namespace> {
        self.node.namespace()
    }

    pub(super) fn name(&self) -> &str {
        self.node.name()
    }

    pub(super) fn key(&self) -> &str {
        &self.key
    }

    pub(super) fn address(&self) -> &'static str {
        self.address
    }

    /// Where it listens, for whoever can reach it.
    pub(super) fn endpoint(&self) -> String {
        format!("{}:{PORT}", self.node.public_address())
    }

    /// What it says about its peers.
    pub(super) fn shown(&self) -> String {
        let shown = self.node.namespace().run(&["wg", "show", &self.device]);
        shown.unwrap_or_else(|error| format!("{error:#}"))
    }

    fn wg(&self, words: &[&str]) -> Result<()> {
        let set = ["wg", "set", &self.device];
        self.node.namespace().run(&[&set, words].concat()).map(drop)
    }

    fn stop(&self) {
        if let Some(process) = self.running.borrow_mut().take() {
            // It takes its control socket away itself; killed, it would leave it.
            let _ = process.stop(Duration::from_secs(5));
        }
    }
}

impl Drop for Stock<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}
