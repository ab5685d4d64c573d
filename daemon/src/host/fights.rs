//! What somebody undoes as often as it is repaired.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use podmesh_kernel::host::{Change, HostState};

use super::Remark;

/// Repairs of one thing are counted for so long.
const MEMORY: Duration = Duration::from_secs(60);
/// So many repairs within [`MEMORY`] are somebody's who will go on.
const FIGHT: usize = 5;
/// Things that are counted; whoever undoes more is seen by these.
const MOST_THINGS: usize = 256;

/// When each thing was last repaired.
#[derive(Debug, Default)]
pub(super) struct Fights {
    /// Newest last, [`FIGHT`] times at most.
    repairs: BTreeMap<String, Vec<Instant>>,
    /// What the kernel was last told to hold: what is repaired without another wish was undone by somebody.
    wanted: Option<HostState>,
}

impl Fights {
    /// Something was not as wanted, and is. False if that happens too often to be told each time.
    pub(super) fn note(&mut self, what: String) -> bool {
        self.forget();
        if self.repairs.len() >= MOST_THINGS && !self.repairs.contains_key(&what) {
            return false;
        }
        let times = self.repairs.entry(what).or_default();
        let is_rare = times.len() < FIGHT;
        if !is_rare {
            times.remove(0);
        }
        times.push(Instant::now());
        is_rare
    }

    /// What was changed so that the kernel holds `state`.
    pub(super) fn note_changes(&mut self, state: &HostState, changes: &[Change]) {
        if self.wanted.as_ref() == Some(state) {
            for change in changes {
                self.note(change.to_string());
            }
        } else {
            self.wanted = Some(state.clone());
        }
    }

    /// What somebody undoes, at present.
    pub(super) fn going_on(&mut self) -> Vec<String> {
        self.forget();
        let often = self
            .repairs
            .iter()
            .filter(|(_, times)| times.len() >= FIGHT);
        often.map(|(what, _)| what.clone()).collect()
    }

    /// A line for each of them.
    pub(super) fn remarks(&mut self, device: &str, veth_prefix: &str) -> Vec<Remark> {
        let next = format!(
            "look for the program that does it among the network managers and container tools of this machine, \
             and have it leave {device}, {veth_prefix}*, table 7077 and the nftables table podmesh alone"
        );
        let going_on = self.going_on().into_iter();
        let said = going_on.map(|what| {
            let sentence = "somebody undoes again and again what meshd repairs, and packets are lost until then";
            Remark::new(format!("{sentence}: {what}"), next.clone())
        });
        said.collect()
    }

    fn forget(&mut self) {
        self.repairs.retain(|_, times| {
            times.retain(|at| at.elapsed() < MEMORY);
            !times.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use podmesh_kernel::mark::Mark;

    use super::*;

    #[test]
    fn what_is_undone_again_and_again_is_said_and_remembered_for_a_minute() {
        let mut fights = Fights::default();
        for times in 1..10 {
            let is_told = fights.note("net.ipv4.ip_forward = 1".to_owned());
            assert_eq!(is_told, times <= FIGHT);
            assert_eq!(fights.going_on().len(), usize::from(times >= FIGHT));
        }
        assert_eq!(fights.repairs.values().map(Vec::len).sum::<usize>(), FIGHT);
        assert_eq!(fights.going_on(), ["net.ipv4.ip_forward = 1"]);
        let long_ago = Instant::now()
            .checked_sub(MEMORY)
            .expect("an uptime of a minute");
        for at in fights.repairs.values_mut().flatten() {
            *at = long_ago;
        }
        assert!(fights.going_on().is_empty() && fights.repairs.is_empty());
    }

    #[test]
    fn whoever_undoes_everything_is_seen_and_fills_nothing() {
        let mut fights = Fights::default();
        for _ in 0..FIGHT {
            for pod in 0..10 * MOST_THINGS {
                fights.note(format!("pod {pod}: the node's end was made a part of br0"));
            }
        }
        assert_eq!(fights.repairs.len(), MOST_THINGS);
        assert_eq!(fights.going_on().len(), MOST_THINGS);
        let said = &fights.remarks("mesh0", "pm")[0];
        assert!(said.message.contains("made a part of br0"), "{said:?}");
        assert!(said.next.contains("pm*"), "{said:?}");
    }

    #[test]
    fn what_is_changed_since_the_plan_was_is_nobodys_doing() {
        let state = |mtu| HostState {
            device: "mesh0".to_owned(),
            mtu,
            addresses: Vec::new(),
            protected: Vec::new(),
            peer_routes: Vec::new(),
            local_prefixes: Vec::new(),
            source_v4: None,
            source_v6: None,
            mark: Mark {
                value: 0x101c,
                mask: 0x101c,
            },
        };
        let mut fights = Fights::default();
        for number in 0..20 {
            fights.note_changes(&state(1280 + number % 2), &[Change::DeviceUp]);
        }
        assert_eq!(fights.going_on(), [""; 0]);
        for _ in 0..FIGHT {
            fights.note_changes(&state(1281), &[Change::DeviceReleased]);
        }
        assert_eq!(
            fights.going_on(),
            ["took the device out of another interface"]
        );
    }
}
