use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::time::Duration;

use podmesh_kernel::udp::{
    HopLimit, Options, ReceiveBatch, SendBatch, SendCounts, UdpSocket, steer_by_receiver,
};
use podmesh_kernel::wait::Waiter;

use crate::sandbox::{ip, isolated};

fn bind(address: &str) -> UdpSocket {
    let address: SocketAddr = address.parse().expect("an address");
    UdpSocket::bind(address, &Options::default()).expect("a socket")
}

/// Waits for a datagram and returns all that are there.
fn receive(socket: &UdpSocket) -> Vec<(SocketAddr, Vec<u8>)> {
    let mut waiter = Waiter::new().expect("a waiter");
    waiter.watch(socket);
    waiter.wait(Some(Duration::from_secs(5))).expect("a wait");
    let mut batch = ReceiveBatch::new(64, 2048);
    let mut all = Vec::new();
    while socket.receive_batch(&mut batch).expect("a receive") > 0 {
        all.extend(
            batch
                .datagrams()
                .map(|datagram| (datagram.from, datagram.bytes.to_vec())),
        );
    }
    all
}

#[test]
fn one_bad_destination_does_not_stop_the_rest_of_a_batch() {
    isolated(|| {
        ip("route add unreachable 192.0.2.0/24");
        ip("route add prohibit 192.0.3.0/24");
        let (sender, receiver) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        let to = receiver.local_addr().expect("an address");
        let mut batch = SendBatch::new(1 << 17);
        let far = |text: &str| text.parse::<SocketAddr>().expect("an address");
        batch.push(far("192.0.2.1:9"), b"no route").expect("room");
        batch.push(to, b"1").expect("room");
        batch.push(far("192.0.3.1:9"), b"forbidden").expect("room");
        batch.push(far("192.0.2.1:9"), b"no route").expect("room");
        batch.push(to, b"2").expect("room");
        batch.push(to, &[0; 65_530]).expect("room");
        batch.push(far("[::1]:9"), b"other family").expect("room");
        batch.push(to, b"3").expect("room");
        batch
            .push(far("198.51.100.1:9"), b"no route")
            .expect("room");
        let counts = sender.send_batch(&mut batch);
        assert!(batch.is_empty());
        assert_eq!(
            (counts.sent, counts.unreachable, counts.refused),
            (3, 3, 1),
            "{counts:?}"
        );
        assert_eq!(
            (counts.too_long, counts.other, counts.lost()),
            (1, 1, 6),
            "{counts:?}"
        );
        let payloads: Vec<_> = receive(&receiver)
            .into_iter()
            .map(|(_, bytes)| bytes)
            .collect();
        assert_eq!(payloads, [b"1", b"2", b"3"]);
    });
}

#[test]
fn a_full_batch_arrives_in_order_with_its_sender() {
    isolated(|| {
        for (address, loopback) in [("127.0.0.1:0", true), ("[::1]:0", false)] {
            let (sender, receiver) = (bind(address), bind(address));
            let to = receiver.local_addr().expect("an address");
            assert_eq!(to.is_ipv4(), loopback);
            let mut batch = SendBatch::new(64 * 1400);
            for round in 0..3_u8 {
                for number in 0..64 {
                    batch
                        .push(to, &[[round, number]; 700].concat())
                        .expect("room");
                }
                assert!(batch.push(to, b"").is_err());
                let sent = SendCounts {
                    sent: 64,
                    ..SendCounts::default()
                };
                assert_eq!(sender.send_batch(&mut batch), sent);
                let got = receive(&receiver);
                assert_eq!(got.len(), 64);
                for (number, (from, bytes)) in (0..64).zip(got) {
                    assert_eq!(from, sender.local_addr().expect("an address"));
                    assert_eq!(bytes, [[round, number]; 700].concat());
                }
            }
        }
    });
}

#[test]
fn a_datagram_longer_than_its_slot_is_dropped_and_counted() {
    isolated(|| {
        let (sender, receiver) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        let to = receiver.local_addr().expect("an address");
        let mut batch = SendBatch::new(1000);
        for length in [10, 101, 100] {
            batch.push(to, &vec![7; length]).expect("room");
        }
        assert_eq!(sender.send_batch(&mut batch).sent, 3);
        let mut received = ReceiveBatch::new(64, 100);
        assert_eq!(receiver.receive_batch(&mut received).expect("a receive"), 3);
        let lengths: Vec<_> = received
            .datagrams()
            .map(|datagram| datagram.bytes.len())
            .collect();
        assert_eq!((lengths, received.oversized()), (vec![10, 100], 1));
    });
}

