//! Whether all pods of a node talk: with each other in a ring, and with one far away.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;
use podmesh_lab::{Pod, wait};

const PORT: u16 = 7;
/// For the answers of one round.
const ROUND: Duration = Duration::from_millis(400);

/// Pods that send back what comes, and whom each of them asks.
pub(super) struct Talk {
    far: Arc<Pod>,
    pods: Vec<Arc<Pod>>,
    stop: Arc<AtomicBool>,
    echoes: Vec<JoinHandle<()>>,
}

impl Talk {
    pub(super) fn among(far: &Arc<Pod>, pods: &[Arc<Pod>]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let echoes = pods.iter().map(|pod| echo(pod, &stop)).collect();
        Self {
            far: Arc::clone(far),
            pods: pods.to_vec(),
            stop,
            echoes,
        }
    }

    /// Waits until everybody answers, by connections that begin after this call; how long it took.
    pub(super) fn wait(&self, patience: Duration) -> Result<Duration> {
        let begin = Instant::now();
        let askers = self.askers()?;
        wait::until("all pods to talk", patience, || {
            let silent = round(&askers)?;
            Ok(if silent.is_empty() {
                wait::Now(begin.elapsed())
            } else {
                wait::NotYet(format!("{} pairs are silent: {silent:?}", silent.len()))
            })
        })
    }

    /// A new socket of each pod, and whom it asks.
    fn askers(&self) -> Result<Vec<Asker>> {
        let open = |pod: &Pod, targets: Vec<IpAddr>| -> Result<Asker> {
            let socket = pod.namespace().inside(|| UdpSocket::bind("[::]:0"))??;
            socket.set_nonblocking(true)?;
            Ok(Asker {
                name: pod.name().to_owned(),
                socket,
                targets,
            })
        };
        let all = self.pods.iter().flat_map(|pod| pod.addresses().to_vec());
        let mut askers = vec![open(&self.far, all.collect())?];
        for (pod, next) in self.pods.iter().zip(self.pods.iter().cycle().skip(1)) {
            askers.push(open(pod, next.addresses().to_vec())?);
        }
        Ok(askers)
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for echo in self.echoes.drain(..) {
            // A panic there has been reported by itself.
            let _ = echo.join();
        }
    }
}

struct Asker {
    name: String,
    socket: UdpSocket,
    targets: Vec<IpAddr>,
}

/// Sends back what comes.
fn echo(pod: &Pod, stop: &Arc<AtomicBool>) -> JoinHandle<()> {
    let socket = pod.namespace().inside(|| UdpSocket::bind(("::", PORT)));
    let socket = socket.unwrap().unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while !stop.load(Ordering::SeqCst) {
            if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                // A way back that is missing is what is looked for.
                let _ = socket.send_to(&buffer[..length], from);
            }
        }
    })
}

/// Asks everybody once; who did not answer.
fn round(askers: &[Asker]) -> Result<BTreeSet<String>> {
    let mut silent = BTreeSet::new();
    for asker in askers {
        for target in &asker.targets {
            // Refused is silent.
            let _ = asker
                .socket
                .send_to(b"?", SocketAddr::new(mapped(*target), PORT));
            silent.insert(format!("{} to {target}", asker.name));
        }
    }
    let begin = Instant::now();
    let mut buffer = [0; 64];
    while !silent.is_empty() && begin.elapsed() < ROUND {
        for asker in askers {
            while let Ok((_, from)) = asker.socket.recv_from(&mut buffer) {
                silent.remove(&format!("{} to {}", asker.name, from.ip().to_canonical()));
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(silent)
}

/// As a socket of both families wants it.
fn mapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().into(),
        IpAddr::V6(address) => address.into(),
    }
}
