//! Keeps the node's ends of pods as ADD made them, with nothing but `CAP_NET_ADMIN`.
//!
//! What a pod should have is read from the alias of its node's end and remembered as long as that
//! exists. A pair of a version that wrote no such alias is learned once from its routes and
//! permanent neighbours while they stand, and then has an alias, too.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::blocking_netlink::Conversation;

use super::{
    GATEWAY_V6, VethError,
    alias::{self, Wiring},
    compare::{self, Seen, Stage},
    holders::Holders,
    open, refused,
    request::{self, Found},
};

/// Plugins that are chained behind ours change a pod within this time after its pair is there, for
/// instance its hardware address, of which this namespace hears nothing.
const YOUTH: Duration = Duration::from_secs(10);
/// What helps a pod that only its runtime can bring in order.
const ATTACH_ANEW: &str = "delete this pod (`crictl pods --id` names it, then `kubectl delete pod`); the \
                           runtime makes it anew";
/// Digits in the names that the plugin gives.
const NAME_DIGITS: usize = 11;

/// Compares and repairs; remembers what it has seen wired.
#[derive(Debug)]
pub struct Mender {
    known: BTreeMap<u32, Known>,
    /// Those whose node's end has left this namespace, while the pod's still stands.
    away: Vec<Known>,
    youth: Duration,
}

#[derive(Debug)]
struct Known {
    wiring: Wiring,
    since: Instant,
    /// Index of the pod's end, and the kernel's number for its namespace, where they were last seen.
    pod_end: Option<(u32, u32)>,
}

/// What is wrong with a pod, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// One sentence without an end, which names the pod.
    pub message: String,
    /// What helps.
    pub next: String,
}

/// What [`Mender::mend`] did and could not do. Each line names the pod.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// What was put right.
    pub repaired: Vec<String>,
    /// Pods with addresses that are none of this node's: reached by nobody, whatever else is right.
    pub strays: Vec<Trouble>,
    /// What else is still wrong: at most one per pod.
    pub troubles: Vec<Trouble>,
    /// How many pods stand.
    pub pods: usize,
    /// Whether another look is due soon, since a pod is being changed by whoever comes after ADD.
    pub is_young: bool,
}

impl Default for Mender {
    fn default() -> Self {
        Self::new(YOUTH)
    }
}

impl Mender {
    /// One that leaves what happens inside of a pod to others for this time after it came.
    #[must_use]
    pub fn new(youth: Duration) -> Self {
        Self {
            known: BTreeMap::new(),
            away: Vec::new(),
            youth,
        }
    }

    /// One look at all pairs whose names begin with `prefix`, or did when they were made. While the node is
    /// no member, nobody else holds anything that its pods have.
    ///
    /// # Errors
    ///
    /// When the kernel does not list what it has.
    pub fn mend(&mut self, prefix: &str, holders: Option<&Holders>) -> Result<Mended, VethError> {
        let mut kernel = open()?;
        let mut mended = Mended::default();
        let mut seen = Seen::read(&mut kernel)?;
        self.recognise(&seen, prefix);
        let mut look = Look {
            kernel: &mut kernel,
            holders,
            troubled: BTreeSet::new(),
            mended: &mut mended,
        };
        look.mended.pods = self.known.len();
        look.name_strays(&self.known);
        self.name_those_away(&seen, &mut look);
        self.restore_aliases(&seen, &mut look);
        let pairs = self.usable(&seen, &mut look);
        for stage in Stage::ALL {
            if look.repair(&seen, &pairs, stage) && stage != Stage::Rest {
                seen = Seen::read(look.kernel)?;
            }
        }
        look.pods_that_are_cut_off(&seen, &pairs);
        look.pods_that_changed(&pairs);
        mended.is_young = self
            .known
            .values()
            .any(|known| known.since.elapsed() < self.youth);
        Ok(mended)
    }

    fn is_young(&self, index: u32) -> bool {
        let known = self.known.get(&index);
        known.is_none_or(|known| known.since.elapsed() < self.youth)
    }

