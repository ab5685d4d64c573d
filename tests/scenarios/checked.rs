//! A connection that carries as much as it can, every byte of which is checked.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use podmesh_lab::namespace::Namespace;

/// Bytes that are made and checked at once.
const BLOCK: usize = 64 * 1024;

/// Sends without a pause until `end`; whoever receives checks each block.
pub(crate) fn stream(
    title: &str,
    (from, to, target): (&Namespace, &Namespace, IpAddr),
    end: Instant,
    count: &AtomicU64,
) {
    let listener = to.inside(|| TcpListener::bind((target, 0)));
    let listener = listener.unwrap().unwrap();
    let address = listener.local_addr().unwrap();
    let connected = from.inside(|| TcpStream::connect(address)).unwrap();
    let mut outbound = connected.unwrap_or_else(|error| panic!("{title}: {error}"));
    let (mut inbound, _) = listener.accept().unwrap();
    inbound
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    outbound
        .set_write_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut block = vec![0; BLOCK];
            for number in 0.. {
                if Instant::now() >= end {
                    break;
                }
                fill(number, &mut block);
                outbound.write_all(&block).expect("the connection lives");
            }
            outbound.shutdown(Shutdown::Write).expect("an end");
        });
        let (mut block, mut wanted) = (vec![0; BLOCK], vec![0; BLOCK]);
        for number in 0.. {
            let Some(()) = whole(&mut inbound, &mut block) else {
                break;
            };
            fill(number, &mut wanted);
            assert!(block == wanted, "{title}: block {number} was changed");
            count.fetch_add(BLOCK as u64, Ordering::Relaxed);
        }
    });
}

/// A whole block, or the end.
fn whole(from: &mut TcpStream, block: &mut [u8]) -> Option<()> {
    let mut filled = 0;
    while filled < block.len() {
        match from
            .read(&mut block[filled..])
            .expect("the connection lives")
        {
            0 => {
                assert_eq!(filled, 0, "an end within a block");
                return None;
            }
            more => filled += more,
        }
    }
    Some(())
}

/// What belongs into this block: no two are alike (xorshift64*, Vigna 2016).
pub(crate) fn fill(number: u64, block: &mut [u8]) {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for word in block.chunks_exact_mut(8) {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        word.copy_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
}
