//! The control connection to a planet, as a node has it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, bail};
use podmesh_proto::certificate::{Application, Claim, Membership, NodeCertificate};
use podmesh_proto::frame::{self, FrameDecoder};
use podmesh_proto::id::Name;
use podmesh_proto::network::{Network, PlanetEntry};
use podmesh_proto::planet_api::{
    EXPORTER_LABEL, HELLO_CONTEXT, Hello, NodeMessage, PROTOCOL, PlanetMessage, Welcome,
};
use podmesh_proto::signed::Signed;
use podmesh_proto::token::JoinToken;
use quinn::{Connection, Endpoint, RecvStream, SendStream};

use crate::clock;
use crate::loot::Keys;
use crate::tls;

/// One connection.
pub(super) struct Link {
    connection: Connection,
    _endpoint: Endpoint,
    sending: SendStream,
    receiving: RecvStream,
    decoder: FrameDecoder,
}

impl Link {
    /// Connects, and believes nobody but this planet.
    pub(super) async fn connect(planet: &PlanetEntry) -> Result<Self> {
        Self::connect_from(planet, Ipv4Addr::UNSPECIFIED.into()).await
    }

    /// The same, from an address that the host lets this program take.
    pub(super) async fn connect_from(planet: &PlanetEntry, source: IpAddr) -> Result<Self> {
        let remote: SocketAddr = planet.address.parse().context("the planet has a name")?;
        let socket = std::net::UdpSocket::bind((source, 0))?;
        let runtime = quinn::default_runtime().context("no runtime")?;
        let mut endpoint = Endpoint::new(tls::beside_others(), None, socket, runtime)?;
        endpoint.set_default_client_config(tls::as_node(planet.id)?);
        let connection = endpoint.connect(remote, "planet")?.await?;
        let (sending, receiving) = connection.open_bi().await?;
        Ok(Self {
            connection,
            _endpoint: endpoint,
            sending,
            receiving,
            decoder: FrameDecoder::default(),
        })
    }

    /// Says who it is, and waits to be welcome.
    pub(super) async fn hello(
        &mut self,
        keys: &Keys,
        network: &Network,
        membership: Option<&Membership>,
    ) -> Result<Welcome> {
        let mut exported = [0; 32];
        self.connection
            .export_keying_material(&mut exported, EXPORTER_LABEL, b"")
            .map_err(|_| anyhow::anyhow!("the connection gives no keying material"))?;
        let hello = Hello {
            protocol: PROTOCOL,
            network: network.id,
            node: keys.identity.node_id(),
            proof: keys.identity.sign(HELLO_CONTEXT, &exported),
            incarnation: clock::now().0,
            membership: membership.cloned().map(Box::new),
            cursor: None,
            sequence: 0,
            network_version: network.version,
            software: "rogue".to_owned(),
        };
        self.say(&NodeMessage::Hello(hello)).await?;
        match self.next().await? {
            PlanetMessage::Welcome(welcome) => Ok(welcome),
            other => bail!("no welcome, but {other:?}"),
        }
    }

    /// Waits until the planet ends the connection.
    pub(super) async fn ended(&self) {
        self.connection.closed().await;
    }

    /// Sends a message.
    pub(super) async fn say(&mut self, message: &NodeMessage) -> Result<()> {
        let bytes = frame::encode(message, "message of a node")?;
        Ok(self.sending.write_all(&bytes).await?)
    }

    /// Waits for a message. Nothing is lost if the wait is given up.
    pub(super) async fn next(&mut self) -> Result<PlanetMessage> {
        loop {
            if let Some(message) = self.decoder.next("message of a planet")? {
                return Ok(message);
            }
            let chunk = self.receiving.read_chunk(64 * 1024, true).await?;
            let chunk = chunk.context("the planet ended the connection")?;
            self.decoder.push(&chunk.bytes);
        }
    }
}

/// Becomes a member, as a node does.
pub(super) async fn join(
    planet: &PlanetEntry,
    network: &Network,
    token: &JoinToken,
    (keys, name): (&Keys, Name),
) -> Result<Membership> {
    let grant = token.grant.unverified()?;
    let certificate = NodeCertificate {
        network: network.id,
        node: keys.identity.node_id(),
        name,
        wireguard: keys.wireguard.public(),
        probe: keys.probe.public(),
        site: grant.site,
        groups: grant.groups,
        relay: false,
        issued: clock::now(),
        expires: grant.membership.map(|seconds| clock::now().plus(seconds)),
    };
    let application = Application::new(
        token.grant.clone(),
        &certificate,
        &token.key,
        &keys.identity,
    )?;
    let mut link = Link::connect(planet).await?;
    link.hello(keys, network, None).await?;
    link.say(&NodeMessage::Join(Box::new(application.clone())))
        .await?;
    let receipt = loop {
        match link.next().await? {
            PlanetMessage::Admitted(receipt) => break receipt,
            PlanetMessage::Refused(refusal) => bail!("not admitted: {}", refusal.reason),
            _ => {}
        }
    };
    let leases = receipt.unverified()?.leases;
    let claim = Claim {
        network: network.id,
        node: certificate.node,
        serial: 1,
        overlay4: leases.overlay4,
        pod_cidrs: leases.prefixes().into_iter().skip(1).collect(),
    };
    let claim = Signed::seal(&claim, &keys.identity)?;
    link.say(&NodeMessage::Claim(claim.clone())).await?;
    loop {
        match link.next().await? {
            PlanetMessage::Claimed(claim_receipt) => {
                return Ok(Membership {
                    application,
                    receipt,
                    claim,
                    claim_receipt,
                    renewed: None,
                });
            }
            PlanetMessage::Refused(refusal) => bail!("not claimed: {}", refusal.reason),
            _ => {}
        }
    }
}
