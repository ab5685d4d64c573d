//! The key of the only planet is stolen, and one member is the thief's accomplice.

use std::cell::Cell;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use podmesh_lab::ping::{PairReport, PingMatrix};
use podmesh_lab::{Lab, Mesh, Node, mesh, wait};
use serde_json::{Value, json};

use super::health::{self, must_name};
use super::listener::{Listener, PORT};
use crate::puppet::{Puppet, loot_of, strings};

/// A newcomer wants what a known member holds.
const CONFLICT: &[&str] = &["MESH-TRUST-002"];
/// The nodes that nobody tampers with.
const HONEST: [&str; 3] = ["alice", "bob", "carol"];
/// A lie, its name first, the codes that may name it, and a word that must be in the sentence; where
/// that is empty, the sentence has to name whom the answer to the order names.
type Lie = (&'static str, Value, &'static [&'static str], &'static str);

#[test]
fn a_stolen_planet_moves_nobody_and_every_lie_is_named() {
    let lab = four_sites();
    let world = World::before_the_theft(&lab, &HONEST);
    let pings = PingMatrix::start().unwrap();
    for name in HONEST {
        let pod = lab
            .node(name)
            .unwrap()
            .add_pod(&format!("{name}-a"))
            .unwrap();
        pings.add_pod(&pod).unwrap();
    }
    pings.wait_for_all(5, Duration::from_secs(10)).unwrap();
    let start = Instant::now();

    let thief = world.steal(&[]);
    let ears: Vec<Listener> = HONEST
        .iter()
        .map(|name| Listener::open(&lab.node(name).unwrap().namespace()).unwrap())
        .collect();
    for (name, order, codes, word) in world.lies() {
        world.tell(&thief, (name, &order), (codes, word));
        if name.starts_with("claims") {
            world.send_from_what_is_claimed(&order["victim"]);
        }
    }
    world.nothing_got_through(&ears);
    drop(ears);
    let pairs = pings.report(start, Instant::now());
    println!(
        "figure {} pings, {} lost",
        PairReport::sent_in(&pairs),
        PairReport::lost_in(&pairs)
    );
    assert_eq!(PairReport::lost_in(&pairs), 0, "{pairs:?}");

    world.pins_are_on_disk(&thief, &pings);
    pings.remove("carol-a").unwrap();
    let start = Instant::now();
    world.a_withheld_revocation_reaches_everybody(&thief);
    world.real_keys_are_answered(&thief);
    let pairs = pings.report(start, Instant::now());
    assert_eq!(PairReport::lost_in(&pairs), 0, "{pairs:?}");
}

#[test]
fn a_stolen_planet_that_never_ends_its_directory_unpins_nobody() {
    let lab = four_sites();
    let world = World::before_the_theft(&lab, &["alice", "bob"]);
    let thief = world.steal(&["--endless"]);
    // The thief lets carol in as an honest planet would, and everybody gets to know her.
    let carol = lab.node("carol").unwrap();
    world.mesh.join(carol).unwrap();
    let nodes = world.honest();
    let limit = Duration::from_secs(20);
    world
        .mesh
        .wait_for(&nodes, "direct paths", limit, mesh::is_direct)
        .unwrap();
    let pings = PingMatrix::start().unwrap();
    for name in HONEST {
        let node = lab.node(name).unwrap();
        pings
            .add(name, &node.namespace(), &addresses(node))
            .unwrap();
    }
    pings.wait_for_all(20, Duration::from_secs(10)).unwrap();
    let start = Instant::now();
    for prey in ["overlay4", "pod-cidr"] {
        let order = json!({ "do": "claim", "victim": "carol", "prey": prey });
        world.tell(&thief, ("claims what is carol's", &order), (CONFLICT, ""));
    }
    // Newcomers are as new as carol is, as long as the first telling has not ended.
    let folder = world.mesh.operator().folder();
    let order = json!({
        "do": "replay-token", "token": folder.join("carol.token"), "how": "used", "prey": null,
    });
    world.tell(&thief, ("uses carol's token again", &order), (CONFLICT, ""));
    let stolen = world.mesh.operator().token("stolen", &[]).unwrap();
    let order = json!({
        "do": "replay-token", "token": stolen, "how": "not", "prey": ["carol", "pod-cidr"],
    });
    world.tell(&thief, ("uses a stolen token", &order), (CONFLICT, ""));
    std::thread::sleep(Duration::from_secs(1));
    let pairs = pings.report(start, Instant::now());
    assert_eq!(PairReport::lost_in(&pairs), 0, "{pairs:?}");
}

fn four_sites() -> Lab {
    let mut plan = Lab::plan("stolen-planet");
    plan.planet("planet-1");
    for (site, node) in [
        ("east", "alice"),
        ("west", "bob"),
        ("south", "carol"),
        ("den", "mallory"),
    ] {
        plan.site(site);
        plan.node(node).at(site);
        plan.delay(site, "planet-1", Duration::from_millis(5));
    }
    plan.up().unwrap()
}

/// A network whose planet is about to be stolen.
struct World<'lab> {
    lab: &'lab Lab,
    mesh: Mesh<'lab>,
    /// The first edition of the network document.
    old_document: PathBuf,
    accomplice: Puppet,
    /// Packets that the accomplice sent from its own address to each of the others.
    honest_packets: Cell<usize>,
}

