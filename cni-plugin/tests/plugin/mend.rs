//! What happens to the node's end of a pod after ADD, and how meshd puts it right: by what the
//! end itself tells, with no more than the kernel's tables.

use std::time::Duration;

use ipnet::IpNet;
use podmesh_kernel::{
    netns::NetNamespace,
    veth::{Holders, Mended, Mender},
};
use serde_json::json;

use crate::{
    namespaces::Namespace,
    node::{Node, pod},
};

/// A node with two pods, and meshd's part of the work.
struct Keeper {
    node: Node,
    pods: Vec<Namespace>,
    inside: NetNamespace,
    mender: Mender,
}

impl Keeper {
    fn new(name: &str) -> Self {
        let node = Node::new(name);
        let pods = vec![pod(), pod()];
        node.add("one", &pods[0]).expect_success();
        node.add("two", &pods[1]).expect_success();
        let inside = NetNamespace::open(&node.namespace.path()).unwrap();
        let mender = Mender::default();
        Self {
            node,
            pods,
            inside,
            mender,
        }
    }

    fn mend(&mut self) -> Mended {
        self.mend_among(None)
    }

    fn mend_among(&mut self, holders: Option<&Holders>) -> Mended {
        self.inside
            .run(|| self.mender.mend("pm", holders).unwrap())
            .unwrap()
    }

    /// The node's end of the pod with that address.
    fn end(&self, address: &str) -> String {
        let route = self
            .node
            .namespace
            .command(&format!("ip route show table 7077 {address}"));
        let words: Vec<_> = route.split_whitespace().collect();
        words[2].to_owned()
    }

    /// Within five seconds: after the node's end was down, the kernel switches the pod's on in the background.
    fn talk(&self) {
        for (pod, other) in [(0, 2), (1, 1)] {
            for address in [
                format!("10.42.3.{other}"),
                format!("fd12:3456:789a:103::{other}"),
                "10.77.0.3".to_owned(),
                "fd12:3456:789a::3".to_owned(),
            ] {
                self.pods[pod].command(&format!("ping -c1 -w5 {address}"));
            }
        }
    }

    fn alias(&self, end: &str) -> String {
        let path = format!("/sys/class/net/{end}/ifalias");
        self.node.namespace.command(&format!("cat {path}"))
    }
}

#[test]
fn whatever_is_done_to_the_nodes_end_is_put_right() {
    let mut keeper = Keeper::new("mended");
    assert_eq!(keeper.mend().repaired, Vec::<String>::new());
    let end = keeper.end("10.42.3.1");
    let before = keeper.node.namespace.command(&format!(
        "ip -d link show {end}; ip addr show {end} | grep inet; ip neigh show dev {end} nud permanent"
    ));
    for damage in [
        "ip link set $V down; ip link set $V up",
        "ip link set $V down",
        "ip addr flush dev $V",
        "ip neigh flush dev $V nud permanent; ip -6 neigh flush dev $V nud permanent",
        "ip route flush table 7077 dev $V; ip -6 route flush table 7077 dev $V",
        "sysctl -q net.ipv4.conf.$V.forwarding=0",
        "sysctl -q net.ipv6.conf.$V.forwarding=0",
        "sysctl -q net.ipv6.conf.$V.disable_ipv6=1",
        "sysctl -q net.ipv6.conf.$V.disable_ipv6=1; sysctl -q net.ipv6.conf.$V.disable_ipv6=0",
        "sysctl -q net.ipv4.conf.$V.arp_ignore=0 net.ipv4.conf.$V.rp_filter=0",
        "ip link set $V address 02:11:22:33:44:55",
        "ip link set $V down; ip link set $V name veth77; ip link set veth77 up",
        "ip link set $V mtu 576",
        "ip link set $V alias nonsense",
        "ip link add br7 type bridge; ip link set br7 up; ip link set $V master br7",
        "ip link set $V down; ip link set $V address 02:11:22:33:44:55 name veth77 alias nonsense",
    ] {
        keeper.node.namespace.command(&damage.replace("$V", &end));
        let mended = keeper.mend();
        assert_ne!(mended.repaired, Vec::<String>::new(), "{damage}");
        assert_eq!(mended.troubles, [], "{damage}");
        keeper.talk();
        let again = keeper.mend();
        assert_eq!(again.repaired, Vec::<String>::new(), "{damage}");
        assert!(mended.repaired[0].contains("10.42.3.1"), "{mended:?}");
    }
    keeper
        .node
        .run(
            &keeper
                .node
                .call("CHECK", "one", Some(&keeper.pods[0].path())),
        )
        .expect_success();
    let after = keeper.node.namespace.command(&format!(
        "ip -d link show {end}; ip addr show {end} | grep inet; ip neigh show dev {end} nud permanent"
    ));
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&after), sorted(&before));
}

