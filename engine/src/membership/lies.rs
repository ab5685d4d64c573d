//! What planets and members said that doesn't hold: each becomes a line of the node's health.
//!
//! Who was away, or was put back to what it was yesterday, tells in good faith what it knew. It is told the
//! newer by this node, and has [`limits::DOUBT`] seconds from then on to say it itself, or to stop; afterwards
//! it is named. Whoever says the newer, however late, is named no more. Who goes back from the newer to the
//! older on one connection, or comes back with the older again and again ([`limits::DOUBTS`]), is named at
//! once; of the first of these there is no way back. What a planet or member may say in good faith, and so
//! is in doubt at first, and what nobody may:
//!
//! | what is said | after an hour away, or restored | is told | shows by |
//! |---|---|---|---|
//! | an older life of a member | may: never named | - | - |
//! | an older claim or admission of a member | may | the membership | the same membership or a newer one |
//! | former keys of a member | may | the membership | the same |
//! | a former identity of a member, as it was | may | the membership | the same |
//! | a record by a former identity | may; not a word of it counts | the membership | the same |
//! | a second successor of one document | may not: nobody signs two | - | - |
//! | a member that was revoked | may | the revocation | the revocation, or a summary with it |
//! | a member that has left, or whose place was given away | may | the departure, or who has the place | that |
//! | the departure of a member that was admitted anew | may | the membership | the membership |
//! | an older edition of the network | may | the newest | the newest, or a summary with it |
//! | another document for one edition | may: it is the root's doing, and named until a newer one | - | - |
//! | a member admitted or renewed after its token's revocation, by date | may: not taken, and the member is named | - | - |
//! | a member whose life is over, or has not begun by this clock | may, once: clocks differ, and have a line of their own | - | - |
//! | a receipt of a planet that this node's edition doesn't have | may | the edition | a summary with it |
//! | a record before the renewal that explains it | may | - | the renewal |
//! | what collides with a holder | may not: named at once, and settled when the holder goes | - | - |
//! | what isn't signed by who should have | may not | - | - |

use std::collections::BTreeMap;

use podmesh_proto::candidate::EndpointRecord;
use podmesh_proto::id::PlanetId;
use podmesh_proto::local_api::HealthView;
use podmesh_proto::signed::Signed;
use podmesh_proto::time::UnixSeconds;

use self::late::Late;
use crate::limits;

mod late;

pub use self::late::Newer;
pub(super) use self::late::{NETWORK, about_state, may_be_late};

/// Who said something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A planet, on its control connection.
    Planet(PlanetId),
    /// Another member, through its tunnel.
    Member(podmesh_proto::id::NodeId),
    /// This node's own disk.
    Disk,
    /// This node's operator.
    Operator,
}

/// Kinds of lies, in the order of their codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lie {
    /// A member that was never admitted.
    FalseMember,
    /// A member that wants what a known member holds.
    Conflict,
    /// Two members that want the same, neither of them known before.
    Contested,
    /// An older state than this node has.
    OldState,
    /// A member that was revoked or has left.
    GoneMember,
    /// A known member with another key.
    SwappedKey,
    /// A known member with other addresses.
    MovedAddress,
    /// A join token that was spent or expired.
    TokenReplay,
    /// A member that is dated after its token's revocation.
    AfterRevocation,
    /// A member whose life is over, or has not begun.
    OutOfTime,
    /// A statement or record that its author didn't sign.
    Forged,
    /// The word of an identity that its node has replaced.
    Superseded,
    /// A second successor of one document.
    Forked,
    /// Two documents of the root for one edition of the network.
    TwoEditions,
}

