//! What people see of a node.

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ipnet::IpNet;

use podmesh_proto::certificate::Member;
use podmesh_proto::id::{Name, NodeId};
use podmesh_proto::local_api::{
    CandidateTrial, CandidateView, DropView, InterfaceView, MemoryView, NetworkView, NodeState,
    PathSwitch, PathView, PeerCounts, PeerDetail, PeerState, PeerView, PlanetView, ReadyView,
    SelfView, StatusView,
};
use podmesh_proto::network::Network;
use podmesh_proto::time::Now;

use crate::drops::DropReason;
use crate::engine::Engine;
use crate::forwarding::PeerLink;
use crate::limits;
use crate::membership::Members;
use crate::membership::holdings::MemberId;
use crate::path_id::PathId;
use crate::peer::{External, Peer};
use crate::tunnel::Tunnel;

mod health;
mod registry;

impl Engine {
    /// The node as a whole. The shell fills in the interface's index, shards and offloads, and the memory.
    #[must_use]
    pub fn status(&self, now: Now) -> StatusView {
        let network = self.members.as_ref().map(Members::network);
        let network = network.or(self.join.as_ref().map(crate::join::Join::network));
        let drops = DropReason::ALL.iter().map(|reason| DropView {
            reason: reason.to_string(),
            count: self.drops.of(*reason),
        });
        StatusView {
            state: self.state(),
            version: self.config.version.clone(),
            generated: now.unix.to_string(),
            uptime_s: now.moment.since(self.started.moment).as_secs(),
            network: network.map(network_view),
            node: self.self_view(),
            planets: self.planet_views(),
            interface: InterfaceView {
                name: self.config.device.clone(),
                index: None,
                mtu: self.config.mtu,
                shards: 0,
                offloads: Vec::new(),
                tunnel: String::new(),
            },
            peers: self.peer_counts(),
            candidates: self.candidate_views(),
            drops: drops.filter(|view| view.count > 0).collect(),
            health: self.health(now),
            memory: MemoryView::default(),
            pods: None,
        }
    }

    /// All peers, sorted by site, then name.
    #[must_use]
    pub fn peers(&self, now: Now) -> Vec<PeerView> {
        let mut views: Vec<PeerView> = self
            .peers
            .nodes()
            .map(|peer| self.peer_view(peer, now))
            .chain(self.peers.externals().map(|peer| self.external_view(peer)))
            .collect();
        let known = |node: &NodeId| self.peers.get(node).is_some();
        let quarantined = self.members.iter().flat_map(Members::quarantined);
        views.extend(
            quarantined
                .filter(|(member, _)| !known(&member.node))
                .map(|(member, reason)| quarantined_view(member, reason)),
        );
        views.sort_by(|a, b| (&a.site, &a.name).cmp(&(&b.site, &b.name)));
        views
    }

    /// One peer by name, id, overlay or pod address.
    #[must_use]
    pub fn peer(&self, target: &str, now: Now) -> Option<PeerDetail> {
        match self.find(target) {
            Some(MemberId::Node(node)) => {
                let peer = self.peers.get(&node)?;
                Some(self.peer_detail(peer, now))
            }
            Some(MemberId::External(key)) => {
                let peer = self.peers.external(&key)?;
                Some(PeerDetail {
                    peer: self.external_view(peer),
                    wireguard: key,
                    groups: Vec::new(),
                    expires: None,
                    serial: 0,
                    candidates: Vec::new(),
                    history: Vec::new(),
                })
            }
            None => {
                let name: Name = target.parse().ok()?;
                let mut quarantined = self.members.as_ref()?.quarantined();
                let (member, reason) = quarantined.find(|(member, _)| member.name == name)?;
                Some(PeerDetail {
                    peer: quarantined_view(member, reason),
                    wireguard: member.wireguard,
                    groups: member.groups.clone(),
                    expires: member.expires.map(|at| at.to_string()),
                    serial: member.renewal,
                    candidates: Vec::new(),
                    history: Vec::new(),
                })
            }
        }
    }

    /// Whether this node is a member with addresses, and whether any peer can be reached. The shell
    /// adds what it knows of the host.
    #[must_use]
    pub fn ready(&self) -> ReadyView {
        let counts = self.peer_counts();
        let reason = match self.state() {
            NodeState::NotJoined => Some("this node has not joined a network"),
            NodeState::Joining => Some("this node is still joining its network"),
            NodeState::Revoked => Some("the root revoked this node"),
            NodeState::Ended => Some("this node's membership has ended"),
            NodeState::Online | NodeState::PlanetsDown => {
                let own = self.members.as_ref().and_then(Members::own);
                own.filter(|own| own.member.pod_cidrs.is_empty())
                    .map(|_| "this node has no pod CIDR yet")
            }
        };
        ReadyView {
            ready: reason.is_none(),
            connected: counts.total == 0 || counts.direct + counts.relayed > 0,
            reason: reason.map(str::to_owned),
            waits_for_ledger: false,
        }
    }