    /// Takes up what is new, and forgets what has gone.
    fn recognise(&mut self, seen: &Seen, prefix: &str) {
        let is_there = |index: &u32| {
            let mut pairs = seen.links.iter().filter(|link| link.is_veth);
            pairs.any(|link| link.index == *index)
        };
        let (known, gone): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.known)
            .into_iter()
            .partition(|(index, _)| is_there(index));
        self.known = known;
        self.away.extend(gone.into_values());
        for link in seen.links.iter().filter(|link| link.is_veth) {
            let pod_end = link.peer.zip(link.peer_namespace);
            if let Some(known) = self.known.get_mut(&link.index) {
                known.pod_end = pod_end;
                continue;
            }
            let told = link.alias.as_deref().and_then(Wiring::parse);
            let told = told.filter(|wiring| wiring.host_name.starts_with(prefix));
            let is_ours = is_name_of_plugin(&link.name, prefix) && link.is_up;
            let wiring = told.or_else(|| is_ours.then(|| learn(seen, link)).flatten());
            if let Some(wiring) = wiring {
                let since = Instant::now();
                let known = Known {
                    wiring,
                    since,
                    pod_end,
                };
                self.known.insert(link.index, known);
            }
        }
    }

    /// With the namespace of a pod, or by DEL, both ends go.
    fn name_those_away(&mut self, seen: &Seen, look: &mut Look<'_>) {
        self.away.retain(|known| {
            let is_back = |link: &Found| compare::says(link, &known.wiring.host_name);
            let stands = known.pod_end.is_some_and(|(index, namespace)| {
                request::link_elsewhere(look.kernel, index, namespace)
                    .is_ok_and(|end| end.is_veth && end.mac == Some(known.wiring.pod_mac))
            });
            stands && !seen.links.iter().any(is_back)
        });
        for known in &self.away {
            let name = &known.wiring.host_name;
            let sentence = format!(
                "the node's end {name} was moved out of this machine's namespace, and the pod reaches nobody"
            );
            let next = format!("`ip link set {name} netns 1` where it is brings it back");
            look.trouble(&known.wiring, &sentence, &next);
        }
    }

    fn restore_aliases(&self, seen: &Seen, look: &mut Look<'_>) {
        for link in &seen.links {
            let Some(known) = self.known.get(&link.index) else {
                continue;
            };
            let alias = known.wiring.to_alias();
            if link.alias.as_ref() != Some(&alias) {
                let done = look.kernel.request(request::set_alias(link.index, &alias));
                let done = done.map_err(refused(|| "naming the node's end".to_owned()));
                let what = "the node's end does not say whose it is";
                look.note((link.index, &known.wiring), what, done.map(|()| true));
            }
        }
    }

    /// Whose name and addresses nobody else claims. The interface that has its name comes first:
    /// an alias can be copied.
    fn usable(&self, seen: &Seen, look: &mut Look<'_>) -> Vec<Pair> {
        let mut pairs: Vec<_> = seen
            .links
            .iter()
            .filter_map(|link| Some((link, &self.known.get(&link.index)?.wiring)))
            .collect();
        pairs.sort_by_key(|(link, wiring)| (link.name != wiring.host_name, link.index));
        let mut names = BTreeSet::new();
        let mut addresses: BTreeSet<IpAddr> = BTreeSet::new();
        let mut usable = Vec::new();
        for (link, wiring) in pairs {
            let is_taken = seen
                .links
                .iter()
                .any(|other| other.index != link.index && other.name == wiring.host_name);
            if is_taken || !names.insert(&wiring.host_name) {
                let sentence = format!(
                    "the interface {} says that it is this pod's {}, which is another interface",
                    link.name, wiring.host_name
                );
                look.trouble(wiring, &sentence, "`ip link del` the wrong one");
            } else if let Some(address) = wiring.addresses.iter().find(|a| addresses.contains(*a)) {
                let sentence = format!("another pod of this node has {address}, too");
                look.trouble(wiring, &sentence, ATTACH_ANEW);
            } else {
                addresses.extend(&wiring.addresses);
                usable.push(Pair {
                    index: link.index,
                    wiring: wiring.clone(),
                    pod_end: compare::pod_end(look.kernel, link),
                    namespace: link.peer_namespace,
                    is_young: self.is_young(link.index),
                });
            }
        }
        usable
    }
}

/// A pair that is nobody else's.
struct Pair {
    index: u32,
    wiring: Wiring,
    /// `None` where the kernel doesn't tell.
    pod_end: Option<Found>,
    namespace: Option<u32>,
    /// The plugin, or one after it, may be in the middle of its work.
    is_young: bool,
}

/// One look, and what comes of it.
struct Look<'a> {
    kernel: &'a mut Conversation,
    holders: Option<&'a Holders>,
    /// Pods that have their line already.
    troubled: BTreeSet<String>,
    mended: &'a mut Mended,
}

