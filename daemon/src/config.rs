//! The configuration file: TOML as people write it, turned once into a checked [`Config`].

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use podmesh_kernel::tun::is_interface_name;
use podmesh_proto::candidate::may_be_probed;
use podmesh_proto::id::Name;
use podmesh_proto::limits::MAX_CANDIDATES;
use serde::Deserialize;

use crate::cli::Cli;
use crate::device_mtu;
use crate::logs;
use crate::offloads::OffloadSet;
use podmesh_engine::tunnel::TunnelKind;

const DEFAULT_FILE: &str = "/etc/podmesh/meshd.toml";
/// Bytes. A larger file is none of ours.
const MAX_FILE: u64 = 64 * 1024;
const MAX_SHARDS: usize = 64;
/// Bytes. No link with IPv6 may carry less (RFC 8200 §5).
const MIN_MTU: u32 = 1280;
const KEYS: [&str; 13] = [
    "name",
    "device",
    "mtu",
    "shards",
    "offloads",
    "tunnel",
    "port",
    "endpoints",
    "exclude-interfaces",
    "local-devices",
    "join-token-file",
    "subnet-env",
    "log",
];

/// The names of the tunnels, the default one first.
pub(crate) const TUNNELS: [(&str, TunnelKind); 3] = [
    ("boringtun", TunnelKind::Boringtun),
    ("batched", TunnelKind::Batched { wide: false }),
    ("batched-wide", TunnelKind::Batched { wide: true }),
];

/// How meshd runs on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// Name of the node; the machine's host name if absent.
    pub(crate) name: Option<Name>,
    /// Name of the mesh interface.
    pub(crate) device: String,
    /// Bytes, of packets inside the mesh; what the machine's networks suggest if absent.
    pub(crate) mtu: Option<u32>,
    /// Data threads; as many as there were before, or eight, if absent.
    pub(crate) shards: Option<usize>,
    /// What may be done for many packets at once, where the kernel can.
    pub(crate) offloads: OffloadSet,
    /// What seals and opens.
    pub(crate) tunnel: TunnelKind,
    /// UDP port; chosen at the first start if absent.
    pub(crate) port: Option<u16>,
    /// Candidates that the operator names.
    pub(crate) endpoints: Vec<SocketAddr>,
    /// Interfaces whose addresses are no candidates.
    pub(crate) exclude_interfaces: Vec<String>,
    /// Other interfaces whose containers may use the mesh.
    pub(crate) local_devices: Vec<String>,
    /// Where a token for an unattended join is.
    pub(crate) join_token_file: Option<PathBuf>,
    /// Where flannel's description of the pods goes.
    pub(crate) subnet_env: Option<PathBuf>,
    /// Filter of the log.
    pub(crate) log: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: None,
            device: "mesh0".to_owned(),
            mtu: None,
            shards: None,
            offloads: OffloadSet::ALL,
            tunnel: TunnelKind::Boringtun,
            port: None,
            endpoints: Vec::new(),
            exclude_interfaces: Vec::new(),
            local_devices: Vec::new(),
            join_token_file: None,
            subnet_env: Some(PathBuf::from("/run/flannel/subnet.env")),
            log: "info".to_owned(),
        }
    }
}

impl Config {
    /// The configuration that the command line asks for.
    ///
    /// # Errors
    /// The file can't be read, or the first thing in it that is wrong.
    pub(crate) fn load(cli: &Cli) -> Result<Self, ConfigError> {
        Self::load_with_source(cli).map(|(config, _)| config)
    }

