//! What the node's end of a pair says about itself: its alias. Pure.
//!
//! The alias is the one place that the kernel forgets neither with the carrier nor with an address,
//! that moves along when the interface is renamed, and that a process with `CAP_NET_ADMIN` reads
//! without the plugin's ledger. Pods can't write it: the node's end is not in their namespace.
//! Whoever else can is this machine's root; every field is checked all the same.

use std::{fmt::Write as _, net::IpAddr};

use super::PodLink;

/// Longest alias of an interface that the kernel takes, in bytes.
const MAX_ALIAS_BYTES: usize = 255;
/// Longest text that tells whose a pair is, in bytes: the rest of the alias belongs to the pod.
pub const MAX_OWNER_BYTES: usize = 110;
const MARK: &str = "podmesh/2 ";
const MAX_NAME_BYTES: usize = 15;
/// As much of the runtime's id of a pod as people compare.
const POD_DIGITS: usize = 12;
/// In the place of what is not known.
const UNKNOWN: &str = "-";

/// How a pod was wired, as its node's end tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wiring {
    /// Name of the node's end.
    pub(super) host_name: String,
    /// Hardware address of the node's end.
    pub(super) host_mac: [u8; 6],
    /// Hardware address of the pod's end when it was made.
    pub(super) pod_mac: [u8; 6],
    /// Name of the pod's end.
    pub(super) pod_name: String,
    /// The beginning of the runtime's id of the pod.
    pub(super) pod: String,
    /// The pod's addresses: one or two, of different families.
    pub(super) addresses: Vec<IpAddr>,
    /// Whose the pair is; empty where nobody is named.
    pub(super) owner: String,
}

impl Wiring {
    /// As ADD wants it.
    pub(super) fn of(link: &PodLink) -> Self {
        Self {
            host_name: link.host_name.clone(),
            host_mac: link.host_mac,
            pod_mac: link.pod_mac,
            pod_name: link.pod_name.clone(),
            pod: link.pod.chars().take(POD_DIGITS).collect(),
            addresses: link.addresses.clone(),
            owner: link.owner.clone(),
        }
    }

    /// The alias that tells it.
    pub(super) fn to_alias(&self) -> String {
        let known = |text: &str| match text {
            "" => UNKNOWN.to_owned(),
            text => text.to_owned(),
        };
        let addresses: Vec<_> = self.addresses.iter().map(IpAddr::to_string).collect();
        let mut alias = format!(
            "{MARK}{} {} {} {} {} {} {}",
            self.host_name,
            digits(self.host_mac),
            digits(self.pod_mac),
            known(&self.pod_name),
            known(&self.pod),
            addresses.join(","),
            self.owner
        );
        let mut end = alias.len().min(MAX_ALIAS_BYTES);
        while !alias.is_char_boundary(end) {
            end -= 1;
        }
        alias.truncate(end);
        alias
    }

    /// Reads an alias; `None` unless it is one of these, with nothing in it that can't be.
    pub(super) fn parse(alias: &str) -> Option<Self> {
        let mut words = alias.strip_prefix(MARK)?.splitn(7, ' ');
        let mut word = || words.next();
        let name = |text: &str| is_name(text).then(|| text.to_owned());
        let wiring = Self {
            host_name: name(word()?)?,
            host_mac: station(word()?)?,
            pod_mac: station(word()?)?,
            pod_name: name(word()?)?,
            pod: word().filter(|text| is_pod(text))?.to_owned(),
            addresses: parse_addresses(word()?)?,
            owner: word()?.to_owned(),
        };
        Some(wiring)
    }

    /// The pod as people know it, for a line about it.
    pub(super) fn pod_in_words(&self) -> String {
        let addresses: Vec<_> = self.addresses.iter().map(IpAddr::to_string).collect();
        format!(
            "pod {} ({}, {})",
            self.pod,
            self.pod_name,
            addresses.join(", ")
        )
    }

    /// Whether the pod has an address of the newer family.
    pub(super) fn has_v6(&self) -> bool {
        self.addresses.iter().any(IpAddr::is_ipv6)
    }
}

/// Whose a pair is, from whatever version's alias; `None` where nobody is named.
pub(super) fn owner_of(alias: &str) -> Option<String> {
    let owner = match Wiring::parse(alias) {
        Some(wiring) => wiring.owner,
        None if is_alias(alias) => String::new(),
        None => alias.to_owned(),
    };
    (!owner.is_empty()).then_some(owner)
}

/// Whether a text is meant as such an alias, however spoiled.
pub(super) fn is_alias(text: &str) -> bool {
    text.starts_with(MARK)
}

