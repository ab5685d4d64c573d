//! What may be said in good faith by who was away, and what becomes of that doubt.

use podmesh_proto::certificate::Member;
use podmesh_proto::id::NodeId;
use podmesh_proto::renewal::Standing;
use podmesh_proto::time::UnixSeconds;

use super::{Doubt, Key, Lie, Lies, Source, Told};
use crate::limits;

/// What this node knows better, and tells whoever says the older.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Newer {
    /// The membership of a node.
    Member(NodeId),
    /// The end of a membership.
    Gone(NodeId),
    /// The edition of the network.
    Edition,
    /// What time it is, which nobody is told.
    Time(NodeId),
}

impl Newer {
    /// Under which it is noted.
    fn subject(self) -> String {
        match self {
            Self::Member(node) | Self::Gone(node) | Self::Time(node) => node.to_string(),
            Self::Edition => NETWORK.to_owned(),
        }
    }
}

/// The subject of what is about the network as a whole.
pub(in crate::membership) const NETWORK: &str = "network";

/// What somebody said who may not have heard the newer.
#[derive(Debug)]
pub(super) struct Late {
    newer: Newer,
    /// When this node told it.
    told: Option<UnixSeconds>,
    /// Whoever is told answers: silence is as good as saying the older again.
    answers: bool,
    /// It said the older again after that.
    goes_on: bool,
    /// It has said the newer meanwhile, on the same connection.
    over: bool,
    /// Connections on which it began and that were lost before it was clear.
    lost: u32,
}

impl Late {
    pub(super) fn is_named(&self, now: UnixSeconds) -> bool {
        !self.over && (self.goes_on || (self.answers && self.had_time(now)))
    }

    pub(super) const fn is_over(&self) -> bool {
        self.over
    }

    fn had_time(&self, now: UnixSeconds) -> bool {
        let has = |told: UnixSeconds| !(told..told.plus(limits::DOUBT)).contains(&now);
        self.told.is_some_and(has)
    }
}

impl Lies {
    /// Notes that `source` said something older than what this node knows. It is named if it goes on like
    /// that when it has been told.
    pub(in crate::membership) fn late(
        &mut self,
        (lie, newer): (Lie, Newer),
        source: Source,
        sentence: String,
        now: UnixSeconds,
    ) {
        let key = (lie, source, newer.subject());
        let untold = matches!(newer, Newer::Time(_));
        let answers = match source {
            Source::Planet(_) => !untold,
            Source::Member(_) => false,
            // Nobody hears what a disk or a person is told.
            Source::Disk | Source::Operator => {
                return self.note(lie, source, (key.2, sentence), now);
            }
        };
        let late = Late {
            newer,
            answers,
            told: untold.then_some(now),
            goes_on: false,
            over: false,
            lost: 0,
        };
        let Some(told) = self.tell(&key, sentence, (now, Some(Doubt::Late(late)))) else {
            return;
        };
        let again = told.count > 1;
        let Some(late) = told.late_mut().filter(|_| again) else {
            return;
        };
        late.goes_on |= late.had_time(now) || late.lost >= limits::DOUBTS;
        if late.over {
            // It knew better.
            told.doubt = None;
        }
    }

    /// Something to be told to `source`, which is in doubt for want of it. It counts as told from now on.
    pub(in crate::membership) fn take_untold(
        &mut self,
        source: Source,
        now: UnixSeconds,
    ) -> Option<Newer> {
        let mut mine = self.told.iter_mut().filter(|(key, _)| key.1 == source);
        let late = mine.find_map(|(_, told)| {
            let late = told.late_mut();
            late.filter(|late| late.told.is_none() && !late.over)
        })?;
        late.told = Some(now);
        Some(late.newer)
    }

    /// Whether there is something to be told to `source`.
    pub fn has_untold(&self, source: Source) -> bool {
        let mut mine = self.told.iter().filter(|(key, _)| key.1 == source);
        mine.any(|(_, told)| {
            told.late()
                .is_some_and(|late| late.told.is_none() && !late.over)
        })
    }