    /// The same, and the file that it is from, if there is one.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub(crate) fn load_with_source(cli: &Cli) -> Result<(Self, Option<PathBuf>), ConfigError> {
        let file = cli.config.clone().unwrap_or_else(|| DEFAULT_FILE.into());
        let (mut config, file) = match Self::read(&file) {
            Err(ConfigError::Unreadable { cause, .. })
                if cause.kind() == ErrorKind::NotFound && cli.config.is_none() =>
            {
                (Self::default(), None)
            }
            outcome => (outcome?, Some(file)),
        };
        if let Some(name) = &cli.name {
            config.name = Some(name.clone());
        }
        if let Some(log) = &cli.log {
            config.log.clone_from(log);
        }
        Ok((config, file))
    }

    /// Reads and checks the text of a configuration file.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub(crate) fn parse(text: &str) -> Result<Self, ConfigError> {
        let table: toml::Table = text
            .parse()
            .map_err(|error| ConfigError::syntax(text, &error))?;
        if let Some(key) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(ConfigError::UnknownKey {
                advice: advice(key),
                key: key.chars().flat_map(char::escape_default).collect(),
            });
        }
        let raw: Raw = toml::from_str(text).map_err(|error| ConfigError::syntax(text, &error))?;
        raw.check()
    }

    fn read(file: &Path) -> Result<Self, ConfigError> {
        let unreadable = |cause| ConfigError::Unreadable {
            file: file.to_owned(),
            cause,
        };
        let length = fs::metadata(file).map_err(unreadable)?.len();
        if length > MAX_FILE {
            return Err(unreadable(ErrorKind::FileTooLarge.into()));
        }
        let text = fs::read_to_string(file).map_err(unreadable)?;
        Self::parse(&text).map_err(|error| ConfigError::InFile {
            file: file.to_owned(),
            error: Box::new(error),
        })
    }
}

/// Whether an interface is meant by one of these patterns; a `*` at the end stands for the rest of a name.
pub(crate) fn is_excluded(patterns: &[String], interface: &str) -> bool {
    let mut patterns = patterns.iter();
    patterns.any(|pattern| match pattern.strip_suffix('*') {
        Some(beginning) => interface.starts_with(beginning),
        None => interface == pattern,
    })
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// No file, or no right to read it.
    #[error("can't read the configuration {}: {cause}; name another one with --config", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// Something in the file.
    #[error("{}: {error}", file.display())]
    InFile {
        /// The file.
        file: PathBuf,
        /// What.
        error: Box<Self>,
    },
    /// No TOML, or a value of another type.
    #[error("line {line}, {source_line}: {message}")]
    Syntax {
        /// Counted from one.
        line: usize,
        /// The text there.
        source_line: String,
        /// What the parser says.
        message: String,
    },
    /// A key that doesn't exist.
    #[error("unknown key '{key}'; {advice}")]
    UnknownKey {
        /// As written.
        key: String,
        /// The key that looks like it, or all.
        advice: String,
    },
    /// A log filter that means something else than it seems to.
    #[error("log = {filter} is not possible; {reason}")]
    Log {
        /// As written.
        filter: String,
        /// What is possible.
        reason: String,
    },
    /// A value that can't be.
    #[error("{key} = {value} is not possible; {expected}")]
    Value {
        /// Its key.
        key: &'static str,
        /// As written.
        value: String,
        /// What is possible.
        expected: &'static str,
    },
}

impl ConfigError {
    fn syntax(text: &str, error: &toml::de::Error) -> Self {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map_or(0, |before| before.matches('\n').count());
        let source = text.lines().nth(line).unwrap_or_default().trim();
        Self::Syntax {
            line: line + 1,
            source_line: source
                .chars()
                .take(60)
                .map(|char| match char {
                    '"' | '\'' | '\\' => char.to_string(),
                    other => other.escape_debug().to_string(),
                })
                .collect(),
            message: error.message().replace('\n', ", "),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct Raw {
    name: String,
    device: String,
    mtu: u32,
    shards: usize,
    offloads: Vec<String>,
    tunnel: String,
    port: u16,
    endpoints: Vec<String>,
    exclude_interfaces: Vec<String>,
    local_devices: Vec<String>,
    join_token_file: PathBuf,
    subnet_env: PathBuf,
    log: String,
}

impl Default for Raw {
    fn default() -> Self {
        let config = Config::default();
        Self {
            name: String::new(),
            device: config.device,
            mtu: 0,
            shards: 0,
            offloads: config.offloads.names().map(str::to_owned).collect(),
            tunnel: TUNNELS[0].0.to_owned(),
            port: 0,
            endpoints: Vec::new(),
            exclude_interfaces: config.exclude_interfaces,
            local_devices: config.local_devices,
            join_token_file: PathBuf::new(),
            subnet_env: config.subnet_env.unwrap_or_default(),
            log: config.log,
        }
    }
}

fn tunnel(text: &str) -> Result<TunnelKind, ConfigError> {
    let found = TUNNELS.iter().find(|(name, _)| *name == text);
    found.map(|(_, kind)| *kind).ok_or_else(|| {
        let advice = "use boringtun, batched or batched-wide";
        wrong("tunnel", text, advice)
    })
}

impl Raw {
    fn check(self) -> Result<Config, ConfigError> {
        let name = match self.name.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| {
                wrong(
                    "name",
                    text,
                    "use 1 to 63 of a-z, 0-9, '-' and '.', with a letter or digit at both ends",
                )
            })?),
        };
        if self.mtu != 0 && !(MIN_MTU..=device_mtu::MOST).contains(&self.mtu) {
            let advice = "use 1280 to 9000 bytes, or 0 to leave it to meshd";
            return Err(wrong("mtu", self.mtu, advice));
        }
        if self.shards > MAX_SHARDS {
            return Err(wrong(
                "shards",
                self.shards,
                "use 1 to 64, or 0 to leave it to meshd",
            ));
        }
        if (1..1024).contains(&self.port) {
            return Err(wrong(
                "port",
                self.port,
                "use 1024 to 65535, or 0 for a random one",
            ));
        }
        logs::check(&self.log).map_err(|reason| ConfigError::Log {
            filter: self.log.chars().flat_map(char::escape_default).collect(),
            reason,
        })?;
        Ok(Config {
            name,
            device: interface("device", self.device)?,
            mtu: Some(self.mtu).filter(|mtu| *mtu > 0),
            shards: Some(self.shards).filter(|shards| *shards > 0),
            offloads: offloads(&self.offloads)?,
            tunnel: tunnel(&self.tunnel)?,
            port: Some(self.port).filter(|port| *port > 0),
            endpoints: endpoints(&self.endpoints)?,
            exclude_interfaces: patterns(self.exclude_interfaces)?,
            local_devices: self
                .local_devices
                .into_iter()
                .map(|name| interface("local-devices", name))
                .collect::<Result<_, _>>()?,
            join_token_file: absolute("join-token-file", self.join_token_file)?,
            subnet_env: absolute("subnet-env", self.subnet_env)?,
            log: self.log,
        })
    }
}

