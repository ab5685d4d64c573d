//! What goes wrong in a random life.

use std::net::IpAddr;
use std::time::Duration;

use podmesh_proto::time::Moment;

use crate::life::Life;
use crate::nat::NatKind;
use crate::net::SiteId;
use crate::world::{Mend, Work};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    NodeRestart,
    NatReboot,
    NatMoves,
    HostMoves,
    Cut,
    OneWayCut,
    Loss,
    PlanetRestart,
    DelayChange,
    Replay,
    ForeignSource,
    ForgedMember,
    StolenClaim,
    /// A node's wall clock is wrong for a while.
    ClockJump,
    /// Its clock is another one in its next life, for a while.
    ClockRestart,
    /// A planet's wall clock is wrong for a while.
    PlanetClock,
    DiskRefuses,
    /// The disk gives back the generation before the newest.
    DiskForgets,
    /// Other keys of the tunnels.
    Keys,
    /// Another identity, too.
    Identity,
    /// A node leaves and joins again.
    Rejoin,
    /// Off for long; a membership may end meanwhile.
    LongOff,
    /// The IPv6 address comes or goes.
    V6Flips,
    /// A machine is copied while it is off, and both are switched on.
    Copied,
    /// A copy of the disk of a running machine is switched on elsewhere.
    CopiedLive,
    /// A machine is put back to an earlier copy of its disk.
    PutBack,
}

impl Fault {
    pub const ALL: [Self; 26] = [
        Self::NodeRestart,
        Self::NatReboot,
        Self::NatMoves,
        Self::HostMoves,
        Self::Cut,
        Self::OneWayCut,
        Self::Loss,
        Self::PlanetRestart,
        Self::DelayChange,
        Self::Replay,
        Self::ForeignSource,
        Self::ForgedMember,
        Self::StolenClaim,
        Self::ClockJump,
        Self::ClockRestart,
        Self::PlanetClock,
        Self::DiskRefuses,
        Self::DiskForgets,
        Self::Keys,
        Self::Identity,
        Self::Rejoin,
        Self::LongOff,
        Self::V6Flips,
        Self::Copied,
        Self::CopiedLive,
        Self::PutBack,
    ];
}

/// Of so many nodes that leave, the disk of one goes back.
const FORGETFUL: u128 = 4;
/// Seconds by which a clock is wrong.
const JUMPS: [u64; 3] = [600, 3 * 3_600, 10 * 86_400];

/// What was struck, and until when.
#[derive(Debug, Clone)]
pub struct Blow {
    pub fault: Fault,
    pub end: Moment,
    /// Whom it is about; nobody else should notice. Empty if it may be about everybody.
    pub nodes: Vec<usize>,
}

impl Life {
    /// Lets something go wrong; it rights itself some time later.
    pub fn fault(&mut self) -> Blow {
        let world = &mut self.world;
        let now = world.net.now;
        let fault = *world.net.random.pick(&Fault::ALL);
        let node = world.net.random.range(0, world.count() as u64) as usize;
        let site = world.net.hosts[world.nodes[node].host].site;
        if self.verbose {
            println!(
                "{:.1?} {fault:?} node {node} site {site}",
                now.since(self.start)
            );
        }
        *self.report.faults.entry(fault).or_default() += 1;
        let span = match fault {
            Fault::NodeRestart => self.switch_off(node, (300, 40_000)),
            Fault::LongOff => self.switch_off(node, (60_000, 450_000)),
            Fault::NatReboot | Fault::NatMoves => self.harm_nat(fault, site),
            Fault::HostMoves => self.move_host(node, site),
            Fault::Cut | Fault::OneWayCut | Fault::Loss => self.harm_link(fault, site),
            Fault::PlanetRestart => self.restart_planet(),
            Fault::PlanetClock => self.turn_planet_clock(),
            Fault::DelayChange => self.change_delay(site),
            Fault::Replay | Fault::ForeignSource | Fault::ForgedMember | Fault::StolenClaim => {
                self.lie(fault, node)
            }
            Fault::ClockJump | Fault::ClockRestart => self.turn_clock(fault, node),
            Fault::DiskRefuses => self.fill_disk(node),
            Fault::DiskForgets => {
                self.world.nodes[node].older = true;
                self.switch_off(node, (300, 10_000))
            }
            Fault::Keys | Fault::Identity => self.rotate(node, fault == Fault::Identity),
            Fault::Rejoin => self.rejoin(node),
            Fault::V6Flips => {
                self.world.flip_v6(node);
                Duration::ZERO
            }
            Fault::Copied | Fault::CopiedLive => self.copy(fault, node),
            Fault::PutBack => self.put_back(node),
        };
        Blow {
            fault,
            end: now + span,
            nodes: self.about(fault, node, site),
        }
    }

