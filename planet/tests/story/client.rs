//! A node's end of the control connection, and of the relay.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use podmesh_proto::frame::{self, FrameDecoder};
use podmesh_proto::id::PlanetId;
use podmesh_proto::planet_api::{
    ALPN, DirectoryRecord, EXPORTER_LABEL, Hello, NodeMessage, PROTOCOL, PlanetMessage, RefusalCode,
};
use podmesh_proto::relayed::{RelayGrant, RelayHeader, RelayKind, RelaySeal, Token};
use podmesh_proto::spki;
use podmesh_proto::token::JoinToken;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint, EndpointConfig, RecvStream, SendStream};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::time::timeout;

use super::{Node, Operator};

const PATIENCE: Duration = Duration::from_secs(10);

/// Accepts one planet's key.
#[derive(Debug)]
struct Pin {
    planet: PlanetId,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if spki::decode(end_entity) == Some(self.planet.0) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::General("another planet".to_owned()))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("no TLS 1.2".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = SubjectPublicKeyInfoDer::from(cert.as_ref());
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

pub(crate) fn client_config(planet: PlanetId, window: Option<u32>) -> ClientConfig {
    let provider = Arc::new(ring::default_provider());
    let pin = Pin {
        planet,
        provider: Arc::clone(&provider),
    };
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pin))
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_secs(5)));
    if let Some(window) = window {
        transport.stream_receive_window(window.into());
    }
    config.transport_config(Arc::new(transport));
    config
}

/// A connection whose first message is still to be sent.
pub(crate) struct Client {
    pub(crate) connection: Connection,
    sending: SendStream,
    receiving: RecvStream,
    decoder: FrameDecoder,
    exported: [u8; 32],
    _endpoint: Endpoint,
}

impl Client {
    pub(crate) async fn dial(
        address: SocketAddr,
        planet: PlanetId,
        window: Option<u32>,
    ) -> Result<Self, String> {
        Self::dial_from("127.0.0.1", (address, planet), window).await
    }

    pub(crate) async fn dial_from(
        from: &str,
        (address, planet): (SocketAddr, PlanetId),
        window: Option<u32>,
    ) -> Result<Self, String> {
        let socket = UdpSocket::bind(format!("{from}:0")).unwrap();
        let mut config = EndpointConfig::default();
        config.grease_quic_bit(false);
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = Endpoint::new(config, None, socket, runtime).unwrap();
        let connecting = endpoint
            .connect_with(client_config(planet, window), address, "planet")
            .unwrap();
        let connection = timeout(PATIENCE, connecting)
            .await
            .map_err(|_| "no answer".to_owned())?
            .map_err(|error| error.to_string())?;
        let mut exported = [0; 32];
        connection
            .export_keying_material(&mut exported, EXPORTER_LABEL, b"")
            .unwrap();
        let (sending, receiving) = connection
            .open_bi()
            .await
            .map_err(|error| error.to_string())?;
        Ok(Self {
            connection,
            sending,
            receiving,
            decoder: FrameDecoder::default(),
            exported,
            _endpoint: endpoint,
        })
    }

    pub(crate) fn hello(&self, node: &Node, operator: &Operator) -> Hello {
        Hello {
            protocol: PROTOCOL,
            network: operator.network.id,
            node: node.id(),
            proof: node.prove(&self.exported),
            incarnation: 1,
            membership: node.membership().map(Box::new),
            cursor: node.cursor,
            sequence: node.highest(),
            network_version: 1,
            software: "test".to_owned(),
        }
    }

    pub(crate) async fn say(&mut self, message: &NodeMessage) {
        let bytes = frame::encode(message, "message").unwrap();
        // A closed connection shows when something is read.
        let _ = self.sending.write_all(&bytes).await;
    }

    /// Raw bytes instead of a message.
    pub(crate) async fn say_bytes(&mut self, bytes: &[u8]) {
        let _ = self.sending.write_all(bytes).await;
    }

    /// The next message; `None` once the planet has closed the connection.
    pub(crate) async fn hear(&mut self) -> Option<PlanetMessage> {
        loop {
            if let Some(message) = self.decoder.next("message").unwrap() {
                return Some(message);
            }
            let chunk = timeout(PATIENCE, self.receiving.read_chunk(65_536, true)).await;
            match chunk.expect("the planet says something in time") {
                Ok(Some(chunk)) => self.decoder.push(&chunk.bytes),
                _ => return None,
            }
        }
    }

    /// The next message for which `wanted` gives something.
    pub(crate) async fn find<T>(
        &mut self,
        wanted: impl Fn(&PlanetMessage) -> Option<T>,
    ) -> Option<T> {
        loop {
            let message = self.hear().await?;
            if let Some(found) = wanted(&message) {
                return Some(found);
            }
        }
    }

    pub(crate) async fn refusal(&mut self) -> Option<RefusalCode> {
        self.find(|message| match message {
            PlanetMessage::Refused(refusal) => Some(refusal.code),
            _ => None,
        })
        .await
    }

