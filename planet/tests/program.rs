//! The `planet` program: its commands, its exit codes, and what a kill leaves behind.

#![allow(
    clippy::unwrap_used,
    reason = "a test that can't set its scene fails there"
)]
#![allow(clippy::too_many_lines, reason = "tables are read top to bottom")]

mod story;

#[path = "program/memory.rs"]
mod memory;

#[path = "program/restoring.rs"]
mod restoring;

#[path = "program/slow_disk.rs"]
mod slow_disk;

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use podmesh_planet::rules::records::{Origin, Record};
use podmesh_planet::store::{self, DiskStore, Store as _};
use podmesh_proto::armor::Armor;
use podmesh_proto::id::NodeId;
use podmesh_proto::key::SigningKey;
use podmesh_proto::planet_api::{NodeMessage, PlanetMessage};

use crate::story::client::Client;
use crate::story::{Node, Operator, wall_clock};

/// The program of these sources, or that of a folder that is named.
fn program() -> String {
    let folder = std::env::var("PODMESH_BIN_DIR");
    folder.map_or_else(
        |_| env!("CARGO_BIN_EXE_planet").to_owned(),
        |folder| format!("{folder}/planet"),
    )
}

/// A planet's folders, removed at the end together with the program.
struct Place {
    folder: PathBuf,
    address: SocketAddr,
    running: Option<Child>,
}

impl Place {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("podmesh-program-{}-{count}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        let free = UdpSocket::bind("127.0.0.1:0").unwrap();
        Self {
            folder,
            address: free.local_addr().unwrap(),
            running: None,
        }
    }

    fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    fn runtime(&self) -> PathBuf {
        self.folder.join("run")
    }

    fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.folder.join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(arguments);
        let verb = arguments.first().copied().unwrap_or_default();
        if !matches!(verb, "status" | "trust-empty") {
            command.arg("--state-dir").arg(self.state());
        }
        if !matches!(verb, "init" | "key" | "restore") {
            command.arg("--runtime-dir").arg(self.runtime());
        }
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that has to succeed, and returns what it prints.
    fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Runs a command that has to fail, and returns its exit code and what it says.
    fn fail(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(arguments);
        let said = String::from_utf8(output.stderr).unwrap().trim().to_owned();
        (output.status.code().unwrap(), said)
    }

    /// A planet with the key of an operator's story, and its network.
    fn found(operator: &Operator) -> Self {
        Self::with_key(&operator.planet_key(), operator)
    }

    /// The same with another planet's key.
    fn with_key(key: &SigningKey, operator: &Operator) -> Self {
        let place = Self::new();
        place.succeed(&["init"]);
        let digits: String = key
            .seed()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        fs::write(place.state().join("planet.key"), digits).unwrap();
        place.adopt(operator);
        place
    }

    fn adopt(&self, operator: &Operator) {
        let text = Armor::Network.encode(&operator.network_statement).unwrap();
        let document = self.file("network.podmesh", text.as_bytes());
        self.succeed(&["adopt", &document]);
    }

