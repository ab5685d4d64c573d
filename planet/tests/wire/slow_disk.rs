//! A disk that takes its time, and a planet that dies while it does.

use std::sync::{Arc, Condvar, Mutex};

use podmesh_planet::store::{Store, StoreError};
use podmesh_proto::id::PlanetId;

#[allow(clippy::wildcard_imports, reason = "the other half of one story")]
use super::*;

/// Where every commit stops until it is let through.
#[derive(Default)]
struct Gate {
    /// Commits that came, and up to which they may pass.
    state: Mutex<(u64, u64)>,
    moved: Condvar,
    /// They stop when they are durable already.
    afterwards: bool,
}

impl Gate {
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        let number = state.0;
        self.moved.notify_all();
        drop(
            self.moved
                .wait_while(state, |(_, open)| number > *open)
                .unwrap(),
        );
    }

    fn open(&self, up_to: u64) {
        self.state.lock().unwrap().1 = up_to;
        self.moved.notify_all();
    }

    fn came(&self) -> u64 {
        self.state.lock().unwrap().0
    }

    fn wait_for(&self, number: u64) {
        tokio::task::block_in_place(|| {
            let state = self.state.lock().unwrap();
            drop(
                self.moved
                    .wait_while(state, |(came, _)| *came < number)
                    .unwrap(),
            );
        });
    }
}

struct Gated(DiskStore, Arc<Gate>);

impl Store for Gated {
    fn load(&mut self) -> Result<Vec<Record>, StoreError> {
        self.0.load()
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        if !self.1.afterwards {
            self.1.pass();
        }
        let result = self.0.commit(changes);
        if self.1.afterwards {
            self.1.pass();
        }
        result
    }
}

impl BackupStore for Gated {
    fn backup(&mut self, planet: &PlanetId) -> Result<Vec<u8>, StoreError> {
        self.0.backup(planet)
    }

    fn stand(&mut self) -> Result<Vec<&'static str>, String> {
        BackupStore::stand(&mut self.0)
    }
}

fn scene(number: u32, afterwards: bool) -> (Scene, Arc<Gate>) {
    let gate = Arc::new(Gate {
        afterwards,
        ..Gate::default()
    });
    gate.open(u64::MAX);
    let store = Arc::clone(&gate);
    let scene = Scene::start_with(number, |disk| Box::new(Gated(disk, store)));
    (scene, gate)
}

fn claim(scene: &Scene, node: &Node, serial: u64) -> NodeMessage {
    let receipt = node.receipt.as_ref().unwrap().unverified().unwrap();
    let network = &scene.operator.network;
    NodeMessage::Claim(node.sign_claim(network, serial, receipt.leases.overlay4, Vec::new()))
}

async fn receipt(client: &mut Client) -> u64 {
    let receipt = client.find(|message| match message {
        PlanetMessage::Claimed(receipt) => Some(receipt.unverified().unwrap().sequence),
        _ => None,
    });
    receipt.await.expect("a receipt")
}

async fn welcomed(client: &mut Client) -> bool {
    let welcome = client.find(|message| match message {
        PlanetMessage::Welcome(welcome) => Some(welcome.relay.is_some()),
        _ => None,
    });
    welcome.await == Some(true)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_disk_has_many_claims_at_once_and_keeps_nobody_else_waiting() {
    let (mut scene, gate) = scene(110, false);
    let token = scene.token(20);
    let (known, client) = scene.member(1, &token, "known").await;
    drop(client);
    let mut members = Vec::new();
    for number in 2..14 {
        let name = format!("claimer-{number}");
        members.push(scene.member(number, &token, &name).await);
    }
    let before = gate.came();
    gate.open(before);
    for (node, client) in &mut members {
        client.say(&claim(&scene, node, 2)).await;
    }
    gate.wait_for(before + 1);
    // The disk doesn't move, and whoever needs nothing of it is in.
    for _ in 0..3 {
        let mut client = scene.dial().await;
        let hello = NodeMessage::Hello(client.hello(&known, &scene.operator));
        client.say(&hello).await;
        assert!(welcomed(&mut client).await);
    }
    gate.open(u64::MAX);
    let mut receipts = Vec::new();
    for (_, client) in &mut members {
        receipts.push(receipt(client).await);
    }
    receipts.sort_unstable();
    receipts.dedup();
    assert_eq!(receipts.len(), 12, "each has a number of its own");
    let commits = gate.came() - before;
    assert!(commits <= 4, "{commits} commits for 12 claims");
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planet_that_dies_between_commit_and_answer_gives_the_same_answer_again() {
    let (mut scene, gate) = scene(111, true);
    let token = scene.token(2);
    let (node, mut client) = scene.member(1, &token, "a").await;
    let before = gate.came();
    gate.open(before);
    let claim = claim(&scene, &node, 2);
    client.say(&claim).await;
    gate.wait_for(before + 1);
    // It is on the disk, and nobody was told: here the process ends.
    let copy = Folder::new();
    let file = podmesh_planet::store::FILE;
    fs::copy(scene.folder.0.join(file), copy.0.join(file)).unwrap();
    let told = tokio::time::timeout(Duration::from_millis(200), receipt(&mut client)).await;
    assert!(told.is_err(), "an answer before the end of the commit");
    let books = Books::from_records(DiskStore::open(&copy.0).unwrap().load().unwrap()).unwrap();
    let (kept, claimed, _) = books.entry(&node.id()).unwrap().claim.clone().unwrap();
    assert_eq!(claimed.serial, 2);
    gate.open(u64::MAX);
    let answered = receipt(&mut client).await;
    let on_disk = kept.receipt.unverified().unwrap().sequence;
    assert_eq!(answered, on_disk);
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_much_while_the_disk_is_busy_is_read_no_further() {
    let (mut scene, gate) = scene(112, false);
    let token = scene.token(3);
    let (known, client) = scene.member(1, &token, "known").await;
    drop(client);
    let (rogue, mut to_rogue) = scene.member(2, &token, "rogue").await;
    let before = gate.came();
    gate.open(before);
    let network = scene.operator.network.clone();
    // Far more than the windows of a connection take.
    let saying = tokio::spawn(async move {
        for serial in 2..4_000 {
            let claim = rogue.sign_claim(&network, serial, None, Vec::new());
            to_rogue.say(&NodeMessage::Claim(claim)).await;
        }
    });
    gate.wait_for(before + 1);
    for _ in 0..8 {
        let mut client = scene.dial().await;
        let hello = NodeMessage::Hello(client.hello(&known, &scene.operator));
        client.say(&hello).await;
        assert!(welcomed(&mut client).await);
    }
    assert!(!saying.is_finished(), "the planet took all of it");
    gate.open(u64::MAX);
    saying.abort();
}
