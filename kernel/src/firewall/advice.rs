//! What is told about a refusal, and the one command that helps.

use std::fmt;

use super::{Family, Harm, Hook, Place, Refusal, packet::Way};

/// Which of podmesh's interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Pods,
    Device,
}

/// A refusal in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// Who drops what; one sentence without an end.
    pub message: String,
    /// The command, and what is to be done beside it.
    pub next: String,
}

impl Refusal {
    /// In words.
    #[must_use]
    pub fn advice(&self) -> Advice {
        let (does, by) = match self.harm {
            Harm::Drops if self.by_policy => ("drops", ", its policy is drop"),
            Harm::Drops => ("drops", ", a rule of it refuses them"),
            Harm::Untracks => (
                "keeps the kernel from tracking",
                ", so that nobody answers them",
            ),
            Harm::Marks => (
                "gives the mark of the tunnels' datagrams to",
                ", which keeps them out of the mesh",
            ),
        };
        let first = match self.harm {
            Harm::Untracks => format!(
                "`{}` shows the rule: let it spare what comes in by {}* and the answers to it",
                self.command(),
                self.veth_prefix
            ),
            Harm::Drops if self.translates && !self.by_policy => format!(
                "`{}` shows the rule: delete it, and refuse in a chain that filters; this one is there to \
                 translate, and whatever is let past it isn't translated",
                self.command()
            ),
            _ => format!(
                "`{}`, and have the program that made the chain keep it",
                self.command()
            ),
        };
        // A machine may be closed to its pods for a reason.
        let is_of_node_alone = self.ways.iter().all(|way| way.is_of_node());
        let or = if is_of_node_alone && self.harm == Harm::Drops && !self.translates {
            "; or, if they are to be refused, a rule of that chain that drops what comes by these interfaces, which \
             says so"
        } else {
            ""
        };
        Advice {
            message: format!(
                "a firewall of this machine {does} {}: chain {} of table {} {} ({} hook){by}",
                self.victims(),
                self.chain.chain,
                self.chain.family,
                self.chain.table,
                self.hook,
            ),
            next: format!("{first}{or}"),
        }
    }

    /// The command that lets everything of podmesh pass this chain.
    #[must_use]
    pub fn command(&self) -> String {
        let Place {
            family,
            table,
            chain,
        } = &self.chain;
        let is_to_be_read = self.harm == Harm::Untracks || self.translates && !self.by_policy;
        match self.tables_program() {
            Some(program) if is_to_be_read => format!("{program} -t {table} -S {chain}"),
            None if self.harm == Harm::Untracks => {
                format!("nft list chain {family} {table} {chain}")
            }
            // With the numbers by which rules are deleted.
            None if is_to_be_read => format!("nft -a list chain {family} {table} {chain}"),
            Some(program) if self.translates => format!("{program} -t {table} -P {chain} ACCEPT"),
            None if self.translates => {
                format!("nft 'chain {family} {table} {chain} {{ policy accept; }}'")
            }
            Some(program) => self.for_iptables(program),
            None => self.for_nft(),
        }
    }

    fn victims(&self) -> String {
        if Way::PODS.iter().all(|way| self.ways.contains(way)) {
            return "all packets of pods".to_owned();
        }
        let names: [(&[Way], &str); 12] = [
            (&[Way::Outward], "packets of pods to other nodes"),
            (&[Way::Inward], "packets of other nodes to pods"),
            (&[Way::Between], "packets between pods of this node"),
            (&[Way::TunnelOut], "the datagrams of the tunnels"),
            (
                &[Way::TunnelIn],
                "the answers to the datagrams of the tunnels",
            ),
            (
                &[Way::PodToNode, Way::PeerToNode],
                "packets of pods and other nodes to this machine itself",
            ),
            (&[Way::PodToNode], "packets of pods to this machine itself"),
            (
                &[Way::PeerToNode],
                "packets of other nodes to this machine itself",
            ),
            (
                &[Way::NodeToPod, Way::NodeToPeer],
                "packets of this machine itself to pods and other nodes",
            ),
            (&[Way::NodeToPod], "packets of this machine itself to pods"),
            (
                &[Way::NodeToPeer],
                "packets of this machine itself to other nodes",
            ),
            (&[Way::World], "packets of pods to the world"),
        ];
        let mut left = self.ways.clone();
        let mut said = Vec::new();
        for (ways, name) in names {
            if ways.iter().all(|way| left.contains(way)) {
                left.retain(|way| !ways.contains(way));
                said.push(name);
            }
        }
        said.join(" and ")
    }

