//! A machine boots and its pods are there long before meshd is: nothing may leave it in plaintext.

use std::thread;
use std::time::{Duration, Instant};

use podmesh_lab::ping::PingMatrix;
use podmesh_lab::{Lab, Mesh, wait};

use crate::world;

#[test]
fn pods_that_start_before_meshd_send_nothing_in_plaintext() {
    let lab = world::three_sites("cold-boot");
    let far = lab
        .node("cloud-a-1")
        .unwrap()
        .add_pod("cloud-a-1-a")
        .unwrap();
    let node = lab.node("home-2").unwrap();
    node.add_pod("home-2-a").unwrap();
    let pings = PingMatrix::start().unwrap();
    pings.add_pod(&far).unwrap();
    for pod in node.pods() {
        pings.add_pod(&pod).unwrap();
    }
    pings.wait_for_all(5, Duration::from_secs(10)).unwrap();
    pings.remove("home-2-a").unwrap();

    node.power_cut().unwrap();
    node.power_on().unwrap();
    let pods = ["b", "c"].map(|letter| node.add_pod(&format!("home-2-{letter}")).unwrap());
    for pod in &pods {
        pings.add_pod(pod).unwrap();
    }
    let before = lab.capture().verdict();
    let booted = Instant::now();
    thread::sleep(Duration::from_secs(world::times(10, 30) as u64));
    let early = pings.report(booted, Instant::now() - Duration::from_secs(2));
    let to_far = early
        .iter()
        .filter(|pair| pair.from.starts_with("home") && pair.to == far.name());
    for pair in to_far {
        assert_eq!(pair.lost, pair.sent, "nobody carries this yet: {pair:?}");
    }
    let on_the_node = early
        .iter()
        .filter(|pair| pair.from.starts_with("home") && pair.to.starts_with("home"));
    for pair in on_the_node {
        assert_eq!(pair.lost, 0, "pods of one machine need no meshd: {pair:?}");
    }
    let during = lab.capture().must_be_clean().unwrap();
    assert!(during.frames >= before.frames);

    node.start().unwrap();
    let back = pings.wait_for_all(5, Duration::from_secs(20)).unwrap();
    println!("figure every pair answers {back:?} after meshd's start");
}

#[test]
fn a_machine_that_boots_with_a_dead_resolver_reaches_its_planet_by_name() {
    const NAME: &str = "planet.lab.test";
    let mut plan = Lab::plan("dead-resolver");
    plan.planet("planet-1");
    plan.site("cloud");
    plan.node("cloud-1").at("cloud");
    let lab = plan.up().unwrap();
    let endpoint = lab.planet("planet-1").unwrap().endpoint();
    let mesh = Mesh::found_at(&lab, "planet-1", &format!("{NAME}:{}", endpoint.port())).unwrap();
    let node = lab.node("cloud-1").unwrap();
    let nothing = "127.0.0.1 localhost\n";
    node.resolve_by(&format!("{nothing}{} {NAME}\n", endpoint.ip()));
    mesh.join(node).unwrap();
    let memory = node.state_dir().join("planet-addresses");
    wait::until("the address on disk", Duration::from_secs(5), || {
        Ok(if memory.exists() {
            wait::Now(())
        } else {
            wait::NotYet("no file".to_owned())
        })
    })
    .unwrap();

    node.power_cut().unwrap();
    node.resolve_by(nothing);
    node.power_on().unwrap();
    let start = Instant::now();
    node.start().unwrap();
    node.wait_online(Duration::from_secs(15)).unwrap();
    println!("figure online {:?} after the start", start.elapsed());

    // Without that memory there is no way: the resolver is dead indeed.
    node.kill();
    std::fs::remove_file(&memory).unwrap();
    let _ = std::fs::remove_file(node.state_dir().join("planet-addresses.previous"));
    node.start().unwrap();
    assert!(node.wait_online(Duration::from_secs(5)).is_err());
}
