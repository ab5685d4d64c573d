//! What the plugin answers: results in the version that was asked for, and failures with codes.

use std::{fmt, net::IpAddr};

use podmesh_kernel::veth::{self, PodLink};
use serde_json::{Value, json};

use crate::request::VERSIONS;

/// Codes below 100 are the specification's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// The configuration is of a version that is not spoken.
    IncompatibleVersion = 1,
    /// A `CNI_*` variable is missing or impossible.
    InvalidEnvironment = 4,
    /// Reading or writing failed.
    Io = 5,
    /// Something is not the JSON that it should be.
    Decoding = 6,
    /// The configuration is readable but makes no sense.
    InvalidConfig = 7,
    /// Something is not there yet: the same call may succeed soon.
    TryAgainLater = 11,
    /// ADD cannot work now.
    Unavailable = 50,
    /// ADD cannot work now, and pods that exist may be cut off.
    LimitedConnectivity = 51,
    /// The plugin was not started by root.
    NotRoot = 100,
    /// Every address of the pod CIDR is taken.
    NoAddressLeft = 101,
    /// The kernel refused a step.
    Kernel = 102,
    /// CHECK found a difference.
    Damaged = 103,
    /// The verb took too long.
    Deadline = 104,
    /// What meshd wrote about this node cannot be believed.
    NodeFile = 105,
    /// The ledger cannot be read or written.
    Ledger = 106,
}

/// Why a verb failed: a code for the runtime, a sentence for people.
#[derive(Debug)]
pub(crate) struct Failure {
    code: Code,
    message: String,
    is_of_storage: bool,
}

