//! What is told about a refusal, and the one command that helps.

use std::fmt;

use super::{Family, Hook, Refusal, packet::Way};

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
        let by = if self.by_policy {
            "its policy is drop"
        } else {
            "a rule of it refuses them"
        };
        Advice {
            message: format!(
                "a firewall of this machine drops {}: chain {} of table {} {} ({} hook), {by}",
                self.victims(),
                self.chain.chain,
                self.chain.family,
                self.chain.table,
                self.hook,
            ),
            next: format!(
                "`{}`, and have the program that made the chain keep it",
                self.command()
            ),
        }
    }

    /// The command that lets everything of podmesh pass this chain.
    #[must_use]
    pub fn command(&self) -> String {
        match self.tables_program() {
            Some(program) => self.for_iptables(program),
            None => self.for_nft(),
        }
    }

    fn victims(&self) -> String {
        let names = [
            (Way::Outward, "packets of pods to other nodes"),
            (Way::Inward, "packets of other nodes to pods"),
            (Way::Between, "packets between pods of this node"),
            (Way::TunnelOut, "the datagrams of the tunnels"),
            (Way::TunnelIn, "the answers to the datagrams of the tunnels"),
        ];
        if Way::PODS.iter().all(|way| self.ways.contains(way)) {
            return "all packets of pods".to_owned();
        }
        let names = names.into_iter().filter(|(way, _)| self.ways.contains(way));
        names
            .map(|(_, name)| name)
            .collect::<Vec<_>>()
            .join(" and ")
    }

    /// Which of the programs a chain is of, if it is of one: their names are not those that others
    /// give.
    fn tables_program(&self) -> Option<&'static str> {
        let tables = ["filter", "mangle", "raw", "security"];
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
            Family::Inet => return None,
        };
        (is_theirs && tables.contains(&self.chain.table.as_str())).then_some(program)
    }

    fn for_iptables(&self, program: &str) -> String {
        let chain = self.entrance.as_ref().unwrap_or(&self.chain.chain);
        let table = match self.chain.table.as_str() {
            "filter" => String::new(),
            table => format!("-t {table} "),
        };
        let rule = |matches: String| format!("{program} {table}-I {chain} {matches} -j ACCEPT");
        let (pods, device) = (format!("{}+", self.veth_prefix), &self.device);
        let port = self.port.unwrap_or_default();
        let mut rules = match self.hook {
            _ if !self.concerns_pods() => Vec::new(),
            Hook::Prerouting => vec![rule(format!("-i {pods}")), rule(format!("-i {device}"))],
            Hook::Postrouting => vec![rule(format!("-o {pods}")), rule(format!("-o {device}"))],
            _ => vec![rule(format!("-i {pods}")), rule(format!("-o {pods}"))],
        };
        if self.ways.contains(&Way::TunnelOut) {
            rules.push(rule(format!("-p udp --sport {port}")));
        }
        if self.ways.contains(&Way::TunnelIn) {
            rules.push(rule(format!("-p udp --dport {port}")));
        }
        rules.join("; ")
    }

    fn for_nft(&self) -> String {
        let rule = |matches: String| format!("insert rule {} {matches} accept", self.chain);
        let (pods, device) = (
            format!("\"{}*\"", self.veth_prefix),
            format!("\"{}\"", self.device),
        );
        let port = self.port.unwrap_or_default();
        let mut rules = match self.hook {
            _ if !self.concerns_pods() => Vec::new(),
            Hook::Prerouting => {
                vec![
                    rule(format!("iifname {pods}")),
                    rule(format!("iifname {device}")),
                ]
            }
            Hook::Postrouting => {
                vec![
                    rule(format!("oifname {pods}")),
                    rule(format!("oifname {device}")),
                ]
            }
            _ => vec![
                rule(format!("iifname {pods}")),
                rule(format!("oifname {pods}")),
            ],
        };
        if self.ways.contains(&Way::TunnelOut) {
            rules.push(rule(format!("udp sport {port}")));
        }
        if self.ways.contains(&Way::TunnelIn) {
            rules.push(rule(format!("udp dport {port}")));
        }
        format!("nft '{}'", rules.join("; "))
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
        })
    }
}
