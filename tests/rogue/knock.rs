//! Tries to be let in: handshakes and probes with keys that nobody should know.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use podmesh_proto::certificate::NodeCertificate;
use podmesh_proto::id::NetworkId;
use podmesh_proto::key::PublicKey;
use podmesh_proto::probe::{Probe, ProbeBody};
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use crate::clock;
use crate::loot::Keys;
use crate::random;

/// How long answers are waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes. The longest handshake message.
const HANDSHAKE: usize = 148;

/// A door: a node and where it might be.
pub(crate) type Door = (NodeCertificate, Vec<SocketAddr>);

/// Knocks at every door with `keys`; says how often, and how many datagrams came back.
pub(crate) async fn knock(keys: &Keys, network: &NetworkId, doors: &[Door]) -> Result<Value> {
    let socket = UdpSocket::bind("0.0.0.0:0").await?;
    let mut knocks = 0;
    for (node, places) in doors {
        let mut datagrams = vec![initiation(keys, &node.wireguard)];
        datagrams.push(ping(keys, node, network)?);
        for place in places.iter().filter(|place| place.is_ipv4()) {
            for datagram in datagrams.iter().flatten() {
                // Not every candidate can be reached from here.
                knocks += usize::from(socket.send_to(datagram, place).await.is_ok());
            }
        }
    }
    let end = Instant::now() + PATIENCE;
    let (mut answers, mut buffer) = (0, [0; 2_048]);
    while let Ok(received) = timeout_at(end, socket.recv_from(&mut buffer)).await {
        answers += usize::from(received.is_ok());
    }
    Ok(json!({ "knocks": knocks, "answers": answers }))
}

fn initiation(keys: &Keys, peer: &PublicKey) -> Option<Vec<u8>> {
    let peer = x25519::PublicKey::from(peer.0);
    let mut tunnel = Tunn::new(keys.wireguard.to_dalek(), peer, None, None, 1, None);
    let mut buffer = [0; HANDSHAKE];
    match tunnel.format_handshake_initiation(&mut buffer, true) {
        TunnResult::WriteToNetwork(message) => Some(message.to_vec()),
        _ => None,
    }
}

fn ping(keys: &Keys, node: &NodeCertificate, network: &NetworkId) -> Result<Option<Vec<u8>>> {
    let Some(probes) = keys.probes_with(node, network) else {
        return Ok(None);
    };
    let probe = Probe {
        incarnation: clock::now().0,
        counter: 1,
        body: ProbeBody::Ping {
            transaction: random::number()?,
        },
        known: 0,
    };
    Ok(Some(probes.seal(&probe, &random::bytes()?)))
}
