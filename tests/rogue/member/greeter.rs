//! A stranger with manners: says hello now and then, and measures how long a planet takes to answer.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use podmesh_proto::armor;
use podmesh_proto::network::Network;
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::link::Link;
use crate::control;
use crate::loot::Keys;

/// Who isn't welcome by then, wasn't.
const PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of `rogue greeter`.
#[derive(Debug, Args)]
pub(crate) struct Greeter {
    /// The file with the network's document
    #[arg(long)]
    network: PathBuf,
    /// Milliseconds between two hellos
    #[arg(long)]
    every: u64,
    /// How many
    #[arg(long)]
    count: usize,
}

impl Greeter {
    /// Says hello so often, and prints how many microseconds each took.
    pub(crate) async fn run(self) -> Result<()> {
        let document = armor::decode_statement(&fs::read_to_string(&self.network)?)?;
        let network = Network::from_statement(&document)?;
        let planet = network.planets.first().context("no planet")?;
        let mut ticks = interval(Duration::from_millis(self.every));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut times, mut failed) = (Vec::new(), 0);
        for _ in 0..self.count {
            ticks.tick().await;
            let keys = Keys::new()?;
            let begin = Instant::now();
            let greeted = timeout(PATIENCE, async {
                let mut link = Link::connect(planet).await?;
                link.hello(&keys, &network, None).await
            });
            match greeted.await {
                Ok(Ok(_)) => times.push(u64::try_from(begin.elapsed().as_micros())?),
                _ => failed += 1,
            }
        }
        control::say(&json!({ "microseconds": times, "failed": failed }));
        Ok(())
    }
}
