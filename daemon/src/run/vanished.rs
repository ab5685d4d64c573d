//! Files of the state folder that somebody has taken away or changed under this process, which has what
//! was in them in memory and writes it anew.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use podmesh_proto::local_api::HealthView;
use podmesh_proto::time::Moment;

use super::Node;
use crate::clock;

/// The files are looked at this often.
const LOOK: Duration = Duration::from_secs(5);
/// So long is it said: nothing is wrong any more, but whoever did it may do it again.
const SAID: Duration = Duration::from_secs(3_600);

/// What is said of them.
#[derive(Debug, Default)]
pub(super) struct Vanished {
    next_look: Moment,
    names: BTreeSet<String>,
    said_until: Option<Moment>,
}

impl Vanished {
    fn note(&mut self, fallen: &[PathBuf], now: Moment) {
        if self.said_until.is_none_or(|until| until <= now) {
            self.names.clear();
        }
        self.said_until = Some(now + SAID);
        for path in fallen {
            let name = path.file_name().unwrap_or(path.as_os_str());
            self.names.insert(name.to_string_lossy().into_owned());
        }
    }

    pub(super) fn health(&self, now: Moment) -> Option<HealthView> {
        self.said_until.filter(|until| *until > now)?;
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        Some(HealthView {
            code: "MESH-DISK-002".to_owned(),
            message: format!(
                "files of the state folder were taken away or changed while meshd was running, and are written \
                 anew from memory: {}",
                names.join(", ")
            ),
            next: Some(
                "find out what did that; to put a backup in their place, stop meshd before"
                    .to_owned(),
            ),
        })
    }
}

impl Node {
    /// Has the files looked at when it is time.
    pub(super) fn watch_state(&mut self, now: Moment) {
        if self.vanished.next_look <= now {
            self.vanished.next_look = now + LOOK;
            let identity = self.identity.left();
            self.writer.look(identity);
        }
    }

    /// Writes anew what is not as it was left: the keys first, as a state without them is nobody's.
    pub(super) fn restore_state(&mut self, fallen: &[PathBuf]) {
        let now = clock::now();
        tracing::warn!(files = ?fallen, "files of the state were taken away or changed");
        self.vanished.note(fallen, now.moment);
        if self.identity.left().iter().any(|kept| !kept.stands()) {
            self.identity.restore();
        }
        self.engine.handle_lost_state(now);
        self.do_outputs();
        self.held.wait_for(self.writer.outdate());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_away_is_named_for_an_hour() {
        let at = |seconds| Moment::ZERO + Duration::from_secs(seconds);
        let mut vanished = Vanished::default();
        assert_eq!(vanished.health(at(0)), None);
        vanished.note(&["/state/identity".into()], at(5));
        vanished.note(&["/state/state".into()], at(1_000));
        let said = vanished.health(at(4_599)).unwrap();
        assert!(said.message.ends_with("identity, state"), "{said:?}");
        assert_eq!(vanished.health(at(4_600)), None);
        vanished.note(&["/state/state".into()], at(9_000));
        let said = vanished.health(at(9_001)).unwrap();
        assert!(said.message.ends_with("memory: state"), "{said:?}");
    }
}
