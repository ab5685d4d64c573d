//! A mesh with a rogue member in it, somebody who greets its planet, and a bystander.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use podmesh_lab::ping::{PairReport, PingMatrix};
use podmesh_lab::process::Process;
use podmesh_lab::{Lab, Mesh, Nat, Node, mesh, node, wait};
use serde_json::{Value, json};

use super::Kind;
use super::measure::Figures;
use crate::puppet::Puppet;
use crate::world;

/// Networks of the bystander, who answers nothing.
pub(super) const BYSTANDER4: &str = "198.18.0.0/24";
pub(super) const BYSTANDER6: &str = "2001:db8:ffff::/64";
/// Larger ones, with those in them.
const BYSTANDERS4: &str = "198.18.0.0/16";
const BYSTANDERS6: &str = "2001:db8:ffff::/48";
/// All addresses of the rogue.
pub(super) const THICKET: &str = "198.19.0.0/16";
/// Milliseconds between two greetings.
const GREETING: usize = 100;
/// A storm that lasts so long is of the long form.
const LONG: Duration = Duration::from_secs(4);
/// For paths to come up.
const PATIENCE: Duration = Duration::from_secs(20);

/// The nodes of the long form that stay, and where; the short form has the first two.
const NODES: [(&str, Nat); 8] = [
    ("alice", Nat::Open),
    ("bob", Nat::PortRestricted),
    ("carol", Nat::Open),
    ("dave", Nat::PortRestricted),
    ("erin", Nat::Symmetric),
    ("frank", Nat::Symmetric),
    ("grace", Nat::Poisonable),
    ("heidi", Nat::Open),
];
/// A node that is started anew again and again, behind a NAT.
const RETURNING: &str = "ivan";

/// A rogue that answers nobody, so that every place where it says to be is tried.
const MUTE: &str = "trudy";

/// Everything.
pub(super) struct Stage {
    lab: Lab,
    rogue: Puppet,
    /// Another rogue, which answers nobody.
    mute: Puppet,
    pings: PingMatrix,
    document: String,
    /// Whom the returning node reaches without a relay.
    direct: BTreeSet<String>,
    lasts: Duration,
}

impl Stage {
    /// Three nodes and the rogue, for seconds.
    pub(super) fn of_three() -> Self {
        Self::set(
            "storm",
            2,
            Duration::from_millis(world::times(1_500, 10_000) as u64),
        )
    }

    /// Nine nodes and the rogue, for a minute.
    pub(super) fn of_ten() -> Self {
        let seconds = std::env::var("STORM_SECONDS").ok();
        let seconds = seconds.and_then(|text| text.parse().ok()).unwrap_or(60);
        Self::set("storms", NODES.len(), Duration::from_secs(seconds))
    }

    fn set(name: &str, count: usize, lasts: Duration) -> Self {
        let lab = plan(name, count);
        let mesh = Mesh::found(&lab, "planet-1").unwrap();
        let nodes: Vec<&str> = NODES.iter().take(count).map(|(name, _)| *name).collect();
        let all = nodes.iter().chain([&RETURNING]);
        for name in all {
            mesh.join(lab.node(name).unwrap()).unwrap();
        }
        let mallory = lab.node("mallory").unwrap();
        take_addresses(mallory);
        count_at(lab.node("bystander").unwrap());
        let token = mesh.operator().token("mallory", &[]).unwrap();
        let rogue = Puppet::member(mallory, &token).unwrap();
        let silent = lab.node(MUTE).unwrap();
        let token = mesh.operator().token(MUTE, &[]).unwrap();
        let mute = Puppet::member_with(silent, &token, &["--mute"]).unwrap();
        let pings = PingMatrix::start().unwrap();
        for name in &nodes {
            let node = lab.node(name).unwrap();
            let status = node.meshctl_json(&["status"]).unwrap();
            let addresses = &status["node"]["addresses"];
            let addresses: Vec<_> = serde_json::from_value(addresses.clone()).unwrap();
            pings.add(name, &node.namespace(), &addresses).unwrap();
        }
        pings.wait_for_all(3, PATIENCE).unwrap();
        let document = mesh.operator().document().display().to_string();
        let mut stage = Self {
            rogue,
            mute,
            pings,
            document,
            direct: BTreeSet::new(),
            lasts,
            lab,
        };
        stage.meet();
        stage
    }

    /// Until the rogue has a tunnel with everybody, and paths stay as they are.
    fn meet(&mut self) {
        wait::until("the rogue to have its tunnels", PATIENCE, || {
            let look = self.rogue.order(&json!({ "do": "look" }))?;
            let peers = look["peers"].as_object().cloned().unwrap_or_default();
            let has = |peer: &Value| peer["session"] == json!(true);
            Ok(match peers.get("alice") {
                Some(peer) if has(peer) => wait::Now(()),
                _ => wait::NotYet(look.to_string()),
            })
        })
        .unwrap();
        let returning = self.lab.node(RETURNING).unwrap();
        let open = |name: &str| {
            NODES
                .iter()
                .any(|(node, nat)| *node == name && *nat != Nat::Symmetric)
        };
        self.direct = wait::until("direct paths", PATIENCE, || {
            let peers = returning.peers()?;
            let mut honest = peers.iter().filter(|peer| open(peer.name.as_str()));
            let direct = honest.clone().filter(|peer| mesh::is_direct(peer));
            let direct: BTreeSet<String> = direct.map(|peer| peer.name.to_string()).collect();
            Ok(if honest.all(mesh::is_direct) {
                wait::Now(direct)
            } else {
                wait::NotYet(format!("{direct:?}"))
            })
        })
        .unwrap();
    }

