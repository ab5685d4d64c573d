//! The file as people write it, and what turns each of its values into a checked one.

use std::net::SocketAddr;
use std::path::PathBuf;

use podmesh_engine::tunnel::TunnelKind;
use podmesh_kernel::tun::is_interface_name;
use podmesh_proto::candidate::may_be_probed;
use podmesh_proto::limits::MAX_CANDIDATES;
use podmesh_proto::mark::Mark;
use serde::Deserialize;

use super::error::wrong;
use super::{Config, ConfigError, TUNNELS};
use crate::device_mtu;
use crate::offloads::OffloadSet;

const MAX_SHARDS: usize = 64;
/// Bytes. No link with IPv6 may carry less (RFC 8200 §5).
const MIN_MTU: u32 = 1280;

/// Every key, absent ones at their defaults.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct Raw {
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
    mark: String,
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
            mark: config.mark.to_string(),
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
    /// The configuration, once every value is possible.
    ///
    /// # Errors
    /// The first value that is not.
    pub(super) fn check(self) -> Result<Config, ConfigError> {
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
        podmesh_service::log::check(&self.log).map_err(|reason| ConfigError::Log {
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
            mark: mark(&self.mark)?,
            join_token_file: absolute("join-token-file", self.join_token_file)?,
            subnet_env: absolute("subnet-env", self.subnet_env)?,
            log: self.log,
        })
    }
}

fn mark(text: &str) -> Result<Mark, ConfigError> {
    const EXPECTED: &str = "use one number or two of the form \"0x101c/0x101c\": the bits that are set, \
                            at least one, and the mask of those that are looked at, which has them all";
    text.parse().map_err(|_| wrong("mark", text, EXPECTED))
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
