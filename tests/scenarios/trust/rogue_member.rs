//! A member with real keys that sends what it must not.

use std::time::Duration;

use podmesh_lab::ping::{PairReport, PingMatrix};
use podmesh_lab::{Lab, Mesh, Node, mesh, wait};
use podmesh_proto::limits::MAX_CANDIDATES_PER_ADDRESS;
use serde_json::{Value, json};

use super::health::{self, must_name};
use super::listener::{Listener, PORT};
use crate::puppet::Puppet;

/// Packets of one kind.
const VOLLEY: u64 = 10;

#[test]
fn a_rogue_member_speaks_for_nobody_but_itself() {
    let lab = world();
    let mesh = Mesh::found(&lab, "planet-1").unwrap();
    let token = mesh.operator().token("mallory", &[]).unwrap();
    let rogue = Puppet::member(lab.node("mallory").unwrap(), &token).unwrap();
    let nodes = ["alice", "bob"].map(|name| lab.node(name).unwrap());
    for node in nodes {
        mesh.join(node).unwrap();
    }
    mesh.wait_for(
        &nodes,
        "direct paths",
        Duration::from_secs(20),
        mesh::is_direct,
    )
    .unwrap();
    let pods = nodes.map(|node| node.add_pod(&format!("{}-a", node.name())).unwrap());
    let pings = PingMatrix::start().unwrap();
    for pod in &pods {
        pings.add_pod(pod).unwrap();
    }
    pings.wait_for_all(5, Duration::from_secs(10)).unwrap();
    meet(&rogue, &nodes);
    let start = std::time::Instant::now();

    let host = Listener::open(&nodes[0].namespace()).unwrap();
    let pod = Listener::open(pods[0].namespace()).unwrap();
    foreign_sources(&rogue, &nodes, (&host, &pod));
    echoes(&rogue, &nodes);
    replays(&rogue, &nodes, &host);
    counters(&rogue, &nodes, &host);
    gossip(&rogue, &nodes);
    let pairs = pings.report(start, std::time::Instant::now());
    assert_eq!(PairReport::lost_in(&pairs), 0, "{pairs:?}");
}

#[test]
fn endpoints_of_a_member_can_not_be_aimed_at_a_bystander() {
    let lab = world();
    let mesh = Mesh::found(&lab, "planet-1").unwrap();
    let token = mesh.operator().token("mallory", &[]).unwrap();
    let rogue = Puppet::member(lab.node("mallory").unwrap(), &token).unwrap();
    let bystander = lab.node("bystander").unwrap();
    let before = udp_to_nowhere(bystander);
    let candidates: Vec<String> = (0..16)
        .map(|n| format!("{}:{}", bystander.seat().v4, 30_000 + n))
        .collect();
    // Nobody knows yet where mallory really is.
    rogue
        .order(&json!({ "do": "publish", "candidates": candidates }))
        .unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let nodes = ["alice", "bob"].map(|name| lab.node(name).unwrap());
    for node in nodes {
        mesh.join(node).unwrap();
    }
    let watched = Duration::from_secs(20);
    std::thread::sleep(watched);
    let datagrams = udp_to_nowhere(bystander) - before;
    println!("figure {datagrams} datagrams reached the bystander in {watched:?}");
    assert!(datagrams > 0, "candidates are tried");
    // A few candidates per address are kept; each node may send 40 probes to an address that never
    // answered, and four a second after that.
    let bound = 2 * (40 + 4 * watched.as_secs());
    assert!(datagrams <= bound, "{datagrams} > {bound}");
    for node in nodes {
        let detail = node.meshctl_json(&["peer", "mallory"]).unwrap();
        let aimed = detail["candidates"].as_array().unwrap().iter();
        let bystanders = bystander.seat().v4.to_string();
        let aimed = aimed.filter(|candidate| {
            let endpoint = candidate["endpoint"].as_str().unwrap_or_default();
            endpoint.starts_with(&bystanders)
        });
        assert!(aimed.count() <= MAX_CANDIDATES_PER_ADDRESS, "{detail}");
    }
}