impl Failure {
    /// A failure with its sentence.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            is_of_storage: false,
        }
    }

    /// A failure whose cause is a disk that is full, read-only or failing.
    pub(crate) fn of_storage(code: Code, message: impl Into<String>) -> Self {
        Self {
            is_of_storage: true,
            ..Self::new(code, message)
        }
    }

    /// Whether the same will work once the disk takes it.
    pub(crate) fn is_of_storage(&self) -> bool {
        self.is_of_storage
    }

    /// Its code.
    pub(crate) fn code(&self) -> Code {
        self.code
    }

    /// As the specification wants it on standard output.
    pub(crate) fn to_json(&self, version: &str) -> Value {
        json!({
            "cniVersion": version,
            "code": self.code as u32,
            "msg": self.message,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The answer to VERSION.
pub(crate) fn versions(asked: &str) -> Value {
    let newest = VERSIONS.last().copied().unwrap_or_default();
    let version = if asked.is_empty() { newest } else { asked };
    json!({ "cniVersion": version, "supportedVersions": VERSIONS })
}

/// A finished attachment, for the answer to ADD.
pub(crate) struct Attached<'a> {
    /// The interface pair.
    pub(crate) link: &'a PodLink,
    /// Path of the pod's network namespace.
    pub(crate) netns: &'a str,
    /// Name servers and the like, from the configuration.
    pub(crate) dns: Option<&'a Value>,
}

impl Attached<'_> {
    /// The answer in that version, behind what earlier plugins of the chain answered.
    pub(crate) fn to_json(&self, version: &str, previous: Option<&Value>) -> Value {
        let earlier = |key| {
            let list = previous.and_then(|previous| previous.get(key));
            list.and_then(Value::as_array).cloned().unwrap_or_default()
        };
        let mut interfaces = earlier("interfaces");
        let pod_end = interfaces.len() + 1;
        interfaces.extend(self.interfaces(version));
        let mut ips = earlier("ips");
        let mut routes = earlier("routes");
        for address in &self.link.addresses {
            ips.push(address_entry(address, pod_end, version));
            let destinations = self.link.destinations.iter();
            let of_family = destinations.filter(|one| one.addr().is_ipv4() == address.is_ipv4());
            let gateway = veth::gateway_of(address);
            routes.extend(of_family.map(|one| json!({ "dst": one, "gw": gateway })));
        }
        let dns = previous.and_then(|previous| previous.get("dns"));
        json!({
            "cniVersion": version,
            "interfaces": interfaces,
            "ips": ips,
            "routes": routes,
            "dns": self.dns.or(dns).cloned().unwrap_or_else(|| json!({})),
        })
    }

    fn interfaces(&self, version: &str) -> [Value; 2] {
        let host = json!({ "name": self.link.host_name, "mac": mac(self.link.host_mac) });
        let pod = json!({
            "name": self.link.pod_name,
            "mac": mac(self.link.pod_mac),
            "sandbox": self.netns,
        });
        [host, pod].map(|mut interface| {
            if version == "1.1.0"
                && let Some(interface) = interface.as_object_mut()
            {
                interface.insert("mtu".to_owned(), json!(self.link.mtu));
            }
            interface
        })
    }
}

fn address_entry(address: &IpAddr, interface: usize, version: &str) -> Value {
    let (family, prefix) = match address {
        IpAddr::V4(_) => ("4", 32),
        IpAddr::V6(_) => ("6", 128),
    };
    let mut entry = json!({
        "interface": interface,
        "address": format!("{address}/{prefix}"),
        "gateway": veth::gateway_of(address),
    });
    if version.starts_with("0.")
        && let Some(entry) = entry.as_object_mut()
    {
        entry.insert("version".to_owned(), json!(family));
    }
    entry
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> PodLink {
        PodLink {
            host_name: "pm0123456789a".to_owned(),
            pod_name: "eth0".to_owned(),
            owner: String::new(),
            pod: "abc".to_owned(),
            host_mac: [2, 0, 0, 0, 0, 1],
            pod_mac: [2, 0, 0, 0, 0, 0xff],
            mtu: 1380,
            addresses: vec!["10.42.3.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            destinations: [true, false].map(veth::everything).into(),
        }
    }

    fn answer(version: &str, previous: Option<&Value>) -> Value {
        let attached = Attached {
            link: &link(),
            netns: "/run/netns/x",
            dns: None,
        };
        attached.to_json(version, previous)
    }

    #[test]
    fn each_version_has_its_own_form() {
        let old = answer("0.3.1", None);
        assert_eq!(old["ips"][0]["version"], "4");
        assert_eq!(old["ips"][1]["version"], "6");
        assert_eq!(old["interfaces"][1].get("mtu"), None);
        let newer = answer("1.0.0", None);
        assert_eq!(newer["ips"][0].get("version"), None);
        assert_eq!(newer["ips"][0]["address"], "10.42.3.2/32");
        assert_eq!(newer["ips"][0]["gateway"], "169.254.1.1");
        assert_eq!(newer["interfaces"][1]["sandbox"], "/run/netns/x");
        assert_eq!(newer["interfaces"][1]["mac"], "02:00:00:00:00:ff");
        assert_eq!(
            newer["routes"][1],
            json!({ "dst": "::/0", "gw": "fe80::1" })
        );
        assert_eq!(answer("1.1.0", None)["interfaces"][0]["mtu"], 1380);
    }

    #[test]
    fn what_earlier_plugins_answered_stays_and_is_counted() {
        let previous = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{ "name": "net0" }],
            "ips": [{ "address": "192.0.2.7/24", "interface": 0 }],
            "dns": { "nameservers": ["192.0.2.53"] },
        });
        let answer = answer("1.0.0", Some(&previous));
        assert_eq!(answer["interfaces"].as_array().unwrap().len(), 3);
        assert_eq!(answer["ips"][0]["address"], "192.0.2.7/24");
        assert_eq!(answer["ips"][1]["interface"], 2);
        assert_eq!(answer["dns"]["nameservers"][0], "192.0.2.53");
    }

    #[test]
    fn a_failure_is_one_object_with_code_and_sentence() {
        let failure = Failure::new(Code::TryAgainLater, "meshd has not written node.json yet");
        assert_eq!(
            failure.to_json("1.0.0"),
            json!({
                "cniVersion": "1.0.0",
                "code": 11,
                "msg": "meshd has not written node.json yet",
            })
        );
    }
}
