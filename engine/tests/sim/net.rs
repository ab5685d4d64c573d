//! The internet of a run: sites behind NATs, delays, loss, and the heap of what happens when.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use podmesh_engine::reach::Reach;
use podmesh_proto::time::Moment;

use crate::nat::Nat;
use crate::random::Random;

pub type SiteId = usize;
pub type HostId = usize;

/// Routers that forward what one site sends to another that isn't next door.
const HOPS: u8 = 8;
/// Delay inside a site.
const INSIDE: Duration = Duration::from_micros(300);

/// A place with one router to the internet.
#[derive(Debug)]
pub struct Site {
    pub nat: Option<Nat>,
}

/// A machine.
#[derive(Debug)]
pub struct Host {
    pub site: SiteId,
    pub addresses: Vec<IpAddr>,
    pub up: bool,
}

/// What the way between two sites is like, in one direction.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    pub delay: Duration,
    pub jitter: Duration,
    /// Percent.
    pub loss: f64,
    pub cut: bool,
    /// No router lies between the two sites' own.
    pub next_door: bool,
}

/// What happens.
#[derive(Debug)]
pub enum Occurrence<P, W> {
    /// A datagram arrives at a host's port.
    Datagram {
        host: HostId,
        port: u16,
        from: SocketAddr,
        /// Who really sent it; no node knows this.
        sender: HostId,
        payload: P,
    },
    /// Whatever the run has scheduled.
    Work(W),
}

#[derive(Debug)]
enum Event<P, W> {
    /// A datagram reaches the outside of a site.
    Arrival(Flight<P>),
    Inside(SiteId, Flight<P>),
    Work(W),
}

/// A datagram on its way.
#[derive(Debug)]
struct Flight<P> {
    sender: HostId,
    from: SocketAddr,
    to: SocketAddr,
    payload: P,
}

/// Sites, hosts, links and the heap.
pub struct Net<P, W> {
    pub now: Moment,
    pub random: Random,
    pub sites: Vec<Site>,
    pub hosts: Vec<Host>,
    pub links: BTreeMap<(SiteId, SiteId), Link>,
    heap: BinaryHeap<Reverse<(Moment, u64)>>,
    events: BTreeMap<u64, Event<P, W>>,
    sequence: u64,
    /// Digest of everything that was delivered.
    pub digest: u64,
    pub delivered: u64,
}

impl<P, W> Net<P, W> {
    pub fn new(seed: u64) -> Self {
        Self {
            now: Moment::from_start(Duration::from_secs(10_000)),
            random: Random(seed),
            sites: Vec::new(),
            hosts: Vec::new(),
            links: BTreeMap::new(),
            heap: BinaryHeap::new(),
            events: BTreeMap::new(),
            sequence: 0,
            digest: 0xcbf2_9ce4_8422_2325,
            delivered: 0,
        }
    }

    pub fn site(&mut self, nat: Option<Nat>) -> SiteId {
        self.sites.push(Site { nat });
        self.sites.len() - 1
    }

    pub fn host(&mut self, site: SiteId, addresses: Vec<IpAddr>) -> HostId {
        if let Some(nat) = &mut self.sites[site].nat {
            nat.inner = addresses.iter().find(|ip| ip.is_ipv4()).copied();
        }
        self.hosts.push(Host {
            site,
            addresses,
            up: true,
        });
        self.hosts.len() - 1
    }

    pub fn link(&mut self, from: SiteId, to: SiteId, delay: Duration) {
        let link = Link {
            delay,
            jitter: Duration::ZERO,
            loss: 0.0,
            cut: false,
            next_door: false,
        };
        self.links.insert((from, to), link);
    }

    /// The delay of the way between two hosts' sites.
    pub fn delay(&self, from: HostId, to: HostId) -> Duration {
        let (a, b) = (self.hosts[from].site, self.hosts[to].site);
        if a == b {
            return INSIDE;
        }
        self.links[&(a, b)].delay
    }

    pub fn schedule(&mut self, at: Moment, work: W) {
        self.push(at, Event::Work(work));
    }