fn world() -> Lab {
    let mut plan = Lab::plan("rogue-member");
    plan.planet("planet-1");
    for (site, node) in [
        ("east", "alice"),
        ("west", "bob"),
        ("den", "mallory"),
        ("elsewhere", "bystander"),
    ] {
        plan.site(site);
        plan.node(node).at(site);
        plan.delay(site, "planet-1", Duration::from_millis(5));
    }
    plan.up().unwrap()
}

/// Real sessions with all of them.
fn meet(rogue: &Puppet, nodes: &[&Node]) {
    for node in nodes {
        let order = json!({ "do": "handshake", "to": node.name() });
        wait::until(
            "a session of a real member",
            Duration::from_secs(15),
            || {
                let made = rogue.order(&order)?;
                Ok(if made["session"] == json!(true) {
                    wait::Now(())
                } else {
                    wait::NotYet(made.to_string())
                })
            },
        )
        .unwrap();
    }
}

fn send(rogue: &Puppet, to: &Node, (source, target): (&str, &str), text: &str) {
    rogue
        .order(&json!({
            "do": "send", "to": to.name(), "source": source, "destination": target, "port": PORT,
            "text": text, "count": VOLLEY, "copies": 1,
        }))
        .unwrap();
}

fn foreign_sources(rogue: &Puppet, nodes: &[&Node; 2], (host, pod): (&Listener, &Listener)) {
    let [alice, bob] = nodes;
    let me = rogue.order(&json!({ "do": "look" })).unwrap();
    let own = health::status(alice).unwrap().node.unwrap();
    let theirs = health::status(bob).unwrap().node.unwrap();
    let mut sources: Vec<String> = theirs.addresses.iter().map(ToString::to_string).collect();
    sources.extend(bob.pods()[0].addresses().iter().map(ToString::to_string));
    sources.extend(own.addresses.iter().map(ToString::to_string));
    sources.extend(alice.pods()[0].addresses().iter().map(ToString::to_string));
    // Owned by nobody in the mesh's ranges, outside of them, and never routed.
    for source in [
        "10.77.255.1",
        "10.42.255.1",
        "8.8.8.8",
        "127.0.0.1",
        "224.0.0.1",
        "2001:db8::8",
    ] {
        sources.push(source.to_owned());
    }
    let mut targets: Vec<String> = own.addresses.iter().map(ToString::to_string).collect();
    targets.extend(alice.pods()[0].addresses().iter().map(ToString::to_string));
    let mut foreign = 0;
    let before = refused(alice);
    for target in &targets {
        let v4 = |address: &str| !address.contains(':');
        let mine = if v4(target) {
            &me["overlay4"]
        } else {
            &me["overlay6"]
        };
        send(rogue, alice, (mine.as_str().unwrap(), target), "honest");
        for source in sources.iter().filter(|source| v4(source) == v4(target)) {
            send(rogue, alice, (source, target), "false");
            foreign += VOLLEY;
        }
    }
    // And through alice to somebody else.
    let beyond = bob.pods()[0].address(false).unwrap().to_string();
    send(
        rogue,
        alice,
        (me["overlay4"].as_str().unwrap(), &beyond),
        "false",
    );
    foreign += VOLLEY;
    std::thread::sleep(Duration::from_millis(500));
    println!("figure host: {}", host.all().unwrap());
    println!("figure pod: {}", pod.all().unwrap());
    let volley = usize::try_from(VOLLEY).unwrap();
    let expected = [own.addresses.len(), alice.pods()[0].addresses().len()];
    assert_eq!(expected, [2, 2], "both families");
    assert_eq!(host.heard("honest"), 2 * volley, "{:?}", host.all());
    assert_eq!(pod.heard("honest"), 2 * volley, "{:?}", pod.all());
    assert_eq!(host.heard("false") + pod.heard("false"), 0);
    let counted = refused(alice) - before;
    assert_eq!(
        counted,
        foreign,
        "each one is counted: {:?}",
        health::drops(alice)
    );
}

/// Inner packets that the node refused.
fn refused(node: &Node) -> u64 {
    let drops = health::drops(node).unwrap();
    let inner = drops.iter().filter(|(reason, _)| {
        reason.contains("peer used a source")
            || reason.contains("peer sent to a destination")
            || reason.contains("forbidden address")
    });
    inner.map(|(_, count)| count).sum()
}

