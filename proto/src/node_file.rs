//! The file in which meshd tells the CNI plugin about its own node.
//!
//! meshd writes it as JSON to `node.json` in its runtime folder and keeps a copy in its state
//! folder. The plugin runs as root and the file comes from a process with fewer rights, so every
//! field is checked before it is believed: [`NodeFile::parse`] is the only way in. Newer versions
//! may add fields; unknown ones are passed by.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::mark::Mark;

/// What `schema` says in a file of this version.
pub const NODE_FILE_SCHEMA: &str = "podmesh.node/v1";

/// A file larger than this many bytes is refused unread.
pub const MAX_NODE_FILE_BYTES: usize = 64 * 1024;

/// The name of the file inside meshd's runtime folder and inside its state folder.
pub const NODE_FILE_NAME: &str = "node.json";

const MAX_RANGES: usize = 64;
/// What is left of a range from which another one is cut out may be many pieces.
const MAX_CLOSED: usize = 512;
const MAX_NAME_BYTES: usize = 253;
const MIN_MTU: u32 = 1280;
const MAX_MTU: u32 = 65_535;

/// One node as its CNI plugin has to know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFile {
    /// Always [`NODE_FILE_SCHEMA`].
    pub schema: String,
    /// Id of the network, in its text form.
    pub network: String,
    /// Name of this node.
    pub node: String,
    /// Name of the mesh interface.
    pub device: String,
    /// MTU of pod interfaces, in bytes.
    pub mtu: u32,
    /// This node's own pod CIDRs: at most one per address family.
    pub pod_cidrs: Vec<IpNet>,
    /// This node's own overlay addresses.
    pub overlay_addresses: Vec<IpAddr>,
    /// Every overlay and pod range of the network: packets to them never leave unencrypted.
    pub protected: Vec<IpNet>,
    /// The ranges of cluster services, if known.
    #[serde(default)]
    pub service_ranges: Vec<IpNet>,
    /// Other interfaces of this node whose containers may use the mesh, such as `docker0` or
    /// `cni0`. Never an interface with a neighbour outside this machine.
    #[serde(default)]
    pub local_devices: Vec<String>,
    /// The mark of the underlay's datagrams.
    #[serde(default)]
    pub mark: Mark,
    /// Ranges of memberships that have ended while pods of theirs stand, without what the network has
    /// of them: packets to them leave by no interface.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub closed: Vec<IpNet>,
    /// This node's pod CIDRs of those memberships, as far as they lie in [`Self::closed`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former_pod_cidrs: Vec<IpNet>,
}

impl NodeFile {
    /// Every range to which no packet may leave unencrypted: the network's, and what stays closed
    /// after others.
    #[must_use]
    pub fn guarded(&self) -> Vec<IpNet> {
        [&self.protected[..], &self.closed[..]].concat()
    }

    /// Where this node's pods are, those of former memberships as well.
    #[must_use]
    pub fn standing_pod_cidrs(&self) -> Vec<IpNet> {
        [&self.pod_cidrs[..], &self.former_pod_cidrs[..]].concat()
    }

    /// Reads and checks the bytes of a node file. `decode` turns JSON into the type (this crate
    /// has no JSON decoder of its own); it never sees more than [`MAX_NODE_FILE_BYTES`].
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, as a sentence.
    pub fn parse<E: fmt::Display>(
        bytes: &[u8],
        decode: impl FnOnce(&[u8]) -> Result<Self, E>,
    ) -> Result<Self, NodeFileError> {
        if bytes.len() > MAX_NODE_FILE_BYTES {
            return Err(NodeFileError::TooLarge);
        }
        let file = decode(bytes).map_err(|error| NodeFileError::Malformed(error.to_string()))?;
        file.validate()?;
        Ok(file)
    }

