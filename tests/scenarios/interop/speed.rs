//! As fast as it goes between a node and stock machines, with every offload, with none, and in batches, over
//! rekeys:
//! every byte arrives as it was sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use podmesh_lab::{Lab, Mesh, Node};

use super::stock::{Program, Stock};
use super::{enter, external, hears, own};
use crate::checked;
use crate::world;

/// Bytes of all cells together, and rekeys of each, in the long form.
const ENOUGH: u64 = 20_000_000_000;
const REKEYS: usize = 2;
const ADDRESSES: [&str; 12] = [
    "10.77.200.1",
    "10.77.200.2",
    "10.77.200.3",
    "10.77.200.4",
    "10.77.200.5",
    "10.77.200.6",
    "10.77.200.7",
    "10.77.200.8",
    "10.77.200.9",
    "10.77.200.10",
    "10.77.200.11",
    "10.77.200.12",
];

/// A node with every offload, one with none, and one that seals and opens in batches, and how they are
/// configured.
const NODES: [(&str, &str); 3] = [
    ("all", ""),
    ("none", "offloads = []\n"),
    ("wide", "tunnel = \"batched-wide\"\n"),
];

/// One stream: between a node and a stock machine, one way.
struct Cell {
    title: String,
    bytes: Arc<AtomicU64>,
    rekeys: usize,
    age: Option<u64>,
}

#[test]
fn stock_machines_get_every_byte_as_fast_as_it_goes() {
    let is_long = world::times(0, 1) == 1;
    let programs: &[Program] = if is_long {
        &[Program::WireguardGo, Program::Boringtun]
    } else {
        &[Program::WireguardGo]
    };
    let lab = offices(programs);
    let mesh = Mesh::found(&lab, "planet-1").unwrap();
    let nodes = NODES.map(|(name, _)| lab.node(name).unwrap());
    for (node, (_, lines)) in nodes.iter().zip(NODES) {
        node.configure(lines);
        mesh.join(node).unwrap();
    }
    let mut addresses = ADDRESSES.into_iter();
    let mut stocks = Vec::new();
    for (node, program, inward) in all(&nodes, programs) {
        let name = name_of(node.name(), *program, inward);
        let address = addresses.next().unwrap();
        let stock = Stock::of(*program, lab.node(&name).unwrap(), address).unwrap();
        enter(&mesh, node, &stock, Some(stock.endpoint())).unwrap();
        stock.know(node, None).unwrap();
        hears(node, address).unwrap();
        stocks.push((stock, node, inward, address));
    }
    let patience = Duration::from_secs(if is_long { 270 } else { 8 });
    let end = Instant::now() + patience;
    let mut cells = Vec::new();
    thread::scope(|scope| {
        for (stock, node, inward, address) in &stocks {
            let bytes = Arc::new(AtomicU64::new(0));
            let (here, there) = (node.namespace(), stock.namespace());
            let (from, to, target) = if *inward {
                (there, here, own(node).unwrap())
            } else {
                (here, there, address.parse().unwrap())
            };
            let (title, count) = (stock.name().to_owned(), Arc::clone(&bytes));
            scope.spawn(move || checked::stream(&title, (&from, &to, target), end, &count));
            cells.push(Cell {
                title: stock.name().to_owned(),
                bytes,
                rekeys: 0,
                age: None,
            });
        }
        while Instant::now() < end {
            thread::sleep(Duration::from_secs(1));
            for (cell, (_, node, ..)) in cells.iter_mut().zip(&stocks) {
                cell.look(node);
            }
        }
    });
    for line in judge(&cells, is_long) {
        println!("figure {line}");
    }
}

/// What was seen, if it is enough.
fn judge(cells: &[Cell], is_long: bool) -> Vec<String> {
    let mut lines = Vec::new();
    let mut total = 0;
    for cell in cells {
        let bytes = cell.bytes.load(Ordering::Relaxed);
        total += bytes;
        assert!(bytes > 0, "{}", cell.title);
        assert!(!is_long || cell.rekeys >= REKEYS, "{}", cell.title);
        lines.push(format!(
            "{}: {:.2} GB, all as sent, {} rekeys",
            cell.title,
            gigabytes(bytes),
            cell.rekeys
        ));
    }
    lines.push(format!("{:.1} GB in all", gigabytes(total)));
    assert!(!is_long || total >= ENOUGH, "{total} bytes: {lines:?}");
    lines
}

impl Cell {
    /// Each time the session has become younger there was a new one.
    fn look(&mut self, node: &Node) {
        let peer = external(node, &self.title).ok();
        // A look that comes late on a busy machine is no verdict.
        if let Some(now) = peer.and_then(|peer| peer.handshake_s) {
            self.rekeys += usize::from(self.age.is_some_and(|age| now < age));
            self.age = Some(now);
        }
    }
}

fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

fn name_of(node: &str, program: Program, inward: bool) -> String {
    let way = if inward { "in" } else { "out" };
    format!("{}-{node}-{way}", program.name())
}

/// Every node with every program and both directions.
fn all<'a>(
    nodes: &[&'a Node; 3],
    programs: &'a [Program],
) -> impl Iterator<Item = (&'a Node, &'a Program, bool)> {
    let nodes = nodes.to_vec();
    nodes.into_iter().flat_map(move |node| {
        let with_program = move |program| [(node, program, true), (node, program, false)];
        programs.iter().flat_map(with_program)
    })
}

/// A planet, the nodes, and a stock machine for each cell.
fn offices(programs: &[Program]) -> Lab {
    let mut plan = Lab::plan("interop-speed");
    plan.planet("planet-1");
    plan.site("cloud");
    for (name, _) in NODES {
        plan.node(name).at("cloud");
        for program in programs {
            for inward in [true, false] {
                plan.node(&name_of(name, *program, inward)).at("cloud");
            }
        }
    }
    plan.up().unwrap()
}