    fn about(&self, fault: Fault, node: usize, site: SiteId) -> Vec<usize> {
        let world = &self.world;
        let at_site = |node: &usize| world.net.hosts[world.nodes[*node].host].site == site;
        match fault {
            Fault::NatReboot | Fault::NatMoves => (0..world.count()).filter(at_site).collect(),
            Fault::Cut
            | Fault::OneWayCut
            | Fault::Loss
            | Fault::PlanetRestart
            | Fault::PlanetClock
            | Fault::DelayChange => Vec::new(),
            _ => vec![node],
        }
    }

    fn mend_after(&mut self, low: u64, high: u64, mend: Mend) -> Duration {
        let net = &mut self.world.net;
        let span = net.random.millis(low, high);
        net.schedule(net.now + span, Work::Mend(mend));
        span
    }

    fn switch_off(&mut self, node: usize, (low, high): (u64, u64)) -> Duration {
        let world = &mut self.world;
        world.stop(node);
        let span = world.net.random.millis(low, high);
        let at = world.net.now + span;
        world.net.schedule(at, Work::Start { node });
        // What ended meanwhile is seen when the planet has been heard.
        let (out, back) = (Duration::from_secs(5), Duration::from_secs(7));
        if world.authority.life.is_none() {
            return span;
        }
        let readmit = Work::Mend(Mend::Readmit { node });
        world.net.schedule(at + out, readmit);
        let join = Work::Mend(Mend::Join { node });
        world.net.schedule(at + back, join);
        span
    }

    fn harm_nat(&mut self, fault: Fault, site: SiteId) -> Duration {
        let address = self.fresh_address();
        if let Some(nat) = &mut self.world.net.sites[site].nat {
            nat.reboot();
            if fault == Fault::NatMoves {
                nat.outside = address;
            }
        }
        Duration::ZERO
    }

    fn restart_planet(&mut self) -> Duration {
        let world = &mut self.world;
        let planet = world.net.random.range(0, world.planets.len() as u64) as usize;
        world.stop_planet(planet);
        let span = world.net.random.millis(1_000, 90_000);
        let at = world.net.now + span;
        world.net.schedule(at, Work::StartPlanet { planet });
        span
    }

    fn jump(&mut self) -> i64 {
        let random = &mut self.world.net.random;
        let far = i64::try_from(*random.pick(&JUMPS) + random.range(0, 60)).unwrap();
        if random.chance(50.0) { far } else { -far }
    }

    fn turn_planet_clock(&mut self) -> Duration {
        let planets = self.world.planets.len() as u64;
        let planet = self.world.net.random.range(0, planets) as usize;
        self.world.planets[planet].clock = self.jump();
        self.mend_after(2_000, 60_000, Mend::PlanetClock { planet })
    }

    fn turn_clock(&mut self, fault: Fault, node: usize) -> Duration {
        self.world.nodes[node].clock = self.jump();
        let mut off = Duration::ZERO;
        if fault == Fault::ClockRestart {
            off = self.switch_off(node, (300, 10_000));
        }
        off.max(self.mend_after(2_000, 60_000, Mend::Clock { node }))
    }

    fn fill_disk(&mut self, node: usize) -> Duration {
        self.world.nodes[node].disk.refuses = true;
        self.mend_after(2_000, 60_000, Mend::Disk { node })
    }

    fn rotate(&mut self, node: usize, identity: bool) -> Duration {
        if self.world.twin(node).is_none() {
            self.world.rotate(node, identity);
        }
        Duration::ZERO
    }

