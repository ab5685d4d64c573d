//! A node's membership ends while its pods stand: what they send for the mesh reaches nobody, and
//! nothing of it leaves the node in plaintext. The lab's capture is the judge of that.

use std::net::IpAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use podmesh_lab::ping::{PATIENCE, PairReport, PingMatrix};
use podmesh_lab::pod::environment;
use podmesh_lab::{Lab, Mesh, Nat, Node, Operator, Pod, mesh, wait};
use podmesh_proto::local_api::{NodeState, StatusView};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(15);
/// What the end of a membership or of the last pod changes on the host is done by then.
const AT_ONCE: Duration = Duration::from_secs(5);
/// How long pods go on after the end, in two halves with a restart of meshd in between.
const HALF: Duration = Duration::from_secs(6);
const GUARD_PRIORITIES: [u64; 3] = [4990, 4991, 5000];

#[test]
fn pods_whose_node_is_no_member_any_more_send_nothing_in_plaintext() {
    let lab = stage();
    let mesh = Mesh::found(&lab, "planet-1").unwrap();
    mesh.join_all().unwrap();
    let all = ["stays", "revoked", "leaves", "loses"].map(|name| lab.node(name).unwrap());
    mesh.wait_for(&all, "paths", SOON, mesh::is_up).unwrap();
    let [stays, revoked, leaves, loses] = all;
    let addresses = all.map(addresses);
    let pods = all.map(|node| pod(node, "a"));
    let second = pod(leaves, "b");
    let pings = PingMatrix::start().unwrap();
    for (node, addresses) in all.iter().zip(&addresses) {
        pings
            .add(node.name(), &node.namespace(), addresses)
            .unwrap();
    }
    for pod in pods.iter().chain([&second]) {
        pings.add_pod(pod).unwrap();
    }
    pings.wait_for_all(3, SOON).unwrap();

    let start = Instant::now();
    revoke(&mesh, stays, revoked);
    leaves.meshctl(&["leave", "--yes"]).unwrap();
    loses.kill();
    std::fs::remove_dir_all(loses.state_dir()).unwrap();
    loses.start().unwrap();
    let ended = [revoked, leaves, loses];
    let states = [
        NodeState::Revoked,
        NodeState::NotJoined,
        NodeState::NotJoined,
    ];
    for life in ["first", "second"] {
        for (node, state) in ended.iter().zip(states) {
            is_out(node, state);
            is_closed(node);
        }
        thread::sleep(HALF);
        if life == "first" {
            restart(ended);
        }
    }
    for (node, pod) in ended.iter().zip(&pods[1..]) {
        is_closed(node);
        serves_what_stands_and_nothing_more(node, pod);
    }
    let seen = pings.report(start + AT_ONCE, Instant::now() - PATIENCE);
    let sent = nobody_is_reached_but_on_the_own_node(&seen, stays.name());
    println!("figure {sent} pings for the mesh after the end, and none in plaintext");

    for node in ended {
        pings.remove(node.name()).unwrap();
    }
    lab.capture().must_be_clean().unwrap();
    let [_, of_revoked, of_leaves, of_loses] = pods;
    comes_back((&mesh, leaves), &pings, [&of_leaves, &second]);
    joins_another_network(&lab, (loses, &of_loses), &pings);
    goes_with_its_last_pod(loses, &pings, &of_loses);
    stays_closed_after_a_power_cut(revoked, &pings, of_revoked);
}

/// Behind a router and without one, all with a way into the world for both families.
fn stage() -> Lab {
    let mut plan = Lab::plan("ended");
    plan.planet("planet-1");
    plan.planet("planet-2");
    plan.site("home").nat(Nat::PortRestricted).ipv6();
    plan.site("cloud").ipv6();
    for (node, site) in [
        ("stays", "cloud"),
        ("revoked", "cloud"),
        ("leaves", "home"),
        ("loses", "cloud"),
    ] {
        plan.node(node).at(site);
    }
    plan.up().unwrap()
}

fn restart([killed, stopped, again]: [&Node; 3]) {
    killed.kill();
    stopped.stop().unwrap();
    again.kill();
    for node in [killed, stopped, again] {
        is_guarded(node);
        node.start().unwrap();
    }
}

