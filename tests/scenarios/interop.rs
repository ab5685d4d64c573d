//! A stock WireGuard machine in the mesh: Debian's `wireguard-go`, which knows nothing of podmesh.

mod speed;
mod stock;

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use podmesh_lab::{Lab, Mesh, Nat, Node, Pod, mesh, wait};
use podmesh_proto::local_api::{PeerView, StatusView};

use stock::Stock;

/// Addresses of the stock machines, and one that is nobody's.
const PRINTER: &str = "10.77.200.1";
const LAPTOP: &str = "10.77.200.2";
const FOREIGN: &str = "10.77.200.9";
/// Why a node drops what comes from [`FOREIGN`].
const DROPPED: &str = "peer used a source that is not its own";

#[test]
fn a_stock_wireguard_machine_exchanges_traffic_with_nodes_and_pods() {
    meets_a_stock_machine("boringtun");
}

#[test]
fn a_stock_wireguard_machine_does_so_with_a_node_that_seals_in_batches() {
    meets_a_stock_machine("batched-wide");
}

fn meets_a_stock_machine(tunnel: &str) {
    let lab = offices();
    let mesh = Mesh::found(&lab, "planet-1").unwrap();
    let nodes = ["cloud-1", "home-1"].map(|name| lab.node(name).unwrap());
    for node in nodes {
        node.configure(&format!("tunnel = {tunnel:?}\n"));
        mesh.join(node).unwrap();
    }
    let pod = nodes[0].add_pod("cloud-1-a").unwrap();
    let printer = Stock::start(lab.node("printer").unwrap(), PRINTER).unwrap();
    enter(&mesh, nodes[0], &printer, Some(printer.endpoint())).unwrap();

    // The printer knows no endpoint, so the first word is the node's.
    for node in nodes {
        printer.know(node, None).unwrap();
        hears(node, PRINTER).unwrap();
        let peer = external(node, "printer").unwrap();
        assert!(
            peer.external && peer.id.is_none() && mesh::is_direct(&peer),
            "{peer:?}"
        );
    }
    both_directions(&printer, nodes[0], &pod).unwrap();

    // It starts anew and has no session, so the first word is its own.
    printer.restart().unwrap();
    printer.know(nodes[0], Some(nodes[0])).unwrap();
    both_directions(&printer, nodes[0], &pod).unwrap();

    // The node starts anew, and nobody else speaks.
    nodes[0].kill();
    nodes[0].start().unwrap();
    hears(nodes[0], PRINTER).unwrap();
    both_directions(&printer, nodes[0], &pod).unwrap();
}

#[test]
fn a_stock_machine_that_nobody_can_find_speaks_first() {
    let lab = offices();
    let mesh = Mesh::found(&lab, "planet-1").unwrap();
    let node = lab.node("cloud-1").unwrap();
    mesh.join(node).unwrap();
    let pod = node.add_pod("cloud-1-a").unwrap();
    let laptop = Stock::start(lab.node("laptop").unwrap(), LAPTOP).unwrap();
    enter(&mesh, node, &laptop, None).unwrap();
    let peer = external(node, "laptop").unwrap();
    assert!(!mesh::is_up(&peer) && peer.why.is_some(), "{peer:?}");
    laptop.know(node, Some(node)).unwrap();
    both_directions(&laptop, node, &pod).unwrap();
    hears(node, LAPTOP).unwrap();
}

#[test]
fn a_stock_machine_speaks_for_itself_alone_and_can_be_put_out() {
    let lab = offices();
    let mesh = Mesh::found(&lab, "planet-1").unwrap();
    let node = lab.node("cloud-1").unwrap();
    mesh.join(node).unwrap();
    let pod = node.add_pod("cloud-1-a").unwrap();
    let printer = Stock::start(lab.node("printer").unwrap(), PRINTER).unwrap();
    enter(&mesh, node, &printer, Some(printer.endpoint())).unwrap();
    printer.know(node, Some(node)).unwrap();
    both_directions(&printer, node, &pod).unwrap();

    let before = dropped(node).unwrap();
    printer.also_has(FOREIGN).unwrap();
    for target in [own(node).unwrap(), pod.address(false).unwrap()] {
        assert!(!printer.pings_from(FOREIGN, target).unwrap());
    }
    let after = dropped(node).unwrap();
    assert!(after >= before + 4, "{before} drops became {after}");
    both_directions(&printer, node, &pod).unwrap();

    let folder = mesh.operator().folder().to_str().unwrap();
    let remove = [
        "peer",
        "remove-external",
        "printer",
        "--yes",
        "--dir",
        folder,
    ];
    node.meshctl(&remove).unwrap();
    assert!(!printer.pings_from(PRINTER, own(node).unwrap()).unwrap());
    assert!(external(node, "printer").is_err());
}