impl<'lab> World<'lab> {
    /// All have joined; carol has left and come back; the network has had two editions.
    fn before_the_theft(lab: &'lab Lab, names: &[&str]) -> Self {
        let mesh = Mesh::found(lab, "planet-1").unwrap();
        let old_document = lab.folder().join("old-network.podmesh");
        fs::copy(mesh.operator().document(), &old_document).unwrap();
        let mallory = lab.node("mallory").unwrap();
        let token = mesh.operator().token("mallory", &[]).unwrap();
        let accomplice = Puppet::member(mallory, &token).unwrap();
        for name in names {
            mesh.join(lab.node(name).unwrap()).unwrap();
        }
        let world = Self {
            lab,
            mesh,
            old_document,
            accomplice,
            honest_packets: Cell::new(0),
        };
        if names.contains(&"carol") {
            world.carol_comes_back();
        }
        let later = format!("{}@203.0.113.99:7077", "7e".repeat(32));
        world.operate("alice", &["network", "add-planet", &later]);
        let nodes: Vec<&Node> = names.iter().map(|name| world.node(name)).collect();
        wait_for_edition(&nodes, 2);
        let limit = Duration::from_secs(20);
        world
            .mesh
            .wait_for(&nodes, "direct paths", limit, mesh::is_direct)
            .unwrap();
        world.shake_hands(&nodes);
        world
    }

    /// The accomplice makes new sessions with real members, as one of them.
    fn shake_hands(&self, nodes: &[&Node]) {
        for node in nodes {
            let order = json!({ "do": "handshake", "to": node.name() });
            let made = self.accomplice.order(&order).unwrap();
            assert_eq!(made["session"], json!(true), "a real member: {made}");
        }
    }

    /// Her first membership is an old state from then on.
    fn carol_comes_back(&self) {
        let carol = self.node("carol");
        wait::until("mallory to see carol", Duration::from_secs(10), || {
            let look = self.accomplice.order(&json!({ "do": "look" }))?;
            Ok(if look["peers"]["carol"].is_object() {
                wait::Now(())
            } else {
                wait::NotYet(look.to_string())
            })
        })
        .unwrap();
        carol.meshctl(&["leave", "--yes"]).unwrap();
        let token = self
            .mesh
            .operator()
            .token("carol-again", &["--site", "south"])
            .unwrap();
        carol.meshctl(&["join", token.to_str().unwrap()]).unwrap();
        carol.wait_online(Duration::from_secs(15)).unwrap();
    }