/// Under its name it has the ranges that it had, so that its pods are reached again. By a token of another
/// range they are strangers there, and that is said wherever anybody looks. Without pods, `leave` takes
/// everything away at once.
fn comes_back((mesh, node): (&Mesh<'_>, &Node), pings: &PingMatrix, pods: [&Arc<Pod>; 2]) {
    let token = mesh.operator().token("again", &[]).unwrap();
    node.meshctl(&["join", token.to_str().unwrap()]).unwrap();
    let third = a_pod(node, "leaves-c");
    pings.add_pod(&third).unwrap();
    let all = [pods[0], pods[1], &third];
    wait::until("its pods, former and new, to be reached", SOON, || {
        let now = Instant::now();
        let to = |pair: &&PairReport| {
            all.iter().any(|pod| pair.to == pod.name()) && pair.from.starts_with("stays")
        };
        let seen = pings.report(now - PATIENCE - Duration::from_secs(1), now - PATIENCE);
        let lost: Vec<_> = seen.iter().filter(to).map(|pair| pair.lost).collect();
        Ok(if lost.len() == 12 && lost.iter().all(|lost| *lost == 0) {
            wait::Now(())
        } else {
            wait::NotYet(format!("{lost:?} lost"))
        })
    })
    .unwrap();
    for pod in all {
        pings.remove(pod.name()).unwrap();
    }
    is_named_out_of_range((mesh, node), &all);
    for pod in all {
        node.delete_pod(pod).unwrap();
    }
    is_guarded(node);
    node.meshctl(&["leave", "--yes"]).unwrap();
    is_bare(node);
}

/// Another range than that of the pods which stand: health and CHECK name them, and `leave` has said so.
fn is_named_out_of_range((mesh, node): (&Mesh<'_>, &Node), pods: &[&Arc<Pod>]) {
    let left = node.meshctl_output(&["leave", "--yes"], SOON).unwrap();
    let said = String::from_utf8_lossy(&left.stderr).into_owned();
    assert!(
        left.status.success() && said.contains("3 pods stand"),
        "{said}"
    );
    let ranges = ["--range", "10.42.200.0/24", "--range", "10.77.0.0/16"];
    let token = mesh.operator().token("elsewhere", &ranges).unwrap();
    node.meshctl(&["join", token.to_str().unwrap()]).unwrap();
    wait::until("every pod to be named", SOON, || {
        let health = status(node).health;
        let strays = health.iter().filter(|entry| entry.code == "MESH-POD-001");
        let strays: Vec<_> = strays.map(|entry| entry.message.as_str()).collect();
        let is_named = |pod: &&Arc<Pod>| {
            let address = pod.address(false).unwrap().to_string();
            strays.iter().any(|stray| stray.contains(&address))
        };
        Ok(if pods.iter().all(is_named) {
            wait::Now(())
        } else {
            wait::NotYet(format!("{health:?}"))
        })
    })
    .unwrap();
    for pod in pods {
        is_checked_out_of_range(node, pod);
    }
}

/// The ranges of the network before stay closed while a pod of it stands, also while meshd is away, and those of
/// the new one are served beside.
fn joins_another_network(lab: &Lab, (node, pod): (&Node, &Arc<Pod>), pings: &PingMatrix) {
    let ranges = ["--pods", "10.50.0.0/16", "--overlay", "10.78.0.0/16"];
    let planet = lab.planet("planet-2").unwrap();
    let operator = Operator::found(lab, "two", planet, &ranges).unwrap();
    // What the node itself sends for the former network, from here to the end.
    pings.add(node.name(), &node.namespace(), &[]).unwrap();
    let token = operator.token(node.name(), &[]).unwrap();
    node.meshctl(&["join", token.to_str().unwrap()]).unwrap();
    let new = a_pod(node, "loses-n");
    assert!(
        new.address(false)
            .unwrap()
            .to_string()
            .starts_with("10.50.")
    );
    keeps_closed(node);
    says_so(node, pod);
    node.kill();
    keeps_closed(node);
    node.start().unwrap();
    node.wait_online(SOON).unwrap();
    keeps_closed(node);
    lab.capture().must_be_clean().unwrap();
    // Each network's ranges are free when its own last pod is gone.
    pings.remove(node.name()).unwrap();
    node.meshctl(&["leave", "--yes"]).unwrap();
    is_closed(node);
    node.delete_pod(&new).unwrap();
    wait::until("the second network to be off the host", AT_ONCE, || {
        let rules = rules_to(node);
        Ok(match rules.iter().any(|to| to.starts_with("10.50.")) {
            true => wait::NotYet(rules.join(" ")),
            false => wait::Now(()),
        })
    })
    .unwrap();
    keeps_closed(node);
}

fn keeps_closed(node: &Node) {
    is_guarded(node);
    let rules = rules_to(node);
    for range in ["10.42.0.0", "10.77.0.0"] {
        assert!(rules.iter().any(|to| to == range), "{rules:?}");
    }
}

/// Ranges that rules of podmesh lead away from the main table.
fn rules_to(node: &Node) -> Vec<String> {
    let rules = ip(node, &["-j", "-4", "rule", "show"]);
    let ours = rules.iter().filter(|rule| rule["priority"] == 5000);
    ours.filter_map(|rule| rule["dst"].as_str().map(str::to_owned))
        .collect()
}

/// Health names the pod and the ranges, and CHECK what to do.
fn says_so(node: &Node, pod: &Arc<Pod>) {
    wait::until("the pod of the former network to be named", SOON, || {
        let health = status(node).health;
        let names = |code: &str, what: &str| {
            let mut entries = health.iter().filter(|entry| entry.code == code);
            entries.any(|entry| entry.message.contains(what))
        };
        let address = pod.address(false).unwrap().to_string();
        let is_named = names("MESH-POD-001", &address) && names("MESH-HOST-002", "10.42.0.0/16");
        Ok(match is_named {
            true => wait::Now(()),
            false => wait::NotYet(format!("{health:?}")),
        })
    })
    .unwrap();
    is_checked_out_of_range(node, pod);
}

fn is_checked_out_of_range(node: &Node, pod: &Pod) {
    let mut place = node.cni_place().unwrap();
    place.config["prevResult"] = pod.result().clone();
    let path = pod.namespace().path().display().to_string();
    let output = place.call("CHECK", &environment(pod.container_id(), &path));
    let said = String::from_utf8_lossy(&output.unwrap().stdout).into_owned();
    assert!(said.contains("present pod CIDRs"), "{said}");
}

fn a_pod(node: &Node, name: &str) -> Arc<Pod> {
    wait::until("a pod of the new membership", SOON, || {
        Ok(match node.add_pod(name) {
            Ok(pod) => wait::Now(pod),
            Err(error) => wait::NotYet(format!("{error:#}")),
        })
    })
    .unwrap()
}

fn goes_with_its_last_pod(node: &Node, pings: &PingMatrix, pod: &Arc<Pod>) {
    is_closed(node);
    pings.remove(pod.name()).unwrap();
    node.delete_pod(pod).unwrap();
    is_bare(node);
}

/// The root has put it out, and only whoever has the machine can say that it is done with the mesh.
fn stays_closed_after_a_power_cut(node: &Node, pings: &PingMatrix, pod: Arc<Pod>) {
    pings.remove(pod.name()).unwrap();
    // It holds on to the machine's namespace.
    drop(pod);
    node.power_cut().unwrap();
    node.power_on().unwrap();
    is_refused(node);
    node.start().unwrap();
    is_out(node, NodeState::Revoked);
    is_closed(node);
    pings.add(node.name(), &node.namespace(), &[]).unwrap();
    thread::sleep(Duration::from_secs(2));
    is_refused(node);
    pings.remove(node.name()).unwrap();
    node.meshctl(&["leave", "--yes"]).unwrap();
    is_bare(node);
}

/// Pairs whose ends are on one node lose nothing, those between nodes everything; gives the number of
/// pings that were sent from one node to another.
fn nobody_is_reached_but_on_the_own_node(seen: &[PairReport], member: &str) -> usize {
    let node = |name: &str| name.split('-').next().unwrap_or_default().to_owned();
    let mut sent = 0;
    for pair in seen {
        let [from, to] = [node(&pair.from), node(&pair.to)];
        if from != to {
            assert_eq!(pair.lost, pair.sent, "somebody carries this: {pair:?}");
            sent += pair.sent;
        } else if from == member || (pair.from.contains('-') && pair.to.contains('-')) {
            assert_eq!(pair.lost, 0, "pods of one node need no mesh: {pair:?}");
        }
    }
    assert!(seen.iter().any(|pair| pair.ipv6) && sent > 1000, "{sent}");
    sent
}

fn serves_what_stands_and_nothing_more(node: &Node, pod: &Pod) {
    is_refused(node);
    let mut place = node.cni_place().unwrap();
    let path = pod.namespace().path().display().to_string();
    let variables = environment(pod.container_id(), &path);
    place.config["prevResult"] = pod.result().clone();
    place.succeed("CHECK", &variables).unwrap();
    let stands: Vec<Value> = node
        .pods()
        .iter()
        .map(|pod| json!({ "containerID": pod.container_id(), "ifname": "eth0" }))
        .collect();
    place.config["cniVersion"] = "1.1.0".into();
    place.config["cni.dev/valid-attachments"] = stands.into();
    place.succeed("GC", &[]).unwrap();
}

/// No pod is added any more; the runtime may ask again.
pub(crate) fn is_refused(node: &Node) {
    let error = node.add_pod(&format!("{}-z", node.name())).unwrap_err();
    let error = format!("{error:#}").replace(' ', "");
    assert!(error.contains("\"code\":11"), "{error}");
}

pub(crate) fn is_out(node: &Node, state: NodeState) {
    wait::until("the node to say that it is out", SOON, || {
        let found = status(node).state;
        Ok(if found == state {
            wait::Now(())
        } else {
            wait::NotYet(format!("{found:?}"))
        })
    })
    .unwrap();
}

/// The guard stands, and nothing leads into the mesh.
pub(crate) fn is_closed(node: &Node) {
    is_guarded(node);
    wait::until("the mesh to be off the host", AT_ONCE, || {
        let left = leads_into_the_mesh(node);
        Ok(if left.is_empty() {
            wait::Now(())
        } else {
            wait::NotYet(left.join("; "))
        })
    })
    .unwrap();
    is_guarded(node);
}

/// Both layers stand: the table of nftables, and the rules with a route to nowhere behind them.
pub(crate) fn is_guarded(node: &Node) {
    assert!(has_table(node), "{}: no guard in nftables", node.name());
    for family in ["-4", "-6"] {
        let rules = rules(node, family);
        for priority in GUARD_PRIORITIES {
            assert!(
                rules.contains(&priority),
                "{} {family}: {rules:?}",
                node.name()
            );
        }
        let routes = routes(node, family);
        let nowhere = |route: &&Value| {
            route["type"] == "unreachable" && route["metric"].as_u64() == Some(u32::MAX.into())
        };
        assert!(routes.iter().any(|route| nowhere(&route)), "{routes:?}");
    }
}

/// Nothing of podmesh is left on the host.
pub(crate) fn is_bare(node: &Node) {
    wait::until("the host to be bare", AT_ONCE, || {
        let mut left = leads_into_the_mesh(node);
        left.extend(has_table(node).then(|| "the table of nftables".to_owned()));
        for family in ["-4", "-6"] {
            let rules = rules(node, family);
            let ours = rules.iter().filter(|rule| GUARD_PRIORITIES.contains(rule));
            left.extend(ours.map(|rule| format!("rule {family} {rule}")));
            left.extend(routes(node, family).iter().map(ToString::to_string));
        }
        let folders = [node.state_dir(), node.runtime_dir()];
        let names = ["node.json", "former-node.json", "subnet.env"];
        let files = folders
            .iter()
            .flat_map(|folder| names.map(|name| folder.join(name)));
        left.extend(
            files
                .filter(|file| file.exists())
                .map(|file| file.display().to_string()),
        );
        Ok(if left.is_empty() {
            wait::Now(())
        } else {
            wait::NotYet(left.join("; "))
        })
    })
    .unwrap();
}

/// Addresses of the mesh interface and routes by it.
fn leads_into_the_mesh(node: &Node) -> Vec<String> {
    let shown = ip(
        node,
        &["-j", "address", "show", "dev", "mesh0", "scope", "global"],
    );
    let of_device = shown.iter().filter_map(|link| link["addr_info"].as_array());
    let addresses = of_device.flatten().map(ToString::to_string);
    let routes = ["-4", "-6"].map(|family| routes(node, family));
    let into = |route: &&Value| route["dev"] == "mesh0";
    let routes = routes
        .iter()
        .flatten()
        .filter(into)
        .map(ToString::to_string);
    addresses.chain(routes).collect()
}

fn has_table(node: &Node) -> bool {
    let listed = node.namespace().run(&["nft", "-j", "list", "ruleset"]);
    let listed: Value = serde_json::from_str(&listed.unwrap()).unwrap();
    let mut items = listed["nftables"].as_array().unwrap().iter();
    items.any(|item| item["table"]["name"] == "podmesh" && item["table"]["family"] == "inet")
}

fn rules(node: &Node, family: &str) -> Vec<u64> {
    let rules = ip(node, &["-j", family, "rule", "show"]);
    rules
        .iter()
        .filter_map(|rule| rule["priority"].as_u64())
        .collect()
}

/// Those of the table of podmesh.
fn routes(node: &Node, family: &str) -> Vec<Value> {
    let all = ip(node, &["-j", family, "route", "show", "table", "all"]);
    let ours = |route: &Value| route["table"] == "7077";
    all.into_iter().filter(ours).collect()
}

fn ip(node: &Node, words: &[&str]) -> Vec<Value> {
    let printed = node.namespace().run(&[&["ip"], words].concat()).unwrap();
    serde_json::from_str(&printed).unwrap()
}

fn pod(node: &Node, letter: &str) -> Arc<Pod> {
    node.add_pod(&format!("{}-{letter}", node.name())).unwrap()
}

fn addresses(node: &Node) -> Vec<IpAddr> {
    status(node).node.unwrap().addresses
}

fn status(node: &Node) -> StatusView {
    let value = node.meshctl_json(&["status"]).unwrap();
    serde_json::from_value(value).unwrap()
}

fn revoke(mesh: &Mesh<'_>, at: &Node, node: &Node) {
    let folder = mesh.operator().folder().display().to_string();
    at.meshctl(&["node", "revoke", node.name(), "--yes", "--dir", &folder])
        .unwrap();
}
