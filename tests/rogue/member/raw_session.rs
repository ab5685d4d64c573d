//! A WireGuard session made by hand (the paper of 2020-06, §5.4), because no library lets its user
//! choose a message's counter.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit as _, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Nonce};
use podmesh_proto::key::{PublicKey, SecretKey};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::random;

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
const MAC1: &[u8] = b"mac1----";
/// Number of this session at this end.
const INDEX: u32 = 0x0102_0304;
/// How long the answer may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Bytes of a block of BLAKE2s.
const BLOCK: usize = 64;

type Key = [u8; 32];

/// A session that sends.
pub(super) struct RawSession {
    socket: UdpSocket,
    key: Key,
    receiver: [u8; 4],
}

/// The state of the handshake.
struct Noise {
    chain: Key,
    hash: Key,
}

impl RawSession {
    /// Shakes hands with the holder of `peer`.
    pub(super) async fn open(mine: &SecretKey, peer: &PublicKey, at: SocketAddr) -> Result<Self> {
        let ephemeral = SecretKey::from_bytes(random::bytes()?);
        let (initiation, noise) = initiation(mine, &ephemeral, peer)?;
        let socket = UdpSocket::bind("0.0.0.0:0").await?;
        socket.connect(at).await?;
        socket.send(&initiation).await?;
        let mut answer = [0; 2_048];
        loop {
            let length = timeout(PATIENCE, socket.recv(&mut answer)).await??;
            let answer = answer.get(..length).unwrap_or_default();
            if answer.first() == Some(&2) {
                let (receiver, key) = noise.finish(mine, &ephemeral, answer)?;
                return Ok(Self {
                    socket,
                    key,
                    receiver,
                });
            }
        }
    }

    /// Sends an inner packet with this counter.
    pub(super) async fn send(&self, counter: u64, packet: &[u8]) -> Result<()> {
        let mut padded = packet.to_vec();
        padded.resize(packet.len().next_multiple_of(16), 0);
        let mut message = [&[4, 0, 0, 0], self.receiver.as_slice()].concat();
        message.extend(counter.to_le_bytes());
        message.extend(seal(&self.key, counter, &padded, &[])?);
        self.socket.send(&message).await?;
        Ok(())
    }
}

fn initiation(
    mine: &SecretKey,
    ephemeral: &SecretKey,
    peer: &PublicKey,
) -> Result<(Vec<u8>, Noise)> {
    let chain = hash(&[CONSTRUCTION]);
    let mut noise = Noise {
        hash: hash(&[&hash(&[&chain, IDENTIFIER]), &peer.0]),
        chain,
    };
    let public = ephemeral.public().0;
    noise.mix_key(&public);
    noise.mix_hash(&public);
    let sealing = noise.mix_secret(ephemeral, peer)?;
    let identity = seal(&sealing, 0, &mine.public().0, &noise.hash)?;
    noise.mix_hash(&identity);
    let sealing = noise.mix_secret(mine, peer)?;
    let time = seal(&sealing, 0, &tai64n()?, &noise.hash)?;
    noise.mix_hash(&time);
    let mut message = vec![1, 0, 0, 0];
    message.extend(INDEX.to_le_bytes());
    message.extend(public);
    message.extend(identity);
    message.extend(time);
    let mac = Blake2sMac::<U16>::new_from_slice(&hash(&[MAC1, &peer.0]));
    let mut mac = mac.map_err(|_| anyhow!("a key of a wrong length"))?;
    Update::update(&mut mac, &message);
    message.extend(mac.finalize_fixed());
    message.extend([0; 16]);
    Ok((message, noise))
}

impl Noise {
    /// The peer's number of the session, and the key to send with.
    fn finish(
        mut self,
        mine: &SecretKey,
        ephemeral: &SecretKey,
        answer: &[u8],
    ) -> Result<([u8; 4], Key)> {
        ensure!(answer.len() == 92, "no handshake response");
        let part = |range: std::ops::Range<usize>| answer.get(range).unwrap_or_default();
        ensure!(part(8..12) == INDEX.to_le_bytes(), "for another session");
        let theirs = PublicKey(part(12..44).try_into()?);
        self.mix_key(&theirs.0);
        self.mix_hash(&theirs.0);
        self.mix_secret(ephemeral, &theirs)?;
        self.mix_secret(mine, &theirs)?;
        let [chain, tau, key] = derive(&self.chain, &[0; 32]);
        self.chain = chain;
        self.mix_hash(&tau);
        let payload = Payload {
            msg: part(44..60),
            aad: &self.hash,
        };
        ChaCha20Poly1305::new(&key.into())
            .decrypt(&nonce(0), payload)
            .map_err(|_| anyhow!("the response doesn't open"))?;
        let [sending, _, _] = derive(&self.chain, &[]);
        Ok((part(4..8).try_into()?, sending))
    }

