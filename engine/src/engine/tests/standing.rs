//! What is dropped when a state is entered is taken up again when it is left.

use std::time::Duration;

use podmesh_proto::candidate::EndpointRecord;
use podmesh_proto::local_api::{NodeState, PathView, PeerState};
use podmesh_proto::network::{Network, PlanetEntry, RootStatement};
use podmesh_proto::planet_api::{DirectoryCursor, DirectoryRecord, DirectoryUpdate, PlanetMessage};
use podmesh_proto::signed::Signed;

use crate::control::ControlMessage;
use crate::engine::Engine;
use crate::output::PlanetEvent;
use crate::testing::{Draft, Keys, START, World, name, nets};
use crate::timers::Timer;

const LIFE: u64 = 3_600;
const THREE_HOURS: i64 = 3 * 3_600;

pub(super) fn joined(nodes: u8) -> World {
    let mut world = World::new(nodes);
    world.life = Some(LIFE);
    world.reconnects = true;
    world.join_all();
    world
}

pub(super) fn pass(world: &mut World, seconds: u64) {
    let cursor = DirectoryCursor {
        epoch: 7,
        version: 1,
    };
    for _ in 0..seconds.div_ceil(10) {
        for node in 0..world.engines.len() {
            if world.planet_alive {
                world.planet_says(node, PlanetMessage::Heartbeat { cursor });
            }
        }
        world.run(Duration::from_secs(10));
    }
}

pub(super) fn state(world: &World, node: usize) -> NodeState {
    world.engines[node].status(world.now_of(node)).state
}

/// Reaches every other node by a direct path.
pub(super) fn reaches_all(world: &World, node: usize) -> bool {
    let views = world.engines[node].peers(world.now_of(node));
    views.len() + 1 == world.engines.len()
        && views.iter().all(|view| {
            view.state == PeerState::Up && view.path.as_ref().is_some_and(PathView::is_direct)
        })
}

pub(super) fn says(world: &World, node: usize, code: &str) -> bool {
    let health = world.engines[node].status(world.now_of(node)).health;
    health.iter().any(|entry| entry.code == code)
}

#[test]
fn a_clock_that_was_wrong_for_ten_seconds_costs_ten_seconds() {
    let mut world = joined(3);
    world.clocks.insert(0, THREE_HOURS);
    pass(&mut world, 10);
    assert_eq!(state(&world, 0), NodeState::Ended);
    assert!(world.engines[0].peers(world.now).is_empty());
    // Both are news, whichever was the wrong one at the welcome.
    assert!(says(&world, 0, "MESH-CLOCK-001"));
    world.clocks.clear();
    pass(&mut world, 10);
    assert_eq!(state(&world, 0), NodeState::Online);
    assert!(
        reaches_all(&world, 0),
        "{:#?}",
        world.engines[0].peers(world.now)
    );
    assert!(!says(&world, 0, "MESH-CLOCK-001"));
    assert!(!world.plans[0].as_ref().unwrap().peer_routes.is_empty());
}

#[test]
fn a_planets_clock_that_was_wrong_is_no_news_once_it_is_right() {
    let mut world = joined(2);
    let right = world.now.unix;
    let wrong = right.plus(10_800);
    world.planet_says(0, PlanetMessage::Clock(wrong));
    assert!(says(&world, 0, "MESH-CLOCK-001"));
    pass(&mut world, 30);
    assert!(says(&world, 0, "MESH-CLOCK-001"), "as long as it is wrong");
    let right = world.now.unix;
    world.planet_says(0, PlanetMessage::Clock(right));
    assert!(!says(&world, 0, "MESH-CLOCK-001"));
    pass(&mut world, 30);
    assert!(!says(&world, 0, "MESH-CLOCK-001"));
}

/// Who died meanwhile needs no planet: all that is needed is on disk, also of those not routed to.
#[test]
fn a_machine_that_boots_with_a_wrong_clock_finds_everybody_without_a_planet() {
    let mut world = joined(3);
    world.clocks.insert(0, THREE_HOURS);
    world.restart(0);
    pass(&mut world, 20);
    world.kill_planet();
    world.restart(0);
    pass(&mut world, 20);
    assert_eq!(state(&world, 0), NodeState::Ended);
    world.clocks.clear();
    pass(&mut world, 20);
    assert_eq!(state(&world, 0), NodeState::PlanetsDown);
    assert!(
        reaches_all(&world, 0),
        "{:#?}",
        world.engines[0].peers(world.now)
    );
}