#[test]
fn transport_messages_reach_the_socket_that_their_receiver_index_names() {
    isolated(|| {
        for any in [
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        ] {
            let options = Options {
                reuse_port: true,
                ..Options::default()
            };
            let mut sockets = vec![UdpSocket::bind_any(any, 0, &options).expect("a socket")];
            let port = sockets[0].local_addr().expect("an address").port();
            for _ in 1..3 {
                sockets.push(UdpSocket::bind_any(any, port, &options).expect("a socket"));
            }
            steer_by_receiver(&sockets).expect("a program");
            let loopback: IpAddr = if any.is_ipv4() {
                Ipv4Addr::LOCALHOST.into()
            } else {
                Ipv6Addr::LOCALHOST.into()
            };
            let to = SocketAddr::new(loopback, port);
            let mut expected = [Vec::new(), Vec::new(), Vec::new()];
            for first in [1, 2, 3, 4, 0x20, 0x30, 0x40, 0xff] {
                for shard in [0, 1, 2, 3, 100, 255_u8] {
                    // Many source ports and low index bytes, which must not matter.
                    let sender = bind(&SocketAddr::new(loopback, 0).to_string());
                    let datagram = [first, 0, 0, 0, shard.wrapping_mul(7), shard, 9, 9, 1, 1];
                    let mut batch = SendBatch::new(100);
                    batch.push(to, &datagram).expect("room");
                    batch.push(to, &datagram[..5]).expect("room");
                    assert_eq!(sender.send_batch(&mut batch).sent, 2);
                    let index = if first == 4 {
                        usize::from(shard) % 3
                    } else {
                        0
                    };
                    expected[index].push(datagram.to_vec());
                    expected[0].push(datagram[..5].to_vec());
                }
            }
            for (socket, expected) in sockets.iter().zip(expected) {
                let got: Vec<_> = receive(socket)
                    .into_iter()
                    .map(|(_, bytes)| bytes)
                    .collect();
                assert_eq!(got, expected);
            }
        }
    });
}

#[test]
fn a_socket_for_one_endpoint_hears_nobody_else() {
    isolated(|| {
        ip("addr add 127.0.0.2/8 dev lo");
        ip("addr add 2001:db8::2/64 dev lo nodad");
        for (home, elsewhere) in [("127.0.0.1", "127.0.0.2"), ("::1", "2001:db8::2")] {
            let at = |text: &str, port| SocketAddr::new(text.parse().expect("an address"), port);
            let only = bind(&at(home, 0).to_string());
            let endpoint = only.local_addr().expect("an address");
            let options = Options {
                only_from: Some(endpoint),
                ..Options::default()
            };
            let socket = UdpSocket::bind_any(endpoint.ip(), 0, &options).expect("a socket");
            let port = socket.local_addr().expect("an address").port();
            // Another port, another address, and both.
            let others = [
                at(home, 0),
                at(elsewhere, endpoint.port()),
                at(elsewhere, 0),
            ];
            let mut batch = SendBatch::new(100);
            for from in others {
                let to = at(home, port);
                batch.push(to, b"stranger").expect("room");
                let sender = bind(&from.to_string());
                assert_eq!(sender.send_batch(&mut batch).sent, 1);
            }
            batch.push(at(home, port), b"planet").expect("room");
            assert_eq!(only.send_batch(&mut batch).sent, 1);
            assert_eq!(receive(&socket), [(endpoint, b"planet".to_vec())]);
            // It sends like any other.
            batch.push(endpoint, b"node").expect("room");
            assert_eq!(socket.send_batch(&mut batch).sent, 1);
            assert_eq!(receive(&only)[0].1, b"node");
        }
    });
}

