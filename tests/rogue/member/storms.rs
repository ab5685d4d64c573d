//! What a rogue member does without end: each storm is something that members do now and then, done as
//! often as it goes.

mod at_planet;
mod doorway;
mod in_tunnels;
mod over_relay;
mod source;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use ipnet::IpNet;
use podmesh_proto::id::Name;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use self::in_tunnels::Word;
use super::{RETRY, RogueMember};
use crate::control;

/// Between two looks at what is due.
const LOOK: Duration = Duration::from_millis(2);
/// Seconds that may be made up for when something didn't get its turn.
const LAG: f64 = 0.1;

/// Something that is done again and again.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Storm {
    /// Claims its own addresses anew.
    Claims,
    /// Says that it is in sixteen other places of a network.
    Candidates {
        /// The network.
        range: IpNet,
        /// Behind a NAT there, and wants to be introduced to everybody.
        punch: bool,
    },
    /// Passes on departures of nodes that never were, to the planet.
    Departures,
    /// Shows its membership.
    Memberships,
    /// Connects to the planet and goes away.
    Comings,
    /// Says something in a tunnel.
    Words {
        /// To whom.
        to: Name,
        /// What.
        word: Word,
        /// From somewhere in this network; from where it is, if absent.
        from: Option<IpNet>,
    },
    /// Sends probes to a member.
    Probes {
        /// To whom.
        to: Name,
        /// From somewhere in this network.
        from: Option<IpNet>,
    },
    /// Begins handshakes with a member.
    Handshakes {
        /// With whom.
        to: Name,
        /// From somewhere in this network.
        from: Option<IpNet>,
    },
    /// Begins handshakes by keys that nobody knows.
    Strangers {
        /// With whom.
        to: Name,
        /// From somewhere in this network.
        from: Option<IpNet>,
    },
    /// Has the relay send to itself, by every session that it gets.
    Sessions {
        /// How many it asks for.
        count: usize,
    },
    /// Tells the relay that it is somewhere else, and has it send there.
    Place {
        /// There.
        victim: SocketAddr,
    },
    /// Asks the relay where it is.
    Observe {
        /// From somewhere in this network.
        from: Option<IpNet>,
    },
    /// Connects to the planet from everywhere in a network and says nothing.
    Doorway {
        /// The network.
        from: IpNet,
        /// Connections at a time.
        count: usize,
    },
}

/// All that go on, and how often what was done.
#[derive(Debug, Default)]
pub(super) struct Storms {
    going_on: Mutex<JoinSet<()>>,
    tally: Mutex<BTreeMap<&'static str, u64>>,
}

impl Storms {
    /// Counts something.
    pub(super) fn count(&self, what: &'static str, how_often: u64) {
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        *tally.entry(what).or_default() += how_often;
    }

    /// Ends all of them; gives what was counted.
    pub(super) fn calm(&self) -> Value {
        let mut going_on = self.going_on.lock().unwrap_or_else(PoisonError::into_inner);
        going_on.abort_all();
        *going_on = JoinSet::new();
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        json!(std::mem::take(&mut *tally))
    }

    /// Begins one, `rate` times a second.
    pub(super) fn begin(&self, member: Arc<RogueMember>, storm: Storm, rate: u32) {
        let mut going_on = self.going_on.lock().unwrap_or_else(PoisonError::into_inner);
        going_on.spawn(async move {
            loop {
                if let Err(error) = member.rage(&storm, rate).await {
                    let reason = format!("{error:#}");
                    control::say(&json!({ "storm": format!("{storm:?}"), "reason": reason }));
                    member.storms.count("failures", 1);
                    sleep(RETRY).await;
                }
            }
        });
    }
}

impl RogueMember {
    async fn rage(&self, storm: &Storm, rate: u32) -> Result<()> {
        match storm {
            Storm::Claims
            | Storm::Candidates { .. }
            | Storm::Departures
            | Storm::Memberships
            | Storm::Comings => self.bother_planet(storm, rate).await,
            Storm::Words { .. }
            | Storm::Probes { .. }
            | Storm::Handshakes { .. }
            | Storm::Strangers { .. } => self.bother_member(storm, rate).await,
            Storm::Sessions { count } => self.use_sessions(*count, rate).await,
            Storm::Place { victim } => self.be_elsewhere(*victim, rate).await,
            Storm::Observe { from } => self.ask_where(*from, rate).await,
            Storm::Doorway { from, count } => self.stand_in_the_doorway(*from, *count, rate).await,
        }
    }
}

/// How often something is due.
struct Pace {
    rate: f64,
    at: Instant,
    owed: f64,
}

impl Pace {
    fn new(rate: u32) -> Self {
        Self {
            rate: rate.into(),
            at: Instant::now(),
            owed: 0.0,
        }
    }

    /// Waits until something is due; how often.
    async fn due(&mut self) -> u64 {
        // Others have their turn, too, if what is due is more than can be done.
        loop {
            sleep(LOOK).await;
            let now = Instant::now();
            self.owed += (now - self.at).as_secs_f64() * self.rate;
            self.owed = self.owed.min((self.rate * LAG).max(1.0));
            self.at = now;
            if self.owed >= 1.0 {
                let due = self.owed.floor();
                self.owed -= due;
                return due as u64;
            }
        }
    }
}