fn echoes(rogue: &Puppet, nodes: &[&Node; 2]) {
    let v6 = |node: &Node| {
        let own = health::status(node).unwrap().node.unwrap();
        let found = own.addresses.into_iter().find(|address| address.is_ipv6());
        found.unwrap().to_string()
    };
    let (alice, bob) = (v6(nodes[0]), v6(nodes[1]));
    let echo = |source: Value, destination: Value| {
        let order = json!({
            "do": "echo", "to": "alice", "source": source, "destination": destination, "count": 5,
        });
        rogue.order(&order).unwrap()["echoes"].as_u64().unwrap()
    };
    assert!(echo(Value::Null, Value::Null) >= 5, "its own are answered");
    assert_eq!(echo(json!(bob), Value::Null), 0, "in bob's name");
    assert_eq!(echo(json!(alice), Value::Null), 0, "in alice's own name");
    assert_eq!(echo(Value::Null, json!(bob)), 0, "to bob, through alice");
}

fn replays(rogue: &Puppet, nodes: &[&Node; 2], host: &Listener) {
    let me = rogue.order(&json!({ "do": "look" })).unwrap();
    let own = health::status(nodes[0]).unwrap().node.unwrap();
    let target = own.addresses.iter().find(|address| address.is_ipv4());
    rogue
        .order(&json!({
            "do": "send", "to": "alice", "source": me["overlay4"], "destination": target,
            "port": PORT, "text": "again", "count": VOLLEY, "copies": 20,
        }))
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(
        host.heard("again") as u64,
        VOLLEY,
        "each message opens once"
    );
    let answer = rogue
        .order(&json!({ "do": "replay-probe", "to": "alice", "copies": 50 }))
        .unwrap();
    assert!(answer["pongs"].as_u64() <= Some(1), "{answer}");
    println!("figure 50 copies of one probe: {} answers", answer["pongs"]);
}

/// Messages with counters up to the last one, sealed by a real session's key.
fn counters(rogue: &Puppet, nodes: &[&Node; 2], host: &Listener) {
    let own = health::status(nodes[0]).unwrap().node.unwrap();
    let target = own.addresses.iter().find(|address| address.is_ipv4());
    let count = |text: &str, counters: &[u64]| {
        let counters: Vec<String> = counters.iter().map(ToString::to_string).collect();
        let order = json!({
            "do": "count", "to": "alice", "destination": target, "port": PORT, "text": text,
            "counters": counters,
        });
        rogue.order(&order).unwrap();
    };
    // The paper's limit is 2^64 - 2^13 - 1 messages.
    let limit = u64::MAX - (1 << 13);
    let last = u64::MAX;
    count("low", &[0, 1, 2]);
    count("beyond", &[limit + 1, last - 1, last, last, limit + 2]);
    count(
        "at the limit",
        &[limit - 1, last, 0, 1, limit - 2, last - 63],
    );
    count("after", &[0, 1, 2, 3, 4]);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(host.heard("low"), 3, "{:?}", host.all());
    assert_eq!(host.heard("beyond"), 0, "{:?}", host.all());
    assert!(host.heard("at the limit") <= 2, "{:?}", host.all());
    assert_eq!(host.heard("after"), 5, "{:?}", host.all());
}

/// Lies about bob, told to alice inside the tunnel.
fn gossip(rogue: &Puppet, nodes: &[&Node; 2]) {
    let before = health::complaints(nodes[0]).unwrap();
    rogue
        .order(&json!({ "do": "gossip", "to": "alice", "victim": "bob" }))
        .unwrap();
    for word in ["endpoint", "statement"] {
        let words = ["mallory".to_owned(), word.to_owned()];
        let named = must_name(nodes[0], (&["MESH-TRUST-009"], &words), &before).unwrap();
        println!("figure gossip: alice says {named}");
    }
    let bob = nodes[0].peers().unwrap();
    assert!(
        bob.iter()
            .any(|peer| peer.name.as_str() == "bob" && mesh::is_direct(peer))
    );
}

/// UDP datagrams to ports on which nobody listens.
fn udp_to_nowhere(node: &Node) -> u64 {
    let counters = node.namespace().run(&["cat", "/proc/net/snmp"]).unwrap();
    let mut lines = counters
        .lines()
        .filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|name| name == "NoPorts").unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}