    /// The member that a person means: by name, id, overlay or pod address.
    pub(crate) fn find(&self, target: &str) -> Option<MemberId> {
        let holdings = self.members.as_ref()?.holdings();
        if let Ok(address) = target.parse::<IpAddr>() {
            return holdings.holder_of(address.to_canonical());
        }
        if let Ok(node) = target.parse::<NodeId>() {
            return Some(MemberId::Node(node));
        }
        holdings.named(&target.parse().ok()?)
    }

    /// Whether this is the node's own name, id or address.
    #[must_use]
    pub fn is_own(&self, target: &str) -> bool {
        self.find(target) == Some(MemberId::Node(self.node_id()))
    }

    /// A path for people. An endpoint counts as LAN when it lies in the /24 or /64 of an address of
    /// this node's that isn't public.
    pub(crate) fn path_view(&self, path: PathId) -> PathView {
        match path {
            PathId::Relay { planet } => PathView::Relay {
                planet: self.planets.name(&planet),
            },
            PathId::Direct { endpoint, .. } => {
                let hosts = self.endpoints.local().hosts;
                if hosts.iter().any(|own| same_lan(*own, endpoint.ip())) {
                    PathView::Lan { endpoint }
                } else if endpoint.is_ipv4() {
                    PathView::Direct4 { endpoint }
                } else {
                    PathView::Direct6 { endpoint }
                }
            }
        }
    }

    fn state(&self) -> NodeState {
        let Some(members) = &self.members else {
            return if self.join.is_some() {
                NodeState::Joining
            } else {
                NodeState::NotJoined
            };
        };
        if members.is_revoked(&self.node_id()) {
            NodeState::Revoked
        } else if !self.is_active() {
            NodeState::Ended
        } else if self.planets.connected().next().is_some() {
            NodeState::Online
        } else {
            NodeState::PlanetsDown
        }
    }

    fn self_view(&self) -> Option<SelfView> {
        let own = &self.members.as_ref()?.own()?.member;
        let [port, _] = self.config.ports;
        Some(SelfView {
            id: own.node,
            name: own.name.clone(),
            site: own.site.clone(),
            groups: own.groups.clone(),
            addresses: addresses_of(own),
            pod_cidrs: own.pod_cidrs.clone(),
            wireguard: own.wireguard,
            port,
            expires: own.expires.map(|at| at.to_string()),
            serial: own.renewal,
            renews: own.renews().map(|at| at.to_string()),
        })
    }

    fn planet_views(&self) -> Vec<PlanetView> {
        let view = |planet: &crate::planets::Planet| {
            let connection = planet.connection.as_ref();
            PlanetView {
                id: planet.entry.id,
                name: planet.entry.name.clone(),
                address: planet.entry.address.clone(),
                connected: planet.is_connected(),
                rtt_ms: connection.map(|connection| millis(connection.rtt)),
                observed: connection.and_then(|_| self.endpoints.seen_by(&planet.entry.id)),
                error: planet.error.clone(),
            }
        };
        self.planets.all().map(view).collect()
    }

    fn candidate_views(&self) -> Vec<CandidateView> {
        use podmesh_proto::candidate::CandidateKind;
        let record = self.record.iter();
        let candidates = record.flat_map(|(record, _)| &record.candidates);
        candidates
            .map(|candidate| CandidateView {
                kind: match candidate.kind {
                    CandidateKind::Host => "host",
                    CandidateKind::Reflexive => "reflexive",
                    CandidateKind::Configured => "configured",
                    CandidateKind::Spare => "spare",
                }
                .to_owned(),
                endpoint: candidate.endpoint,
            })
            .collect()
    }

    fn peer_counts(&self) -> PeerCounts {
        let mut counts = PeerCounts::default();
        let nodes = self.peers.nodes().map(|peer| peer.link.lock().path);
        let externals = self.peers.externals().map(|peer| {
            let state = peer.link.lock();
            state.path.filter(|_| state.session)
        });
        for path in nodes.chain(externals) {
            counts.total += 1;
            match path {
                Some(path) if path.is_direct() => counts.direct += 1,
                Some(_) => counts.relayed += 1,
                None => counts.down += 1,
            }
        }
        counts
    }

    fn peer_view(&self, peer: &Peer, now: Now) -> PeerView {
        let paths = peer.paths.as_deref();
        let path = peer.link.lock().path;
        let state = paths.map_or(PeerState::Down, |paths| paths.state(now));
        let direct = path.is_some_and(|path| path.is_direct());
        let why = match paths {
            Some(paths) => paths.why(now),
            None => Some("no traffic wants it".to_owned()),
        };
        // A path that isn't direct never goes without a reason.
        let why = why.or_else(|| (!direct).then(|| "a direct path is being proven".to_owned()));
        PeerView {
            id: Some(peer.member.node),
            name: peer.member.name.clone(),
            site: peer.member.site.clone(),
            addresses: addresses_of(&peer.member),
            pod_cidrs: peer.member.pod_cidrs.clone(),
            external: false,
            state,
            path: path.map(|path| self.path_view(path)),
            rtt_ms: paths.and_then(|paths| paths.rtt()).map(millis),
            loss_percent: paths.and_then(|paths| paths.loss()),
            mtu: Some(u32::from(peer.mtu)),
            handshake_s: handshake_age(&peer.link),
            rx_bytes: peer.link.counters.received_bytes.load(Ordering::Relaxed),
            tx_bytes: peer.link.counters.sent_bytes.load(Ordering::Relaxed),
            why,
        }
    }

