//! What a planet hears from anybody, what a member proves, and what local callers hand in.

#![allow(
    clippy::unwrap_used,
    reason = "a stage that can't be set fails at once"
)]

use std::sync::LazyLock;
use std::time::Duration;

use podmesh_planet::config::Config;
use podmesh_planet::rules::books::Books;
use podmesh_planet::rules::records::Origin;
use podmesh_planet::rules::{Action, ConnectionId, Input, Planet};
use podmesh_proto::candidate::EndpointRecord;
use podmesh_proto::certificate::{
    AdmissionReceipt, Application, Claim, ClaimReceipt, Departure, Grant, Leases, Membership,
    NodeCertificate,
};
use podmesh_proto::frame;
use podmesh_proto::id::{Name, NodeId, TokenId};
use podmesh_proto::key::{PublicKey, SecretKey, SigningKey};
use podmesh_proto::local_api;
use podmesh_proto::network::{Network, PlanetEntry, Ranges, RootStatement};
use podmesh_proto::node_file::NodeFile;
use podmesh_proto::planet_api::{HELLO_CONTEXT, Hello, NodeMessage, PROTOCOL};
use podmesh_proto::renewal::{Renewal, RenewalReceipt, RenewalRequest, Renewed, Succession};
use podmesh_proto::signed::Signed;
use podmesh_proto::time::{Moment, Now, UnixSeconds};

use crate::edits::edited;

const START: UnixSeconds = UnixSeconds(1_800_000_000);
/// What a planet may say for each thing that it hears, and to begin with.
const ANSWERS: usize = 64;

/// A network with a node that was admitted, and later has changed its keys.
struct Stage {
    network: Network,
    statement: Signed<RootStatement>,
    node: SigningKey,
    next: SigningKey,
    plain: Membership,
    renewed: Membership,
}

static STAGE: LazyLock<Stage> = LazyLock::new(stage);

fn planet_key() -> SigningKey {
    SigningKey::from_seed([102; 32])
}

fn network(root: &SigningKey) -> Network {
    let id = Network::id_of(&root.public());
    Network {
        id,
        name: "lab".parse().unwrap(),
        root: root.public(),
        second_root: None,
        version: 1,
        issued: START,
        ranges: Ranges::default_of(&id),
        planets: vec![PlanetEntry {
            id: planet_key().planet_id(),
            name: "planet-1".parse().unwrap(),
            address: "192.0.2.1:7077".to_owned(),
        }],
        retired: Vec::new(),
    }
}

fn application(network: &Network, root: &SigningKey, node: &SigningKey) -> Application {
    let token = SigningKey::from_seed([103; 32]);
    let site: Option<Name> = Some("home".parse().unwrap());
    let groups: Vec<Name> = vec!["workers".parse().unwrap()];
    let grant = Grant {
        network: network.id,
        token: TokenId([7; 16]),
        token_key: token.public(),
        issued: START,
        expires: START.plus(1_000_000),
        uses: 10,
        site: site.clone(),
        groups: groups.clone(),
        relay: false,
        ranges: Vec::new(),
        membership: Some(100_000),
        for_name: None,
        replaces: None,
    };
    let certificate = NodeCertificate {
        network: network.id,
        node: node.node_id(),
        name: "n1".parse().unwrap(),
        wireguard: SecretKey::from_bytes([1; 32]).public(),
        probe: SecretKey::from_bytes([2; 32]).public(),
        site,
        groups,
        relay: false,
        issued: START,
        expires: Some(START.plus(100_000)),
    };
    let grant = Signed::seal(&grant, root).unwrap();
    Application::new(grant, &certificate, &token, node).unwrap()
}

fn plain(network: &Network, application: Application, node: &SigningKey) -> Membership {
    let planet = planet_key();
    let leases = Leases {
        overlay4: Some("10.77.0.1".parse().unwrap()),
        pods4: Some("10.42.0.0/24".parse().unwrap()),
        pods6: None,
    };
    let receipt = AdmissionReceipt {
        network: network.id,
        planet: planet.planet_id(),
        token: TokenId([7; 16]),
        use_number: 1,
        node: node.node_id(),
        name: "n1".parse().unwrap(),
        certificate: application.certificate.hash(),
        leases: leases.clone(),
        sequence: 1,
        time: START,
    };
    let claim = Claim {
        network: network.id,
        node: node.node_id(),
        serial: 1,
        overlay4: leases.overlay4,
        pod_cidrs: vec!["10.42.0.0/24".parse().unwrap()],
    };
    let claim = Signed::seal(&claim, node).unwrap();
    let claim_receipt = ClaimReceipt {
        network: network.id,
        planet: planet.planet_id(),
        node: node.node_id(),
        claim: claim.hash(),
        sequence: 2,
        settles: vec![(1, 1)],
        time: START,
    };
    Membership {
        application,
        receipt: Signed::seal(&receipt, &planet).unwrap(),
        claim,
        claim_receipt: Signed::seal(&claim_receipt, &planet).unwrap(),
        renewed: None,
    }
}