    fn rejoin(&mut self, node: usize) -> Duration {
        let host = &self.world.nodes[node];
        // With another identity it would come back as another node.
        let unfit = host.rotated || host.disk.refuses;
        if unfit || self.world.watch.is_victim(node) || self.world.twin(node).is_some() {
            return Duration::ZERO;
        }
        let image = self
            .world
            .can_be_imaged(node)
            .then(|| self.world.image(node));
        self.world.leave(node);
        let span = self.mend_after(0, 10_000, Mend::Join { node });
        if span.as_millis().is_multiple_of(FORGETFUL) && image.is_some() {
            // It has left, or has just come back, when its disk goes back to before all that.
            self.world.nodes[node].image = image;
            let now = self.world.net.now;
            for (seconds, mend) in [
                (3, Mend::GoBack { node }),
                (20, Mend::Readmit { node }),
                (22, Mend::Join { node }),
            ] {
                let at = now + Duration::from_secs(seconds);
                self.world.net.schedule(at, Work::Mend(mend));
            }
            return Duration::from_secs(22);
        }
        span
    }

    fn lie(&mut self, fault: Fault, node: usize) -> Duration {
        match fault {
            Fault::Replay => self.world.tap(),
            Fault::ForeignSource => self.lie_about_source(node),
            Fault::ForgedMember => self.forge_member(node),
            _ => self.steal_claim(node),
        }
        Duration::ZERO
    }

    fn copy(&mut self, fault: Fault, node: usize) -> Duration {
        if !self.world.can_be_copied(node) {
            return Duration::ZERO;
        }
        let mut off = Duration::ZERO;
        if fault == Fault::Copied {
            off = self.switch_off(node, (0, 5_000));
        }
        self.world.copy_machine(node);
        // Where nothing else goes on, it lives for long enough to be noticed.
        let (least, most) = if self.trial.is_some() {
            (52_000, 60_000)
        } else {
            (2_000, 20_000)
        };
        off.max(self.mend_after(least, most, Mend::Twin))
    }

    fn put_back(&mut self, node: usize) -> Duration {
        if !self.world.can_be_imaged(node) {
            return Duration::ZERO;
        }
        let Some(image) = self.world.nodes[node].image.take() else {
            self.world.nodes[node].image = Some(self.world.image(node));
            return Duration::ZERO;
        };
        let span = self.switch_off(node, (300, 10_000));
        self.world.write_image(node, image);
        span
    }

    fn change_delay(&mut self, site: SiteId) -> Duration {
        let net = &mut self.world.net;
        let other = net.random.range(0, net.sites.len() as u64) as usize;
        let delay = net.random.millis(1, 120);
        for pair in [(site, other), (other, site)] {
            if let Some(link) = net.links.get_mut(&pair) {
                link.delay = delay;
            }
        }
        self.world.measure();
        Duration::ZERO
    }

    fn harm_link(&mut self, fault: Fault, site: SiteId) -> Duration {
        let net = &mut self.world.net;
        let other = net.random.range(0, net.sites.len() as u64) as usize;
        let loss = net.random.range(5, 50) as f64;
        let both = [(site, other), (other, site)];
        let pairs = if fault == Fault::OneWayCut {
            &both[..1]
        } else {
            &both[..]
        };
        for pair in pairs {
            if let Some(link) = net.links.get_mut(pair) {
                if fault == Fault::Loss {
                    link.loss = loss;
                } else {
                    link.cut = true;
                }
            }
        }
        let span = net.random.millis(2_000, 40_000);
        net.schedule(net.now + span, Work::Heal { site, other });
        span
    }

    fn move_host(&mut self, node: usize, site: SiteId) -> Duration {
        // A one-to-one NAT is set up for an address that stays.
        if self.world.nodes[node].kind == NatKind::N1 {
            return Duration::ZERO;
        }
        let address = match &self.world.net.sites[site].nat {
            None => self.fresh_address(),
            Some(_) => {
                self.next_address += 1;
                IpAddr::from([192, 168, site as u8, 100 + self.next_address % 150])
            }
        };
        self.world.set_address(node, address);
        Duration::ZERO
    }

    fn fresh_address(&mut self) -> IpAddr {
        self.next_address += 1;
        IpAddr::from([198, 18, 0, self.next_address])
    }
}