/// Whoever reaches nobody has something else to look after than its planet.
#[test]
fn without_planet_and_peers_nobody_says_that_tunnels_go_on() {
    let mut world = joined(2);
    pass(&mut world, 20);
    world.kill_planet();
    pass(&mut world, 20);
    let said = |world: &World| {
        let health = world.engines[0].status(world.now).health;
        let lost = health.iter().find(|entry| entry.code == "MESH-PLANET-001");
        lost.unwrap().message.clone()
    };
    assert!(said(&world).contains("tunnels go on"), "{}", said(&world));
    world.off.insert(1);
    pass(&mut world, 60);
    assert!(
        said(&world).ends_with("no peer is reached"),
        "{}",
        said(&world)
    );
}

/// The disk has the keys, and the membership from before they changed; a planet knows better.
#[test]
fn a_node_whose_membership_is_older_than_its_keys_comes_back_with_a_planet() {
    let mut world = joined(3);
    // An odd number leaves the identity.
    world.rotate(0, 51);
    pass(&mut world, 10);
    world.kill_planet();
    let stored = world.stored[0].as_mut().unwrap();
    stored.membership.as_mut().unwrap().renewed = None;
    world.restart(0);
    pass(&mut world, 10);
    assert_eq!(state(&world, 0), NodeState::Ended);
    let health = world.engines[0].status(world.now).health;
    let lost = health.iter().find(|entry| entry.code == "MESH-NODE-003");
    let next = lost.unwrap().next.clone().unwrap();
    assert!(
        next.starts_with("let it connect to a planet first"),
        "{next}"
    );
    let (node, steady) = (world.engines[0].node_id(), &world.engines[1]);
    let newest = steady.members.as_ref().unwrap().known(&node).unwrap();
    let newest = (*newest.membership).clone();
    world.planet_alive = true;
    for node in 0..3 {
        world.connect(node);
    }
    world.tell_all(DirectoryRecord::Member(Box::new(newest)));
    pass(&mut world, 10);
    assert_eq!(state(&world, 0), NodeState::Online);
    assert!(
        reaches_all(&world, 0),
        "{:#?}",
        world.engines[0].peers(world.now)
    );
}

/// What was told when the time wasn't right is told once. It must not be lost.
#[test]
fn who_joined_while_the_clock_was_behind_is_known_when_it_is_right() {
    let mut world = joined(2);
    world.clocks.insert(0, -THREE_HOURS);
    pass(&mut world, 10);
    world.add(3);
    let token = world.authority.token_for(1, Some(LIFE));
    let now = world.now;
    world.engines[2]
        .handle_join(&token, name("n3"), now)
        .unwrap();
    world.drain(2);
    world.connect(2);
    pass(&mut world, 20);
    let knows = |world: &World| {
        let views = world.engines[0].peers(world.now);
        views.iter().any(|view| view.name == name("n3"))
    };
    assert!(!knows(&world), "by this clock it isn't a member yet");
    world.clocks.clear();
    pass(&mut world, 20);
    assert!(knows(&world));
    assert!(
        reaches_all(&world, 0),
        "{:#?}",
        world.engines[0].peers(world.now)
    );
    assert!(!says(&world, 0, "MESH-TRUST-008"));
}

#[test]
fn a_planet_is_not_asked_again_and_again_about_what_is_over() {
    let mut world = joined(1);
    let mut draft = Draft::new(&world.authority, 9);
    draft.grant.membership = Some(60);
    draft.expires = Some(draft.admitted.plus(60));
    pass(&mut world, 600);
    let old = draft.build(&world.authority);
    for _ in 0..10 {
        world.tell_all(DirectoryRecord::Member(Box::new(old.clone())));
        pass(&mut world, 10);
    }
    assert!(says(&world, 0, "MESH-TRUST-008"));
    assert_eq!(world.reconnections, 0);
}

