//! A machine of the mesh: a namespace at a site, a disk, and the real `meshd` on it.

use std::ffi::OsString;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use podmesh_proto::local_api::PeerView;
use serde_json::Value;

use crate::namespace::Namespace;
use crate::pod::{CniPlace, Pod};
use crate::process::{self, Process};
use crate::site::{Plug, Seat, Site};
use crate::unit::{self, Service};
use crate::wait;
use crate::wire::Wire;

/// A node; its disk survives whatever happens to it.
#[derive(Debug)]
pub struct Node {
    name: String,
    lab: u32,
    site: Arc<Site>,
    seat: Seat,
    wire: Arc<Wire>,
    folder: PathBuf,
    life: Mutex<Life>,
}

/// What a power cut takes away.
#[derive(Debug, Default)]
struct Life {
    meshd: Option<Arc<Process>>,
    pods: Vec<Arc<Pod>>,
    plug: Option<Plug>,
    namespace: Option<Arc<Namespace>>,
    configuration: String,
    hosts: Option<String>,
}

impl Node {
    pub(crate) fn build(
        lab: u32,
        name: &str,
        place: (Arc<Site>, Seat, Arc<Wire>),
        folder: &Path,
    ) -> Result<Self> {
        let (site, seat, wire) = place;
        let node = Self {
            name: name.to_owned(),
            lab,
            site,
            seat,
            wire,
            folder: folder.join(name),
            life: Mutex::default(),
        };
        fs::create_dir_all(&node.folder)?;
        node.power_on()
            .with_context(|| format!("cannot build node {name}"))?;
        Ok(node)
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it sits.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Its addresses on the underlay.
    pub fn seat(&self) -> &Seat {
        &self.seat
    }

    /// The address that the world sees packets of this node come from.
    pub fn public_address(&self) -> Ipv4Addr {
        self.seat
            .public
            .or(self.site.public_address())
            .unwrap_or(self.seat.v4)
    }

    /// The namespace of the machine while it has power.
    ///
    /// # Panics
    ///
    /// If its power is cut, which is a mistake of the scenario.
    pub fn namespace(&self) -> Arc<Namespace> {
        let namespace = self.life().namespace.clone();
        namespace.unwrap_or_else(|| panic!("node {} has no power", self.name))
    }

    /// Has packets to `range` come to this machine, too, as if its provider routed that network to it.
    ///
    /// # Errors
    ///
    /// If its power is cut, or it has no place of its own on the core.
    pub fn receive(&self, range: IpNet) -> Result<()> {
        match self.life().plug {
            Some(Plug::Core(port)) => self.wire.route(range, port),
            _ => bail!("node {} is not on the core itself", self.name),
        }
    }

    /// The folder that stands for the disk, logs included.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where meshd keeps what must survive a reboot.
    pub fn state_dir(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Where meshd keeps what a reboot wipes.
    pub fn runtime_dir(&self) -> PathBuf {
        let namespace = Namespace::name_of(self.lab, &self.name);
        unit::runtime_dir(&namespace).unwrap_or_else(|| self.folder.join("run"))
    }

    /// Where the CNI plugin keeps its ledger.
    pub fn ledger_dir(&self) -> PathBuf {
        self.folder.join("cni")
    }

    /// The log of every meshd that ran here.
    pub fn log(&self) -> PathBuf {
        self.folder.join("meshd.log")
    }

    /// Sets lines of meshd's configuration file, from the next start on.
    pub fn configure(&self, lines: &str) {
        lines.clone_into(&mut self.life().configuration);
    }

    /// Sets what the machine's hosts file says to meshd, from the next start on. No resolver can be
    /// reached in a lab, so nothing else resolves names.
    pub fn resolve_by(&self, hosts: &str) {
        self.life().hosts = Some(hosts.to_owned());
    }

    /// Starts meshd and waits until its local socket is there.
    ///
    /// # Errors
    ///
    /// If it ends, or does not open its socket within ten seconds.
    pub fn start(&self) -> Result<()> {
        fs::create_dir_all(self.runtime_dir())?;
        let socket = self.socket();
        // A socket that a killed meshd has left must not look like the new one's.
        let _ = fs::remove_file(&socket);
        let name = format!("meshd on {}", self.name);
        let meshd = Arc::new(self.launch(&name, &[], &[])?);
        self.life().meshd = Some(Arc::clone(&meshd));
        wait::until(
            &format!("{name} to open its socket"),
            Duration::from_secs(10),
            || {
                if let Some(status) = meshd.ended() {
                    return Ok(wait::Now(Err(status)));
                }
                Ok(if socket.exists() {
                    wait::Now(Ok(()))
                } else {
                    wait::NotYet("no socket".into())
                })
            },
        )?
        .map_err(|status| anyhow::anyhow!("{name} ended ({status}): {}", meshd.last_words(5)))
    }

    /// Starts a meshd that takes over from the one that runs, and waits until that one has ended.
    ///
    /// # Errors
    ///
    /// If none runs, or it doesn't end in good order within ten seconds.
    pub fn replace(&self) -> Result<()> {
        match self.try_replace(&[])? {
            None => Ok(()),
            Some(why) => anyhow::bail!("the heir ended: {why}"),
        }
    }

    /// As [`Self::replace`], with `wrapper` before meshd's own words; gives the heir's last words if it
    /// ended and the former meshd runs on.
    ///
    /// # Errors
    ///
    /// If none runs, or both end, or neither does within ten seconds.
    pub fn try_replace(&self, wrapper: &[&str]) -> Result<Option<String>> {
        let former = self.meshd()?;
        let name = format!("meshd on {}", self.name);
        let heir = Arc::new(self.launch(&name, wrapper, &["--replace"])?);
        let (former_status, heir_status) = wait::until(
            "one of two meshds to end",
            Duration::from_secs(10),
            || match (former.ended(), heir.ended()) {
                (None, None) => Ok(wait::NotYet("both still run".into())),
                ended => Ok(wait::Now(ended)),
            },
        )?;
        match (former_status, heir_status) {
            (_, None) => {
                let status = former_status.context("it has ended")?;
                anyhow::ensure!(status.success(), "the former meshd ended with {status}");
                self.life().meshd = Some(heir);
                Ok(None)
            }
            (None, Some(_)) => Ok(Some(heir.last_words(1))),
            (Some(_), Some(_)) => anyhow::bail!("both ended: {}", heir.last_words(9)),
        }
    }

    /// Starts a meshd that takes over from the one that runs, and ends that one so long after: with
    /// SIGKILL, or in good order.
    ///
    /// # Errors
    ///
    /// If none runs, or it doesn't end within ten seconds.
    pub fn replace_and_end(&self, after: Duration, kill: bool) -> Result<()> {
        let former = self.meshd()?;
        let name = format!("meshd on {}", self.name);
        let heir = Arc::new(self.launch(&name, &[], &["--replace"])?);
        std::thread::sleep(after);
        self.life().meshd = Some(heir);
        if kill {
            former.kill();
            return Ok(());
        }
        former.stop(Duration::from_secs(10)).map(drop)
    }

    /// Kills meshd with SIGKILL. Interfaces and rules stay as they are.
    pub fn kill(&self) {
        let meshd = self.life().meshd.take();
        if let Some(meshd) = meshd {
            meshd.kill();
        }
    }

    /// Stops meshd with SIGTERM.
    ///
    /// # Errors
    ///
    /// If none runs, or it takes longer than ten seconds.
    pub fn stop(&self) -> Result<()> {
        let meshd = self.life().meshd.take();
        let meshd = meshd.with_context(|| format!("no meshd runs on {}", self.name))?;
        meshd.stop(Duration::from_secs(10)).map(drop)
    }

    /// The running meshd.
    ///
    /// # Errors
    ///
    /// If none was started.
    pub fn meshd(&self) -> Result<Arc<Process>> {
        self.life()
            .meshd
            .clone()
            .with_context(|| format!("no meshd runs on {}", self.name))
    }

    /// Cuts the power: processes, pods, interfaces and everything on tmpfs are gone at once.
    ///
    /// # Errors
    ///
    /// If something can't be removed.
    pub fn power_cut(&self) -> Result<()> {
        let life = std::mem::take(&mut *self.life());
        if let Some(plug) = &life.plug {
            self.site.unplug(&self.wire, plug)?;
        }
        if let Some(meshd) = &life.meshd {
            meshd.kill();
        }
        for pod in &life.pods {
            pod.power_cut();
        }
        drop(life.pods);
        drop(life.namespace);
        let mut disk = self.life();
        disk.configuration = life.configuration;
        disk.hosts = life.hosts;
        drop(disk);
        match fs::remove_dir_all(self.runtime_dir()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Switches the machine on: the same cable, the same addresses, the same disk. Starts no meshd.
    ///
    /// # Errors
    ///
    /// If it is on already, or the machine refuses something.
    pub fn power_on(&self) -> Result<()> {
        if self.life().namespace.is_some() {
            bail!("node {} has power already", self.name);
        }
        let namespace = Namespace::create(self.lab, &self.name)?;
        let plug = self.site.plug(&self.wire, &self.seat, &namespace)?;
        let mut life = self.life();
        life.namespace = Some(Arc::new(namespace));
        life.plug = Some(plug);
        Ok(())
    }

    /// Runs `meshctl` against this node and returns its output and exit code.
    ///
    /// # Errors
    ///
    /// If it can't be started or hangs; a bad exit code is not an error here.
    pub fn meshctl_output(&self, words: &[&str], patience: Duration) -> Result<Output> {
        let mut command = self.namespace().command(program("meshctl")?);
        command.arg("--socket").arg(self.socket()).args(words);
        process::output(&mut command, b"", patience)
    }

    /// Runs `meshctl` against this node and returns what it printed.
    ///
    /// # Errors
    ///
    /// If it fails or takes longer than [`process::SHORT`].
    pub fn meshctl(&self, words: &[&str]) -> Result<String> {
        let output = self.meshctl_output(words, process::SHORT)?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let words = words.join(" ");
            bail!(
                "meshctl {words} on {}: {}: {}",
                self.name,
                output.status,
                stderr.trim()
            );
        }
        Ok(stdout)
    }

    /// Runs a reading `meshctl` command with `--json` and returns the document.
    ///
    /// # Errors
    ///
    /// If it fails or prints no JSON.
    pub fn meshctl_json(&self, words: &[&str]) -> Result<Value> {
        let printed = self.meshctl(&[words, &["--json"]].concat())?;
        serde_json::from_str(&printed).with_context(|| format!("not JSON: {printed}"))
    }

    /// Waits until the node is a member with a planet connected.
    ///
    /// # Errors
    ///
    /// After `patience`, with what meshctl said last.
    pub fn wait_online(&self, patience: Duration) -> Result<()> {
        wait::until(&format!("{} to be online", self.name), patience, || {
            let status = self.meshctl_json(&["status"])?;
            let state = status["state"]
                .as_str()
                .unwrap_or("without a state")
                .to_owned();
            Ok(if state == "online" {
                wait::Now(())
            } else {
                wait::NotYet(state)
            })
        })
    }

    /// What this node says about its peers.
    ///
    /// # Errors
    ///
    /// If meshd does not answer, or not in the words of the local API.
    pub fn peers(&self) -> Result<Vec<PeerView>> {
        let mut document = self.meshctl_json(&["peers"])?;
        serde_json::from_value(document["items"].take()).context("these are no peers")
    }

    /// Makes a pod here through the CNI plugin.
    ///
    /// # Errors
    ///
    /// If the plugin refuses.
    pub fn add_pod(&self, name: &str) -> Result<Arc<Pod>> {
        let pod = Arc::new(Pod::add(self.lab, name, self.cni_place()?)?);
        self.life().pods.push(Arc::clone(&pod));
        Ok(pod)
    }

    /// Removes a pod through the CNI plugin.
    ///
    /// # Errors
    ///
    /// If the plugin refuses.
    pub fn delete_pod(&self, pod: &Arc<Pod>) -> Result<()> {
        pod.delete()?;
        self.life().pods.retain(|other| !Arc::ptr_eq(other, pod));
        Ok(())
    }

    /// The pods that run here.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.life().pods.clone()
    }

    /// Where and with which configuration the CNI plugin is called on this node.
    ///
    /// # Errors
    ///
    /// If the plugin is not built.
    pub fn cni_place(&self) -> Result<CniPlace> {
        Ok(CniPlace {
            node: self.namespace(),
            program: program("podmesh")?,
            config: serde_json::json!({
                "cniVersion": "1.0.0",
                "name": "podmesh",
                "type": "podmesh",
                "runtimeDir": self.runtime_dir(),
                "stateDir": self.state_dir(),
                "dataDir": self.ledger_dir(),
            }),
        })
    }

    fn launch(&self, title: &str, wrapper: &[&str], more: &[&str]) -> Result<Process> {
        let state = self.state_dir();
        let mut words: Vec<OsString> = wrapper.iter().map(OsString::from).collect();
        words.extend(self.meshd_words()?);
        words.extend([
            "--state-dir".into(),
            state.clone().into(),
            "--runtime-dir".into(),
            self.runtime_dir().into(),
            "--name".into(),
            self.name.clone().into(),
            "--config".into(),
            self.write_configuration()?.into(),
        ]);
        words.extend(more.iter().map(OsString::from));
        let service = Service {
            shipped: "meshd",
            title,
            namespace: &self.namespace(),
            state: &state,
            log: &self.log(),
            words,
        };
        service.start()
    }

    /// meshd, in a mount namespace of its own if it has a hosts file of its own.
    fn meshd_words(&self) -> Result<Vec<OsString>> {
        let meshd = program("meshd")?;
        let Some(hosts) = self.life().hosts.clone() else {
            return Ok(vec![meshd.into()]);
        };
        let file = self.folder.join("hosts");
        fs::write(&file, hosts)?;
        let unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-c"];
        let mut words: Vec<OsString> = unshare.map(OsString::from).into();
        words.push("mount --bind \"$0\" /etc/hosts && exec \"$@\"".into());
        words.extend([file.into(), meshd.into()]);
        Ok(words)
    }

    fn write_configuration(&self) -> Result<PathBuf> {
        let file = self.folder.join("meshd.toml");
        let log = std::env::var("LAB_LOG").unwrap_or_else(|_| "info".into());
        let subnet_env = self.runtime_dir().join("subnet.env").display().to_string();
        let mut lines = format!("log = {log:?}\nsubnet-env = {subnet_env:?}\n");
        lines += &self.life().configuration;
        // Any scenario can be played with any kind of tunnel.
        if let (Ok(kind), false) = (std::env::var("LAB_TUNNEL"), lines.contains("tunnel =")) {
            lines += &format!("tunnel = {kind:?}\n");
        }
        fs::write(&file, lines)?;
        Ok(file)
    }

    fn socket(&self) -> PathBuf {
        self.runtime_dir().join("meshd.sock")
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The path of a release binary: in `PODMESH_BIN_DIR`, beside the lab's own program, or where cargo
/// puts it.
///
/// # Errors
///
/// If it is not there.
pub fn program(name: &str) -> Result<PathBuf> {
    let beside = std::env::current_exe().ok();
    let beside = beside.as_deref().and_then(Path::parent).map(Path::to_owned);
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release");
    let folder = std::env::var_os("PODMESH_BIN_DIR").map_or_else(
        || {
            beside
                .filter(|folder| folder.join(name).exists())
                .unwrap_or_else(built)
        },
        PathBuf::from,
    );
    let folder = folder.canonicalize().unwrap_or(folder);
    let path = folder.join(name);
    let path = path.canonicalize().with_context(|| {
        format!(
            "{} is missing; build it with: cargo build --release",
            path.display()
        )
    })?;
    Ok(path)
}

/// A command for a release binary outside of any node.
///
/// # Errors
///
/// If it is not there.
pub fn program_command(name: &str) -> Result<Command> {
    Ok(Command::new(program(name)?))
}