    /// Whether there is time for everything.
    pub(super) fn is_long(&self) -> bool {
        self.lasts >= LONG
    }

    /// Watches while a rogue does something without end, or nothing.
    pub(super) fn watch(&self, kind: Option<&Kind>) -> Figures {
        let (begin, before) = (Instant::now(), self.reached());
        let lasts = match kind {
            None if self.is_long() => self.lasts / 4,
            _ => self.lasts,
        };
        let rogue = match kind {
            Some(kind) if kind.mute => &self.mute,
            _ => &self.rogue,
        };
        if let Some(kind) = kind {
            let order = json!({ "do": "storm", "storm": kind.order, "rate": kind.rate });
            rogue.order(&order).unwrap();
        }
        let greeter = self.greeter(lasts);
        let direct = self.come_back();
        std::thread::sleep(lasts.saturating_sub(begin.elapsed()));
        wait::until("the greeter", PATIENCE, || {
            Ok(match greeter.ended() {
                Some(_) => wait::Now(()),
                None => wait::NotYet("still greets".to_owned()),
            })
        })
        .unwrap();
        let tally = rogue.order(&json!({ "do": "calm" })).unwrap();
        let mut figures = Figures {
            direct,
            reached: self.reached() - before,
            span: Some((begin, Instant::now())),
            tally,
            ..Figures::default()
        };
        figures.take_greetings(greeter.log()).unwrap();
        if kind.is_some_and(|kind| kind.mute) {
            // What it said before counts until it says something else.
            let places: [&str; 0] = [];
            let order = json!({ "do": "publish", "candidates": places });
            rogue.order(&order).unwrap();
        }
        figures
    }

    /// Adds what became of the pings; the last of them has some time to be answered.
    pub(super) fn count_pings(&self, figures: &mut Figures) {
        if let Some((begin, end)) = figures.span {
            let pairs = self.pings.report(begin, end);
            figures.pings = PairReport::sent_in(&pairs);
            figures.lost = PairReport::lost_in(&pairs);
        }
    }

    fn greeter(&self, lasts: Duration) -> Process {
        let visitor = self.lab.node("visitor").unwrap();
        let mut command = visitor.namespace().command(node::program("rogue").unwrap());
        let count = lasts.as_millis() as usize / GREETING;
        command.args(["greeter", "--network", &self.document]);
        command.args([
            "--every",
            &GREETING.to_string(),
            "--count",
            &count.to_string(),
        ]);
        let log = visitor.folder().join("greeter.log");
        Process::start("the greeter", command, &log).unwrap()
    }

    /// Starts the returning node anew; until it has its direct paths again.
    fn come_back(&self) -> Duration {
        let returning = self.lab.node(RETURNING).unwrap();
        returning.kill();
        let begin = Instant::now();
        returning.start().unwrap();
        wait::until(
            "the direct paths of a node that came back",
            PATIENCE,
            || {
                let peers = returning.peers()?;
                let direct = peers.iter().filter(|peer| mesh::is_direct(peer));
                let direct: BTreeSet<String> = direct.map(|peer| peer.name.to_string()).collect();
                Ok(if self.direct.is_subset(&direct) {
                    wait::Now(begin.elapsed())
                } else {
                    wait::NotYet(format!("{direct:?} of {:?}", self.direct))
                })
            },
        )
        .unwrap_or(PATIENCE)
    }

    /// Bytes that have reached the bystander's networks.
    fn reached(&self) -> u64 {
        let bystander = self.lab.node("bystander").unwrap().namespace();
        let shown = bystander.run(&["nft", "-j", "list", "counters"]).unwrap();
        let shown: Value = serde_json::from_str(&shown).unwrap();
        let items = shown["nftables"].as_array().into_iter().flatten();
        let bytes = items.filter_map(|item| item["counter"]["bytes"].as_u64());
        bytes.sum()
    }
}

fn plan(name: &str, count: usize) -> Lab {
    let mut plan = Lab::plan(name);
    plan.planet("planet-1");
    let nodes = NODES.iter().take(count);
    for (node, nat) in nodes.chain([&(RETURNING, Nat::PortRestricted)]) {
        let site = format!("{node}s-place");
        let line = plan.site(&site).nat(*nat);
        if *nat != Nat::Symmetric {
            line.ipv6();
        }
        plan.node(node).at(&site);
    }
    plan.site("elsewhere").ipv6();
    for node in ["mallory", MUTE, "bystander", "visitor"] {
        plan.node(node).at("elsewhere");
    }
    plan.up().unwrap()
}

/// The rogue may send from its own networks, where answers reach it, and from the bystander's.
fn take_addresses(mallory: &Node) {
    let namespace = mallory.namespace();
    for range in [BYSTANDER4, THICKET] {
        let words = ["ip", "route", "add", "local", range, "dev", "lo"];
        namespace.run(&words).unwrap();
    }
    let words = ["ip", "-6", "route", "add", "local", BYSTANDER6, "dev", "lo"];
    namespace.run(&words).unwrap();
    mallory.receive(THICKET.parse().unwrap()).unwrap();
}

fn count_at(bystander: &Node) {
    for range in [BYSTANDERS4, BYSTANDERS6] {
        bystander.receive(range.parse().unwrap()).unwrap();
    }
    let rules = format!(
        "table inet bystander {{
           counter reached {{ }}
           chain before {{
             type filter hook prerouting priority -400;
             ip daddr {BYSTANDERS4} counter name reached drop
             ip6 daddr {BYSTANDERS6} counter name reached drop
           }}
         }}"
    );
    bystander.namespace().nft(&rules).unwrap();
}