/// At least one address that a pod can have, at most one per family.
pub(super) fn are_a_pods(addresses: &[IpAddr]) -> bool {
    let v4 = addresses.iter().filter(|one| one.is_ipv4()).count();
    let possible = |address: &IpAddr| match address {
        IpAddr::V4(v4) => {
            let [first, ..] = v4.octets();
            !(v4.is_loopback() || v4.is_link_local() || first == 0 || first >= 224)
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unicast_link_local())
        }
    };
    !addresses.is_empty() && v4 <= 1 && addresses.len() - v4 <= 1 && addresses.iter().all(possible)
}

/// Whether a hardware address is that of one station.
pub(super) fn is_station(mac: [u8; 6]) -> bool {
    mac[0] & 1 == 0 && mac != [0; 6]
}

fn parse_addresses(text: &str) -> Option<Vec<IpAddr>> {
    let addresses: Option<Vec<IpAddr>> = text.split(',').map(|one| one.parse().ok()).collect();
    addresses.filter(|addresses| are_a_pods(addresses))
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_NAME_BYTES
        && !matches!(text, "." | "..")
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'))
}

fn is_pod(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    !text.is_empty() && text.len() <= POD_DIGITS && text.bytes().all(known)
}

fn digits(mac: [u8; 6]) -> String {
    mac.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn station(text: &str) -> Option<[u8; 6]> {
    if text.len() != 12 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let number = u64::from_str_radix(text, 16).ok()?;
    let mac = *number.to_be_bytes().last_chunk::<6>()?;
    is_station(mac).then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wiring() -> Wiring {
        Wiring {
            host_name: "pm0123456789a".to_owned(),
            host_mac: [2, 0, 0, 0, 0, 1],
            pod_mac: [2, 0, 0, 0, 0, 0xff],
            pod_name: "eth0".to_owned(),
            pod: "3f2a9c1d0e7b".to_owned(),
            addresses: vec!["10.42.3.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            owner: "podmesh lab /var/lib/cni/a folder with spaces".to_owned(),
        }
    }

    #[test]
    fn what_was_wired_is_read_back() {
        let mut wired = wiring();
        assert_eq!(Wiring::parse(&wired.to_alias()), Some(wired.clone()));
        wired.owner = String::new();
        wired.addresses.pop();
        assert_eq!(Wiring::parse(&wired.to_alias()), Some(wired.clone()));
        assert_eq!(owner_of(&wired.to_alias()), None);
        assert_eq!(owner_of(&wiring().to_alias()), Some(wiring().owner));
    }

    #[test]
    fn the_longest_fits_an_interface() {
        let mut longest = wiring();
        longest.host_name = "p".repeat(15);
        longest.pod_name = "e".repeat(15);
        longest.addresses = vec![
            "100.100.100.100".parse().unwrap(),
            "fd12:3456:789a:bcde:f012:3456:789a:bcde".parse().unwrap(),
        ];
        longest.owner = "x".repeat(MAX_OWNER_BYTES);
        assert!(longest.to_alias().len() <= MAX_ALIAS_BYTES);
        assert_eq!(Wiring::parse(&longest.to_alias()), Some(longest));
    }

    #[test]
    fn an_owner_is_read_from_every_versions_alias() {
        let older = "podmesh lab /var/lib/cni/podmesh";
        assert_eq!(Wiring::parse(older), None);
        assert_eq!(owner_of(older).as_deref(), Some(older));
        assert_eq!(owner_of(""), None);
    }

    #[test]
    fn a_forged_field_spoils_the_whole_alias() {
        let sound = wiring().to_alias();
        for (field, forged) in [
            ("pm0123456789a", "../../x"),
            ("pm0123456789a", "a-name-of-16-byt"),
            ("020000000001", "030000000001"),
            ("020000000001", "000000000000"),
            ("0200000000ff", "0200000000f"),
            ("0200000000ff", "02+000000000"),
            ("eth0", "eth/0"),
            ("3f2a9c1d0e7b", "$(reboot)"),
            ("10.42.3.2", "127.0.0.1"),
            ("10.42.3.2", "169.254.1.1"),
            ("10.42.3.2", "224.0.0.1"),
            ("10.42.3.2", "fd00::3"),
            ("10.42.3.2,fd00::2", ""),
            ("fd00::2", "fe80::1"),
            ("fd00::2", "ff02::1"),
            ("podmesh/2", "podmesh/3"),
        ] {
            let alias = sound.replacen(field, forged, 1);
            assert_ne!(alias, sound, "{field}");
            assert_eq!(Wiring::parse(&alias), None, "{alias}");
        }
        for end in 0..sound.len() - wiring().owner.len() {
            assert_eq!(Wiring::parse(&sound[..end]), None);
        }
    }
}
