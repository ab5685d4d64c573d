//! What happens in the demo, act by act.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use podmesh_lab::mesh::{self, Mesh};
use podmesh_lab::ping::{PairReport, PingMatrix};
use podmesh_lab::story::NODES;
use podmesh_lab::{Lab, Node, Pod};

use super::stage::{Stage, in_words};

/// The play: what the acts share.
pub(super) struct Play<'a> {
    lab: &'a Lab,
    stage: &'a mut Stage,
    nodes: Vec<&'a Node>,
    pods: Vec<Arc<Pod>>,
}

impl<'a> Play<'a> {
    pub(super) fn new(lab: &'a Lab, stage: &'a mut Stage) -> Self {
        Self {
            lab,
            stage,
            nodes: Vec::new(),
            pods: Vec::new(),
        }
    }

    pub(super) fn perform(&mut self) -> Result<()> {
        self.nodes = NODES
            .iter()
            .map(|name| self.lab.node(name))
            .collect::<Result<_>>()?;
        self.small_internet();
        let mesh = self.found_network()?;
        self.join(&mesh)?;
        self.direct_paths(&mesh)?;
        self.show_peers()?;
        self.make_pods()?;
        let pings = PingMatrix::start()?;
        self.everybody_pings(&pings)?;
        self.throughput()?;
        let planet_died = self.kill_planet(&pings)?;
        self.power_cut(&mesh, &pings, planet_died)?;
        self.no_plaintext()
    }

    fn small_internet(&mut self) {
        self.stage.act(
            "A small internet",
            &["Network namespaces stand for machines, a user-space wire for the distance."],
        );
        self.stage.printed(MAP);
        for node in &self.nodes {
            let (name, inner, outer) = (node.name(), node.seat().v4, node.public_address());
            let site = node.site();
            let kind = site.nat().words();
            self.stage.step(&format!(
                "{name:<10} {inner:<15} seen as {outer:<15} {kind}"
            ));
        }
    }

