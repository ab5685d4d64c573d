//! Firewalls of others in front of the mesh: what is reported, that the command which is named helps, and
//! that nobody is accused who lets podmesh pass.

mod cases;
mod closed;

use std::time::Instant;

use podmesh_kernel::firewall::{self, Traffic};

use self::cases::{CASES, DOCKER, FIREWALLD, KUBE, Rules, UFW};
use super::{MARK, Scene, arrived, namespaces::Namespace, udp};

fn traffic() -> Traffic {
    let ranges = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    Traffic {
        device: "mesh0".to_owned(),
        veth_prefix: "pm".to_owned(),
        own_pod_cidrs: ranges(&["10.42.3.0/24", "fd12:3456:789a:103::/64"]),
        own_overlay: ["10.77.0.3", "fd12:3456:789a::3"]
            .map(|text| text.parse().unwrap())
            .to_vec(),
        protected: ranges(&["10.42.0.0/16", "10.77.0.0/16", "fd12:3456:789a::/48"]),
        port: Some(7077),
        mark: MARK,
        uplinks: [vec!["eth0".to_owned()], vec!["eth0".to_owned()]],
    }
}

/// Messages and commands.
fn refusals(node: &Namespace) -> Vec<(String, String)> {
    let found = node.run(|| firewall::refusals(&traffic()).unwrap());
    found
        .iter()
        .map(|refusal| (refusal.advice().message, refusal.command()))
        .collect()
}

fn tables(rules: &str) -> String {
    let run = |program: &str| format!("x={program}\n{rules}\n");
    run("iptables") + &run("ip6tables").replace("-p icmp --icmp-type", "-p icmpv6 --icmpv6-type")
}

/// As a file, so that neither shell nor `ip netns` touches the quotes.
fn load(node: &Namespace, rules: &str) {
    let file = std::env::temp_dir().join(format!("{}.rules", node.name()));
    std::fs::write(&file, rules).unwrap();
    node.command(&format!("nft -f {}", file.display()));
    std::fs::remove_file(&file).unwrap();
}

