//! Many calls at once, and calls that are killed in the middle.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::node::{Call, Node, pod};

/// `PODMESH_CNI_ROUNDS` and `PODMESH_CNI_KILLS` ask for the long form.
fn amount(variable: &str, default: usize) -> usize {
    let given = std::env::var(variable).ok();
    given
        .and_then(|given| given.parse().ok())
        .unwrap_or(default)
}

/// These tests are heavy enough to be judged by each other's load.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn sixteen_at_once_never_share_an_address() {
    let _alone = alone();
    let node = Node::new("storm");
    let rounds = amount("PODMESH_CNI_ROUNDS", 120);
    let next = AtomicUsize::new(0);
    let held: Mutex<HashMap<String, usize>> = Mutex::new(HashMap::new());
    let times = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let pod = pod();
                loop {
                    let round = next.fetch_add(1, Ordering::Relaxed);
                    if round >= rounds {
                        return;
                    }
                    let id = format!("pod-{round}");
                    let started = Instant::now();
                    let added = node.add(&id, &pod).expect_success();
                    let took = started.elapsed();
                    let addresses = added.addresses();
                    for address in &addresses {
                        let other = held.lock().unwrap().insert(address.clone(), round);
                        assert_eq!(other, None, "{address} was given twice");
                    }
                    for address in &addresses {
                        held.lock().unwrap().remove(address);
                    }
                    let started = Instant::now();
                    node.del(&id).expect_success();
                    times.lock().unwrap().extend([took, started.elapsed()]);
                }
            });
        }
    });
    let mut times = times.into_inner().unwrap();
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!(
        "figure {rounds} ADD/DEL: median {:?}, p99 {:?}, longest {:?}",
        at(50),
        at(99),
        at(100)
    );
    // The short form runs beside other tests, so it only tells whether something waits for ever.
    let bar = Duration::from_secs(if rounds < 1000 { 3 } else { 1 });
    assert!(at(99) < bar, "p99 {:?}", at(99));
    assert_eq!(
        (node.interfaces().len(), node.records(), node.pod_routes()),
        (0, 0, 0)
    );
}

#[test]
fn killed_calls_leave_nothing_that_garbage_collection_does_not_free() {
    let _alone = alone();
    let node = Node::new("killed");
    let kills = amount("PODMESH_CNI_KILLS", 24);
    let seed = amount("PODMESH_SEED", usize::try_from(std::process::id()).unwrap());
    println!("figure PODMESH_SEED={seed}");
    let mut random = Random(seed as u64);
    let survivor = pod();
    let kept = node.add("survivor", &survivor).expect_success().addresses();
    let pods: Vec<_> = (0..8).map(|_| pod()).collect();
    let mut longest = {
        let started = Instant::now();
        node.add("probe", &pods[0]).expect_success();
        node.del("probe").expect_success();
        u64::try_from(started.elapsed().as_micros()).unwrap()
    };
    // A call that ended before its kill counts for nothing, and the next kills come earlier.
    let (mut landed, mut round) = (0, 0);
    while landed < kills {
        assert!(round < 20 * kills, "only {landed} kills came in time");
        let pod = &pods[round % pods.len()];
        let id = format!("pod-{round}");
        let verb = if round % 3 == 2 { "DEL" } else { "ADD" };
        if verb == "DEL" {
            node.add(&id, pod);
        }
        let mut child = node.start(&node.call(verb, &id, Some(&pod.path())));
        thread::sleep(Duration::from_micros(random.below(longest)));
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            longest = (longest * 7 / 8).max(500);
        } else {
            longest = longest * 9 / 8;
            landed += 1;
        }
        // Names in a pod are free again only once its leftovers are.
        if round % pods.len() == pods.len() - 1 {
            let answers: HashSet<_> = node
                .add("between", &survivor)
                .addresses()
                .into_iter()
                .collect();
            assert!(answers.is_disjoint(&kept.iter().cloned().collect()));
            node.del("between").expect_success();
            node.gc(&["survivor"]).expect_success();
        }
        round += 1;
    }
    println!("figure {landed} of {round} were killed before their end");
    node.gc(&["survivor"]).expect_success();
    assert_eq!(
        (node.interfaces().len(), node.records(), node.pod_routes()),
        (1, 1, 2)
    );
    node.add("survivor", &survivor).expect_success();
    survivor.command("ping -c1 -W10 10.77.0.3");
    node.del("survivor").expect_success();
    node.gc(&[]).expect_success();
    assert_eq!(
        (node.interfaces().len(), node.records(), node.pod_routes()),
        (0, 0, 0)
    );
}

/// Every system call by which the plugin changes something or asks the kernel for a change.
const STEPS: &str = "mkdir,openat,flock,write,fsync,rename,unlink,sendto,setns";

/// Kills the plugin before its step number `step`. False if it came to its end before.
fn is_killed_before(step: usize, node: &Node, call: &Call) -> bool {
    let point = format!("inject={STEPS}:signal=KILL:when={step}");
    let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &point];
    let output = node.start_under(&strace, call).wait_with_output().unwrap();
    !output.status.success()
}

#[test]
fn a_kill_before_any_step_leaves_nothing_that_garbage_collection_does_not_free() {
    if std::process::Command::new("strace")
        .arg("-V")
        .output()
        .is_err()
    {
        println!("figure strace is missing: no kills at chosen steps");
        return;
    }
    let _alone = alone();
    let node = Node::new("steps");
    // Long runs look at every step, short ones at every seventh, each time at others.
    let stride = amount("PODMESH_CNI_STRIDE", 7);
    let first = 1 + amount("PODMESH_SEED", usize::try_from(std::process::id()).unwrap()) % stride;
    println!("figure every {stride}th step from {first}");
    let survivor = pod();
    let kept = node.add("survivor", &survivor).expect_success().addresses();
    for verb in ["ADD", "DEL"] {
        let mut killed = 0;
        for step in (first..).step_by(stride) {
            let (pod, id) = (pod(), format!("{verb}-{step}"));
            if verb == "DEL" {
                node.add(&id, &pod).expect_success();
            }
            if !is_killed_before(step, &node, &node.call(verb, &id, Some(&pod.path()))) {
                break;
            }
            killed += 1;
            // Whatever is left, others get other addresses, and the runtime's DEL ends it.
            let other = pod_beside(&node);
            assert!(!kept.contains(&other), "{verb} {step}: {other}");
            if step % 2 == 0 {
                node.del(&id).expect_success();
            } else {
                node.gc(&["survivor"]).expect_success();
            }
            assert_eq!(
                (node.interfaces().len(), node.records(), node.pod_routes()),
                (1, 1, 2),
                "{verb} killed before step {step}"
            );
        }
        println!("figure {verb}: killed before {killed} steps");
        assert!(
            killed * stride > 9,
            "{verb}: {killed} of every {stride}th step"
        );
        node.gc(&["survivor"]).expect_success();
    }
    survivor.command("ping -c1 -W10 10.77.0.3");
}

/// The address of a pod that comes and goes.
fn pod_beside(node: &Node) -> String {
    let other = pod();
    let added = node.add("beside", &other).expect_success();
    node.del("beside").expect_success();
    added.addresses().remove(0)
}

/// xorshift: enough for points in time, and the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed ^= mixed >> 30;
        mixed = mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^= mixed >> 27;
        mixed % limit.max(1)
    }
}
