//! TLS with the planet's own key as a raw public key (RFC 7250): a planet's id is its whole identity,
//! so there is no certificate, no name and no date to check.

use std::sync::Arc;
use std::time::Duration;

use podmesh_proto::key::{SigningKey, digest};
use podmesh_proto::planet_api::ALPN;
use podmesh_proto::spki;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{EndpointConfig, ServerConfig, TransportConfig, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use ring::hmac;
use rustls::crypto::ring::{default_provider, sign};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::sign::CertifiedKey;

/// QUIC gives a connection up after this silence.
const IDLE: Duration = Duration::from_secs(45);
/// Keeps NATs open and the idle time from running out.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Bytes that a connection may have under way towards the planet: a whole message and some.
pub const RECEIVE_WINDOW: u32 = 128 * 1024;
/// The same before it has opened its stream: nobody knows yet who it is.
const UNPROVEN_WINDOW: u32 = 4 * 1024;
/// Bytes that wait for acknowledgement from one node.
const SEND_WINDOW: u64 = 512 * 1024;
/// Bytes of handshake that may arrive out of order.
const CRYPTO_BUFFER: usize = 16 * 1024;
/// Connections that wait to be accepted, and bytes that they and all of them may leave here.
const MAX_INCOMING: usize = 1_024;
const INCOMING_BYTES: u64 = 8 * 1024;
const INCOMING_BYTES_TOTAL: u64 = 8 * 1024 * 1024;

/// QUIC's configuration of a planet.
///
/// # Errors
/// One sentence; never with a key of this program's making.
pub fn server_config(key: &SigningKey) -> Result<ServerConfig, String> {
    let private = spki::private_key(key.seed());
    let signer = sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(private.as_slice()))
        .map_err(|error| error.to_string())?;
    let public = CertificateDer::from(spki::encode(&key.public().0).to_vec());
    let identity = Arc::new(CertifiedKey::new(vec![public], signer));
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(identity)));
    tls.alpn_protocols = vec![ALPN.to_vec()];
    // Every connection proves the key anew, and nothing is said before it has.
    tls.max_early_data_size = 0;
    tls.send_tls13_tickets = 0;
    let quic = QuicServerConfig::try_from(tls).map_err(|error| error.to_string())?;
    let mut config = ServerConfig::with_crypto(Arc::new(quic));
    config
        .transport_config(Arc::new(transport()?))
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(INCOMING_BYTES_TOTAL);
    config.validation_token.sent(0);
    Ok(config)
}

/// QUIC's configuration of the planet's end of the socket.
///
/// Reset key and connection ids follow from the planet's key, so they are the same after a restart: what
/// a node sends to a connection that the planet has forgotten is answered by a reset that the node
/// recognises (RFC 9000 §10.3), and the node comes back within seconds and not after its idle time. Ids
/// that the planet never made are not answered.
#[must_use]
pub fn endpoint_config(key: &SigningKey) -> EndpointConfig {
    let reset_key = digest("podmesh planet stateless reset v1", key.seed());
    let reset_key = hmac::Key::new(hmac::HMAC_SHA256, &reset_key);
    let id_key = digest("podmesh planet connection ids v1", key.seed());
    let id_key = id_key.first_chunk().copied().map_or(0, u64::from_le_bytes);
    let mut config = EndpointConfig::new(Arc::new(reset_key));
    config
        // The fixed bit tells QUIC from our own frames (RFC 9287 is not for shared sockets).
        .grease_quic_bit(false)
        .cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(id_key)));
    config
}

fn transport() -> Result<TransportConfig, String> {
    let idle = IDLE
        .try_into()
        .map_err(|_| "the idle time is out of range".to_owned())?;
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .stream_receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .receive_window(VarInt::from_u32(UNPROVEN_WINDOW))
        .send_window(SEND_WINDOW)
        .crypto_buffer_size(CRYPTO_BUFFER)
        .datagram_receive_buffer_size(None);
    Ok(transport)
}
