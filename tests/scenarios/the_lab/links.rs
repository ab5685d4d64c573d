//! Delay, loss and the other faults of the core are as strong as they are told to be.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use podmesh_lab::ping::{PairReport, PingMatrix};
use podmesh_lab::{Lab, Link, Nat};

fn two_sites(name: &str) -> Lab {
    let mut plan = Lab::plan(name);
    plan.site("left").ipv6();
    plan.site("right").nat(Nat::PortRestricted).ipv6();
    plan.node("left-1").at("left");
    plan.node("right-1").at("right");
    plan.up().unwrap()
}

/// Round trips of `count` pings in milliseconds, in order, as `ping` reports them.
fn round_trips(lab: &Lab, target: IpAddr, count: u32) -> Vec<f64> {
    let printed = lab
        .node("right-1")
        .unwrap()
        .namespace()
        .run(&[
            "ping",
            "-q",
            "-i",
            "0.01",
            "-c",
            &count.to_string(),
            &target.to_string(),
        ])
        .unwrap();
    let numbers = printed.lines().last().unwrap().split(['=', '/', ' ']);
    numbers.filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn a_packet_takes_as_long_as_the_sites_are_apart() {
    let lab = two_sites("delay");
    let left = lab.node("left-1").unwrap().seat();
    lab.delay("left", "right", Duration::from_millis(20))
        .unwrap();
    for target in [IpAddr::V4(left.v4), IpAddr::V6(left.v6.unwrap())] {
        let [least, average, ..] = round_trips(&lab, target, 100)[..] else {
            panic!("no times")
        };
        assert!(
            least >= 40.0,
            "{least} ms to {target} is faster than the delay"
        );
        assert!(
            (..44.0).contains(&least),
            "{least} ms to {target} is slower"
        );
        // The average includes what a busy machine does to ping itself.
        assert!(average < 60.0, "{average} ms to {target} on average");
    }
    let report = lab.wire().report().unwrap();
    println!(
        "figure lateness p50 {:?}, p99 {:?}",
        report.lateness_of(0.5),
        report.lateness_of(0.99)
    );
    assert!(
        report.lateness_of(0.5) < Duration::from_millis(1),
        "{report:?}"
    );
}

#[test]
fn each_direction_has_its_own_delay() {
    let lab = two_sites("one-way");
    lab.link("left", "right", Link::delay(Duration::from_millis(30)))
        .unwrap();
    lab.link("right", "left", Link::delay(Duration::from_millis(5)))
        .unwrap();
    let left = lab.node("left-1").unwrap().seat().v4.into();
    let [least, average, ..] = round_trips(&lab, left, 50)[..] else {
        panic!("no times")
    };
    assert!((35.0..40.0).contains(&least), "{least} ms at least");
    assert!(average < 55.0, "{average} ms on average");
}

#[test]
fn loss_is_counted_exactly_and_a_cut_link_carries_nothing() {
    let lab = two_sites("loss");
    let matrix = PingMatrix::start().unwrap();
    for name in ["left-1", "right-1"] {
        let node = lab.node(name).unwrap();
        let v6 = node.seat().v6.unwrap();
        let mut addresses = vec![IpAddr::V6(v6)];
        if name == "left-1" {
            addresses.push(node.seat().v4.into());
        }
        matrix.add(name, &node.namespace(), &addresses).unwrap();
    }
    // The firewall of the right site lets nobody in who was not spoken to.
    let pairs = |from, to| -> Vec<PairReport> {
        matrix
            .report(from, to)
            .into_iter()
            .filter(|pair| pair.from == "right-1")
            .collect()
    };
    let start = Instant::now();
    thread::sleep(Duration::from_secs(3));
    let quiet = Instant::now();
    lab.link(
        "left",
        "right",
        Link {
            loss: 0.5,
            ..Link::default()
        },
    )
    .unwrap();
    let noisy = Instant::now();
    thread::sleep(Duration::from_secs(6));
    lab.link("left", "right", Link::CUT).unwrap();
    let cut = Instant::now();
    thread::sleep(Duration::from_secs(1));

    let clean = pairs(start, quiet);
    assert_eq!(clean.len(), 2, "both families: {clean:?}");
    assert_eq!(PairReport::lost_in(&clean), 0, "{clean:?}");
    assert!(
        (56..=62).contains(&PairReport::sent_in(&clean)),
        "ten a second: {clean:?}"
    );
    let lossy = pairs(noisy, cut - Duration::from_millis(50));
    let share = PairReport::lost_in(&lossy) as f64 / PairReport::sent_in(&lossy) as f64;
    assert!((0.3..0.7).contains(&share), "half is lost: {lossy:?}");
    let dead = pairs(cut, Instant::now());
    assert_eq!(
        PairReport::lost_in(&dead),
        PairReport::sent_in(&dead),
        "{dead:?}"
    );
}

#[test]
fn packets_can_arrive_twice_and_out_of_order() {
    use std::net::UdpSocket;
    let lab = two_sites("disorder");
    let faults = Link {
        duplicate: 0.2,
        reorder: 0.2,
        ..Link::delay(Duration::from_millis(1))
    };
    lab.link("right", "left", faults).unwrap();
    let left = lab.node("left-1").unwrap();
    let listener = left
        .namespace()
        .inside(|| UdpSocket::bind("0.0.0.0:5000"))
        .unwrap()
        .unwrap();
    listener
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let right = lab.node("right-1").unwrap().namespace();
    let sender = right
        .inside(|| UdpSocket::bind("0.0.0.0:5000"))
        .unwrap()
        .unwrap();
    let target = (left.public_address(), 5000);
    let sending = thread::spawn(move || {
        for number in 0..500_u16 {
            sender.send_to(&number.to_be_bytes(), target).unwrap();
            thread::sleep(Duration::from_micros(500));
        }
    });
    let mut buffer = [0; 2];
    let mut arrived = Vec::new();
    while listener.recv_from(&mut buffer).is_ok() {
        arrived.push(u16::from_be_bytes(buffer));
    }
    sending.join().unwrap();
    let backwards = arrived.windows(2).filter(|two| two[1] < two[0]).count();
    assert!(
        (550..650).contains(&arrived.len()),
        "{} of 500 arrived",
        arrived.len()
    );
    assert!((50..200).contains(&backwards), "{backwards} steps back");
}

#[test]
fn the_core_is_fast_enough_and_idle_when_nothing_happens() {
    let lab = two_sites("throughput");
    lab.delay("left", "right", Duration::from_millis(5))
        .unwrap();
    let left = lab.node("left-1").unwrap();
    let mut server = left.namespace().command("iperf3");
    let log = lab.folder().join("iperf3.log");
    server.args(["-s", "-1"]);
    let _server = podmesh_lab::process::Process::start("iperf3", server, &log).unwrap();
    thread::sleep(Duration::from_millis(300));
    let right = lab.node("right-1").unwrap().namespace();
    let target = left.public_address().to_string();
    let printed = right
        .run(&["iperf3", "-c", &target, "-t", "3", "-P", "4", "-J"])
        .unwrap();
    let report: serde_json::Value = serde_json::from_str(&printed).unwrap();
    let rate = report["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .unwrap()
        / 1e6;
    println!("figure {rate:.0} Mbit/s through a router and the core");
    assert!(rate > 200.0, "{rate:.0} Mbit/s");

    let before = lab.wire().report().unwrap();
    thread::sleep(Duration::from_secs(1));
    let after = lab.wire().report().unwrap();
    assert!(
        after.carried - before.carried < 20,
        "an idle lab carries nothing"
    );
}
