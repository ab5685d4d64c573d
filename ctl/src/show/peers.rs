//! Peers and routes as tables.

use std::fmt::Write;

use podmesh_proto::local_api::{PathView, PeerDetail, PeerState, PeerView, RouteView};

use crate::show::quantity::{bytes, duration, milliseconds, percent};
use crate::show::table::{Cell, Table};
use crate::show::{Screen, Tone, plain};

const COLUMNS: [&str; 11] = [
    "NAME",
    "SITE",
    "ADDRESS",
    "STATE",
    "PATH",
    "RTT",
    "LOSS",
    "MTU",
    "HANDSHAKE",
    "RX/TX",
    "WHY",
];
const WIDE_COLUMNS: [&str; 4] = ["ENDPOINT", "POD-CIDRS", "KIND", "ID"];

/// The table of peers. The wide form has more columns and is never cut.
pub(crate) fn table(peers: &[PeerView], wide: bool, screen: Screen) -> String {
    let mut header = COLUMNS.to_vec();
    if wide {
        header.extend(WIDE_COLUMNS);
    }
    let mut table = Table::new(&header);
    for peer in peers {
        let mut row = row(peer, wide);
        if wide {
            row.extend(wide_row(peer));
        }
        table.row(row);
    }
    table.render(screen, if wide { None } else { screen.width() })
}

fn row(peer: &PeerView, wide: bool) -> Vec<Cell> {
    let address = if wide {
        list(&peer.addresses)
    } else {
        optional(peer.addresses.first())
    };
    let why = peer.why.as_deref().unwrap_or_default();
    vec![
        peer.name.as_str().into(),
        optional(peer.site.as_ref()).into(),
        address.into(),
        Cell::toned(state(peer.state), tone(peer)),
        peer.path.as_ref().map(path).unwrap_or_default().into(),
        peer.rtt_ms.map(milliseconds).unwrap_or_default().into(),
        peer.loss_percent.map(percent).unwrap_or_default().into(),
        optional(peer.mtu.as_ref()).into(),
        peer.handshake_s.map(duration).unwrap_or_default().into(),
        traffic(peer).into(),
        why.into(),
    ]
}

fn wide_row(peer: &PeerView) -> Vec<Cell> {
    let kind = if peer.external { "external" } else { "node" };
    let endpoint = peer.path.as_ref().and_then(endpoint);
    vec![
        endpoint.unwrap_or_default().into(),
        list(&peer.pod_cidrs).into(),
        kind.into(),
        optional(peer.id.as_ref()).into(),
    ]
}

/// One peer in full.
pub(crate) fn detail(detail: &PeerDetail, screen: Screen) -> String {
    let peer = &detail.peer;
    let mut text = String::new();
    let id = peer.id.map(|id| format!(" (node {id})"));
    let kind = if peer.external {
        " (external WireGuard machine)"
    } else {
        ""
    };
    let state = screen.paint(state(peer.state), tone(peer));
    let member = match &detail.expires {
        Some(time) => format!("until {time} unless renewed"),
        None => "until revoked".to_owned(),
    };
    let fields = [
        (
            "name",
            format!("{}{}{kind}", peer.name, id.unwrap_or_default()),
        ),
        ("site", optional(peer.site.as_ref())),
        ("groups", groups(&detail.groups)),
        ("addresses", list(&peer.addresses)),
        ("pod CIDRs", list(&peer.pod_cidrs)),
        ("key", detail.wireguard.to_string()),
        ("member", member),
        ("serial", detail.serial.to_string()),
    ];
    for (name, value) in fields {
        line(&mut text, name, &plain(&value));
    }
    line(&mut text, "state", &state);
    let way = peer.path.as_ref().map(|now| match endpoint(now) {
        Some(endpoint) => format!("{} at {endpoint}", path(now)),
        None => path(now),
    });
    let why = peer.why.as_deref().unwrap_or_default();
    let fields = [
        ("path", way.unwrap_or_default()),
        ("why", why.to_owned()),
        ("rtt", peer.rtt_ms.map(milliseconds).unwrap_or_default()),
        ("loss", peer.loss_percent.map(percent).unwrap_or_default()),
        ("mtu", optional(peer.mtu.as_ref())),
        (
            "handshake",
            peer.handshake_s
                .map(|s| format!("{} ago", duration(s)))
                .unwrap_or_default(),
        ),
        ("rx/tx", traffic(peer)),
    ];
    for (name, value) in fields {
        line(&mut text, name, &plain(&value));
    }
    text.push_str(&candidates(detail, screen));
    text.push_str(&history(detail, screen));
    text
}

