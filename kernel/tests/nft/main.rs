//! The own nftables table in throw-away network namespaces: what the `nft` program reads back,
//! and what happens to real packets.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod connections;
mod firewall;
mod namespaces;

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use podmesh_kernel::{
    mark::Mark,
    netns::NetNamespace,
    nft::{self, GuardRules},
};

use namespaces::Namespace;

const MARK: Mark = Mark {
    value: 0x101c,
    mask: 0x101c,
};

fn guard() -> GuardRules {
    GuardRules {
        device: "mesh0".to_owned(),
        veth_prefix: "pm".to_owned(),
        local_devices: vec!["docker0".to_owned()],
        protected: ["10.42.0.0/16", "10.77.0.0/16", "fd12:3456:789a::/48"]
            .map(|range| range.parse().unwrap())
            .into(),
        own_pod_cidrs: ["10.42.3.0/24", "fd12:3456:789a:103::/64"]
            .map(|range| range.parse().unwrap())
            .into(),
        own_overlay: ["10.77.0.3", "fd12:3456:789a::3"]
            .map(|address| address.parse().unwrap())
            .into(),
        mark: MARK,
    }
}

#[test]
fn the_rules_are_read_back_in_the_words_of_nft() {
    let node = Namespace::new("words");
    assert!(node.run(|| nft::ensure(&guard()).unwrap()));
    let text = node.command("nft list table inet podmesh");
    for line in [
        "type filter hook prerouting priority raw - 10; policy accept;",
        "type filter hook postrouting priority 320; policy accept;",
        "type nat hook postrouting priority srcnat; policy accept;",
        "iifname \"pm*\" fib saddr . iif oif 0 counter packets 0 bytes 0 drop",
        "iifname \"pm*\" icmpv6 type nd-router-advert counter",
        "ip daddr 10.42.0.0/16 counter packets 0 bytes 0 drop comment \"would leave unencrypted\"",
        "ip6 daddr fd12:3456:789a::/48 counter packets 0 bytes 0 drop",
        "meta mark & 0x0000101c == 0x0000101c oifname \"mesh0\" counter packets 0 bytes 0 drop",
        "oifname \"docker0\" ip daddr 10.42.3.0/24 accept",
        "oifname != \"mesh0\" oifname != \"pm*\" ip saddr 10.42.3.0/24",
        "masquerade comment",
        "snat ip to 10.77.0.3 comment",
        "snat ip6 to fd12:3456:789a::3 comment",
        "tcp option maxseg size set rt mtu",
    ] {
        assert!(text.contains(line), "{line:?} is not in:\n{text}");
    }
    let json = node.command("nft -j list table inet podmesh");
    assert_eq!(json.matches("\"hook\":").count(), 5, "{json}");
}

#[test]
fn right_rules_are_left_alone_and_wrong_ones_repaired() {
    let node = Namespace::new("repair");
    let (wanted, ensure) = (guard(), || node.run(|| nft::ensure(&guard()).unwrap()));
    assert!(!node.run(|| nft::check(&wanted).unwrap()));
    assert!(ensure());
    assert!(!ensure());
    let mut shuffled = guard();
    shuffled.protected.reverse();
    shuffled.own_overlay.reverse();
    assert!(!node.run(|| nft::ensure(&shuffled).unwrap()));
    for damage in [
        "nft flush ruleset",
        "nft flush chain inet podmesh fail-closed",
        "nft add rule inet podmesh foreign-arrival accept",
        "nft insert rule inet podmesh fail-closed accept",
        "nft add chain inet podmesh more",
        "nft add table inet podmesh \"{ flags dormant; }\"",
        "nft delete table inet podmesh",
        // The same comment over a rule that lets everything pass.
        "nft replace rule inet podmesh fail-closed handle $(nft -a list chain inet podmesh fail-closed | sed -n \"s/.*daddr 10.42.0.0.16.*would leave.*handle //p\") ip daddr 10.42.0.0/16 counter accept comment \\\"would leave unencrypted\\\"",
        "nft replace rule inet podmesh fail-closed handle $(nft -a list chain inet podmesh fail-closed | sed -n \"s/.*daddr 10.42.0.0.16.*would leave.*handle //p\") ip daddr 10.42.0.0/17 counter drop comment \\\"would leave unencrypted\\\"",
    ] {
        node.command(damage);
        assert!(!node.run(|| nft::check(&wanted).unwrap()), "{damage}");
        assert!(ensure(), "{damage}");
        assert!(!ensure(), "{damage}");
    }
    let mut fewer = guard();
    fewer.protected.pop();
    assert!(node.run(|| nft::ensure(&fewer).unwrap()));
    assert!(
        !node
            .command("nft list ruleset")
            .contains("fd12:3456:789a::/48 counter")
    );
    assert!(node.run(|| nft::remove().unwrap()));
    assert!(!node.run(|| nft::remove().unwrap()));
    assert_eq!(node.command("nft list ruleset"), "");
}

