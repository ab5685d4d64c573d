//! The world of a scenario: first a plan, one line per thing, then the lab that stands.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;

use crate::capture::{Capture, MESH_RANGES, Verdict};
use crate::nat::Nat;
use crate::node::Node;
use crate::planet::Planet;
use crate::registry::{self, Entry};
use crate::site::{PublicAddresses, Site, SitePlan};
use crate::wire::{Link, Wire};

/// A description of sites, nodes, planets and the distances between them.
#[derive(Debug)]
pub struct Plan {
    name: String,
    seed: u64,
    sites: Vec<SitePlan>,
    nodes: Vec<(String, Option<String>)>,
    planets: Vec<(String, bool)>,
    links: Vec<(String, String, Link)>,
    mesh_ranges: Vec<IpNet>,
}

/// The site that a line of the plan speaks of.
#[derive(Debug)]
pub struct SiteLine<'plan>(&'plan mut SitePlan);

/// The node that a line of the plan speaks of.
#[derive(Debug)]
pub struct NodeLine<'plan>(&'plan mut Option<String>);

/// The planet that a line of the plan speaks of.
#[derive(Debug)]
pub struct PlanetLine<'plan>(&'plan mut bool);

/// A lab that stands. Dropping it removes everything; after a panic its logs are kept.
///
/// It listens to all its links from the first packet on. If it ends without a panic, but something
/// of the mesh went by in plaintext, the end is a panic.
pub struct Lab {
    name: String,
    folder: PathBuf,
    keep_logs: AtomicBool,
    judged_elsewhere: AtomicBool,
    capture: Option<Capture>,
    nodes: BTreeMap<String, Node>,
    planets: BTreeMap<String, Planet>,
    sites: BTreeMap<String, Arc<Site>>,
    wire: Arc<Wire>,
}

impl Plan {
    /// One more site, open unless the line says otherwise.
    pub fn site(&mut self, name: &str) -> SiteLine<'_> {
        let plan = SitePlan {
            name: name.to_owned(),
            nat: Nat::Open,
            ipv6: false,
            lan: None,
        };
        self.sites.push(plan);
        let last = self.sites.len() - 1;
        SiteLine(&mut self.sites[last])
    }

    /// One more node; the line says where it sits.
    pub fn node(&mut self, name: &str) -> NodeLine<'_> {
        self.nodes.push((name.to_owned(), None));
        let last = self.nodes.len() - 1;
        NodeLine(&mut self.nodes[last].1)
    }

    /// One more planet, in the public net at a place of its own name.
    pub fn planet(&mut self, name: &str) -> PlanetLine<'_> {
        self.planets.push((name.to_owned(), false));
        let last = self.planets.len() - 1;
        PlanetLine(&mut self.planets[last].1)
    }

    /// The one-way delay between two sites or planets, the same in both directions.
    pub fn delay(&mut self, one: &str, other: &str, delay: Duration) {
        self.link(one, other, Link::delay(delay));
        self.link(other, one, Link::delay(delay));
    }

    /// What lies between two sites or planets, in one direction.
    pub fn link(&mut self, from: &str, to: &str, link: Link) {
        self.links.push((from.to_owned(), to.to_owned(), link));
    }

    /// The ranges of the mesh, whose addresses must not be seen on the underlay, if they are not
    /// [`MESH_RANGES`].
    pub fn mesh_ranges(&mut self, ranges: &[IpNet]) {
        self.mesh_ranges = ranges.to_vec();
    }

    /// The seed that decides which packets are lost.
    pub fn seed(&mut self, seed: u64) {
        self.seed = seed;
    }

    /// Builds it all.
    ///
    /// # Errors
    ///
    /// If the plan names a site that it does not have, or the machine refuses something.
    pub fn up(self) -> Result<Lab> {
        registry::prepare();
        let number = registry::next_lab_number();
        let folder = registry::new_folder(number)?;
        let wire = Arc::new(Wire::start(number, self.seed)?);
        let mut lab = Lab {
            name: self.name.clone(),
            folder,
            keep_logs: AtomicBool::new(false),
            judged_elsewhere: AtomicBool::new(false),
            capture: None,
            nodes: BTreeMap::new(),
            planets: BTreeMap::new(),
            sites: BTreeMap::new(),
            wire,
        };
        self.check_names()?;
        self.build(number, &mut lab)
            .with_context(|| format!("cannot build lab {}", lab.name))?;
        Ok(lab)
    }

    fn build(self, number: u32, lab: &mut Lab) -> Result<()> {
        let addresses = PublicAddresses::default();
        for (index, plan) in (0_u8..).zip(&self.sites) {
            let site = Site::build(number, index, plan, &lab.wire, &addresses)?;
            lab.sites.insert(plan.name.clone(), Arc::new(site));
        }
        // Nobody who could know a word of the mesh has a cable yet.
        let capture = Capture::start(&lab.wire, lab.sites.values(), &self.mesh_ranges)?;
        lab.capture = Some(capture);
        for (index, (name, ipv6)) in (1_u8..).zip(self.planets) {
            let address = Ipv4Addr::new(203, 0, 113, index * 10);
            let place = (address, ipv6, Arc::clone(&lab.wire));
            let planet = Planet::build(number, &name, place, &lab.folder)?;
            lab.planets.insert(name, planet);
        }
        for (name, site) in self.nodes {
            let site = site.with_context(|| format!("node {name} sits nowhere: say .at(SITE)"))?;
            let site = Arc::clone(lab.site(&site)?);
            let seat = site.seat(&lab.wire, &addresses)?;
            let node = Node::build(
                number,
                &name,
                (site, seat, Arc::clone(&lab.wire)),
                &lab.folder,
            )?;
            lab.nodes.insert(name, node);
        }
        for (from, to, link) in self.links {
            lab.wire.set_link(&from, &to, link)?;
        }
        Ok(())
    }

    fn check_names(&self) -> Result<()> {
        let places: Vec<&str> = self.places().collect();
        for (at, name) in places.iter().enumerate() {
            ensure!(!places[..at].contains(name), "two places are called {name}");
        }
        for (from, to, _) in &self.links {
            for end in [from, to] {
                ensure!(
                    places.contains(&end.as_str()),
                    "a link ends at {end}, which is no place"
                );
            }
        }
        Ok(())
    }

    fn places(&self) -> impl Iterator<Item = &str> {
        let sites = self.sites.iter().map(|site| site.name.as_str());
        sites.chain(self.planets.iter().map(|(name, _)| name.as_str()))
    }
}

