use std::net::{Ipv4Addr, SocketAddr};

use podmesh_proto::frame::{self, FrameDecoder};
use podmesh_proto::key::SigningKey;
use podmesh_proto::mark::Mark;
use podmesh_proto::planet_api::{ALPN, EXPORTER_LABEL};
use podmesh_proto::spki;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, ServerConfig};
use rustls::crypto::ring::{default_provider, sign::any_eddsa_type};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::sign::CertifiedKey;

use super::*;
use crate::scratch::Scratch;
use crate::state::StateDir;

/// A planet's side of the connection, and nothing of its mind.
fn listen(key: &SigningKey) -> (Endpoint, SocketAddr) {
    let private = spki::private_key(key.seed());
    let private = PrivatePkcs8KeyDer::from(private.to_vec());
    let public = CertificateDer::from(spki::encode(&key.public().0).to_vec());
    let certified = CertifiedKey::new(vec![public], any_eddsa_type(&private).unwrap());
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(Arc::new(
            certified,
        ))));
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let quic = QuicServerConfig::try_from(tls).unwrap();
    let config = ServerConfig::with_crypto(Arc::new(quic));
    let endpoint = Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = endpoint.local_addr().unwrap();
    (endpoint, address)
}

fn entry(key: &SigningKey, address: SocketAddr) -> PlanetEntry {
    PlanetEntry {
        id: key.planet_id(),
        name: "planet-1".parse().unwrap(),
        address: address.to_string(),
    }
}

fn links() -> (PlanetLinks, mpsc::Receiver<LinkEvent>) {
    let scratch = Scratch::new();
    links_of(&StateDir::open(&scratch.path("state")).unwrap())
}

/// With what this folder remembers.
fn links_of(dir: &StateDir) -> (PlanetLinks, mpsc::Receiver<LinkEvent>) {
    let (sender, receiver) = mpsc::channel(16);
    (
        PlanetLinks::new(sender, LastGood::load(dir), Mark::DEFAULT.value()),
        receiver,
    )
}

