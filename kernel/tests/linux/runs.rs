//! Runs of datagrams, and super-packets of the TUN.

use std::net::{SocketAddr, UdpSocket as StdSocket};
use std::os::fd::AsFd as _;
use std::time::Duration;

use podmesh_kernel::tun::{Offloads, TunBatch, TunDevice};
use podmesh_kernel::udp::{
    Blocked, MAX_RUN, MAX_SEGMENTS, Options, ReceiveBatch, SendRun, UdpSocket,
};
use podmesh_kernel::wait::Waiter;

use crate::sandbox::{ip, isolated, tc};

fn bind(address: &str, segment: bool, merge: bool) -> UdpSocket {
    let options = Options {
        segment,
        merge,
        ..Options::default()
    };
    let address: SocketAddr = address.parse().expect("an address");
    UdpSocket::bind(address, &options).expect("a socket")
}

/// Pieces as they arrive until there is nothing more: their bytes, stride and mark.
fn pieces(socket: &UdpSocket) -> Vec<(Vec<u8>, usize, u8)> {
    let mut waiter = Waiter::new().expect("a waiter");
    waiter.watch(socket);
    waiter.wait(Some(Duration::from_secs(5))).expect("a wait");
    let mut batch = ReceiveBatch::new(16, 65_535);
    let mut all = Vec::new();
    while socket.receive_batch(&mut batch).expect("a receive") > 0 {
        let piece = |datagram: podmesh_kernel::udp::Datagram<'_>| {
            (datagram.bytes.to_vec(), datagram.segment, datagram.ecn)
        };
        all.extend(batch.datagrams().map(piece));
    }
    all
}

#[test]
fn a_run_arrives_datagram_by_datagram_whoever_cuts_and_joins_it() {
    isolated(|| {
        let payload: Vec<u8> = (0..40_500_u32).map(|n| n.to_le_bytes()[0]).collect();
        for (v6, segment, merge) in [
            (false, true, true),
            (false, true, false),
            (false, false, true),
            (true, true, true),
            (true, false, false),
        ] {
            let any = if v6 { "[::1]:0" } else { "127.0.0.1:0" };
            let (sender, receiver) = (bind(any, segment, false), bind(any, true, merge));
            assert_eq!((sender.segments(), receiver.merges()), (segment, merge));
            let run = SendRun {
                to: receiver.local_addr().expect("an address"),
                bytes: &payload,
                segment: 1_000,
                ecn: 2,
            };
            let short = SendRun {
                bytes: b"alone",
                segment: 5,
                ecn: 0,
                ..run
            };
            assert_eq!((run.count(), short.count()), (41, 1));
            assert_eq!(sender.send_runs([run, short, run]).counts.sent, 83);
            let pieces = pieces(&receiver);
            let datagrams: Vec<(Vec<u8>, u8)> = pieces
                .iter()
                .flat_map(|(bytes, segment, ecn)| {
                    bytes.chunks(*segment).map(|bytes| (bytes.to_vec(), *ecn))
                })
                .collect();
            let mut wanted: Vec<_> = payload
                .chunks(1_000)
                .map(|bytes| (bytes.to_vec(), 2))
                .collect();
            wanted.push((b"alone".to_vec(), 0));
            wanted.extend_from_within(..41);
            assert!(datagrams == wanted, "{v6} {segment} {merge}");
            // What was sent in one piece stays one on a loopback device.
            let whole = segment && merge;
            assert_eq!(pieces.len(), if whole { 3 } else { 83 });
        }
    });
}

#[test]
fn the_longest_run_is_taken_and_one_that_is_too_long_goes_singly() {
    isolated(|| {
        let (sender, receiver) = (
            bind("127.0.0.1:0", true, false),
            bind("127.0.0.1:0", true, true),
        );
        let to = receiver.local_addr().expect("an address");
        let bytes = vec![7; MAX_RUN + 1];
        let run = |length: usize, segment| SendRun {
            to,
            bytes: &bytes[..length],
            segment,
            ecn: 0,
        };
        let most = run(MAX_SEGMENTS * 1_000, 1_000);
        let sent = sender.send_runs([most, run(MAX_RUN, 1_100)]);
        assert_eq!((sent.counts.sent, sent.blocked), (64 + 60, None));
        let counts = sender
            .send_runs([run(MAX_RUN + 1, 1_100), run(10, 10)])
            .counts;
        assert_eq!((counts.sent, counts.lost()), (61, 0), "{counts:?}");
        assert!(
            sender.segments(),
            "a run that can't be says nothing of the others"
        );
    });
}

/// A link on which nothing gets lost, but which is slow.
fn slow_link() {
    ip("link add near type veth peer name far");
    ip("link set near up");
    ip("link set far up");
    ip("addr add 10.78.0.1/24 dev near");
    ip("neigh add 10.78.0.2 lladdr 02:00:00:00:00:02 dev near");
    tc("qdisc add dev near root tbf rate 80mbit burst 20kb limit 20mb");
}