fn wrong(key: &'static str, value: impl ToString, expected: &'static str) -> ConfigError {
    let value = value.to_string();
    let value = match value.as_str() {
        "" => "\"\"".to_owned(),
        text => text.chars().flat_map(char::escape_default).collect(),
    };
    ConfigError::Value {
        key,
        value,
        expected,
    }
}

fn interface(key: &'static str, name: String) -> Result<String, ConfigError> {
    if is_interface_name(&name) && name != "lo" {
        Ok(name)
    } else {
        Err(wrong(
            key,
            name,
            "use 1 to 15 letters, digits, '-', '_' or '.'",
        ))
    }
}

fn patterns(names: Vec<String>) -> Result<Vec<String>, ConfigError> {
    for name in &names {
        if !is_interface_name(name.strip_suffix('*').unwrap_or(name)) {
            return Err(wrong(
                "exclude-interfaces",
                name,
                "use an interface's name, or its beginning and '*'",
            ));
        }
    }
    Ok(names)
}

fn endpoints(texts: &[String]) -> Result<Vec<SocketAddr>, ConfigError> {
    const EXPECTED: &str = "use up to 8 of the form \"198.51.100.7:41000\" or \"[2001:db8::7]:41000\", with a port from 1024 on";
    if texts.len() > MAX_CANDIDATES / 2 {
        return Err(wrong(
            "endpoints",
            format!("({} of them)", texts.len()),
            EXPECTED,
        ));
    }
    texts
        .iter()
        .map(|text| {
            text.parse()
                .ok()
                .filter(may_be_probed)
                .ok_or_else(|| wrong("endpoints", text, EXPECTED))
        })
        .collect()
}

fn offloads(names: &[String]) -> Result<OffloadSet, ConfigError> {
    const EXPECTED: &str = "use tso, uso, udp-gso and udp-gro";
    let set = OffloadSet::parse(names).map_err(|name| wrong("offloads", name, EXPECTED))?;
    if set.uso && !set.tso {
        let advice = "the kernel has uso only together with tso; name both or neither";
        return Err(wrong("offloads", names.join(", "), advice));
    }
    Ok(set)
}

fn absolute(key: &'static str, path: PathBuf) -> Result<Option<PathBuf>, ConfigError> {
    if path.as_os_str().is_empty() {
        Ok(None)
    } else if path.is_absolute() {
        Ok(Some(path))
    } else {
        Err(wrong(
            key,
            path.display(),
            "use a path that starts with '/'",
        ))
    }
}

