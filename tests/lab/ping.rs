//! Pings between all pairs at once, ten a second each, with every single one accounted for.
//!
//! One thread holds one echo socket per source and family; the sockets live in the namespaces of
//! their sources, the thread does not. Each request carries the number of its record, so that a
//! reply can't be counted for another one.

mod sender;

use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::namespace::Namespace;
use crate::pod::Pod;
use crate::process;
use crate::sys;
use sender::{Order, Sockets};

/// Time between two pings of one pair.
pub const INTERVAL: Duration = Duration::from_millis(100);

/// A running matrix; it ends when dropped.
#[derive(Debug)]
pub struct PingMatrix {
    records: Arc<Mutex<Vec<Record>>>,
    members: Mutex<Vec<Member>>,
    orders: Sender<Order>,
    wake: UnixStream,
    thread: Option<JoinHandle<()>>,
}

/// What happened between one source and one target of one family in a stretch of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairReport {
    /// Name of the source.
    pub from: String,
    /// Name of the target.
    pub to: String,
    /// Whether these were IPv6 pings.
    pub ipv6: bool,
    /// Requests sent, or tried to.
    pub sent: usize,
    /// Requests without a reply.
    pub lost: usize,
    /// The longest time without a reply, from the first lost request to the next answered one.
    pub longest_gap: Duration,
    /// The slowest reply.
    pub slowest: Duration,
}

#[derive(Debug)]
struct Member {
    name: String,
    addresses: Vec<IpAddr>,
}

/// All pings of one pair.
#[derive(Debug)]
struct Record {
    from: String,
    to: String,
    target: IpAddr,
    pings: Vec<Ping>,
    /// One of the two has been removed; a later member of its name gets records of its own.
    ended: bool,
}

#[derive(Debug, Clone, Copy)]
struct Ping {
    at: Instant,
    round_trip: Option<Duration>,
}

impl PingMatrix {
    /// Starts a matrix without members.
    ///
    /// # Errors
    ///
    /// If the thread can't be started.
    pub fn start() -> Result<Self> {
        let (orders, inbox) = mpsc::channel();
        let (wake, bell) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        let records = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&records);
        let thread = thread::Builder::new().name("pings".into()).spawn(move || {
            sys::run_punctually();
            sender::run(&inbox, &bell, &shared);
        })?;
        let members = Mutex::default();
        Ok(Self {
            records,
            members,
            orders,
            wake,
            thread: Some(thread),
        })
    }

    /// Pings between this pod and all members so far, from now on, in both directions.
    ///
    /// # Errors
    ///
    /// If the sockets can't be opened.
    pub fn add_pod(&self, pod: &Pod) -> Result<()> {
        self.add(pod.name(), pod.namespace(), pod.addresses())
    }

    /// The same for anything with a namespace and addresses.
    ///
    /// # Errors
    ///
    /// If the sockets can't be opened.
    pub fn add(&self, name: &str, namespace: &Namespace, addresses: &[IpAddr]) -> Result<()> {
        let sockets = namespace.inside(Sockets::open)??;
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        let mut records = self.records();
        let mut pairs = Vec::new();
        for other in members.iter() {
            for target in &other.addresses {
                pairs.push((name.to_owned(), other.name.clone(), *target));
            }
            for target in addresses {
                pairs.push((other.name.clone(), name.to_owned(), *target));
            }
        }
        records.extend(pairs.into_iter().map(|(from, to, target)| Record {
            from,
            to,
            target,
            pings: vec![],
            ended: false,
        }));
        drop(records);
        members.push(Member {
            name: name.to_owned(),
            addresses: addresses.to_vec(),
        });
        self.order(|done| Order::Add {
            name: name.to_owned(),
            sockets,
            done,
        })
    }

    /// Ends the pings from and to a member; what happened so far stays on record.
    ///
    /// # Errors
    ///
    /// If the thread has ended.
    pub fn remove(&self, name: &str) -> Result<()> {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.retain(|member| member.name != name);
        for record in self.records().iter_mut() {
            record.ended |= record.from == name || record.to == name;
        }
        self.order(|done| Order::Remove {
            name: name.to_owned(),
            done,
        })
    }

    /// What happened between `from` and `to`, once the last reply had [`PATIENCE`] to arrive.
    ///
    /// Pairs that sent nothing in that time are left out.
    pub fn report(&self, from: Instant, to: Instant) -> Vec<PairReport> {
        thread::sleep((to + PATIENCE).saturating_duration_since(Instant::now()));
        let records = self.records();
        records
            .iter()
            .map(|record| record.report(from, to))
            .filter(|pair| pair.sent > 0)
            .collect()
    }

    /// Waits until every pair had `needed` replies in a row, and returns how long that took.
    ///
    /// # Errors
    ///
    /// After `patience`, with the pairs that are missing.
    pub fn wait_for_all(&self, needed: usize, patience: Duration) -> Result<Duration> {
        let start = Instant::now();
        crate::wait::until("every pair to answer", patience, || {
            let records = self.records();
            let silent: Vec<String> = records
                .iter()
                .filter(|record| !record.ended && !record.answers(needed, start))
                .map(|record| format!("{} to {} ({})", record.from, record.to, record.target))
                .collect();
            if silent.is_empty() {
                return Ok(crate::wait::Now(start.elapsed()));
            }
            let some = silent
                .iter()
                .take(6)
                .cloned()
                .collect::<Vec<_>>()
                .join(", ");
            Ok(crate::wait::NotYet(format!(
                "{} pairs are silent: {some}",
                silent.len()
            )))
        })
    }

    fn records(&self) -> MutexGuard<'_, Vec<Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, order: impl FnOnce(Sender<()>) -> Order) -> Result<()> {
        use std::io::Write;
        let (done, answer) = mpsc::channel();
        self.orders
            .send(order(done))
            .map_err(|_| anyhow!("the pings have ended"))?;
        (&self.wake).write_all(&[1])?;
        answer
            .recv_timeout(process::SHORT)
            .context("the thread of the pings does not answer")
    }
}

