//! Connections from everywhere in a network that say nothing.

use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::IpNet;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::super::RogueMember;
use super::super::link::Link;
use super::Pace;
use super::source::anywhere_in;

/// For a handshake.
const PATIENCE: Duration = Duration::from_secs(5);

impl RogueMember {
    pub(super) async fn stand_in_the_doorway(
        &self,
        from: IpNet,
        count: usize,
        rate: u32,
    ) -> Result<()> {
        let planet = self.network.planets.first().context("no planet")?.clone();
        let (mut pace, mut standing) = (Pace::new(rate), JoinSet::new());
        loop {
            for _ in 0..pace.due().await {
                while let Some(stood) = standing.try_join_next() {
                    let outcome = match stood {
                        Ok(true) => "stood",
                        _ => "turned away",
                    };
                    self.storms.count(outcome, 1);
                }
                if standing.len() >= count {
                    break;
                }
                let (planet, address) = (planet.clone(), anywhere_in(from)?);
                standing.spawn(async move {
                    let connecting = timeout(PATIENCE, Link::connect_from(&planet, address));
                    let Ok(Ok(link)) = connecting.await else {
                        // Who is turned away at once would come again at once.
                        sleep(PATIENCE / 10).await;
                        return false;
                    };
                    link.ended().await;
                    true
                });
                self.storms.count("came", 1);
            }
        }
    }
}
