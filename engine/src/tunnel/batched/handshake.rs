//! Handshake messages (`WireGuard` paper §5.4): the Noise pattern by `snow`, and around it what is
//! `WireGuard`'s own: types, indices and MACs.

use blake2::digest::consts::U16;
use blake2::digest::{KeyInit, Mac as _};
use blake2::{Blake2s256, Blake2sMac, Digest as _};
use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use snow::params::NoiseParams;
use snow::{Builder, HandshakeState};
use zeroize::{Zeroize as _, Zeroizing};

/// Bytes of the messages.
pub(super) const INITIATION: usize = 148;
pub(super) const RESPONSE: usize = 92;
const COOKIE: usize = 64;
const MAC: usize = 16;
const PATTERN: &str = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
const LABEL_MAC1: &[u8] = b"mac1----";
const LABEL_COOKIE: &[u8] = b"cookie--";

/// A point in time as initiations carry it, later ones are larger (TAI64N).
pub(super) type Stamp = [u8; 12];

/// Who makes handshakes with whom.
pub(super) struct Parties {
    pub(super) own: Zeroizing<[u8; 32]>,
    pub(super) peer: [u8; 32],
}

/// An initiation that waits for its answer.
pub(super) struct Initiated {
    state: HandshakeState,
    /// The message's first MAC.
    pub(super) mac1: [u8; MAC],
}

/// What both ends of a finished handshake know.
pub(super) struct Agreed {
    pub(super) sending: Zeroizing<[u8; 32]>,
    pub(super) receiving: Zeroizing<[u8; 32]>,
    /// The peer's number of the session.
    pub(super) remote: u32,
    /// The first MAC of the message that this end sent.
    pub(super) mac1: [u8; MAC],
}

impl Parties {
    fn builder(&self) -> Result<Builder<'_>, snow::Error> {
        let params: NoiseParams = PATTERN.parse()?;
        // No shared secret besides the keys: 32 zeroes (paper §5.4.2).
        Builder::new(params)
            .prologue(PROLOGUE)?
            .local_private_key(&*self.own)?
            .psk(2, &[0; 32])
    }

    /// Writes an initiation for the session that is numbered `local` here.
    pub(super) fn initiate(
        &self,
        local: u32,
        stamp: &Stamp,
        cookie: Option<&[u8; MAC]>,
        out: &mut [u8],
    ) -> Option<Initiated> {
        let mut state = self
            .builder()
            .ok()?
            .remote_public_key(&self.peer)
            .ok()?
            .build_initiator()
            .ok()?;
        let message = out.get_mut(..INITIATION)?;
        message.fill(0);
        message
            .first_chunk_mut::<4>()?
            .copy_from_slice(&[1, 0, 0, 0]);
        message.get_mut(4..8)?.copy_from_slice(&local.to_le_bytes());
        state.write_message(stamp, message.get_mut(8..116)?).ok()?;
        let mac1 = self.sign(message, cookie)?;
        Some(Initiated { state, mac1 })
    }

    /// Reads an initiation and answers it for the session that is numbered `local` here, if `accept` likes
    /// its stamp.
    pub(super) fn respond(
        &self,
        initiation: &[u8],
        (local, cookie): (u32, Option<&[u8; MAC]>),
        accept: impl FnOnce(&Stamp) -> bool,
        out: &mut [u8],
    ) -> Option<Agreed> {
        if initiation.len() != INITIATION {
            return None;
        }
        let mut state = self.builder().ok()?.build_responder().ok()?;
        let mut stamp = [0; 12];
        let length = state
            .read_message(initiation.get(8..116)?, &mut stamp)
            .ok()?;
        if length != stamp.len() || state.get_remote_static() != Some(&self.peer) || !accept(&stamp)
        {
            return None;
        }
        let remote = initiation.get(4..8)?;
        let message = out.get_mut(..RESPONSE)?;
        message.fill(0);
        message
            .first_chunk_mut::<4>()?
            .copy_from_slice(&[2, 0, 0, 0]);
        message.get_mut(4..8)?.copy_from_slice(&local.to_le_bytes());
        message.get_mut(8..12)?.copy_from_slice(remote);
        state.write_message(&[], message.get_mut(12..60)?).ok()?;
        let mac1 = self.sign(message, cookie)?;
        let remote = u32::from_le_bytes(*remote.first_chunk()?);
        let (mut theirs, mut ours) = state.dangerously_get_raw_split();
        let agreed = Agreed {
            sending: Zeroizing::new(ours),
            receiving: Zeroizing::new(theirs),
            remote,
            mac1,
        };
        theirs.zeroize();
        ours.zeroize();
        Some(agreed)
    }

    /// Reads a cookie, which a peer under load sends instead of an answer to the message of that first MAC
    /// (paper §5.4.7).
    pub(super) fn cookie(&self, mac1: &[u8; MAC], message: &[u8]) -> Option<[u8; MAC]> {
        if message.len() != COOKIE {
            return None;
        }
        let key = Blake2s256::new()
            .chain_update(LABEL_COOKIE)
            .chain_update(self.peer)
            .finalize();
        let payload = Payload {
            msg: message.get(32..)?,
            aad: mac1,
        };
        let nonce = XNonce::from_slice(message.get(8..32)?);
        let cookie = XChaCha20Poly1305::new(&key).decrypt(nonce, payload).ok()?;
        cookie.first_chunk().copied()
    }

    /// Writes both MACs of a message (paper §5.4.4); gives the first.
    fn sign(&self, message: &mut [u8], cookie: Option<&[u8; MAC]>) -> Option<[u8; MAC]> {
        let key = Blake2s256::new()
            .chain_update(LABEL_MAC1)
            .chain_update(self.peer)
            .finalize();
        let end = message.len().checked_sub(2 * MAC)?;
        let mac1 = mac(&key, message.get(..end)?)?;
        message.get_mut(end..end + MAC)?.copy_from_slice(&mac1);
        if let Some(cookie) = cookie {
            let mac2 = mac(cookie, message.get(..end + MAC)?)?;
            message.get_mut(end + MAC..)?.copy_from_slice(&mac2);
        }
        Some(mac1)
    }
}

impl Initiated {
    /// Reads the answer. A wrong one leaves the handshake as it was.
    pub(super) fn finish(self, response: &[u8]) -> Result<Agreed, Box<Self>> {
        let noise = response.get(12..60).filter(|_| response.len() == RESPONSE);
        let remote = response.get(4..8).and_then(|bytes| bytes.first_chunk());
        let (Some(noise), Some(remote)) = (noise, remote) else {
            return Err(Box::new(self));
        };
        let Self { mut state, mac1 } = self;
        if state.read_message(noise, &mut []).is_err() {
            return Err(Box::new(Self { state, mac1 }));
        }
        let (mut ours, mut theirs) = state.dangerously_get_raw_split();
        let agreed = Agreed {
            sending: Zeroizing::new(ours),
            receiving: Zeroizing::new(theirs),
            remote: u32::from_le_bytes(*remote),
            mac1,
        };
        ours.zeroize();
        theirs.zeroize();
        Ok(agreed)
    }
}

fn mac(key: &[u8], message: &[u8]) -> Option<[u8; MAC]> {
    let mut mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(key).ok()?;
    mac.update(message);
    Some(mac.finalize().into_bytes().into())
}
