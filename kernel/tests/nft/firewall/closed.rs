//! Machines that are kept closed, uplinks with chains of their own, and chains that translate.

use super::super::namespaces::Namespace;
use super::{Rules, by_legacy, load, obey, refusals, tables};

/// What ufw makes of "default deny incoming" and "allow 22/tcp", shortened.
const UFW: &str = "
    $x -N ufw-before-input; $x -N ufw-user-input; $x -N ufw-after-input
    $x -A ufw-before-input -i lo -j ACCEPT
    $x -A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    $x -A ufw-before-input -m conntrack --ctstate INVALID -j DROP
    $x -A ufw-before-input -p icmp --icmp-type echo-request -j ACCEPT
    $x -A ufw-before-input -p udp --sport 67 --dport 68 -j ACCEPT
    $x -A ufw-before-input -p udp --dport 5353 -j ACCEPT
    $x -A ufw-before-input -j ufw-user-input
    $x -A ufw-user-input -p tcp --dport 22 -j ACCEPT
    $x -A ufw-after-input -p udp --dport 137 -j DROP
    $x -A INPUT -j ufw-before-input
    $x -A INPUT -j ufw-after-input
    $x -P INPUT DROP";

/// The public zone of firewalld as it comes; what it does to others' packets is another matter.
const FIREWALLD: &str = "
table inet firewalld {
  chain filter_INPUT { type filter hook input priority 10; policy accept;
    ct state { established, related } accept
    ct status dnat accept
    iifname lo accept
    ct state invalid drop
    jump filter_INPUT_ZONES
    reject with icmpx admin-prohibited
  }
  chain filter_INPUT_ZONES {
    iifname eth0 goto filter_IN_public
    goto filter_IN_public
  }
  chain filter_IN_public {
    jump filter_IN_public_allow
    meta l4proto { icmp, ipv6-icmp } accept
    reject with icmpx admin-prohibited
  }
  chain filter_IN_public_allow {
    tcp dport 22 accept
    ip6 daddr fe80::/64 udp dport 546 accept
  }
}";

