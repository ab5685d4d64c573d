//! Rules of kube-proxy on a node: they masquerade whatever carries one bit of the mark, each flow with a
//! random port. If the tunnel's datagrams carried it, the node's own kernel would be a symmetric NAT.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podmesh_lab::{Lab, Mesh, Nat, Node, mesh, wait};
use podmesh_proto::local_api::StatusView;
use podmesh_proto::mark::Mark;

use crate::world;

/// A direct path must be there this long after the second node has joined.
const LIMIT: Duration = Duration::from_secs(10);
const WAY: Duration = Duration::from_millis(15);

/// Which kube-proxy.
#[derive(Clone, Copy, Debug)]
enum Mode {
    /// With the rules of iptables, as iptables-nft writes them.
    Iptables,
    /// With nftables of its own.
    Nftables,
}

impl Mode {
    /// What it makes at its start, services left out.
    fn rules(self) -> String {
        let of = |family: &str| match self {
            Self::Iptables => format!(
                "table {family} nat {{
                   chain KUBE-MARK-MASQ {{
                     meta mark set meta mark or 0x4000
                   }}
                   chain KUBE-POSTROUTING {{
                     meta mark & 0x4000 != 0x4000 return
                     meta mark set meta mark xor 0x4000
                     counter masquerade fully-random
                   }}
                   chain POSTROUTING {{
                     type nat hook postrouting priority srcnat; policy accept;
                     jump KUBE-POSTROUTING
                   }}
                 }}\n"
            ),
            Self::Nftables => format!(
                "table {family} kube-proxy {{
                   chain masquerading {{
                     meta mark & 0x4000 == 0 return
                     meta mark set meta mark xor 0x4000
                     counter masquerade fully-random
                   }}
                   chain nat-postrouting {{
                     type nat hook postrouting priority srcnat; policy accept;
                     jump masquerading
                   }}
                 }}\n"
            ),
        };
        of("ip") + &of("ip6")
    }
}

#[test]
fn a_node_with_kube_proxy_behind_a_nat_is_direct_every_time() {
    let runs = world::times(1, 20);
    let plays: Vec<Mode> = [Mode::Iptables, Mode::Nftables]
        .into_iter()
        .flat_map(|mode| vec![mode; runs])
        .collect();
    let next = AtomicUsize::new(0);
    let wrong = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(mode) = plays.get(next.fetch_add(1, Ordering::SeqCst)) {
                    if let Err(error) = play(*mode) {
                        wrong.lock().unwrap().push(format!("{mode:?}: {error:#}"));
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    println!(
        "figure kube-proxy behind a NAT: {} of {} direct",
        plays.len() - wrong.len(),
        plays.len()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn play(mode: Mode) -> Result<()> {
    let mut plan = Lab::plan("kube-proxy");
    plan.planet("planet-1");
    for site in ["left", "right"] {
        plan.site(site).nat(Nat::PortRestricted);
        plan.node(&format!("{site}-1")).at(site);
        plan.delay(site, "planet-1", WAY);
    }
    plan.delay("left", "right", WAY);
    let lab = plan.up()?;
    let outcome = meet(&lab, mode);
    if outcome.is_err() {
        lab.keep_logs();
    }
    outcome
}

fn meet(lab: &Lab, mode: Mode) -> Result<()> {
    let mesh = Mesh::found(lab, "planet-1")?;
    let node = lab.node("left-1")?;
    node.namespace().nft(&mode.rules())?;
    mesh.join_all()?;
    let nodes = world::nodes(lab);
    mesh.wait_for(&nodes, "a direct path", LIMIT, mesh::is_direct)?;
    let (port, observed) = ports(node)?;
    ensure!(observed.port() == port, "{observed} is not port {port}");
    Ok(())
}

/// A mark with kube-proxy's bit, as the operator may choose it: the rules do what they are feared for, and
/// that is said, and what comes of it is not offered to peers.
#[test]
fn a_kernel_that_translates_the_tunnel_is_named_and_its_ports_are_not_offered() {
    let mut plan = Lab::plan("translated");
    plan.planet("planet-1");
    plan.site("open");
    plan.node("open-1").at("open");
    let lab = plan.up().unwrap();
    let mesh = Mesh::found(&lab, "planet-1").unwrap();
    let node = lab.node("open-1").unwrap();
    node.namespace().nft(&Mode::Iptables.rules()).unwrap();
    node.configure("mark = \"0x4000/0x4000\"\n");
    mesh.join(node).unwrap();
    let said = wait::until("the translation to be said", LIMIT, || {
        let status = status(node)?;
        let found = status
            .health
            .iter()
            .find(|view| view.code == "MESH-NAT-001");
        Ok(match found {
            Some(view) => wait::Now(view.message.clone()),
            None => wait::NotYet(format!("{:?}", status.health)),
        })
    })
    .unwrap();
    let address = node.public_address().to_string();
    assert!(
        said.contains("planet-1") && said.contains(&address),
        "{said}"
    );
    let status = status(node).unwrap();
    assert!(
        status
            .health
            .iter()
            .any(|view| view.message.contains("kube-proxy (0xc000)")),
        "{:?}",
        status.health
    );
    let (port, observed) = ports(node).unwrap();
    assert_ne!(observed.port(), port);
    let own: Vec<SocketAddr> = status.candidates.iter().map(|view| view.endpoint).collect();
    let host = SocketAddr::new(IpAddr::V4(node.public_address()), port);
    assert!(own.contains(&host), "{own:?}");
    let made_up = own.iter().filter(|endpoint| endpoint.ip() == host.ip());
    assert!(made_up.clone().all(|endpoint| *endpoint == host), "{own:?}");

    node.configure("");
    node.stop().unwrap();
    node.start().unwrap();
    the_former_mark_leaves_nothing(node);
}

/// With the mark that nobody else uses.
fn the_former_mark_leaves_nothing(node: &Node) {
    node.wait_online(LIMIT).unwrap();
    // What the kernel had decided for the former mark would hold as long as there are datagrams.
    wait::until("the former translation to be forgotten", LIMIT, || {
        let log = fs::read_to_string(node.log())?;
        let is_forgotten = log.contains("forgot how the kernel translated");
        Ok(if is_forgotten {
            wait::Now(())
        } else {
            wait::NotYet("no word of it".to_owned())
        })
    })
    .unwrap();
    let rules = node.namespace().run(&["ip", "rule"]).unwrap();
    assert!(
        rules.contains(&format!("fwmark {}", Mark::DEFAULT)),
        "{rules}"
    );
    assert!(!rules.contains("0x4000"), "{rules}");
}

fn status(node: &Node) -> Result<StatusView> {
    Ok(serde_json::from_value(node.meshctl_json(&["status"])?)?)
}

/// The main socket's port, and where the planet sees it.
fn ports(node: &Node) -> Result<(u16, SocketAddr)> {
    let status = status(node)?;
    let planet = status.planets.first().context("no planet")?;
    let observed = planet.observed.context("the planet has not seen it yet")?;
    let hosts = status.candidates.iter();
    let hosts = hosts.filter(|view| view.endpoint.ip() == IpAddr::V4(node.seat().v4));
    let host = hosts.map(|view| view.endpoint.port()).next();
    Ok((host.context("no host candidate")?, observed))
}
