//! The node as a whole, for people.

use std::fmt::Write;

use podmesh_proto::local_api::{NodeState, PlanetView, SelfView, StatusView};

use crate::show::peers::{groups, line, list, optional};
use crate::show::quantity::{bytes, duration, milliseconds};
use crate::show::{Screen, Tone, plain};

/// The header block, one line per component, then what somebody should look at.
pub(crate) fn text(status: &StatusView, screen: Screen) -> String {
    let mut text = String::new();
    let state = screen.paint(word(status.state), tone(status.state));
    line(&mut text, "state", &state);
    if let Some(node) = &status.node {
        node_lines(&mut text, node);
    }
    if let Some(network) = &status.network {
        let value = format!(
            "{} ({}), edition {}",
            network.name, network.id, network.version
        );
        line(&mut text, "network", &value);
        line(&mut text, "  overlay", &list(&network.overlay));
        line(&mut text, "  pods", &list(&network.pods));
        line(&mut text, "  services", &list(&network.services));
    }
    planet_lines(&mut text, &status.planets, screen);
    component_lines(&mut text, status);
    health_lines(&mut text, status, screen);
    text
}

/// The word for a state.
pub(crate) fn word(state: NodeState) -> &'static str {
    match state {
        NodeState::NotJoined => "not joined",
        NodeState::Joining => "joining",
        NodeState::Online => "online",
        NodeState::PlanetsDown => "no planet reachable (tunnels go on)",
        NodeState::Revoked => "revoked by the root",
        NodeState::Ended => "out: its membership has ended",
    }
}

fn tone(state: NodeState) -> Tone {
    match state {
        NodeState::Online => Tone::Good,
        NodeState::Joining | NodeState::PlanetsDown => Tone::Attention,
        NodeState::NotJoined | NodeState::Revoked | NodeState::Ended => Tone::Bad,
    }
}

fn node_lines(text: &mut String, node: &SelfView) {
    line(text, "node", &format!("{} ({})", node.name, node.id));
    line(text, "  site", &optional(node.site.as_ref()));
    line(text, "  groups", &groups(&node.groups));
    line(text, "  address", &list(&node.addresses));
    line(text, "  pods", &list(&node.pod_cidrs));
    line(text, "  key", &node.wireguard.to_string());
    let member = match &node.expires {
        Some(time) => {
            let renews = node.renews.as_deref().map(plain);
            let renews = renews.map(|renews| format!(", renewed from {renews} on"));
            format!("until {}{}", plain(time), renews.unwrap_or_default())
        }
        None => "until revoked".to_owned(),
    };
    line(text, "  member", &member);
    line(text, "  serial", &node.serial.to_string());
}

fn planet_lines(text: &mut String, planets: &[PlanetView], screen: Screen) {
    let up = planets.iter().filter(|planet| planet.connected).count();
    line(
        text,
        "planets",
        &format!("{up} of {} connected", planets.len()),
    );
    for planet in planets {
        let state = if planet.connected {
            let rtt = planet.rtt_ms.map(milliseconds).unwrap_or_default();
            let seen = planet
                .observed
                .map(|observed| format!(", sees this node at {observed}"));
            let state = screen.paint("connected", Tone::Good);
            format!("{state} {rtt}{}", seen.unwrap_or_default())
        } else {
            let error = planet.error.as_deref().unwrap_or("no connection yet");
            format!("{}: {}", screen.paint("down", Tone::Bad), plain(error))
        };
        let name = format!("  {}", planet.name);
        line(
            text,
            &format!("{name} "),
            &format!("{} {state}", plain(&planet.address)),
        );
    }
}

fn component_lines(text: &mut String, status: &StatusView) {
    let interface = &status.interface;
    let index = match interface.index {
        Some(index) => format!("index {index}"),
        None => "missing".to_owned(),
    };
    let shards = interface.shards;
    let mut value = format!(
        "{} ({index}), MTU {}, shards {shards}",
        interface.name, interface.mtu
    );
    let offloads = match interface.offloads.as_slice() {
        [] => "none".to_owned(),
        some => list(some),
    };
    // Writing to a string can't fail.
    let _written = write!(value, ", offloads {offloads}");
    if !interface.tunnel.is_empty() {
        let _written = write!(value, ", tunnel {}", interface.tunnel);
    }
    line(text, "interface", &plain(&value));
    let peers = status.peers;
    let value = format!(
        "{} ({} direct, {} relayed, {} down)",
        peers.total, peers.direct, peers.relayed, peers.down
    );
    line(text, "peers", &value);
    let candidates = status.candidates.iter();
    let candidates: Vec<String> = candidates
        .map(|candidate| format!("{} {}", candidate.endpoint, candidate.kind))
        .collect();
    line(text, "candidates", &plain(&candidates.join(", ")));
    let drops = status.drops.iter().filter(|drop| drop.count > 0);
    let drops: Vec<String> = drops
        .map(|drop| format!("{} {}", drop.reason, drop.count))
        .collect();
    line(text, "drops", &plain(&drops.join(", ")));
    let mut value = format!("{}, up {}", status.version, duration(status.uptime_s));
    if status.memory.resident > 0 {
        let (held, peak) = (bytes(status.memory.resident), bytes(status.memory.peak));
        let _written = write!(value, ", holds {held} of memory (peak {peak})");
    }
    line(text, "meshd", &plain(&value));
}

fn health_lines(text: &mut String, status: &StatusView, screen: Screen) {
    let mut say = |words: &str| {
        text.push_str(words);
        text.push('\n');
    };
    say("");
    if status.health.is_empty() {
        say("# Health: nothing to report");
    } else {
        say("# Health");
    }
    for health in &status.health {
        let words = format!("# {} {}", plain(&health.code), plain(&health.message));
        say(&screen.paint(&words, Tone::Attention));
        if let Some(next) = &health.next {
            say(&format!("#   next: {}", plain(next)));
        }
    }
    match status.state {
        NodeState::NotJoined => say("next: meshctl join TOKEN-FILE"),
        NodeState::Revoked => {
            say("next: meshctl leave --forget-keys, then join with a new token");
        }
        NodeState::Ended => say("next: meshctl leave, then join with a new token"),
        _ if status.peers.down > 0 => say("next: meshctl peers"),
        _ => {}
    }
}
