//! A disk that takes 10 ms for each fsync, and very many who want something written.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use podmesh_proto::token::JoinToken;
use tokio::task::JoinSet;

#[allow(clippy::wildcard_imports, reason = "the other half of one story")]
use super::*;

const CLAIMERS: u32 = 80;
/// Members that come back now and then and want nothing written.
const OTHERS: u32 = 30;
/// Of each of them, before and under load.
const HELLOS: u32 = 5;
/// What load may do to a hello.
const SLOWER: u32 = 3;

struct Scene {
    operator: Arc<Operator>,
    address: SocketAddr,
}

impl Scene {
    /// From an address of its own: a planet lets few of one in at a time.
    async fn dial(&self, number: u32) -> Client {
        let planet = self.operator.planet_key().planet_id();
        let from = format!("127.0.{}.{}", number / 200 % 200, 1 + number % 200);
        let door = (self.address, planet);
        Client::dial_from(&from, door, None).await.unwrap()
    }

    async fn members(
        self: &Arc<Self>,
        token: &Arc<JoinToken>,
        numbers: std::ops::Range<u32>,
    ) -> Vec<(Node, Client)> {
        let mut joining = JoinSet::new();
        for number in numbers {
            let (scene, token) = (Arc::clone(self), Arc::clone(token));
            joining.spawn(async move {
                let (mut node, mut client) = (Node::new(number), scene.dial(number).await);
                let parties = (&*scene.operator, &*token);
                let name = format!("node-{number}");
                client.join(&mut node, parties, &name).await.unwrap();
                (node, client)
            });
        }
        joining.join_all().await
    }

    /// From the first packet to the welcome.
    async fn hello(&self, number: u32, node: &Node) -> Duration {
        let begin = Instant::now();
        let mut client = self.dial(number).await;
        let hello = NodeMessage::Hello(client.hello(node, &self.operator));
        client.say(&hello).await;
        let welcome = client.find(|message| match message {
            PlanetMessage::Welcome(welcome) => Some(welcome.relay.is_some()),
            _ => None,
        });
        assert_eq!(welcome.await, Some(true));
        begin.elapsed()
    }

    /// Hellos of all of these by turns, the fastest first.
    async fn hellos(&self, nodes: &[Node]) -> Vec<Duration> {
        let mut took = Vec::new();
        for _ in 0..HELLOS {
            for (number, node) in (10_000..).zip(nodes) {
                took.push(self.hello(number, node).await);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        took.sort_unstable();
        took
    }
}

/// Claims as fast as it is answered, until it is told to stop; how many were receipted.
async fn claim(
    scene: Arc<Scene>,
    (node, mut client): (Node, Client),
    stop: Arc<AtomicBool>,
) -> u32 {
    let receipt = node.receipt.as_ref().unwrap().unverified().unwrap();
    let network = &scene.operator.network;
    let (mut serial, mut receipted) = (1, 0);
    while !stop.load(Ordering::Relaxed) {
        serial += 1;
        let claim = node.sign_claim(network, serial, receipt.leases.overlay4, Vec::new());
        client.say(&NodeMessage::Claim(claim)).await;
        let answer = client.find(|message| match message {
            PlanetMessage::Claimed(_) => Some(true),
            PlanetMessage::Refused(_) => Some(false),
            _ => None,
        });
        match answer.await {
            Some(true) => receipted += 1,
            Some(false) => tokio::time::sleep(Duration::from_millis(300)).await,
            None => return receipted,
        }
    }
    receipted
}

fn p95(took: &[Duration]) -> Duration {
    took[took.len() * 95 / 100]
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a bar: tests/soak.sh"]
async fn a_hello_takes_no_longer_while_a_slow_disk_has_much_to_write() {
    let mut operator = Operator::new(31);
    let mut place = Place::found(&operator);
    place.start();
    let now = wall_clock();
    let token = Arc::new(operator.token_with(|grant| {
        grant.uses = 1_000;
        (grant.issued, grant.expires) = (now.minus(10), now.plus(3_600));
    }));
    let scene = Arc::new(Scene {
        operator: Arc::new(operator),
        address: place.address,
    });
    let claimers = scene.members(&token, 1_000..1_000 + CLAIMERS).await;
    let others = scene.members(&token, 5_000..5_000 + OTHERS).await;
    let others: Vec<Node> = others.into_iter().map(|(node, _)| node).collect();
    let pid = place.running.as_ref().unwrap().id().to_string();
    let mut slow = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-p", &pid])
        .args(["-e", "trace=fsync,fdatasync"])
        .args(["-e", "inject=fsync,fdatasync:delay_enter=10000"])
        .spawn()
        .unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let idle = scene.hellos(&others).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut claiming = JoinSet::new();
    let begin = Instant::now();
    for claimer in claimers {
        claiming.spawn(claim(Arc::clone(&scene), claimer, Arc::clone(&stop)));
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let busy = scene.hellos(&others).await;
    stop.store(true, Ordering::Relaxed);
    let receipted: u32 = claiming.join_all().await.into_iter().sum();
    let rate = f64::from(receipted) / begin.elapsed().as_secs_f64();
    let _ = slow.kill();
    let _ = slow.wait();
    println!(
        "figure {receipted} claims of {CLAIMERS} members receipted, {rate:.0} a second, 10 ms for each fsync"
    );
    println!(
        "figure hello p50 {:?} and p95 {:?} idle, p50 {:?} and p95 {:?} under load",
        idle[idle.len() / 2],
        p95(&idle),
        busy[busy.len() / 2],
        p95(&busy)
    );
    assert!(p95(&busy) <= p95(&idle) * SLOWER);
}