impl Drop for PingMatrix {
    fn drop(&mut self) {
        // Fails only if the thread has ended by itself.
        let _ = self.order(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl PairReport {
    /// Pings lost by all pairs together.
    pub fn lost_in(pairs: &[Self]) -> usize {
        pairs.iter().map(|pair| pair.lost).sum()
    }

    /// Pings sent by all pairs together.
    pub fn sent_in(pairs: &[Self]) -> usize {
        pairs.iter().map(|pair| pair.sent).sum()
    }
}

impl Record {
    fn report(&self, from: Instant, to: Instant) -> PairReport {
        let pings = self
            .pings
            .iter()
            .filter(|ping| (from..to).contains(&ping.at));
        let mut report = PairReport {
            from: self.from.clone(),
            to: self.to.clone(),
            ipv6: self.target.is_ipv6(),
            sent: 0,
            lost: 0,
            longest_gap: Duration::ZERO,
            slowest: Duration::ZERO,
        };
        let mut silent_since = None;
        let mut last = from;
        for ping in pings {
            report.sent += 1;
            last = ping.at;
            match ping.round_trip {
                Some(round_trip) => {
                    report.slowest = report.slowest.max(round_trip);
                    if let Some(since) = silent_since.take() {
                        report.longest_gap = report.longest_gap.max(ping.at - since);
                    }
                }
                None => {
                    report.lost += 1;
                    silent_since.get_or_insert(ping.at);
                }
            }
        }
        if let Some(since) = silent_since {
            report.longest_gap = report.longest_gap.max(last - since + INTERVAL);
        }
        report
    }

    fn answers(&self, needed: usize, since: Instant) -> bool {
        let recent = self.pings.iter().rev().filter(|ping| ping.at >= since);
        // The newest may still be on their way.
        let mut answered = 0;
        for ping in recent.skip_while(|ping| ping.round_trip.is_none()) {
            if ping.round_trip.is_none() {
                return false;
            }
            answered += 1;
            if answered >= needed {
                return true;
            }
        }
        false
    }
}

/// How long a reply may take before its request counts as lost.
pub const PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_and_gaps_are_counted_exactly() {
        let start = Instant::now();
        let ping = |tick: u32, answered: bool| Ping {
            at: start + INTERVAL * tick,
            round_trip: answered.then_some(Duration::from_millis(u64::from(tick))),
        };
        let answers = [true, false, false, true, true, false];
        let record = Record {
            from: "a".into(),
            to: "b".into(),
            target: "10.42.0.1".parse().unwrap(),
            ended: false,
            pings: (0..)
                .zip(answers)
                .map(|(tick, answered)| ping(tick, answered))
                .collect(),
        };
        let all = record.report(start, start + INTERVAL * 6);
        assert_eq!((all.sent, all.lost), (6, 3));
        assert_eq!(all.longest_gap, INTERVAL * 2);
        assert_eq!(all.slowest, Duration::from_millis(4));
        let some = record.report(start + INTERVAL * 3, start + INTERVAL * 5);
        assert_eq!((some.sent, some.lost), (2, 0));
    }
}