#[test]
fn an_interface_that_takes_what_a_pod_sends_is_named() {
    let mut keeper = Keeper::new("seized");
    keeper.mend();
    let end = keeper.end("10.42.3.1");
    let add = |name: &str, mode: &str| {
        format!("ip link add {name} link {end} type macvlan mode {mode}; ip link set {name} up")
    };
    keeper.node.namespace.command(&add("mv7", "bridge"));
    assert!(keeper.mend().troubles.is_empty());
    keeper.talk();
    keeper.node.namespace.command("ip link del mv7");
    keeper.node.namespace.command(&add("mv8", "passthru"));
    let troubles = keeper.mend().troubles;
    assert_eq!(troubles.len(), 1, "{troubles:?}");
    let said = (&troubles[0].message, &troubles[0].next);
    assert!(said.0.contains("10.42.3.1"), "{said:?}");
    assert!(said.1.contains("`ip link del mv8`"), "{said:?}");
    keeper.node.namespace.command("ip link del mv8");
    keeper.mend();
    keeper.talk();
    assert!(keeper.mend().troubles.is_empty());
}

#[test]
fn an_end_that_was_moved_out_of_the_node_is_named_until_it_is_back() {
    let mut keeper = Keeper::new("moved");
    keeper.mend();
    let end = keeper.end("10.42.3.1");
    let (node, other) = (keeper.node.namespace.path(), keeper.pods[1].path());
    let (node, other) = (node.display(), other.display());
    keeper
        .node
        .namespace
        .command(&format!("ip link set {end} netns {other}"));
    for _ in 0..2 {
        let troubles = keeper.mend().troubles;
        assert_eq!(troubles.len(), 1, "{troubles:?}");
        assert!(
            troubles[0].message.contains("10.42.3.1") && troubles[0].next.contains(&end),
            "{troubles:?}"
        );
    }
    keeper.pods[1].command(&format!("ip link set {end} netns {node}"));
    keeper.mend();
    keeper.talk();
    assert!(keeper.mend().troubles.is_empty());
    // A pair that is gone as a whole is nobody's trouble.
    keeper.node.namespace.command(&format!("ip link del {end}"));
    assert!(keeper.mend().troubles.is_empty());
}

#[test]
fn a_meshd_that_starts_later_knows_what_stood() {
    let mut keeper = Keeper::new("later");
    let end = keeper.end("10.42.3.1");
    keeper.node.namespace.command(&format!(
        "ip link set {end} down; ip link set {end} name veth77; ip link set veth77 up"
    ));
    keeper.mend();
    keeper.talk();
}

