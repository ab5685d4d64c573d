//! The capture sees what it must see, and the power cut takes what it must take.

use std::net::UdpSocket;
use std::panic::{self, AssertUnwindSafe};

use podmesh_lab::{Lab, Nat};

fn lab(name: &str) -> Lab {
    let mut plan = Lab::plan(name);
    plan.site("home").nat(Nat::PortRestricted);
    plan.site("cloud");
    plan.node("home-1").at("home");
    plan.node("home-2").at("home");
    plan.node("cloud-1").at("cloud");
    plan.up().unwrap()
}

/// Sends one packet from `node` with an address of the mesh as its source.
fn leak(lab: &Lab, node: &str, source: &str, target: &str) {
    let node = lab.node(node).unwrap();
    let namespace = node.namespace();
    namespace
        .ip(&format!("address add {source}/32 dev lo"))
        .unwrap();
    let socket = namespace
        .inside(|| UdpSocket::bind((source, 4000)))
        .unwrap()
        .unwrap();
    socket.send_to(b"plaintext", (target, 4000)).unwrap();
}

#[test]
fn a_leak_is_seen_wherever_it_leaves_a_node() {
    let lab = lab("leaks");
    lab.leaks_are_judged_here();
    let capture = lab.capture();
    let cloud = lab.node("cloud-1").unwrap().public_address().to_string();
    lab.node("home-1")
        .unwrap()
        .namespace()
        .run(&["ping", "-c", "1", &cloud])
        .unwrap();
    let verdict = capture
        .must_be_clean()
        .expect("an ordinary ping is no leak");
    assert!(verdict.frames >= 2, "{verdict}");

    // Whoever receives a packet holds its port open, so that no error goes back.
    let cloud_namespace = lab.node("cloud-1").unwrap().namespace();
    let silent = cloud_namespace
        .inside(|| UdpSocket::bind("0.0.0.0:4000"))
        .unwrap()
        .unwrap();
    leak(&lab, "home-1", "10.42.1.7", &cloud);
    let verdict = capture.verdict();
    assert!(verdict.by_place["the LAN of home"] == 1, "{verdict:?}");

    let neighbour = lab.node("home-2").unwrap();
    let _silent = neighbour
        .namespace()
        .inside(|| UdpSocket::bind("0.0.0.0:4000"))
        .unwrap();
    let neighbour = neighbour.seat().v4.to_string();
    leak(&lab, "home-1", "10.77.0.9", &neighbour);
    assert_eq!(
        capture.verdict().by_place["the LAN of home"],
        2,
        "between two nodes of one LAN"
    );

    drop(silent);
    leak(&lab, "cloud-1", "10.42.2.7", "10.42.1.7");
    let verdict = capture.verdict();
    assert_eq!(verdict.by_place["the core"], 1, "{verdict:?}");
    assert_eq!(verdict.leaks, 3);
    let error = capture
        .must_be_clean()
        .expect_err("three packets leaked")
        .to_string();
    assert!(error.contains("from 10.42.1.7"), "{error}");
}

/// The hardware address of a site's router, as its nodes know it.
fn gateway_of(lab: &Lab, site: &str) -> Option<String> {
    let router = lab.site(site).unwrap().router().unwrap();
    let shown = router
        .run(&["ip", "-brief", "link", "show", "lan"])
        .unwrap();
    shown.split_whitespace().nth(2).map(str::to_owned)
}

