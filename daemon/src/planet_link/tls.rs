//! TLS with the planet's raw public key (RFC 7250) held against the id that the network names.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use podmesh_proto::id::PlanetId;
use podmesh_proto::planet_api::ALPN;
use podmesh_proto::spki;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, TransportConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

/// QUIC gives a connection up when this long after a question, which it repeats meanwhile, nothing
/// has come (RFC 9000 §10.1).
const IDLE: Duration = Duration::from_secs(10);
/// Asks whether the planet is there, and keeps a NAT's mapping open.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// How to talk to one planet, and whether something at its address had another key.
pub(super) struct Pinned {
    /// For QUIC.
    pub(super) config: ClientConfig,
    other_key: Arc<AtomicBool>,
}

impl Pinned {
    /// # Errors
    /// Never in practice: the ciphers are compiled in.
    pub(super) fn new(planet: PlanetId) -> Result<Self, String> {
        let provider = Arc::new(ring::default_provider());
        let other_key = Arc::new(AtomicBool::new(false));
        let verifier = Arc::new(PlanetVerifier {
            planet,
            other_key: Arc::clone(&other_key),
            provider: Arc::clone(&provider),
        });
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        // A resumed session would skip the proof of the key; a handshake each time is cheap enough.
        tls.resumption = rustls::client::Resumption::disabled();
        let quic = QuicClientConfig::try_from(tls).map_err(|error| error.to_string())?;
        let mut config = ClientConfig::new(Arc::new(quic));
        config.transport_config(Arc::new(transport()?));
        Ok(Self { config, other_key })
    }

    /// Whether a handshake failed because of another key, since the last question.
    pub(super) fn met_another_key(&self) -> bool {
        self.other_key.swap(false, Ordering::Relaxed)
    }
}

fn transport() -> Result<TransportConfig, String> {
    let mut transport = TransportConfig::default();
    let idle = IDLE
        .try_into()
        .map_err(|_| "the idle time is out of range".to_owned())?;
    transport
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_concurrent_bidi_streams(0_u32.into())
        .max_concurrent_uni_streams(0_u32.into())
        .datagram_receive_buffer_size(None);
    Ok(transport)
}

/// Accepts one key and nothing else: no names, no dates, no chain.
#[derive(Debug)]
struct PlanetVerifier {
    planet: PlanetId,
    other_key: Arc<AtomicBool>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PlanetVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if spki::decode(end_entity) == Some(self.planet.0) {
            Ok(ServerCertVerified::assertion())
        } else {
            self.other_key.store(true, Ordering::Relaxed);
            Err(Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            ))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("QUIC has no TLS 1.2".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature_with_raw_key(
            message,
            &SubjectPublicKeyInfoDer::from(cert.as_ref()),
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
