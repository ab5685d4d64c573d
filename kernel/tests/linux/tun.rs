use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

use podmesh_kernel::tun::{Offloads, TunBatch, TunDevice, TunError, TunIoError, TunQueue};
use podmesh_kernel::wait::Waiter;

use crate::sandbox::{ip, isolated};

/// An IPv4 UDP packet from 10.77.0.9:9 with correct checksums left out where they may be.
fn udp_packet(to: [u8; 4], port: u16, payload: &[u8]) -> Vec<u8> {
    let udp_length = u16::try_from(8 + payload.len()).expect("a short payload");
    let mut packet = vec![0x45, 0];
    packet.extend((20 + udp_length).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 77, 0, 9]);
    packet.extend(to);
    let sum: u32 = packet
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("a folded sum");
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(9_u16.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend(udp_length.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

/// All IPv4 packets that wait in the queues.
fn drain(queues: &[TunQueue]) -> Vec<Vec<u8>> {
    let mut batch = TunBatch::new(16, 1500);
    let mut packets = Vec::new();
    for queue in queues {
        while queue.read_batch(&mut batch).expect("a readable queue") > 0 {
            packets.extend(batch.packets().map(|packet| packet.bytes.to_vec()));
        }
    }
    packets.retain(|packet| packet[0] >> 4 == 4);
    packets
}

/// The kernel lets packets into a device that had no queue only once its link watcher has run.
fn wait_until_it_carries(device: &TunDevice) {
    let start = Instant::now();
    let socket = UdpSocket::bind("10.77.0.1:0").expect("a socket");
    while start.elapsed() < Duration::from_secs(5) {
        socket
            .send_to(b"x", "10.77.5.5:9999")
            .expect("a packet on its way");
        if !drain(device.queues()).is_empty() {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("the reopened device carries nothing");
}

fn up(name: &str) {
    ip(&format!("link set {name} up"));
    ip(&format!("addr replace 10.77.0.1/16 dev {name}"));
}

#[test]
fn the_device_outlives_its_queues_and_keeps_index_and_addresses() {
    isolated(|| {
        let device = TunDevice::open("mesh0", 4, Offloads::default()).expect("a new device");
        assert_eq!(device.queues().len(), 4);
        let index = device.index();
        up("mesh0");
        drop(device);
        assert!(ip("-4 addr show dev mesh0").contains("10.77.0.1/16"));
        for queues in [1, 3, 8] {
            let device = TunDevice::open("mesh0", queues, Offloads::default())
                .expect("the device of before");
            assert_eq!((device.index(), device.queues().len()), (index, queues));
        }
    });
}

#[test]
fn no_orphan_queue_swallows_packets_after_a_restart_with_fewer() {
    isolated(|| {
        drop(TunDevice::open("mesh0", 4, Offloads::default()).expect("a new device"));
        up("mesh0");
        let device =
            TunDevice::open("mesh0", 1, Offloads::default()).expect("the device of before");
        wait_until_it_carries(&device);
        // Many flows, so that the kernel would use each queue it believes in.
        for port in 1..=200 {
            let socket = UdpSocket::bind("10.77.0.1:0").expect("a socket");
            socket
                .send_to(b"x", ("10.77.5.5", port))
                .expect("a packet on its way");
        }
        let mut ports: Vec<u16> = drain(device.queues())
            .iter()
            .map(|packet| u16::from_be_bytes([packet[22], packet[23]]))
            .collect();
        ports.sort_unstable();
        assert_eq!(ports, (1..=200).collect::<Vec<u16>>());
    });
}

#[test]
fn packets_go_both_ways_through_the_kernel() {
    isolated(|| {
        let device = TunDevice::open("mesh0", 2, Offloads::default()).expect("a new device");
        up("mesh0");
        let socket = UdpSocket::bind("10.77.0.1:7000").expect("a socket");
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("a timeout");

        let packets: Vec<_> = (0..100_u8)
            .map(|number| udp_packet([10, 77, 0, 1], 7000, &[number]))
            .collect();
        let counts = device.queues()[0]
            .write_batch(&packets)
            .expect("a writable queue");
        assert_eq!(counts.written, 100);
        for number in 0..100 {
            let mut payload = [0; 8];
            let (length, from) = socket
                .recv_from(&mut payload)
                .expect("a packet from the tunnel");
            assert_eq!(
                (&payload[..length], from.to_string().as_str()),
                (&[number][..], "10.77.0.9:9")
            );
        }

        socket
            .send_to(b"outbound", "10.77.200.1:5")
            .expect("a packet into the tunnel");
        let out = drain(device.queues());
        assert_eq!(out.len(), 1);
        assert_eq!(&out[0][12..20], [10, 77, 0, 1, 10, 77, 200, 1]);
        assert_eq!(&out[0][28..], b"outbound");
    });
}

#[test]
fn a_bad_packet_and_a_device_that_is_down_are_counted_and_nothing_more() {
    isolated(|| {
        let device = TunDevice::open("mesh0", 1, Offloads::default()).expect("a new device");
        let queue = &device.queues()[0];
        let good = udp_packet([10, 77, 0, 1], 7000, b"x");
        let counts = queue.write_batch([&good, &good]).expect("no fatal error");
        assert_eq!((counts.written, counts.device_down), (0, 2));
        up("mesh0");
        let counts = queue
            .write_batch([&good[..], b"\xff no IP", &good])
            .expect("no fatal error");
        assert_eq!(
            (counts.written, counts.invalid, counts.device_down),
            (2, 1, 0)
        );
    });
}

#[test]
fn a_deleted_device_is_noticed_by_waiting_reading_and_writing() {
    isolated(|| {
        let device = TunDevice::open("mesh0", 2, Offloads::default()).expect("a new device");
        up("mesh0");
        let mut waiter = Waiter::new().expect("a waiter");
        let source = waiter.watch(&device.queues()[1]);
        drain(device.queues());
        waiter.wait(Some(Duration::from_millis(1))).expect("a wait");
        assert!(!waiter.has_failed(source));
        ip("link del mesh0");
        waiter.wait(Some(Duration::from_secs(5))).expect("a wait");
        assert!(waiter.has_failed(source));
        for queue in device.queues() {
            let read = queue.read_batch(&mut TunBatch::new(1, 1500));
            assert!(matches!(read, Err(TunIoError::DeviceLost)), "{read:?}");
            let written = queue.write_batch([udp_packet([10, 77, 0, 1], 1, b"x")]);
            assert!(
                matches!(written, Err(TunIoError::DeviceLost)),
                "{written:?}"
            );
        }
        // And it can be made again while the dead queues are still open.
        assert_eq!(
            TunDevice::open("mesh0", 2, Offloads::default())
                .expect("a new device")
                .queues()
                .len(),
            2
        );
    });
}

#[test]
fn a_name_that_is_taken_says_by_what() {
    isolated(|| {
        ip("tuntap add dev single mode tun");
        ip("tuntap add dev tap0 mode tap multi_queue");
        ip("link add veth1 type veth peer name veth2");
        for (name, kind) in [
            ("single", "single queue"),
            ("tap0", "TAP"),
            ("veth1", "veth"),
            ("lo", "plain"),
        ] {
            match TunDevice::open(name, 1, Offloads::default()) {
                Err(error @ TunError::OtherKind { .. }) => {
                    let words = error.to_string();
                    assert!(words.contains(kind), "{words}");
                    // Whoever has it may need it: the way that harms nobody comes first.
                    let (key, removal) = (words.find("set `device`"), words.find("ip link del"));
                    assert!(key.is_some() && key < removal, "{words}");
                }
                other => panic!("{name}: {other:?}"),
            }
        }
        let held = TunDevice::open("mesh0", 3, Offloads::default()).expect("a new device");
        let second = TunDevice::open("mesh0", 1, Offloads::default());
        assert!(
            matches!(second, Err(TunError::InUse { queues: 3, .. })),
            "{second:?}"
        );
        drop(held);
    });
}

#[test]
fn a_packet_longer_than_its_slot_is_dropped_and_counted() {
    isolated(|| {
        let device = TunDevice::open("mesh0", 1, Offloads::default()).expect("a new device");
        up("mesh0");
        let socket = UdpSocket::bind("10.77.0.1:0").expect("a socket");
        drain(device.queues());
        for length in [72, 73, 10] {
            socket
                .send_to(&vec![1; length], "10.77.5.5:5")
                .expect("a packet on its way");
        }
        let mut batch = TunBatch::new(8, 100);
        assert_eq!(
            device.queues()[0]
                .read_batch(&mut batch)
                .expect("a readable queue"),
            2
        );
        let lengths: Vec<usize> = batch.packets().map(|packet| packet.bytes.len()).collect();
        assert_eq!((lengths, batch.oversized()), (vec![100, 38], 1));
    });
}
