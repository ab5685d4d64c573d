//! What can be done to a host.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use podmesh_lab::{Node, Pod, wait};

/// For a folder to be cleared.
const CLEARING: Duration = Duration::from_secs(2);

/// A thing that somebody does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    RulesetFlushed,
    TableDeleted,
    GuardChainFlushed,
    NatChainFlushed,
    AcceptInserted,
    RoutingRuleDeleted,
    RoutesFlushed,
    PodRouteDeleted,
    DeviceDown,
    DeviceDeleted,
    DeviceRenamed,
    DeviceAddressesFlushed,
    DeviceMtu,
    ForwardingOff,
    DeviceForwardingOff,
    DeviceIpv6Off,
    StrictReversePath,
    PodForwardingOff,
    PodIpv6OffAndOn,
    PodDownAndUp,
    PodHardwareAddress,
    PodNeighboursFlushed,
    ConnectionsForgotten,
    NodeFileRemoved,
    NodeFileOverwritten,
    RuntimeFolderRemoved,
    SocketRemoved,
    SocketClosed,
    ForeignFirewall,
    ForeignTables,
    ForeignLegacyTables,
    ForeignRoutingRule,
    ForeignDevice,
    ForeignRoute,
    UnderlayDownAndUp,
    UnderlayRoutesLost,
    UnderlayAddressesLost,
}

impl Kind {
    const ALL: [Self; 37] = [
        Self::RulesetFlushed,
        Self::TableDeleted,
        Self::GuardChainFlushed,
        Self::NatChainFlushed,
        Self::AcceptInserted,
        Self::RoutingRuleDeleted,
        Self::RoutesFlushed,
        Self::PodRouteDeleted,
        Self::DeviceDown,
        Self::DeviceDeleted,
        Self::DeviceRenamed,
        Self::DeviceAddressesFlushed,
        Self::DeviceMtu,
        Self::ForwardingOff,
        Self::DeviceForwardingOff,
        Self::DeviceIpv6Off,
        Self::StrictReversePath,
        Self::PodForwardingOff,
        Self::PodIpv6OffAndOn,
        Self::PodDownAndUp,
        Self::PodHardwareAddress,
        Self::PodNeighboursFlushed,
        Self::ConnectionsForgotten,
        Self::NodeFileRemoved,
        Self::NodeFileOverwritten,
        Self::RuntimeFolderRemoved,
        Self::SocketRemoved,
        Self::SocketClosed,
        Self::ForeignFirewall,
        Self::ForeignTables,
        Self::ForeignLegacyTables,
        Self::ForeignRoutingRule,
        Self::ForeignDevice,
        Self::ForeignRoute,
        Self::UnderlayDownAndUp,
        Self::UnderlayRoutesLost,
        Self::UnderlayAddressesLost,
    ];

    /// Those whose names begin with what `HOST_FAULTS_KIND` says, or all.
    fn wanted() -> Vec<Self> {
        let begin = std::env::var("HOST_FAULTS_KIND").unwrap_or_default();
        let is_wanted = |kind: &Self| format!("{kind:?}").starts_with(&begin);
        Self::ALL.into_iter().filter(is_wanted).collect()
    }

    /// Whether it is somebody's right, so that meshd can only say what is wrong.
    pub(super) fn is_named(self) -> bool {
        !self.words().is_empty()
    }