#[test]
fn a_power_cut_takes_everything_but_the_disk_and_the_address() {
    let lab = lab("power");
    lab.leaks_are_judged_here();
    let capture = lab.capture();
    let gateway = gateway_of(&lab, "home");
    for name in ["home-1", "cloud-1"] {
        let node = lab.node(name).unwrap();
        std::fs::create_dir_all(node.state_dir()).unwrap();
        std::fs::create_dir_all(node.runtime_dir()).unwrap();
        std::fs::write(node.state_dir().join("disk"), "kept").unwrap();
        node.namespace().ip("link add mesh0 type bridge").unwrap();
        node.power_cut().unwrap();
        assert!(!node.runtime_dir().exists());
        node.power_on().unwrap();
        assert!(
            node.namespace()
                .run(&["ip", "link", "show", "mesh0"])
                .is_err()
        );
        assert_eq!(
            std::fs::read(node.state_dir().join("disk")).unwrap(),
            b"kept"
        );
    }
    assert_eq!(
        gateway_of(&lab, "home"),
        gateway,
        "neighbours know that one"
    );
    let cloud = lab.node("cloud-1").unwrap().public_address().to_string();
    let home = lab.node("home-1").unwrap().namespace();
    home.run(&["ping", "-c", "1", "-W", "2", &cloud])
        .expect("both are back at their places");
    let before = capture.verdict().leaks;
    leak(&lab, "cloud-1", "10.42.3.7", "10.42.1.7");
    assert_eq!(
        capture.verdict().leaks,
        before + 1,
        "the new cable into the core is watched"
    );
    leak(&lab, "home-1", "10.42.3.8", "10.42.1.7");
    assert_eq!(
        capture.verdict().leaks,
        before + 3,
        "the one into the LAN and the way out, too"
    );
}

/// Sends one IP in IP packet between two addresses of the underlay with addresses of the mesh in
/// it. The kernel of a test machine need not know such tunnels, but every raw socket does.
fn leak_inside_a_tunnel(lab: &Lab, node: &str, target: &str) {
    const SEND: &str = "import socket, sys\n\
        inner = bytes.fromhex('45000014000000004011' + '0000' + '0a2a0909' + '0a2a0808')\n\
        socket.socket(socket.AF_INET, socket.SOCK_RAW, 4).sendto(inner, (sys.argv[1], 0))";
    let namespace = lab.node(node).unwrap().namespace();
    namespace.run(&["python3", "-c", SEND, target]).unwrap();
}

#[test]
fn a_lab_that_leaked_does_not_end_well() {
    let ending = |name: &str, spoil: fn(&Lab)| {
        let lab = lab(name);
        spoil(&lab);
        let ended = panic::catch_unwind(AssertUnwindSafe(|| drop(lab)));
        ended.err().map(|panic| {
            let prefix = format!("podmesh-kept-{name}-{}", std::process::id());
            std::fs::remove_dir_all(std::env::temp_dir().join(prefix)).expect("kept logs");
            *panic.downcast::<String>().expect("a message")
        })
    };
    assert_eq!(ending("quiet", |_| {}), None);
    let named = ending("spoilt", |lab| {
        leak(lab, "cloud-1", "10.42.2.7", "10.42.1.7");
    });
    let named = named.expect("a leak is not forgiven");
    assert!(named.contains("from 10.42.2.7 to 10.42.1.7"), "{named}");
    let named = ending("hidden", |lab| {
        let cloud = lab.node("cloud-1").unwrap().public_address().to_string();
        leak_inside_a_tunnel(lab, "home-1", &cloud);
    });
    let named = named.expect("a tunnel without encryption hides nothing");
    assert!(named.contains("from 10.42.9.9 to 10.42.8.8"), "{named}");
}

#[test]
fn a_mesh_of_other_ranges_is_watched_in_those() {
    let mut plan = Lab::plan("elsewhere");
    plan.site("cloud");
    plan.node("cloud-1").at("cloud");
    plan.mesh_ranges(&["100.80.0.0/16".parse().unwrap()]);
    let lab = plan.up().unwrap();
    lab.leaks_are_judged_here();
    leak(&lab, "cloud-1", "10.42.2.7", "198.51.100.200");
    leak(&lab, "cloud-1", "100.80.1.1", "198.51.100.200");
    let verdict = lab.capture().verdict();
    assert_eq!(verdict.leaks, 1, "{verdict}");
}
