//! Moving packets takes no memory from the allocator once the batches exist.
#![allow(
    unsafe_code,
    reason = "an allocator that counts is unsafe by its interface"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{SocketAddr, UdpSocket as StdSocket};
use std::time::{Duration, Instant};

use podmesh_kernel::tun::{Offloads, TunBatch, TunDevice};
use podmesh_kernel::udp::{HopLimit, Options, ReceiveBatch, SendBatch, UdpSocket};
use podmesh_kernel::wait::Waiter;

use crate::sandbox::{ip, isolated};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: hands everything to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Runs `work` and says how often this thread allocated meanwhile.
fn count(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.with(Cell::get);
    work();
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn moving_packets_does_not_allocate() {
    isolated(|| {
        assert_eq!(count(|| drop(vec![1, 2, 3])), 1);
        let device = TunDevice::open("mesh0", 1, Offloads::default()).expect("a device");
        ip("link set mesh0 up");
        ip("addr add 10.77.0.1/16 dev mesh0");
        let queue = &device.queues()[0];
        let source = StdSocket::bind("10.77.0.1:0").expect("a socket");
        let (a, b) = (socket(), socket());
        let to = b.local_addr().expect("an address");
        let (mut tun, mut received, mut sent) = (
            TunBatch::new(64, 1500),
            ReceiveBatch::new(64, 2048),
            SendBatch::new(1 << 17),
        );
        let mut waiter = Waiter::new().expect("a waiter");
        waiter.watch(&b);
        let inside = SocketAddr::from(([10, 77, 3, 3], 3));
        let start = Instant::now();
        let mut moved = 0;
        let limit = Some(HopLimit {
            ttl: 64,
            strict: false,
        });
        let mut round = || {
            for _ in 0..64 {
                source
                    .send_to(&[7; 1000], inside)
                    .expect("a packet into the tunnel");
            }
            queue.read_batch(&mut tun).expect("a readable queue");
            for packet in tun.packets() {
                let write = |space: &mut [u8]| {
                    space.copy_from_slice(packet.bytes);
                    Some(packet.bytes.len())
                };
                sent.push_with(to, limit, packet.bytes.len(), write)
                    .expect("room");
            }
            moved += a.send_batch(&mut sent).sent;
            waiter.wait(Some(Duration::from_secs(1))).expect("a wait");
            b.receive_batch(&mut received).expect("a receive");
            let packets = received.datagrams().map(|datagram| datagram.bytes);
            queue.write_batch(packets).expect("a writable queue");
        };
        round();
        assert_eq!(count(|| (0..50).for_each(|_| round())), 0);
        println!("{moved} packets in {:?}", start.elapsed());
        assert!(moved >= 51 * 60, "{moved}");
    });
}

fn socket() -> UdpSocket {
    let address: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    UdpSocket::bind(address, &Options::default()).expect("a socket")
}