async fn next(events: &mut mpsc::Receiver<LinkEvent>) -> LinkEvent {
    loop {
        let event = timeout(Duration::from_secs(15), events.recv()).await;
        let event = event.expect("an event in time").expect("an open channel");
        if !matches!(event.news, LinkNews::Rtt(_)) {
            return event;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ends_share_keying_material_and_talk_until_the_planet_drains() {
    let key = SigningKey::from_seed([7; 32]);
    let (endpoint, address) = listen(&key);
    let planet = tokio::spawn(async move {
        let connection = endpoint.accept().await.unwrap().await.unwrap();
        let mut exported = [0; 32];
        connection
            .export_keying_material(&mut exported, EXPORTER_LABEL, b"")
            .unwrap();
        let (mut send, mut receive) = connection.accept_bi().await.unwrap();
        let mut decoder = FrameDecoder::default();
        let first = loop {
            let chunk = receive.read_chunk(9, true).await.unwrap().unwrap();
            decoder.push(&chunk.bytes);
            if let Some(message) = decoder.next::<NodeMessage>("test").unwrap() {
                break message;
            }
        };
        let retry_in = Duration::from_millis(50);
        let bytes = frame::encode(&PlanetMessage::Draining { retry_in }, "test").unwrap();
        send.write_all(&bytes).await.unwrap();
        send.finish().unwrap();
        let again = endpoint.accept().await.unwrap().await.is_ok();
        (exported, first, again)
    });

    let (mut links, mut events) = links();
    links.keep(vec![entry(&key, address)]);
    let event = next(&mut events).await;
    assert!(links.admit(&event));
    let LinkNews::Connected(connected) = event.news else {
        panic!("not connected")
    };
    assert_eq!(connected.remote, address);
    links.send(key.planet_id(), NodeMessage::Heartbeat);
    let event = next(&mut events).await;
    assert!(
        matches!(&event.news, LinkNews::Message(message) if matches!(**message, PlanetMessage::Draining { .. }))
    );
    let event = next(&mut events).await;
    assert!(links.admit(&event) && matches!(event.news, LinkNews::Disconnected(_)));

    let (exported, first, again) = planet.await.unwrap();
    assert_eq!(exported, *connected.exported);
    assert_eq!(first, NodeMessage::Heartbeat);
    assert!(
        again,
        "the node comes back after the time that the planet named"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_message_to_a_planet_that_is_left_arrives() {
    let key = SigningKey::from_seed([7; 32]);
    let (endpoint, address) = listen(&key);
    let planet = tokio::spawn(async move {
        let connection = endpoint.accept().await.unwrap().await.unwrap();
        let (_send, mut receive) = connection.accept_bi().await.unwrap();
        let bytes = receive.read_to_end(1_000).await.unwrap();
        let more = timeout(Duration::from_secs(1), endpoint.accept()).await;
        (bytes, more.is_err())
    });
    let (mut links, mut events) = links();
    links.keep(vec![entry(&key, address)]);
    let event = next(&mut events).await;
    assert!(links.admit(&event));
    drop(event);
    links.send(key.planet_id(), NodeMessage::Heartbeat);
    links.keep(Vec::new());
    let (bytes, nothing_more) = planet.await.unwrap();
    assert_eq!(
        bytes,
        frame::encode(&NodeMessage::Heartbeat, "test").unwrap()
    );
    assert!(
        nothing_more,
        "a planet that is left is not connected to again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_at_the_planets_address_is_named() {
    let (endpoint, address) = listen(&SigningKey::from_seed([8; 32]));
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            tokio::spawn(async move { incoming.await.is_ok() });
        }
    });
    let (mut links, mut events) = links();
    links.keep(vec![entry(&SigningKey::from_seed([7; 32]), address)]);
    let LinkNews::Disconnected(reason) = next(&mut events).await.news else {
        panic!("connected")
    };
    assert!(reason.contains("has another key"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_connection_that_was_given_up_are_not_admitted() {
    let key = SigningKey::from_seed([7; 32]);
    let (mut links, mut events) = links();
    let mut nowhere = entry(&key, (Ipv4Addr::LOCALHOST, 9).into());
    nowhere.address = "no.such.name.invalid:7077".to_owned();
    links.keep(vec![nowhere]);
    let old = next(&mut events).await;
    let LinkNews::Disconnected(reason) = &old.news else {
        panic!("connected")
    };
    assert!(
        reason.contains("can't resolve no.such.name.invalid:7077"),
        "{reason}"
    );
    links.reconnect(key.planet_id());
    assert!(!links.admit(&old));
    links.keep(Vec::new());
    assert!(links.links.is_empty());
}

/// Waits until the folder remembers something of the planet.
async fn remembered(dir: &StateDir, entry: &PlanetEntry) -> Vec<SocketAddr> {
    for _ in 0..500 {
        let known = LastGood::load(dir).of(entry);
        if !known.is_empty() {
            return known;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("nothing is remembered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planet_is_found_again_after_a_restart_with_a_dead_resolver() {
    let key = SigningKey::from_seed([7; 32]);
    let (endpoint, address) = listen(&key);
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Some(incoming) = endpoint.accept().await {
            held.push(incoming.await);
        }
    });
    let scratch = Scratch::new();
    let dir = StateDir::open(&scratch.path("state")).unwrap();
    let mut named = entry(&key, address);
    named.address = format!("localhost:{}", address.port());
    let (mut links, mut events) = links_of(&dir);
    links.keep(vec![named.clone()]);
    let event = next(&mut events).await;
    assert!(matches!(event.news, LinkNews::Connected(_)));
    assert_eq!(remembered(&dir, &named).await.first(), Some(&address));
    drop((links, events));

    // The same memory under a name that no resolver knows.
    let mut unknown = named.clone();
    unknown.address = format!("no.such.name.invalid:{}", address.port());
    assert_eq!(LastGood::load(&dir).of(&unknown), [], "of another name");
    LastGood::load(&dir).note(&unknown, vec![address]);
    remembered(&dir, &unknown).await;
    let (mut links, mut events) = links_of(&dir);
    links.keep(vec![unknown.clone()]);
    let LinkNews::Connected(connected) = next(&mut events).await.news else {
        panic!("not connected")
    };
    assert_eq!(connected.remote, address);

    links.keep(Vec::new());
    for _ in 0..500 {
        if LastGood::load(&dir).of(&unknown).is_empty() {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("a network that is left is not forgotten");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_where_nobody_proved_the_planets_key_is_not_remembered() {
    let (endpoint, address) = listen(&SigningKey::from_seed([8; 32]));
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            tokio::spawn(async move { incoming.await.is_ok() });
        }
    });
    let scratch = Scratch::new();
    let dir = StateDir::open(&scratch.path("state")).unwrap();
    let mut named = entry(&SigningKey::from_seed([7; 32]), address);
    named.address = format!("localhost:{}", address.port());
    let (mut links, mut events) = links_of(&dir);
    links.keep(vec![named.clone()]);
    assert!(matches!(
        next(&mut events).await.news,
        LinkNews::Disconnected(_)
    ));
    sleep(Duration::from_millis(200)).await;
    assert_eq!(LastGood::load(&dir).of(&named), []);
}

#[test]
fn who_greets_and_closes_again_and_again_is_waited_for_and_not_for_long() {
    let ended = |was_welcome| session::Ended {
        was_welcome,
        ..session::Ended::before_welcome(String::new())
    };
    let (short, long) = (Duration::from_millis(300), Duration::from_secs(60));
    let mut failures = 0;
    for expected in [1, 2, 3, 4, 4] {
        failures = failures_after(failures, &ended(true), short);
        assert_eq!(failures, expected);
    }
    assert_eq!(failures_after(9, &ended(false), long), 10);
    assert_eq!(
        failures_after(9, &ended(true), short),
        4,
        "it is there, after all"
    );
    assert_eq!(failures_after(9, &ended(true), long), 0);
}

/// Planets that drain at once ask for no patience at all, and are not hammered.
#[tokio::test(flavor = "multi_thread")]
async fn a_planet_that_drains_at_once_is_not_hammered() {
    let key = SigningKey::from_seed([7; 32]);
    let (endpoint, address) = listen(&key);
    let planet = tokio::spawn(async move {
        let mut connections = 0;
        while let Some(incoming) = endpoint.accept().await {
            let Ok(connection) = incoming.await else {
                continue;
            };
            connections += 1;
            let (mut send, mut receive) = connection.accept_bi().await.unwrap();
            let _ = receive.read_chunk(9, true).await;
            let retry_in = Duration::ZERO;
            let bytes = frame::encode(&PlanetMessage::Draining { retry_in }, "test").unwrap();
            let _ = send.write_all(&bytes).await;
            let _ = send.finish();
            // A connection that is closed before they have arrived takes the words with it.
            let _ = send.stopped().await;
            if connections == 4 {
                break;
            }
        }
    });
    let (mut links, mut events) = links();
    links.keep(vec![entry(&key, address)]);
    let begun = Instant::now();
    let watch = tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            if links.admit(&event) && matches!(event.news, LinkNews::Connected(_)) {
                links.send(key.planet_id(), NodeMessage::Heartbeat);
            }
        }
    });
    timeout(Duration::from_secs(60), planet)
        .await
        .unwrap()
        .unwrap();
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_millis(3 * 200), "{waited:?}");
    watch.abort();
}

#[test]
fn waits_grow_and_are_spread() {
    for (failures, unheard, longest) in [
        (0, false, 200),
        (1, false, 400),
        (1, true, 400),
        (5, false, 6_400),
        (5, true, 5_000),
        (8, false, 30_000),
        (40, false, 30_000),
        (40, true, 5_000),
    ] {
        let wait = || wait_after(failures, unheard).as_millis();
        let waits: Vec<u128> = (0..300).map(|_| wait()).collect();
        let (least, most) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
        assert!(
            *most <= longest && *most > longest / 2 && *least < longest / 4,
            "{failures}: {least}..{most}"
        );
    }
}