#[test]
fn rules_of_others_are_not_touched() {
    let node = Namespace::new("others");
    node.command("nft add table inet theirs");
    node.command("nft add chain inet theirs mine \"{ type filter hook forward priority 0; }\"");
    let before = node.command("nft list ruleset");
    node.run(|| nft::ensure(&guard()).unwrap());
    node.run(|| nft::remove().unwrap());
    assert_eq!(node.command("nft list ruleset"), before);
}

#[test]
fn a_network_of_sixty_ranges_fits_into_one_transaction() {
    let node = Namespace::new("sixty");
    let mut many = guard();
    many.protected = (0..64)
        .map(|n| format!("10.{}.0.0/16", n * 2).parse().unwrap())
        .collect();
    assert!(node.run(|| nft::ensure(&many).unwrap()));
    assert!(!node.run(|| nft::ensure(&many).unwrap()));
}

/// A pod behind a node whose underlay leads to an outside machine.
struct Scene {
    node: Namespace,
    pod: Namespace,
    outside: Namespace,
}

impl Scene {
    fn new(name: &str) -> Self {
        let node = Namespace::new(&format!("{name}n"));
        let pod = Namespace::new(&format!("{name}p"));
        let outside = Namespace::new(&format!("{name}o"));
        let (n, p, o) = (node.name(), pod.name(), outside.name());
        node.command(&format!(
            "ip link add pm000 type veth peer name eth0 netns {p}
             ip link add eth0 type veth peer name eth0 netns {o}
             ip link add mesh0 type veth peer name far netns {o}
             ip -n {n} addr add 192.0.2.1/24 dev eth0
             ip -n {n} addr add 10.77.0.3/32 dev mesh0
             ip -n {n} link set eth0 up
             ip -n {n} link set mesh0 up
             ip -n {n} link set pm000 up
             ip -n {n} route add 10.42.3.2/32 dev pm000
             ip -n {n} route add default via 192.0.2.2
             ip -n {o} addr add 192.0.2.2/24 dev eth0
             ip -n {o} addr add 10.42.9.9/32 dev far
             ip -n {o} link set eth0 up
             ip -n {o} link set far up
             ip -n {p} addr add 10.42.3.2/32 dev eth0
             ip -n {p} link set eth0 up
             ip -n {p} route add default dev eth0
             sysctl -q -w net.ipv4.ip_forward=1
             sysctl -q -w net.ipv4.conf.pm000.proxy_arp=1
             sysctl -q -w net.ipv4.conf.all.rp_filter=0
             sysctl -q -w net.ipv4.conf.mesh0.proxy_arp=1"
        ));
        node.run(|| nft::ensure(&guard()).unwrap());
        Self { node, pod, outside }
    }
}