    /// Checks every field. meshd calls it before it writes, the plugin after it has read.
    ///
    /// # Errors
    ///
    /// The first field that is wrong.
    pub fn validate(&self) -> Result<(), NodeFileError> {
        if self.schema != NODE_FILE_SCHEMA {
            return Err(NodeFileError::Schema(self.schema.clone()));
        }
        for device in [&self.device].into_iter().chain(&self.local_devices) {
            if !is_interface_name(device) {
                return Err(NodeFileError::Device(device.clone()));
            }
        }
        for name in [&self.network, &self.node] {
            if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control)
            {
                return Err(NodeFileError::Name);
            }
        }
        if !(MIN_MTU..=MAX_MTU).contains(&self.mtu) {
            return Err(NodeFileError::Mtu(self.mtu));
        }
        self.validate_ranges()
    }

    fn validate_ranges(&self) -> Result<(), NodeFileError> {
        let lists = [&self.pod_cidrs, &self.protected, &self.service_ranges];
        if lists.iter().any(|list| list.len() > MAX_RANGES)
            || self.overlay_addresses.len() > MAX_RANGES
            || self.local_devices.len() > MAX_RANGES
            || self.former_pod_cidrs.len() > MAX_RANGES
            || self.closed.len() > MAX_CLOSED
        {
            return Err(NodeFileError::TooManyRanges);
        }
        let former = [&self.closed, &self.former_pod_cidrs];
        for range in lists.into_iter().chain(former).flatten() {
            if *range != range.trunc() {
                return Err(NodeFileError::HostBits(*range));
            }
            if is_reserved(range) {
                return Err(NodeFileError::Reserved(*range));
            }
        }
        for cidr in &self.pod_cidrs {
            if !self.protected.iter().any(|range| range.contains(cidr)) {
                return Err(NodeFileError::Unprotected(*cidr));
            }
        }
        for cidr in &self.former_pod_cidrs {
            if !self.closed.iter().any(|range| range.contains(cidr)) {
                return Err(NodeFileError::Unprotected(*cidr));
            }
        }
        for address in &self.overlay_addresses {
            if !self.protected.iter().any(|range| range.contains(address)) {
                return Err(NodeFileError::Unprotected(IpNet::from(*address)));
            }
        }
        let v4 = self
            .pod_cidrs
            .iter()
            .filter(|cidr| cidr.addr().is_ipv4())
            .count();
        if v4 > 1 || self.pod_cidrs.len() - v4 > 1 {
            return Err(NodeFileError::TwoCidrsOfOneFamily);
        }
        Ok(())
    }
}

/// Why a node file is not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NodeFileError {
    /// More than [`MAX_NODE_FILE_BYTES`].
    TooLarge,
    /// Not JSON, or a field is missing or of another type.
    Malformed(String),
    /// Another schema than [`NODE_FILE_SCHEMA`].
    Schema(String),
    /// Not a possible interface name.
    Device(String),
    /// Network or node name empty, too long or with control characters.
    Name,
    /// MTU outside 1280..=65535.
    Mtu(u32),
    /// A list is longer than any real network's.
    TooManyRanges,
    /// An address range with bits set below its prefix.
    HostBits(IpNet),
    /// A range that holds loopback, link-local or multicast addresses, or everything.
    Reserved(IpNet),
    /// An own range or address outside every protected range.
    Unprotected(IpNet),
    /// More than one pod CIDR of one address family.
    TwoCidrsOfOneFamily,
}

impl fmt::Display for NodeFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge => {
                write!(
                    f,
                    "the node file is larger than {MAX_NODE_FILE_BYTES} bytes"
                )
            }
            Self::Malformed(cause) => write!(f, "the node file is not readable: {cause}"),
            Self::Schema(schema) => write!(
                f,
                "the node file has schema {schema:?}, this program reads {NODE_FILE_SCHEMA:?}"
            ),
            Self::Device(name) => write!(f, "{name:?} in the node file is not an interface name"),
            Self::Name => f.write_str("the network or node name in the node file is unusable"),
            Self::Mtu(mtu) => {
                write!(
                    f,
                    "mtu {mtu} in the node file is not within {MIN_MTU}..={MAX_MTU}"
                )
            }
            Self::TooManyRanges => {
                write!(
                    f,
                    "a list in the node file has more than {MAX_RANGES} entries"
                )
            }
            Self::HostBits(range) => write!(
                f,
                "{range} in the node file has address bits beyond its prefix, {} was expected",
                range.trunc()
            ),
            Self::Reserved(range) => write!(
                f,
                "{range} in the node file covers loopback, link-local, multicast or everything"
            ),
            Self::Unprotected(range) => {
                write!(
                    f,
                    "{range} in the node file is in no protected range of the network"
                )
            }
            Self::TwoCidrsOfOneFamily => {
                f.write_str("the node file has more than one pod CIDR of one address family")
            }
        }
    }
}

impl std::error::Error for NodeFileError {}

fn is_interface_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphanumeric())
        && name.len() <= 15
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
        && name != "lo"
}

