//! Wires that lose, repeat and reorder: nothing is changed or delivered twice by the tunnel, and TCP is
//! about as fast through it as beside it.

use std::net::{IpAddr, UdpSocket};
use std::process::Stdio;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use podmesh_lab::namespace::Namespace;
use podmesh_lab::{Lab, Link, Mesh, Node, Pod, mesh, process};

use crate::checked;
use crate::world;

/// Of plain TCP through the same wire.
const SHARE: f64 = 0.8;

#[test]
fn nothing_is_changed_or_delivered_twice() {
    let lab = two_clouds("bad-wires");
    let (here, there) = joined(&lab);
    faults(&lab, Duration::from_millis(10), (0.2, 0.1, 0.1));
    let seconds = world::times(6, 60) as u64;
    let bytes = AtomicU64::new(0);
    let target = there.address(false).unwrap();
    let mut seen = Seen::default();
    thread::scope(|scope| {
        let end = Instant::now() + Duration::from_secs(seconds);
        let (from, to) = (here.namespace(), there.namespace());
        let bytes = &bytes;
        scope.spawn(move || checked::stream("bad wires", (from, to, target), end, bytes));
        seen = datagrams((from, to, target), end);
    });
    println!(
        "figure 20 % lost each way, 10 % twice, 10 % late: {} of {} datagrams arrived, none of them \
         twice or changed; {} KB by TCP as they were sent",
        seen.arrived,
        seen.sent,
        bytes.load(Ordering::Relaxed) / 1_000
    );
    assert_eq!((seen.twice, seen.changed), (0, 0));
    let share = f64::from(seen.arrived) / f64::from(seen.sent);
    assert!((0.6..0.95).contains(&share), "{share}");
}

#[test]
fn tcp_through_the_mesh_is_about_as_fast_as_beside_it() {
    let lab = two_clouds("lossy-wires");
    let (here, there) = joined(&lab);
    faults(&lab, Duration::from_millis(10), (0.01, 0.0, 0.01));
    let nodes = ["left-1", "right-1"].map(|name| lab.node(name).unwrap());
    let beside = nodes.map(Node::namespace);
    for namespace in &beside {
        // The faults are meant per packet of the wire, not per super-packet of a machine.
        let off = ["tso", "gso", "gro", "tx-udp-segmentation"].map(|name| [name, "off"]);
        let words = [&["ethtool", "-K", "eth0"], off.as_flattened()].concat();
        namespace.run(&words).unwrap();
    }
    let outer: IpAddr = nodes[1].public_address().into();
    let inner = there.address(false).unwrap();
    there.serve_iperf3().unwrap();
    let mut command = beside[1].command("iperf3");
    command.arg("--server").stdout(Stdio::null());
    let server = command.spawn().map(Server);
    let _server = server.unwrap();
    thread::sleep(Duration::from_millis(500));
    let seconds = world::times(4, 30);
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..world::times(1, 7) {
        rates[0].push(rate(&beside[0], outer, seconds));
        rates[1].push(rate(here.namespace(), inner, seconds));
    }
    let [plain, meshed] = rates.map(median);
    println!(
        "figure 1 % lost, 1 % late, 20 ms: {plain:.2} Mbit/s beside the mesh, {meshed:.2} through it"
    );
    // A few seconds of so few segments say nothing about a ratio.
    assert!(meshed > 0.0);
    assert!(
        world::times(1, 7) == 1 || meshed >= SHARE * plain,
        "{meshed} of {plain}"
    );
}

/// An iperf3 server that ends with its value.
struct Server(std::process::Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn two_clouds(name: &str) -> Lab {
    let mut plan = Lab::plan(name);
    plan.planet("planet-1");
    plan.site("left");
    plan.site("right");
    plan.node("left-1").at("left");
    plan.node("right-1").at("right");
    plan.up().unwrap()
}

/// Both nodes joined and direct, with a pod each.
fn joined(lab: &Lab) -> (std::sync::Arc<Pod>, std::sync::Arc<Pod>) {
    let mesh = Mesh::found(lab, "planet-1").unwrap();
    mesh.join_all().unwrap();
    let nodes = ["left-1", "right-1"].map(|name| lab.node(name).unwrap());
    let limit = Duration::from_secs(15);
    mesh.wait_for(&nodes, "a direct path", limit, mesh::is_direct)
        .unwrap();
    let [here, there] = nodes.map(|node| node.add_pod(&format!("{}-a", node.name())).unwrap());
    (here, there)
}

fn faults(lab: &Lab, delay: Duration, (loss, duplicate, reorder): (f64, f64, f64)) {
    for (from, to) in [("left", "right"), ("right", "left")] {
        let link = Link {
            loss,
            duplicate,
            reorder,
            ..Link::delay(delay)
        };
        lab.link(from, to, link).unwrap();
    }
}

/// What became of numbered datagrams.
#[derive(Default)]
struct Seen {
    sent: u32,
    arrived: u32,
    twice: u32,
    changed: u32,
}

/// Sends numbered datagrams of many lengths until `end`.
fn datagrams((from, to, target): (&Namespace, &Namespace, IpAddr), end: Instant) -> Seen {
    let inbound = to
        .inside(|| UdpSocket::bind((target, 6_200)))
        .unwrap()
        .unwrap();
    let outbound = from
        .inside(|| UdpSocket::bind("0.0.0.0:0"))
        .unwrap()
        .unwrap();
    inbound
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let mut seen = Seen::default();
    thread::scope(|scope| {
        let sender = scope.spawn(move || {
            let mut number = 0;
            while Instant::now() < end {
                let _ = outbound.send_to(&content(number), (target, 6_200));
                number += 1;
                thread::sleep(Duration::from_micros(700));
            }
            number
        });
        let mut known = Vec::new();
        let mut buffer = [0; 2_000];
        while Instant::now() < end + Duration::from_secs(1) {
            let Ok(length) = inbound.recv(&mut buffer) else {
                continue;
            };
            let number = buffer
                .first_chunk()
                .map_or(u32::MAX, |bytes| u32::from_le_bytes(*bytes));
            if buffer[..length] != content(number)[..] {
                seen.changed += 1;
                continue;
            }
            let place = number as usize;
            if known.len() <= place {
                known.resize(place + 1, false);
            }
            seen.twice += u32::from(known[place]);
            seen.arrived += u32::from(!known[place]);
            known[place] = true;
        }
        seen.sent = sender.join().unwrap();
    });
    seen
}

/// What the datagram of this number holds.
fn content(number: u32) -> Vec<u8> {
    let mut bytes = vec![0; 8 * (1 + number as usize % 150)];
    checked::fill(number.into(), &mut bytes);
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// Mbit/s of one TCP connection.
fn rate(from: &Namespace, target: IpAddr, seconds: usize) -> f64 {
    let mut command = from.command("iperf3");
    command.args([
        "--json",
        "--client",
        &target.to_string(),
        "--time",
        &seconds.to_string(),
    ]);
    let patience = Duration::from_secs(seconds as u64 + 20);
    let output = process::output(&mut command, b"", patience).unwrap();
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rate = said["end"]["sum_received"]["bits_per_second"].as_f64();
    rate.unwrap_or_else(|| panic!("{said}")) / 1e6
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}