impl Lie {
    /// The stable code.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::FalseMember => "MESH-TRUST-001",
            Self::Conflict => "MESH-TRUST-002",
            Self::Contested => "MESH-TRUST-003",
            Self::OldState => "MESH-TRUST-004",
            Self::GoneMember => "MESH-TRUST-005",
            Self::SwappedKey => "MESH-TRUST-006",
            Self::MovedAddress => "MESH-TRUST-007",
            Self::TokenReplay | Self::AfterRevocation | Self::OutOfTime => "MESH-TRUST-008",
            Self::Forged => "MESH-TRUST-009",
            Self::Superseded => "MESH-TRUST-010",
            Self::Forked => "MESH-TRUST-011",
            Self::TwoEditions => "MESH-TRUST-012",
        }
    }

    /// What to do about it, by who said it.
    fn next(self, source: Source, name: &str) -> String {
        let advice = match self {
            Self::Conflict => {
                "find out who of the two is right, and revoke the other or resolve with \
                 `meshctl node resolve NAME`"
            }
            Self::Contested => "decide with `meshctl node resolve NAME`; neither is routed to",
            Self::OldState => return old_state(source, name),
            Self::GoneMember => match source {
                Source::Planet(_) => return told_in_vain(name),
                Source::Member(_) | Source::Disk | Source::Operator => {
                    "nothing; whoever said it has not heard of the end of that membership yet"
                }
            },
            Self::AfterRevocation => {
                "nothing was believed; a planet that had not heard of the revocation yet does that in good \
                 faith. If that machine is meant to be in, give it a new token (`meshctl leave` there, then \
                 `meshctl join`), else put it out with `meshctl node revoke NAME`"
            }
            Self::OutOfTime => {
                "nothing was believed; compare the clock there with this machine's, and run a time service on \
                 the one that is wrong"
            }
            Self::Superseded => {
                "nothing was believed; somebody may hold a former key of that node, which is of no use \
                 any more"
            }
            Self::Forked => {
                "the state known first stays; if the node didn't do this itself, its keys are stolen: \
                 revoke it with `meshctl node revoke NAME`"
            }
            Self::TwoEditions => {
                "where the root key is, make one that is newer than both: `meshctl network pull`, then \
                 the change that is missing"
            }
            Self::FalseMember
            | Self::SwappedKey
            | Self::MovedAddress
            | Self::TokenReplay
            | Self::Forged => return nothing_believed(source, name),
        };
        advice.to_owned()
    }
}

fn told_in_vain(planet: &str) -> String {
    format!(
        "nothing was believed; this node has told the planet, which goes on all the same: look at its log and \
         `planet status` there, and replace it with `meshctl network add-planet NEW --replaces {planet}` if it \
         was broken into"
    )
}

fn old_state(source: Source, name: &str) -> String {
    let advice = match source {
        Source::Planet(_) => return told_in_vain(name),
        Source::Member(_) => "nothing, if that member was away; it learns by itself",
        Source::Disk => {
            "nothing, if the state folder was restored from a backup; the node relearns"
        }
        Source::Operator => "use the newest file of the network, the one beside the root key",
    };
    advice.to_owned()
}

fn nothing_believed(source: Source, name: &str) -> String {
    match source {
        Source::Planet(_) => format!(
            "nothing was believed; check that planet, and replace it with `meshctl network \
             add-planet NEW --replaces {name}` if it was broken into"
        ),
        Source::Member(_) => format!(
            "nothing was believed; check that node, and put it out with `meshctl node revoke {name}` if \
             it was broken into"
        ),
        Source::Disk => {
            "nothing was believed; check the disk, and restore the state folder or join anew \
                         with `meshctl leave` and a new token"
                .to_owned()
        }
        Source::Operator => {
            "nothing was done; check that the file is of this network, as its root signed it"
                .to_owned()
        }
    }
}

#[derive(Debug)]
struct Told {
    sentence: String,
    first: UnixSeconds,
    count: u64,
    doubt: Option<Doubt>,
}

/// Why something may turn out to be well yet.
#[derive(Debug)]
enum Doubt {
    /// The first such record, which a renewal may explain.
    Record(Box<Signed<EndpointRecord>>),
    /// Who was away may say it.
    Late(Late),
}

impl Told {
    /// Whether it is something to be named: nothing but a doubt that is young is not.
    fn is_named(&self, now: UnixSeconds) -> bool {
        let is_young = |since: UnixSeconds| (since..since.plus(limits::DOUBT)).contains(&now);
        match &self.doubt {
            None => true,
            Some(Doubt::Record(_)) => !is_young(self.first),
            Some(Doubt::Late(late)) => late.is_named(now),
        }
    }

    const fn late(&self) -> Option<&Late> {
        match &self.doubt {
            Some(Doubt::Late(late)) => Some(late),
            _ => None,
        }
    }

    const fn late_mut(&mut self) -> Option<&mut Late> {
        match &mut self.doubt {
            Some(Doubt::Late(late)) => Some(late),
            _ => None,
        }
    }
}

/// What is said by whom about whom.
type Key = (Lie, Source, String);

/// What was said that doesn't hold.
#[derive(Debug, Default)]
pub struct Lies {
    told: BTreeMap<Key, Told>,
}

impl Lies {
    /// Notes that `source` said something about `subject` that doesn't hold.
    pub fn note(
        &mut self,
        lie: Lie,
        source: Source,
        (subject, sentence): (String, String),
        now: UnixSeconds,
    ) {
        let key = (lie, source, subject);
        let told = self.tell(&key, sentence, (now, None));
        if let Some(told) = told.filter(|told| told.late().is_some()) {
            told.doubt = None;
        }
    }