    /// Which of the programs a chain is of, if it is of one: their names are not those that others
    /// give.
    fn tables_program(&self) -> Option<&'static str> {
        let tables = ["filter", "mangle", "raw", "security", "nat"];
        let is_theirs = self
            .chain
            .chain
            .chars()
            .all(|letter| letter.is_ascii_uppercase());
        let program = match self.chain.family {
            Family::Ip => "iptables",
            Family::Ip6 => "ip6tables",
            Family::IpLegacy => return Some("iptables-legacy"),
            Family::Ip6Legacy => return Some("ip6tables-legacy"),
            Family::Inet | Family::Netdev => return None,
        };
        (is_theirs && tables.contains(&self.chain.table.as_str())).then_some(program)
    }

    fn for_iptables(&self, program: &str) -> String {
        let chain = self.entrance.as_ref().unwrap_or(&self.chain.chain);
        let table = match self.chain.table.as_str() {
            "filter" => String::new(),
            table => format!("-t {table} "),
        };
        let pods = format!("{}+", self.veth_prefix);
        let interfaces = self.interfaces().into_iter().map(|(is_incoming, which)| {
            let name = if which == Which::Pods {
                &pods
            } else {
                &self.device
            };
            format!("-{} {name}", if is_incoming { "i" } else { "o" })
        });
        let ports = self.ports().into_iter();
        let ports = ports.map(|(is_source, port)| {
            format!("-p udp --{}port {port}", if is_source { "s" } else { "d" })
        });
        let rules = interfaces
            .chain(ports)
            .map(|matches| format!("{program} {table}-I {chain} {matches} -j ACCEPT"));
        rules.collect::<Vec<_>>().join("; ")
    }

    fn for_nft(&self) -> String {
        let pods = format!("{}*", self.veth_prefix);
        let interfaces = self.interfaces().into_iter().map(|(is_incoming, which)| {
            let name = if which == Which::Pods {
                &pods
            } else {
                &self.device
            };
            format!("{}ifname \"{name}\"", if is_incoming { "i" } else { "o" })
        });
        let ports = self.ports().into_iter();
        let ports = ports.map(|(is_source, port)| {
            format!("udp {}port {port}", if is_source { "s" } else { "d" })
        });
        let rules = interfaces
            .chain(ports)
            .map(|matches| format!("insert rule {} {matches} accept", self.chain));
        format!("nft '{}'", rules.collect::<Vec<_>>().join("; "))
    }

    /// The interfaces that rules which help have to name, and whether packets come in by them.
    fn interfaces(&self) -> Vec<(bool, Which)> {
        let has = |way: Way| self.ways.contains(&way);
        let (pods, device) = match self.hook {
            Hook::Input => (has(Way::PodToNode), has(Way::PeerToNode)),
            Hook::Output => (has(Way::NodeToPod), has(Way::NodeToPeer)),
            Hook::Ingress | Hook::Egress => {
                let is_inside = |way: &Way| !Way::TUNNEL.contains(way);
                let concerns = self.ways.iter().any(is_inside);
                (concerns, concerns)
            }
            _ => (self.concerns_pods(), self.concerns_pods()),
        };
        let (first, second) = match self.hook {
            Hook::Prerouting | Hook::Input | Hook::Ingress => {
                ((true, Which::Pods), (true, Which::Device))
            }
            Hook::Postrouting | Hook::Output | Hook::Egress => {
                ((false, Which::Pods), (false, Which::Device))
            }
            Hook::Forward => ((true, Which::Pods), (false, Which::Pods)),
        };
        let wanted = [(pods, first), (device, second)];
        let wanted = wanted.into_iter().filter(|(is_wanted, _)| *is_wanted);
        wanted.map(|(_, one)| one).collect()
    }

    /// The ports of the tunnels that such rules have to name, and whether they are the datagrams' source.
    fn ports(&self) -> Vec<(bool, u16)> {
        let port = self.port.unwrap_or_default();
        let ways = [(Way::TunnelOut, true), (Way::TunnelIn, false)];
        let ways = ways.into_iter().filter(|(way, _)| self.ways.contains(way));
        ways.map(|(_, is_source)| (is_source, port)).collect()
    }

    fn concerns_pods(&self) -> bool {
        Way::PODS.iter().any(|way| self.ways.contains(way))
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}
