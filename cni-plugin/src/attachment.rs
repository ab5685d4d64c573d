//! One interface of one pod, and the names that follow from it.

use std::fmt::{self, Write};

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

/// What the names of the node's ends begin with.
pub(crate) const HOST_PREFIX: &str = "pm";
const NAME_DIGITS: usize = 11;

/// A pod's interface, as the runtime names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Attachment {
    /// The runtime's id of the pod.
    #[serde(rename = "containerID")]
    pub(crate) container_id: String,
    /// Name of the interface inside the pod.
    pub(crate) ifname: String,
}

impl Attachment {
    /// Name of the node's end: it follows from the attachment alone, so that DEL finds it when
    /// everything else is lost.
    pub(crate) fn host_name(&self) -> String {
        let mut name = String::from(HOST_PREFIX);
        for byte in self.hash("name") {
            // Writing to a string does not fail.
            let _ = write!(name, "{byte:02x}");
        }
        name.truncate(HOST_PREFIX.len() + NAME_DIGITS);
        name
    }

    /// Hardware address of the node's end.
    pub(crate) fn host_mac(&self) -> [u8; 6] {
        self.mac("node")
    }

    /// Hardware address of the pod's end.
    pub(crate) fn pod_mac(&self) -> [u8; 6] {
        self.mac("pod")
    }

    fn mac(&self, end: &str) -> [u8; 6] {
        // A locally administered address of one station.
        let mut mac = [0x02; 6];
        for (place, byte) in mac.iter_mut().skip(1).zip(self.hash(end)) {
            *place = byte;
        }
        mac
    }

    fn hash(&self, purpose: &str) -> impl Iterator<Item = u8> {
        let text = [purpose, &self.container_id, &self.ifname].join("\0");
        digest(&SHA256, text.as_bytes())
            .as_ref()
            .to_vec()
            .into_iter()
    }
}

/// Whether the plugin itself could have given this name to a node's end.
pub(crate) fn is_host_name(name: &str) -> bool {
    name.strip_prefix(HOST_PREFIX).is_some_and(|digits| {
        digits.len() == NAME_DIGITS && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
    })
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.ifname, self.container_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(container_id: &str, ifname: &str) -> Attachment {
        Attachment {
            container_id: container_id.to_owned(),
            ifname: ifname.to_owned(),
        }
    }

    #[test]
    fn names_fit_an_interface_and_differ() {
        let (first, second) = (attachment("a", "eth0"), attachment("a", "eth1"));
        assert_eq!(first.host_name().len(), 13);
        assert!(first.host_name().starts_with("pm"));
        assert_ne!(first.host_name(), second.host_name());
        assert_ne!(first.host_name(), attachment("aeth", "0").host_name());
        assert_ne!(first.host_mac(), first.pod_mac());
        assert_eq!(first.host_mac()[0] & 3, 2);
    }

    #[test]
    fn a_name_stays_the_same_in_every_version() {
        // An update of the plugin must still find the interfaces of the pods that run.
        assert_eq!(attachment("abc", "eth0").host_name(), "pm6468660f077");
    }
}