impl Look<'_> {
    /// Repairs what differs and is of that stage. True if something was changed.
    fn repair(&mut self, seen: &Seen, pairs: &[Pair], stage: Stage) -> bool {
        let before = self.mended.repaired.len();
        for Pair {
            index,
            wiring,
            pod_end,
            ..
        } in pairs
        {
            let Some(end) = seen.links.iter().find(|link| link.index == *index) else {
                continue;
            };
            let ends = (end, pod_end.as_ref());
            let differences = compare::differences(seen, ends, wiring, self.holders);
            for difference in differences.iter().filter(|one| one.stage() == stage) {
                let done = difference.repair(self.kernel, end, wiring);
                self.note((*index, wiring), &difference.to_string(), done);
            }
        }
        self.mended.repaired.len() > before
    }

    /// They have their line, whatever else is wrong with them.
    fn name_strays(&mut self, known: &BTreeMap<u32, Known>) {
        let strays = self.holders.into_iter().flat_map(|holders| {
            let pods = known.values().map(|known| &known.wiring);
            pods.filter_map(|wiring| {
                let stray = holders.stray(&wiring.addresses)?;
                let pod = wiring.pod_in_words();
                Some(Trouble {
                    message: format!("{pod}: {stray}"),
                    next: ATTACH_ANEW.to_owned(),
                })
            })
        });
        self.mended.strays.extend(strays);
    }

    /// Somebody's interface takes what a pod sends. Whose it is nobody knows, so that it stays.
    fn pods_that_are_cut_off(&mut self, seen: &Seen, pairs: &[Pair]) {
        for pair in pairs {
            if let Some(taker) = seen.taker(pair.index) {
                let name = &taker.name;
                let sentence = format!(
                    "the interface {name} sits on the node's end and takes all that the pod sends"
                );
                let next = format!("remove it with `ip link del {name}`");
                self.trouble(&pair.wiring, &sentence, &next);
            }
        }
    }

    /// What this namespace can see of a pod and can't, or mustn't, put right.
    fn pods_that_changed(&mut self, pairs: &[Pair]) {
        let mut filtering = Conversation::route_with_filters().ok();
        for pair in pairs {
            let Some(pod_end) = &pair.pod_end else {
                continue;
            };
            let wiring = &pair.wiring;
            if pod_end.mac != Some(wiring.pod_mac)
                && !compare::answers_for_gateway(self.kernel, pair.index, wiring)
            {
                self.trouble(
                    wiring,
                    "its hardware address was changed after it was attached, by which the kernel \
                     forgets the pod's gateway, and this node has no route to the world for which it \
                     would answer who asks for that",
                    "give the address by the key mac of the network configuration",
                );
            }
            if pair.is_young {
                continue;
            }
            if !pod_end.is_up {
                let sentence = "its own end is down, inside the pod";
                self.trouble(wiring, sentence, ATTACH_ANEW);
            }
            let lost = filtering.as_mut().and_then(|filtering| {
                compare::lost_address(filtering, pair.namespace, (pod_end, wiring))
            });
            if let Some(address) = lost {
                let sentence = format!(
                    "{address} was lost inside the pod, as when its interface is taken down there"
                );
                self.trouble(wiring, &sentence, ATTACH_ANEW);
            }
        }
    }

    fn note(&mut self, (index, wiring): (u32, &Wiring), what: &str, done: Result<bool, VethError>) {
        match done {
            Ok(false) => {}
            Ok(true) => {
                let line = format!("{}: {what}", wiring.pod_in_words());
                self.mended.repaired.push(line);
            }
            // The next look begins with the link itself.
            Err(VethError::Refused { cause, .. }) if cause.kind() == io::ErrorKind::NetworkDown => {
            }
            Err(error) => {
                // A pod that has gone in the same moment is no trouble.
                if request::link(self.kernel, index).is_ok() {
                    let next = "meshd tries again each half minute; if it stays, delete the pod, and \
                                the runtime makes it anew";
                    self.trouble(wiring, &error.to_string(), next);
                }
            }
        }
    }

    fn trouble(&mut self, wiring: &Wiring, sentence: &str, next: &str) {
        let pod = wiring.pod_in_words();
        let message = format!("{pod}: {sentence}");
        if self.troubled.insert(pod) {
            let next = next.to_owned();
            self.mended.troubles.push(Trouble { message, next });
        }
    }
}

/// How a pair stands that doesn't tell: only one that is whole, since this is done once.
fn learn(seen: &Seen, link: &Found) -> Option<Wiring> {
    let told = seen.neighbours.iter();
    let told: Vec<_> = told.filter(|known| known.index == link.index).collect();
    let pod_mac = told.first()?.mac?;
    let mut addresses: Vec<_> = told.iter().map(|known| known.address).collect();
    let routes = seen.routes.iter();
    let mut routed: Vec<_> = routes
        .filter(|route| route.is_to_pod() && route.oif == Some(link.index))
        .filter_map(request::Route::address)
        .collect();
    addresses.sort_unstable();
    routed.sort_unstable();
    let has_v6 = addresses.iter().any(IpAddr::is_ipv6);
    let is_whole = addresses == routed
        && alias::are_a_pods(&addresses)
        && told.iter().all(|known| known.mac == Some(pod_mac))
        && alias::is_station(pod_mac)
        && has_v6 == seen.holds_address(link.index, GATEWAY_V6.into());
    is_whole.then(|| Wiring {
        host_name: link.name.clone(),
        host_mac: link.mac.unwrap_or_default(),
        pod_mac,
        pod_name: String::from("-"),
        pod: String::from("-"),
        addresses,
        owner: link
            .alias
            .clone()
            .filter(|one| !alias::is_alias(one))
            .unwrap_or_default(),
    })
}

fn is_name_of_plugin(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|digits| {
        digits.len() == NAME_DIGITS && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
    })
}
