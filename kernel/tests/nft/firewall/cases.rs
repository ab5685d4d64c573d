//! Firewalls as people and programs make them.

/// Docker's own rules, shortened.
pub(super) const DOCKER: &str = "
    $x -N DOCKER-USER; $x -N DOCKER; $x -N DOCKER-ISOLATION
    $x -A DOCKER-USER -j RETURN
    $x -A DOCKER-ISOLATION -i docker0 ! -o docker0 -j DROP
    $x -A DOCKER-ISOLATION -j RETURN
    $x -A FORWARD -j DOCKER-USER
    $x -A FORWARD -j DOCKER-ISOLATION
    $x -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    $x -A FORWARD -o docker0 -j DOCKER
    $x -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
    $x -P FORWARD DROP";

pub(super) const KUBE: &str = "
    $x -N KUBE-FORWARD
    $x -A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
    $x -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
    $x -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
    $x -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";

/// What ufw makes of "deny", shortened.
pub(super) const UFW: &str = "
    $x -N ufw-before-forward; $x -N ufw-user-forward; $x -N ufw-reject-forward
    $x -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    $x -A ufw-before-forward -p icmp --icmp-type echo-request -j ACCEPT
    $x -A ufw-before-forward -j ufw-user-forward
    $x -A ufw-user-forward -p tcp --dport 443 -j ACCEPT
    $x -A ufw-reject-forward -m limit --limit 3/min -j LOG
    $x -A ufw-reject-forward -j REJECT
    $x -A FORWARD -j ufw-before-forward
    $x -A FORWARD -j ufw-reject-forward
    $x -P FORWARD DROP";

pub(super) const FIREWALLD: &str = "
table inet firewalld {
  chain filter_INPUT { type filter hook input priority 10; policy accept;
    ct state { established, related } accept
    iifname lo accept
    tcp dport 22 accept
    reject with icmpx admin-prohibited
  }
  chain filter_FORWARD { type filter hook forward priority 10; policy accept;
    ct state { established, related } accept
    ct status dnat accept
    iifname lo accept
    ct state invalid drop
    jump filter_FORWARD_ZONES
    reject with icmpx admin-prohibited
  }
  chain filter_FORWARD_ZONES {
    iifname eth0 goto filter_FWD_public
    goto filter_FWD_public
  }
  chain filter_FWD_public {
    jump filter_FWD_public_allow
    reject with icmpx admin-prohibited
  }
  chain filter_FWD_public_allow { meta l4proto icmp accept; }
}";

/// Rules, what is said of them, and the commands that are named.
pub(super) struct Case {
    pub(super) rules: Rules,
    pub(super) said: &'static [&'static str],
    pub(super) commands: &'static [&'static str],
}

