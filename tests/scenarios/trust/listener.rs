//! Counts UDP packets that come out of the mesh at a node or pod.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use podmesh_lab::Namespace;

/// The port that is listened on.
pub(super) const PORT: u16 = 4_242;

/// Texts that arrived, with their sources.
type Heard = BTreeMap<(String, IpAddr), usize>;

/// An open ear.
#[derive(Debug)]
pub(super) struct Listener {
    heard: Arc<Mutex<Heard>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Listens in a namespace on both families.
    pub(super) fn open(namespace: &Namespace) -> Result<Self> {
        // The source addresses must not be filtered by anybody but the mesh.
        for place in ["all", "default", "mesh0"] {
            // A pod has no mesh0.
            let _ = namespace.sysctl(&format!("net.ipv4.conf.{place}.rp_filter"), "0");
        }
        let socket = namespace.inside(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT)))??;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let heard = Arc::new(Mutex::new(Heard::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (book, end) = (Arc::clone(&heard), Arc::clone(&stop));
        let thread = thread::Builder::new()
            .name("listener".into())
            .spawn(move || {
                let mut buffer = [0; 2_048];
                while !end.load(Ordering::SeqCst) {
                    match socket.recv_from(&mut buffer) {
                        Ok((length, from)) => {
                            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                            let key = (text, from.ip().to_canonical());
                            let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
                            *book.entry(key).or_default() += 1;
                        }
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                        Err(error) => panic!("the listener broke: {error}"),
                    }
                }
            })?;
        Ok(Self {
            heard,
            stop,
            thread: Some(thread),
        })
    }

    /// How many packets with this text have arrived.
    pub(super) fn heard(&self, text: &str) -> usize {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let of_text = heard.iter().filter(|((said, _), _)| said == text);
        of_text.map(|(_, count)| count).sum()
    }

    /// Everything that arrived.
    pub(super) fn all(&self) -> Result<String> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<String> = heard
            .iter()
            .map(|((text, from), count)| format!("{count} × '{text}' from {from}"))
            .collect();
        lines.first().context("nothing arrived")?;
        Ok(lines.join(", "))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