    fn external_view(&self, peer: &External) -> PeerView {
        let state = peer.link.lock();
        let (path, session) = (state.path, state.session);
        drop(state);
        let single = |prefix: &&IpNet| prefix.prefix_len() == prefix.max_prefix_len();
        let addresses = peer.prefixes.iter().filter(single);
        PeerView {
            id: None,
            name: peer.name.clone(),
            site: None,
            addresses: addresses.map(IpNet::addr).collect(),
            pod_cidrs: peer.prefixes.clone(),
            external: true,
            state: if session {
                PeerState::Up
            } else {
                PeerState::Down
            },
            path: path.map(|path| self.path_view(path)),
            rtt_ms: None,
            loss_percent: None,
            mtu: Some(self.config.mtu.min(limits::STOCK_MTU.into())),
            handshake_s: handshake_age(&peer.link),
            rx_bytes: peer.link.counters.received_bytes.load(Ordering::Relaxed),
            tx_bytes: peer.link.counters.sent_bytes.load(Ordering::Relaxed),
            why: (!session).then(|| {
                if path.is_some() {
                    "a stock WireGuard machine; no handshake lately".to_owned()
                } else {
                    "a stock WireGuard machine without a known endpoint; it has to begin".to_owned()
                }
            }),
        }
    }

    fn peer_detail(&self, peer: &Peer, now: Now) -> PeerDetail {
        let paths = peer.paths.as_deref();
        let label = |path: Option<PathId>| {
            path.map_or_else(|| "none".to_owned(), |path| self.path_label(path))
        };
        let trials = paths.map_or_else(Vec::new, |paths| paths.trials(now));
        let history = paths.into_iter().flat_map(|paths| paths.history());
        PeerDetail {
            peer: self.peer_view(peer, now),
            wireguard: peer.member.wireguard,
            groups: peer.member.groups.clone(),
            expires: peer.member.expires.map(|at| at.to_string()),
            serial: peer.member.renewal,
            candidates: trials
                .into_iter()
                .map(|trial| CandidateTrial {
                    kind: trial.kind.word().to_owned(),
                    endpoint: match trial.path {
                        PathId::Direct { endpoint, .. } => Some(endpoint),
                        PathId::Relay { .. } => None,
                    },
                    from: trial.path.port_word().to_owned(),
                    state: trial.state.to_owned(),
                    rtt_ms: trial.rtt.map(millis),
                })
                .collect(),
            history: history
                .map(|switch| PathSwitch {
                    time: switch.time.to_string(),
                    from: label(switch.from),
                    to: label(switch.to),
                    reason: switch.reason.to_string(),
                })
                .collect(),
        }
    }

    fn path_label(&self, path: PathId) -> String {
        match self.path_view(path) {
            PathView::Lan { endpoint } => format!("lan {endpoint}"),
            PathView::Direct4 { endpoint } | PathView::Direct6 { endpoint } => {
                format!("direct {endpoint}")
            }
            PathView::Relay { planet } => format!("relay {planet}"),
        }
    }
}

fn network_view(network: &Network) -> NetworkView {
    let ranges = &network.ranges;
    NetworkView {
        id: network.id,
        name: network.name.clone(),
        version: network.version,
        overlay: vec![IpNet::V4(ranges.overlay4), IpNet::V6(ranges.overlay6)],
        pods: vec![IpNet::V4(ranges.pods4), IpNet::V6(ranges.pods6)],
        services: ranges.services.clone(),
    }
}

fn quarantined_view(member: &Member, reason: &str) -> PeerView {
    PeerView {
        id: Some(member.node),
        name: member.name.clone(),
        site: member.site.clone(),
        addresses: addresses_of(member),
        pod_cidrs: member.pod_cidrs.clone(),
        external: false,
        state: PeerState::Quarantined,
        path: None,
        rtt_ms: None,
        loss_percent: None,
        mtu: None,
        handshake_s: None,
        rx_bytes: 0,
        tx_bytes: 0,
        why: Some(reason.to_owned()),
    }
}

fn addresses_of(member: &Member) -> Vec<IpAddr> {
    let overlay4 = member.overlay4.map(IpAddr::V4);
    overlay4
        .into_iter()
        .chain([IpAddr::V6(member.overlay6)])
        .collect()
}

fn handshake_age(link: &PeerLink) -> Option<u64> {
    let state = link.lock();
    let age = state.tunnel.as_ref().and_then(Tunnel::handshake_age);
    age.map(|age| age.as_secs())
}

pub(crate) fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000_000.0).round() / 1_000.0
}

fn same_lan(own: IpAddr, other: IpAddr) -> bool {
    match (own, other) {
        (IpAddr::V4(a), IpAddr::V4(b)) => a.is_private() && a.to_bits() >> 8 == b.to_bits() >> 8,
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            a.is_unique_local() && a.to_bits() >> 64 == b.to_bits() >> 64
        }
        _ => false,
    }
}
