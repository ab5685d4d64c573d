//! The thread of the core: frames in, a heap of due times, frames out.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::io::Read;
use std::iter;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::{Change, Link, Order, Port, frame};
use crate::sys::{PacketSocket, Poller};

/// What the core has carried so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WireReport {
    /// Frames handed to their destination.
    pub carried: u64,
    /// Frames that were lost on purpose.
    pub lost: u64,
    /// Frames to addresses that no site has, or without IP in them.
    pub unroutable: u64,
    /// Frames that had to be dropped because too many were on their way.
    pub overrun: u64,
    /// Delayed frames by how late they left, in powers of two of a microsecond.
    pub lateness: [u64; 24],
}

impl WireReport {
    /// An upper bound of how late the given share (0 to 1) of the delayed frames left.
    pub fn lateness_of(&self, share: f64) -> Duration {
        let all: u64 = self.lateness.iter().sum();
        let wanted = (all as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (power, count) in (0_u32..).zip(&self.lateness) {
            seen += count;
            if seen >= wanted {
                return Duration::from_micros(1 << power);
            }
        }
        Duration::MAX
    }
}

pub(super) struct Switch {
    inbox: Receiver<Order>,
    bell: UnixStream,
    stations: Vec<Station>,
    routes: HashMap<IpAddr, Port>,
    ranges: Vec<(IpNet, Port)>,
    links: BTreeMap<(String, String), Link>,
    on_the_way: BinaryHeap<Reverse<Delayed>>,
    spare: Vec<Vec<u8>>,
    order: u64,
    chance: Chance,
    report: WireReport,
    stopped: bool,
}

struct Station {
    port: Port,
    site: String,
    socket: PacketSocket,
    mac: [u8; 6],
    /// Links to every port, looked up by name once.
    to: HashMap<Port, Link>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Delayed {
    due: Instant,
    order: u64,
    to: Port,
    frame: Vec<u8>,
}

impl Switch {
    pub(super) fn new(inbox: Receiver<Order>, bell: UnixStream, seed: u64) -> Self {
        Self {
            inbox,
            bell,
            stations: Vec::new(),
            routes: HashMap::new(),
            ranges: Vec::new(),
            links: BTreeMap::new(),
            on_the_way: BinaryHeap::new(),
            spare: Vec::new(),
            order: 0,
            chance: Chance(seed),
            report: WireReport::default(),
            stopped: false,
        }
    }

    pub(super) fn run(mut self) {
        let mut poller = Poller::default();
        self.watch(&mut poller);
        while !self.stopped {
            let next = self.on_the_way.peek().map(|Reverse(delayed)| delayed.due);
            let timeout = next.map(|due| due.saturating_duration_since(Instant::now()));
            if poller.wait(timeout).is_err() {
                return;
            }
            for place in 0..self.stations.len() {
                if poller.ready(place + 1) {
                    self.take_in(place);
                }
            }
            self.let_out();
            if poller.ready(0) {
                self.obey();
                self.watch(&mut poller);
            }
        }
    }

    fn watch(&self, poller: &mut Poller) {
        let sockets = self
            .stations
            .iter()
            .map(|station| station.socket.as_raw_fd());
        poller.watch(iter::once(self.bell.as_raw_fd()).chain(sockets));
    }

    fn take_in(&mut self, place: usize) {
        for _ in 0..BATCH {
            let mut buffer = self.spare.pop().unwrap_or_default();
            buffer.resize(LONGEST_FRAME, 0);
            let Some(station) = self.stations.get(place) else {
                return;
            };
            // A socket whose interface has just been destroyed reports that once; then it is quiet.
            let Ok(Some(received)) = station.socket.receive(&mut buffer) else {
                self.spare.push(buffer);
                return;
            };
            buffer.truncate(received.len);
            match self.route(&buffer) {
                Some(to) => self.forward(place, to, buffer),
                None => {
                    self.report.unroutable += 1;
                    self.spare.push(buffer);
                }
            }
        }
    }

    fn route(&self, bytes: &[u8]) -> Option<Port> {
        let address = frame::destination(bytes)?;
        let port = self.routes.get(&address).or_else(|| {
            let matching = self
                .ranges
                .iter()
                .filter(|(range, _)| range.contains(&address));
            matching
                .max_by_key(|(range, _)| range.prefix_len())
                .map(|(_, port)| port)
        })?;
        Some(*port)
    }

    fn forward(&mut self, from: usize, to: Port, mut bytes: Vec<u8>) {
        let link = self
            .stations
            .get(from)
            .and_then(|from| from.to.get(&to))
            .copied();
        let link = link.unwrap_or_default();
        if !link.next_door && !frame::pass_one_hop(&mut bytes) {
            self.report.unroutable += 1;
            self.spare.push(bytes);
            return;
        }
        if self.chance.hits(link.loss) {
            self.report.lost += 1;
            self.spare.push(bytes);
            return;
        }
        let copies = if self.chance.hits(link.duplicate) {
            2
        } else {
            1
        };
        for _ in 1..copies {
            self.send_later(link, to, bytes.clone());
        }
        self.send_later(link, to, bytes);
    }

