//! One packet that stands for all packets of a kind, and what is certain about it.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Hook, Traffic};

/// What passes this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// From a pod of this node to one of another.
    Outward,
    /// From a pod of another node to one of this.
    Inward,
    /// Between two pods of this node.
    Between,
    /// A datagram of the tunnels that begins a conversation with a peer.
    TunnelOut,
    /// A datagram of a peer that answers one.
    TunnelIn,
    /// From a pod of this node to the node itself.
    PodToNode,
    /// From another node to this node itself.
    PeerToNode,
    /// From this node itself to its pods.
    NodeToPod,
    /// From this node itself to another node.
    NodeToPeer,
    /// From a pod of this node to the world.
    World,
}

impl Way {
    pub(super) const ALL: [Self; 10] = [
        Self::Outward,
        Self::Inward,
        Self::Between,
        Self::TunnelOut,
        Self::TunnelIn,
        Self::PodToNode,
        Self::PeerToNode,
        Self::NodeToPod,
        Self::NodeToPeer,
        Self::World,
    ];
    pub(super) const PODS: [Self; 3] = [Self::Outward, Self::Inward, Self::Between];
    pub(super) const TUNNEL: [Self; 2] = [Self::TunnelOut, Self::TunnelIn];

    /// Whether one end is this machine itself: who names its interfaces and refuses what comes by them means
    /// it so.
    pub(super) fn is_of_node(self) -> bool {
        matches!(
            self,
            Self::PodToNode | Self::PeerToNode | Self::NodeToPod | Self::NodeToPeer
        )
    }

    /// Whether the other family does where one is closed to what this machine sends.
    pub(super) fn needs_one_family(self) -> bool {
        Self::TUNNEL.contains(&self) || matches!(self, Self::NodeToPod | Self::NodeToPeer)
    }

    /// Whether its packets come by that hook. To this machine itself they are judged where they arrive or
    /// begin: what is on their way before is others' way, too.
    pub(super) fn passes(self, hook: Hook) -> bool {
        match self {
            Self::Outward | Self::Inward | Self::Between => {
                matches!(hook, Hook::Prerouting | Hook::Forward | Hook::Postrouting)
            }
            Self::TunnelOut => matches!(hook, Hook::Output | Hook::Postrouting),
            Self::TunnelIn => matches!(hook, Hook::Prerouting | Hook::Input),
            Self::PodToNode | Self::PeerToNode => hook == Hook::Input,
            Self::NodeToPod | Self::NodeToPeer => hook == Hook::Output,
            Self::World => hook == Hook::Prerouting,
        }
    }

    /// Whether its packets come in, or go out, by interfaces with a chain of their own. Those of the tunnels
    /// may have another uplink unless all are among these.
    pub(super) fn uses(self, hook: Hook, devices: &[String], traffic: &Traffic, v4: bool) -> bool {
        let has_pods = || {
            devices
                .iter()
                .any(|one| one.starts_with(&traffic.veth_prefix))
        };
        let has_mesh = || devices.contains(&traffic.device);
        let uplinks = traffic.uplinks(v4);
        let has_uplinks = || !uplinks.is_empty() && uplinks.iter().all(|one| devices.contains(one));
        match (self, hook) {
            (Self::Outward | Self::Between | Self::PodToNode, Hook::Ingress) => has_pods(),
            (Self::Inward | Self::Between | Self::NodeToPod, Hook::Egress) => has_pods(),
            (Self::Inward | Self::PeerToNode, Hook::Ingress)
            | (Self::Outward | Self::NodeToPeer, Hook::Egress) => has_mesh(),
            (Self::TunnelIn, Hook::Ingress) | (Self::TunnelOut, Hook::Egress) => has_uplinks(),
            _ => false,
        }
    }

    /// Whether its packets are asked about by chains that translate, as the first of a connection is.
    pub(super) fn begins_anew(self) -> bool {
        self != Self::TunnelIn
    }
}

/// How much a value says about the other packets of the same kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nature {
    /// All have it.
    Certain,
    /// All have it, and it is podmesh's own: who names it means podmesh.
    Own,
    /// The name of one pod's interface; the others' begin the same.
    Pod,
    /// The name of an interface of the underlay, whatever that is; not the loopback's.
    Underlay,
    /// An address of these; the others have others.
    Address(Addresses),
    /// A port or protocol that stands for those that nobody makes rules about.
    Any,
}

