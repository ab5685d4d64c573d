//! What planets and members said that doesn't hold: each becomes a line of the node's health.

use std::collections::BTreeMap;

use podmesh_proto::candidate::EndpointRecord;
use podmesh_proto::certificate::Member;
use podmesh_proto::id::PlanetId;
use podmesh_proto::local_api::HealthView;
use podmesh_proto::renewal::Standing;
use podmesh_proto::signed::Signed;
use podmesh_proto::time::UnixSeconds;

use crate::limits;

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
    /// A join token that was spent, expired or revoked.
    TokenReplay,
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
            Self::TokenReplay => "MESH-TRUST-008",
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
            Self::OldState => return old_state(source).to_owned(),
            Self::GoneMember => match source {
                Source::Planet(_) => "the planet has not heard of it yet; this node tells it",
                Source::Member(_) | Source::Disk | Source::Operator => {
                    "nothing; whoever said it has not heard of the end of that membership yet"
                }
            },
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

const fn old_state(source: Source) -> &'static str {
    match source {
        Source::Planet(_) => {
            "the planet may have been restored from a backup; it relearns by itself"
        }
        Source::Member(_) => "nothing, if that member was away; it learns by itself",
        Source::Disk => {
            "nothing, if the state folder was restored from a backup; the node relearns"
        }
        Source::Operator => "use the newest file of the network, the one beside the root key",
    }
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

/// What there is to say about a state of a member that was not taken. An older life alone is nothing:
/// who hasn't heard of the renewal yet tells it in good faith.
pub(super) fn about_state(
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

#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    sentence: String,
    first: UnixSeconds,
    count: u64,
    /// The first of what was said, if it may turn out well yet.
    doubted: Option<Box<Signed<EndpointRecord>>>,
}

/// What was said that doesn't hold.
#[derive(Debug, Default)]
pub struct Lies {
    told: BTreeMap<(Lie, Source, String), Told>,
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
        self.tell(lie, source, (subject, sentence), (now, None));
    }

    /// Notes that `source` passed on a record which none of its node's known identities signed. It is said
    /// after [`limits::DOUBT`], unless it is explained before, and taken back if it is explained later.
    pub(super) fn doubt(
        &mut self,
        source: Source,
        told: (String, String),
        record: &Signed<EndpointRecord>,
        now: UnixSeconds,
    ) {
        self.tell(Lie::Forged, source, told, (now, Some(record)));
    }

    fn tell(
        &mut self,
        lie: Lie,
        source: Source,
        (subject, sentence): (String, String),
        (now, doubted): (UnixSeconds, Option<&Signed<EndpointRecord>>),
    ) {
        let mine = |key: &&(Lie, Source, String)| key.1 == source;
        let most = match source {
            Source::Member(_) => limits::MAX_LIES_OF_MEMBER,
            Source::Planet(_) | Source::Disk | Source::Operator => limits::MAX_LIES,
        };
        let key = (lie, source, subject);
        if let Some(told) = self.told.get_mut(&key) {
            told.count = told.count.saturating_add(1);
            told.sentence = sentence;
        } else if self.told.keys().filter(mine).count() < most {
            let (first, count) = (now, 1);
            self.told.insert(
                key,
                Told {
                    sentence,
                    first,
                    count,
                    doubted: doubted.cloned().map(Box::new),
                },
            );
        }
    }

    /// Forgets what somebody said who is no member any more: there is nothing left to be done about it.
    pub(super) fn forget(&mut self, source: Source) {
        self.told.retain(|key, _| key.1 != source);
    }

    /// Forgets that somebody called a node a member that is gone: by now it says itself that it is.
    pub(super) fn learnt(&mut self, source: Source, subject: &str) {
        self.told.retain(|(lie, who, what), _| {
            *lie != Lie::GoneMember || *who != source || what != subject
        });
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
        let doubted = self.told.iter().filter(|(_, told)| {
            let record = told.doubted.as_deref();
            record.is_some_and(&is_explained)
        });
        let explained: Vec<_> = doubted.map(|(key, _)| key.clone()).collect();
        let taken = explained.iter().filter_map(|key| {
            let record = self.told.remove(key)?.doubted?;
            Some((key.1, *record))
        });
        taken.collect()
    }

    /// As health entries; `name` gives a planet's or member's name.
    pub fn views(&self, now: UnixSeconds, name: impl Fn(Source) -> String) -> Vec<HealthView> {
        let is_young = |told: &Told| (told.first..told.first.plus(limits::DOUBT)).contains(&now);
        self.told
            .iter()
            .filter(|(_, told)| told.doubted.is_none() || !is_young(told))
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