pub(super) enum Rules {
    /// Of `nft`.
    Nft(&'static str),
    /// Lines of a shell in which `$x` is iptables and ip6tables in turn.
    Both(&'static str),
    /// Lines of a shell.
    Shell(&'static str),
}

pub(super) const CASES: [Case; 21] = [
    Case {
        rules: Rules::Both(DOCKER),
        said: &[
            "chain FORWARD of table ip filter (forward hook)",
            "chain FORWARD of table ip6 filter",
        ],
        commands: &[
            "iptables -I DOCKER-USER -i pm+ -j ACCEPT",
            "ip6tables -I DOCKER-USER -o pm+",
        ],
    },
    Case {
        rules: Rules::Shell("iptables -P FORWARD DROP"),
        said: &["chain FORWARD of table ip filter (forward hook), its policy is drop"],
        commands: &["iptables -I FORWARD -i pm+"],
    },
    Case {
        rules: Rules::Both(UFW),
        said: &[
            "chain FORWARD of table ip filter (forward hook), a rule of it",
            "table ip6 filter",
        ],
        commands: &["iptables -I FORWARD -o pm+"],
    },
    Case {
        rules: Rules::Nft(FIREWALLD),
        // Its INPUT is closed to everybody.
        said: &[
            "drops all packets of pods: chain filter_FORWARD of table inet firewalld (forward hook), a rule",
        ],
        commands: &[
            "nft 'insert rule inet firewalld filter_FORWARD iifname \"pm*\" accept; insert rule",
        ],
    },
    Case {
        rules: Rules::Nft(
            "table ip t { chain c { type filter hook forward priority 0
                iifname \"pm*\" oifname \"mesh0\" drop; }\n}",
        ),
        said: &["drops packets of pods to other nodes: chain c"],
        commands: &["insert rule ip t c iifname"],
    },
    Case {
        rules: Rules::Shell("iptables -t raw -A PREROUTING -i mesh0 -j DROP"),
        said: &["drops packets of other nodes to pods: chain PREROUTING of table ip raw"],
        commands: &["iptables -t raw -I PREROUTING -i mesh0 -j ACCEPT"],
    },
    Case {
        rules: Rules::Nft(
            "table inet t { chain out { type filter hook postrouting priority 0; policy drop
                oifname eth0 accept; }\n}",
        ),
        said: &[
            "all packets of pods: chain out of table inet t (postrouting hook), its policy is drop",
        ],
        commands: &["insert rule inet t out oifname \"mesh0\" accept"],
    },
    Case {
        rules: Rules::Nft(
            "table inet t { chain out { type filter hook output priority 0; policy drop
                oifname lo accept; tcp dport 443 accept; ct state established accept; }\n}",
        ),
        said: &[
            "drops the datagrams of the tunnels and packets of this machine itself to pods and other nodes: \
             chain out of table inet t (output hook)",
        ],
        commands: &["insert rule inet t out udp sport 7077 accept"],
    },
    Case {
        // Open to its network, and closed to pods.
        rules: Rules::Nft(
            "table inet f { chain i { type filter hook input priority 0; policy drop
                iifname eth0 accept; iifname lo accept; ct state established,related accept; }\n}",
        ),
        said: &[
            "drops packets of pods and other nodes to this machine itself: \
             chain i of table inet f (input hook), its policy is drop",
        ],
        commands: &[
            "insert rule inet f i iifname \"pm*\" accept; insert rule inet f i iifname \"mesh0\" accept",
        ],
    },
    Case {
        rules: Rules::Shell(
            "iptables -P INPUT DROP; iptables -A INPUT -i pm+ -j ACCEPT
             iptables -A INPUT -i eth0 -j ACCEPT",
        ),
        said: &["drops packets of other nodes to this machine itself: chain INPUT of table ip filter"],
        commands: &["iptables -I INPUT -i mesh0 -j ACCEPT"],
    },
    Case {
        rules: Rules::Nft(
            "table netdev fw { chain i { type filter hook ingress device lo priority 0; policy drop; }\n}
             table netdev fv { chain i { type filter hook ingress device mesh0 priority 0; policy drop
                ip protocol icmp accept; }\n}",
        ),
        said: &[
            "drops packets of other nodes to pods and packets of other nodes to this machine itself: \
             chain i of table netdev fv (ingress hook), its policy",
        ],
        commands: &["insert rule netdev fv i iifname \"mesh0\" accept"],
    },
    Case {
        rules: Rules::Nft(
            "table netdev fw { chain e { type filter hook egress devices = { lo, mesh0 } priority 0
                meta protocol { ip, ip6 } drop; }\n}",
        ),
        said: &[
            "drops packets of pods to other nodes and packets of this machine itself to other nodes: \
             chain e of table netdev fw (egress hook)",
        ],
        commands: &["insert rule netdev fw e oifname \"mesh0\" accept"],
    },
    Case {
        rules: Rules::Nft(
            "table inet fw { chain i { type filter hook ingress device \"pm0123456789a\" priority 0
                ip saddr 10.0.0.0/8 drop; }\n}",
        ),
        said: &[
            "drops packets of pods to other nodes and packets between pods of this node: chain i of table \
             inet fw (ingress hook)",
        ],
        commands: &["insert rule inet fw i iifname \"pm*\" accept"],
    },
    Case {
        rules: Rules::Nft(
            "table inet m { chain p { type filter hook prerouting priority -150
                meta mark set 0xffffffff; }\n}",
        ),
        said: &["gives the mark of the tunnels' datagrams to all packets of pods: chain p"],
        commands: &["insert rule inet m p iifname \"mesh0\" accept"],
    },
    Case {
        rules: Rules::Both(
            "$x -t mangle -A PREROUTING -i pm+ -j MARK --set-xmark 0xf0ff/0xffff",
        ),
        said: &[
            "to packets of pods to other nodes and packets between pods of this node: chain PREROUTING of \
             table ip mangle",
            "table ip6 mangle",
        ],
        commands: &["iptables -t mangle -I PREROUTING -i pm+ -j ACCEPT"],
    },
    Case {
        rules: Rules::Nft(
            "table inet m { chain o { type route hook output priority -150
                meta mark set meta mark or 0x101c; }\n}",
        ),
        said: &[
            "gives the mark of the tunnels' datagrams to packets of this machine itself to pods and \
             other nodes: chain o",
        ],
        commands: &["insert rule inet m o oifname \"mesh0\" accept"],
    },
    Case {
        rules: Rules::Both("$x -P OUTPUT DROP; $x -A OUTPUT -p udp -j ACCEPT"),
        said: &[
            "drops packets of this machine itself to pods and other nodes: chain OUTPUT of table ip filter",
            "table ip6 filter",
        ],
        commands: &["iptables -I OUTPUT -o pm+ -j ACCEPT; iptables -I OUTPUT -o mesh0 -j ACCEPT"],
    },
    Case {
        // What the reference plugin `firewall` makes, one pair of rules for each pod: they let it begin, and nobody
        // begin with it.
        rules: Rules::Shell(
            "iptables -N CNI-FORWARD; iptables -P FORWARD DROP; iptables -A FORWARD -j CNI-FORWARD
             iptables -A CNI-FORWARD -d 10.42.3.17/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
             iptables -A CNI-FORWARD -s 10.42.3.17/32 -j ACCEPT
             iptables -A CNI-FORWARD -s 10.42.3.32/27 -j ACCEPT",
        ),
        said: &["drops packets of other nodes to pods: chain FORWARD of table ip filter"],
        commands: &["iptables -I FORWARD -o pm+ -j ACCEPT"],
    },
    Case {
        rules: Rules::Nft(
            "table ip t { set here { type ipv4_addr; flags interval; elements = { 10.42.3.0/24, 192.0.2.1 } }
                chain c { type filter hook forward priority 0; policy drop
                ip saddr @here accept; }\n}",
        ),
        said: &["drops packets of other nodes to pods: chain c of table ip t"],
        commands: &["insert rule ip t c oifname \"pm*\" accept"],
    },
    Case {
        rules: Rules::Nft(
            "table ip t { chain c { type filter hook forward priority 0; policy drop
                ip daddr 10.42.3.17 accept; ip saddr != 10.42.3.0/24 accept; }\n}",
        ),
        said: &["drops packets of pods to other nodes: chain c of table ip t"],
        commands: &["insert rule ip t c iifname \"pm*\" accept"],
    },
    Case {
        // The own address is nobody else's.
        rules: Rules::Nft(
            "table ip t { chain c { type filter hook input priority 0; policy drop
                iifname { lo, eth0 } accept; iifname \"pm*\" accept; ip saddr 10.77.0.3 accept; }\n}",
        ),
        said: &["drops packets of other nodes to this machine itself: chain c of table ip t"],
        commands: &["iifname \"mesh0\" accept"],
    },
];