    pub(crate) async fn relay_grant(&mut self) -> RelayGrant {
        let grant = self.find(|message| match message {
            PlanetMessage::Welcome(welcome) => welcome.relay.clone(),
            _ => None,
        });
        grant.await.expect("a relay session")
    }

    /// Says hello, joins and claims.
    pub(crate) async fn join(
        &mut self,
        node: &mut Node,
        (operator, token): (&Operator, &JoinToken),
        name: &str,
    ) -> Result<(), RefusalCode> {
        let hello = NodeMessage::Hello(self.hello(node, operator));
        self.say(&hello).await;
        let now = super::wall_clock();
        let application = node.application(token, name, now);
        self.say(&NodeMessage::Join(Box::new(application.clone())))
            .await;
        let answer = self.find(|message| match message {
            PlanetMessage::Admitted(receipt) => Some(Ok(receipt.clone())),
            PlanetMessage::Refused(refusal) => Some(Err(refusal.code)),
            _ => None,
        });
        let receipt = answer.await.ok_or(RefusalCode::Busy)??;
        let leases = receipt.unverified().unwrap().leases;
        node.application = Some(application);
        node.receipt = Some(receipt);
        let pods = leases.pods4.map(ipnet::IpNet::V4).into_iter().collect();
        let claim = node.sign_claim(&operator.network, 1, leases.overlay4, pods);
        self.say(&NodeMessage::Claim(claim.clone())).await;
        let answer = self.find(|message| match message {
            PlanetMessage::Claimed(receipt) => Some(Ok(receipt.clone())),
            PlanetMessage::Refused(refusal) => Some(Err(refusal.code)),
            _ => None,
        });
        node.claim = Some((claim, answer.await.ok_or(RefusalCode::Busy)??));
        Ok(())
    }

    /// Waits for a record of the directory.
    pub(crate) async fn record(
        &mut self,
        wanted: impl Fn(&DirectoryRecord) -> bool,
    ) -> Option<DirectoryRecord> {
        self.find(|message| match message {
            PlanetMessage::Directory(update) => update.records.iter().find(|r| wanted(r)).cloned(),
            _ => None,
        })
        .await
    }
}

/// A node's data socket with its relay session.
pub(crate) struct DataSocket {
    pub(crate) socket: UdpSocket,
    planet: SocketAddr,
    grant: RelayGrant,
    counter: u64,
}

impl DataSocket {
    pub(crate) fn new(planet: SocketAddr, grant: RelayGrant) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        Self {
            socket,
            planet,
            grant,
            counter: 0,
        }
    }

    fn seal(&self) -> RelaySeal {
        RelaySeal::new(&self.grant.key)
    }

    /// Where the planet sees this socket. Proves the place, too.
    pub(crate) fn observe(&mut self) -> SocketAddr {
        let (_, token) = self.question(Token::default());
        assert_ne!(token, Token::default(), "a new place has to prove itself");
        let (endpoint, token) = self.question(token);
        assert_eq!(token, Token::default(), "proven");
        endpoint
    }

    fn question(&mut self, token: Token) -> (SocketAddr, Token) {
        let mut question = Vec::new();
        self.counter += 1;
        self.seal()
            .observe(self.grant.session, self.counter, token, &mut question);
        self.socket.send_to(&question, self.planet).unwrap();
        let mut answer = [0; 2_000];
        let length = self.socket.recv(&mut answer).unwrap();
        assert_eq!(length, question.len());
        let header = RelayHeader::parse(&answer[..length]).unwrap();
        assert_eq!(header.kind, RelayKind::Observed);
        let seal = self.seal();
        let payload = seal.open(&header, &answer[..length]).unwrap();
        let endpoint = RelaySeal::endpoint(payload).unwrap();
        (endpoint, RelaySeal::token(payload).unwrap())
    }

    pub(crate) fn frame(&mut self, to: &Node, payload: &[u8]) -> Vec<u8> {
        self.counter += 1;
        let header = RelayHeader {
            kind: RelayKind::Up,
            session: self.grant.session,
            counter: self.counter,
            peer: to.id().relay_address(),
        };
        let mut frame = Vec::new();
        self.seal().seal(&header, payload, &mut frame);
        frame
    }

    pub(crate) fn send(&mut self, to: &Node, payload: &[u8]) {
        let frame = self.frame(to, payload);
        self.socket.send_to(&frame, self.planet).unwrap();
    }

    /// The next relayed payload and the address of its sender.
    pub(crate) fn receive(&self) -> Option<(Vec<u8>, RelayHeader)> {
        let mut frame = [0; 2_000];
        let length = self.socket.recv(&mut frame).ok()?;
        let header = RelayHeader::parse(&frame[..length]).unwrap();
        let seal = self.seal();
        let payload = seal.open(&header, &frame[..length]).unwrap();
        Some((payload.to_vec(), header))
    }
}
