//! What somebody should look at.

use std::sync::atomic::Ordering;
use std::time::Duration;

use podmesh_proto::certificate::Member;
use podmesh_proto::id::Name;
use podmesh_proto::local_api::HealthView;
use podmesh_proto::time::Now;

use crate::drops::DropReason;
use crate::engine::Engine;
use crate::error::COME_BACK;
use crate::join::Join;
use crate::limits::CONTROL_WORTH_A_LINE;
use crate::membership::holdings::MemberId;
use crate::membership::lies::Source;
use crate::peer::Peer;
use crate::planets::Planet;
use crate::publishing::Witness;

/// A planet's clock may be off by this many seconds before a person should know.
const CLOCK_TOLERANCE: u64 = 60;
/// Seconds after which a renewal that was due is worth a line.
const RENEWAL_PATIENCE: u64 = 10;
/// How long a planet may take to see that this node is a member before a person should know.
const STRANGENESS: Duration = Duration::from_secs(10);

impl Engine {
    /// Lies first, then what keeps the node from working, then what is only good to know.
    pub(super) fn health(&self, now: Now) -> Vec<HealthView> {
        let mut entries = self.trust_health(now);
        entries.extend(self.join_health());
        entries.extend(self.twin_health(now));
        let Some(members) = &self.members else {
            entries.extend(self.unreached_health());
            entries.extend(self.clock_health(now));
            return entries;
        };
        if members.is_revoked(&self.node_id()) {
            let message = "the root revoked this node; nobody talks to it any more";
            entries.push(entry("MESH-NODE-001", message, COME_BACK));
        } else if members.own_departure().is_some() {
            let message = "this node has left the network, by its own signed word, and nobody talks to it \
                           any more; its disk is an old copy, or another machine with its identity has left";
            let next = "`meshctl leave`, then `meshctl join` with a new token";
            entries.push(entry("MESH-NODE-005", message, next));
        } else if let Some(own) = members.own() {
            if own.expired {
                let message = "this node's certificate has expired; nobody talks to it any more";
                let next = "`meshctl leave`, then `meshctl join` with a new token";
                entries.push(entry("MESH-NODE-002", message, next));
            } else if self.renewing.lost_keys {
                let message = "this node's membership names keys that this node doesn't have; either \
                               its disk is an old copy, or somebody else holds its identity";
                entries.push(entry(
                    "MESH-NODE-003",
                    message,
                    &self.after_lost_keys(&own.member),
                ));
            }
            entries.extend(self.renewal_health(now));
            if !own.member.groups.is_empty() {
                let message = "groups are carried and shown, but not enforced yet";
                let next = "don't rely on groups to keep members apart";
                entries.push(entry("MESH-GROUP-001", message, next));
            }
        }
        let own = members.own().map(|own| &own.member);
        let is_superseded = own.is_some_and(|own| self.is_superseded(own));
        // Planets let neither in.
        if !members.is_revoked(&self.node_id()) && !is_superseded {
            entries.extend(self.planet_health(now));
        }
        entries.extend(self.clock_health(now));
        entries.extend(self.translation_health());
        entries.extend(self.control_health());
        entries.extend(self.drop_health());
        tracing::trace!(at = %now.unix, entries = entries.len(), "health");
        entries
    }

    /// What helps a node without the keys that its membership names.
    fn after_lost_keys(&self, own: &Member) -> String {
        if self.is_superseded(own) {
            // No planet takes its word, not even that it leaves, so that its name stays taken.
            return format!(
                "put the disk with the newer keys back; if there is none, or somebody else has them, \
                 `meshctl node revoke {}`, then {COME_BACK}",
                own.name
            );
        }
        let next = if self.planets.connected().next().is_some() {
            "`meshctl leave` and join with a new token; if the disk is no old copy, revoke this node first"
        } else {
            "let it connect to a planet first, which may know a newer membership that names this node's \
             keys; else `meshctl leave` and join with a new token"
        };
        next.to_owned()
    }

    /// Whether this node's identity is one that its membership names as replaced.
    fn is_superseded(&self, own: &Member) -> bool {
        let identity = self.config.keys.identity.public();
        identity != own.identity() && own.identities.contains(&identity)
    }