fn is_reserved(range: &IpNet) -> bool {
    const RESERVED: [&str; 8] = [
        "0.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/3",
        "::/127",
        "::ffff:0:0/96",
        "fe80::/10",
        "ff00::/8",
    ];
    RESERVED
        .iter()
        .filter_map(|text| text.parse::<IpNet>().ok())
        .any(|reserved| reserved.contains(range) || range.contains(&reserved))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> NodeFile {
        NodeFile {
            schema: NODE_FILE_SCHEMA.to_owned(),
            network: "net".to_owned(),
            node: "alpha".to_owned(),
            device: "mesh0".to_owned(),
            mtu: 1380,
            pod_cidrs: ranges(&["10.42.3.0/24", "fd12:3456:789a:103::/64"]),
            overlay_addresses: vec!["10.77.0.3".parse().unwrap()],
            protected: ranges(&["10.42.0.0/16", "10.77.0.0/16", "fd12:3456:789a::/48"]),
            service_ranges: ranges(&["10.96.0.0/12"]),
            local_devices: Vec::new(),
            mark: Mark::DEFAULT,
            closed: ranges(&["10.50.0.0/16"]),
            former_pod_cidrs: ranges(&["10.50.7.0/24"]),
        }
    }

    fn ranges(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_sound_file_is_believed() {
        assert_eq!(sample().validate(), Ok(()));
        let parsed = NodeFile::parse(b"x", |_| Ok::<_, fmt::Error>(sample()));
        assert_eq!(parsed, Ok(sample()));
    }

    #[test]
    fn a_file_that_is_too_large_is_never_decoded() {
        let bytes = vec![b' '; MAX_NODE_FILE_BYTES + 1];
        let parsed = NodeFile::parse(&bytes, |_| -> Result<_, fmt::Error> { unreachable!() });
        assert_eq!(parsed, Err(NodeFileError::TooLarge));
    }

    #[test]
    fn dangerous_ranges_are_refused() {
        for text in [
            "0.0.0.0/0",
            "::/0",
            "0.0.0.0/1",
            "128.0.0.0/1",
            "127.0.0.0/8",
            "127.1.0.0/16",
            "169.254.0.0/16",
            "169.254.7.0/24",
            "160.0.0.0/4",
            "224.0.0.0/4",
            "239.1.0.0/16",
            "255.255.255.255/32",
            "::1/128",
            "::/64",
            "fe80::/64",
            "f000::/4",
            "ff02::/16",
            "::ffff:10.0.0.0/104",
        ] {
            let range: IpNet = text.parse().unwrap();
            let mut file = sample();
            file.protected.push(range);
            assert_eq!(
                file.validate(),
                Err(NodeFileError::Reserved(range)),
                "{text}"
            );
        }
    }

    #[test]
    fn each_wrong_field_is_named() {
        type Spoil = fn(&mut NodeFile);
        let cases: [(Spoil, &str); 12] = [
            (|file| file.schema = "podmesh.node/v2".to_owned(), "schema"),
            (|file| file.device = "../../x".to_owned(), "interface name"),
            (
                |file| file.device = "a-name-of-16-byt".to_owned(),
                "interface name",
            ),
            (|file| file.node = "a\nb".to_owned(), "node name"),
            (|file| file.mtu = 1279, "mtu 1279"),
            (
                |file| file.pod_cidrs = ranges(&["10.43.0.0/24"]),
                "10.43.0.0/24",
            ),
            (
                |file| file.pod_cidrs = ranges(&["10.42.3.1/24"]),
                "10.42.3.0/24 was expected",
            ),
            (
                |file| file.pod_cidrs = ranges(&["10.42.3.0/24", "10.42.4.0/24"]),
                "more than one",
            ),
            (
                |file| file.overlay_addresses = vec!["10.9.0.1".parse().unwrap()],
                "10.9.0.1/32",
            ),
            (
                |file| file.former_pod_cidrs = ranges(&["10.42.3.0/24"]),
                "10.42.3.0/24",
            ),
            (|file| file.closed = ranges(&["0.0.0.0/0"]), "everything"),
            (
                |file| file.closed = ranges(&["10.50.0.1/16"]),
                "10.50.0.0/16 was expected",
            ),
        ];
        for (spoil, words) in cases {
            let mut file = sample();
            spoil(&mut file);
            let message = file.validate().unwrap_err().to_string();
            assert!(
                message.contains(words),
                "{message:?} does not say {words:?}"
            );
        }
    }
}