/// Those that one end of such packets may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) range: IpNet,
    /// A part of it that is of the other end alone: none of them has such an address.
    pub(super) without: Option<IpNet>,
}

impl Addresses {
    const fn all(range: IpNet) -> Self {
        Self {
            range,
            without: None,
        }
    }

    /// Whether none of them lies in that range.
    pub(super) fn lack(&self, named: &IpNet) -> bool {
        self.without.is_some_and(|without| without.contains(named))
    }
}

/// Bytes of a packet or about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) bytes: Vec<u8>,
    pub(super) nature: Nature,
    /// Which bits of an address are left.
    pub(super) mask: Vec<u8>,
    /// The name stands for the number of that interface.
    pub(super) is_index: bool,
}

impl Value {
    pub(super) fn new(bytes: impl Into<Vec<u8>>, nature: Nature) -> Self {
        let bytes = bytes.into();
        let mask = vec![0xff; bytes.len()];
        Self {
            bytes,
            nature,
            mask,
            is_index: false,
        }
    }

    /// As it lies in registers.
    pub(super) fn padded(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// With the bytes of each number the other way round.
    pub(super) fn swapped(&self, size: usize) -> Self {
        let swap = |bytes: &[u8]| -> Vec<u8> {
            let numbers = bytes.chunks(size.max(1));
            numbers
                .flat_map(|number| number.iter().rev().copied())
                .collect()
        };
        let is_little = cfg!(target_endian = "little");
        let bytes = if is_little {
            swap(&self.bytes)
        } else {
            self.bytes.clone()
        };
        Self {
            bytes,
            ..self.clone()
        }
    }

    /// Some of its bytes.
    fn part(&self, from: usize, length: usize) -> Option<Self> {
        let end = from.checked_add(length)?;
        Some(Self {
            bytes: self.bytes.get(from..end)?.to_vec(),
            nature: self.nature,
            mask: self.mask.get(from..end)?.to_vec(),
            is_index: self.is_index,
        })
    }
}

/// The packet, where it is asked about. What is `None` nobody knows.
#[derive(Debug, Clone)]
pub(super) struct Packet {
    pub(super) is_ipv4: bool,
    pub(super) incoming: Option<Value>,
    pub(super) outgoing: Option<Value>,
    pub(super) source: Option<Value>,
    pub(super) destination: Option<Value>,
    pub(super) protocol: Value,
    pub(super) source_port: Option<Value>,
    pub(super) destination_port: Option<Value>,
    pub(super) mark: Option<Value>,
    /// The state of its connection, as a bit.
    pub(super) state: Option<u32>,
}

const ESTABLISHED: u32 = 1 << 1;
const NEW: u32 = 1 << 3;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Ports that no rule has a reason to name.
const SOME_PORT: u16 = 50_321;
const OTHER_PORT: u16 = 50_333;
const NAME_BYTES: usize = 16;
/// Where the kernel begins to track connections.
pub(super) const TRACKING: i32 = -200;

impl Packet {
    /// One that begins a conversation of which nothing is known.
    fn plain(is_ipv4: bool) -> Self {
        Self {
            is_ipv4,
            incoming: None,
            outgoing: None,
            source: None,
            destination: None,
            protocol: Value::new([TCP], Nature::Any),
            source_port: Some(Value::new(SOME_PORT.to_be_bytes(), Nature::Any)),
            destination_port: Some(Value::new(OTHER_PORT.to_be_bytes(), Nature::Any)),
            mark: Some(Value::new([0; 4], Nature::Certain)),
            state: Some(NEW),
        }
    }

    /// One of a stranger who begins a conversation with this machine.
    pub(super) fn of_stranger(is_ipv4: bool) -> Self {
        Self {
            incoming: Some(underlay()),
            outgoing: Some(Value::new([0; NAME_BYTES], Nature::Certain)),
            ..Self::plain(is_ipv4)
        }
    }

    /// The same, as an answer to one that was sent before.
    pub(super) fn answered(self) -> Self {
        Self {
            state: Some(ESTABLISHED),
            ..self
        }
    }