    /// Planets that aren't connected: one line if it is all of them, else one for each.
    fn planet_health(&self, now: Now) -> Vec<HealthView> {
        let all: Vec<&Planet> = self.planets.all().collect();
        if !all.is_empty() && self.planets.connected().next().is_none() {
            return vec![self.no_planet()];
        }
        // Before the first try has ended there is nothing to tell.
        let lost = |planet: &&Planet| planet.error.clone().filter(|_| !planet.is_connected());
        let told = all.iter().enumerate().filter_map(|(place, planet)| {
            let patience = planet.refusal().map_or(STRANGENESS, |_| Duration::ZERO);
            if self.is_active() && planet.is_strange(patience, now.moment) {
                return Some(strange(&planet.entry.name, planet.refusal()));
            }
            let entry_of = if place == 0 { first_lost } else { other_lost };
            Some(entry_of(&planet.entry.name, &lost(planet)?))
        });
        told.collect()
    }

    /// Tunnels need no planet; but where none of them goes on either, the planets are not what is broken.
    fn no_planet(&self) -> HealthView {
        // In a large mesh those that nobody talks to are not looked for.
        let wanted = |peer: &&Peer| peer.paths.is_some();
        let mut peers = self.peers.nodes().filter(wanted).peekable();
        let (message, next) = if peers.peek().is_none() || peers.any(Peer::hears) {
            (
                "no planet is connected; tunnels go on, changes don't get through",
                "look whether the planet runs (`planet status` there) and UDP gets through to it",
            )
        } else {
            (
                "no planet is connected, and no peer is reached",
                "look whether this machine's network is up and lets UDP out, also its own firewall, and whether the \
                 planet runs (`planet status` there)",
            )
        };
        entry("MESH-PLANET-001", message, next)
    }

    /// By the planet whose clock differs most. Judged anew each time: a clock goes wrong, and is put
    /// right, at any time.
    fn clock_health(&self, now: Now) -> Option<HealthView> {
        let ahead = |planet: &Planet| Some((planet.clock_ahead(now)?, planet.entry.name.clone()));
        let clocks = self.planets.all().filter_map(ahead);
        let (ahead, planet) = clocks.max_by_key(|(ahead, _)| ahead.unsigned_abs())?;
        if ahead.unsigned_abs() <= CLOCK_TOLERANCE {
            return None;
        }
        let message = format!(
            "this machine's clock is {} s {} that of planet {planet}",
            ahead.unsigned_abs(),
            if ahead > 0 { "behind" } else { "ahead of" }
        );
        let next = "run a time service on the machine whose clock is wrong";
        Some(entry("MESH-CLOCK-001", &message, next))
    }

    fn trust_health(&self, now: Now) -> Vec<HealthView> {
        let Some(members) = &self.members else {
            return Vec::new();
        };
        members.lies().views(now.unix, |source| match source {
            Source::Planet(planet) => self.planets.name(&planet),
            Source::Member(node) => members.name_of(MemberId::Node(node)),
            Source::Disk | Source::Operator => String::new(),
        })
    }

    /// A renewal that doesn't get through, once it should have, or never will.
    fn renewal_health(&self, now: Now) -> Option<HealthView> {
        let own = self.members.as_ref()?.own()?;
        let expires = own.member.expires.filter(|_| !own.expired)?;
        if let Some(end) = self.asked_in_vain(&own.member, now) {
            let message = format!(
                "this node's membership ends at {expires} and can't be renewed: the clocks were behind when it \
                 asked for that, and the new one would be over since {end}"
            );
            let next = "leave and join with a new token before that time";
            return Some(entry("MESH-NODE-004", &message, next));
        }
        let late = own.member.renews()?.plus(RENEWAL_PATIENCE);
        let reason = self.renewal_waits().filter(|_| now.unix >= late)?;
        let message =
            format!("this node's membership ends at {expires} and is not renewed: {reason}");
        let next =
            "the node goes on asking; after that time it has to leave and join with a new token";
        Some(entry("MESH-NODE-004", &message, next))
    }

    /// A rule of this machine gets at the tunnel's datagrams on their way out.
    fn translation_health(&self) -> Option<HealthView> {
        let members = self.members.as_ref()?;
        let found = self.endpoints.translated()?;
        let witness = match found.witness {
            Witness::Planet(planet) => format!("planet {}", self.planets.name(&planet)),
            Witness::Peer(node) => format!("member {}", members.name_of(MemberId::Node(node))),
            Witness::Disk => return None,
        };
        let message = format!(
            "this machine's own kernel translates the tunnel's datagrams: {witness} sees them come from \
             {}, which is an address of this machine, but their port is {}",
            found.seen, found.port
        );
        let next = format!(
            "look for a rule on this machine that masquerades what it shouldn't (`nft list ruleset`, \
             `iptables -t nat -S POSTROUTING`; kube-proxy, Docker and firewalls make such rules), and \
             except UDP from port {} from it",
            found.port
        );
        Some(entry("MESH-NAT-001", &message, &next))
    }

