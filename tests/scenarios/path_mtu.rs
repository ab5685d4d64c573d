//! The MTU of each path is found, followed when it changes, and nothing hangs meanwhile, although no
//! router ever says a word about it.

use std::fs;
use std::time::{Duration, Instant};

use podmesh_lab::{Lab, Mesh, Nat, Node, Pod, mesh, process, wait};

use crate::world;

/// What a datagram over IPv4 adds to an inner packet.
const OVERHEAD: u32 = 60;
const LEAST: u32 = 1_280;
/// Bytes that may be left unused.
const PRECISION: u32 = 8;
const CONVERGES: Duration = Duration::from_secs(3);
const TRANSFER: Duration = Duration::from_secs(5);

const MUTE: &str = "table inet mute {
    chain out {
        type filter hook output priority 0
        icmp type destination-unreachable drop
        icmpv6 type packet-too-big drop
    }
}
";

/// Two homes, of whose routers nothing is heard.
fn two_homes(name: &str, underlay: u32) -> Lab {
    let mut plan = Lab::plan(name);
    plan.planet("planet-1");
    for (site, node) in [("home", "home-1"), ("cabin", "cabin-1")] {
        plan.site(site).nat(Nat::PortRestricted);
        plan.node(node).at(site);
    }
    plan.delay("home", "cabin", Duration::from_millis(10));
    let lab = plan.up().unwrap();
    for site in lab.sites() {
        site.router().unwrap().nft(MUTE).unwrap();
    }
    set_underlay(&lab, underlay);
    lab
}

fn set_underlay(lab: &Lab, mtu: u32) {
    for site in lab.sites() {
        let router = site.router().unwrap();
        router.ip(&format!("link set wan mtu {mtu}")).unwrap();
    }
}

fn join(lab: &Lab) {
    let mesh = Mesh::found(lab, "planet-1").unwrap();
    mesh.join_all().unwrap();
    let limit = Duration::from_secs(20);
    mesh.wait_for(&world::nodes(lab), "direct paths", limit, mesh::is_direct)
        .unwrap();
}

/// Waits until each node's only peer has the best MTU; how long that took.
fn converge(lab: &Lab, underlay: u32) -> Duration {
    let begin = Instant::now();
    let best = (underlay - OVERHEAD).max(LEAST);
    let what = format!("an MTU of {best} over {underlay}");
    for node in world::nodes(lab) {
        wait::until(&what, CONVERGES, || {
            let mtu = mtu_of(node);
            Ok(if mtu <= best && mtu + PRECISION >= best {
                wait::Now(())
            } else {
                wait::NotYet(format!("{}: {mtu}", node.name()))
            })
        })
        .unwrap();
    }
    begin.elapsed()
}

fn mtu_of(node: &Node) -> u32 {
    let peers = node.peers().unwrap();
    peers.first().and_then(|peer| peer.mtu).unwrap_or(0)
}

/// Ten megabytes there and back.
fn transfer(from: &Pod, to: &Pod) -> Duration {
    let begin = Instant::now();
    let target = to.address(false).unwrap().to_string();
    for more in [&[][..], &["--reverse"]] {
        let mut command = from.namespace().command("iperf3");
        command.args(["--client", &target, "--bytes", "10M"]);
        let output = process::output(command.args(more), b"", TRANSFER).unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
    }
    begin.elapsed()
}

/// How often a node has changed the MTU of its peer's path.
fn changes(node: &Node) -> usize {
    let log = fs::read_to_string(node.log()).unwrap();
    log.lines().filter(|line| line.contains(" MTU ")).count()
}

#[test]
fn each_underlay_is_used_from_the_start() {
    for underlay in [1_280, 1_400, 1_460, 1_492, 1_500] {
        let lab = two_homes(&format!("mtu-{underlay}"), underlay);
        join(&lab);
        let took = converge(&lab, underlay);
        let [one, other] = ["home-1", "cabin-1"].map(|name| lab.node(name).unwrap());
        let (here, there) = (one.add_pod("a").unwrap(), other.add_pod("b").unwrap());
        there.serve_iperf3().unwrap();
        let moved = transfer(&here, &there);
        println!(
            "figure underlay {underlay}: MTU {} and {} within {:.1} s of the direct path, \
             2 x 10 MB in {:.1} s",
            mtu_of(one),
            mtu_of(other),
            took.as_secs_f32(),
            moved.as_secs_f32()
        );
        let expected = usize::from(underlay > 1_340);
        for node in [one, other] {
            assert_eq!(changes(node), expected, "{}", node.name());
        }
    }
}

#[test]
fn each_change_of_the_underlay_is_followed_under_traffic() {
    let lab = two_homes("mtu-midway", 1_500);
    join(&lab);
    converge(&lab, 1_500);
    let [one, other] = ["home-1", "cabin-1"].map(|name| lab.node(name).unwrap());
    let (here, there) = (one.add_pod("a").unwrap(), other.add_pod("b").unwrap());
    there.serve_iperf3().unwrap();
    transfer(&here, &there);
    for underlay in [1_400, 1_280, 1_460, 1_492, 1_400, 1_500] {
        let before = [one, other].map(changes);
        set_underlay(&lab, underlay);
        // The traffic that makes both ends look after the path.
        let moved = transfer(&here, &there);
        let moved = moved.max(transfer(&here, &there));
        let took = converge(&lab, underlay);
        println!(
            "figure underlay changed to {underlay}: MTU {} and {} within {:.1} s, \
             2 x 10 MB in {:.1} s at most",
            mtu_of(one),
            mtu_of(other),
            took.as_secs_f32(),
            moved.as_secs_f32()
        );
        for (node, before) in [one, other].into_iter().zip(before) {
            assert_eq!(changes(node) - before, 1, "{}", node.name());
        }
    }
}

#[test]
fn long_frames_inside_a_site_are_used() {
    let mut plan = Lab::plan("mtu-jumbo");
    plan.planet("planet-1");
    plan.site("home").nat(Nat::PortRestricted);
    plan.node("home-1").at("home");
    plan.node("home-2").at("home");
    let lab = plan.up().unwrap();
    let router = lab.site("home").unwrap().router().unwrap();
    let ports = router.run(&["ls", "/sys/class/net/lan/brif"]);
    let ports = ports.unwrap_or_else(|_| "node-10 node-11".into());
    for port in ports.split_whitespace() {
        router.ip(&format!("link set {port} mtu 9000")).unwrap();
    }
    router.ip("link set lan mtu 9000").unwrap();
    for node in world::nodes(&lab) {
        node.namespace().ip("link set eth0 mtu 9000").unwrap();
    }
    join(&lab);
    let took = converge(&lab, 9_000);
    println!("figure underlay 9000: within {:.1} s", took.as_secs_f32());
}
