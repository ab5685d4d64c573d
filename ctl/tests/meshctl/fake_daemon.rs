//! A daemon's socket that answers as the test says.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use podmesh_proto::local_api::{Request, Response, StatusView};
use serde_json::{Value, json};

/// Listens until it is dropped.
pub(crate) struct FakeDaemon {
    socket: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FakeDaemon {
    /// Answers each request with what `answer` makes of it.
    pub(crate) fn start(
        socket: &Path,
        answer: impl Fn(Request) -> Response + Send + Sync + 'static,
    ) -> Self {
        Self::raw(socket, move |line| {
            let request = serde_json::from_str(line).unwrap();
            let mut bytes = serde_json::to_vec(&answer(request)).unwrap();
            bytes.push(b'\n');
            bytes
        })
    }

    /// Answers each line with these bytes, then closes.
    pub(crate) fn raw(
        socket: &Path,
        answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let answer = Arc::new(answer);
        let thread = std::thread::spawn(move || {
            let mut callers = Vec::new();
            for stream in listener.incoming() {
                if stopping.load(Ordering::Acquire) {
                    break;
                }
                let (mut stream, answer) = (stream.unwrap(), Arc::clone(&answer));
                callers.push(std::thread::spawn(move || {
                    let mut line = String::new();
                    BufReader::new(&stream).read_line(&mut line).unwrap();
                    // meshctl may have lost its patience.
                    let _written = stream.write_all(&answer(&line));
                }));
            }
            callers
                .into_iter()
                .for_each(|caller| caller.join().unwrap());
        });
        Self {
            socket: socket.to_owned(),
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _woken = UnixStream::connect(&self.socket);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
        let _gone = std::fs::remove_file(&self.socket);
    }
}

/// A response from its JSON.
pub(crate) fn response(value: Value) -> Response {
    serde_json::from_value(value).unwrap()
}

/// meshd's failure.
pub(crate) fn failed(code: &str, message: &str) -> Response {
    let next = "look at the sky";
    response(json!({"response": "Failed", "code": code, "message": message, "next": next}))
}

/// Something is done.
pub(crate) fn done(message: &str) -> Response {
    response(json!({"response": "Done", "message": message}))
}

/// A node in good health; `strings` stands in every field that holds free text.
pub(crate) fn status(state: &str, strings: &str) -> StatusView {
    let value = json!({
        "state": state, "version": strings, "generated": "2026-11-21T02:03:04Z", "uptime_s": 3_720,
        "network": {"id": "01".repeat(16), "name": "lab", "version": 2, "overlay": ["10.77.0.0/16"],
            "pods": ["10.42.0.0/16"], "services": []},
        "node": {"id": "02".repeat(32), "name": "home-1", "site": "home", "groups": ["a"],
            "addresses": ["10.77.0.2", "fd00::2"], "pod_cidrs": ["10.42.1.0/24"],
            "wireguard": KEY, "port": 40_000, "expires": strings,
            "serial": 3, "renews": strings},
        "planets": [
            {"id": "03".repeat(32), "name": "planet-1", "address": strings, "connected": true,
             "rtt_ms": 24.06, "observed": "203.0.113.5:40000", "error": null},
            {"id": "04".repeat(32), "name": "planet-2", "address": "p:1", "connected": false,
             "rtt_ms": null, "observed": null, "error": strings}],
        "interface": {"name": strings, "index": 7, "mtu": 1380, "shards": 2, "offloads": [strings],
            "tunnel": strings},
        "peers": {"total": 3, "direct": 1, "relayed": 1, "down": 1},
        "candidates": [{"kind": strings, "endpoint": "192.168.1.2:40000"}],
        "drops": [{"reason": strings, "count": 3}],
        "health": [{"code": strings, "message": strings, "next": strings}],
        "memory": {"resident": 15_000_000, "peak": 20_000_000},
    });
    serde_json::from_value(value).unwrap()
}

/// Two peers, not in order: one direct, one relayed.
pub(crate) fn peers(strings: &str) -> Vec<Value> {
    vec![
        json!({"id": "06".repeat(32), "name": "lab-w9", "site": "lab", "addresses": ["10.77.4.19"],
            "pod_cidrs": ["10.42.9.0/24"], "external": false, "state": "up",
            "path": {"kind": "relay", "planet": strings}, "rtt_ms": 58.7, "loss_percent": 0.2,
            "mtu": 1280, "handshake_s": 8, "rx_bytes": 12_582_912, "tx_bytes": 9_437_184,
            "why": strings}),
        json!({"id": "05".repeat(32), "name": "do-w1", "site": "do",
            "addresses": ["10.77.2.11", "fd00::5"], "pod_cidrs": ["10.42.2.0/24"],
            "external": false, "state": "up",
            "path": {"kind": "direct4", "endpoint": "203.0.113.7:51820"}, "rtt_ms": 24.1,
            "loss_percent": 0.0, "mtu": 1380, "handshake_s": 41, "rx_bytes": 1_288_490_189,
            "tx_bytes": 922_746_880, "why": null}),
        json!({"id": null, "name": "old-w3", "site": "do", "addresses": ["10.77.2.13"],
            "pod_cidrs": [], "external": true, "state": "down", "path": null, "rtt_ms": null,
            "loss_percent": null, "mtu": null, "handshake_s": 11_460, "rx_bytes": 0, "tx_bytes": 0,
            "why": strings}),
    ]
}

/// One peer in full.
pub(crate) fn peer(number: usize, strings: &str) -> Response {
    let peer = peers(strings).swap_remove(number);
    response(
        json!({"response": "Peer", "peer": peer, "wireguard": KEY, "groups": ["a"],
            "expires": strings, "serial": 3,
        "candidates": [{"kind": strings, "endpoint": "203.0.113.7:51820", "from": strings, "state": strings,
            "rtt_ms": 24.1}],
        "history": [{"time": strings, "from": strings, "to": strings, "reason": strings}]}),
    )
}

/// An answered echo over a path.
pub(crate) fn pong(path: Value) -> Response {
    response(
        json!({"response": "Ping", "name": "do-w1", "address": "10.77.2.11", "path": path,
        "rtt_ms": 24.06}),
    )
}

/// Every view, with `strings` in each field that holds free text.
pub(crate) fn views(strings: &'static str) -> impl Fn(Request) -> Response {
    move |request| match request {
        Request::Status => Response::Status(Box::new(status("online", strings))),
        Request::Peers => response(json!({"response": "Peers", "items": peers(strings)})),
        Request::Peer { .. } => peer(0, strings),
        Request::Routes => response(json!({"response": "Routes", "items": [
            {"prefix": "10.42.2.0/24", "via": strings, "peer": "do-w1", "mtu": null}]})),
        Request::Ready => response(
            json!({"response": "Ready", "ready": false, "connected": true,
                "reason": strings}),
        ),
        Request::Ping { .. } => pong(json!({"kind": "relay", "planet": strings})),
        _ => failed("failed", strings),
    }
}

/// A WireGuard public key.
pub(crate) const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
