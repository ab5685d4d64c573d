//! The ways from the shards to the slow half: one for each kind of work, so that a flood of one kind
//! leaves the others their room and their turns.

use podmesh_engine::output::SlowItem;
use podmesh_proto::datagram::DatagramKind;
use tokio::sync::mpsc::{self, Receiver, Sender};

/// Items that each lane holds. What members say in their tunnels comes first: nobody else can put
/// anything there.
const ROOM: [usize; LANES] = [512, 512, 256, 512];
const LANES: usize = 4;
/// Items of one lane in a row, while others wait.
const TURN: usize = 16;

/// The sending end, one for all shards.
pub(crate) struct Lanes([Sender<SlowItem>; LANES]);

/// The receiving end.
pub(crate) struct Queues([Receiver<SlowItem>; LANES]);

/// Both ends.
pub(crate) fn lanes() -> (Lanes, Queues) {
    let [a, b, c, d] = ROOM.map(mpsc::channel);
    (Lanes([a.0, b.0, c.0, d.0]), Queues([a.1, b.1, c.1, d.1]))
}

/// Which lane an item takes: what a tunnel or a relay has opened already, probes, handshakes, packets
/// of this host that have no way yet.
fn lane_of(item: &SlowItem) -> usize {
    match item {
        SlowItem::Control { .. }
        | SlowItem::Session { .. }
        | SlowItem::Reached { .. }
        | SlowItem::Moved { .. } => 0,
        SlowItem::Datagram(received) => match DatagramKind::of(&received.bytes) {
            DatagramKind::Probe => 1,
            DatagramKind::WireGuardHandshake => 2,
            _ => 0,
        },
        SlowItem::Wanted { .. } => 3,
    }
}

impl Lanes {
    /// Hands an item over; whether there was room for it.
    pub(crate) fn push(&self, item: SlowItem) -> bool {
        let lane = self.0.get(lane_of(&item));
        lane.is_some_and(|lane| lane.try_send(item).is_ok())
    }
}

impl Queues {
    /// Waits until something is there, and takes up to `most` items, from each lane by turns. Nothing is
    /// lost if this is given up.
    pub(crate) async fn recv_many(&mut self, items: &mut Vec<SlowItem>, most: usize) {
        if self.take(items, most) {
            return;
        }
        let [a, b, c, d] = &mut self.0;
        let first = tokio::select! {
            Some(item) = a.recv() => item,
            Some(item) = b.recv() => item,
            Some(item) = c.recv() => item,
            Some(item) = d.recv() => item,
            // The shards are gone, and nothing comes any more.
            else => return std::future::pending().await,
        };
        items.push(first);
        self.take(items, most);
    }

    /// Takes what is there; whether that was anything.
    fn take(&mut self, items: &mut Vec<SlowItem>, most: usize) -> bool {
        loop {
            let before = items.len();
            for lane in &mut self.0 {
                for _ in 0..TURN.min(most.saturating_sub(items.len())) {
                    let Ok(item) = lane.try_recv() else { break };
                    items.push(item);
                }
            }
            if items.len() == before {
                return !items.is_empty();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use podmesh_engine::forwarding::PeerIndex;
    use podmesh_engine::output::Received;
    use podmesh_engine::path_id::SocketId;

    use super::*;

    fn datagram(first: u8) -> SlowItem {
        SlowItem::Datagram(Received {
            socket: SocketId::MAIN,
            from: "192.0.2.1:7077".parse().unwrap(),
            relay: None,
            bytes: vec![first, 0, 0, 0],
        })
    }

    fn session() -> SlowItem {
        let peer = PeerIndex(1);
        SlowItem::Session { peer }
    }

    fn wanted() -> SlowItem {
        let (peer, packet) = (PeerIndex(1), vec![0x45]);
        SlowItem::Wanted { peer, packet }
    }

    #[tokio::test]
    async fn a_flood_of_one_kind_neither_pushes_out_nor_holds_up_the_others() {
        // An initiation, a probe, a packet without a way: as strangers and pods make them.
        for flood in [datagram(1), datagram(0x20), wanted()] {
            let (lanes, mut queues) = lanes();
            let taken = (0..10_000).filter(|_| lanes.push(flood.clone())).count();
            assert!((256..=512).contains(&taken), "{taken}");
            let others = [session(), datagram(1), datagram(0x20), wanted()];
            let others = others
                .iter()
                .filter(|item| lane_of(item) != lane_of(&flood));
            let others: Vec<&SlowItem> = others.collect();
            for item in &others {
                assert!(lanes.push((*item).clone()), "{item:?} has no room");
            }
            let mut items = Vec::new();
            queues.recv_many(&mut items, 64).await;
            assert_eq!(items.len(), 64);
            for item in others {
                assert!(items.contains(item), "{item:?} waits");
            }
        }
    }

    #[tokio::test]
    async fn nothing_is_lost_and_the_order_within_a_lane_stays() {
        let (lanes, mut queues) = lanes();
        let item = |number: u32| SlowItem::Session {
            peer: PeerIndex(number),
        };
        assert!((0..500).all(|number| lanes.push(item(number))));
        let mut all = Vec::new();
        while all.len() < 500 {
            let mut items = Vec::new();
            queues.recv_many(&mut items, 64).await;
            all.extend(items);
        }
        assert_eq!(all, (0..500).map(item).collect::<Vec<_>>());
        let mut items = Vec::new();
        let nothing = tokio::time::timeout(
            std::time::Duration::from_millis(20),
            queues.recv_many(&mut items, 64),
        );
        assert!(nothing.await.is_err());
    }
}