    /// `None` if this node has no such packets.
    pub(super) fn of(
        way: Way,
        is_ipv4: bool,
        (hook, priority): (Hook, i32),
        traffic: &Traffic,
    ) -> Option<Self> {
        let mut packet = match way {
            Way::Outward | Way::Inward | Way::Between => pods(way, is_ipv4, traffic)?,
            Way::TunnelOut | Way::TunnelIn => tunnel(way, is_ipv4, traffic)?,
            Way::World => Self {
                destination: None,
                ..pods(Way::Outward, is_ipv4, traffic)?
            },
            _ => node(way, is_ipv4, traffic)?,
        };
        let nobody = Value::new([0; NAME_BYTES], Nature::Certain);
        match hook {
            Hook::Prerouting | Hook::Input | Hook::Ingress => packet.outgoing = Some(nobody),
            Hook::Output => packet.incoming = Some(nobody),
            // Kernels differ in whether they still know.
            Hook::Postrouting | Hook::Egress => packet.incoming = None,
            Hook::Forward => {}
        }
        let is_before = matches!(hook, Hook::Prerouting | Hook::Output) && priority <= TRACKING;
        if is_before || matches!(hook, Hook::Ingress | Hook::Egress) {
            packet.state = None;
        }
        Some(packet)
    }
}

/// What rules ask about the packet.
impl Packet {
    /// What is known about it beside its bytes, by nftables' key.
    pub(super) fn meta(&self, key: u32) -> Option<Value> {
        let certain = |bytes: &[u8]| Some(Value::new(bytes, Nature::Certain));
        let (number, ethernet): (u8, u16) = if self.is_ipv4 {
            (2, 0x0800)
        } else {
            (10, 0x86dd)
        };
        match key {
            1 => certain(&ethernet.to_be_bytes()),
            3 => self.mark.clone(),
            6 => self.incoming.clone(),
            7 => self.outgoing.clone(),
            15 => certain(&[number]),
            16 => Some(self.protocol.clone()),
            // Sent to this machine, as far as the link is concerned.
            19 => certain(&[0]),
            _ => None,
        }
    }

    /// Bytes of one of its headers, by nftables' number of the header.
    pub(super) fn payload(&self, base: u32, offset: usize, length: usize) -> Option<Value> {
        const NETWORK: u32 = 1;
        const TRANSPORT: u32 = 2;
        let (size, source, protocol) = if self.is_ipv4 { (4, 12, 9) } else { (16, 8, 6) };
        let part = |value: Option<&Value>, from: usize| {
            // From the middle of an address on nobody knows which network that is.
            value.filter(|_| offset == from)?.part(0, length)
        };
        match base {
            NETWORK if offset == protocol => part(Some(&self.protocol), protocol),
            NETWORK if offset == source => part(self.source.as_ref(), source),
            NETWORK if offset == source + size => part(self.destination.as_ref(), source + size),
            TRANSPORT if offset == 0 => part(self.source_port.as_ref(), 0),
            TRANSPORT if offset == 2 => part(self.destination_port.as_ref(), 2),
            _ => None,
        }
    }

