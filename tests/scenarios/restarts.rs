//! meshd is killed, stopped and replaced under traffic.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use podmesh_lab::ping::{PairReport, PingMatrix};
use podmesh_lab::{Node, Pod};

use crate::world;

#[test]
fn connections_between_pods_survive_a_killed_meshd() {
    let lab = world::three_sites("killed-meshd");
    let node = lab.node("cloud-b-1").unwrap();
    let pods = ["a", "b"].map(|letter| node.add_pod(&format!("cloud-b-1-{letter}")).unwrap());
    let far = lab.node("home-1").unwrap().add_pod("home-1-a").unwrap();
    let pings = PingMatrix::start().unwrap();
    for pod in &pods {
        pings.add_pod(pod).unwrap();
    }
    let stream = Stream::between(&far, &pods[0]);
    pings.wait_for_all(5, Duration::from_secs(10)).unwrap();
    let index = interface_index(node);

    let start = Instant::now();
    let mut gaps = Vec::new();
    for round in 0..world::times(5, 20) {
        thread::sleep(Duration::from_secs(1));
        let killed = Instant::now();
        node.kill();
        // Another number of shards each time: the device must not mind.
        node.configure(&format!("shards = {}\n", 1 + round % 3));
        node.start().unwrap();
        thread::sleep(Duration::from_secs(6));
        gaps.push(stream.longest_gap_since(killed));
        assert_eq!(interface_index(node), index, "mesh0 is the same device");
    }
    gaps.sort();
    println!("figure gaps of the stream: {gaps:?}");
    let p95 = gaps[(gaps.len() * 95).div_ceil(100) - 1];
    assert!(p95 <= Duration::from_secs(3), "{gaps:?}");
    stream.end();
    let same_node = pings.report(start, Instant::now());
    assert_eq!(
        PairReport::lost_in(&same_node),
        0,
        "on one node nobody notices: {same_node:?}"
    );
}

#[test]
fn an_orderly_stop_and_a_new_start_lose_nothing_on_the_node() {
    let lab = world::three_sites("stopped-meshd");
    let node = lab.node("home-2").unwrap();
    let pods = ["a", "b"].map(|letter| node.add_pod(&format!("home-2-{letter}")).unwrap());
    let far = lab
        .node("cloud-a-1")
        .unwrap()
        .add_pod("cloud-a-1-a")
        .unwrap();
    let pings = PingMatrix::start().unwrap();
    for pod in pods.iter().chain([&far]) {
        pings.add_pod(pod).unwrap();
    }
    pings.wait_for_all(5, Duration::from_secs(10)).unwrap();

    let start = Instant::now();
    node.stop().unwrap();
    // Pods come and go while meshd is away.
    let extra = node.add_pod("home-2-c").unwrap();
    node.delete_pod(&extra).unwrap();
    node.start().unwrap();
    let back = pings.wait_for_all(20, Duration::from_secs(15)).unwrap();
    println!("figure every pair answers {back:?} after the start");
    let mut pairs = pings.report(start, Instant::now());
    pairs.retain(|pair| !pair.from.starts_with("cloud") && !pair.to.starts_with("cloud"));
    assert_eq!(PairReport::lost_in(&pairs), 0, "{pairs:?}");
}

#[test]
fn a_meshd_that_is_replaced_leaves_a_gap_that_nobody_minds() {
    let lab = world::three_sites("replaced-meshd");
    let node = lab.node("cloud-b-1").unwrap();
    let pods = ["a", "b"].map(|letter| node.add_pod(&format!("cloud-b-1-{letter}")).unwrap());
    let far = lab.node("home-1").unwrap().add_pod("home-1-a").unwrap();
    let pings = PingMatrix::start().unwrap();
    for pod in &pods {
        pings.add_pod(pod).unwrap();
    }
    let stream = Stream::between(&far, &pods[0]);
    let back = Stream::between(&pods[1], &far);
    pings.wait_for_all(5, Duration::from_secs(10)).unwrap();
    let index = interface_index(node);

    let start = Instant::now();
    let mut gaps = Vec::new();
    for _ in 0..world::times(5, 20) {
        thread::sleep(Duration::from_secs(1));
        let replaced = Instant::now();
        node.replace().unwrap();
        thread::sleep(Duration::from_secs(3));
        gaps.push(stream.longest_gap_since(replaced));
        gaps.push(back.longest_gap_since(replaced));
        assert_eq!(interface_index(node), index, "mesh0 is the same device");
    }
    gaps.sort();
    println!("figure gaps of the streams: {gaps:?}");
    let p95 = gaps[(gaps.len() * 95).div_ceil(100) - 1];
    assert!(p95 <= Duration::from_millis(250), "{gaps:?}");
    stream.end();
    back.end();
    let same_node = pings.report(start, Instant::now());
    assert_eq!(
        PairReport::lost_in(&same_node),
        0,
        "on one node nobody notices: {same_node:?}"
    );
}