fn candidates(detail: &PeerDetail, screen: Screen) -> String {
    if detail.candidates.is_empty() {
        return "\nNo candidates known.\n".to_owned();
    }
    let mut table = Table::new(&["CANDIDATE", "ENDPOINT", "FROM", "STATE", "RTT"]);
    for trial in &detail.candidates {
        let tone = if trial.state == "active" {
            Tone::Good
        } else {
            Tone::Neutral
        };
        table.row(vec![
            trial.kind.as_str().into(),
            optional(trial.endpoint.as_ref()).into(),
            format!("{} port", trial.from).into(),
            Cell::toned(&trial.state, tone),
            trial.rtt_ms.map(milliseconds).unwrap_or_default().into(),
        ]);
    }
    format!("\n{}", table.render(screen, None))
}

fn history(detail: &PeerDetail, screen: Screen) -> String {
    if detail.history.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["SWITCHED", "FROM", "TO", "REASON"]);
    for switch in &detail.history {
        let fields = [&switch.time, &switch.from, &switch.to, &switch.reason];
        table.row(fields.into_iter().map(Cell::from).collect());
    }
    format!("\n{}", table.render(screen, None))
}

/// The table of routes.
pub(crate) fn routes(routes: &[RouteView], screen: Screen) -> String {
    let mut table = Table::new(&["PREFIX", "VIA", "PEER", "MTU"]);
    for route in routes {
        table.row(vec![
            route.prefix.to_string().into(),
            route.via.as_str().into(),
            optional(route.peer.as_ref()).into(),
            optional(route.mtu.as_ref()).into(),
        ]);
    }
    table.render(screen, screen.width())
}

/// The word for a path.
pub(crate) fn path(path: &PathView) -> String {
    match path {
        PathView::Lan { .. } => "lan".to_owned(),
        PathView::Direct4 { .. } => "direct4".to_owned(),
        PathView::Direct6 { .. } => "direct6".to_owned(),
        PathView::Relay { planet } => format!("relay:{planet}"),
    }
}

/// The endpoint of a direct path.
pub(crate) fn endpoint(path: &PathView) -> Option<String> {
    match path {
        PathView::Lan { endpoint }
        | PathView::Direct4 { endpoint }
        | PathView::Direct6 { endpoint } => Some(endpoint.to_string()),
        PathView::Relay { .. } => None,
    }
}

/// Groups with the remark that they have no effect yet.
pub(crate) fn groups(groups: &[podmesh_proto::id::Name]) -> String {
    if groups.is_empty() {
        String::new()
    } else {
        format!("{} (shown, not enforced)", list(groups))
    }
}

/// Anything printable, with commas.
pub(crate) fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    items.join(",")
}

/// Adds `name  value` in two columns.
pub(crate) fn line(text: &mut String, name: &str, value: &str) {
    let value = if value.is_empty() { "-" } else { value };
    // Writing to a string can't fail.
    let _written = writeln!(text, "{name:<11}{value}");
}

/// Whatever there is.
pub(crate) fn optional<T: ToString>(value: Option<&T>) -> String {
    value.map(ToString::to_string).unwrap_or_default()
}

/// The word for a state.
pub(crate) fn state(state: PeerState) -> &'static str {
    match state {
        PeerState::Up => "up",
        PeerState::Probing => "probing",
        PeerState::Degraded => "degraded",
        PeerState::Down => "down",
        PeerState::Quarantined => "quarantined",
    }
}

fn tone(peer: &PeerView) -> Tone {
    match peer.state {
        PeerState::Up => Tone::Good,
        PeerState::Probing | PeerState::Degraded => Tone::Attention,
        PeerState::Down | PeerState::Quarantined => Tone::Bad,
    }
}

fn traffic(peer: &PeerView) -> String {
    if peer.rx_bytes == 0 && peer.tx_bytes == 0 {
        return String::new();
    }
    format!("{}/{}", bytes(peer.rx_bytes), bytes(peer.tx_bytes))
}
