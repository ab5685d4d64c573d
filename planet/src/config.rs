//! The configuration file, parsed once into a [`Config`], and the little that comes from the
//! environment (nothing but what the service manager says).

use std::cell::Cell;
use std::env;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::{Ipv6Addr, SocketAddr};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::rules::relaying::RelayQuota;
use crate::server::Limits;

/// Where the configuration is looked for.
pub const FILE: &str = "/etc/podmesh/planet.toml";
/// Where a planet keeps its key and its books.
pub const STATE_DIR: &str = "/var/lib/podmesh-planet";
/// Where a planet has its local socket.
pub const RUNTIME_DIR: &str = "/run/podmesh-planet";
/// UDP port unless another one is said.
pub const PORT: u16 = 7077;

/// How a planet runs on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where it keeps its key and its books.
    pub state_dir: PathBuf,
    /// Where it has its local socket.
    pub runtime_dir: PathBuf,
    /// Connections at a time.
    pub max_connections: usize,
    /// Bits a second that each node may have relayed.
    pub relay_rate: u64,
    /// Bits a second that all nodes together may have relayed.
    pub relay_total_rate: u64,
    /// Filter of the log.
    pub log: String,
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read {path}: {cause}")]
    Unreadable {
        /// The file.
        path: String,
        /// The system's reason.
        cause: io::Error,
    },
    /// The file can't be parsed, or has a key that means nothing.
    #[error("{path} is not good: {reason}")]
    Malformed {
        /// The file.
        path: String,
        /// Where and why.
        reason: String,
    },
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT)),
            state_dir: PathBuf::from(STATE_DIR),
            runtime_dir: PathBuf::from(RUNTIME_DIR),
            max_connections: 10_000,
            relay_rate: 100_000_000,
            relay_total_rate: 1_000_000_000,
            log: "info".to_owned(),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Written {
    listen: Option<SocketAddr>,
    state_dir: Option<PathBuf>,
    runtime_dir: Option<PathBuf>,
    max_connections: Option<usize>,
    relay_rate: Option<String>,
    relay_total_rate: Option<String>,
    log: Option<String>,
}

impl Config {
    /// Reads `file`, or the usual place, which may be empty.
    ///
    /// # Errors
    /// The file can't be read or makes no sense.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let path = file.unwrap_or(Path::new(FILE));
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map_err(|reason| ConfigError::Malformed {
                path: path.display().to_string(),
                reason,
            }),
            Err(error) if error.kind() == ErrorKind::NotFound && file.is_none() => {
                Ok(Self::default())
            }
            Err(cause) => Err(ConfigError::Unreadable {
                path: path.display().to_string(),
                cause,
            }),
        }
    }

    /// A configuration as it is written in a file.
    ///
    /// # Errors
    /// It makes no sense; the reason.
    pub fn parse(text: &str) -> Result<Self, String> {
        let written: Written = toml::from_str(text).map_err(|error| syntax(text, &error))?;
        let usual = Self::default();
        let rate = |written: Option<String>| written.as_deref().map(bits_per_second).transpose();
        let relay_rate = rate(written.relay_rate)?.unwrap_or(usual.relay_rate);
        let relay_total_rate = rate(written.relay_total_rate)?;
        let max_connections = written.max_connections.unwrap_or(usual.max_connections);
        if max_connections == 0 {
            return Err("max-connections must be at least 1".to_owned());
        }
        Ok(Self {
            listen: written.listen.unwrap_or(usual.listen),
            state_dir: written.state_dir.unwrap_or(usual.state_dir),
            runtime_dir: written.runtime_dir.unwrap_or(usual.runtime_dir),
            max_connections,
            relay_rate,
            // Who lets one node have more than all together usually get means it.
            relay_total_rate: relay_total_rate.unwrap_or(usual.relay_total_rate.max(relay_rate)),
            log: written.log.unwrap_or(usual.log),
        })
    }

    /// The numbers that the server needs.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let bytes_per_second = self.relay_rate / 8;
        Limits {
            connections: self.max_connections,
            relay: RelayQuota {
                bytes_per_second,
                // A quarter of a second, and never less than a few full datagrams.
                burst_bytes: (bytes_per_second / 4).max(64 * 1024),
                total_bytes_per_second: self.relay_total_rate / 8,
            },
        }
    }
}

