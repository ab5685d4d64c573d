//! The thread that sends the pings and notes the replies.

use std::io::{self, Read};
use std::iter;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{INTERVAL, Ping, Record};
use crate::sys::{self, Poller};

#[derive(Debug)]
pub(super) enum Order {
    Add {
        name: String,
        sockets: Sockets,
        done: Sender<()>,
    },
    Remove {
        name: String,
        done: Sender<()>,
    },
    Stop(Sender<()>),
}

/// The echo sockets of one source.
#[derive(Debug)]
pub(super) struct Sockets {
    v4: UdpSocket,
    v6: UdpSocket,
}

impl Sockets {
    /// Opens them in the namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self {
            v4: sys::echo_socket(false)?,
            v6: sys::echo_socket(true)?,
        })
    }

    fn of(&self, target: IpAddr) -> &UdpSocket {
        if target.is_ipv6() { &self.v6 } else { &self.v4 }
    }

    fn all(&self) -> impl Iterator<Item = &UdpSocket> {
        [&self.v4, &self.v6].into_iter()
    }
}

/// Which record is sent by which source.
struct Active {
    record: usize,
    source: usize,
    target: IpAddr,
}

struct Rounds {
    sources: Vec<(String, Sockets)>,
    active: Vec<Active>,
    /// When the pair that is first in order was due last.
    round: Instant,
    /// The next pair of this round.
    next: usize,
}

pub(super) fn run(inbox: &Receiver<Order>, bell: &UnixStream, records: &Mutex<Vec<Record>>) {
    let mut rounds = Rounds {
        sources: Vec::new(),
        active: Vec::new(),
        round: Instant::now(),
        next: 0,
    };
    let mut poller = Poller::default();
    rounds.watch(bell, &mut poller);
    loop {
        if poller.wait(rounds.until_next()).is_err() {
            return;
        }
        rounds.take_replies(&poller, records);
        rounds.send_due(records);
        if poller.ready(0) {
            let mut rings = [0; 64];
            while (&*bell).read(&mut rings).is_ok_and(|count| count > 0) {}
            while let Ok(order) = inbox.try_recv() {
                let done = match order {
                    Order::Stop(done) => {
                        let _ = done.send(());
                        return;
                    }
                    Order::Add {
                        name,
                        sockets,
                        done,
                    } => {
                        rounds.sources.push((name, sockets));
                        done
                    }
                    Order::Remove { name, done } => {
                        rounds.sources.retain(|(other, _)| *other != name);
                        done
                    }
                };
                rounds.pair_up(records);
                // Whoever asked may have given up waiting.
                let _ = done.send(());
            }
            rounds.watch(bell, &mut poller);
        }
    }
}

impl Rounds {
    fn watch(&self, bell: &UnixStream, poller: &mut Poller) {
        let sockets = self.sources.iter().flat_map(|(_, sockets)| sockets.all());
        poller.watch(iter::once(bell.as_raw_fd()).chain(sockets.map(AsRawFd::as_raw_fd)));
    }

    fn pair_up(&mut self, records: &Mutex<Vec<Record>>) {
        let records = records.lock().unwrap_or_else(PoisonError::into_inner);
        let source_of = |name: &str| self.sources.iter().position(|(other, _)| other == name);
        self.active = records
            .iter()
            .enumerate()
            .filter(|(_, record)| !record.ended && source_of(&record.to).is_some())
            .filter_map(|(at, record)| {
                let source = source_of(&record.from)?;
                Some(Active {
                    record: at,
                    source,
                    target: record.target,
                })
            })
            .collect();
        self.round = Instant::now();
        self.next = 0;
    }

    /// When the pair at `place` is due: the pairs share the interval evenly.
    fn due(&self, place: usize) -> Instant {
        let count = u32::try_from(self.active.len().max(1)).unwrap_or(u32::MAX);
        let place = u32::try_from(place).unwrap_or(u32::MAX);
        self.round + INTERVAL / count * place
    }

    fn until_next(&self) -> Option<Duration> {
        if self.active.is_empty() {
            return None;
        }
        let wait = self
            .due(self.next)
            .saturating_duration_since(Instant::now());
        Some(wait.max(SHORTEST_SLEEP))
    }

    fn send_due(&mut self, records: &Mutex<Vec<Record>>) {
        let now = Instant::now();
        while !self.active.is_empty() && self.due(self.next) <= now {
            if let Some(active) = self.active.get(self.next) {
                self.send(active, records);
            }
            self.next += 1;
            if self.next >= self.active.len() {
                self.next = 0;
                self.round += INTERVAL;
            }
        }
    }

    fn send(&self, active: &Active, records: &Mutex<Vec<Record>>) {
        let mut records = records.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(record) = records.get_mut(active.record) else {
            return;
        };
        let number = record.pings.len();
        record.pings.push(Ping {
            at: Instant::now(),
            round_trip: None,
        });
        drop(records);
        let request = request(active.target.is_ipv6(), active.record, number);
        if let Some((_, sockets)) = self.sources.get(active.source) {
            let target = SocketAddr::new(active.target, 0);
            // A refused request gets no reply and is counted as lost by that.
            let _ = sockets.of(active.target).send_to(&request, target);
        }
    }

    fn take_replies(&self, poller: &Poller, records: &Mutex<Vec<Record>>) {
        let sockets = self.sources.iter().flat_map(|(_, sockets)| sockets.all());
        let mut buffer = [0; 128];
        for (place, socket) in sockets.enumerate() {
            if !poller.ready(place + 1) {
                continue;
            }
            while let Ok((len, from)) = socket.recv_from(&mut buffer) {
                let reply = buffer.get(..len).and_then(parse);
                let Some((record, number)) = reply else {
                    continue;
                };
                let mut records = records.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(record) = records.get_mut(record) else {
                    continue;
                };
                if record.target != from.ip() {
                    continue;
                }
                if let Some(ping) = record.pings.get_mut(number) {
                    let now = Instant::now();
                    ping.round_trip.get_or_insert_with(|| now - ping.at);
                }
            }
        }
    }
}

/// An echo request; the kernel fills in identifier and checksum.
fn request(ipv6: bool, record: usize, number: usize) -> Vec<u8> {
    let sequence = (number % 0x1_0000) as u16;
    let mut message = vec![if ipv6 { 128 } else { 8 }, 0, 0, 0, 0, 0];
    message.extend(sequence.to_be_bytes());
    message.extend(MAGIC);
    message.extend((record as u64).to_be_bytes());
    message.extend((number as u64).to_be_bytes());
    message.resize(8 + 56, 0);
    message
}

/// Record and number of an echo reply.
fn parse(message: &[u8]) -> Option<(usize, usize)> {
    if !matches!(message.first()?, 0 | 129) || message.get(8..16)? != MAGIC {
        return None;
    }
    let word = |at: usize| -> Option<usize> {
        let bytes: [u8; 8] = message.get(at..at + 8)?.try_into().ok()?;
        usize::try_from(u64::from_be_bytes(bytes)).ok()
    };
    Some((word(16)?, word(24)?))
}

const MAGIC: [u8; 8] = *b"podmesh!";

/// Pings that are due within this time are sent together.
const SHORTEST_SLEEP: Duration = Duration::from_millis(4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_names_the_request_that_it_answers() {
        let mut message = request(false, 41, 70_000);
        assert_eq!(parse(&message), None, "a request is no reply");
        message[0] = 0;
        assert_eq!(parse(&message), Some((41, 70_000)));
        message[0] = 129;
        assert_eq!(parse(&message), Some((41, 70_000)));
        assert_eq!(parse(&message[..31]), None);
    }
}