/// What is told of a member that collides with another is needed when the root decides for it.
#[test]
fn who_was_kept_apart_is_reached_once_the_root_decides() {
    let mut world = joined(1);
    let [one, other] = [9, 10].map(|number| {
        let mut draft = Draft::new(&world.authority, number);
        draft.pod_cidrs = nets(&["10.42.200.0/24"]);
        draft
    });
    let id = one.keys.id();
    let record = EndpointRecord {
        network: world.authority.network.id,
        node: id,
        incarnation: START.0,
        sequence: 1,
        candidates: Vec::new(),
        planets: vec![world.planet_id()],
    };
    let record = Signed::seal(&record, &one.keys.identity).unwrap();
    let told = [&one, &other].map(|draft| Box::new(draft.build(&world.authority)));
    let mut records: Vec<_> = told.into_iter().map(DirectoryRecord::Member).collect();
    let (node, online) = (id, true);
    records.push(DirectoryRecord::Endpoints(record.clone()));
    records.push(DirectoryRecord::Presence { node, online });
    let cursor = DirectoryCursor {
        epoch: 7,
        version: 100,
    };
    let update = DirectoryUpdate {
        cursor,
        from_start: false,
        records,
    };
    world.planet_says(0, PlanetMessage::Directory(update));
    assert!(world.engines[0].peers.get(&id).is_none());
    assert_eq!(world.engines[0].astray(), None);
    let resolve = world.authority.say(&RootStatement::Resolve {
        network: world.authority.network.id,
        node: id,
        issued: START.plus(50),
    });
    let now = world.now;
    world.engines[0].handle_statement(resolve, now).unwrap();
    world.drain(0);
    let engine = &world.engines[0];
    let peer = engine.peers.get(&id).unwrap();
    assert_eq!(
        peer.record.as_ref().map(|(_, signed)| signed),
        Some(&record)
    );
    assert_eq!(engine.relays_to(&id), [world.planet_id()]);
    assert_eq!(engine.astray(), None);
}

fn edition(world: &World, version: u64, planets: Vec<PlanetEntry>) -> Signed<RootStatement> {
    let network = Network {
        version,
        planets,
        ..world.authority.network.clone()
    };
    world.authority.say(&RootStatement::Network(network))
}

fn timers_of_planets(engine: &Engine, world: &World) -> bool {
    engine.timers.is_set(Timer::Heartbeat(world.planet_id()))
        || engine.timers.is_set(Timer::Observe(world.planet_id()))
}

#[test]
fn a_planet_that_an_edition_leaves_out_leaves_nothing_behind_and_may_come_back() {
    let mut world = joined(2);
    let planets = world.authority.network.planets.clone();
    let gone = edition(&world, 2, Vec::new());
    let now = world.now;
    world.engines[0].handle_statement(gone, now).unwrap();
    world.drain(0);
    let engine = &world.engines[0];
    assert!(engine.presence.is_empty());
    assert!(!timers_of_planets(engine, &world));
    assert!(world.tables[0].as_ref().unwrap().relays().is_empty());
    assert_eq!(engine.astray(), None);
    let back = edition(&world, 3, planets);
    world.engines[0].handle_statement(back, now).unwrap();
    world.drain(0);
    world.connect(0);
    pass(&mut world, 10);
    assert_eq!(state(&world, 0), NodeState::Online);
    assert!(timers_of_planets(&world.engines[0], &world));
    assert!(reaches_all(&world, 0));
    assert_eq!(world.engines[0].astray(), None);
}