    /// Stops the planet and puts the thief in its place.
    fn steal(&self, options: &[&str]) -> Puppet {
        let nodes = self.joined();
        // An orderly stop, so that nobody waits until a silent connection is given up.
        self.lab.planet("planet-1").unwrap().stop().unwrap();
        let loot = loot_of(self.node("mallory"));
        let document = self.mesh.operator().document();
        let thief = Puppet::planet(self.lab, (&document, &loot), options).unwrap();
        wait::until(
            "all nodes to trust the thief",
            Duration::from_secs(60),
            || {
                let look = thief.order(&json!({ "do": "look" }))?;
                let listeners = strings(&look["listeners"]);
                let trusts = |node: &&Node| listeners.iter().any(|name| name == node.name());
                let doors = usize::try_from(look["doors"].as_u64().unwrap_or(0))?;
                Ok(if nodes.iter().all(trusts) && doors >= nodes.len() {
                    wait::Now(())
                } else {
                    wait::NotYet(look.to_string())
                })
            },
        )
        .unwrap();
        thief
    }

    /// Knocking with the accomplice's real keys is answered, so that silence means something. It looks
    /// as if the accomplice had begun a new life, which ends its sessions.
    fn real_keys_are_answered(&self, thief: &Puppet) {
        let knocked = thief.order(&json!({ "do": "knock" })).unwrap();
        assert!(knocked["answers"].as_u64() > Some(0), "{knocked}");
    }

    fn lies(&self) -> Vec<Lie> {
        let claim = |prey: &str| json!({ "do": "claim", "victim": "alice", "prey": prey });
        let token = self.mesh.operator().folder().join("bob.token");
        let replay =
            |how: &str| json!({ "do": "replay-token", "token": token, "how": how, "prey": null });
        let of = |what: &str, victim: &str| json!({ "do": what, "victim": victim });
        const FALSE: &[&str] = &["MESH-TRUST-001"];
        const OLD: &[&str] = &["MESH-TRUST-004"];
        // She has left in between, by her own word.
        const GONE: &[&str] = &["MESH-TRUST-004", "MESH-TRUST-005"];
        const KEY: &[&str] = &["MESH-TRUST-006"];
        const MOVED: &[&str] = &["MESH-TRUST-007"];
        const TOKEN: &[&str] = &["MESH-TRUST-008", "MESH-TRUST-002"];
        const FORGED: &[&str] = &["MESH-TRUST-009"];
        let at = "203.0.113.10:9999";
        let forged = json!({ "do": "forge-endpoints", "victim": "alice", "at": at });
        let old_network = json!({ "do": "serve-old-network", "document": self.old_document });
        let old_carol = json!({ "do": "serve", "member": "carol", "oldest": true });
        vec![
            ("adds a member", json!({ "do": "add-member" }), FALSE, ""),
            ("moves an address", of("move-address", "alice"), MOVED, ""),
            ("swaps a key", of("swap-key", "alice"), KEY, ""),
            ("claims an address", claim("overlay4"), CONFLICT, ""),
            ("claims an IPv6 address", claim("overlay6"), MOVED, ""),
            ("claims a pod CIDR", claim("pod-cidr"), CONFLICT, ""),
            ("claims an IPv6 pod CIDR", claim("pod-cidr6"), CONFLICT, ""),
            ("claims a super-net", claim("super-net"), MOVED, ""),
            ("claims a sub-net", claim("sub-net"), CONFLICT, ""),
            ("claims an IPv6 sub-net", claim("sub-net6"), CONFLICT, ""),
            ("claims everything", claim("everything"), MOVED, ""),
            ("replays a used token", replay("used"), TOKEN, ""),
            ("replays a used-up token", replay("beyond"), TOKEN, ""),
            ("replays an expired token", replay("late"), TOKEN, ""),
            ("serves an old network", old_network, OLD, "edition 1"),
            ("serves an old member", old_carol, GONE, ""),
            ("forges endpoints", forged, FORGED, "endpoint"),
            (
                "replays a departure",
                of("replay-departure", "carol"),
                OLD,
                "",
            ),
            (
                "forges a departure",
                of("forge-departure", "alice"),
                FORGED,
                "departure",
            ),
            (
                "forges a revocation",
                of("forge-revocation", "alice"),
                FORGED,
                "statement",
            ),
        ]
    }