#[test]
fn pods_of_an_older_version_are_learned_while_they_stand() {
    let mut keeper = Keeper::new("older");
    let end = keeper.end("10.42.3.1");
    let older = format!("podmesh podmesh {}", keeper.node.ledger().display());
    keeper
        .node
        .namespace
        .command(&format!("ip link set {end} alias \"{older}\""));
    // Half of a pod is nothing to learn from.
    keeper
        .node
        .namespace
        .command(&format!("ip -6 neigh flush dev {end} nud permanent"));
    keeper.mend();
    assert_eq!(keeper.alias(&end).trim(), older);
    keeper.node.namespace.command(&format!(
        "ip -6 neigh replace fd12:3456:789a:103::1 dev {end} nud permanent lladdr \
         $(ip neigh show 10.42.3.1 dev {end} | cut -d\" \" -f3)"
    ));
    assert_eq!(keeper.mend().repaired.len(), 1);
    let alias = keeper.alias(&end);
    assert!(alias.contains("10.42.3.1,fd12:3456:789a:103::1"), "{alias}");
    assert!(alias.trim().ends_with(&older), "{alias}");
    // What was learned is as good as what was told, also for the next meshd.
    keeper.mender = Mender::default();
    keeper
        .node
        .namespace
        .command(&format!("ip link set {end} down; ip link set {end} up"));
    assert_ne!(keeper.mend().repaired.len(), 0);
    keeper.talk();
    // The ledger that made it still finds it without its record.
    std::fs::remove_dir_all(keeper.node.ledger()).unwrap();
    std::fs::create_dir(keeper.node.ledger()).unwrap();
    keeper.node.gc(&[]).expect_success();
    assert_eq!(keeper.node.interfaces().len(), 0);
}

#[test]
fn a_pod_with_another_hardware_address_is_followed() {
    // As `tuning` does it, chained behind this plugin.
    let mut keeper = Keeper::new("tuned");
    keeper.mend();
    keeper.pods[0].command("ip link set eth0 address 02:aa:bb:cc:dd:03");
    let mended = keeper.mend();
    assert!(mended.is_young);
    assert_eq!(mended.repaired.len(), 2, "{mended:?}");
    // The pod itself has forgotten its gateway by that. A node without a way to the world answers nobody
    // who asks for it, and says so.
    assert_eq!(mended.troubles.len(), 1, "{mended:?}");
    assert!(
        mended.troubles[0].message.contains("hardware address"),
        "{mended:?}"
    );
    let check = keeper
        .node
        .call("CHECK", "one", Some(&keeper.pods[0].path()));
    assert_eq!(keeper.node.run(&check).code(), 103);
    keeper.node.namespace.command(
        "ip link add up0 type bridge; ip link set up0 up
         ip addr add 192.0.2.7/24 dev up0; ip route add default via 192.0.2.1",
    );
    assert_eq!(keeper.mend().troubles, []);
    keeper.talk();
    keeper.node.run(&check).expect_success();
    // Whoever asks under the address of another pod, or of nobody, isn't remembered.
    let end = keeper.end("10.42.3.1");
    let known = |keeper: &Keeper| {
        let listed = format!("ip neigh show dev {end}");
        let listed = keeper.node.namespace.command(&listed);
        listed.lines().filter(|line| !line.contains("fe80")).count()
    };
    let before = known(&keeper);
    keeper.pods[0].command(
        "ip addr add 10.42.3.2/32 dev eth0; ip addr add 10.99.0.1/32 dev eth0
         ip neigh flush dev eth0
         ping -c1 -W1 -I 10.42.3.2 10.77.0.3 || ping -c1 -W1 -I 10.99.0.1 10.77.0.3 || true",
    );
    assert_eq!(known(&keeper), before);
    keeper.pods[0].command("ip addr del 10.42.3.2/32 dev eth0; ip addr del 10.99.0.1/32 dev eth0");
    // Nor does an ADD for the same pod begin anew because of it.
    keeper.node.add("one", &keeper.pods[0]).expect_success();
    let link = keeper.pods[0].command("ip link show eth0");
    assert!(link.contains("02:aa:bb:cc:dd:03"), "{link}");
    // Nobody else's way changes, whatever address a pod takes.
    let other = keeper.pods[1].command("cat /sys/class/net/eth0/address");
    keeper.pods[0].command(&format!("ip link set eth0 address {}", other.trim()));
    remember_gateway(&keeper, 0);
    keeper.mend();
    keeper.talk();
}