/// What Debian's nftables has as an example for a workstation.
const WORKSTATION: &str = "
table inet filter {
  chain input { type filter hook input priority 0;
    iif lo accept
    ct state established,related accept
    icmpv6 type { nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept
    counter drop
  }
}";

/// What nftables' own guide has for a server.
const SERVER: &str = "
table inet filter {
  chain input { type filter hook input priority 0; policy drop;
    ct state vmap { established : accept, related : accept, invalid : drop }
    iifname lo accept
    ip protocol icmp limit rate 4/second accept
    tcp dport { 22, 80, 443 } accept
  }
  chain forward { type filter hook forward priority 0; policy accept; }
  chain output { type filter hook output priority 0; policy accept; }
}";

const BY_HAND: &str = "
    $x -A INPUT -i lo -j ACCEPT
    $x -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
    $x -A INPUT -p tcp --dport 22 -j ACCEPT
    $x -P INPUT DROP";

const REJECTING: &str = "
    $x -A INPUT -m state --state ESTABLISHED,RELATED -j ACCEPT
    $x -A INPUT -i lo -j ACCEPT
    $x -A INPUT -p tcp -m state --state NEW --dport 22 -j ACCEPT
    $x -A INPUT -j REJECT";

fn put(node: &Namespace, rules: &Rules) {
    match rules {
        Rules::Nft(rules) => load(node, rules),
        Rules::Both(rules) => obey(node, &tables(rules)),
        Rules::Shell(rules) => obey(node, rules),
    }
}

#[test]
fn a_machine_that_is_kept_closed_as_usual_is_not_accused() {
    let legacy = by_legacy(&tables(BY_HAND));
    for (name, rules) in [
        ("ufw", Rules::Both(UFW)),
        ("firewalld", Rules::Nft(FIREWALLD)),
        ("workstation", Rules::Nft(WORKSTATION)),
        ("server", Rules::Nft(SERVER)),
        ("by hand", Rules::Both(BY_HAND)),
        ("rejecting", Rules::Both(REJECTING)),
    ] {
        let node = Namespace::new("fw-closed");
        put(&node, &rules);
        assert_eq!(refusals(&node), [], "{name}");
    }
    let node = Namespace::new("fw-closed");
    obey(&node, &legacy);
    assert_eq!(refusals(&node), [], "iptables-legacy");
}

#[test]
fn a_closed_machine_is_named_where_it_hears_no_answers_or_is_open_to_others() {
    let input = |rules: &str| {
        format!(
            "table inet f {{ chain i {{ type filter hook input priority 0; policy drop; {rules} }}\n}}"
        )
    };
    for (rules, said) in [
        // Answers to what this machine itself begins.
        (
            "iifname lo accept; tcp dport 22 accept;",
            "answers to the datagrams of the tunnels",
        ),
        (
            "ct state established udp sport 53 accept; iifname lo accept;",
            "packets of pods and other nodes to this machine itself",
        ),
        // Open to a network, and not to pods.
        (
            "ct state established,related accept; iifname eth0 accept;",
            "packets of pods and other nodes to this machine itself",
        ),
        (
            "ct state established,related accept; ip saddr 192.168.0.0/16 accept; meta nfproto ipv6 accept;",
            "packets of pods and other nodes to this machine itself",
        ),
    ] {
        let node = Namespace::new("fw-open");
        load(&node, &input(rules));
        let found = refusals(&node);
        assert_eq!(found.len(), 1, "{rules}: {found:?}");
        assert!(found[0].0.contains(said), "{rules}: {found:?}");
        obey(&node, &found[0].1);
        assert_eq!(refusals(&node), [], "{rules}: what was named has to help");
    }
}

#[test]
fn chains_of_uplinks_that_drop_the_tunnels_are_named_where_no_other_uplink_is_left() {
    let of = |hook: &str, devices: &str, rules: &str| {
        format!(
            "table netdev d {{ chain c {{ type filter hook {hook} devices = {{ {devices} }} priority 0; {rules} }}\n}}"
        )
    };
    let by_name = |hook: &str, rules: &str| {
        format!("table inet d {{ chain c {{ type filter hook {hook} priority 0; {rules} }}\n}}")
    };
    for (rules, said) in [
        (
            of("ingress", "eth0", "policy drop; tcp dport 80 accept;"),
            "the answers to the datagrams of the tunnels",
        ),
        (
            of("egress", "lo, eth0", "meta l4proto udp drop;"),
            "the datagrams of the tunnels",
        ),
        // The same by chains of all interfaces, whose rules name it.
        (
            by_name("output", "oifname eth0 meta l4proto udp drop;"),
            "the datagrams of the tunnels",
        ),
        (
            by_name("postrouting", "oifname != lo meta l4proto udp drop;"),
            "the datagrams of the tunnels",
        ),
        (
            by_name("input", "iifname { eth0, eth7 } meta l4proto udp drop;"),
            "the answers to the datagrams of the tunnels",
        ),
        (by_name("output", "oifname eth7 meta l4proto udp drop;"), ""),
        (by_name("output", "oifname eth0 udp dport 53 drop;"), ""),
        (of("ingress", "lo", "policy drop;"), ""),
        (
            of(
                "ingress",
                "eth0",
                "udp dport 9 drop; ip saddr 192.0.2.0/24 drop;",
            ),
            "",
        ),
    ] {
        let node = Namespace::new("fw-uplink");
        node.command("ip link add eth0 type veth peer name eth1");
        load(&node, &rules);
        let found = refusals(&node);
        assert_eq!(
            found.len(),
            usize::from(!said.is_empty()),
            "{rules}: {found:?}"
        );
        for (message, command) in found {
            assert!(
                message.contains(&format!("drops {said}: chain c")),
                "{message}"
            );
            obey(&node, &command);
        }
        assert_eq!(refusals(&node), [], "{rules}: what was named has to help");
    }
}

#[test]
fn chains_that_translate_are_judged_and_nothing_is_let_past_them() {
    for (rules, said, command) in [
        (
            Rules::Nft(
                "table ip n { chain p { type nat hook prerouting priority -100; policy drop
                   tcp dport 80 dnat to 192.0.2.9; }\n}",
            ),
            "drops all packets of pods: chain p of table ip n (prerouting hook), its policy is drop",
            "nft 'chain ip n p { policy accept; }'",
        ),
        (
            Rules::Nft(
                "table ip n { chain p { type nat hook postrouting priority 100
                   oifname eth0 masquerade; ip saddr 10.42.0.0/16 drop; }\n}",
            ),
            "chain p of table ip n (postrouting hook), a rule of it",
            "nft -a list chain ip n p",
        ),
        (
            Rules::Nft(
                "table inet n { chain p { type nat hook output priority -100; policy drop; }\n}",
            ),
            "packets of this machine itself to pods and other nodes: chain p",
            "nft 'chain inet n p { policy accept; }'",
        ),
    ] {
        let node = Namespace::new("fw-nat");
        put(&node, &rules);
        let found = refusals(&node);
        assert_eq!(found.len(), 1, "{found:?}");
        let (message, helps) = &found[0];
        assert!(message.contains(said), "{message}");
        assert_eq!(helps, command);
        obey(&node, helps);
        let is_shown = helps.contains("list");
        assert_eq!(refusals(&node).len(), usize::from(is_shown), "{message}");
    }
    // Who translates everything lets everything pass, and answers never come by such a chain.
    let node = Namespace::new("fw-nat");
    load(
        &node,
        "table ip n {
           chain p { type nat hook prerouting priority -100; policy drop; iifname != lo dnat to 192.0.2.9; }
           chain q { type nat hook postrouting priority 100; policy drop; masquerade; }
           chain i { type nat hook input priority 100; policy drop; iifname eth0 accept; snat to 192.0.2.1; }
         }",
    );
    assert_eq!(refusals(&node), []);
}