    /// What Health says of it, one of them.
    pub(super) fn words(self) -> &'static [&'static str] {
        match self {
            Self::ForeignFirewall => &["chain refuse of table inet theirs"],
            Self::ForeignTables => &["chain FORWARD of table ip filter"],
            Self::ForeignLegacyTables => &["chain FORWARD of table iptables-legacy filter"],
            Self::ForeignRoutingRule => &["somebody else's routing rule"],
            Self::ForeignDevice => &["mesh0 is somebody else's: a bridge"],
            Self::ForeignRoute => &["packets for the route 10.42.200.0/24 of theirs"],
            _ => &[],
        }
    }

    pub(super) fn takes_files(self) -> bool {
        matches!(
            self,
            Self::NodeFileRemoved
                | Self::NodeFileOverwritten
                | Self::RuntimeFolderRemoved
                | Self::SocketRemoved
                | Self::SocketClosed
        )
    }

    /// As lines of a shell on the node. `$pm` is the node's end of a pod, `$pod` that pod's address, `$f`
    /// one of the families and `$n` a number.
    fn script(self) -> &'static str {
        match self {
            Self::RulesetFlushed => "nft flush ruleset",
            Self::TableDeleted => "nft delete table inet podmesh",
            Self::GuardChainFlushed => "nft flush chain inet podmesh fail-closed",
            Self::NatChainFlushed => "nft flush chain inet podmesh source-nat",
            Self::AcceptInserted => "nft insert rule inet podmesh fail-closed accept",
            Self::RoutingRuleDeleted => {
                "for p in 4990 4991 5000; do ip $f rule del pref $p; done; true"
            }
            Self::RoutesFlushed => "ip $f route flush table 7077",
            Self::PodRouteDeleted => "ip route del $pod table 7077",
            Self::DeviceDown => "ip link set mesh0 down",
            Self::DeviceDeleted => "ip link del mesh0",
            Self::DeviceRenamed => {
                "ip link set mesh0 down; ip link set mesh0 name other$n; sleep 0.5; ip link del other$n; true"
            }
            Self::DeviceAddressesFlushed => "ip addr flush dev mesh0",
            Self::DeviceMtu => "ip link set mesh0 mtu 576",
            Self::ForwardingOff => {
                "sysctl -q net.ipv4.ip_forward=0; sysctl -q net.ipv6.conf.all.forwarding=0"
            }
            Self::DeviceForwardingOff => "sysctl -q net.ipv4.conf.mesh0.forwarding=0",
            Self::DeviceIpv6Off => "sysctl -q net.ipv6.conf.mesh0.disable_ipv6=1",
            Self::StrictReversePath => {
                "sysctl -q net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.mesh0.rp_filter=1"
            }
            Self::PodForwardingOff => "sysctl -q net.ipv4.conf.$pm.forwarding=0",
            Self::PodIpv6OffAndOn => {
                "sysctl -q net.ipv6.conf.$pm.disable_ipv6=1; sysctl -q net.ipv6.conf.$pm.disable_ipv6=0"
            }
            Self::PodDownAndUp => "ip link set $pm down; ip link set $pm up",
            Self::PodHardwareAddress => "ip link set $pm address 02:00:00:00:00:$n",
            Self::PodNeighboursFlushed => "ip neigh flush dev $pm nud permanent; true",
            Self::ConnectionsForgotten => "conntrack -F 2>/dev/null",
            _ => self.script_of_others(),
        }
    }

    /// What is done beside podmesh's own; nothing for what isn't done by a shell.
    fn script_of_others(self) -> &'static str {
        match self {
            Self::ForeignFirewall => {
                "nft add table inet theirs; \
                 nft add chain inet theirs refuse '{ type filter hook forward priority 10; }'; \
                 nft add rule inet theirs refuse ct state established accept; \
                 nft add rule inet theirs refuse iifname lo accept; \
                 nft add rule inet theirs refuse reject with icmpx admin-prohibited"
            }
            Self::ForeignTables => "iptables -P FORWARD DROP",
            Self::ForeignLegacyTables => "iptables-legacy -P FORWARD DROP",
            Self::ForeignRoutingRule => "ip rule add pref 100 to 10.42.0.0/16 lookup 99",
            // In one go, and once more where meshd has made its own anew in between.
            Self::ForeignDevice => {
                "ip link add other$n type bridge; for try in 1 2 3 4 5 6 7 8 9; do \
                 printf \"link del mesh0\\nlink set other$n name mesh0\\n\" | ip -batch - 2>/dev/null && exit; \
                 done; exit 1"
            }
            Self::ForeignRoute => {
                "ip link add theirs$n type bridge; ip link set theirs$n up; \
                 ip route add 10.42.200.0/24 dev theirs$n"
            }
            Self::UnderlayDownAndUp => "underlay 'ip link set eth0 down' 'ip link set eth0 up'",
            Self::UnderlayRoutesLost => "underlay 'ip $f route flush default' true",
            Self::UnderlayAddressesLost => "underlay 'ip addr flush dev eth0 scope global' true",
            _ => "true",
        }
    }

    /// Ends what only whoever did it may end.
    fn remedy(self) -> &'static str {
        match self {
            Self::ForeignFirewall => "nft delete table inet theirs",
            Self::ForeignTables => "nft delete table ip filter",
            Self::ForeignLegacyTables => "iptables-legacy -P FORWARD ACCEPT",
            Self::ForeignRoutingRule => "ip rule del pref 100",
            Self::ForeignDevice => "ip link del mesh0",
            Self::ForeignRoute => "ip link del theirs$n",
            _ => "true",
        }
    }
}

