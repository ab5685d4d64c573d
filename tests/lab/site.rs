//! A place on the lab's internet: open, or a LAN behind a router.
//!
//! Nodes of an open site hang on the core directly, each with a public address. Any other site
//! has a router namespace with a bridge for its LAN and one interface into the core.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::namespace::Namespace;
use crate::nat::Nat;
use crate::process;
use crate::sys;
use crate::wire::{GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, Port, Wire};

/// A router's interface into the core.
pub const WAN: &str = "wan";

/// A router's bridge.
pub const LAN: &str = "lan";

/// A node's interface to its underlay.
pub const UNDERLAY: &str = "eth0";

/// What a plan says about a site.
#[derive(Debug, Clone)]
pub(crate) struct SitePlan {
    pub(crate) name: String,
    pub(crate) nat: Nat,
    pub(crate) ipv6: bool,
    /// The third byte of the LAN `192.168.x.0/24`; by default one that no other site has.
    pub(crate) lan: Option<u8>,
}

/// A built site.
#[derive(Debug)]
pub struct Site {
    name: String,
    nat: Nat,
    ipv6: bool,
    router: Option<Router>,
}

#[derive(Debug)]
struct Router {
    namespace: Namespace,
    port: Port,
    public: Ipv4Addr,
    lan: u8,
    next_host: AtomicU8,
}

/// Where one node sits: its addresses stay the same when its cable is pulled and plugged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// The address on the node's own interface.
    pub v4: Ipv4Addr,
    /// The public IPv6 address, if the site has IPv6.
    pub v6: Option<Ipv6Addr>,
    /// The address that the world sees, if the node has one for itself.
    pub public: Option<Ipv4Addr>,
}

/// A plugged cable.
#[derive(Debug)]
pub(crate) enum Plug {
    Core(Port),
    Lan(String),
}

/// Public addresses that no site has yet.
#[derive(Debug)]
pub(crate) struct PublicAddresses(AtomicU8);

impl Default for PublicAddresses {
    fn default() -> Self {
        Self(AtomicU8::new(10))
    }
}

impl PublicAddresses {
    fn next(&self) -> Result<Ipv4Addr> {
        let host = self.0.fetch_add(1, Ordering::Relaxed);
        anyhow::ensure!(host < 250, "a lab has 240 public addresses at most");
        Ok(Ipv4Addr::new(198, 51, 100, host))
    }
}

impl Site {
    pub(crate) fn build(
        lab: u32,
        number: u8,
        plan: &SitePlan,
        wire: &Wire,
        addresses: &PublicAddresses,
    ) -> Result<Self> {
        let (name, nat, ipv6) = (plan.name.clone(), plan.nat, plan.ipv6);
        let router = if nat == Nat::Open {
            None
        } else {
            let lan = plan.lan.unwrap_or(10 + number);
            let public = addresses.next()?;
            Some(
                Router::build(lab, plan, (lan, public), wire)
                    .with_context(|| format!("cannot build the router of {name}"))?,
            )
        };
        Ok(Self {
            name,
            nat,
            ipv6,
            router,
        })
    }

    /// The site's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The kind of its router.
    pub fn nat(&self) -> Nat {
        self.nat
    }

    /// The namespace of its router, if it has one.
    pub fn router(&self) -> Option<&Namespace> {
        self.router.as_ref().map(|router| &router.namespace)
    }

    /// The public address of its router, if it has one.
    pub fn public_address(&self) -> Option<Ipv4Addr> {
        self.router.as_ref().map(|router| router.public)
    }

    /// A free place for one more node.
    pub(crate) fn seat(&self, wire: &Wire, addresses: &PublicAddresses) -> Result<Seat> {
        let Some(router) = &self.router else {
            let v4 = addresses.next()?;
            let v6 = self.ipv6.then(|| open_v6(v4));
            return Ok(Seat {
                v4,
                v6,
                public: Some(v4),
            });
        };
        let host = router.next_host.fetch_add(1, Ordering::Relaxed);
        let v4 = Ipv4Addr::new(192, 168, router.lan, host);
        let v6 = self.ipv6.then(|| lan_v6(router.public, host.into()));
        let public = if self.nat == Nat::OneToOne {
            let public = addresses.next()?;
            wire.route(host_v4(public), router.port)?;
            router.namespace.nft(&Nat::one_to_one_node(v4, public))?;
            Some(public)
        } else {
            None
        };
        Ok(Seat { v4, v6, public })
    }

    /// Plugs a node's namespace in at its seat.
    pub(crate) fn plug(&self, wire: &Wire, seat: &Seat, node: &Namespace) -> Result<Plug> {
        node.sysctl("net.ipv6.conf.default.accept_dad", "0")?;
        match &self.router {
            None => plug_into_core(wire, &self.name, seat, node).map(Plug::Core),
            Some(router) => router.plug(seat, node).map(Plug::Lan),
        }
    }

    /// Pulls the cable out; the interface on the node's side is gone after that.
    pub(crate) fn unplug(&self, wire: &Wire, plug: &Plug) -> Result<()> {
        match (plug, &self.router) {
            (Plug::Core(port), _) => wire.detach(*port),
            (Plug::Lan(interface), Some(router)) => {
                router.namespace.ip(&format!("link delete {interface}"))
            }
            (Plug::Lan(_), None) => Ok(()),
        }
    }
}

