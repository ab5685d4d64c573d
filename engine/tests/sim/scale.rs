//! Much at once: thousands of statements of the root, many nodes, and a planet that starts anew.

use std::time::{Duration, Instant};

use podmesh_planet::rules::Input;
use podmesh_proto::id::NodeId;
use podmesh_proto::local_api::PeerState;
use podmesh_proto::network::RootStatement;
use podmesh_proto::signed::Signed;
use podmesh_proto::time::Moment;

use crate::authority::START;
use crate::nat::NatKind;
use crate::world::World;

/// After a start of the planet everybody is connected, and nothing is left to tell anybody.
const SETTLED: Duration = Duration::from_secs(30);
/// From its join on, until a new node has a path to everybody.
const SEEN: Duration = Duration::from_secs(5);
const SITES: usize = 8;
/// With more nodes paths are made for traffic alone, as in a mesh that is larger still: what is played here
/// is what planets tell, and all pairs of many nodes shaking hands takes hours.
const EAGER: usize = 40;

/// Nodes and statements: few in every run, as many as `SIM_SCALE=NODES,STATEMENTS` says where it is set.
fn size() -> (usize, u32) {
    let Ok(asked) = std::env::var("SIM_SCALE") else {
        return (10, 700);
    };
    let (nodes, statements) = asked.split_once(',').expect("two numbers");
    (nodes.parse().unwrap(), statements.parse().unwrap())
}

fn revocation(world: &World, number: u32) -> Signed<RootStatement> {
    let mut node = [9; 32];
    node[..4].copy_from_slice(&number.to_le_bytes());
    let said = RootStatement::RevokeNode {
        network: world.authority.network.id,
        node: NodeId(node),
        issued: START,
    };
    Signed::seal(&said, &world.authority.root).unwrap()
}

fn say(world: &mut World, numbers: std::ops::Range<u32>) {
    for number in numbers {
        let statement = Box::new(revocation(world, number));
        let request = u64::from(number);
        world.tell_planet(0, Input::Statement { request, statement });
    }
}

/// Peers that a node has a path to, or knows, where paths are made for traffic alone.
fn reached(world: &World, node: usize) -> usize {
    let Some(engine) = &world.nodes[node].engine else {
        return 0;
    };
    let views = engine.peers(world.now_of(node));
    views
        .iter()
        .filter(|view| views.len() > EAGER || view.state == PeerState::Up)
        .count()
}

/// Whether all of the first `count` nodes are connected and hold `statements`.
fn all_hold(world: &World, count: usize, statements: u32) -> bool {
    (0..count).all(|node| {
        let held = world.nodes[node].disk.statements();
        world.planet_of(node).is_some() && held == statements as usize
    })
}

/// How long `so` takes to come true, looked at ten times a second.
fn until(world: &mut World, limit: Duration, so: impl Fn(&World) -> bool) -> Option<Duration> {
    let begin = world.net.now;
    while world.net.now < begin + limit {
        if so(world) {
            return Some(world.net.now.since(begin));
        }
        world.run_for(Duration::from_millis(100));
    }
    None
}

/// The last thing that the planet told anybody, from `begin` on.
fn quiet_after(world: &World, begin: Moment) -> Duration {
    let last = world.watch.told.unwrap_or(begin);
    last.since(begin)
}

#[test]
fn thousands_of_statements_hold_nobody_up() {
    let (nodes, statements) = size();
    let real = Instant::now();
    let mut world = World::new(5, 1);
    let sites: Vec<usize> = (0..SITES).map(|_| world.site(NatKind::N0)).collect();
    for index in 0..=nodes {
        let node = world.node(sites[index % SITES], NatKind::N0);
        world.nodes[node].thresholds.eager_peers = EAGER;
    }
    world.links(|_, _, random| Duration::from_millis(random.range(5, 60)));
    world.start_planet(0);
    say(&mut world, 0..statements);
    for node in 0..nodes {
        world.start(node);
        world.run_for(Duration::from_millis(50));
    }
    let joined = until(&mut world, Duration::from_secs(180), |world| {
        all_hold(world, nodes, statements)
    });
    println!("figure {nodes} nodes hold {statements} statements after {joined:?}");
    assert!(joined.is_some());
    world.run_for(Duration::from_secs(20));

    world.stop_planet(0);
    world.run_for(Duration::from_secs(1));
    let begin = world.net.now;
    world.start_planet(0);
    let back = until(&mut world, SETTLED, |world| {
        all_hold(world, nodes, statements)
    });
    world.run_for(SETTLED);
    let quiet = quiet_after(&world, begin);
    println!("figure connected {back:?} and settled {quiet:?} after the planet's start");
    assert!(back.is_some() && quiet <= SETTLED, "{quiet:?}");

    // What was said while the planet was away reaches everybody.
    say(&mut world, statements..statements + 5);
    let news = until(&mut world, SETTLED, |world| {
        all_hold(world, nodes, statements + 5)
    });
    println!("figure 5 new statements with everybody after {news:?}");
    assert!(news.is_some());

    world.start(nodes);
    let seen = until(&mut world, Duration::from_secs(60), |world| {
        reached(world, nodes) == nodes
    });
    println!("figure a new node reaches or knows all {nodes} after {seen:?}");
    println!("figure {:?} of real time", real.elapsed());
    assert!(seen.is_some_and(|seen| seen <= SEEN), "{seen:?}");
}