    fn send_later(&mut self, link: Link, to: Port, bytes: Vec<u8>) {
        let mut delay = link.delay;
        if self.chance.hits(link.reorder) {
            delay += Link::REORDER_HOLD;
        }
        if delay.is_zero() {
            self.hand_over(to, bytes);
        } else if self.on_the_way.len() >= MOST_ON_THE_WAY {
            self.report.overrun += 1;
            self.spare.push(bytes);
        } else {
            self.order += 1;
            let due = Instant::now() + delay;
            self.on_the_way.push(Reverse(Delayed {
                due,
                order: self.order,
                to,
                frame: bytes,
            }));
        }
    }

    fn let_out(&mut self) {
        loop {
            let now = Instant::now();
            match self.on_the_way.peek() {
                Some(Reverse(next)) if next.due <= now => {}
                _ => return,
            }
            let Some(Reverse(next)) = self.on_the_way.pop() else {
                return;
            };
            self.note_lateness(now - next.due);
            self.hand_over(next.to, next.frame);
        }
    }

    fn note_lateness(&mut self, late: Duration) {
        let power = (late.as_micros() + 1).next_power_of_two().trailing_zeros() as usize;
        let last = self.report.lateness.len() - 1;
        if let Some(count) = self.report.lateness.get_mut(power.min(last)) {
            *count += 1;
        }
    }

    fn hand_over(&mut self, to: Port, mut bytes: Vec<u8>) {
        if let Some(station) = self.stations.iter().find(|station| station.port == to) {
            frame::address_to(&mut bytes, station.mac);
            match station.socket.send(&bytes) {
                Ok(()) => self.report.carried += 1,
                Err(_) => self.report.overrun += 1,
            }
        }
        if self.spare.len() < MOST_SPARE {
            self.spare.push(bytes);
        }
    }

    fn obey(&mut self) {
        let mut rings = [0; 64];
        while self.bell.read(&mut rings).is_ok_and(|count| count > 0) {}
        while let Ok(Order { what, done }) = self.inbox.try_recv() {
            match what {
                Change::Attach {
                    port,
                    site,
                    socket,
                    mac,
                } => {
                    self.stations.push(Station {
                        port,
                        site,
                        socket,
                        mac,
                        to: HashMap::new(),
                    });
                }
                Change::Detach(port) => self.forget(port),
                Change::Route(range, port) => self.learn(range, port),
                Change::Link { from, to, link } => drop(self.links.insert((from, to), link)),
                Change::Stop => self.stopped = true,
                Change::Report => {}
            }
            self.spread_links();
            // Whoever asked may have given up waiting.
            let _ = done.send(self.report.clone());
        }
    }

    fn forget(&mut self, port: Port) {
        self.stations.retain(|station| station.port != port);
        self.routes.retain(|_, to| *to != port);
        self.ranges.retain(|(_, to)| *to != port);
    }

    fn learn(&mut self, range: IpNet, port: Port) {
        if range.prefix_len() == range.max_prefix_len() {
            self.routes.insert(range.addr(), port);
        } else {
            self.ranges.retain(|(known, _)| *known != range);
            self.ranges.push((range, port));
        }
    }

    fn spread_links(&mut self) {
        let sites: Vec<(Port, String)> = self
            .stations
            .iter()
            .map(|station| (station.port, station.site.clone()))
            .collect();
        for station in &mut self.stations {
            station.to.clear();
            for (port, site) in &sites {
                if let Some(link) = self.links.get(&(station.site.clone(), site.clone())) {
                    station.to.insert(*port, *link);
                }
            }
        }
    }
}

/// Seeded chance: splitmix64 by Sebastiano Vigna, public domain.
struct Chance(u64);

impl Chance {
    fn hits(&mut self, share: f64) -> bool {
        if share <= 0.0 {
            return false;
        }
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let unit = ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64;
        unit < share
    }
}

/// Frames taken from one port before the others and the due times get their turn.
const BATCH: usize = 64;

/// Bytes. The interfaces have an MTU of 1500.
const LONGEST_FRAME: usize = 1600;

/// Frames. At 1500 bytes this is 100 ms of 10 Gbit/s, or 2 s of 500 Mbit/s.
const MOST_ON_THE_WAY: usize = 80_000;

/// Buffers that are kept for the next frames.
const MOST_SPARE: usize = 4_096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_hits_as_often_as_it_is_told_and_repeats_itself() {
        let count = |seed| {
            let mut chance = Chance(seed);
            (0..100_000).filter(|_| chance.hits(0.05)).count()
        };
        assert!((4_700..5_300).contains(&count(1)), "{}", count(1));
        assert_eq!(count(7), count(7));
        assert_ne!(count(7), count(8));
    }
}
