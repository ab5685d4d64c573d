//! A planet on a real socket, with nodes that speak QUIC and relay frames to it.

#![allow(
    clippy::unwrap_used,
    reason = "a test that can't set its scene fails there"
)]

mod story;

#[path = "wire/slow_disk.rs"]
mod slow_disk;

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use podmesh_planet::rules::Planet;
use podmesh_planet::rules::books::Books;
use podmesh_planet::rules::records::{Change, Origin, Record};
use podmesh_planet::rules::relaying::RelayQuota;
use podmesh_planet::server::clock::Clock;
use podmesh_planet::server::mind::BackupStore;
use podmesh_planet::server::{Limits, Server, bind};
use podmesh_planet::store::{DiskStore, Store as _};
use podmesh_proto::planet_api::{DirectoryRecord, NodeMessage, PlanetMessage, RefusalCode};
use podmesh_proto::token::JoinToken;

use crate::story::client::{Client, DataSocket, client_config};
use crate::story::{Node, Operator, wall_clock};

struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("podmesh-wire-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A serving planet and its operator.
struct Scene {
    operator: Operator,
    server: Server,
    address: SocketAddr,
    folder: Folder,
}

impl Scene {
    fn start(number: u32) -> Self {
        Self::start_with(number, |store| Box::new(store))
    }

    fn start_with(number: u32, wrap: impl FnOnce(DiskStore) -> Box<dyn BackupStore>) -> Self {
        let operator = Operator::new(number);
        let folder = Folder::new();
        let mut store = DiskStore::create(&folder.0, Origin::Fresh).unwrap();
        let network = Record::Network(Box::new(operator.network_statement.clone()));
        store.commit(&[Change::Put(network)]).unwrap();
        let books = Books::from_records(store.load().unwrap()).unwrap();
        let clock = Clock::start();
        let planet = Planet::new(operator.planet_key(), books, [7; 32], clock.now());
        let limits = Limits {
            connections: 500,
            relay: RelayQuota::default(),
        };
        let socket = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let mind = (planet, wrap(store));
        let server = Server::start(socket, &operator.planet_key(), mind, limits, clock).unwrap();
        let address = server.local_addr().unwrap();
        Self {
            operator,
            server,
            address,
            folder,
        }
    }

    /// A token that is valid now.
    fn token(&mut self, uses: u32) -> JoinToken {
        let now = wall_clock();
        self.operator.token_with(|grant| {
            grant.uses = uses;
            (grant.issued, grant.expires) = (now.minus(10), now.plus(600));
        })
    }

    async fn dial(&self) -> Client {
        let planet = self.operator.planet_key().planet_id();
        Client::dial(self.address, planet, None).await.unwrap()
    }

    async fn member(&self, number: u32, token: &JoinToken, name: &str) -> (Node, Client) {
        let mut node = Node::new(number);
        let mut client = self.dial().await;
        let parties = (&self.operator, token);
        client.join(&mut node, parties, name).await.unwrap();
        (node, client)
    }

    fn bytes(&self) -> (u64, u64) {
        let counters = self.server.socket().counters();
        let received = counters.received_bytes.load(Ordering::Relaxed);
        (received, counters.sent_bytes.load(Ordering::Relaxed))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_join_and_see_each_other() {
    let mut scene = Scene::start(101);
    let token = scene.token(2);
    let (a, mut to_a) = scene.member(1, &token, "a").await;
    let (b, mut to_b) = scene.member(2, &token, "b").await;
    let is_member = |record: &DirectoryRecord| matches!(record, DirectoryRecord::Member(_));
    for (client, other) in [(&mut to_a, &b), (&mut to_b, &a)] {
        let Some(DirectoryRecord::Member(membership)) = client.record(is_member).await else {
            panic!("the connection ended");
        };
        let member = membership
            .verify(&scene.operator.network, wall_clock())
            .unwrap();
        assert_eq!(member.node, other.id());
    }
    let endpoints = a.endpoints(&scene.operator.network, 1);
    let published = Instant::now();
    to_a.say(&NodeMessage::Publish(endpoints.clone())).await;
    let news = |record: &DirectoryRecord| *record == DirectoryRecord::Endpoints(endpoints.clone());
    assert!(to_b.record(news).await.is_some());
    assert!(published.elapsed() < Duration::from_millis(500));
    let introduce = NodeMessage::Introduce {
        peer: b.id(),
        attempt: 1,
    };
    to_a.say(&introduce).await;
    for (client, other) in [(&mut to_a, &b), (&mut to_b, &a)] {
        let punch = client.find(|message| match message {
            PlanetMessage::Punch { peer, .. } => Some(*peer),
            _ => None,
        });
        assert_eq!(punch.await, Some(other.id()));
    }
    scene.server.stop().await;
    let draining = to_b.find(|message| match message {
        PlanetMessage::Draining { retry_in } => Some(*retry_in),
        _ => None,
    });
    assert!(draining.await.is_some());
    assert_eq!(to_b.hear().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lies_about_itself_is_cut() {
    let mut scene = Scene::start(102);
    let token = scene.token(1);
    let mut client = scene.dial().await;
    let mut hello = client.hello(&Node::new(1), &scene.operator);
    hello.node = Node::new(2).id();
    client.say(&NodeMessage::Hello(hello)).await;
    assert_eq!(client.refusal().await, Some(RefusalCode::Unproven));
    assert_eq!(client.hear().await, None);
    let mut client = scene.dial().await;
    let application = Node::new(1).application(&token, "a", wall_clock());
    client.say(&NodeMessage::Join(Box::new(application))).await;
    assert_eq!(client.hear().await, None, "no hello first");
    let mut client = scene.dial().await;
    client.say_bytes(&[0xff; 64]).await;
    assert_eq!(client.hear().await, None, "an oversized frame");
    let other = Operator::new(1).planet_key().planet_id();
    let pinned = Client::dial(scene.address, other, None).await;
    assert!(
        pinned.is_err(),
        "a node talks to the planet it means or to none"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn relayed_datagrams_reach_the_other_node_and_nobody_else() {
    const PAYLOAD: [u8; 1_300] = {
        let mut payload = [0xa5; 1_300];
        (payload[0], payload[1], payload[2], payload[3]) = (4, 0, 0, 0);
        payload
    };
    let mut scene = Scene::start(103);
    let token = scene.token(2);
    let (a, mut to_a) = scene.member(1, &token, "a").await;
    let (b, mut to_b) = scene.member(2, &token, "b").await;
    let mut data_a = DataSocket::new(scene.address, to_a.relay_grant().await);
    let mut data_b = DataSocket::new(scene.address, to_b.relay_grant().await);
    tokio::task::block_in_place(|| {
        assert_eq!(data_a.observe(), data_a.socket.local_addr().unwrap());
        assert_eq!(data_b.observe(), data_b.socket.local_addr().unwrap());
        for _ in 0..200 {
            data_a.send(&b, &PAYLOAD);
            let (payload, header) = data_b.receive().unwrap();
            assert_eq!(payload, PAYLOAD);
            assert_eq!(header.peer, a.id().relay_address());
            data_b.send(&a, &PAYLOAD);
            assert!(data_a.receive().is_some());
        }
        // A thief with a recorded frame moves nobody and gets nothing.
        let recorded = data_a.frame(&b, &PAYLOAD);
        data_a.socket.send_to(&recorded, scene.address).unwrap();
        assert!(data_b.receive().is_some());
        let thief = UdpSocket::bind("127.0.0.1:0").unwrap();
        thief.set_nonblocking(true).unwrap();
        for _ in 0..1_000 {
            thief.send_to(&recorded, scene.address).unwrap();
        }
        std::thread::sleep(Duration::from_millis(300));
        // What each of them got is counted, not what the planet sent: it also searches the path
        // MTU of the control connections, whenever the machine lets it.
        let mut datagram = [0; 2_000];
        assert!(thief.recv(&mut datagram).is_err(), "the thief is answered");
        for data in [&data_a, &data_b] {
            data.socket.set_nonblocking(true).unwrap();
            assert!(data.socket.recv(&mut datagram).is_err(), "a replay arrived");
            data.socket.set_nonblocking(false).unwrap();
        }
        data_b.send(&a, &PAYLOAD);
        assert!(data_a.receive().is_some(), "the thief moved its victim");
    });
    let statement = scene.operator.revoke_node(&b);
    to_a.say(&NodeMessage::Statement(Box::new(statement))).await;
    assert_eq!(to_b.refusal().await, Some(RefusalCode::NodeRevoked));
    tokio::task::block_in_place(|| {
        data_a.send(&b, &PAYLOAD);
        assert!(
            data_b.receive().is_none(),
            "nothing is relayed to who is out"
        );
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_get_fewer_bytes_than_they_send_and_have_to_prove_their_address() {
    let scene = Scene::start(104);
    // A node's first packet, as it is on the wire.
    let catcher = UdpSocket::bind("127.0.0.1:0").unwrap();
    let planet = scene.operator.planet_key().planet_id();
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let connecting = endpoint
        .connect_with(
            client_config(planet, None),
            catcher.local_addr().unwrap(),
            "planet",
        )
        .unwrap();
    let mut initial = [0; 2_000];
    let length = tokio::task::block_in_place(|| catcher.recv(&mut initial)).unwrap();
    drop(connecting);
    let (received, sent) = scene.bytes();
    tokio::task::block_in_place(|| {
        for _ in 0..40 {
            let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
            stranger
                .set_read_timeout(Some(Duration::from_millis(200)))
                .unwrap();
            stranger.send_to(&initial[..length], scene.address).unwrap();
            let mut answer = [0; 2_000];
            let answered = stranger.recv(&mut answer).unwrap();
            // RFC 9000 §17.2.5: long header, type 3.
            assert_eq!(answer[0] & 0xf0, 0xf0, "a Retry");
            assert!(answered <= length);
            let silence = stranger.recv(&mut answer);
            assert!(silence.is_err(), "and nothing but a Retry");
        }
    });
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..20_000_u32 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let size = usize::try_from(state >> 40).unwrap() % 1_400;
        let first = u8::try_from(round % 256).unwrap();
        let mut datagram = vec![u8::try_from(state >> 56).unwrap(); size.max(1)];
        datagram[0] = first;
        stranger.send_to(&datagram, scene.address).unwrap();
        if round % 64 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (received_after, sent_after) = scene.bytes();
    let (received, sent) = (received_after - received, sent_after - sent);
    println!("{received} bytes in, {sent} bytes out");
    assert!(
        received > 10_000_000 && sent <= received,
        "{received} in, {sent} out"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_does_not_read_is_cut_and_holds_nobody_up() {
    let mut scene = Scene::start(105);
    let token = scene.token(12);
    let planet = scene.operator.planet_key().planet_id();
    let mut slow = Client::dial(scene.address, planet, Some(256))
        .await
        .unwrap();
    let mut slow_node = Node::new(1);
    let hello = NodeMessage::Hello(slow.hello(&slow_node, &scene.operator));
    slow.say(&hello).await;
    let application = slow_node.application(&token, "slow", wall_clock());
    slow.say(&NodeMessage::Join(Box::new(application.clone())))
        .await;
    let receipt = slow.find(|message| match message {
        PlanetMessage::Admitted(receipt) => Some(receipt.clone()),
        _ => None,
    });
    slow_node.receipt = receipt.await;
    slow_node.application = Some(application);
    let leases = slow_node.leases();
    let claim = slow_node.sign_claim(&scene.operator.network, 1, leases.overlay4, Vec::new());
    slow.say(&NodeMessage::Claim(claim)).await;
    // From here on it is a member and reads nothing.
    let mut writers = Vec::new();
    for number in 10..20 {
        let name = format!("writer-{number}");
        writers.push(scene.member(number, &token, &name).await);
    }
    let (_reader, mut to_reader) = scene.member(3, &token, "reader").await;
    let started = Instant::now();
    let mut slowest = Duration::ZERO;
    // As many editions as a planet takes of one node at once.
    for sequence in 1..=4 {
        for (writer, to_writer) in &mut writers {
            let record = writer.endpoints(&scene.operator.network, sequence);
            let published = Instant::now();
            to_writer.say(&NodeMessage::Publish(record.clone())).await;
            let news = |news: &DirectoryRecord| *news == DirectoryRecord::Endpoints(record.clone());
            assert!(to_reader.record(news).await.is_some());
            slowest = slowest.max(published.elapsed());
        }
    }
    assert!(slowest < Duration::from_millis(1_000), "{slowest:?}");
    tokio::time::timeout(Duration::from_secs(40), slow.connection.closed())
        .await
        .expect("the planet gives up on it");
    println!(
        "cut after {:?}, news took {slowest:?} at most",
        started.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_at_the_door_keeps_nobody_else_out() {
    let mut scene = Scene::start(8);
    let token = scene.token(2);
    let door = (scene.address, scene.operator.planet_key().planet_id());
    let mut dialling = tokio::task::JoinSet::new();
    for _ in 0..100 {
        dialling.spawn(Client::dial_from("127.0.0.1", door, None));
    }
    let dialled = dialling.join_all().await;
    let waiting = dialled.iter().filter(|dialled| dialled.is_ok()).count();
    assert!((1..100).contains(&waiting), "{waiting} of one address");
    let mut node = Node::new(1);
    let mut client = Client::dial_from("127.0.0.2", door, None).await.unwrap();
    let parties = (&scene.operator, &token);
    client.join(&mut node, parties, "member").await.unwrap();
    drop(dialled);
    scene.member(2, &token, "second").await;
}