    /// Takes back what `source` said of the older, as far as it may have been said in good faith: by now it
    /// says the newer itself.
    pub(in crate::membership) fn learnt(&mut self, source: Source, newer: Newer) {
        if self.told.is_empty() {
            return;
        }
        let subject = newer.subject();
        let about = self
            .told
            .iter_mut()
            .filter(|((_, who, what), _)| *who == source && *what == subject);
        for late in about.filter_map(|(_, told)| told.late_mut()) {
            late.over = true;
        }
    }

    /// What `source` is in doubt about as to the end of memberships.
    pub(in crate::membership) fn ends_in_doubt(&self, source: Source) -> Vec<NodeId> {
        let mine = self.told.iter().filter(|(key, _)| key.1 == source);
        let late = mine.filter_map(|(_, told)| told.late().filter(|late| !late.over));
        let ends = late.filter_map(|late| match late.newer {
            Newer::Gone(node) => Some(node),
            Newer::Member(_) | Newer::Edition | Newer::Time(_) => None,
        });
        ends.collect()
    }

    /// The connection with a planet is lost: it may come back as it was yesterday, and is in doubt anew.
    pub(in crate::membership) fn away(&mut self, source: Source, now: UnixSeconds) {
        let is_over = |late: &Late| late.is_over() || (!late.goes_on && !late.answers);
        let goes = |told: &Told| told.late().is_some_and(is_over);
        self.told.retain(|key, told| key.1 != source || !goes(told));
        let mine = self.told.iter_mut().filter(|(key, _)| key.1 == source);
        for late in mine.filter_map(|(_, told)| told.late_mut()) {
            if late.told.is_some() && !late.is_named(now) {
                late.told = None;
                late.lost = late.lost.saturating_add(1);
            }
        }
    }

    /// Nothing is known of a node any more that would be newer than what was said of it.
    pub(in crate::membership) fn nothing_newer(&mut self, node: &NodeId) {
        self.told.retain(|_: &Key, told| {
            told.late()
                .is_none_or(|late| late.newer != Newer::Member(*node))
        });
    }
}

/// What there is to say about a state of a member that was not taken. An older life alone is nothing:
/// who hasn't heard of the renewal yet tells it in good faith.
pub(in crate::membership) fn about_state(
    told: &Member,
    known: &Member,
    standing: Standing,
) -> Option<(Lie, String)> {
    let name = &known.name;
    match standing {
        Standing::Newer | Standing::Same => None,
        Standing::Older => {
            let age = |member: &Member| (member.admitted, member.serial);
            let keys = |member: &Member| (member.wireguard, member.probe);
            let sentence = if age(told) < age(known) {
                format!(
                    "an older state of {name} was served (claim {}, known is {})",
                    told.serial, known.serial
                )
            } else if keys(told) != keys(known) {
                format!(
                    "former keys of {name} were served (serial {}, known is {})",
                    told.renewal, known.renewal
                )
            } else {
                return None;
            };
            Some((Lie::OldState, sentence))
        }
        Standing::Superseded => {
            let sentence = format!("{name} was offered by an identity that it has replaced");
            Some((Lie::Superseded, sentence))
        }
        Standing::Forked => {
            let sentence = format!(
                "a second successor of {name}'s documents was offered (serial {}, known is {})",
                told.renewal, known.renewal
            );
            Some((Lie::Forked, sentence))
        }
    }
}

/// Whether a state may have been told in good faith: the node was that, once. A former identity signs
/// nothing that is numbered beyond its successor's.
pub(in crate::membership) fn may_be_late(
    told: &Member,
    known: &Member,
    standing: Standing,
) -> bool {
    match standing {
        Standing::Older => true,
        Standing::Superseded => {
            told.certificate != known.certificate || told.renewal < known.renewal
        }
        Standing::Newer | Standing::Same | Standing::Forked => false,
    }
}