/// A cloud and a home with a node each, a printer with a public address, a laptop at home.
fn offices() -> Lab {
    let mut plan = Lab::plan("interop");
    plan.planet("planet-1");
    plan.site("cloud");
    plan.site("home").nat(Nat::PortRestricted);
    plan.node("cloud-1").at("cloud");
    plan.node("home-1").at("home");
    plan.node("printer").at("cloud");
    plan.node("laptop").at("home");
    plan.delay("home", "cloud", Duration::from_millis(10));
    plan.up().unwrap()
}

/// The root names the machine, and a node passes that on.
fn enter(mesh: &Mesh<'_>, at: &Node, stock: &Stock<'_>, endpoint: Option<String>) -> Result<()> {
    let folder = mesh.operator().folder().display().to_string();
    let mut words = vec!["peer", "add-external", stock.name(), "--key", stock.key()];
    words.extend(["--address", stock.address(), "--dir", &folder]);
    if let Some(endpoint) = &endpoint {
        words.extend(["--endpoint", endpoint]);
    }
    at.meshctl(&words).map(drop)
}

/// Echoes come back to the stock machine from the node and its pod, and the other way round.
fn both_directions(stock: &Stock<'_>, node: &Node, pod: &Pod) -> Result<()> {
    for target in [own(node)?, pod.address(false)?] {
        wait::until(
            &format!("{target} to answer"),
            Duration::from_secs(6),
            || {
                Ok(if stock.pings_from(stock.address(), target)? {
                    wait::Now(())
                } else {
                    wait::NotYet(stock.shown())
                })
            },
        )?;
    }
    hears(node, stock.address())?;
    let from_pod = ["ping", "-c", "3", "-i", "0.2", "-W", "2", stock.address()];
    let answered = pod.namespace().run(&from_pod)?;
    ensure!(answered.contains(" 0% packet loss"), "{answered}");
    Ok(())
}

/// The first echo of a node may be lost to the handshake; then they come back.
fn hears(node: &Node, address: &str) -> Result<()> {
    wait::until(
        &format!("{address} to answer"),
        Duration::from_secs(8),
        || {
            let ping = ["ping", "-c", "2", "-i", "0.2", "-W", "1", address];
            Ok(match node.namespace().run(&ping) {
                Ok(_) => wait::Now(()),
                Err(error) => wait::NotYet(format!("{error:#}")),
            })
        },
    )
}

/// What a node says of a stock machine.
fn external(node: &Node, name: &str) -> Result<PeerView> {
    wait::until(
        &format!("{name} to be known"),
        Duration::from_secs(4),
        || {
            let found = node
                .peers()?
                .into_iter()
                .find(|peer| peer.name.as_str() == name);
            Ok(match found {
                Some(peer) => wait::Now(peer),
                None => wait::NotYet("no such peer".to_owned()),
            })
        },
    )
}

/// The IPv4 overlay address of a node.
fn own(node: &Node) -> Result<IpAddr> {
    let addresses = status(node)?
        .node
        .map_or_else(Vec::new, |own| own.addresses);
    let found = addresses.into_iter().find(IpAddr::is_ipv4);
    found.ok_or_else(|| anyhow::anyhow!("{} has no IPv4 address", node.name()))
}

/// Packets that a node has dropped for their foreign source.
fn dropped(node: &Node) -> Result<u64> {
    let drops = status(node)?.drops;
    let counts = drops.iter().filter(|drop| drop.reason == DROPPED);
    Ok(counts.map(|drop| drop.count).sum())
}

fn status(node: &Node) -> Result<StatusView> {
    Ok(serde_json::from_value(node.meshctl_json(&["status"])?)?)
}