    /// Tells a lie to all; whoever is not lied about itself has to name it.
    fn tell(&self, thief: &Puppet, (name, order): (&str, &Value), (codes, word): (&[&str], &str)) {
        let nodes = self.honest();
        let before: Vec<_> = nodes
            .iter()
            .map(|node| health::complaints(node).unwrap())
            .collect();
        let answer = thief.order(order).unwrap();
        let told = strings(&answer["told"]);
        assert_eq!(
            answer["knocked"]["answers"].as_u64().unwrap_or(0),
            0,
            "{name}: {answer}"
        );
        let words = match answer["name"].as_str() {
            Some(subject) if word.is_empty() => vec![subject.to_owned()],
            _ => vec![word.to_owned()],
        };
        for (node, before) in nodes.iter().zip(&before) {
            assert!(
                told.iter().any(|name| name == node.name()),
                "{name}: {answer}"
            );
            if order["victim"] == node.name() || answer["name"] == node.name() {
                continue;
            }
            let named = must_name(node, (codes, &words), before);
            match named {
                Ok(sentence) => println!("figure {name}: {} says {sentence}", node.name()),
                Err(error) => panic!("{name}: {error:#}"),
            }
        }
    }

    /// Packets from the victim's addresses come out of the accomplice's tunnels, and honest ones in
    /// between, which show that the tunnels work.
    fn send_from_what_is_claimed(&self, victim: &Value) {
        let victim = self.node(victim.as_str().unwrap());
        let pods = victim.pods();
        let mut sources = addresses(victim);
        sources.extend(pods.iter().flat_map(|pod| pod.addresses().to_vec()));
        let look = self.accomplice.order(&json!({ "do": "look" })).unwrap();
        for to in HONEST {
            let targets = addresses(self.node(to));
            self.send(to, (&look["overlay4"], targets[0]), "honest");
            for source in sources.iter().filter(|_| to != victim.name()) {
                let mut targets = targets.iter();
                let target = targets.find(|target| target.is_ipv4() == source.is_ipv4());
                self.send(to, (&json!(source), *target.unwrap()), "false");
            }
        }
        self.honest_packets.set(self.honest_packets.get() + 1);
    }

    fn send(&self, to: &str, (source, target): (&Value, IpAddr), text: &str) {
        let count = if text == "honest" { 1 } else { 3 };
        self.accomplice
            .order(&json!({
                "do": "send", "to": to, "source": source, "destination": target, "port": PORT,
                "text": text, "count": count, "copies": 1,
            }))
            .unwrap();
    }

    /// The accomplice's own packets have arrived, others of its have not, and it got none of others.
    fn nothing_got_through(&self, ears: &[Listener]) {
        std::thread::sleep(Duration::from_millis(500));
        let look = self.accomplice.order(&json!({ "do": "look" })).unwrap();
        for (name, ear) in HONEST.iter().zip(ears) {
            let heard = ear.all();
            println!("figure {name} heard {heard:?}");
            assert_eq!(ear.heard("honest"), self.honest_packets.get(), "{name}");
            assert_eq!(ear.heard("false"), 0, "{name}: {heard:?}");
            let tally = &look["peers"][name]["tally"];
            assert_eq!(tally["foreign"], json!(0), "{name} leaked: {look}");
        }
    }

