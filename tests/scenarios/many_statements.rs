//! Thousands of statements of the root, and a planet that starts anew: nobody is cut for being told much.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use podmesh_lab::{Lab, Mesh, Node, Planet, mesh, wait};
use podmesh_proto::armor::Armor;
use podmesh_proto::id::{NetworkId, NodeId};
use podmesh_proto::key::SigningKey;
use podmesh_proto::network::RootStatement;
use podmesh_proto::signed::Signed;
use podmesh_proto::time::UnixSeconds;
use serde_json::{Value, json};

use crate::world;

/// After its start the planet has everybody back, and nothing is left to tell.
const SETTLED: Duration = Duration::from_secs(30);
/// From its join on, until a new node has a path to everybody.
const SEEN: Duration = Duration::from_secs(5);
/// Who would be cut for being told too much is cut within this, many times.
const QUIET: Duration = Duration::from_secs(5);
/// Bytes of the shortest statement with its signature.
const STATEMENT: u64 = 100;
/// Conversations with the planet's local socket at a time: fewer than it has room for.
const VOICES: usize = 4;

#[test]
fn thousands_of_statements_cost_nobody_the_planet() {
    let (count, statements) = (world::times(3, 20), world::times(1_000, 10_000));
    let names: Vec<String> = (0..=count)
        .map(|number| format!("cloud-{number}"))
        .collect();
    let mut plan = Lab::plan("many-statements");
    plan.planet("planet-1");
    plan.site("cloud");
    for name in &names {
        plan.node(name).at("cloud");
    }
    let lab = plan.up().unwrap();
    let mesh = Mesh::found(&lab, "planet-1").unwrap();
    let planet = lab.planet("planet-1").unwrap();
    let (newcomer, nodes) = {
        let mut nodes = world::nodes(&lab);
        (nodes.pop().unwrap(), nodes)
    };
    for node in &nodes {
        mesh.join(node).unwrap();
    }
    let begin = Instant::now();
    let root = Root::of(mesh.operator().folder());
    root.say(planet, 0, statements);
    let said = begin.elapsed();
    wait::until("everybody to hold them", Duration::from_secs(120), || {
        let late = nodes.iter().filter(|node| !holds(node, statements));
        let late: Vec<&str> = late.map(|node| node.name()).collect();
        Ok(if late.is_empty() {
            wait::Now(())
        } else {
            wait::NotYet(format!("not yet: {late:?}"))
        })
    })
    .unwrap();
    println!(
        "figure {statements} statements said in {said:.1?}, with {count} nodes after {:.1?}",
        begin.elapsed()
    );

    let back = start_anew(planet, &nodes);
    println!("figure back after {back:.1?}");
    mesh.wait_for(&nodes, "everybody with everybody", SETTLED, mesh::is_up)
        .unwrap();
    let (seen, held) = welcome(&mesh, newcomer, (count, statements));
    println!("figure a new node sees all {count} after {seen:.1?} (bound {SEEN:?})");
    println!("figure and holds {statements} statements after {held:.1?}");
    assert!(seen <= SEEN, "{seen:?}");
}

/// The planet is killed and started; everybody comes back, and stays.
fn start_anew(planet: &Planet, nodes: &[&Node]) -> Duration {
    planet.kill();
    let before = connections(planet);
    let begin = Instant::now();
    planet.start().unwrap();
    wait::until("everybody to be back", SETTLED, || {
        // Who hasn't noticed yet still calls itself connected.
        let came = connections(planet) - before;
        let away = nodes.iter().filter(|node| !is_connected(node));
        let away: Vec<&str> = away.map(|node| node.name()).collect();
        Ok(if away.is_empty() && came >= nodes.len() {
            wait::Now(())
        } else {
            wait::NotYet(format!("{came} came, away: {away:?}"))
        })
    })
    .unwrap();
    let back = begin.elapsed();
    thread::sleep(QUIET);
    let came = connections(planet) - before;
    assert!(came <= 2 * nodes.len(), "{came} connections");
    back
}