    /// Sends a datagram of a host; false if the host has no way there.
    pub fn send(
        &mut self,
        (host, port): (HostId, u16),
        to: SocketAddr,
        reach: Option<Reach>,
        payload: P,
    ) -> bool {
        let Host { site, up, .. } = self.hosts[host];
        let own = self.hosts[host]
            .addresses
            .iter()
            .find(|ip| ip.is_ipv4() == to.is_ipv4());
        let Some(own) = own.copied().filter(|_| up) else {
            return false;
        };
        let from = SocketAddr::new(own, port);
        let neighbour = self
            .hosts
            .iter()
            .any(|other| other.site == site && other.addresses.contains(&to.ip()));
        if neighbour {
            let at = self.now + INSIDE;
            let flight = Flight {
                sender: host,
                from,
                to,
                payload,
            };
            self.push(at, Event::Inside(site, flight));
            return true;
        }
        let (now, random) = (self.now, &mut self.random);
        let from = match &mut self.sites[site].nat {
            Some(nat) if to.is_ipv4() => nat.outbound(from, to, now, random),
            _ => from,
        };
        // Private destinations get no farther than the first router.
        if matches!(to.ip(), IpAddr::V4(ip) if ip.is_private()) {
            return true;
        }
        let Some(target) = self.site_of(to.ip()).filter(|target| *target != site) else {
            return true;
        };
        let link = self.links[&(site, target)];
        let routers = if link.next_door { 1 } else { HOPS };
        let dies = |reach: Reach| reach.routers < routers || reach.strict && reach.routers == 1;
        if link.cut || reach.is_some_and(dies) || self.random.chance(link.loss) {
            return true;
        }
        let jitter = self.random.range(0, link.jitter.as_micros() as u64 + 1);
        let at = self.now + link.delay + Duration::from_micros(jitter);
        let flight = Flight {
            sender: host,
            from,
            to,
            payload,
        };
        self.push(at, Event::Arrival(flight));
        true
    }

    /// The next thing that happens, with the clock set to it, if it happens until `end`.
    pub fn next(&mut self, end: Moment) -> Option<Occurrence<P, W>> {
        loop {
            let Reverse((at, key)) = *self.heap.peek()?;
            if at > end {
                self.now = end;
                return None;
            }
            self.heap.pop();
            self.now = at;
            match self.events.remove(&key)? {
                Event::Work(work) => return Some(Occurrence::Work(work)),
                Event::Arrival(flight) => self.arrive(flight),
                Event::Inside(site, flight) => {
                    let Flight {
                        sender,
                        from,
                        to,
                        payload,
                    } = flight;
                    let host = self.hosts.iter().position(|host| {
                        host.site == site && host.up && host.addresses.contains(&to.ip())
                    });
                    if let Some(host) = host {
                        self.note(&[host as u64, u64::from(to.port()), u64::from(from.port())]);
                        self.delivered += 1;
                        return Some(Occurrence::Datagram {
                            host,
                            port: to.port(),
                            from,
                            sender,
                            payload,
                        });
                    }
                }
            }
        }
    }

    /// Things that are still to happen.
    pub fn pending(&self) -> usize {
        self.heap.len()
    }

    fn arrive(&mut self, flight: Flight<P>) {
        let (from, to, at) = (flight.from, flight.to, self.now);
        let Some(site) = self.site_of(to.ip()) else {
            return;
        };
        let to = match &mut self.sites[site].nat {
            Some(nat) if to.is_ipv4() => nat.inbound(from, to.port(), at),
            _ => Some(to),
        };
        if let Some(to) = to {
            self.push(at + INSIDE, Event::Inside(site, Flight { to, ..flight }));
        }
    }

    /// Takes something into the digest of the run (FNV-1a).
    pub fn note(&mut self, words: &[u64]) {
        let time = self.now.since_start().as_nanos() as u64;
        for word in std::iter::once(&time).chain(words) {
            self.digest = (self.digest ^ word).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn site_of(&self, ip: IpAddr) -> Option<SiteId> {
        let outside = self
            .sites
            .iter()
            .position(|site| site.nat.as_ref().is_some_and(|nat| nat.outside == ip));
        let public = || {
            let owner = self
                .hosts
                .iter()
                .find(|host| host.addresses.contains(&ip))?;
            let hidden = ip.is_ipv4() && self.sites[owner.site].nat.is_some();
            (!hidden).then_some(owner.site)
        };
        outside.or_else(public)
    }

    fn push(&mut self, at: Moment, event: Event<P, W>) {
        self.sequence += 1;
        self.heap.push(Reverse((at, self.sequence)));
        self.events.insert(self.sequence, event);
    }
}