    fn mix_hash(&mut self, bytes: &[u8]) {
        self.hash = hash(&[&self.hash, bytes]);
    }

    fn mix_key(&mut self, bytes: &[u8]) -> Key {
        let [chain, key, _] = derive(&self.chain, bytes);
        self.chain = chain;
        key
    }

    fn mix_secret(&mut self, mine: &SecretKey, theirs: &PublicKey) -> Result<Key> {
        let secret = mine.agree(theirs).context("a weak key")?;
        Ok(self.mix_key(secret.as_slice()))
    }
}

fn hash(parts: &[&[u8]]) -> Key {
    let mut hasher = Blake2s256::new();
    parts
        .iter()
        .for_each(|part| Digest::update(&mut hasher, part));
    hasher.finalize().into()
}

/// HMAC (RFC 2104) with BLAKE2s.
fn hmac(key: &Key, parts: &[&[u8]]) -> Key {
    let padded = |pad: u8| {
        let mut block = [pad; BLOCK];
        block.iter_mut().zip(key).for_each(|(to, from)| *to ^= from);
        block
    };
    let inner = hash(&[&[padded(0x36).as_slice()], parts].concat());
    hash(&[&padded(0x5c), &inner])
}

/// Three keys at once (HKDF, RFC 5869); who needs fewer takes the first ones.
fn derive(chain: &Key, input: &[u8]) -> [Key; 3] {
    let secret = hmac(chain, &[input]);
    let first = hmac(&secret, &[&[1]]);
    let second = hmac(&secret, &[&first, &[2]]);
    let third = hmac(&secret, &[&second, &[3]]);
    [first, second, third]
}

fn seal(key: &Key, counter: u64, text: &[u8], hash: &[u8]) -> Result<Vec<u8>> {
    let payload = Payload {
        msg: text,
        aad: hash,
    };
    ChaCha20Poly1305::new(key.into())
        .encrypt(&nonce(counter), payload)
        .map_err(|_| anyhow!("the text is too long"))
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = Nonce::default();
    let bytes = [0; 4].into_iter().chain(counter.to_le_bytes());
    nonce
        .iter_mut()
        .zip(bytes)
        .for_each(|(to, from)| *to = from);
    nonce
}

/// The time with the label that every later handshake must exceed.
fn tai64n() -> Result<Vec<u8>> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let seconds = (1_u64 << 62) + 37 + since.as_secs();
    let mut stamp = seconds.to_be_bytes().to_vec();
    stamp.extend(since.subsec_nanos().to_be_bytes());
    Ok(stamp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use boringtun::noise::{Tunn, TunnResult};
    use boringtun::x25519;

    #[tokio::test]
    async fn a_hand_made_session_is_opened_by_the_library() {
        let (mine, theirs) = (
            SecretKey::from_bytes([1; 32]),
            SecretKey::from_bytes([2; 32]),
        );
        let public = x25519::PublicKey::from(mine.public().0);
        let mut tunnel = Tunn::new(theirs.to_dalek(), public, None, None, 9, None);
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = socket.local_addr().unwrap();
        let answering = tokio::spawn(async move {
            let (mut datagram, mut room, mut opened) = ([0; 2_048], [0; 2_048], Vec::new());
            while opened.len() < 2 {
                let (length, from) = socket.recv_from(&mut datagram).await.unwrap();
                match tunnel.decapsulate(None, &datagram[..length], &mut room) {
                    TunnResult::WriteToNetwork(answer) => {
                        socket.send_to(answer, from).await.unwrap();
                    }
                    TunnResult::WriteToTunnelV4(packet, _) => opened.push(packet.to_vec()),
                    _ => panic!("not opened"),
                }
            }
            opened
        });
        let session = RawSession::open(&mine, &theirs.public(), at).await.unwrap();
        let addresses = ("10.77.0.1".parse().unwrap(), "10.77.0.2".parse().unwrap());
        let packet = crate::packet::udp(addresses.0, addresses.1, 7, b"text").unwrap();
        for counter in [0, 1 << 40] {
            session.send(counter, &packet).await.unwrap();
        }
        assert_eq!(answering.await.unwrap(), vec![packet.clone(), packet]);
    }
}