/// A new node joins; after how long it sees all others, and holds everything.
fn welcome(
    mesh: &Mesh<'_>,
    newcomer: &Node,
    (count, statements): (usize, usize),
) -> (Duration, Duration) {
    let token = mesh.operator().token("newcomer", &[]).unwrap();
    newcomer.start().unwrap();
    let begin = Instant::now();
    newcomer
        .meshctl(&["join", token.to_str().unwrap()])
        .unwrap();
    wait::until("the new node to see all", SEEN * 4, || {
        let peers = newcomer.peers()?;
        let up = peers.iter().filter(|peer| mesh::is_up(peer)).count();
        Ok(if up == count {
            wait::Now(())
        } else {
            wait::NotYet(format!("{up} of {}", peers.len()))
        })
    })
    .unwrap();
    let seen = begin.elapsed();
    wait::until("the new node to hold them", Duration::from_secs(60), || {
        Ok(if holds(newcomer, statements) {
            wait::Now(())
        } else {
            wait::NotYet("not yet".to_owned())
        })
    })
    .unwrap();
    (seen, begin.elapsed())
}

/// Whoever has the root key.
struct Root {
    key: SigningKey,
    network: NetworkId,
}

impl Root {
    fn of(folder: &Path) -> Self {
        let key = fs::read_to_string(folder.join("root.key")).unwrap();
        let key: Value = serde_json::from_str(&key).unwrap();
        let seed = key["seed"]["seed"].as_str().expect("a plain root key");
        let mut bytes = [0; 32];
        for (byte, digits) in bytes.iter_mut().zip(seed.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap();
        }
        let text = fs::read_to_string(folder.join("network.podmesh")).unwrap();
        let network: Signed<RootStatement> = Armor::Network.decode(&text).unwrap();
        Self {
            key: SigningKey::from_seed(bytes),
            network: network.unverified().unwrap().network(),
        }
    }

    /// That a node which never was is out.
    fn revocation(&self, number: usize) -> Signed<RootStatement> {
        let mut node = [9; 32];
        node[..8].copy_from_slice(&number.to_le_bytes());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let said = RootStatement::RevokeNode {
            network: self.network,
            node: NodeId(node),
            issued: UnixSeconds(now.as_secs()),
        };
        Signed::seal(&said, &self.key).unwrap()
    }

    /// Hands statements to the planet, as `meshctl` does, without a program for each.
    fn say(&self, planet: &Planet, from: usize, to: usize) {
        let socket = planet.runtime_dir().join("planet.sock");
        thread::scope(|scope| {
            for voice in 0..VOICES {
                let socket = &socket;
                scope.spawn(move || {
                    for number in (from..to).skip(voice).step_by(VOICES) {
                        let text = Armor::Statement.encode(&self.revocation(number)).unwrap();
                        let request =
                            json!({"request": "statement", "planet": null, "statement": text});
                        // Who comes while the last one's place is being freed may have to come again.
                        let answer = (0..20).find_map(|_| ask(socket, &request).ok());
                        let answer = answer.expect("an answer");
                        assert!(answer.contains("\"done\""), "{answer}");
                    }
                });
            }
        });
    }
}

fn ask(socket: &Path, request: &Value) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    writeln!(stream, "{request}")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(answer)
}

/// Whether a node has so many statements on its disk.
fn holds(node: &Node, statements: usize) -> bool {
    let files = fs::read_dir(node.state_dir()).unwrap().flatten();
    let largest = files
        .filter_map(|file| Some(file.metadata().ok()?.len()))
        .max();
    largest >= Some(STATEMENT * u64::try_from(statements).unwrap())
}

fn is_connected(node: &Node) -> bool {
    let Ok(status) = node.meshctl_json(&["status"]) else {
        return false;
    };
    status["state"] == "online" && status["planets"][0]["connected"] == true
}

/// How often a member has connected, by the planet's log.
fn connections(planet: &Planet) -> usize {
    let log = fs::read_to_string(planet.log()).unwrap();
    log.matches("a member is connected").count()
}