fn renewed(plain: &Membership, network: &Network, keys: (&SigningKey, &SigningKey)) -> Membership {
    let (node, next) = keys;
    let step = Succession {
        network: network.id,
        node: node.node_id(),
        number: 1,
        next: next.public(),
    };
    let renewal = Renewal {
        network: network.id,
        node: node.node_id(),
        certificate: plain.application.certificate.hash(),
        serial: 1,
        follows: plain.application.certificate.hash(),
        claim: plain.claim.hash(),
        wireguard: SecretKey::from_bytes([3; 32]).public(),
        probe: SecretKey::from_bytes([4; 32]).public(),
        issued: START,
        expires: Some(START.plus(100_000)),
    };
    let renewal = Signed::seal(&renewal, next).unwrap();
    let receipt = RenewalReceipt {
        network: network.id,
        planet: planet_key().planet_id(),
        node: node.node_id(),
        renewal: renewal.hash(),
        time: START.plus(1),
    };
    let request = RenewalRequest {
        successions: vec![Signed::seal(&step, node).unwrap()],
        renewal,
    };
    let receipt = Signed::seal(&receipt, &planet_key()).unwrap();
    Membership {
        renewed: Some(Box::new(Renewed { request, receipt })),
        ..plain.clone()
    }
}

fn stage() -> Stage {
    let root = SigningKey::from_seed([101; 32]);
    let node = SigningKey::from_seed([104; 32]);
    let next = SigningKey::from_seed([105; 32]);
    let network = network(&root);
    let statement = Signed::seal(&RootStatement::Network(network.clone()), &root).unwrap();
    let plain = plain(&network, application(&network, &root, &node), &node);
    let renewed = renewed(&plain, &network, (&node, &next));
    Stage {
        network,
        statement,
        node,
        next,
        plain,
        renewed,
    }
}

/// A chain of documents that somebody touched is the same member, or none.
pub(crate) fn chains(input: &[u8]) {
    let Some((first, rest)) = input.split_first() else {
        return;
    };
    let stage = &*STAGE;
    let original = if first & 1 == 0 {
        &stage.plain
    } else {
        &stage.renewed
    };
    let bytes = edited(&postcard::to_allocvec(original).unwrap(), rest);
    if let Ok((changed, _)) = postcard::take_from_bytes::<Membership>(&bytes)
        && let Ok(member) = changed.prove(&stage.network)
    {
        let mut truths = [&stage.plain, &stage.renewed].into_iter();
        let same = truths.any(|truth| truth.prove(&stage.network).as_ref() == Ok(&member));
        assert!(same, "another member out of edited bytes: {member:?}");
    }
    others(rest);
}

/// Other documents, as anybody may send them.
fn others(bytes: &[u8]) {
    let stage = &*STAGE;
    if let Ok(departure) = postcard::from_bytes::<Signed<Departure>>(bytes) {
        assert!(Departure::verify(&departure, stage.network.id).is_err());
    }
    if let Ok(record) = postcard::from_bytes::<Signed<EndpointRecord>>(bytes) {
        let key = stage.node.public();
        assert!(EndpointRecord::verify(&record, stage.network.id, &key).is_err());
    }
    if let Ok(said) = postcard::from_bytes::<Signed<RootStatement>>(bytes) {
        assert!(stage.network.verify(&said).is_err() || said == stage.statement);
        let _ = Network::from_statement(&said);
    }
}

fn hello(key: &SigningKey, membership: Option<&Membership>, sequence: u64) -> NodeMessage {
    let stage = &*STAGE;
    NodeMessage::Hello(Hello {
        protocol: PROTOCOL,
        network: stage.network.id,
        node: key.node_id(),
        proof: key.sign(HELLO_CONTEXT, b"exported"),
        incarnation: 1,
        membership: membership.map(|membership| Box::new(membership.clone())),
        cursor: None,
        sequence,
        network_version: 1,
        software: "x\u{1b}".to_owned(),
    })
}

fn departure(body: &[u8]) -> NodeMessage {
    let stage = &*STAGE;
    let time = body.first_chunk().copied().unwrap_or([0xff; 8]);
    let departure = Departure {
        network: stage.network.id,
        node: stage.node.node_id(),
        successions: Vec::new(),
        time: UnixSeconds(u64::from_le_bytes(time)),
    };
    NodeMessage::Leave(Signed::seal(&departure, &stage.node).unwrap())
}

