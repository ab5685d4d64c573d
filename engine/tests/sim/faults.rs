//! What goes wrong in a random life.

use std::net::IpAddr;

use crate::life::Life;
use crate::nat::NatKind;
use crate::net::SiteId;
use crate::world::Work;

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
}

const FAULTS: [Fault; 13] = [
    Fault::NodeRestart,
    Fault::NatReboot,
    Fault::NatMoves,
    Fault::HostMoves,
    Fault::Cut,
    Fault::OneWayCut,
    Fault::Loss,
    Fault::PlanetRestart,
    Fault::DelayChange,
    Fault::Replay,
    Fault::ForeignSource,
    Fault::ForgedMember,
    Fault::StolenClaim,
];

impl Life {
    pub fn fault(&mut self) {
        let world = &mut self.world;
        let now = world.net.now;
        let fault = *world.net.random.pick(&FAULTS);
        let node = world.net.random.range(0, world.nodes.len() as u64) as usize;
        let site = world.net.hosts[world.nodes[node].host].site;
        if self.verbose {
            println!(
                "{:.1?} {fault:?} node {node} site {site}",
                now.since(self.start)
            );
        }
        *self.report.faults.entry(fault).or_default() += 1;
        match fault {
            Fault::NodeRestart => {
                world.stop(node);
                let at = now + world.net.random.millis(300, 40_000);
                world.net.schedule(at, Work::Start { node });
            }
            Fault::NatReboot => {
                if let Some(nat) = &mut world.net.sites[site].nat {
                    nat.reboot();
                }
            }
            Fault::NatMoves => {
                let address = self.fresh_address();
                if let Some(nat) = &mut self.world.net.sites[site].nat {
                    nat.reboot();
                    nat.outside = address;
                }
            }
            // A one-to-one NAT is set up for an address that stays.
            Fault::HostMoves if world.nodes[node].kind == NatKind::N1 => {}
            Fault::HostMoves => self.move_host(node, site),
            Fault::Cut | Fault::OneWayCut | Fault::Loss => self.harm_link(fault, site),
            Fault::PlanetRestart => {
                let planet = world.net.random.range(0, world.planets.len() as u64) as usize;
                world.stop_planet(planet);
                let at = now + world.net.random.millis(1_000, 90_000);
                world.net.schedule(at, Work::StartPlanet { planet });
            }
            Fault::DelayChange => self.change_delay(site),
            Fault::Replay => world.tap(),
            Fault::ForeignSource => self.lie_about_source(node),
            Fault::ForgedMember => self.forge_member(node),
            Fault::StolenClaim => self.steal_claim(node),
        }
    }

    fn change_delay(&mut self, site: SiteId) {
        let net = &mut self.world.net;
        let other = net.random.range(0, net.sites.len() as u64) as usize;
        let delay = net.random.millis(1, 120);
        for pair in [(site, other), (other, site)] {
            if let Some(link) = net.links.get_mut(&pair) {
                link.delay = delay;
            }
        }
        self.world.measure();
    }

    fn harm_link(&mut self, fault: Fault, site: SiteId) {
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
        let at = net.now + net.random.millis(2_000, 40_000);
        net.schedule(at, Work::Heal { site, other });
    }

    fn move_host(&mut self, node: usize, site: SiteId) {
        let address = match &self.world.net.sites[site].nat {
            None => self.fresh_address(),
            Some(_) => {
                self.next_address += 1;
                IpAddr::from([192, 168, site as u8, 100 + self.next_address % 150])
            }
        };
        self.world.set_address(node, address);
    }

    fn fresh_address(&mut self) -> IpAddr {
        self.next_address += 1;
        IpAddr::from([198, 18, 0, self.next_address])
    }
}
