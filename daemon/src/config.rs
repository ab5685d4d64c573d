//! The configuration file: TOML as people write it, turned once into a checked [`Config`].

mod error;
mod mark;
mod raw;

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use podmesh_engine::tunnel::TunnelKind;
use podmesh_proto::id::Name;
use podmesh_proto::mark::Mark;

pub(crate) use self::error::ConfigError;
use self::error::advice;
pub(crate) use self::mark::remark as mark_remark;
use self::raw::Raw;
use crate::cli::Cli;
use crate::offloads::OffloadSet;

const DEFAULT_FILE: &str = "/etc/podmesh/meshd.toml";
/// Bytes. A larger file is none of ours.
const MAX_FILE: u64 = 64 * 1024;
const KEYS: [&str; 14] = [
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
    "mark",
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
    /// The mark of the tunnel's datagrams.
    pub(crate) mark: Mark,
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
            mark: Mark::DEFAULT,
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
            mark = "0x10/0xff"
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
        assert_eq!(config.mark.to_string(), "0x10/0xff");
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
    fn an_impossible_mark_gets_one_sentence_that_names_it() {
        for (text, words) in [
            (
                "mark = \"0x3/0x1\"",
                "mark = 0x3/0x1 is not possible; use one number or two",
            ),
            ("mark = \"0/0xff\"", "mark = 0/0xff is not possible"),
            ("mark = \"\"", "mark = \"\" is not possible"),
            ("mark = 7", "line 1, mark = 7: invalid type"),
        ] {
            let message = Config::parse(text).unwrap_err().to_string();
            assert!(message.contains(words), "{text}: {message}");
        }
    }
}