/// What a person needs of an error that is made for several lines.
fn syntax(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.map_or(0, |before| before.matches('\n').count());
    let source = text.lines().nth(line).unwrap_or_default().trim();
    let source: String = source.chars().take(60).collect();
    let message = error.message().replace('\n', ", ");
    format!("line {} ({source}): {message}", line.saturating_add(1))
}

/// A rate such as `100 Mbit/s`.
fn bits_per_second(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("'{text}' is no rate; write it like \"100 Mbit/s\" (kbit/s, Mbit/s, Gbit/s)");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "kbit/s" => 1_000,
        "Mbit/s" => 1_000_000,
        "Gbit/s" => 1_000_000_000,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let rate = number.checked_mul(factor).ok_or_else(wrong)?;
    if rate < 64_000 {
        return Err(format!(
            "a relay rate of {text} carries nothing; use at least \"64 kbit/s\""
        ));
    }
    Ok(rate)
}

/// The service manager that started the planet, if one did (sd_notify(3)).
#[derive(Debug)]
pub struct Service {
    socket: Option<UnixDatagram>,
    /// Between two signs of life.
    watchdog: Option<Duration>,
    has_begun: Cell<bool>,
}

impl Service {
    /// As the environment says.
    #[must_use]
    pub fn from_environment() -> Self {
        let socket = env::var_os("NOTIFY_SOCKET").and_then(|name| {
            let name = name.into_encoded_bytes();
            let address = match name.split_first()? {
                (b'@', rest) => std::os::unix::net::SocketAddr::from_abstract_name(rest).ok()?,
                _ => {
                    let path = String::from_utf8(name).ok()?;
                    std::os::unix::net::SocketAddr::from_pathname(path).ok()?
                }
            };
            let socket = UnixDatagram::unbound().ok()?;
            socket.connect_addr(&address).ok()?;
            socket.set_nonblocking(true).ok()?;
            Some(socket)
        });
        let own = std::process::id().to_string();
        let for_us = env::var("WATCHDOG_PID").map_or(true, |pid| pid == own);
        let interval = env::var("WATCHDOG_USEC").ok().filter(|_| for_us);
        let watchdog = interval
            .and_then(|interval| interval.parse().ok())
            .map(|interval: u64| Duration::from_micros(interval) / 3);
        Self {
            socket,
            watchdog,
            has_begun: Cell::new(false),
        }
    }

    /// Whether there is one.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.socket.is_some()
    }

    /// The planet has started: whatever fails from now on is no failed start.
    pub fn ready(&self) {
        self.has_begun.set(true);
        self.say("READY=1\nSTATUS=");
    }

    /// Whether it has.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.has_begun.get()
    }

    /// How often it wants to hear that the planet is alive.
    #[must_use]
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog.filter(|interval| !interval.is_zero())
    }

    /// Tells it something.
    pub fn say(&self, words: &str) {
        if let Some(socket) = &self.socket {
            // A service manager that doesn't listen is its own problem.
            let _ = socket.send(words.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_shows_every_key_at_its_default() {
        let example = include_str!("../../packaging/config/planet.toml");
        assert_eq!(Config::parse(example).unwrap(), Config::default());
        let uncommented: String = example
            .lines()
            .map(|line| {
                line.strip_prefix('#')
                    .filter(|rest| !rest.starts_with(' '))
                    .unwrap_or(line)
            })
            .flat_map(|line| [line, "\n"])
            .collect();
        assert_eq!(Config::parse(&uncommented).unwrap(), Config::default());
        let keys: toml::Table = uncommented.parse().unwrap();
        assert_eq!(keys.len(), 7);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (text, word) in [
            ("listne = \"[::]:7077\"", "listne"),
            ("listen = \"7077\"", "socket address"),
            ("relay-rate = \"100\"", "100 Mbit/s"),
            ("relay-rate = \"100 MB/s\"", "100 Mbit/s"),
            ("relay-rate = \"1 kbit/s\"", "64 kbit/s"),
            ("relay-rate = 100", "relay-rate"),
            ("max-connections = 0", "at least 1"),
            ("[", "expected"),
        ] {
            let error = Config::parse(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
            assert!(!error.contains('\n'), "one line: {error}");
        }
        let config = Config::parse("relay-rate = \"2 Gbit/s\"").unwrap();
        assert_eq!(config.limits().relay.bytes_per_second, 250_000_000);
        assert_eq!(config.limits().relay.total_bytes_per_second, 250_000_000);
        let config = Config::parse("relay-total-rate = \"8 Mbit/s\"").unwrap();
        assert_eq!(config.limits().relay.total_bytes_per_second, 1_000_000);
    }
}
