//! What meshd and the kernel do for many packets at once, by the names that are usual for it.

use podmesh_kernel::tun::Offloads;

/// All names, in the order in which they are shown.
pub(crate) const NAMES: [&str; 4] = ["tso", "uso", "udp-gso", "udp-gro"];

/// Which of them are wanted, or in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OffloadSet {
    /// The TUN carries TCP of up to 64 KiB in one packet.
    pub(crate) tso: bool,
    /// The same for UDP.
    pub(crate) uso: bool,
    /// The kernel cuts runs of datagrams on their way out (`UDP_SEGMENT`).
    pub(crate) udp_gso: bool,
    /// The kernel gives datagrams that came together in one piece (`UDP_GRO`).
    pub(crate) udp_gro: bool,
}

impl OffloadSet {
    /// All.
    pub(crate) const ALL: Self = Self {
        tso: true,
        uso: true,
        udp_gso: true,
        udp_gro: true,
    };

    /// The set of these names; the first that is none, otherwise.
    ///
    /// # Errors
    /// The name.
    pub(crate) fn parse(names: &[String]) -> Result<Self, String> {
        if let Some(strange) = names.iter().find(|name| !NAMES.contains(&name.as_str())) {
            return Err(strange.clone());
        }
        let has = |wanted: &str| names.iter().any(|name| name == wanted);
        let [tso, uso, udp_gso, udp_gro] = NAMES.map(has);
        Ok(Self {
            tso,
            uso,
            udp_gso,
            udp_gro,
        })
    }

    /// The names of what is in the set.
    pub(crate) fn names(self) -> impl Iterator<Item = &'static str> {
        let on = [self.tso, self.uso, self.udp_gso, self.udp_gro];
        NAMES
            .into_iter()
            .zip(on)
            .filter_map(|(name, on)| on.then_some(name))
    }

    /// Those of the TUN.
    pub(crate) fn tun(self) -> Offloads {
        Offloads {
            tcp: self.tso,
            udp: self.uso,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_shown() {
        let names =
            |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
        let all = OffloadSet::parse(&names("udp-gro tso udp-gso uso")).unwrap();
        assert_eq!(all, OffloadSet::ALL);
        assert_eq!(all.names().collect::<Vec<_>>(), NAMES);
        let some = OffloadSet::parse(&names("tso udp-gro")).unwrap();
        assert_eq!(some.names().collect::<Vec<_>>(), ["tso", "udp-gro"]);
        assert_eq!(OffloadSet::parse(&names("tso gso")), Err("gso".to_owned()));
    }
}
