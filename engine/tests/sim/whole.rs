//! The grid of NAT kinds with whole nodes.

use std::time::Duration;

use podmesh_planet::rules::relaying::RelayCounters;
use podmesh_proto::local_api::{PathView, PeerState, PeerView};

use crate::grid::PAIRS;
use crate::nat::NatKind;
use crate::world::World;

/// How a node sees another.
pub fn view(world: &World, from: usize, to: usize) -> Option<PeerView> {
    let views = world.nodes[from].engine.as_ref()?.peers(world.now());
    views
        .into_iter()
        .find(|view| view.id == Some(world.nodes[to].id))
}

pub fn is_direct(world: &World, from: usize, to: usize) -> bool {
    view(world, from, to).is_some_and(|view| {
        view.state == PeerState::Up && view.path.as_ref().is_some_and(PathView::is_direct)
    })
}

pub fn is_up(world: &World, from: usize, to: usize) -> bool {
    view(world, from, to).is_some_and(|view| view.state == PeerState::Up)
}

fn pair(seed: u64, kinds: (NatKind, NatKind)) -> World {
    let mut world = World::new(seed, 1);
    let sites = (world.site(kinds.0), world.site(kinds.1));
    world.node(sites.0, kinds.0);
    world.node(sites.1, kinds.1);
    let delays = [[0, 20, 30], [20, 0, 40], [30, 40, 0]];
    world.links(|a, b, _| Duration::from_millis(delays[a][b]));
    world.start_planet(0);
    world.start(0);
    world.run_for(Duration::from_secs(3));
    world.start(1);
    world
}

#[test]
fn whole_nodes_get_the_best_path_that_is_possible() {
    for (a, b, direct) in PAIRS {
        let mut world = pair(11, (a, b));
        let joined = world.net.now;
        let mut took = None;
        while world.net.now < joined + Duration::from_secs(10) {
            world.run_for(Duration::from_millis(20));
            if took.is_none() && is_direct(&world, 0, 1) && is_direct(&world, 1, 0) {
                took = Some(world.net.now.since(joined));
            }
        }
        let why = view(&world, 1, 0).and_then(|view| view.why);
        println!(
            "{a:?} x {b:?}: direct after {took:?} {}",
            why.as_deref().unwrap_or_default()
        );
        assert_eq!(took.is_some(), direct, "{a:?} x {b:?}: {why:?}");
        assert!(is_up(&world, 0, 1) && is_up(&world, 1, 0), "{a:?} x {b:?}");
        assert_eq!(why.is_some(), !direct);
    }
}

/// One planet gives the leases; the others are asked to join, too, and may not take for a stranger for ever
/// who was one when it came.
#[test]
fn who_joins_is_a_member_at_every_planet() {
    for seed in 0..4 {
        let mut world = World::new(seed, 3);
        let site = world.site(NatKind::N0);
        let nodes: Vec<usize> = (0..3).map(|_| world.node(site, NatKind::N0)).collect();
        world.links(|_, _, random| random.millis(1, 40));
        for planet in 0..3 {
            world.start_planet(planet);
        }
        for node in nodes {
            world.start(node);
        }
        world.run_for(Duration::from_secs(8));
        world.leave(2);
        world.run_for(Duration::from_secs(2));
        world.join(2);
        world.run_for(Duration::from_secs(8));
        for planet in &world.planets {
            let rules = planet.rules.as_ref().unwrap();
            let status = rules.status(RelayCounters::default(), 0, world.now());
            let online = status.members.iter().filter(|member| member.online).count();
            assert_eq!(online, 3, "seed {seed}: {:?}", status.members);
        }
    }
}
