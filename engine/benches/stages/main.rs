//! What the stages of the fast half cost: `cargo bench -p podmesh-engine`.

mod pair;

use divan::Bencher;
use divan::counter::BytesCount;
use ipnet::{IpNet, Ipv4Net};
use podmesh_engine::prefix_table::PrefixTable;
use podmesh_engine::tunnel::TunnelKind;

use pair::{HEADERS, Pair, SEGMENT, as_super, super_packet};

fn main() {
    divan::main();
}

const SEGMENTS: u16 = 45;

/// A super-packet in, a run of datagrams out.
#[divan::bench(args = [0, 10, 1_000, 10_000])]
fn outbound(bencher: Bencher<'_, '_>, others: u32) {
    let mut pair = Pair::new(others);
    let mut packet = super_packet(SEGMENTS);
    bencher
        .counter(BytesCount::new(packet.len()))
        .bench_local(|| pair.seal(&mut [as_super(&mut packet)]));
}

/// The same and back: what is received can be opened only once.
#[divan::bench(args = [0, 10, 1_000, 10_000])]
fn outbound_and_inbound(bencher: Bencher<'_, '_>, others: u32) {
    let mut pair = Pair::new(others);
    let mut packet = super_packet(SEGMENTS);
    let expected = HEADERS + usize::from(SEGMENT) * usize::from(SEGMENTS);
    bencher
        .counter(BytesCount::new(packet.len()))
        .bench_local(|| {
            pair.seal(&mut [as_super(&mut packet)]);
            assert_eq!(pair.open(), expected);
        });
}

/// The same with each kind of tunnel.
#[divan::bench(args = ["boringtun", "batched", "batched-wide"])]
fn there_and_back_by_tunnel(bencher: Bencher<'_, '_>, kind: &str) {
    let kind = match kind {
        "boringtun" => TunnelKind::Boringtun,
        kind => TunnelKind::Batched {
            wide: kind == "batched-wide",
        },
    };
    let mut pair = Pair::of_kind(kind, 10);
    let mut packet = super_packet(SEGMENTS);
    bencher
        .counter(BytesCount::new(packet.len()))
        .bench_local(|| {
            pair.seal(&mut [as_super(&mut packet)]);
            pair.open()
        });
}

/// Thirty-two small packets.
#[divan::bench]
fn small_packets_there_and_back(bencher: Bencher<'_, '_>) {
    let mut pair = Pair::new(10);
    let mut packet = super_packet(1);
    packet.truncate(HEADERS + 12);
    packet[2..4].copy_from_slice(&64_u16.to_be_bytes());
    let mut packets: Vec<Vec<u8>> = vec![packet; 32];
    bencher.counter(32_usize).bench_local(|| {
        let mut each = packets.iter_mut();
        let mut batch: [_; 32] =
            std::array::from_fn(|_| each.next().expect("thirty-two").as_mut_slice().into());
        pair.seal(&mut batch);
        pair.open()
    });
}

/// The owner of an address among so many prefixes.
#[divan::bench(args = [10, 1_000, 10_000, 100_000])]
fn lookup(bencher: Bencher<'_, '_>, prefixes: u32) {
    let net = |number: u32| {
        let address = 0x0a00_0000 | (number << 6);
        IpNet::V4(Ipv4Net::new(address.into(), 26).expect("a prefix"))
    };
    let table = PrefixTable::new((0..prefixes).map(|number| (net(number), number)));
    let mut number = 0_u32;
    bencher.bench_local(|| {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let address: std::net::Ipv4Addr = (0x0a00_0000 | ((number % prefixes) << 6) | 9).into();
        table.lookup(address.into())
    });
}