#[test]
fn the_mark_the_buffers_and_the_hop_limit_reach_the_kernel() {
    isolated(|| {
        // Only marked packets find a way; one hop is too few for a destination behind a router.
        ip("link add up0 type veth peer name gw0");
        ip("link set up0 up");
        ip("link set gw0 up");
        ip("addr add 192.0.2.1/24 dev up0");
        ip("rule add pref 10 fwmark 0x101c/0x101c lookup 50");
        ip("rule add pref 11 to 198.51.100.0/24 unreachable");
        ip("route add default via 192.0.2.2 dev up0 table 50");
        ip("neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev up0");
        let unmarked = bind("0.0.0.0:0");
        let marked = Options {
            mark: Some(0x101c),
            ..Options::default()
        };
        let marked = UdpSocket::bind_any(Ipv4Addr::UNSPECIFIED.into(), 0, &marked).expect("it");
        let to: SocketAddr = "198.51.100.1:9".parse().expect("an address");
        let mut batch = SendBatch::new(100);
        batch.push(to, b"x").expect("room");
        assert_eq!(unmarked.send_batch(&mut batch).unreachable, 1);
        batch.push(to, b"x").expect("room");
        assert_eq!(marked.send_batch(&mut batch).sent, 1);

        let capture = PacketSocket::open();
        let ttl = |ttl| HopLimit { ttl, strict: false };
        let next_door = HopLimit {
            ttl: 2,
            strict: true,
        };
        for hop_limit in [None, Some(ttl(3)), Some(ttl(255)), Some(next_door)] {
            let write = |space: &mut [u8]| {
                space[..2].copy_from_slice(b"hi");
                Some(2)
            };
            batch.push_with(to, hop_limit, 10, write).expect("room");
        }
        assert_eq!(marked.send_batch(&mut batch).sent, 4);
        let seen = capture.ipv4_ways();
        // The counter is at 14 of 15: one router may raise it.
        let option = vec![0x44, 4, 5, 0xe0];
        let plain = |ttl| (ttl, false, vec![]);
        let strict = (2, false, option);
        assert_eq!(seen, [plain(64), plain(3), plain(255), strict]);
    });
}

/// Sees all frames of the namespace.
struct PacketSocket(std::os::fd::OwnedFd);

impl PacketSocket {
    #[allow(unsafe_code, reason = "packet sockets have no safe form")]
    fn open() -> Self {
        use std::os::fd::FromRawFd;
        let all = libc::c_int::from(0x0003_u16.to_be());
        // SAFETY: no memory is involved, and the descriptor belongs to nobody else.
        unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, all);
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            Self(std::os::fd::OwnedFd::from_raw_fd(fd))
        }
    }

    /// TTL, DF and options of each IPv4 packet to 198.51.100.1 seen on its way out.
    fn ipv4_ways(self) -> Vec<(u8, bool, Vec<u8>)> {
        use std::io::Read;
        let mut file = std::fs::File::from(self.0);
        let mut seen = Vec::new();
        let mut frame = [0; 2048];
        while let Ok(length) = file.read(&mut frame) {
            let packet = &frame[..length];
            if packet.len() >= 20 && packet[0] >> 4 == 4 && packet[16..20] == [198, 51, 100, 1] {
                let end = usize::from(packet[0] & 0xf) * 4;
                seen.push((packet[8], packet[6] & 0x40 != 0, packet[20..end].to_vec()));
            }
        }
        // Each is seen leaving one end of the veth and entering the other.
        seen.into_iter().step_by(2).collect()
    }
}

#[test]
fn a_socket_is_taken_over_with_what_waits_in_it() {
    isolated(|| {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let options = Options {
                mark: None,
                ..Options::default()
            };
            let first =
                UdpSocket::bind(address.parse().expect("an address"), &options).expect("a socket");
            let at = first.local_addr().expect("an address");
            let sender = std::net::UdpSocket::bind(address).expect("a sender");
            sender.send_to(b"waits", at).expect("sent");
            let descriptor = first.as_fd().try_clone_to_owned().expect("a copy");
            drop(first);
            let heir = UdpSocket::adopt(descriptor, &options).expect("taken over");
            assert_eq!(heir.local_addr().expect("an address"), at);
            let mut batch = ReceiveBatch::new(4, 2_048);
            assert_eq!(heir.receive_batch(&mut batch).expect("received"), 1);
            let bytes: Vec<Vec<u8>> = batch.datagrams().map(|one| one.bytes.to_vec()).collect();
            assert_eq!(bytes, [b"waits".to_vec()]);
        }
    });
}