impl SiteLine<'_> {
    /// Puts the site behind a router of this kind.
    pub fn nat(self, nat: Nat) -> Self {
        self.0.nat = nat;
        self
    }

    /// Gives the site public IPv6 addresses, behind a firewall if it has a router.
    pub fn ipv6(self) -> Self {
        self.0.ipv6 = true;
        self
    }

    /// Chooses the LAN `192.168.{third_byte}.0/24`, for instance one that another site has too.
    pub fn lan(self, third_byte: u8) -> Self {
        self.0.lan = Some(third_byte);
        self
    }
}

impl NodeLine<'_> {
    /// Puts the node into a site.
    pub fn at(self, site: &str) -> Self {
        *self.0 = Some(site.to_owned());
        self
    }
}

impl PlanetLine<'_> {
    /// Gives the planet a public IPv6 address too.
    pub fn ipv6(self) -> Self {
        *self.0 = true;
        self
    }
}

impl Lab {
    /// Starts an empty plan.
    pub fn plan(name: &str) -> Plan {
        Plan {
            name: name.to_owned(),
            seed: 1,
            sites: Vec::new(),
            nodes: Vec::new(),
            planets: Vec::new(),
            links: Vec::new(),
            mesh_ranges: MESH_RANGES
                .iter()
                .map(|range| range.parse().expect("a literal range"))
                .collect(),
        }
    }