fn udp(namespace: &Namespace, address: &str) -> UdpSocket {
    let socket = namespace.run(|| UdpSocket::bind(address).unwrap());
    socket
        .set_read_timeout(Some(Duration::from_millis(1500)))
        .unwrap();
    socket
}

fn source_seen(receiver: &UdpSocket) -> Option<IpAddr> {
    match receiver.recv_from(&mut [0; 64]) {
        Ok((_, SocketAddr::V4(from))) => Some(IpAddr::V4(*from.ip())),
        Ok((_, from)) => panic!("a datagram from {from}"),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
        Err(error) => panic!("{error}"),
    }
}

fn arrived(receiver: &UdpSocket) -> bool {
    receiver.recv_from(&mut [0; 64]).is_ok()
}

#[test]
fn a_pod_meets_the_world_as_its_node_and_the_network_as_itself() {
    let scene = Scene::new("nat");
    let outside = udp(&scene.outside, "192.0.2.2:9000");
    let far = udp(&scene.outside, "10.42.9.9:9000");
    scene.node.command(&format!(
        "ip -n {} route add 10.42.9.9/32 dev mesh0",
        scene.node.name()
    ));
    scene.outside.command(&format!(
        "ip -n {} route add 10.0.0.0/8 dev far",
        scene.outside.name()
    ));
    let pod = udp(&scene.pod, "10.42.3.2:0");
    pod.send_to(b"x", "192.0.2.2:9000").unwrap();
    assert_eq!(source_seen(&outside), Some("192.0.2.1".parse().unwrap()));
    pod.send_to(b"x", "10.42.9.9:9000").unwrap();
    assert_eq!(source_seen(&far), Some("10.42.3.2".parse().unwrap()));
    let host = udp(&scene.node, "192.0.2.1:0");
    host.send_to(b"x", "10.42.9.9:9000").unwrap();
    assert_eq!(source_seen(&far), Some("10.77.0.3".parse().unwrap()));
}

#[test]
fn a_packet_for_the_network_never_leaves_by_the_underlay() {
    let scene = Scene::new("leak");
    scene.outside.command("ip addr add 10.42.9.8/32 dev eth0");
    let trap = udp(&scene.outside, "10.42.9.8:9000");
    // No route of the mesh: both packets follow the default route towards the underlay.
    let pod = udp(&scene.pod, "10.42.3.2:0");
    let _ = pod.send_to(b"x", "10.42.9.8:9000");
    let host = udp(&scene.node, "192.0.2.1:0");
    let refused = host.send_to(b"x", "10.42.9.8:9000").is_err();
    assert_eq!(source_seen(&trap), None);
    assert!(refused, "the sender on the node is told");
    let text = scene
        .node
        .command("nft list chain inet podmesh fail-closed");
    assert!(
        text.contains("ip daddr 10.42.0.0/16 counter packets 2"),
        "{text}"
    );
    // The trap itself works: without the rules the packet arrives.
    scene.node.run(|| nft::remove().unwrap());
    host.send_to(b"x", "10.42.9.8:9000").unwrap();
    assert!(source_seen(&trap).is_some());
}

#[test]
fn an_address_of_the_network_never_shows_outside() {
    let scene = Scene::new("show");
    // What somebody else's rules keep from being tracked is not translated either.
    scene.node.command(
        "nft add table ip theirs
         nft add chain ip theirs early \"{ type filter hook prerouting priority -300; }\"
         nft add rule ip theirs early iifname pm000 notrack",
    );
    let outside = udp(&scene.outside, "192.0.2.2:9000");
    let pod = udp(&scene.pod, "10.42.3.2:0");
    pod.send_to(b"x", "192.0.2.2:9000").unwrap();
    assert_eq!(source_seen(&outside), None);
    // An answer from the network to a container of another plugin does reach it.
    scene.node.command(&format!(
        "nft delete table ip theirs
         ip link set eth0 down
         ip link set eth0 name docker0
         ip link set docker0 up
         ip -n {n} route add default via 192.0.2.2",
        n = scene.node.name()
    ));
    let host = udp(&scene.node, "10.77.0.3:0");
    host.send_to(b"x", "192.0.2.2:9000").unwrap();
    assert_eq!(source_seen(&outside), Some("10.77.0.3".parse().unwrap()));
}

