//! A pod: a namespace that the real CNI plugin connects, called as a container runtime calls it.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Output;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::namespace::Namespace;
use crate::process::{self, Process};

/// Where and with which configuration the plugin is called.
#[derive(Debug, Clone)]
pub struct CniPlace {
    /// The namespace of the node.
    pub node: Arc<Namespace>,
    /// The plugin binary.
    pub program: PathBuf,
    /// The network configuration on its standard input.
    pub config: Value,
}

/// A running pod. Dropping it removes its namespace and leaves the rest to the plugin's GC.
#[derive(Debug)]
pub struct Pod {
    name: String,
    container_id: String,
    place: CniPlace,
    addresses: Vec<IpAddr>,
    result: Value,
    servers: Mutex<Vec<Process>>,
    namespace: Namespace,
}

impl CniPlace {
    /// Calls the plugin with one verb and returns its output and exit code.
    ///
    /// # Errors
    ///
    /// If it can't be started or hangs; a bad exit code is not an error here.
    pub fn call(&self, verb: &str, environment: &[(&str, &str)]) -> Result<Output> {
        let mut command = self.node.command(&self.program);
        command.env("CNI_COMMAND", verb);
        if let Some(folder) = self.program.parent() {
            command.env("CNI_PATH", folder);
        }
        command.envs(environment.iter().copied());
        process::output(
            &mut command,
            self.config.to_string().as_bytes(),
            process::SHORT,
        )
    }

    /// Calls the plugin with one verb that must succeed and returns its result.
    ///
    /// # Errors
    ///
    /// With the plugin's own error.
    pub fn succeed(&self, verb: &str, environment: &[(&str, &str)]) -> Result<Value> {
        let output = self.call(verb, environment)?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!(
                "podmesh {verb}: {}: {} {}",
                output.status,
                stdout.trim(),
                stderr.trim()
            );
        }
        if stdout.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&stdout).with_context(|| format!("podmesh {verb} printed {stdout}"))
    }
}

impl Pod {
    /// Makes a namespace of the lab with this number and has the plugin connect it.
    ///
    /// # Errors
    ///
    /// With the plugin's own error.
    pub fn add(lab: u32, name: &str, place: CniPlace) -> Result<Self> {
        let namespace = Namespace::create(lab, &format!("pod-{name}"))?;
        let container_id = container_id(name);
        let path = namespace.path().display().to_string();
        let result = place
            .succeed("ADD", &environment(&container_id, &path))
            .with_context(|| format!("cannot add pod {name}"))?;
        let addresses = addresses_of(&result)?;
        let servers = Mutex::default();
        Ok(Self {
            name: name.to_owned(),
            container_id,
            place,
            addresses,
            result,
            servers,
            namespace,
        })
    }

    /// The pod's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The id that the plugin knows it by.
    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    /// Its namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its addresses, as the plugin's result names them.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Its address of one family.
    ///
    /// # Errors
    ///
    /// If the plugin gave none.
    pub fn address(&self, ipv6: bool) -> Result<IpAddr> {
        let found = self
            .addresses
            .iter()
            .find(|address| address.is_ipv6() == ipv6);
        let family = if ipv6 { "IPv6" } else { "IPv4" };
        found
            .copied()
            .with_context(|| format!("pod {} has no {family} address", self.name))
    }

    /// The plugin's whole result of the ADD.
    pub fn result(&self) -> &Value {
        &self.result
    }

    /// Removes the pod through the plugin.
    ///
    /// # Errors
    ///
    /// If the plugin refuses.
    pub fn delete(&self) -> Result<()> {
        let path = self.namespace.path().display().to_string();
        let mut place = self.place.clone();
        if let Some(config) = place.config.as_object_mut() {
            config.insert("prevResult".into(), self.result.clone());
        }
        place.succeed("DEL", &environment(&self.container_id, &path))?;
        Ok(())
    }

    /// What is left of the pod after its machine lost power: nothing, and no DEL.
    pub(crate) fn power_cut(&self) {
        self.servers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        // A socket that a test still holds keeps the namespace alive; its cable goes regardless.
        let _ = self.namespace.ip("link delete eth0");
    }

    /// Starts an iperf3 server inside.
    ///
    /// # Errors
    ///
    /// If it can't be started.
    pub fn serve_iperf3(&self) -> Result<()> {
        let mut command = self.namespace.command("iperf3");
        command.args(["--server", "--forceflush"]);
        let log = std::env::temp_dir().join(format!("{}-iperf3.log", self.namespace.name()));
        let server = Process::start("iperf3", command, &log)?;
        // The open file is enough for the server; its name would only be litter.
        let _ = std::fs::remove_file(&log);
        crate::wait::until("iperf3 to listen", Duration::from_secs(5), || {
            let open = self.namespace.run(&["ss", "-Htln"])?;
            let there = open.contains(":5201 ");
            Ok(if there {
                crate::wait::Now(())
            } else {
                crate::wait::NotYet(open)
            })
        })?;
        self.servers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(server);
        Ok(())
    }

    /// Runs iperf3 from here to a pod that serves it and returns Mbit/s that arrived.
    ///
    /// # Errors
    ///
    /// If iperf3 fails.
    pub fn iperf3(&self, target: IpAddr, time: Duration, streams: u8) -> Result<f64> {
        let seconds = time.as_secs().max(1).to_string();
        let mut command = self.namespace.command("iperf3");
        command.args([
            "--client",
            &target.to_string(),
            "--json",
            "--time",
            &seconds,
        ]);
        command.args([
            "--parallel",
            &streams.to_string(),
            "--connect-timeout",
            "5000",
        ]);
        let output = process::output(&mut command, b"", time + Duration::from_secs(20))?;
        let report: Value =
            serde_json::from_slice(&output.stdout).context("iperf3 printed no JSON")?;
        if let Some(error) = report["error"].as_str() {
            bail!("iperf3 from {} to {target}: {error}", self.name);
        }
        let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
        Ok(rate.context("iperf3 reported no rate")? / 1e6)
    }
}

/// The variables of a call about one interface of one container.
pub fn environment<'a>(container_id: &'a str, netns: &'a str) -> [(&'a str, &'a str); 3] {
    [
        ("CNI_CONTAINERID", container_id),
        ("CNI_NETNS", netns),
        ("CNI_IFNAME", "eth0"),
    ]
}

/// An id as long as the ones of container runtimes, and new each time.
fn container_id(name: &str) -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut id = format!("{:08x}{number:08x}", std::process::id());
    for byte in name.bytes().cycle().take(24) {
        // Writing to a String can't fail.
        let _ = write!(id, "{byte:02x}");
    }
    id
}

fn addresses_of(result: &Value) -> Result<Vec<IpAddr>> {
    let ips = result["ips"]
        .as_array()
        .with_context(|| format!("no ips in {result}"))?;
    ips.iter()
        .map(|ip| {
            let text = ip["address"].as_str().unwrap_or_default();
            let address = text.split('/').next().unwrap_or_default();
            address
                .parse()
                .with_context(|| format!("{text} is no address, in {result}"))
        })
        .collect()
}