    /// Notes that `source` passed on a record which none of its node's known identities signed. It is said
    /// after [`limits::DOUBT`], unless it is explained before, and taken back if it is explained later.
    pub(super) fn doubt(
        &mut self,
        source: Source,
        (subject, sentence): (String, String),
        record: &Signed<EndpointRecord>,
        now: UnixSeconds,
    ) {
        let doubt = Doubt::Record(Box::new(record.clone()));
        self.tell(
            &(Lie::Forged, source, subject),
            sentence,
            (now, Some(doubt)),
        );
    }

    fn tell(
        &mut self,
        key: &Key,
        sentence: String,
        (now, doubt): (UnixSeconds, Option<Doubt>),
    ) -> Option<&mut Told> {
        if !self.told.contains_key(key) {
            self.make_room(key.1, doubt.is_none(), now)?;
            let (first, count) = (now, 0);
            let told = Told {
                sentence: String::new(),
                first,
                count,
                doubt,
            };
            self.told.insert(key.clone(), told);
        }
        let told = self.told.get_mut(key)?;
        told.count = told.count.saturating_add(1);
        told.sentence = sentence;
        Some(told)
    }

    /// Room for one more of what `source` said. What is sure comes before what is in doubt: nobody hides by
    /// what may be said in good faith.
    fn make_room(&mut self, source: Source, sure: bool, now: UnixSeconds) -> Option<()> {
        let most = match source {
            Source::Member(_) => limits::MAX_LIES_OF_MEMBER,
            Source::Planet(_) | Source::Disk | Source::Operator => limits::MAX_LIES,
        };
        let mine = |(_, who, _): &Key| *who == source;
        if self.told.keys().filter(|key| mine(key)).count() < most {
            return Some(());
        }
        let may_go = |told: &Told| match told.late() {
            Some(late) => late.is_over() || (sure && !late.is_named(now)),
            None => false,
        };
        let mut all = self.told.iter();
        let (key, _) = all.find(|(key, told)| mine(key) && may_go(told))?;
        let key = key.clone();
        self.told.remove(&key);
        Some(())
    }

    /// Forgets what somebody said who is no member any more: there is nothing left to be done about it.
    pub(super) fn forget(&mut self, source: Source) {
        self.told.retain(|key, _| key.1 != source);
    }

    /// There is news of a member or of the network: what was said before counts no more. Who was told the
    /// state before and went on with an older one is named until it says the present one.
    pub(super) fn overtake(&mut self, subject: &str, now: UnixSeconds) {
        let stays = |told: &Told| told.late().is_some_and(|late| late.is_named(now));
        self.told
            .retain(|key, told| key.2 != subject || stays(told));
    }

    /// Forgets what was said about `subject`, which has turned out well.
    pub fn settle(&mut self, subject: &str) {
        self.told.retain(|key, _| key.2 != subject);
    }

    /// Takes back the doubts that `is_explained` tells to have been none, and gives those records with who
    /// told them first.
    pub(super) fn explain(
        &mut self,
        is_explained: impl Fn(&Signed<EndpointRecord>) -> bool,
    ) -> Vec<(Source, Signed<EndpointRecord>)> {
        let doubted = self.told.iter().filter(
            |(_, told)| matches!(&told.doubt, Some(Doubt::Record(record)) if is_explained(record)),
        );
        let explained: Vec<_> = doubted.map(|(key, _)| key.clone()).collect();
        let taken = explained.iter().filter_map(|key| {
            let Some(Doubt::Record(record)) = self.told.remove(key)?.doubt else {
                return None;
            };
            Some((key.1, *record))
        });
        taken.collect()
    }

    /// How much is remembered, of all sources.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.told.len()
    }

    /// As health entries; `name` gives a planet's or member's name.
    pub fn views(&self, now: UnixSeconds, name: impl Fn(Source) -> String) -> Vec<HealthView> {
        self.told
            .iter()
            .filter(|(_, told)| told.is_named(now))
            .map(|((lie, source, _), told)| {
                let name = name(*source);
                let who = match source {
                    Source::Planet(_) => format!("planet {name}"),
                    Source::Member(_) => format!("member {name}"),
                    Source::Disk => "this node's state file".to_owned(),
                    Source::Operator => "the operator".to_owned(),
                };
                HealthView {
                    code: lie.code().to_owned(),
                    message: format!(
                        "{who}: {} (first {}, {} times)",
                        told.sentence, told.first, told.count
                    ),
                    next: Some(lie.next(*source, &name)),
                }
            })
            .collect()
    }
}
