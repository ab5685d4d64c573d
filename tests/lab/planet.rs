//! A planet: a public host with the real `planet` program on it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::namespace::Namespace;
use crate::node::program;
use crate::process::{self, Process};
use crate::site::{self, Seat};
use crate::unit::{self, Service};
use crate::wait;
use crate::wire::Wire;

/// A planet; its namespace stays when the program is killed.
#[derive(Debug)]
pub struct Planet {
    name: String,
    address: Ipv4Addr,
    namespace: Namespace,
    folder: PathBuf,
    running: Mutex<Option<Arc<Process>>>,
}

impl Planet {
    /// The port that a planet listens on if nothing else is said.
    pub const PORT: u16 = 7077;

    pub(crate) fn build(
        lab: u32,
        name: &str,
        place: (Ipv4Addr, bool, Arc<Wire>),
        folder: &Path,
    ) -> Result<Self> {
        let (address, ipv6, wire) = place;
        let namespace = Namespace::create(lab, name)?;
        namespace.sysctl("net.ipv6.conf.default.accept_dad", "0")?;
        let v6 = ipv6.then(|| site::open_v6(address));
        let seat = Seat {
            v4: address,
            v6,
            public: Some(address),
        };
        site::plug_into_core(&wire, name, &seat, &namespace)
            .with_context(|| format!("cannot build planet {name}"))?;
        let folder = folder.join(name);
        fs::create_dir_all(&folder)?;
        Ok(Self {
            name: name.to_owned(),
            address,
            namespace,
            folder,
            running: Mutex::default(),
        })
    }

    /// The planet's name, which is also the name of its place.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where nodes reach it.
    pub fn endpoint(&self) -> SocketAddr {
        SocketAddr::from((self.address, Self::PORT))
    }

    /// The namespace of its host.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Where it keeps its key and its store.
    pub fn state_dir(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Where it keeps what a reboot wipes.
    pub fn runtime_dir(&self) -> PathBuf {
        unit::runtime_dir(self.namespace.name()).unwrap_or_else(|| self.folder.join("run"))
    }

    /// The log of every planet that ran here.
    pub fn log(&self) -> PathBuf {
        self.folder.join("planet.log")
    }

    /// Makes the planet's key and returns its public half.
    ///
    /// # Errors
    ///
    /// If the program refuses, or prints no key.
    pub fn init(&self) -> Result<String> {
        let mut command = self.command()?;
        command.arg("init").arg("--state-dir").arg(self.state_dir());
        let printed = process::succeed(&mut command, b"")?;
        let key = printed.trim().strip_prefix("planet key: ");
        key.map(str::to_owned)
            .with_context(|| format!("this is no planet's key: {printed}"))
    }

    /// Tells the planet to serve the network of this document.
    ///
    /// # Errors
    ///
    /// If the program refuses.
    pub fn adopt(&self, document: &Path) -> Result<()> {
        let mut command = self.command()?;
        command
            .arg("adopt")
            .arg(document)
            .arg("--state-dir")
            .arg(self.state_dir());
        process::succeed(&mut command, b"").map(drop)
    }

    /// Starts the planet and waits until its port is open.
    ///
    /// # Errors
    ///
    /// If it ends, or does not listen within ten seconds.
    pub fn start(&self) -> Result<()> {
        fs::create_dir_all(self.runtime_dir())?;
        let name = format!("planet {}", self.name);
        let planet = Arc::new(self.launch(&name)?);
        *self.running() = Some(Arc::clone(&planet));
        wait::until(
            &format!("{name} to listen"),
            Duration::from_secs(10),
            || {
                if let Some(status) = planet.ended() {
                    return Ok(wait::Now(Err(status)));
                }
                let open = self.namespace.run(&["ss", "-Hulnp"])?;
                let port = format!(":{} ", Self::PORT);
                Ok(if open.contains(&port) {
                    wait::Now(Ok(()))
                } else {
                    wait::NotYet(open)
                })
            },
        )?
        .map_err(|status| anyhow::anyhow!("{name} ended ({status}): {}", planet.last_words(5)))
    }

    /// Kills the planet with SIGKILL.
    pub fn kill(&self) {
        let running = self.running().take();
        if let Some(running) = running {
            running.kill();
        }
    }

    /// Stops the planet with SIGTERM.
    ///
    /// # Errors
    ///
    /// If it does not run, or takes longer than ten seconds.
    pub fn stop(&self) -> Result<()> {
        let running = self.running().take();
        let running = running.with_context(|| format!("planet {} does not run", self.name))?;
        running.stop(Duration::from_secs(10)).map(drop)
    }

    fn launch(&self, title: &str) -> Result<Process> {
        let state = self.state_dir();
        let words = [
            program("planet")?.into(),
            "run".into(),
            "--state-dir".into(),
            state.clone().into(),
            "--runtime-dir".into(),
            self.runtime_dir().into(),
            "--listen".into(),
            self.endpoint().to_string().into(),
        ];
        let service = Service {
            shipped: "planet",
            title,
            namespace: &self.namespace,
            state: &state,
            log: &self.log(),
            words: words.into(),
        };
        service.start()
    }

    fn command(&self) -> Result<Command> {
        Ok(self.namespace.command(program("planet")?))
    }

    fn running(&self) -> MutexGuard<'_, Option<Arc<Process>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
