//! Ports that a translation leaves alone, and connections that began while the rules were away.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    net::{SocketAddr, UdpSocket},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use podmesh_kernel::{
    nft,
    udp::{self as underlay, Options},
};

use super::{Scene, guard, namespaces::Namespace, udp};

#[test]
fn a_pod_that_asks_two_from_one_port_is_seen_behind_one() {
    let scene = Scene::new("ports");
    scene.outside.command("ip addr add 192.0.2.3/24 dev eth0");
    let others = ["192.0.2.2:9000", "192.0.2.3:9001"].map(|address| udp(&scene.outside, address));
    let pod = udp(&scene.pod, "10.42.3.2:40123");
    let mut seen = BTreeSet::new();
    for other in &others {
        pod.send_to(b"x", other.local_addr().unwrap()).unwrap();
        seen.extend(arrival(other));
    }
    let expected: SocketAddr = "192.0.2.1:40123".parse().unwrap();
    assert_eq!(seen, BTreeSet::from([expected]));

    // A second pod with the same port gets another one, and that for both as well.
    scene.pod.command("ip addr add 10.42.3.3/32 dev eth0");
    scene.node.command("ip route add 10.42.3.3/32 dev pm000");
    let second = udp(&scene.pod, "10.42.3.3:40123");
    let seen: Vec<_> = others
        .iter()
        .map(|other| {
            second.send_to(b"x", other.local_addr().unwrap()).unwrap();
            arrival(other).expect("a datagram")
        })
        .collect();
    assert!(seen.iter().all(|from| from.ip() == expected.ip()));
    assert_eq!(seen.len(), 2, "{seen:?}");
}

#[test]
fn a_container_that_asks_two_peers_from_one_port_keeps_it() {
    let scene = Scene::new("cports");
    let (_container, socket) = container(&scene, "172.17.0.2:40124");
    scene.outside.command("ip addr add 10.42.9.8/32 dev far");
    for address in ["10.42.9.9:9000", "10.42.9.8:9000"] {
        let peer = udp(&scene.outside, address);
        socket.send_to(b"x", address).unwrap();
        assert_eq!(arrival(&peer), Some("10.77.0.3:40124".parse().unwrap()));
    }
}

#[test]
fn connections_that_began_without_the_rules_are_translated_once_they_are_back() {
    let scene = Scene::new("stray");
    to_the_mesh(&scene);
    let world = udp(&scene.outside, "192.0.2.2:9000");
    let peer = udp(&scene.outside, "10.42.9.9:9000");
    let early = udp(&scene.pod, "10.42.3.2:40001");
    early.send_to(b"x", "192.0.2.2:9000").unwrap();
    arrival(&world).expect("a datagram");

    remove_the_rules(&scene);
    let late = udp(&scene.pod, "10.42.3.2:40002");
    late.send_to(b"x", "192.0.2.2:9000").unwrap();
    assert_eq!(arrival(&world), Some("10.42.3.2:40002".parse().unwrap()));
    let inside = udp(&scene.pod, "10.42.3.2:40003");
    inside.send_to(b"x", "10.42.9.9:9000").unwrap();
    assert_eq!(arrival(&peer), Some("10.42.3.2:40003".parse().unwrap()));
    let own = udp(&scene.node, "192.0.2.1:9000");
    let to_the_node = udp(&scene.pod, "10.42.3.2:40004");
    to_the_node.send_to(b"x", "192.0.2.1:9000").unwrap();
    arrival(&own).expect("a datagram");
    let before = connections(&scene.node);

    assert_eq!(put_the_rules_back(&scene), 1);
    let after = connections(&scene.node);
    let gone: Vec<_> = before.difference(&after).collect();
    assert_eq!(gone.len(), 1, "only what was wrong is cut: {gone:?}");
    assert!(gone[0].contains("sport=40002"), "{gone:?}");
    late.send_to(b"x", "192.0.2.2:9000").unwrap();
    assert_eq!(arrival(&world), Some("192.0.2.1:40002".parse().unwrap()));
    early.send_to(b"x", "192.0.2.2:9000").unwrap();
    assert_eq!(arrival(&world), Some("192.0.2.1:40001".parse().unwrap()));
}

#[test]
fn a_container_that_called_a_peer_without_the_rules_is_translated_too() {
    let scene = Scene::new("cstray");
    let (_container, socket) = container(&scene, "172.17.0.2:40124");
    let peer = udp(&scene.outside, "10.42.9.9:9000");
    remove_the_rules(&scene);
    socket.send_to(b"x", "10.42.9.9:9000").unwrap();
    assert_eq!(arrival(&peer), Some("172.17.0.2:40124".parse().unwrap()));
    assert_eq!(put_the_rules_back(&scene), 1);
    socket.send_to(b"x", "10.42.9.9:9000").unwrap();
    assert_eq!(arrival(&peer), Some("10.77.0.3:40124".parse().unwrap()));
}

#[test]
fn rules_that_were_incomplete_leave_strays_as_well() {
    let scene = Scene::new("part");
    let world = udp(&scene.outside, "192.0.2.2:9000");
    track(&scene);
    scene.node.command(
        "nft flush chain inet podmesh source-nat; nft flush chain inet podmesh fail-closed",
    );
    let pod = udp(&scene.pod, "10.42.3.2:40002");
    pod.send_to(b"x", "192.0.2.2:9000").unwrap();
    assert_eq!(arrival(&world), Some("10.42.3.2:40002".parse().unwrap()));
    assert_eq!(put_the_rules_back(&scene), 1);
    pod.send_to(b"x", "192.0.2.2:9000").unwrap();
    assert_eq!(arrival(&world), Some("192.0.2.1:40002".parse().unwrap()));
}

