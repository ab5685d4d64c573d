//! Kernel settings under `/proc/sys/net`, of the network namespace of the calling thread.

use std::{fs, io, path::PathBuf};

/// Why a setting is not as wanted.
#[derive(Debug, thiserror::Error)]
#[error("the kernel setting {name} cannot be set to {value}: {cause}")]
pub struct SysctlError {
    name: String,
    value: String,
    #[source]
    cause: io::Error,
}

/// An address family with settings of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    fn folder(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

/// Lets this namespace forward packets of that family. True if it did not before.
///
/// Before IPv6 forwarding is turned on, interfaces that learn their routes from router
/// advertisements are told to go on doing so: the kernel would otherwise forget this machine's
/// own default route in the same moment.
///
/// # Errors
///
/// When the setting is not on and cannot be turned on.
pub fn ensure_forwarding(family: IpFamily) -> Result<bool, SysctlError> {
    match family {
        IpFamily::V4 => ensure("ipv4/ip_forward", "1"),
        IpFamily::V6 => {
            if read("ipv6/conf/all/forwarding").is_ok_and(|value| value == "1") {
                return Ok(false);
            }
            keep_learning_routes()?;
            ensure("ipv6/conf/all/forwarding", "1")
        }
    }
}

/// Sets a setting of one interface. True if it was different before.
///
/// # Errors
///
/// When it does not exist or cannot be written.
pub fn ensure_of_interface(
    family: IpFamily,
    interface: &str,
    key: &str,
    value: &str,
) -> Result<bool, SysctlError> {
    ensure(
        &format!("{}/conf/{interface}/{key}", family.folder()),
        value,
    )
}

/// Whether the kernel of this machine has that address family at all.
pub fn has_family(family: IpFamily) -> bool {
    path(&format!("{}/conf/all", family.folder())).exists()
}

fn keep_learning_routes() -> Result<(), SysctlError> {
    let folder = path("ipv6/conf");
    let entries = fs::read_dir(&folder).map_err(|cause| SysctlError {
        name: folder.display().to_string(),
        value: "2".to_owned(),
        cause,
    })?;
    for entry in entries.flatten() {
        let interface = entry.file_name().to_string_lossy().into_owned();
        let setting = format!("ipv6/conf/{interface}/accept_ra");
        if interface != "all" && read(&setting).is_ok_and(|value| value == "1") {
            ensure(&setting, "2")?;
        }
    }
    Ok(())
}

fn ensure(name: &str, value: &str) -> Result<bool, SysctlError> {
    if read(name).is_ok_and(|present| present == value) {
        return Ok(false);
    }
    match fs::write(path(name), value) {
        Ok(()) => Ok(true),
        Err(cause) => Err(SysctlError {
            name: format!("net/{name}"),
            value: value.to_owned(),
            cause,
        }),
    }
}

fn read(name: &str) -> io::Result<String> {
    fs::read_to_string(path(name)).map(|text| text.trim().to_owned())
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(name)
}
