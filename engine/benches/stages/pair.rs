//! Two nodes with a session between them, and packets for it, without a slow half.

use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;
use podmesh_engine::drops::Drops;
use podmesh_engine::forwarding::{ForwardingTable, LinkState, PeerIndex, PeerLink};
use podmesh_engine::inbound::{Arrived, InboundBatch, open_batch};
use podmesh_engine::limits;
use podmesh_engine::offload::{ChecksumGap, Cut, Merge, Offload, SegmentKind};
use podmesh_engine::outbound::{InnerPacket, OutboundBatch, seal_batch};
use podmesh_engine::path_id::{PathId, SocketId};
use podmesh_engine::tunnel::{Opened, Tunnel, TunnelKeys, TunnelKind};
use podmesh_proto::key::SecretKey;
use podmesh_proto::time::{Moment, Now, UnixSeconds};

/// Bytes of TCP payload per segment at an MTU of 1,420.
pub(crate) const SEGMENT: u16 = 1_368;
/// Bytes of IPv4 and TCP headers with timestamps.
pub(crate) const HEADERS: usize = 52;

/// One direction: the sender's table and the receiver's.
pub(crate) struct Pair {
    pub(crate) near: ForwardingTable,
    pub(crate) far: ForwardingTable,
    pub(crate) sealed: OutboundBatch,
    pub(crate) opened: InboundBatch,
    from: SocketAddr,
}

impl Pair {
    /// With so many other peers that nobody talks to.
    pub(crate) fn new(others: u32) -> Self {
        Self::of_kind(TunnelKind::default(), others)
    }

    /// The same with tunnels of a kind.
    pub(crate) fn of_kind(kind: TunnelKind, others: u32) -> Self {
        let keys = [
            SecretKey::from_bytes([1; 32]),
            SecretKey::from_bytes([2; 32]),
        ];
        let [near_tunnel, far_tunnel] = session(&keys, kind);
        let from: SocketAddr = "192.0.2.1:7001".parse().expect("an address");
        let to: SocketAddr = "192.0.2.2:7002".parse().expect("an address");
        Self {
            near: table(
                "10.42.1.0/24",
                "10.42.2.0/24",
                link(8, near_tunnel, to),
                others,
            ),
            far: table(
                "10.42.2.0/24",
                "10.42.1.0/24",
                link(7, far_tunnel, from),
                others,
            ),
            sealed: OutboundBatch::default(),
            opened: InboundBatch::merging(Merge {
                tcp: true,
                udp: true,
            }),
            from,
        }
    }

    pub(crate) fn seal(&mut self, packets: &mut [InnerPacket<'_>]) {
        seal_batch(&self.near, packets, &mut self.sealed);
    }

    /// Opens everything that was sealed last; bytes that came out.
    pub(crate) fn open(&mut self) -> usize {
        let mut arrived = [None; 64];
        let mut count = 0;
        for (slot, run) in arrived.iter_mut().zip(self.sealed.runs()) {
            *slot = Some(Arrived {
                socket: SocketId::MAIN,
                from: self.from,
                bytes: run.bytes,
                segment: run.segment,
                ecn: run.ecn,
            });
            count += 1;
        }
        let Some(first) = arrived[0] else { return 0 };
        let arrived = arrived.map(|one| one.unwrap_or(first));
        open_batch(&self.far, &arrived[..count], &mut self.opened);
        let runs = self.opened.runs();
        runs.map(|(_, parts)| parts.map(<[u8]>::len).sum::<usize>())
            .sum()
    }
}

/// TCP of so many segments in one packet, as the kernel gives it.
pub(crate) fn super_packet(segments: u16) -> Vec<u8> {
    let payload = usize::from(SEGMENT) * usize::from(segments);
    let mut packet = vec![0x5a; HEADERS + payload];
    packet[..HEADERS].fill(0);
    packet[0] = 0x45;
    let length = u16::try_from(packet.len()).expect("64 KiB at most");
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[8] = 64;
    packet[9] = 6;
    packet[12..16].copy_from_slice(&[10, 42, 1, 9]);
    packet[16..20].copy_from_slice(&[10, 42, 2, 9]);
    packet[32] = 0x80;
    packet[33] = 0x10;
    packet
}

/// How a super-packet is to be cut.
pub(crate) fn as_super(packet: &mut [u8]) -> InnerPacket<'_> {
    InnerPacket {
        bytes: packet,
        offload: Offload {
            checksum: Some(ChecksumGap {
                start: 20,
                offset: 16,
            }),
            cut: Some(Cut {
                kind: SegmentKind::Tcp4,
                size: SEGMENT,
            }),
        },
    }
}

fn session(keys: &[SecretKey; 2], kind: TunnelKind) -> [Tunnel; 2] {
    let [near, far] = keys;
    let tunnel = |own: &SecretKey, peer: &SecretKey, index| {
        let keys = TunnelKeys::of_kind(own, kind);
        keys.tell(now());
        Tunnel::new(&keys, &peer.public(), index).expect("a tunnel")
    };
    let (mut one, mut other) = (tunnel(near, far, 8), tunnel(far, near, 7));
    let room = limits::MIN_TUNNEL_BUFFER * 4;
    let (mut a, mut b) = (vec![0; room], vec![0; room]);
    let initiation = one.initiate(&mut a).expect("an initiation");
    let Ok(Opened::Reply(response)) = other.open(None, &a[..initiation], &mut b) else {
        panic!("no response");
    };
    let Ok(Opened::Reply(first)) = one.open(None, &b[..response], &mut a) else {
        panic!("no first message");
    };
    assert_eq!(other.open(None, &a[..first], &mut b), Ok(Opened::Keepalive));
    [one, other]
}

/// Any time.
fn now() -> Now {
    Now {
        moment: Moment::ZERO,
        unix: UnixSeconds(1_800_000_000),
        nanos: 0,
    }
}

fn link(index: u32, tunnel: Tunnel, endpoint: SocketAddr) -> Arc<PeerLink> {
    let link = PeerLink::new(PeerIndex(index), None, None);
    *link.lock() = LinkState {
        tunnel: Some(tunnel),
        path: Some(PathId::Direct {
            socket: SocketId::MAIN,
            endpoint,
        }),
        session: true,
        ..LinkState::default()
    };
    Arc::new(link)
}

fn table(own: &str, peer: &str, link: Arc<PeerLink>, others: u32) -> ForwardingTable {
    let net = |text: &str| text.parse::<IpNet>().expect("a prefix");
    let rest = (0..others).map(|number| {
        let prefix = format!("10.{}.{}.0/24", 64 + number / 256, number % 256);
        let link = PeerLink::new(PeerIndex(100 + number), None, None);
        (Arc::new(link), vec![net(&prefix)])
    });
    let peers = [(link, vec![net(peer)])].into_iter().chain(rest).collect();
    ForwardingTable::new([net(own)], peers, Vec::new(), Arc::new(Drops::default()))
}
