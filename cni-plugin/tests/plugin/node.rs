//! A node in a namespace of its own, on which the plugin's program is run as a runtime runs it.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::{Value, json};

use crate::namespaces::Namespace;

pub(crate) struct Node {
    pub(crate) namespace: Namespace,
    pub(crate) folder: PathBuf,
}

/// What the program answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) success: bool,
    pub(crate) output: Value,
    pub(crate) remarks: String,
}

/// One call, with what a runtime may leave out or get wrong.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) verb: &'static str,
    pub(crate) variables: Vec<(&'static str, String)>,
    pub(crate) config: String,
}

impl Node {
    pub(crate) fn new(name: &str) -> Self {
        let namespace = Namespace::new(name);
        let folder = std::env::temp_dir().join(namespace.name());
        for part in ["run", "state"] {
            fs::create_dir_all(folder.join(part)).unwrap();
        }
        namespace.command(
            "ip tuntap add mesh0 mode tun
             ip link set mesh0 up
             ip addr add 10.77.0.3/32 dev mesh0
             ip addr add fd12:3456:789a::3/128 dev mesh0 nodad",
        );
        let node = Self { namespace, folder };
        node.write_node_file(&node.node_file());
        node
    }

    pub(crate) fn node_file(&self) -> Value {
        json!({
            "schema": "podmesh.node/v1",
            "network": "lab",
            "node": "alpha",
            "device": "mesh0",
            "mtu": 1380,
            "pod_cidrs": ["10.42.3.0/24", "fd12:3456:789a:103::/64"],
            "overlay_addresses": ["10.77.0.3", "fd12:3456:789a::3"],
            "protected": ["10.42.0.0/16", "10.77.0.0/16", "fd12:3456:789a::/48"],
            "service_ranges": ["10.96.0.0/12"],
            "from_a_newer_version": true,
        })
    }

    pub(crate) fn write_node_file(&self, file: &Value) {
        fs::write(self.folder.join("run/node.json"), file.to_string()).unwrap();
    }

    pub(crate) fn config(&self) -> Value {
        json!({
            "cniVersion": "1.0.0",
            "name": "podmesh",
            "type": "podmesh",
            "runtimeDir": self.folder.join("run"),
            "stateDir": self.folder.join("state"),
            "dataDir": self.ledger(),
        })
    }

    /// The configuration with other values in some places.
    pub(crate) fn config_with(&self, changes: Value) -> String {
        let mut config = self.config();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        config.to_string()
    }

    pub(crate) fn ledger(&self) -> PathBuf {
        self.folder.join("ledger")
    }

    pub(crate) fn call(&self, verb: &'static str, id: &str, netns: Option<&Path>) -> Call {
        let netns = netns.map(|path| path.display().to_string());
        Call {
            verb,
            variables: vec![
                ("CNI_CONTAINERID", id.to_owned()),
                ("CNI_IFNAME", "eth0".to_owned()),
                ("CNI_NETNS", netns.unwrap_or_default()),
                ("CNI_PATH", "/opt/cni/bin".to_owned()),
                ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=x".to_owned()),
            ],
            config: self.config().to_string(),
        }
    }

    pub(crate) fn add(&self, id: &str, pod: &Namespace) -> Answer {
        self.run(&self.call("ADD", id, Some(&pod.path())))
    }

    pub(crate) fn del(&self, id: &str) -> Answer {
        self.run(&self.call("DEL", id, None))
    }

    /// GC with these pods still there.
    pub(crate) fn gc(&self, valid: &[&str]) -> Answer {
        let valid: Vec<_> = valid
            .iter()
            .map(|id| json!({ "containerID": id, "ifname": "eth0" }))
            .collect();
        let mut call = self.call("GC", "", None);
        call.config = self.config_with(json!({
            "cniVersion": "1.1.0",
            "cni.dev/valid-attachments": valid,
        }));
        self.run(&call)
    }

    pub(crate) fn run(&self, call: &Call) -> Answer {
        let output = self.start(call).wait_with_output().unwrap();
        Answer {
            success: output.status.success(),
            output: serde_json::from_slice(&output.stdout).unwrap_or(Value::Null),
            remarks: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    pub(crate) fn start(&self, call: &Call) -> Child {
        self.start_under(&[], call)
    }

    /// Starts the plugin as the last argument of another program.
    pub(crate) fn start_under(&self, wrapper: &[&str], call: &Call) -> Child {
        // nsenter becomes the plugin, so that a kill reaches it.
        let mut child = Command::new("nsenter")
            .arg(format!("--net={}", self.namespace.path().display()))
            .args(wrapper)
            .arg(env!("CARGO_BIN_EXE_podmesh"))
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap())
            .env("CNI_COMMAND", call.verb)
            .envs(call.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A call that was killed already does not read any more.
        let _ = child
            .stdin
            .take()
            .unwrap()
            .write_all(call.config.as_bytes());
        child
    }

    /// Names of the nodes' ends that exist.
    pub(crate) fn interfaces(&self) -> Vec<String> {
        let links = self.namespace.command("ip -br link show type veth");
        let names = links
            .lines()
            .filter_map(|line| line.split(['@', ' ']).next());
        names
            .filter(|name| name.starts_with("pm"))
            .map(str::to_owned)
            .collect()
    }

    /// Number of records in the ledger.
    pub(crate) fn records(&self) -> usize {
        let Ok(entries) = fs::read_dir(self.ledger()) else {
            return 0;
        };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names
            .filter(|name| name.starts_with("pm") && name.ends_with(".json"))
            .count()
    }

    pub(crate) fn pod_routes(&self) -> usize {
        let v4 = self
            .namespace
            .command("ip -4 route show table 7077 proto 178");
        let v6 = self
            .namespace
            .command("ip -6 route show table 7077 proto 178");
        v4.lines().count() + v6.lines().count()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Answer {
    pub(crate) fn expect_success(self) -> Self {
        assert!(self.success, "{self:?}");
        self
    }

    pub(crate) fn code(&self) -> u64 {
        self.output["code"].as_u64().unwrap_or(0)
    }

    /// The addresses without their prefix lengths.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let ips = self.output["ips"].as_array().cloned().unwrap_or_default();
        ips.iter()
            .map(|ip| {
                ip["address"]
                    .as_str()
                    .unwrap()
                    .split('/')
                    .next()
                    .unwrap()
                    .to_owned()
            })
            .collect()
    }
}

/// A new pod's namespace.
pub(crate) fn pod() -> Namespace {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    Namespace::new(&format!("p{}", COUNT.fetch_add(1, Ordering::Relaxed)))
}
