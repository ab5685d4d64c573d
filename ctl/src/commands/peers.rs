//! `meshctl peers`.

use std::time::Duration;

use clap::{Args, ValueEnum};
use podmesh_proto::id::Name;
use podmesh_proto::local_api::{PathView, PeerState, PeerView, schema};

use crate::commands::Context;
use crate::problem::{Exit, Problem};
use crate::show::quantity::counted;
use crate::show::{Items, Output, peers};

/// Time between two pictures of `--watch`.
const WATCH: Duration = Duration::from_secs(1);
/// Seconds. A session without a handshake for longer is over (WireGuard's Reject-After-Time).
const ACTIVE: u64 = 180;

/// Arguments of `meshctl peers`.
#[derive(Debug, Args)]
pub(crate) struct Peers {
    #[command(flatten)]
    output: Output,
    /// More columns, nothing cut
    #[arg(long)]
    wide: bool,
    /// Only peers of this site
    #[arg(long, value_name = "NAME")]
    site: Option<Name>,
    /// Only peers that are reached this way
    #[arg(long, value_enum)]
    path: Option<PathKind>,
    /// Only peers with a living session
    #[arg(long)]
    active: bool,
    /// Show it again each second until interrupted
    #[arg(long, conflicts_with_all = ["json", "output"])]
    watch: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PathKind {
    /// By a relay
    Relay,
    /// Without one
    Direct,
}

impl Peers {
    pub(super) fn run(self, context: &Context) -> Result<Exit, Problem> {
        let screen = context.screen;
        loop {
            let mut items = context.meshd.peers()?;
            let before = items.len();
            items.retain(|peer| self.wants(peer));
            if self.output.is_json() {
                screen.print_json(schema::PEERS, &Items { items: &items })?;
            } else if self.watch {
                let table = peers::table(&items, self.wide, screen);
                screen.print(&format!("{}{table}", screen.wipe()))?;
            } else {
                if items.is_empty() {
                    context.need_network()?;
                }
                screen.print(&peers::table(&items, self.wide, screen))?;
                if items.is_empty() && before > 0 {
                    screen.print(&format!(
                        "none of {} is like that\n",
                        counted(before, "peer")
                    ))?;
                }
            }
            if !self.watch {
                return Ok(Exit::Ok);
            }
            std::thread::sleep(WATCH);
        }
    }

    fn wants(&self, peer: &PeerView) -> bool {
        let kind = peer.path.as_ref().map(|path| match path {
            PathView::Relay { .. } => PathKind::Relay,
            _ => PathKind::Direct,
        });
        let active = peer.state == PeerState::Up
            && peer.handshake_s.is_some_and(|seconds| seconds <= ACTIVE);
        (self.site.is_none() || self.site == peer.site)
            && (self.path.is_none() || self.path == kind)
            && (!self.active || active)
    }
}