    /// The node of this name.
    ///
    /// # Errors
    ///
    /// If the plan had none.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes
            .get(name)
            .with_context(|| format!("the lab has no node {name}"))
    }

    /// All nodes by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The planet of this name.
    ///
    /// # Errors
    ///
    /// If the plan had none.
    pub fn planet(&self, name: &str) -> Result<&Planet> {
        self.planets
            .get(name)
            .with_context(|| format!("the lab has no planet {name}"))
    }

    /// All planets by name.
    pub fn planets(&self) -> impl Iterator<Item = &Planet> {
        self.planets.values()
    }

    /// The site of this name.
    ///
    /// # Errors
    ///
    /// If the plan had none.
    pub fn site(&self, name: &str) -> Result<&Arc<Site>> {
        self.sites
            .get(name)
            .with_context(|| format!("the lab has no site {name}"))
    }

    /// All sites by name.
    pub fn sites(&self) -> impl Iterator<Item = &Arc<Site>> {
        self.sites.values()
    }

    /// The core that the sites hang on.
    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    /// The folder with the logs and states of this lab.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Sets the one-way delay between two places, the same in both directions.
    ///
    /// # Errors
    ///
    /// If there is no such place.
    pub fn delay(&self, one: &str, other: &str, delay: Duration) -> Result<()> {
        self.link(one, other, Link::delay(delay))?;
        self.link(other, one, Link::delay(delay))
    }

    /// Sets what lies between two places, in one direction.
    ///
    /// # Errors
    ///
    /// If there is no such place.
    pub fn link(&self, from: &str, to: &str, link: Link) -> Result<()> {
        for end in [from, to] {
            if !self.sites.contains_key(end) && !self.planets.contains_key(end) {
                bail!("a link ends at {end}, which is no place of the lab");
            }
        }
        self.wire.set_link(from, to, link)
    }

    /// What the links have carried, and whether anything of it was in plaintext.
    ///
    /// # Panics
    ///
    /// If the lab does not stand yet, and so nobody outside of this file has it.
    pub fn capture(&self) -> &Capture {
        self.capture.as_ref().expect("a lab that stands listens")
    }

    /// Takes the judgement over leaks from the end of the lab: whoever calls provokes them, or
    /// looks at [`Lab::capture`] itself.
    pub fn leaks_are_judged_here(&self) {
        self.judged_elsewhere.store(true, Ordering::SeqCst);
    }

    /// What the links have carried, if the end of the lab is to judge it.
    fn last_look(&self) -> Option<Result<Verdict>> {
        let excused = self.judged_elsewhere.load(Ordering::SeqCst) || thread::panicking();
        let capture = self.capture.as_ref().filter(|_| !excused)?;
        Some(capture.must_be_clean())
    }

    /// Keeps the folder with the logs when the lab is dropped, and says where.
    pub fn keep_logs(&self) {
        self.keep_logs.store(true, Ordering::SeqCst);
    }
}

impl fmt::Debug for Lab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lab")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(capture) = &self.capture {
            // Links that are about to go are counted.
            let _ = capture.verdict();
        }
        // Programs stop first, so that the logs are complete and the sockets closed.
        self.nodes.clear();
        self.planets.clear();
        let look = self.last_look();
        let leaked = matches!(look, Some(Err(_)));
        if self.keep_logs.load(Ordering::SeqCst) || thread::panicking() || leaked {
            keep(&self.name, &self.folder);
        } else {
            let _ = fs::remove_dir_all(&self.folder);
        }
        registry::strike_out(&Entry::Folder(self.folder.clone()));
        match look {
            Some(Ok(verdict)) => say(&self.name, &verdict),
            Some(Err(error)) => panic!("the links of lab {}: {error:#}", self.name),
            None => {}
        }
    }
}

#[allow(
    clippy::print_stdout,
    reason = "the figures of a scenario are shown when it is read"
)]
fn say(lab: &str, verdict: &Verdict) {
    println!("figure links of {lab}: {verdict}");
}

/// Gives the folder a name that the next run does not take for a leftover.
#[allow(
    clippy::print_stderr,
    reason = "whoever reads a failed test must learn where the logs are"
)]
fn keep(lab: &str, folder: &Path) {
    let name = format!("podmesh-kept-{lab}-{}", std::process::id());
    let mut kept = std::env::temp_dir().join(&name);
    for again in 2.. {
        if !kept.exists() {
            break;
        }
        kept = std::env::temp_dir().join(format!("{name}-{again}"));
    }
    let place = if fs::rename(folder, &kept).is_ok() {
        &kept
    } else {
        folder
    };
    eprintln!("the logs of lab {lab} are in {}", place.display());
}