#[test]
fn a_meshd_that_cannot_take_over_leaves_the_former_one_at_work() {
    let lab = world::three_sites("failed-heirs");
    let node = lab.node("cloud-b-1").unwrap();
    let pod = node.add_pod("cloud-b-1-a").unwrap();
    let far = lab.node("home-1").unwrap().add_pod("home-1-a").unwrap();
    let stream = Stream::between(&far, &pod);
    let start = Instant::now();

    node.configure("shards = 3\n");
    let refused = node.try_replace(&[]).unwrap().expect("other shards");
    assert!(refused.contains("shards = "), "{refused}");
    node.configure("device = \"mesh7\"\n");
    let refused = node.try_replace(&[]).unwrap().expect("another device");
    assert!(refused.contains("mesh0, not mesh7"), "{refused}");
    thread::sleep(Duration::from_secs(1));
    assert!(stream.longest_gap_since(start) < Duration::from_millis(250));

    // Each descriptor that an heir needs is missing once.
    node.configure("");
    let mut failures = Vec::new();
    for most in (10..200).step_by(world::times(4, 1)) {
        let limit = format!("--nofile={most}");
        let began = Instant::now();
        let failure = node.try_replace(&["prlimit", &limit]).unwrap();
        thread::sleep(Duration::from_secs(1));
        let gap = stream.longest_gap_since(began);
        assert!(
            gap < Duration::from_secs(3),
            "{most} descriptors: {gap:?}, {failure:?}"
        );
        let Some(failure) = failure else { break };
        failures.push((most, gap, failure));
    }
    println!(
        "figure heirs that failed, the last ones: {:?}",
        failures.iter().rev().take(3).collect::<Vec<_>>()
    );
    assert!(failures.len() > 4, "{failures:?}");
    stream.end();
}

fn interface_index(node: &Node) -> String {
    let shown = node
        .namespace()
        .run(&["ip", "-o", "link", "show", "mesh0"])
        .unwrap();
    shown.split(':').next().unwrap().to_owned()
}

/// A TCP connection between two pods that carries a little all the time.
pub(crate) struct Stream {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<()>,
    receiver: JoinHandle<()>,
    arrivals: Arc<std::sync::Mutex<Vec<Instant>>>,
}

impl Stream {
    pub(crate) fn between(from: &Pod, to: &Pod) -> Self {
        let listener = to
            .namespace()
            .inside(|| TcpListener::bind("[::]:6000"))
            .unwrap()
            .unwrap();
        let target: (IpAddr, u16) = (to.address(false).unwrap(), 6000);
        let connected = from
            .namespace()
            .inside(|| TcpStream::connect(target))
            .unwrap();
        let mut outbound = connected.unwrap();
        let (mut inbound, _) = listener.accept().unwrap();
        outbound.set_nodelay(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let arrivals = Arc::new(std::sync::Mutex::new(vec![Instant::now()]));
        let sender = {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    outbound
                        .write_all(&[7; 1000])
                        .expect("the connection lives");
                    thread::sleep(Duration::from_millis(10));
                }
            })
        };
        let receiver = {
            let arrivals = Arc::clone(&arrivals);
            thread::spawn(move || {
                let mut buffer = [0; 65_536];
                loop {
                    match inbound.read(&mut buffer) {
                        Ok(0) => return,
                        Ok(_) => arrivals.lock().unwrap().push(Instant::now()),
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(error) => panic!("the connection broke: {error}"),
                    }
                }
            })
        };
        Self {
            stop,
            sender,
            receiver,
            arrivals,
        }
    }

    pub(crate) fn longest_gap_since(&self, since: Instant) -> Duration {
        let arrivals = self.arrivals.lock().unwrap();
        let mut times: Vec<Instant> = arrivals
            .iter()
            .filter(|at| **at >= since)
            .copied()
            .collect();
        times.insert(0, since);
        times.push(Instant::now());
        times.windows(2).map(|two| two[1] - two[0]).max().unwrap()
    }

    pub(crate) fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.sender.join().expect("the sender saw no error");
        self.receiver.join().expect("the receiver saw no error");
    }
}