/// One of several planets is lost: tunnels and the other planet serve, and yet something is wrong.
#[test]
fn each_planet_that_is_lost_is_named_while_another_serves() {
    let mut world = joined(2);
    let here = world.authority.network.planets[0].clone();
    let elsewhere = PlanetEntry {
        id: Keys::new(77).identity.planet_id(),
        name: name("p2"),
        address: "192.0.2.2:7077".to_owned(),
    };
    let gone = elsewhere.id;
    let lost = |world: &mut World, version, planets: Vec<PlanetEntry>| -> Vec<String> {
        let edition = edition(world, version, planets);
        let now = world.now;
        world.engines[0].handle_statement(edition, now).unwrap();
        world.drain(0);
        assert!(!says(world, 0, "MESH-PLANET-002"), "nothing is known yet");
        let reason = "no answer".to_owned();
        world.engines[0].handle_planet(gone, PlanetEvent::Disconnected { reason }, now);
        let health = world.engines[0].status(now).health;
        let told = health.iter().filter(|one| one.code == "MESH-PLANET-002");
        told.map(|one| one.message.clone()).collect()
    };
    let told = lost(&mut world, 2, vec![here.clone(), elsewhere.clone()]);
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("p2 is not connected: no answer") && !told[0].contains("join"));
    let alone = lost(&mut world, 3, vec![here.clone()]);
    assert!(alone.is_empty(), "it is none of the network: {alone:?}");
    let told = lost(&mut world, 4, vec![elsewhere, here]);
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("no new node can join"), "{told:?}");
    assert_eq!(state(&world, 0), NodeState::Online);
}

#[test]
fn a_planet_that_takes_a_member_for_a_stranger_is_met_anew() {
    let mut world = joined(2);
    let planet = world.planet_id();
    world.engines[0].planets.connection(&planet).unwrap().leg = None;
    assert!(says(&world, 0, "MESH-PLANET-003"));
    let before = world.reconnections;
    pass(&mut world, 60);
    assert_eq!(world.reconnections, before + 1);
    assert!(world.engines[0].planets.leg(&planet).is_some());
    assert!(!says(&world, 0, "MESH-PLANET-003"));
    assert!(reaches_all(&world, 0));
}

/// A second life of the peer's service must not begin to count its probes anew: the other side has had
/// those numbers, and this one must not take again what it has had.
#[test]
fn probes_count_on_when_a_member_is_routed_to_again() {
    let mut world = joined(2);
    let id = world.engines[1].node_id();
    let before = world.engines[0].peers.get_mut(&id).unwrap().next_probe();
    world.clocks.insert(0, THREE_HOURS);
    pass(&mut world, 10);
    world.clocks.clear();
    pass(&mut world, 10);
    let after = world.engines[0].peers.get_mut(&id).unwrap().next_probe();
    assert!(after > before, "{before}, then {after}");
}

/// Somebody who repeats what a former life of this node said makes its peers tell it of the present one.
#[test]
fn who_is_told_of_the_life_in_which_it_speaks_goes_on_and_no_life_seems_to_be_another() {
    let mut world = joined(2);
    let (id, own) = (world.engines[1].node_id(), world.engines[0].incarnation);
    let raised = |world: &World| world.engines[0].peers.get(&id).unwrap().raised;
    let told = |world: &mut World, incarnation| {
        let now = world.now;
        let message = ControlMessage::LaterLife { incarnation };
        let peer = world.engines[0].node_id();
        world.engines[1].send_control(&peer, &message, now);
        world.drain(1);
        pass(world, 10);
    };
    told(&mut world, own);
    assert_eq!(raised(&world), 0);
    told(&mut world, own + 50);
    assert_eq!(raised(&world), own + 51);
    world.restart(0);
    assert!(world.engines[0].incarnation > own + 51, "of the next life");
    // Nobody's word takes it to where no later life is possible.
    let before = world.engines[0].incarnation;
    told(&mut world, u64::MAX - 5);
    world.restart(0);
    assert!(world.engines[0].incarnation < before + 1_000);
}

/// The planet has made it a member; it died before it heard so.
#[test]
fn who_died_while_it_became_a_member_knows_the_others_afterwards() {
    let mut world = joined(2);
    world.add(3);
    let token = world.authority.token_for(1, Some(LIFE));
    let now = world.now;
    world.engines[2]
        .handle_join(&token, name("n3"), now)
        .unwrap();
    world.drain(2);
    let joining = world.stored[2].clone();
    assert!(joining.as_ref().unwrap().joining.is_some());
    world.connect(2);
    pass(&mut world, 10);
    assert!(reaches_all(&world, 2));
    world.stored[2] = joining;
    world.restart(2);
    pass(&mut world, 20);
    assert_eq!(state(&world, 2), NodeState::Online);
    let views = world.engines[2].peers(world.now);
    assert_eq!(views.len(), 2, "{views:#?}");
}