/// Runs a command as it is told to people.
fn obey(node: &Namespace, command: &str) {
    let file = std::env::temp_dir().join(format!("{}.command", node.name()));
    std::fs::write(&file, command).unwrap();
    node.command(&format!("sh -e {}", file.display()));
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn firewalls_that_refuse_pods_are_named_with_a_command_that_helps() {
    for (number, case) in CASES.iter().enumerate() {
        let node = Namespace::new(&format!("fw{number}"));
        node.command("ip link add mesh0 type veth peer name pm0123456789a");
        match case.rules {
            Rules::Nft(rules) => load(&node, rules),
            Rules::Both(rules) => obey(&node, &tables(rules)),
            Rules::Shell(rules) => obey(&node, rules),
        }
        let found = refusals(&node);
        for wanted in case.said {
            let is_said = found.iter().any(|(said, _)| said.contains(wanted));
            assert!(is_said, "{number}: {found:?}");
        }
        for wanted in case.commands {
            let is_said = found.iter().any(|(_, said)| said.contains(wanted));
            assert!(is_said, "{number}: {found:?}");
        }
        assert_eq!(found.len(), case.said.len(), "{number}: {found:?}");
        for (_, command) in &found {
            obey(&node, command);
        }
        assert_eq!(refusals(&node), [], "{number}: what was named has to help");
    }
}

#[test]
fn nobody_is_accused_who_lets_podmesh_pass_or_may_do_so() {
    let chain = |rules: &str| {
        format!("table inet t {{
            set trusted {{ type ipv4_addr; flags interval; elements = {{ 192.168.0.0/16, 10.42.0.0/16 }} }}
            set some {{ type ipv4_addr; elements = {{ 10.42.3.17 }} }}
            set inside {{ type ifname; elements = {{ \"lo\", \"pm12345678\" }} }}
            map by {{ type ifname : verdict; elements = {{ \"eth0\" : drop, \"mesh0\" : accept }} }}
            chain ours {{ iifname \"pm*\" accept; oifname \"pm*\" accept; }}
            chain c {{ type filter hook forward priority 0; policy drop; {rules} }}
        }}")
    };
    for rules in [
        "iifname \"pm*\" accept; oifname \"pm*\" accept;",
        "jump ours;",
        "goto ours;",
        "ct state new jump ours;",
        "ip saddr 10.42.0.0/16 accept; ip6 saddr fd12:3456:789a::/48 accept;",
        "ip saddr 10.0.0.0/8 accept; ip6 saddr fd00::/8 accept;",
        "ip saddr @trusted accept; ip6 daddr ::/0 accept;",
        // Some pods, some ports, some time: nobody knows what for.
        "ip saddr @some accept; meta nfproto ipv6 accept; iifname mesh0 accept;",
        "ip saddr 10.42.3.17 accept; meta nfproto ipv6 accept; iifname mesh0 accept; iifname @inside accept;",
        "iifname \"pm12345678\" accept; oifname \"pm12345678\" accept;",
        "iifname \"pm*\" tcp dport 443 accept; oifname \"pm*\" tcp dport 443 accept;",
        "limit rate 10/second accept;",
        "fib daddr type local accept;",
        "meta l4proto tcp accept;",
        "tcp dport 1024-65535 accept;",
        "iifname vmap @by; oifname vmap @by; iifname . oifname vmap { \"pm*\" . \"pm*\" : accept };",
        "meta mark set 0x1; meta mark 0x1 accept;",
        "iifname != \"eth0\" accept;",
        "ip protocol != icmp accept; ip6 nexthdr != icmpv6 accept;",
        "ct state != established accept;",
        "accept;",
    ] {
        let node = Namespace::new("fw-passes");
        load(&node, &chain(rules));
        assert_eq!(refusals(&node), [], "{rules}");
    }
}

#[test]
fn tables_that_mean_others_or_mean_it_so_accuse_nobody() {
    let node = Namespace::new("fw-quiet");
    obey(&node, &tables(KUBE));
    node.command(
        "iptables -A FORWARD -s 10.42.0.0/16 -j ACCEPT; iptables -P FORWARD DROP
         iptables -P INPUT DROP; iptables -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
         iptables -A INPUT -i pm+ -j DROP; iptables -A INPUT -i mesh0 -p tcp --dport 10250 -j ACCEPT
         iptables -t mangle -A PREROUTING -i eth0 -j MARK --set-mark 0xffff
         iptables -t mangle -A PREROUTING -j CONNMARK --restore-mark",
    );
    load(
        &node,
        "table inet m { chain p { type filter hook prerouting priority -150
            meta mark set 0x2; ct state new jump q; meta mark set 0x4; }
            chain q { meta mark set 0xffffffff; }\n}
         table inet nt { chain p { type filter hook prerouting priority -300
            iifname eth0 notrack; udp dport 7077 notrack; fib daddr type local notrack; }\n}",
    );
    load(
        &node,
        "table inet asleep { flags dormant; chain c { type filter hook forward priority 0; policy drop; }\n}",
    );
    load(
        &node,
        "table inet v6 { chain c { type filter hook output priority 0; meta nfproto ipv6 drop; }\n}",
    );
    assert_eq!(refusals(&node), []);
}

#[test]
fn rules_that_concern_others_hide_no_refusal() {
    let chain = |rules: &str| {
        format!("table inet t {{
            set lans {{ type ipv4_addr; flags interval; elements = {{ 192.168.0.0/16, 172.16.0.0/12 }} }}
            map by {{ type ifname : verdict; elements = {{ \"eth0\" : accept, \"lo\" : accept }} }}
            chain c {{ type filter hook forward priority 0; policy drop; {rules} }}
        }}")
    };
    for rules in [
        "",
        "iifname \"docker0\" accept; iifname \"p*\" oifname \"eth0\" drop;",
        "iif lo accept;",
        "iifname { lo, eth0, docker0 } accept;",
        "iifname vmap @by;",
        "ip saddr @lans accept; ip daddr 10.43.0.0/16 accept; ip6 saddr fd99::/48 accept;",
        "ip saddr { 10.41.0.0/16, 10.43.0.0/16 } accept; ip saddr 10.40.0.0-10.41.255.255 accept;",
        "tcp dport { 22, 443 } accept; meta l4proto { icmp, ipv6-icmp } accept; udp sport 53 accept;",
        "ct state vmap { established : accept, related : accept, invalid : drop };",
        "ct state established,related accept; ct status dnat accept; ct mark 7 accept;",
        "meta mark and 0x4000 == 0x4000 accept; meta mark 0x9 accept;",
        "iifname . oifname { \"eth0\" . \"docker0\" } accept;",
        "meta l4proto tcp reject with tcp reset; reject;",
        "counter; log prefix \"x\"; jump inner;",
        "ip saddr 10.0.0.0/8 ip daddr 172.16.0.0/12 accept;",
    ] {
        let node = Namespace::new("fw-refuses");
        let inner = "table inet t { chain inner { iifname eth0 accept; return; }\n}";
        load(&node, inner);
        load(&node, &chain(rules));
        let found = refusals(&node);
        assert_eq!(found.len(), 1, "{rules}: {found:?}");
        assert!(
            found[0].0.contains("all packets of pods"),
            "{rules}: {found:?}"
        );
    }
}

#[test]
fn the_rules_of_kube_proxy_hide_no_refusal() {
    let node = Namespace::new("fw-kube");
    obey(&node, &tables(KUBE));
    assert_eq!(refusals(&node), []);
    obey(&node, "ip6tables -P FORWARD DROP");
    let found = refusals(&node);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].1.starts_with("ip6tables -I FORWARD -i pm+"),
        "{found:?}"
    );
}

#[test]
fn what_is_told_is_what_happens_to_packets() {
    let scene = Scene::new("fwreal");
    scene.node.command("ip route add 10.42.9.8/31 dev mesh0");
    scene.outside.command("ip route add 10.0.0.0/8 dev far");
    let peer = udp(&scene.outside, "10.42.9.9:9000");
    let pod = udp(&scene.pod, "10.42.3.2:0");
    let passes = || {
        pod.send_to(b"x", "10.42.9.9:9000").unwrap();
        arrived(&peer)
    };
    assert!(passes() && refusals(&scene.node).is_empty());
    load(&scene.node, FIREWALLD);
    assert!(!passes());
    let found = refusals(&scene.node);
    assert_eq!(found.len(), 1, "{found:?}");
    obey(&scene.node, &found[0].1);
    assert!(passes());
    scene.node.command("nft delete table inet firewalld");
    obey(&scene.node, &tables(DOCKER));
    assert!(!passes());
    for (_, command) in refusals(&scene.node) {
        obey(&scene.node, &command);
    }
    assert!(passes());
}

#[test]
fn a_pod_that_no_connection_is_tracked_of_is_named_with_where_to_look() {
    for (rules, command) in [
        (
            Rules::Nft(
                "table inet nt { chain p { type filter hook prerouting priority -300; notrack; }\n}",
            ),
            "nft list chain inet nt p",
        ),
        (
            Rules::Shell("iptables -t raw -A PREROUTING -j CT --notrack"),
            "iptables -t raw -S PREROUTING",
        ),
    ] {
        let node = Namespace::new("fw-untracked");
        match rules {
            Rules::Nft(rules) => load(&node, rules),
            Rules::Both(rules) | Rules::Shell(rules) => obey(&node, rules),
        }
        let found = refusals(&node);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0]
                .0
                .contains("keeps the kernel from tracking packets of pods to the world"),
            "{found:?}"
        );
        assert_eq!(found[0].1, command);
        obey(&node, command);
    }
}

/// The same rules by the other program.
fn by_legacy(rules: &str) -> String {
    rules
        .replace("ip6tables", "ip6tables-legacy")
        .replace("iptables ", "iptables-legacy ")
        .replace("iptables\n", "iptables-legacy\n")
}

#[test]
fn tables_of_iptables_legacy_are_judged_as_those_of_nftables_are() {
    for (number, rules, said, commands) in [
        (
            0,
            tables(DOCKER),
            vec![
                "all packets of pods: chain FORWARD of table iptables-legacy filter (forward hook)",
                "chain FORWARD of table ip6tables-legacy filter",
            ],
            vec![
                "iptables-legacy -I DOCKER-USER -i pm+ -j ACCEPT",
                "ip6tables-legacy -I DOCKER-USER -o pm+",
            ],
        ),
        (
            1,
            tables(UFW),
            vec!["table iptables-legacy filter (forward hook), a rule", "ip6tables-legacy"],
            vec!["iptables-legacy -I FORWARD -o pm+"],
        ),
        (
            2,
            "iptables -t raw -A PREROUTING -i mesh0 -j DROP".to_owned(),
            vec!["packets of other nodes to pods: chain PREROUTING of table iptables-legacy raw"],
            vec!["iptables-legacy -t raw -I PREROUTING -i mesh0 -j ACCEPT"],
        ),
        (
            3,
            "iptables -t mangle -N X; iptables -t mangle -A X ! -s 192.168.0.0/16 ! -i eth0 -j DROP
             iptables -t mangle -A FORWARD -p tcp --dport 99 -j ACCEPT; iptables -t mangle -A FORWARD -g X"
                .to_owned(),
            vec!["all packets of pods: chain FORWARD of table iptables-legacy mangle"],
            vec!["iptables-legacy -t mangle -I FORWARD -i pm+"],
        ),
        (
            4,
            "iptables -A OUTPUT -o lo -j ACCEPT; iptables -P OUTPUT DROP; ip6tables -P OUTPUT DROP"
                .to_owned(),
            vec![
                "the datagrams of the tunnels and packets of this machine itself to pods and other nodes: \
                 chain OUTPUT of table iptables-legacy filter",
                "other nodes: chain OUTPUT of table ip6tables-legacy filter",
            ],
            vec!["iptables-legacy -I OUTPUT -p udp --sport 7077"],
        ),
    ] {
        let node = Namespace::new(&format!("fw-legacy{number}"));
        obey(&node, &by_legacy(&rules));
        let found = refusals(&node);
        assert_eq!(found.len(), said.len(), "{number}: {found:?}");
        for (place, wanted) in said.iter().chain(&commands).enumerate() {
            let is_said = |(message, command): &(String, String)| {
                if place < said.len() { message } else { command }.contains(wanted)
            };
            assert!(found.iter().any(is_said), "{wanted}: {found:?}");
        }
        for (_, command) in &found {
            obey(&node, command);
        }
        assert_eq!(refusals(&node), [], "{number}: what was named has to help");
    }
}

#[test]
fn tables_of_iptables_legacy_that_may_let_podmesh_pass_accuse_nobody() {
    let node = Namespace::new("fw-legacyok");
    // A look makes no table that wasn't there.
    assert_eq!(refusals(&node), []);
    assert_eq!(node.command("cat /proc/net/ip_tables_names").trim(), "");
    obey(&node, &by_legacy(&tables(KUBE)));
    obey(
        &node,
        "iptables-legacy -A FORWARD -s 10.42.0.0/16 -j ACCEPT; iptables-legacy -P FORWARD DROP
         iptables-legacy -t mangle -P FORWARD DROP
         iptables-legacy -t mangle -A FORWARD -m limit --limit 9/s -j ACCEPT
         ip6tables-legacy -P FORWARD DROP; ip6tables-legacy -A FORWARD -d fd00::/8 -j ACCEPT
         iptables-legacy -P INPUT DROP
         iptables-legacy -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
         iptables-legacy -A INPUT -i pm+ -j DROP; iptables-legacy -A INPUT -i mesh0 -j DROP",
    );
    assert_eq!(refusals(&node), []);
    // Its changes are seen, also of a policy alone, and not what its rules count.
    let print = || node.run(firewall::legacy_print);
    let before = print();
    obey(
        &node,
        "ip link set lo up; iptables-legacy -A INPUT -i lo -j ACCEPT",
    );
    let with_rule = print();
    node.command("ping -c2 -i0.2 127.0.0.1");
    assert!(before != with_rule && print() == with_rule);
    obey(&node, "iptables-legacy -P OUTPUT DROP");
    assert_ne!(print(), with_rule);
    obey(
        &node,
        "iptables-legacy -P OUTPUT ACCEPT; ip6tables-legacy -t raw -L",
    );
    assert_ne!(print(), with_rule, "another table");
    // What nftables has of the same name is another chain.
    obey(&node, "iptables -P FORWARD DROP; ip6tables -P FORWARD DROP");
    let found = refusals(&node);
    assert!(
        found.len() == 2 && !found[0].0.contains("legacy"),
        "{found:?}"
    );
}

#[test]
fn thousands_of_foreign_rules_are_no_burden() {
    let node = Namespace::new("fw-many");
    let mut rules = String::from("table ip kube-proxy {\n");
    for number in 0..3_000 {
        rules += &format!(
            "chain service-{number} {{ ip daddr 10.96.1.1 tcp dport {number} drop; accept; }}\n"
        );
    }
    rules += "chain f { type filter hook forward priority 0; policy drop; ip daddr 10.96.0.0/16 jump service-1;\n";
    for number in 0..2_000 {
        rules += &format!("ip daddr 10.96.{}.{} drop;\n", number / 250, number % 250);
    }
    rules += "}\n}\n";
    load(&node, &rules);
    let begin = Instant::now();
    assert_eq!(refusals(&node).len(), 1);
    let taken = begin.elapsed();
    println!("one look at 3,000 chains and 2,000 rules took {taken:?}");
    assert!(taken.as_secs() < 5, "{taken:?}");
}