#[test]
fn whoever_finds_no_room_goes_on_where_it_stopped_when_there_is_some() {
    isolated(|| {
        slow_link();
        for segment in [true, false] {
            let options = Options {
                segment,
                send_buffer: 64 << 10,
                ..Options::default()
            };
            let any = "10.78.0.1:0".parse().expect("an address");
            let sender = UdpSocket::bind(any, &options).expect("a socket");
            let bytes = vec![1; 40_000];
            let run = SendRun {
                to: "10.78.0.2:9".parse().expect("an address"),
                bytes: &bytes,
                segment: 1_000,
                ecn: 0,
            };
            let runs = [run; 20];
            let mut waiter = Waiter::new().expect("a waiter");
            waiter.watch_for_room(&sender);
            let (mut at, mut sent, mut stops) = (Blocked::default(), 0, 0);
            loop {
                let rest = runs.iter().enumerate().skip(at.run).map(|(number, run)| {
                    let skip = if number == at.run { at.bytes } else { 0 };
                    SendRun {
                        bytes: &run.bytes[skip..],
                        ..*run
                    }
                });
                let outcome = sender.send_runs(rest);
                assert_eq!(outcome.counts.lost(), 0, "{outcome:?}");
                sent += outcome.counts.sent;
                let Some(blocked) = outcome.blocked else {
                    break;
                };
                let skipped = if blocked.run == 0 { at.bytes } else { 0 };
                at = Blocked {
                    run: at.run + blocked.run,
                    bytes: skipped + blocked.bytes,
                };
                stops += 1;
                waiter.wait(Some(Duration::from_secs(5))).expect("a wait");
            }
            assert_eq!(sent, 800, "with UDP_SEGMENT: {segment}");
            assert!(stops > 3, "{stops} stops");
        }
    });
}

#[test]
fn a_socket_that_is_taken_over_has_what_its_new_owner_wants() {
    isolated(|| {
        let (sender, receiver) = (
            bind("127.0.0.1:0", true, false),
            bind("127.0.0.1:0", true, true),
        );
        let kept = receiver.as_fd().try_clone_to_owned().expect("a copy");
        let options = Options {
            merge: false,
            segment: false,
            ..Options::default()
        };
        let heir = UdpSocket::adopt(kept, &options).expect("a socket");
        assert!(!heir.merges() && !heir.segments());
        let bytes = vec![3; 20_000];
        let run = SendRun {
            to: heir.local_addr().expect("an address"),
            bytes: &bytes,
            segment: 1_000,
            ecn: 0,
        };
        assert_eq!(sender.send_runs([run]).counts.sent, 20);
        let pieces = pieces(&heir);
        assert_eq!(pieces.len(), 20);
        assert!(pieces.iter().all(|(bytes, ..)| bytes.len() == 1_000));
    });
}

#[test]
fn nobody_can_tell_an_ordinary_socket_what_the_path_carries() {
    isolated(|| {
        slow_link();
        let sender = bind("10.78.0.1:7000", true, false);
        let bytes = vec![1; 14_000];
        let run = SendRun {
            to: "10.78.0.2:9".parse().expect("an address"),
            bytes: &bytes,
            segment: 1_400,
            ecn: 0,
        };
        // What the kernel believes of the path once somebody has said so.
        ip("route add 10.78.0.2/32 dev near src 10.78.0.1 mtu 600");
        let outcome = sender.send_runs([run]);
        assert_eq!((outcome.counts.sent, outcome.counts.lost()), (10, 0));
        let text = std::fs::read_to_string("/proc/net/snmp").expect("counters");
        let values = text.lines().filter(|line| line.starts_with("Ip:"));
        let [names, values] = values.collect::<Vec<_>>()[..] else {
            panic!("{text}")
        };
        let mut pairs = names.split(' ').zip(values.split(' '));
        let (_, made) = pairs
            .find(|(name, _)| *name == "FragCreates")
            .expect("a counter");
        assert_eq!(made, "0", "fragments");
    });
}

#[test]
fn a_tun_with_offloads_gives_and_takes_super_packets() {
    isolated(|| {
        let device = TunDevice::open("mesh0", 1, Offloads::ALL).expect("a device");
        let queue = &device.queues()[0];
        assert_eq!(queue.offloads(), Offloads::ALL);
        ip("link set mesh0 up mtu 1420");
        ip("addr add 10.77.0.1/16 dev mesh0");
        let sender = bind("10.77.0.1:7000", true, false);
        let bytes = vec![9; 30_000];
        let run = SendRun {
            to: "10.77.3.3:9".parse().expect("an address"),
            bytes: &bytes,
            segment: 1_000,
            ecn: 0,
        };
        assert_eq!(sender.send_runs([run]).counts.sent, 30);
        let mut batch = TunBatch::new(8, 65_535);
        let mut headers = Vec::new();
        let mut packet = Vec::new();
        while queue.read_batch(&mut batch).expect("a readable queue") > 0 {
            for read in batch.packets().filter(|read| read.bytes[0] >> 4 == 4) {
                headers.push(read.header);
                packet = read.bytes.to_vec();
            }
        }
        let [header] = headers.as_slice() else {
            panic!("{headers:?}");
        };
        assert_eq!((header.gso_type, header.segment_size), (5, 1_000));
        assert_eq!((header.checksum_start, header.checksum_offset), (20, 6));
        assert_eq!(packet.len(), 20 + 8 + 30_000);
        // Back in one piece, as if from a peer: thirty datagrams for a socket of the host.
        let receiver = StdSocket::bind("10.77.0.1:9").expect("a socket");
        receiver
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("a timeout");
        packet[12..20].copy_from_slice(&[10, 77, 3, 3, 10, 77, 0, 1]);
        let mut counts = podmesh_kernel::tun::WriteCounts::default();
        let parts = [std::io::IoSlice::new(&packet)];
        queue
            .write_gathered(*header, &parts, &mut counts)
            .expect("a writable queue");
        assert_eq!(counts.written, 1, "{counts:?}");
        let mut buffer = [0; 2_000];
        for _ in 0..30 {
            assert_eq!(receiver.recv(&mut buffer).expect("a datagram"), 1_000);
        }
    });
}