#[test]
fn a_few_strays_among_many_connections_are_found_and_nothing_else_is_cut() {
    let node = Namespace::new("many");
    let mut lines = String::new();
    let mut add = |from: &str, to: &str, port: u32| {
        writeln!(
            lines,
            "-A -p udp -s {from} -d {to} --sport {port} --dport 53 -r {to} -q {from} --reply-port-src 53 \
             --reply-port-dst {port} -t 600"
        )
        .unwrap();
    };
    for port in 1..=20_000 {
        add("10.42.3.2", "10.42.9.9", port);
    }
    for port in 1..=300 {
        add("10.42.3.2", "198.51.100.7", port);
    }
    let file = std::env::temp_dir().join(format!("{}.conntrack", node.name()));
    fs::write(&file, lines).unwrap();
    // Without rules that use it the kernel tracks nothing, and forgets nothing either.
    node.command(&format!("conntrack -R {}", file.display()));
    fs::remove_file(&file).unwrap();
    let begin = Instant::now();
    assert_eq!(node.run(|| nft::forget_strays(&guard()).unwrap()), 300);
    let taken = begin.elapsed();
    assert!(taken < Duration::from_secs(5), "{taken:?}");
    let left = node.command("conntrack -C");
    assert_eq!(left.trim(), "20000");
}

#[test]
fn sockets_with_another_mark_than_before_are_seen_at_their_ports() {
    let scene = Scene::new("marks");
    let world = udp(&scene.outside, "192.0.2.2:9000");
    scene.node.command(
        "nft add table ip theirs
         nft add chain ip theirs out \"{ type nat hook postrouting priority 100; }\"
         nft add rule ip theirs out meta mark and 0x4000 != 0 masquerade fully-random",
    );
    let mark = |mark| Options {
        mark: Some(mark),
        ..Options::default()
    };
    let sockets = ["192.0.2.1:40001", "192.0.2.1:40002"].map(|address| {
        scene.node.run(|| {
            let address = address.parse().unwrap();
            underlay::UdpSocket::bind(address, &mark(0x6d65))
                .unwrap()
                .into_std()
        })
    });
    let ports = || {
        sockets.each_ref().map(|socket| {
            socket.send_to(b"x", "192.0.2.2:9000").unwrap();
            arrival(&world).expect("a datagram").port()
        })
    };
    let [one, other] = ports();
    assert!(one != 40_001 && other != 40_002, "{one} {other}");
    let sockets = sockets.map(OwnedFd::from);
    let sockets = scene.node.run(|| {
        sockets.map(|socket| {
            underlay::UdpSocket::adopt(socket, &mark(0x101c))
                .unwrap()
                .into_std()
        })
    });
    let ports = || {
        sockets.each_ref().map(|socket| {
            socket.send_to(b"x", "192.0.2.2:9000").unwrap();
            arrival(&world).expect("a datagram").port()
        })
    };
    assert_eq!(ports(), [one, other], "the kernel has forgotten by itself");
    let forget = || {
        scene
            .node
            .run(|| nft::forget_translated(&[40_001, 40_009]).unwrap())
    };
    assert_eq!(forget(), 1);
    assert_eq!(ports(), [40_001, other]);
    assert_eq!(forget(), 0);
}

fn remove_the_rules(scene: &Scene) {
    track(scene);
    scene.node.run(|| nft::remove().unwrap());
}

/// Has connections tracked whatever becomes of our rules, as kube-proxy and most firewalls do.
fn track(scene: &Scene) {
    scene.node.command(
        "nft add table inet theirs
         nft add chain inet theirs watch \"{ type filter hook forward priority 0; }\"
         nft add rule inet theirs watch ct state new counter",
    );
}

/// Gives how many connections were forgotten.
fn put_the_rules_back(scene: &Scene) -> usize {
    scene.node.run(|| {
        assert!(nft::ensure(&guard()).unwrap());
        nft::forget_strays(&guard()).unwrap()
    })
}

fn to_the_mesh(scene: &Scene) {
    scene.node.command("ip route add 10.42.9.8/31 dev mesh0");
    scene.outside.command("ip route add 10.0.0.0/8 dev far");
}

/// A container behind another plugin's bridge, and a socket of it.
fn container(scene: &Scene, address: &str) -> (Namespace, UdpSocket) {
    to_the_mesh(scene);
    let container = Namespace::new(&format!(
        "{}c",
        scene.node.name().rsplit('-').next().unwrap()
    ));
    scene.node.command(&format!(
        "ip link add docker0 type veth peer name eth0 netns {c}
         ip addr add 172.17.0.1/16 dev docker0
         ip link set docker0 up
         ip -n {c} addr add 172.17.0.2/16 dev eth0
         ip -n {c} link set eth0 up
         ip -n {c} route add default via 172.17.0.1",
        c = container.name()
    ));
    scene.outside.command("ip route add 172.17.0.0/16 dev far");
    let socket = udp(&container, address);
    (container, socket)
}

/// Whom the next datagram is from.
fn arrival(receiver: &UdpSocket) -> Option<SocketAddr> {
    receiver.recv_from(&mut [0; 64]).ok().map(|(_, from)| from)
}

/// The ends and the id of every connection that the kernel knows there.
fn connections(node: &Namespace) -> BTreeSet<String> {
    let list = node.command("conntrack -L -o id 2>/dev/null");
    let words = |line: &str| {
        line.split_whitespace()
            .filter(|word| word.contains('='))
            .collect::<Vec<_>>()
            .join(" ")
    };
    list.lines().map(words).collect()
}
