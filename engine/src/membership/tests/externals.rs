//! Members and external peers that want the same.

use super::*;

const KEY: u8 = 50;

impl Table {
    fn external(&self, prefixes: &[&str], issued: u64) -> RootStatement {
        RootStatement::External(ExternalPeer {
            network: self.authority.network.id,
            name: name("phone"),
            wireguard: Keys::new(KEY).wireguard.public(),
            prefixes: nets(prefixes),
            endpoint: None,
            issued: START.plus(issued),
        })
    }

    fn holds(&self) -> bool {
        let key = Keys::new(KEY).wireguard.public();
        self.members.external(&key).is_some()
    }

    /// A node that has just joined, and learns everything at once.
    fn newcomer() -> Self {
        let mut table = Self::new();
        table.members.start_batch();
        table
    }

    fn admitted(&self, number: u8, at: u64) -> Draft {
        let mut draft = self.draft(number);
        draft.admitted = START.plus(at);
        draft
    }
}

/// What an external peer may want of node 2.
const WANTED: [&str; 5] = [
    "10.77.0.2/32",
    "10.77.0.2/31",
    "10.42.2.0/24",
    "10.42.2.7/32",
    "10.42.2.0/23",
];

#[test]
fn a_newcomer_gives_the_place_to_whoever_was_there_first_in_whatever_order_it_is_told() {
    for wanted in WANTED {
        for (node_at, peer_at, node_wins) in [(10, 20, true), (20, 10, false), (15, 15, true)] {
            for node_first in [true, false] {
                let mut table = Table::newcomer();
                let (node, peer) = (
                    table.admitted(2, node_at),
                    table.external(&[wanted], peer_at),
                );
                if node_first {
                    table.learn(&node);
                    table.say(&peer);
                } else {
                    table.say(&peer);
                    table.learn(&node);
                }
                let case = format!("{wanted}, {node_at} and {peer_at}, {node_first}");
                assert_eq!(table.knows(2), node_wins, "{case}");
                assert_eq!(table.holds(), !node_wins, "{case}");
                assert_eq!(table.codes(), ["MESH-TRUST-002"], "{case}");
                assert!(table.knows(1), "{case}");
            }
        }
    }
}

#[test]
fn nobody_gives_way_for_nothing() {
    // Node 1 is known, and holds an address of the same prefix.
    let mut table = Table::newcomer();
    table.learn(&table.admitted(2, 20));
    table.say(&table.external(&["10.77.0.0/30"], 10));
    assert!(table.knows(1) && table.knows(2) && !table.holds());
    let mut table = Table::newcomer();
    table.say(&table.external(&["10.77.0.2/32"], 20));
    let mut rogue = table.admitted(2, 10);
    rogue.name = name("n1");
    assert_eq!(table.learn(&rogue), Learned::Refused);
    assert!(table.holds());
}

#[test]
fn a_known_external_peer_keeps_its_place_whatever_time_a_receipt_says() {
    let mut table = Table::newcomer();
    table.say(&table.external(&["10.77.0.2/32"], 20));
    table.members.start_batch();
    let backdated = table.admitted(2, 1);
    assert_eq!(table.learn(&backdated), Learned::Refused);
    assert!(table.holds() && !table.knows(2));
}

#[test]
fn a_known_member_keeps_its_place_whatever_time_the_root_says() {
    let mut table = Table::newcomer();
    table.learn(&table.admitted(2, 20));
    table.members.start_batch();
    table.say(&table.external(&["10.77.0.2/32"], 1));
    assert!(table.knows(2) && !table.holds());
}

#[test]
fn this_node_itself_gives_way_to_nobody() {
    let mut table = Table::newcomer();
    table.say(&table.external(&["10.77.0.9/32"], 0));
    assert!(table.knows(ME) && !table.holds());
}

#[test]
fn an_external_peer_that_was_set_aside_gets_its_place_when_that_is_free() {
    let mut table = Table::newcomer();
    table.learn(&table.admitted(2, 10));
    table.say(&table.external(&["10.77.0.2/32"], 20));
    let peer = ExternalPeer {
        network: table.authority.network.id,
        name: name("phone"),
        wireguard: Keys::new(KEY).wireguard.public(),
        prefixes: nets(&["10.77.0.2/32"]),
        endpoint: None,
        issued: START.plus(20),
    };
    let (collision, holder) = table.members.held_against(&peer).unwrap();
    assert_eq!(
        (collision.wanted.to_string().as_str(), holder.as_str()),
        ("10.77.0.2/32", "n2")
    );
    table.say(&RootStatement::RevokeNode {
        network: table.authority.network.id,
        node: Keys::new(2).id(),
        issued: START.plus(30),
    });
    assert!(table.holds());
    assert!(table.codes().is_empty(), "{:?}", table.codes());
    // Removed while it was set aside, it never comes.
    let mut table = Table::newcomer();
    table.learn(&table.admitted(2, 10));
    table.say(&table.external(&["10.77.0.2/32"], 20));
    table.say(&RootStatement::RevokeExternal {
        network: table.authority.network.id,
        wireguard: Keys::new(KEY).wireguard.public(),
        issued: START.plus(25),
    });
    assert!(table.codes().is_empty());
    table.say(&RootStatement::RevokeNode {
        network: table.authority.network.id,
        node: Keys::new(2).id(),
        issued: START.plus(30),
    });
    assert!(!table.holds());
}

#[test]
fn two_editions_of_one_number_are_named_until_there_is_a_newer_one() {
    let mut table = Table::new();
    let edition = |version, address: &str| {
        let mut network = Authority::new().network;
        network.version = version;
        network.planets[0].address = address.to_owned();
        RootStatement::Network(network)
    };
    assert!(table.say(&edition(2, "a:1")));
    assert!(!table.say(&edition(2, "a:1")));
    assert!(table.codes().is_empty());
    let other = table.authority.say(&edition(2, "b:1"));
    let said = table.members.apply(&other, table.planet, START);
    assert_eq!(said, Ok(false));
    assert_eq!(table.codes(), ["MESH-TRUST-012"]);
    assert_eq!(table.members.network().planets[0].address, "a:1");
    assert!(table.say(&edition(3, "c:1")));
    assert!(table.codes().is_empty());
}

#[test]
fn revocations_are_told_before_anything_else_and_the_newest_first() {
    let mut table = Table::new();
    for number in 0..40 {
        let external = ExternalPeer {
            network: table.authority.network.id,
            name: name(&format!("legacy-{number}")),
            wireguard: PublicKey([number + 100; 32]),
            prefixes: nets(&[&format!("10.77.9.{number}/32")]),
            endpoint: None,
            issued: START.plus(500),
        };
        let said = table.authority.say(&RootStatement::External(external));
        table.members.apply(&said, table.planet, START).unwrap();
    }
    for number in [3, 4] {
        let revocation = RootStatement::RevokeNode {
            network: table.authority.network.id,
            node: Keys::new(number).id(),
            issued: START.plus(u64::from(number)),
        };
        let said = table.authority.say(&revocation);
        table.members.apply(&said, table.planet, START).unwrap();
    }
    let told = table.members.pressing_statements(3);
    let nodes: Vec<Option<NodeId>> = told
        .iter()
        .map(|signed| match signed.unverified().unwrap() {
            RootStatement::RevokeNode { node, .. } => Some(node),
            _ => None,
        })
        .collect();
    assert_eq!(
        nodes,
        [Some(Keys::new(4).id()), Some(Keys::new(3).id()), None]
    );
}