#[test]
fn what_happens_inside_of_a_pod_is_said_with_its_name() {
    let mut keeper = Keeper::new("insidepod");
    keeper.mender = Mender::new(Duration::ZERO);
    let nothing = Mended {
        pods: 2,
        ..Mended::default()
    };
    assert_eq!(keeper.mend(), nothing);
    keeper.pods[0].command("ip link set eth0 down");
    let said = keeper.mend();
    assert_eq!(said.troubles.len(), 1, "{said:?}");
    assert!(
        said.troubles[0].message.contains("its own end is down"),
        "{said:?}"
    );
    // Up again it has lost its routes, which shows by the address that went with them.
    keeper.pods[0].command("ip link set eth0 up");
    let said = keeper.mend();
    assert_eq!(said.troubles.len(), 1, "{said:?}");
    let lost = "fd12:3456:789a:103::1 was lost inside the pod";
    assert!(said.troubles[0].message.contains(lost), "{said:?}");
    assert!(
        said.troubles[0]
            .message
            .starts_with("pod one (eth0, 10.42.3.1"),
        "{said:?}"
    );
}

/// As a pod does it that knows what its hardware address has to do with it.
fn remember_gateway(keeper: &Keeper, pod: usize) {
    let end = keeper.end(&format!("10.42.3.{}", pod + 1));
    let mac = format!("cat /sys/class/net/{end}/address");
    let mac = keeper.node.namespace.command(&mac);
    for gateway in ["169.254.1.1", "fe80::1"] {
        keeper.pods[pod].command(&format!(
            "ip neigh replace {gateway} dev eth0 nud permanent lladdr {}",
            mac.trim()
        ));
    }
}

#[test]
fn a_copied_alias_takes_nobodys_place() {
    let mut keeper = Keeper::new("copied");
    keeper.mend();
    let end = keeper.end("10.42.3.1");
    let alias = keeper.alias(&end);
    keeper.node.namespace.command(&format!(
        "ip link add pm00000000001 type veth peer name other
         ip link set pm00000000001 alias \"{}\"
         ip link set pm00000000001 up; ip link set other up",
        alias.trim()
    ));
    for mender in [Mender::default(), std::mem::take(&mut keeper.mender)] {
        keeper.mender = mender;
        let mended = keeper.mend();
        assert_eq!(mended.repaired, Vec::<String>::new());
        assert_eq!(mended.troubles.len(), 1, "{mended:?}");
        assert!(
            mended.troubles[0].message.contains("pm00000000001"),
            "{mended:?}"
        );
        assert_eq!(keeper.end("10.42.3.1"), end);
    }
    keeper.talk();
    // DEL removes the pod's own.
    keeper.node.del("one").expect_success();
    let links = keeper.node.namespace.command("ip -br link");
    assert!(
        !links.contains(&end) && links.contains("pm00000000001"),
        "{links}"
    );
}

#[test]
fn a_renamed_end_goes_with_its_pod_and_keeps_its_address_until_then() {
    let keeper = Keeper::new("renamed");
    let end = keeper.end("10.42.3.1");
    keeper.node.namespace.command(&format!(
        "ip link set {end} down; ip link set {end} name veth77; ip link set veth77 up"
    ));
    // Neither routed nor known, but told.
    std::fs::remove_dir_all(keeper.node.ledger()).unwrap();
    let third = pod();
    let other = keeper.node.add("three", &third).expect_success();
    assert_eq!(other.addresses()[0], "10.42.3.3");
    keeper.node.del("one").expect_success();
    let links = keeper.node.namespace.command("ip -br link");
    assert!(!links.contains("veth77"), "{links}");
    let mut call = keeper.node.call("GC", "", None);
    call.config = keeper.node.config_with(json!({
        "cniVersion": "1.1.0",
        "cni.dev/valid-attachments": [],
    }));
    keeper.node.run(&call).expect_success();
    assert_eq!(keeper.node.interfaces().len(), 0);
}