/// A function of the shell that does its first word to the underlay and its second word up to three seconds later,
/// and then puts back what the kernel forgot meanwhile, as the network manager of a machine does it: addresses,
/// routes, and the gateway, which answers nobody who asks for it in the lab.
const UNDERLAY: &str = r#"
underlay() {
  four=$(ip -4 route show default) six=$(ip -6 route show default)
  addresses=$(ip -o addr show dev eth0 scope global | awk '{ print $4 }')
  gateways=$(ip neigh show dev eth0 nud permanent | awk '{ print $1 " " $3 }')
  eval "$1"; sleep $((n % 4)); eval "$2"
  for address in $addresses; do ip addr replace $address dev eth0 nodad; done
  echo "$gateways" | while read gateway station; do
    [ -z "$gateway" ] || ip neigh replace $gateway lladdr $station dev eth0 nud permanent
  done
  [ -z "$four" ] || ip -4 route replace $four
  [ -z "$six" ] || ip -6 route replace $six
}
"#;

/// One of them, done to something.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub(super) kind: Kind,
    interface: String,
    address: String,
    family: &'static str,
    number: u64,
}

impl Fault {
    pub(super) fn any(random: &mut Random, pods: &[Arc<Pod>]) -> Self {
        let pod = &pods[random.below(pods.len())];
        let kinds = Kind::wanted();
        Self {
            kind: kinds[random.below(kinds.len())],
            interface: host_end(pod).expect("the node's end of a pod"),
            address: pod.address(false).expect("an address").to_string(),
            family: ["-4", "-6"][random.below(2)],
            number: 10 + random.below(80) as u64,
        }
    }

    pub(super) fn commit(&self, node: &Node) -> Result<()> {
        let run = node.runtime_dir();
        match self.kind {
            Kind::NodeFileRemoved => fs::remove_file(run.join("node.json"))?,
            Kind::NodeFileOverwritten => fs::write(run.join("node.json"), "{")?,
            // meshd may put something there while it is cleared.
            Kind::RuntimeFolderRemoved => wait::until("an empty folder", CLEARING, || {
                Ok(match fs::remove_dir_all(&run) {
                    Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {
                        wait::NotYet(error.to_string())
                    }
                    done => wait::Now(done?),
                })
            })?,
            Kind::SocketRemoved => fs::remove_file(run.join("meshd.sock"))?,
            Kind::SocketClosed => {
                let closed = fs::Permissions::from_mode(0o000);
                fs::set_permissions(run.join("meshd.sock"), closed)?;
            }
            kind => self.run(node, kind.script())?,
        }
        // Notices are on their way.
        thread::sleep(Duration::from_millis(20));
        Ok(())
    }

    pub(super) fn undo(&self, node: &Node) -> Result<()> {
        self.run(node, self.kind.remedy())
    }

    fn run(&self, node: &Node, script: &str) -> Result<()> {
        let set = format!(
            "{UNDERLAY}pm={} pod={} f={} n={}; {script}",
            self.interface, self.address, self.family, self.number
        );
        node.namespace().run(&["sh", "-c", &set])?;
        Ok(())
    }
}

fn host_end(pod: &Pod) -> Result<String> {
    let interfaces = pod.result()["interfaces"]
        .as_array()
        .context("no interfaces")?;
    let names = interfaces
        .iter()
        .filter_map(|interface| interface["name"].as_str());
    let mut ours = names.filter(|name| name.starts_with("pm"));
    Ok(ours.next().context("no interface of the node")?.to_owned())
}

/// Numbers that a seed decides (splitmix64).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// One of so many.
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        usize::try_from(mixed % limit as u64).expect("less than a usize")
    }
}