/// What to write in a strange key's place.
fn advice(key: &str) -> String {
    let key = key.to_lowercase();
    let distances = KEYS.iter().map(|known| (distance(&key, known), known));
    match distances.min() {
        Some((distance, known)) if distance * 2 <= key.chars().count() => {
            format!("did you mean '{known}'?")
        }
        _ => format!("the keys are {}", KEYS.join(", ")),
    }
}

/// Levenshtein's distance: how many characters to add, remove or change.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (to, cell) in b.chars().zip(row.iter_mut().skip(1)) {
            let changed = diagonal + usize::from(from != to);
            diagonal = *cell;
            left = changed.min(left + 1).min(*cell + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../packaging/config/meshd.toml");

    #[test]
    fn the_example_file_shows_every_key_at_its_default() {
        assert_eq!(Config::parse(EXAMPLE).unwrap(), Config::default());
        let uncommented: String = EXAMPLE
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(key) if key.contains(" = ") && !key.starts_with(' ') => format!("{key}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        assert_eq!(Config::parse(&uncommented).unwrap(), Config::default());
        let keys: toml::Table = uncommented.parse().unwrap();
        assert_eq!(keys.len(), KEYS.len());
        for key in KEYS {
            assert!(keys.contains_key(key), "{key} is missing in the example");
        }
    }

    #[test]
    fn every_key_is_taken() {
        let config = Config::parse(
            r#"
            name = "home-1"
            device = "mesh7"
            mtu = 1280
            shards = 2
            port = 41000
            endpoints = ["198.51.100.7:41000", "[2001:db8::7]:41000"]
            exclude-interfaces = ["wlan0", "tap*"]
            local-devices = ["docker0"]
            join-token-file = "/etc/podmesh/token"
            subnet-env = ""
            log = "debug"
            "#,
        )
        .unwrap();
        assert_eq!(config.name, Some("home-1".parse().unwrap()));
        assert_eq!(
            (config.mtu, config.shards, config.port),
            (Some(1280), Some(2), Some(41_000))
        );
        assert_eq!(config.endpoints.len(), 2);
        assert_eq!(config.subnet_env, None);
        assert_eq!(config.join_token_file, Some("/etc/podmesh/token".into()));
    }

    #[test]
    fn each_mistake_gets_one_sentence_that_names_it() {
        for (text, words) in [
            ("prot = 7", "unknown key 'prot'; did you mean 'port'?"),
            ("endpoint = []", "did you mean 'endpoints'?"),
            (
                "exclude_interfaces = []",
                "did you mean 'exclude-interfaces'?",
            ),
            ("MTU = 1400", "did you mean 'mtu'?"),
            (
                "mtu = 1279",
                "mtu = 1279 is not possible; use 1280 to 9000 bytes, or 0 to leave it to meshd",
            ),
            ("mtu = \"big\"", "invalid type"),
            ("mtu = -1", "line 1, mtu = -1: invalid value"),
            ("name = \"Not A Name\"", "name = Not A Name is not possible"),
            ("port = 53", "port = 53 is not possible"),
            ("offloads = [\"gso\"]", "offloads = gso is not possible"),
            (
                "offloads = [\"uso\"]",
                "offloads = uso is not possible; the kernel has uso only together with tso",
            ),
            (
                "offloads = \"none\"",
                "line 1, offloads = \"none\": invalid type",
            ),
            ("tunnel = \"\"", "tunnel = \"\" is not possible"),
            (
                "[section]",
                "unknown key 'section'; the keys are name, device,",
            ),
            ("port = 65536", "port = 65536"),
            ("shards = 65", "shards = 65 is not possible"),
            ("device = \"a/b\"", "device = a/b is not possible"),
            (
                "local-devices = [\"lo\"]",
                "local-devices = lo is not possible",
            ),
            (
                "endpoints = [\"localhost:1\"]",
                "endpoints = localhost:1 is not possible",
            ),
            ("endpoints = [\"127.0.0.1:5000\"]", "is not possible"),
            (
                "join-token-file = \"token\"",
                "use a path that starts with '/'",
            ),
            (
                "log = \"verbose\"",
                "log = verbose is not possible; 'verbose' is no level",
            ),
            ("\nname =", "line 2, name =: "),
        ] {
            let message = Config::parse(text).unwrap_err().to_string();
            assert!(message.contains(words), "{text}: {message}");
        }
    }

    #[test]
    fn distances_are_levenshteins() {
        for (a, b, expected) in [
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("port", "prot", 2),
            ("a", "a", 0),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }
}