    /// The root revokes carol by bob's meshd; the planet tells nobody, the nodes tell each other.
    fn a_withheld_revocation_reaches_everybody(&self, thief: &Puppet) {
        self.operate("bob", &["node", "revoke", "carol", "--yes"]);
        let others = ["alice", "bob"].map(|name| self.node(name));
        for node in others {
            wait::until("carol to be out", Duration::from_secs(10), || {
                let peers = node.peers()?;
                let carol = peers.iter().find(|peer| peer.name.as_str() == "carol");
                Ok(match carol {
                    None => wait::Now(()),
                    Some(carol) => wait::NotYet(format!("{}: {carol:?}", node.name())),
                })
            })
            .unwrap();
        }
        let look = thief.order(&json!({ "do": "look" })).unwrap();
        assert!(look["statements_withheld"].as_u64() >= Some(1), "{look}");
        let before = others.map(|node| health::complaints(node).unwrap());
        let again = json!({ "do": "serve", "member": "carol", "oldest": false });
        thief.order(&again).unwrap();
        for (node, before) in others.iter().zip(&before) {
            let words = ["carol".to_owned()];
            let named = must_name(node, (&["MESH-TRUST-005"], &words), before).unwrap();
            println!(
                "figure withholds a revocation: {} says {named}",
                node.name()
            );
        }
        let carol = self.node("carol").pods();
        let alice = self.node("alice").pods();
        let target = alice[0].address(false).unwrap().to_string();
        let ping = ["ping", "-c", "3", "-i", "0.2", "-W", "1", &target];
        assert!(carol[0].namespace().run(&ping).is_err(), "carol is out");
    }

    /// A node that has restarted under the thief still knows who holds what.
    fn pins_are_on_disk(&self, thief: &Puppet, pings: &PingMatrix) {
        let bob = self.node("bob");
        bob.kill();
        bob.start().unwrap();
        pings.wait_for_all(10, Duration::from_secs(30)).unwrap();
        let start = Instant::now();
        wait::until(
            "bob to come back to the thief",
            Duration::from_secs(30),
            || {
                let look = thief.order(&json!({ "do": "look" }))?;
                let back = strings(&look["listeners"]).iter().any(|name| name == "bob");
                let online = bob.wait_online(Duration::from_secs(1)).is_ok();
                Ok(if back && online {
                    wait::Now(())
                } else {
                    wait::NotYet(look.to_string())
                })
            },
        )
        .unwrap();
        let claim = json!({ "do": "claim", "victim": "alice", "prey": "pod-cidr" });
        self.tell(
            thief,
            ("after a restart", &claim),
            (&["MESH-TRUST-002"], ""),
        );
        let old = json!({ "do": "serve-old-network", "document": self.old_document });
        self.tell(
            thief,
            ("after a restart", &old),
            (&["MESH-TRUST-004"], "edition 1"),
        );
        let pairs = pings.report(start, Instant::now());
        assert_eq!(PairReport::lost_in(&pairs), 0, "{pairs:?}");
    }

    /// A command that needs the root key, delivered by a node.
    fn operate(&self, node: &str, words: &[&str]) {
        let desk = self.mesh.operator().folder().to_str().unwrap();
        self.node(node)
            .meshctl(&[words, &["--dir", desk]].concat())
            .unwrap();
    }

    /// Those that run at the moment.
    fn joined(&self) -> Vec<&'lab Node> {
        let mut nodes = self.honest();
        nodes.retain(|node| node.meshd().is_ok());
        nodes
    }

    fn honest(&self) -> Vec<&'lab Node> {
        HONEST.map(|name| self.node(name)).to_vec()
    }

    fn node(&self, name: &str) -> &'lab Node {
        self.lab.node(name).unwrap()
    }
}

fn wait_for_edition(nodes: &[&Node], version: u64) {
    for node in nodes {
        wait::until("the new edition", Duration::from_secs(10), || {
            let known = health::status(node)?.network.map(|network| network.version);
            Ok(if known == Some(version) {
                wait::Now(())
            } else {
                wait::NotYet(format!("{}: {known:?}", node.name()))
            })
        })
        .unwrap();
    }
}

/// Overlay addresses of a node, IPv4 first.
fn addresses(node: &Node) -> Vec<IpAddr> {
    let own = health::status(node).unwrap().node.unwrap();
    let mut addresses = own.addresses;
    addresses.sort();
    addresses
}