/// A record of a node's own identity that is of a later life than its present one.
fn later(world: &World, node: usize) -> EndpointRecord {
    let (record, _) = world.engines[node].record.clone().unwrap();
    EndpointRecord {
        incarnation: record.incarnation + 500,
        sequence: 1,
        ..record
    }
}

fn hears(world: &mut World, node: usize, record: &EndpointRecord) {
    let signed = Signed::seal(record, &world.engines[node].keys().identity).unwrap();
    let update = DirectoryUpdate {
        cursor: DirectoryCursor {
            epoch: 7,
            version: 1,
        },
        from_start: false,
        records: vec![DirectoryRecord::Endpoints(signed)],
    };
    world.planet_says(node, PlanetMessage::Directory(update));
}

#[test]
fn who_hears_of_a_later_life_of_its_own_goes_beyond_it_and_says_so_when_another_follows() {
    let mut world = joined(3);
    let known = |world: &World| {
        let id = world.engines[0].node_id();
        let peer = world.engines[1].peers.get(&id).unwrap();
        peer.record.as_ref().unwrap().0.incarnation
    };
    let first = later(&world, 0);
    hears(&mut world, 0, &first);
    pass(&mut world, 1);
    assert_eq!(known(&world), first.incarnation + 1);
    assert!(
        !says(&world, 0, "MESH-IDENTITY-002"),
        "it may have been its own"
    );
    let second = later(&world, 0);
    hears(&mut world, 0, &second);
    assert!(says(&world, 0, "MESH-IDENTITY-002"));
    pass(&mut world, 20);
    hears(&mut world, 0, &second);
    pass(&mut world, 1);
    assert_eq!(known(&world), second.incarnation + 1);
    hears(&mut world, 0, &first);
    pass(&mut world, 1);
    assert_eq!(known(&world), second.incarnation + 1, "of a former life");
    assert!(reaches_all(&world, 0));
    pass(&mut world, 700);
    assert!(!says(&world, 0, "MESH-IDENTITY-002"));
}

/// Another machine has begun the very life that a node is in and has said more in it, its last word to a member
/// alone. To that member it seems that the node repeats itself; only the node can tell.
#[test]
fn who_has_said_less_than_was_heard_of_its_life_is_shown_the_rest() {
    let mut world = joined(2);
    let (record, _) = world.engines[0].record.clone().unwrap();
    let copy = EndpointRecord {
        sequence: record.sequence + 5,
        candidates: Vec::new(),
        ..record.clone()
    };
    let signed = Signed::seal(&copy, &world.engines[0].keys().identity).unwrap();
    let update = DirectoryUpdate {
        cursor: DirectoryCursor {
            epoch: 7,
            version: 1,
        },
        from_start: false,
        records: vec![DirectoryRecord::Endpoints(signed)],
    };
    world.planet_says(1, PlanetMessage::Directory(update));
    pass(&mut world, 1);
    let says_again = |world: &mut World| {
        let now = world.now;
        world.engines[0].gossip_own_record(now);
        world.drain(0);
        pass(world, 1);
    };
    says_again(&mut world);
    let own = world.engines[0].edition();
    assert_eq!(own.0, record.incarnation + 1, "it goes beyond the other");
    let id = world.engines[0].node_id();
    assert_eq!(world.engines[1].edition_of(&id), Some(own));
    says_again(&mut world);
    assert_eq!(world.engines[0].edition(), own, "both know the same");
}

#[test]
fn a_copy_that_forgets_the_network_puts_nobody_out() {
    let mut world = joined(2);
    let id = world.engines[0].node_id();
    let now = world.now_of(0);
    world.engines[0].handle_abandon(now).unwrap();
    pass(&mut world, 10);
    assert_eq!(state(&world, 0), NodeState::NotJoined);
    let members = world.engines[1].members.as_ref().unwrap();
    assert!(members.known(&id).is_some(), "the other machine goes on");
}