    /// What is known of its connection, by nftables' key.
    pub(super) fn connection(&self, key: u32) -> Option<Value> {
        const STATE: u32 = 0;
        const DIRECTION: u32 = 1;
        const STATUS: u32 = 2;
        const MARK: u32 = 3;
        let state = self.state?;
        match key {
            STATE => Some(Value::new(state.to_ne_bytes(), Nature::Certain)),
            DIRECTION if state == NEW => Some(Value::new([0], Nature::Certain)),
            // Neither translated nor answered yet.
            STATUS if state == NEW => Some(Value::new([0; 4], Nature::Certain)),
            MARK if state == NEW => Some(Value::new([0; 4], Nature::Certain)),
            _ => None,
        }
    }
}

fn pods(way: Way, is_ipv4: bool, traffic: &Traffic) -> Option<Packet> {
    let mut own = traffic.own_pod_cidrs.iter();
    let own = *own.find(|cidr| cidr.addr().is_ipv4() == is_ipv4)?;
    let all = traffic.protected.iter().find(|range| range.contains(&own));
    let all = all.copied().unwrap_or(own);
    let here = || Some(address(Addresses::all(own), own.network()));
    // Not the own range's address, unless there is no other.
    let there = || {
        let (first, last) = (all.network(), all.broadcast());
        let address_there = if own.contains(&last) { first } else { last };
        let others = Addresses {
            range: all,
            without: (!own.contains(&address_there)).then_some(own),
        };
        Some(address(others, address_there))
    };
    let device = || Some(Value::new(name(&traffic.device), Nature::Own));
    let pod = || {
        let example = format!("{}00000000", traffic.veth_prefix);
        Some(Value::new(name(&example), Nature::Pod))
    };
    let (incoming, outgoing, source, destination) = match way {
        Way::Inward => (device(), pod(), there(), here()),
        Way::Between => (pod(), pod(), here(), here()),
        _ => (pod(), device(), here(), there()),
    };
    Some(Packet {
        incoming,
        outgoing,
        source,
        destination,
        ..Packet::plain(is_ipv4)
    })
}

/// Between this machine itself and a pod or another node.
fn node(way: Way, is_ipv4: bool, traffic: &Traffic) -> Option<Packet> {
    let mut own = traffic.own_overlay.iter();
    let own = *own.find(|address| address.is_ipv4() == is_ipv4)?;
    let range = traffic.protected.iter().find(|range| range.contains(&own));
    let range = range.copied().unwrap_or_else(|| own.into());
    let here = Some(address(Addresses::all(range), own));
    let is_pods = matches!(way, Way::PodToNode | Way::NodeToPod);
    let like = if is_pods { Way::Outward } else { Way::Inward };
    let packet = match pods(like, is_ipv4, traffic) {
        Some(packet) => packet,
        None if is_pods => return None,
        None => Packet::plain(is_ipv4),
    };
    let there = if is_pods {
        packet.source.clone()
    } else {
        let last = range.broadcast();
        let other = if last == own { range.network() } else { last };
        let others = Addresses {
            range,
            without: (other != own).then(|| own.into()),
        };
        Some(address(others, other))
    };
    let device = if is_pods {
        packet.incoming.clone()
    } else {
        Some(Value::new(name(&traffic.device), Nature::Own))
    };
    let is_in = matches!(way, Way::PodToNode | Way::PeerToNode);
    let (source, destination) = if is_in { (there, here) } else { (here, there) };
    Some(Packet {
        incoming: device.clone(),
        outgoing: device,
        source,
        destination,
        ..packet
    })
}

fn tunnel(way: Way, is_ipv4: bool, traffic: &Traffic) -> Option<Packet> {
    let port = Some(Value::new(traffic.port?.to_be_bytes(), Nature::Own));
    let is_out = way == Way::TunnelOut;
    let mark = if is_out { traffic.mark.value } else { 0 };
    let mark = Value::new(mark.to_ne_bytes(), Nature::Certain);
    let (source_port, destination_port) = if is_out { (port, None) } else { (None, port) };
    Some(Packet {
        is_ipv4,
        incoming: Some(uplink(traffic.uplinks(is_ipv4))),
        outgoing: Some(uplink(traffic.uplinks(is_ipv4))),
        source: None,
        destination: None,
        protocol: Value::new([UDP], Nature::Certain),
        source_port,
        destination_port,
        mark: Some(mark),
        state: Some(if is_out { NEW } else { ESTABLISHED }),
    })
}

/// The interface of the tunnels' datagrams: certain where there is but one.
fn uplink(uplinks: &[String]) -> Value {
    match uplinks {
        [one] => Value::new(name(one), Nature::Certain),
        _ => underlay(),
    }
}

fn underlay() -> Value {
    Value::new([b'?'; NAME_BYTES], Nature::Underlay)
}

fn address(one_of: Addresses, address: IpAddr) -> Value {
    let nature = Nature::Address(one_of);
    match address {
        IpAddr::V4(address) => Value::new(address.octets(), nature),
        IpAddr::V6(address) => Value::new(address.octets(), nature),
    }
}

/// A name as rules write it.
pub(super) fn name(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(NAME_BYTES, 0);
    bytes
}