    fn join_health(&self) -> Option<HealthView> {
        let refusal = self.join.as_ref()?.refusal()?;
        let reason = crate::engine::printable(&refusal.reason);
        let message = format!("the join waits: {reason}");
        Some(entry(
            "MESH-JOIN-001",
            &message,
            "nothing; the node asks again by itself",
        ))
    }

    /// A join that no planet has heard of, once the first try has ended.
    fn unreached_health(&self) -> Option<HealthView> {
        let network = Join::network(self.join.as_ref()?);
        if self.planets.connected().next().is_some() {
            return None;
        }
        let told = self.planets.all().filter_map(|planet| {
            let reason = crate::engine::printable(planet.error.as_ref()?);
            Some(format!("{}: {reason}", planet.entry.name))
        });
        let told: Vec<String> = told.collect();
        if told.is_empty() {
            return None;
        }
        let message = format!(
            "the join of network {} waits, as no planet can be reached ({})",
            network.name,
            told.join("; ")
        );
        let next = "look whether the planet runs (`planet status` there), its name resolves and UDP gets \
                    through to it; if the network has other planets by now: `meshctl leave`, then `meshctl \
                    join` with a new token";
        Some(entry("MESH-PLANET-001", &message, next))
    }

    /// Members whose tunnels are flooded with what only nodes say to each other.
    fn control_health(&self) -> impl Iterator<Item = HealthView> + '_ {
        self.peers.nodes().filter_map(|peer| {
            let dropped = peer.link.counters.control_dropped.load(Ordering::Relaxed);
            (dropped >= CONTROL_WORTH_A_LINE).then(|| {
                let name = &peer.member.name;
                let message = format!(
                    "member {name} sent {dropped} control packets more than its share, which were dropped"
                );
                let next = format!(
                    "check that node, and put it out with `meshctl node revoke {name}` if it was broken \
                     into"
                );
                entry("MESH-DATA-002", &message, &next)
            })
        })
    }

    fn drop_health(&self) -> Option<HealthView> {
        let foreign = self.drops.of(DropReason::InnerForeignSource);
        (foreign > 0).then(|| {
            let message = format!(
                "{foreign} packets came through tunnels with a source that is not their sender's"
            );
            let next = "find the member that sends them; nothing of it got through";
            entry("MESH-DATA-001", &message, next)
        })
    }
}

/// The first planet of the network document is the one that gives leases.
fn first_lost(planet: &Name, reason: &str) -> HealthView {
    let message = format!(
        "planet {planet} is not connected: {reason}; no new node can join until it is back, as it gives \
         the addresses"
    );
    let next = format!(
        "look whether it runs (`planet status` there) and UDP gets through to it; if it is gone for good: \
         `meshctl network add-planet NAME=KEY@HOST:PORT --replaces {planet}`"
    );
    entry("MESH-PLANET-002", &message, &next)
}

fn other_lost(planet: &Name, reason: &str) -> HealthView {
    let message = format!("planet {planet} is not connected: {reason}; the others serve");
    let next = format!(
        "look whether it runs (`planet status` there) and UDP gets through to it; if it is gone for good: \
         `meshctl network retire-planet {planet}`"
    );
    entry("MESH-PLANET-002", &message, &next)
}

fn strange(planet: &Name, refusal: Option<&str>) -> HealthView {
    let why = refusal.map_or_else(String::new, |reason| format!(" ({reason})"));
    let message = format!(
        "planet {planet} is connected, but doesn't take this node for a member{why}; it neither introduces \
         nor relays for it"
    );
    let next = match refusal {
        Some(_) => format!(
            "put right what planet {planet} says; if that can't be: `meshctl leave`, then `meshctl join` \
             with a new token"
        ),
        None => format!("its log says why; `planet status` on {planet} shows whom it knows"),
    };
    entry("MESH-PLANET-003", &message, &next)
}

fn entry(code: &str, message: &str, next: &str) -> HealthView {
    HealthView {
        code: code.to_owned(),
        message: message.to_owned(),
        next: Some(next.to_owned()),
    }
}