#[test]
fn an_own_datagram_never_enters_the_mesh() {
    let scene = Scene::new("mark");
    let far = udp(&scene.outside, "10.42.9.9:9000");
    scene.node.command(&format!(
        "ip -n {} route add 10.42.9.9/32 dev mesh0",
        scene.node.name()
    ));
    scene.outside.command(&format!(
        "ip -n {} route add 10.0.0.0/8 dev far",
        scene.outside.name()
    ));
    scene.node.command("nft add table ip marking");
    scene
        .node
        .command("nft add chain ip marking out \"{ type route hook output priority 0; }\"");
    scene
        .node
        .command("nft add rule ip marking out udp dport 9000 meta mark set 0x501c");
    let host = udp(&scene.node, "192.0.2.1:0");
    let _ = host.send_to(b"x", "10.42.9.9:9000");
    assert_eq!(source_seen(&far), None);
}

#[test]
fn a_pod_cannot_borrow_an_address() {
    let scene = Scene::new("spoof");
    let outside = udp(&scene.outside, "192.0.2.2:9000");
    scene.pod.command("ip addr add 10.42.3.7/32 dev eth0");
    scene.pod.command("ip addr add 198.51.100.7/32 dev eth0");
    for source in ["10.42.3.7:0", "198.51.100.7:0"] {
        let pod = udp(&scene.pod, source);
        let _ = pod.send_to(b"x", "192.0.2.2:9000");
        assert_eq!(source_seen(&outside), None, "{source}");
    }
    let pod = udp(&scene.pod, "10.42.3.2:0");
    pod.send_to(b"x", "192.0.2.2:9000").unwrap();
    assert!(source_seen(&outside).is_some());
}

#[test]
fn the_underlay_reaches_no_pod_and_speaks_for_none() {
    let scene = Scene::new("enter");
    scene.outside.command(&format!(
        "ip -n {o} route add 10.42.3.0/24 via 192.0.2.1
         ip -n {o} addr add 10.42.9.7/32 dev eth0",
        o = scene.outside.name()
    ));
    let pod = udp(&scene.pod, "10.42.3.2:9000");
    let node = udp(&scene.node, "192.0.2.1:9000");
    for source in ["192.0.2.2:0", "10.42.9.7:0"] {
        let neighbour = udp(&scene.outside, source);
        neighbour.send_to(b"x", "10.42.3.2:9000").unwrap();
        assert_eq!(source_seen(&pod), None, "{source}");
    }
    let neighbour = udp(&scene.outside, "10.42.9.7:0");
    neighbour.send_to(b"x", "192.0.2.1:9000").unwrap();
    assert_eq!(source_seen(&node), None);
}

#[test]
fn tcp_through_the_mesh_gets_a_fitting_segment_size() {
    let scene = Scene::new("mss");
    scene.node.command(&format!(
        "ip -n {n} link set mesh0 mtu 1280
         ip -n {n} route add 10.42.9.9/32 dev mesh0
         ip -n {o} route add 10.0.0.0/8 dev far",
        n = scene.node.name(),
        o = scene.outside.name()
    ));
    let listener = scene
        .outside
        .run(|| TcpListener::bind("10.42.9.9:9000").unwrap());
    let mut client = scene
        .pod
        .run(|| TcpStream::connect("10.42.9.9:9000").unwrap());
    let (mut server, _) = listener.accept().unwrap();
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
    let sockets = scene.outside.command("ss -tin sport = :9000");
    assert!(sockets.contains("mss:1228"), "{sockets}");
}

impl Namespace {
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        NetNamespace::open(&self.path()).unwrap().run(work).unwrap()
    }
}