    fn start(&mut self) {
        let mut command = self.command(&["run", "--listen", &self.address.to_string()]);
        command.stderr(Stdio::null());
        self.running = Some(command.spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.run(&["status"]).status.success() {
            assert!(Instant::now() < deadline, "the planet answers in time");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.kill().unwrap();
            running.wait().unwrap();
        }
    }

    /// Stops it as a service manager does.
    fn stop(&mut self) -> Duration {
        let mut running = self.running.take().unwrap();
        let pid = running.id().to_string();
        let asked = Instant::now();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        assert!(running.wait().unwrap().success());
        asked.elapsed()
    }

    /// Bytes of the program's own that are in the machine's memory; its code is not.
    fn resident(&self) -> u64 {
        let id = self.running.as_ref().unwrap().id();
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let number = line.unwrap().trim().trim_end_matches(" kB");
        number.parse::<u64>().unwrap() * 1_024
    }

    fn records(&self) -> Vec<Record> {
        DiskStore::open(&self.state()).unwrap().load().unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn an_init_that_was_stopped_is_repeated_and_books_are_never_given_to_another_key() {
    let place = Place::new();
    place.succeed(&["init"]);
    let key = place.state().join("planet.key");
    let first = fs::read(&key).unwrap();
    let (code, said) = place.fail(&["init"]);
    assert!(code == 1 && said.contains("already"), "{said}");
    // Stopped between the books and the key.
    fs::remove_file(&key).unwrap();
    place.succeed(&["init"]);
    assert_ne!(fs::read(&key).unwrap(), first);
    // Books that were used, and no key.
    let mut store = DiskStore::open(&place.state()).unwrap();
    let used = Record::Use {
        token: podmesh_proto::id::TokenId([1; 16]),
        number: 1,
        node: NodeId([1; 32]),
    };
    let change = podmesh_planet::rules::records::Change::Put(used);
    store.commit(&[change]).unwrap();
    drop(store);
    fs::remove_file(&key).unwrap();
    let (code, said) = place.fail(&["init"]);
    assert!(code == 1 && said.contains("key is gone"), "{said}");
    assert!(!key.exists());
}

#[test]
fn a_service_whose_start_fails_for_a_while_starts_as_soon_as_it_can() {
    let place = Place::new();
    fs::create_dir_all(place.runtime()).unwrap();
    fs::set_permissions(place.runtime(), fs::Permissions::from_mode(0o700)).unwrap();
    let ear = UnixDatagram::bind(place.folder.join("notify")).unwrap();
    ear.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let hear = || {
        let mut bytes = [0; 4_096];
        let length = ear.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    let store = place.state().join("planet.redb");
    let aside = place.folder.join("aside");
    let address = place.address;
    let taken = std::cell::RefCell::new(None);
    type Step<'a> = &'a dyn Fn();
    let faults: [(&str, Step<'_>, Step<'_>); 3] = [
        ("no planet in", &|| {}, &|| drop(place.succeed(&["init"]))),
        (
            "can't listen on",
            &|| *taken.borrow_mut() = Some(UdpSocket::bind(address).unwrap()),
            &|| drop(taken.borrow_mut().take()),
        ),
        (
            "can't use",
            &|| {
                fs::rename(&store, &aside).unwrap();
                fs::create_dir(&store).unwrap();
            },
            &|| {
                fs::remove_dir(&store).unwrap();
                fs::rename(&aside, &store).unwrap();
            },
        ),
    ];
    for (word, begin, end) in faults {
        begin();
        let log = fs::File::create(place.folder.join("log")).unwrap();
        let mut running = place
            .command(&["run", "--listen", &address.to_string()])
            .env("NOTIFY_SOCKET", place.folder.join("notify"))
            .stderr(log)
            .spawn()
            .unwrap();
        let said = hear();
        assert!(said.starts_with("STATUS=") && said.contains(word), "{said}");
        end();
        while !hear().starts_with("READY=1") {}
        let log = fs::read_to_string(place.folder.join("log")).unwrap();
        assert_eq!(log.matches("can't start yet").count(), 1, "{log}");
        running.kill().unwrap();
        running.wait().unwrap();
    }
}

#[test]
fn a_planet_is_made_serves_and_stops() {
    let operator = Operator::new(201);
    let mut place = Place::new();
    let made = place.succeed(&["init", "--name", "planet-1"]);
    let key = made.strip_prefix("planet key: ").unwrap();
    assert_eq!(place.succeed(&["key"]), key);
    assert_eq!(key.len(), 64);
    assert_eq!(
        (
            mode(&place.state()),
            mode(&place.state().join("planet.key"))
        ),
        (0o700, 0o600)
    );
    place.start();
    assert_eq!(
        (
            mode(&place.runtime()),
            mode(&place.runtime().join("planet.sock"))
        ),
        (0o750, 0o660)
    );
    assert!(place.succeed(&["status"]).contains("planet adopt"));
    let text = Armor::Network.encode(&operator.network_statement).unwrap();
    let document = place.file("network.podmesh", text.as_bytes());
    assert!(place.succeed(&["adopt", &document]).contains("network lab"));
    let deadline = Instant::now() + Duration::from_secs(5);
    while !place.succeed(&["status"]).contains("network lab") {
        assert!(
            Instant::now() < deadline,
            "it serves what it adopted while it ran"
        );
    }
    let status: serde_json::Value =
        serde_json::from_str(&place.succeed(&["status", "--json"])).unwrap();
    assert_eq!(status["schema"], "podmesh.planet-status/v1");
    assert_eq!(status["planet"], key);
    let stopped = place.stop();
    assert!(stopped < Duration::from_secs(5), "{stopped:?}");
    assert!(!place.runtime().join("planet.sock").exists());
}

#[test]
fn every_mistake_gets_one_sentence_with_the_next_step() {
    let operator = Operator::new(202);
    let empty = Place::new();
    let mut place = Place::found(&operator);
    let other = Armor::Network
        .encode(&Operator::new(203).network_statement)
        .unwrap();
    let other = place.file("other.podmesh", other.as_bytes());
    let mut damaged = Armor::Network.encode(&operator.network_statement).unwrap();
    damaged.replace_range(
        60..61,
        if damaged.as_bytes()[60] == b'x' {
            "y"
        } else {
            "x"
        },
    );
    let damaged = place.file("damaged.podmesh", damaged.as_bytes());
    let config = place.file("planet.toml", b"listne = \"[::]:7077\"\n");
    let table: &[(&Place, &[&str], i32, &str)] = &[
        (&empty, &["run"], 6, "planet init"),
        (&empty, &["key"], 6, "planet init"),
        (&place, &["init"], 1, "planet key"),
        (&place, &["status"], 4, "planet run"),
        (&place, &["trust-empty"], 4, "planet run"),
        (&place, &["frobnicate"], 3, "--help"),
        (&place, &["adopt", "/nowhere"], 6, "/nowhere"),
        (&place, &["adopt", &other], 1, "planet init"),
        (&place, &["adopt", &damaged], 1, "meshctl network create"),
        (&place, &["statement", &damaged], 4, "planet run"),
        (&place, &["restore", &damaged], 1, "backup"),
        (&place, &["run", "--config", &config], 3, "listne"),
        (&place, &["run", "--config", "/nowhere"], 6, "/nowhere"),
        (
            &place,
            &["run", "--listen", "192.0.2.1:7077"],
            1,
            "192.0.2.1:7077",
        ),
        (&place, &["run", "--log", "a=b=c"], 3, "info"),
    ];
    for (place, arguments, code, word) in table {
        let (got, said) = place.fail(arguments);
        assert_eq!(got, *code, "{arguments:?}: {said}");
        assert!(said.contains(word), "{arguments:?}: {said}");
    }
    place.start();
    let (code, said) = place.fail(&["run", "--listen", "127.0.0.1:0"]);
    assert!(code == 1 && said.contains("running planet"), "{said}");
    let (code, said) = place.fail(&["statement", &damaged]);
    assert!(code == 1 && !said.contains('\n'), "{said}");
    place.kill();
    let key = place.state().join("planet.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let (code, said) = place.fail(&["run"]);
    assert!(code == 5 && said.contains("chmod 600"), "{said}");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let books = place.state().join(store::FILE);
    let whole = fs::read(&books).unwrap();
    for damage in [0, 100, 4_096, whole.len() / 2] {
        fs::write(&books, &whole[..damage]).unwrap();
        let (code, said) = place.fail(&["run"]);
        assert!(
            code == 1 && said.contains("planet restore"),
            "{damage}: {said}"
        );
        assert_eq!(
            fs::read(&books).unwrap().len(),
            damage,
            "nothing is made worse"
        );
    }
}

#[test]
fn a_backup_of_a_running_planet_comes_back_marked() {
    let operator = Operator::new(204);
    let mut place = Place::found(&operator);
    place.start();
    let backup = place.folder.join("backup");
    let path = backup.display().to_string();
    place.succeed(&["backup", &path]);
    assert_eq!(mode(&backup), 0o600);
    let (code, said) = place.fail(&["restore", &path]);
    assert!(code == 1 && said.contains("stop it first"), "{said}");
    place.stop();
    place.succeed(&["restore", &path]);
    assert!(place.records().contains(&Record::Origin(Origin::Restored)));
    place.start();
    assert!(
        place
            .succeed(&["status"])
            .contains("restored from a backup")
    );
    place.succeed(&["trust-empty"]);
    assert!(!place.succeed(&["status"]).contains("grants nothing"));
}

/// A node whose planet was killed and started again hears of it at its next word, not when its
/// connection times out.
#[tokio::test(flavor = "multi_thread")]
async fn a_planet_that_starts_anew_tells_the_nodes_of_its_former_life() {
    let operator = Operator::new(206);
    let mut place = Place::found(&operator);
    tokio::task::block_in_place(|| place.start());
    let planet = operator.planet_key().planet_id();
    let node = Node::new(1);
    let mut client = Client::dial(place.address, planet, None).await.unwrap();
    client
        .say(&NodeMessage::Hello(client.hello(&node, &operator)))
        .await;
    assert!(matches!(
        client.hear().await,
        Some(PlanetMessage::Welcome(_))
    ));
    tokio::task::block_in_place(|| {
        place.kill();
        place.start();
    });
    let started = Instant::now();
    client.say(&NodeMessage::Heartbeat).await;
    let reason = tokio::time::timeout(Duration::from_secs(10), client.connection.closed()).await;
    assert_eq!(reason.unwrap(), quinn::ConnectionError::Reset);
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "{:?}",
        started.elapsed()
    );
}

/// Two nodes fight for the one use of a token while the planet is killed at some point of it, over
/// and over: never do both get in.
#[tokio::test(flavor = "multi_thread")]
async fn a_planet_that_is_killed_gives_no_use_twice() {
    let mut operator = Operator::new(205);
    let mut place = Place::found(&operator);
    let mut admitted_rounds = 0;
    for round in 0..12_u32 {
        let now = wall_clock();
        let token = operator.token_with(|grant| {
            // Later than any `trust-empty`, after which older ones with one use are not taken.
            (grant.issued, grant.expires) = (now.plus(60), now.plus(600));
        });
        let rivals = [Node::new(3_000 + 2 * round), Node::new(3_001 + 2 * round)];
        let mut winners: Vec<NodeId> = Vec::new();
        for life in 0..3_u64 {
            tokio::task::block_in_place(|| place.start());
            if life == 2 {
                let _ = tokio::task::block_in_place(|| place.run(&["trust-empty"]));
            }
            let mut clients = Vec::new();
            for (index, node) in rivals.iter().enumerate() {
                let planet = operator.planet_key().planet_id();
                let mut client = Client::dial(place.address, planet, None).await.unwrap();
                client
                    .say(&NodeMessage::Hello(client.hello(node, &operator)))
                    .await;
                let application = node.application(&token, &format!("n{round}-{index}"), now);
                client.say(&NodeMessage::Join(Box::new(application))).await;
                clients.push((node.id(), client));
            }
            let pause = Duration::from_millis(u64::from(round) * 3 % 17 + life * 40);
            tokio::time::sleep(pause).await;
            tokio::task::block_in_place(|| place.kill());
            for (node, mut client) in clients {
                client.connection.close(0_u32.into(), b"");
                let admitted = client.find(|message| match message {
                    PlanetMessage::Admitted(_) => Some(()),
                    _ => None,
                });
                if admitted.await.is_some() && !winners.contains(&node) {
                    winners.push(node);
                }
            }
        }
        let token = token.grant.unverified().unwrap().token;
        let used = place.records().into_iter().find_map(|record| match record {
            Record::Use {
                token: used, node, ..
            } if used == token => Some(node),
            _ => None,
        });
        assert!(winners.len() <= 1, "round {round}: {winners:?}");
        assert!(
            winners.iter().all(|winner| used == Some(*winner)),
            "what was said is on disk"
        );
        admitted_rounds += usize::from(!winners.is_empty());
    }
    assert!(admitted_rounds > 2, "{admitted_rounds}");
}
