//! Kernel settings under `/proc/sys/net`, of the network namespace of the calling thread.
//!
//! Some are the machine's as a whole (forwarding), some an interface's. Whoever may change them at
//! any time does: service managers, network managers, hardening profiles, people. So podmesh
//! compares them again and again, those that its packets depend on and no others.

mod advertisements;
mod own;

use std::{fmt, fs, io, path::PathBuf};

pub use self::advertisements::{Learners, keep_learning};
pub use self::own::{OwnInterfaces, Repair, keep_device, keep_pod_end};
pub(crate) use self::own::{Setting, pod_end_settings};

/// Why a setting is not as wanted.
#[derive(Debug, thiserror::Error)]
#[error("the kernel setting {name} is {} and can't be set to {value}: {cause}", present.as_deref().unwrap_or("unknown"))]
pub struct SysctlError {
    name: String,
    value: String,
    present: Option<String>,
    #[source]
    cause: io::Error,
}

impl SysctlError {
    /// Whether an interface's packets of a family go nowhere until this is as wanted.
    #[must_use]
    pub fn stops_packets(&self) -> bool {
        // The kernel forwards IPv6 by its setting for all interfaces alone.
        let forwards = self.name.starts_with("net.ipv4.") && self.name.ends_with(".forwarding");
        forwards || self.turns_off_v6()
    }

    /// Whether IPv6 stays off on the interface.
    #[must_use]
    pub fn turns_off_v6(&self) -> bool {
        self.name.ends_with(".disable_ipv6")
    }

    /// Whether the setting doesn't exist: its interface has gone, or the kernel hasn't it.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        self.cause.kind() == io::ErrorKind::NotFound
    }
}

/// An address family with settings of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl fmt::Display for IpFamily {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
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
pub fn ensure_forwarding(family: IpFamily, own: OwnInterfaces<'_>) -> Result<bool, SysctlError> {
    match family {
        IpFamily::V4 => ensure("ipv4/ip_forward", "1"),
        IpFamily::V6 => {
            if forwards(family) {
                return Ok(false);
            }
            advertisements::before_forwarding(own)?;
            ensure("ipv6/conf/all/forwarding", "1")
        }
    }
}

/// Whether this namespace forwards packets of that family.
pub fn forwards(family: IpFamily) -> bool {
    let name = match family {
        IpFamily::V4 => "ipv4/ip_forward",
        IpFamily::V6 => "ipv6/conf/all/forwarding",
    };
    read(name).is_ok_and(|present| is_in_force(name, &present, "1"))
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
    ensure(&of_interface(family, interface, key), value)
}

/// Whether the kernel of this machine has that address family at all.
pub fn has_family(family: IpFamily) -> bool {
    path(&format!("{}/conf/all", family.folder())).exists()
}

fn of_interface(family: IpFamily, interface: &str, key: &str) -> String {
    format!("{}/conf/{interface}/{key}", family.folder())
}

/// The interfaces that have settings of that family, but for the kernel's patterns for all of them.
fn interfaces(family: IpFamily) -> io::Result<Vec<String>> {
    let entries = fs::read_dir(path(&format!("{}/conf", family.folder())))?;
    let names = entries.flatten().map(|entry| entry.file_name());
    Ok(names
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| name != "all" && name != "default")
        .collect())
}

fn ensure(name: &str, value: &str) -> Result<bool, SysctlError> {
    let present = read(name);
    let is_right = |present: &String| is_in_force(name, present, value);
    if present.as_ref().is_ok_and(is_right) {
        return Ok(false);
    }
    match fs::write(path(name), value) {
        Ok(()) => Ok(true),
        Err(cause) => Err(SysctlError {
            name: dotted(name),
            value: value.to_owned(),
            present: present.ok(),
            cause,
        }),
    }
}

/// Whether a value does what another one would: forwarding is on by any number but 0, and 2 means for IPv6 that
/// routers are asked for, too.
pub(crate) fn is_in_force(name: &str, present: &str, wanted: &str) -> bool {
    let is_forwarding = name.ends_with("forwarding") || name.ends_with("ip_forward");
    let is_on = |text: &str| text.parse::<i64>().is_ok_and(|number| number != 0);
    present == wanted || is_forwarding && is_on(wanted) && is_on(present)
}

/// As the program `sysctl` writes it, where a dot within an interface's name is a slash.
fn dotted(name: &str) -> String {
    let swap = |letter| match letter {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    format!("net.{}", name.chars().map(swap).collect::<String>())
}

fn read(name: &str) -> io::Result<String> {
    fs::read_to_string(path(name)).map(|text| text.trim().to_owned())
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(name)
}