impl Router {
    fn build(lab: u32, plan: &SitePlan, place: (u8, Ipv4Addr), wire: &Wire) -> Result<Self> {
        let (lan, public) = place;
        let namespace = Namespace::create(lab, &format!("{}-router", plan.name))?;
        namespace.sysctl("net.ipv4.ip_forward", "1")?;
        namespace.sysctl("net.ipv4.conf.all.rp_filter", "0")?;
        namespace.sysctl("net.ipv4.conf.default.rp_filter", "0")?;
        namespace.sysctl("net.ipv6.conf.default.accept_dad", "0")?;
        if !plan.ipv6 {
            namespace.sysctl("net.ipv6.conf.default.disable_ipv6", "1")?;
        }
        let port = wire.attach(&plan.name, &namespace, WAN)?;
        // A bridge takes the lowest address of its ports, so a node that is plugged in or out would
        // change the gateway's under its neighbours, and they lose what they send until they notice.
        namespace.ip(&format!(
            "address add {public}/32 dev {WAN}\n\
             route add default via {GATEWAY_V4} dev {WAN} onlink\n\
             link add {LAN} address 02:00:5e:00:02:{lan:02x} type bridge forward_delay 0 mcast_snooping 0\n\
             address add 192.168.{lan}.1/24 dev {LAN}\n\
             link set {LAN} up\n"
        ))?;
        wire.route(host_v4(public), port)?;
        if plan.ipv6 {
            namespace.sysctl("net.ipv6.conf.all.forwarding", "1")?;
            namespace.ip(&format!(
                "neigh add {GATEWAY_V6} lladdr {GATEWAY_MAC} dev {WAN} nud permanent\n\
                 route add default via {GATEWAY_V6} dev {WAN}\n\
                 address add {}/64 dev {LAN} nodad\n",
                lan_v6(public, 1)
            ))?;
            wire.route(IpNet::V6(Ipv6Net::new(lan_v6(public, 0), 64)?), port)?;
        }
        namespace.nft(&plan.nat.rules(public))?;
        Ok(Self {
            namespace,
            port,
            public,
            lan,
            next_host: AtomicU8::new(10),
        })
    }

    fn plug(&self, seat: &Seat, node: &Namespace) -> Result<String> {
        let [.., host] = seat.v4.octets();
        let end = format!("node-{host}");
        let lines = format!(
            "link add name {UNDERLAY} netns {} mtu 1500 type veth peer name {end} netns {} mtu 1500",
            node.name(),
            self.namespace.name(),
        );
        process::succeed(Command::new("ip").args(["-batch", "-"]), lines.as_bytes())?;
        node.inside(|| sys::disable_offloads(UNDERLAY))??;
        self.namespace.inside(|| sys::disable_offloads(&end))??;
        self.namespace
            .ip(&format!("link set {end} master {LAN} up"))?;
        if seat.v6.is_none() {
            node.sysctl(&format!("net.ipv6.conf.{UNDERLAY}.disable_ipv6"), "1")?;
        }
        node.ip(&format!(
            "address add {}/24 dev {UNDERLAY}\n\
             link set {UNDERLAY} up\n\
             route add default via 192.168.{}.1 dev {UNDERLAY}\n",
            seat.v4, self.lan
        ))?;
        if let Some(v6) = seat.v6 {
            node.ip(&format!(
                "address add {v6}/64 dev {UNDERLAY} nodad\n\
                 route add default via {} dev {UNDERLAY}\n",
                lan_v6(self.public, 1)
            ))?;
        }
        Ok(end)
    }
}

/// Hangs a host with a public address on the core.
pub(crate) fn plug_into_core(
    wire: &Wire,
    site: &str,
    seat: &Seat,
    host: &Namespace,
) -> Result<Port> {
    let port = wire.attach(site, host, UNDERLAY)?;
    if seat.v6.is_none() {
        host.sysctl(&format!("net.ipv6.conf.{UNDERLAY}.disable_ipv6"), "1")?;
    }
    host.ip(&format!(
        "address add {}/32 dev {UNDERLAY}\n\
         route add default via {GATEWAY_V4} dev {UNDERLAY} onlink\n",
        seat.v4
    ))?;
    wire.route(host_v4(seat.v4), port)?;
    if let Some(v6) = seat.v6 {
        host.ip(&format!(
            "address add {v6}/128 dev {UNDERLAY} nodad\n\
             neigh add {GATEWAY_V6} lladdr {GATEWAY_MAC} dev {UNDERLAY} nud permanent\n\
             route add default via {GATEWAY_V6} dev {UNDERLAY}\n"
        ))?;
        wire.route(IpNet::V6(Ipv6Net::new(v6, 128)?), port)?;
    }
    Ok(port)
}

/// The public IPv6 address beside a public IPv4 address on the core.
pub(crate) fn open_v6(v4: Ipv4Addr) -> Ipv6Addr {
    let [_, _, net, host] = v4.octets();
    Ipv6Addr::new(0x2001, 0xdb8, 0, u16::from(net), 0, 0, 0, u16::from(host))
}

/// The public IPv6 address of a host in the LAN behind the router with this public IPv4 address.
fn lan_v6(public: Ipv4Addr, host: u16) -> Ipv6Addr {
    let [.., site] = public.octets();
    Ipv6Addr::new(0x2001, 0xdb8, u16::from(site), 1, 0, 0, 0, host)
}

fn host_v4(address: Ipv4Addr) -> IpNet {
    IpNet::V4(Ipv4Net::from(address))
}