/// What a connection says next; nothing if the bytes are no message.
fn message(kind: u8, length: u8, body: &[u8]) -> Option<NodeMessage> {
    let stage = &*STAGE;
    let stranger = SigningKey::from_seed([201; 32]);
    Some(match kind {
        0 => hello(&stage.node, None, 0),
        1 => hello(&stage.node, Some(&stage.plain), u64::MAX),
        2 => hello(&stage.next, Some(&stage.renewed), 3),
        3 => hello(&stranger, Some(&stage.renewed), u64::from(length)),
        4 => NodeMessage::Join(Box::new(stage.plain.application.clone())),
        5 => NodeMessage::Claim(stage.plain.claim.clone()),
        6 => NodeMessage::Renew(Box::new(stage.renewed.renewed.as_ref()?.request.clone())),
        7 => NodeMessage::Membership(Box::new(stage.renewed.clone())),
        8 => NodeMessage::Report {
            memberships: vec![stage.plain.clone(), stage.renewed.clone()],
        },
        9 => NodeMessage::Introduce {
            peer: stage.node.node_id(),
            attempt: u32::MAX,
        },
        10 => departure(body),
        11 => {
            let whole = NodeMessage::Membership(Box::new(stage.renewed.clone()));
            let bytes = edited(&postcard::to_allocvec(&whole).ok()?, body);
            postcard::from_bytes(&bytes).ok()?
        }
        _ => postcard::from_bytes(body).ok()?,
    })
}

/// A planet that hears anything from anybody says what can be sent, and not too much of it.
pub(crate) fn planet(input: &[u8]) {
    let stage = &*STAGE;
    let mut at = Duration::from_secs(100);
    let now = |at: Duration| Now {
        moment: Moment::from_start(at),
        unix: START.plus(at.as_secs()),
        nanos: 0,
    };
    let books = Books::new(stage.statement.clone(), Origin::Fresh).unwrap();
    let mut planet = Planet::new(planet_key(), books, [9; 32], now(Duration::ZERO));
    let (mut rest, mut heard, mut said) = (input, 0_usize, 0_usize);
    while let [kind, connection, length, tail @ ..] = rest {
        let connection = ConnectionId(u64::from(connection % 4));
        let (body, tail) = tail.split_at(usize::from(*length).min(tail.len()));
        rest = tail;
        let what = match kind % 16 {
            12 => Input::Connected {
                connection,
                remote: "[::ffff:192.0.2.7]:99".parse().unwrap(),
                rtt: Duration::from_millis(u64::from(*length)),
                exported: b"exported".to_vec(),
            },
            13 => Input::Disconnected { connection },
            14 => Input::Tick,
            kind => match message(kind, *length, body) {
                Some(message) => Input::Message {
                    connection,
                    message: Box::new(message),
                },
                None => {
                    at += Duration::from_millis(u64::from(*length) * 40);
                    continue;
                }
            },
        };
        heard += 1;
        planet.handle(what, now(at));
        said += settle(&mut planet, kind & 0x80 != 0, now(at));
        let _ = planet.poll_timeout();
    }
    assert!(
        said <= ANSWERS + heard * ANSWERS,
        "{said} messages for {heard}"
    );
}

/// Carries out what the planet wants; a disk that is full is so once. How much was said.
fn settle(planet: &mut Planet, mut full: bool, now: Now) -> usize {
    let mut said = 0;
    while let Some(action) = planet.poll_action() {
        match action {
            Action::Commit(_) if std::mem::take(&mut full) => {
                planet.committed(Err("no space left".to_owned()), now);
            }
            Action::Commit(_) => planet.committed(Ok(()), now),
            Action::Send { message, .. } => {
                said += 1;
                frame::encode(&*message, "message").expect("every message fits");
            }
            _ => {}
        }
    }
    said
}

/// JSON and names that local programs hand in.
pub(crate) fn json(input: &[u8]) {
    let file = NodeFile::parse(input, |bytes| serde_json::from_slice(bytes));
    if let Ok(file) = file {
        assert!(file.validate().is_ok());
    }
    let _ = serde_json::from_slice::<local_api::Request>(input);
    let _ = serde_json::from_slice::<local_api::Response>(input);
    let _ = serde_json::from_slice::<podmesh_planet::admin::Request>(input);
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    if let Ok(name) = text.parse::<Name>() {
        assert_eq!(name.as_str(), text);
    }
    let _ = text.parse::<PublicKey>();
    if let Ok(node) = text.parse::<NodeId>() {
        assert_eq!(node.to_string().parse(), Ok(node));
    }
}

/// The planet's configuration file.
pub(crate) fn settings(input: &[u8]) {
    let lines = [
        "listen = \"[::]:7077\"\n",
        "relay-rate = \"100 Mbit/s\"\n",
        "max-connections = 100\n",
        "log = \"info\"\n",
    ];
    let bytes = edited(lines.concat().as_bytes(), input);
    for text in [input, &bytes] {
        if let Ok(text) = str::from_utf8(text)
            && let Ok(config) = Config::parse(text)
        {
            assert!(
                config.max_connections > 0 && config.relay_rate > 0,
                "{config:?}"
            );
        }
    }
}