#[test]
fn pods_that_stand_in_ranges_of_others_are_named_and_shadow_nobody() {
    let mut keeper = Keeper::new("strays");
    let (v4, v6) = ("10.42.3.0/24", "fd12:3456:789a:103::/64");
    let own = Holders {
        own: ranges(&[v4, v6]),
        others: ranges(&["10.42.0.0/16"]),
    };
    let found = keeper.mend_among(Some(&own));
    assert_eq!((found.strays.len(), found.pods), (0, 2), "{found:?}");
    // The node has left and joined again, and its range is another node's by now.
    let moved = Holders {
        own: ranges(&["10.42.9.0/24", "fd12:3456:789a:109::/64"]),
        others: ranges(&[v4]),
    };
    let mut file = keeper.node.node_file();
    file["pod_cidrs"] = json!(["10.42.9.0/24", "fd12:3456:789a:109::/64"]);
    keeper.node.write_node_file(&file);
    let found = keeper.mend_among(Some(&moved));
    assert_eq!(found.strays.len(), 2, "{found:?}");
    let stray = &found.strays[0];
    for words in ["pod one (eth0, 10.42.3.1", "10.42.9.0/24", "another node"] {
        assert!(stray.message.contains(words), "{stray:?}");
    }
    assert!(stray.next.contains("delete this pod"), "{stray:?}");
    let routed = |keeper: &Keeper| {
        let routes =
            "ip -4 -o route show table 7077 proto 178; ip -6 -o route show table 7077 proto 178";
        keeper.node.namespace.command(routes)
    };
    let routes = routed(&keeper);
    assert!(
        !routes.contains("10.42.3.") && routes.contains("789a:103::1"),
        "packets go to who holds the range; what nobody holds goes on: {routes}"
    );
    assert_eq!(
        keeper.mend_among(Some(&moved)).repaired,
        Vec::<String>::new()
    );
    is_refused(&keeper, "10.42.3.1");
    // Its ranges are its own again.
    let found = keeper.mend_among(Some(&own));
    assert_eq!(found.strays, []);
    assert_eq!(keeper.mend().repaired, Vec::<String>::new());
    keeper.talk();
}

#[test]
fn a_pod_of_which_one_family_alone_has_moved_is_named() {
    let mut keeper = Keeper::new("halfstray");
    let v4 = "10.42.3.0/24";
    let mut file = keeper.node.node_file();
    let half = Holders {
        own: ranges(&[v4, "fd12:3456:789a:109::/64"]),
        others: Vec::new(),
    };
    file["pod_cidrs"] = json!([v4, "fd12:3456:789a:109::/64"]);
    keeper.node.write_node_file(&file);
    let found = keeper.mend_among(Some(&half));
    assert_eq!(found.strays.len(), 2, "{found:?}");
    assert!(
        found.strays[0]
            .message
            .contains(": fd12:3456:789a:103::1 is in")
    );
    is_refused(&keeper, "fd12:3456:789a:103::1");
    // IPv6 is left out on this machine, and its ranges aren't known.
    file["pod_cidrs"] = json!([v4]);
    file["overlay_addresses"] = json!(["10.77.0.3"]);
    keeper.node.write_node_file(&file);
    let check = keeper
        .node
        .call("CHECK", "one", Some(&keeper.pods[0].path()));
    let answer = keeper.node.run(&check);
    assert!(
        !answer.output.to_string().contains("pod CIDRs"),
        "{answer:?}"
    );
}

fn ranges(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|one| one.parse().unwrap()).collect()
}

/// CHECK names the address and what helps.
fn is_refused(keeper: &Keeper, address: &str) {
    let check = keeper
        .node
        .call("CHECK", "one", Some(&keeper.pods[0].path()));
    let answer = keeper.node.run(&check);
    let said = answer.output["msg"].as_str().unwrap_or_default();
    assert_eq!(answer.code(), 103, "{answer:?}");
    assert!(
        said.contains(address) && said.contains("delete the pod"),
        "{answer:?}"
    );
}