    fn found_network(&mut self) -> Result<Mesh<'a>> {
        self.stage.act(
            "A network and its planet",
            &[
                "The planet introduces nodes to each other. It is the only one that must be reachable.",
                "The network's root key stays with you: the planet can't read traffic or add members.",
            ],
        );
        let planet = self.lab.planet("planet-1")?;
        let start = Instant::now();
        let mesh = Mesh::found(self.lab, "planet-1")?;
        self.stage.command(
            "laptop",
            "meshctl network create lab --planet KEY@203.0.113.10:7077",
        );
        let at = planet.endpoint();
        self.stage.step(&format!(
            "network founded, planet listening on {at} after {}",
            in_words(start.elapsed())
        ));
        Ok(mesh)
    }

    fn join(&mut self, mesh: &Mesh<'_>) -> Result<()> {
        self.stage.act(
            "Four machines join",
            &["One command each, with a token that works once."],
        );
        for node in self.nodes.clone() {
            let name = node.name();
            let time = mesh
                .join(node)
                .with_context(|| format!("{name} can't join"))?;
            self.stage
                .command(name, &format!("meshctl join {name}.token"));
            self.stage.step(&format!("member after {}", in_words(time)));
        }
        Ok(())
    }

    fn direct_paths(&mut self, mesh: &Mesh<'_>) -> Result<()> {
        self.stage.act(
            "Through the walls",
            &[
                "Home and cloud B both sit behind NAT, and cloud B's router punishes a packet that is",
                "too early. The planet tells both sides when to fire, so that neither is.",
            ],
        );
        let limit = Duration::from_secs(15);
        let time = mesh.wait_for(
            &self.nodes,
            "direct paths between all nodes",
            limit,
            mesh::is_direct,
        )?;
        let count = self.nodes.len() * (self.nodes.len() - 1) / 2;
        self.stage.check(
            "all pairs of nodes are direct",
            &format!("{count} of {count} after {}", in_words(time)),
            true,
        );
        Ok(())
    }

    fn show_peers(&mut self) -> Result<()> {
        for name in ["home-1", "cloud-b-1"] {
            let printed = self.lab.node(name)?.meshctl(&["peers"])?;
            self.stage.command(name, "meshctl peers");
            self.stage.printed(&printed);
        }
        Ok(())
    }

    fn make_pods(&mut self) -> Result<()> {
        self.stage.act(
            "Pods",
            &["The CNI plugin is called the way containerd calls it: ADD, with JSON on its input."],
        );
        for node in self.nodes.clone() {
            for letter in ["a", "b"] {
                let name = format!("{}-{letter}", node.name());
                let start = Instant::now();
                let pod = node.add_pod(&name)?;
                let addresses: Vec<String> =
                    pod.addresses().iter().map(ToString::to_string).collect();
                let (addresses, time) = (addresses.join("  "), in_words(start.elapsed()));
                self.stage
                    .step(&format!("pod {name:<12} {addresses}  in {time}"));
                self.pods.push(pod);
            }
        }
        Ok(())
    }

    fn everybody_pings(&mut self, pings: &PingMatrix) -> Result<()> {
        self.stage.act(
            "Everybody talks to everybody",
            &["Every pod pings every pod ten times a second, in IPv4 and in IPv6."],
        );
        for pod in &self.pods {
            pings.add_pod(pod)?;
        }
        let time = pings.wait_for_all(3, Duration::from_secs(15))?;
        self.stage
            .step(&format!("all answer after {}", in_words(time)));
        let start = Instant::now();
        thread::sleep(Duration::from_secs(4));
        let pairs = pings.report(start, Instant::now());
        self.stage.printed(&self.times_between(&pairs));
        let good = pairs.len() == 2 * self.pods.len() * (self.pods.len() - 1);
        self.lossless("every pod reaches every pod, IPv4 and IPv6", &pairs, good);
        Ok(())
    }

    fn throughput(&mut self) -> Result<()> {
        self.stage.act(
            "Some real traffic",
            &["iperf3 from a pod at home to a pod in cloud A, for three seconds."],
        );
        let (from, to) = (self.pod("home-1-a")?, self.pod("cloud-a-1-a")?);
        to.serve_iperf3()?;
        let rate = from.iperf3(to.address(false)?, Duration::from_secs(3), 4)?;
        let seen = format!("{rate:.0} Mbit/s, encrypted, over 40 ms of distance");
        self.stage
            .check("home reaches cloud A with iperf3", &seen, rate > 1.0);
        // The queues are empty again before losses are counted.
        thread::sleep(Duration::from_millis(500));
        Ok(())
    }

    fn kill_planet(&mut self, pings: &PingMatrix) -> Result<Instant> {
        self.stage.act(
            "The planet dies",
            &["kill -9. Tunnels don't need it; nobody shall notice."],
        );
        let died = Instant::now();
        self.lab.planet("planet-1")?.kill();
        thread::sleep(Duration::from_secs(8));
        let pairs = pings.report(died, Instant::now());
        self.lossless("traffic goes on without the planet", &pairs, true);
        Ok(died)
    }

    fn power_cut(
        &mut self,
        mesh: &Mesh<'_>,
        pings: &PingMatrix,
        planet_died: Instant,
    ) -> Result<()> {
        self.stage.act(
            "The power fails at home",
            &[
                "home-2 loses its power: processes, pods, interfaces, everything in memory. Then it",
                "boots, with the planet still dead. All it has is what is on its disk.",
            ],
        );
        let node = self.lab.node("home-2")?;
        let gone: Vec<Arc<Pod>> = node.pods();
        node.power_cut()?;
        for pod in &gone {
            pings.remove(pod.name())?;
        }
        self.pods
            .retain(|pod| !gone.iter().any(|gone| gone.name() == pod.name()));
        drop(gone);
        self.stage.step("power cut");
        thread::sleep(Duration::from_secs(3));
        let back = Instant::now();
        node.power_on()?;
        node.start()?;
        self.stage.step("power is back, meshd starts");
        mesh.wait_for(
            &self.nodes,
            "paths between all nodes",
            Duration::from_secs(30),
            mesh::is_up,
        )?;
        let time = back.elapsed();
        let promise = "the node is back within 15 s, the planet still dead";
        self.stage
            .check(promise, &in_words(time), time <= Duration::from_secs(15));
        for letter in ["c", "d"] {
            let pod = node.add_pod(&format!("home-2-{letter}"))?;
            pings.add_pod(&pod)?;
            self.pods.push(pod);
        }
        pings.wait_for_all(3, Duration::from_secs(15))?;
        self.stage.step("its new pods reach everybody");
        self.stage.command("home-2", "meshctl peers");
        self.stage.printed(&node.meshctl(&["peers"])?);
        let mut pairs = pings.report(planet_died, Instant::now());
        pairs.retain(|pair| !pair.from.starts_with("home-2") && !pair.to.starts_with("home-2"));
        self.lossless(
            "all other pods lost nothing, through all of it",
            &pairs,
            true,
        );
        Ok(())
    }

    fn no_plaintext(&mut self) -> Result<()> {
        self.stage.act(
            "What the wires saw",
            &["Every link was listened to from the first packet on."],
        );
        let (seen, good) = match self.lab.capture().must_be_clean() {
            Ok(verdict) => (verdict.to_string(), verdict.frames > 0),
            Err(error) => (format!("{error:#}"), false),
        };
        self.stage
            .check("no packet between pods in plaintext", &seen, good);
        Ok(())
    }

    fn lossless(&mut self, promise: &str, pairs: &[PairReport], complete: bool) {
        let (lost, sent) = (PairReport::lost_in(pairs), PairReport::sent_in(pairs));
        let seen = format!("{lost} of {sent} pings lost, {} pairs", pairs.len());
        self.stage
            .check(promise, &seen, lost == 0 && sent > 0 && complete);
        for pair in pairs.iter().filter(|pair| pair.lost > 0).take(5) {
            let family = if pair.ipv6 { "IPv6" } else { "IPv4" };
            let PairReport {
                from,
                to,
                lost,
                longest_gap,
                ..
            } = pair;
            self.stage.step(&format!(
                "{from} to {to} ({family}): {lost} lost, {}",
                in_words(*longest_gap)
            ));
        }
    }

    /// The slowest round trip between the pods of each two nodes.
    fn times_between(&self, pairs: &[PairReport]) -> String {
        let mut table = format!("{:<12}", "slowest, ms");
        for to in &self.nodes {
            table += &format!("{:>11}", to.name());
        }
        for from in &self.nodes {
            table += &format!("\n{:<12}", from.name());
            for to in &self.nodes {
                let between = |pair: &&PairReport| of(&pair.from, from) && of(&pair.to, to);
                let slowest = pairs.iter().filter(between).map(|pair| pair.slowest).max();
                let slowest = slowest.unwrap_or_default().as_secs_f64() * 1e3;
                table += &format!("{slowest:>11.1}");
            }
        }
        table
    }

    fn pod(&self, name: &str) -> Result<Arc<Pod>> {
        let pod = self.pods.iter().find(|pod| pod.name() == name);
        pod.cloned()
            .with_context(|| format!("there is no pod {name}"))
    }
}

/// Whether a pod of this name runs on the node.
fn of(pod: &str, node: &Node) -> bool {
    pod.strip_prefix(node.name())
        .is_some_and(|rest| rest.len() == 2)
}

const MAP: &str = "
   home                        the internet                     cloud A
  ┌──────────┐   router                                        ┌───────────┐
  │ home-1   ├──┐ masquerades         planet-1                 │ cloud-a-1 │ public address
  └──────────┘  ├──[NAT]─────────── 203.0.113.10 ──────────────┤           │
  ┌──────────┐  │   20 ms to cloud A      │                    └───────────┘
  │ home-2   ├──┘   40 ms to cloud B      │                     cloud B
  └──────────┘                            │       router       ┌───────────┐
                                          └───────[NAT]────────┤ cloud-b-1 │ its router lets
                                                               └───────────┘ strangers knock
";
