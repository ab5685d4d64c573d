//! Each NAT kind does what it says, measured with real sockets and held against a literal table.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use podmesh_lab::{Lab, Namespace, Nat};

/// What a router shows to the outside.
#[derive(Debug, PartialEq, Eq)]
struct Behaviour {
    /// One public port per inner socket, whatever the destination.
    one_mapping: bool,
    /// The public port is the inner one, in so many of [`SOCKETS`].
    ports_kept: usize,
    /// Another port of a host that was spoken to gets in.
    other_port_gets_in: bool,
    /// A host that was not spoken to gets in.
    stranger_gets_in: bool,
    /// The public port is still the kept one after a peer sent first.
    survives_early_packet: bool,
}

const SOCKETS: usize = 40;

/// N0 needs no row: an open site has no router.
const TABLE: [(Nat, Behaviour); 5] = [
    (Nat::OneToOne, row(true, SOCKETS, true, true, true)),
    (Nat::FullCone, row(true, SOCKETS, true, true, true)),
    (Nat::PortRestricted, row(true, SOCKETS, false, false, true)),
    (Nat::Poisonable, row(true, SOCKETS, false, false, false)),
    (Nat::Symmetric, row(false, 0, false, false, false)),
];

const fn row(
    one_mapping: bool,
    ports_kept: usize,
    other_port_gets_in: bool,
    stranger_gets_in: bool,
    survives_early_packet: bool,
) -> Behaviour {
    Behaviour {
        one_mapping,
        ports_kept,
        other_port_gets_in,
        stranger_gets_in,
        survives_early_packet,
    }
}

#[test]
fn every_router_translates_and_filters_as_its_kind_says() {
    for (nat, expected) in TABLE {
        assert_eq!(measure(nat), expected, "{nat:?}");
    }
}

#[test]
fn nodes_of_an_open_site_reach_each_other_without_translation() {
    let mut plan = Lab::plan("nat-open");
    plan.site("left");
    plan.site("right");
    plan.node("left-1").at("left");
    plan.node("right-1").at("right");
    let lab = plan.up().unwrap();
    let left = socket(&lab.node("left-1").unwrap().namespace(), 7000);
    let right = socket(&lab.node("right-1").unwrap().namespace(), 7001);
    let right_at = SocketAddr::new(lab.node("right-1").unwrap().public_address().into(), 7001);
    left.send_to(b"hello", right_at).unwrap();
    let from = receive(&right).expect("the packet arrives");
    assert_eq!(
        from,
        SocketAddr::new(lab.node("left-1").unwrap().public_address().into(), 7000)
    );
}

fn measure(nat: Nat) -> Behaviour {
    let mut plan = Lab::plan(&format!("nat-{}", nat.label()));
    plan.site("inside").nat(nat);
    plan.site("outside");
    plan.node("inner").at("inside");
    plan.node("peer-1").at("outside");
    plan.node("peer-2").at("outside");
    let lab = plan.up().unwrap();
    let inner = lab.node("inner").unwrap().namespace();
    let public = lab.node("inner").unwrap().public_address();
    let peers = [lab.node("peer-1").unwrap(), lab.node("peer-2").unwrap()];
    let listeners: Vec<(SocketAddr, UdpSocket)> = peers
        .iter()
        .flat_map(|peer| [5000, 5001].map(|port| (*peer, port)))
        .map(|(peer, port)| {
            let address = SocketAddr::new(peer.public_address().into(), port);
            (address, socket(&peer.namespace(), port))
        })
        .collect();
    let (one_mapping, ports_kept) = mappings(&inner, public, &listeners);
    let (other_port_gets_in, stranger_gets_in) = filter(&inner, &listeners);
    let survives_early_packet = early_packet(&inner, public, &listeners);
    Behaviour {
        one_mapping,
        ports_kept,
        other_port_gets_in,
        stranger_gets_in,
        survives_early_packet,
    }
}

/// Forty sockets send to four destinations each.
fn mappings(
    inner: &Namespace,
    public: Ipv4Addr,
    listeners: &[(SocketAddr, UdpSocket)],
) -> (bool, usize) {
    let (mut single, mut kept) = (0, 0);
    for number in 0..SOCKETS as u16 {
        let port = 20_000 + number;
        let socket = socket(inner, port);
        let seen: BTreeSet<SocketAddr> = listeners
            .iter()
            .map(|(address, listener)| {
                socket.send_to(b"hello", address).unwrap();
                receive(listener).expect("an outgoing packet arrives")
            })
            .collect();
        assert!(
            seen.iter().all(|from| from.ip() == IpAddr::from(public)),
            "{seen:?}"
        );
        single += usize::from(seen.len() == 1);
        kept += usize::from(seen.iter().all(|from| from.port() == port));
    }
    assert!(
        single == 0 || single == SOCKETS,
        "{single} of {SOCKETS} sockets have one mapping"
    );
    (single == SOCKETS, kept)
}

/// The inner socket speaks to the first destination; who else may answer?
fn filter(inner: &Namespace, listeners: &[(SocketAddr, UdpSocket)]) -> (bool, bool) {
    let socket = socket(inner, 21_000);
    let [(first, at_first), (_, same_host), (_, stranger), _] = listeners else {
        panic!("four listeners")
    };
    socket.send_to(b"hello", first).unwrap();
    let mapped = receive(at_first).expect("an outgoing packet arrives");
    at_first.send_to(b"answer", mapped).unwrap();
    assert_eq!(receive(&socket), Some(*first), "an answer gets in");
    same_host.send_to(b"knock", mapped).unwrap();
    let other_port = receive(&socket).is_some();
    stranger.send_to(b"knock", mapped).unwrap();
    (other_port, receive(&socket).is_some())
}

/// A peer knocks at the port that the inner socket would get, then the inner socket speaks.
fn early_packet(
    inner: &Namespace,
    public: Ipv4Addr,
    listeners: &[(SocketAddr, UdpSocket)],
) -> bool {
    let port = 22_000;
    let socket = socket(inner, port);
    let [.., (peer, at_peer)] = listeners else {
        panic!("four listeners")
    };
    at_peer
        .send_to(b"too early", SocketAddr::new(public.into(), port))
        .unwrap();
    thread::sleep(Duration::from_millis(20));
    socket.send_to(b"hello", peer).unwrap();
    receive(at_peer).expect("an outgoing packet arrives").port() == port
}

fn socket(namespace: &Namespace, port: u16) -> UdpSocket {
    let socket = namespace
        .inside(|| UdpSocket::bind(("0.0.0.0", port)))
        .unwrap()
        .unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(150)))
        .unwrap();
    socket
}

/// The sender of the next packet, if one comes.
fn receive(socket: &UdpSocket) -> Option<SocketAddr> {
    // The first error may be a report that an earlier packet was refused.
    (0..2)
        .find_map(|_| socket.recv_from(&mut [0; 64]).ok())
        .map(|(_, from)| from)
}
