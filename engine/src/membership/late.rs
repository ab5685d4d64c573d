//! What this node tells planets and members that say the older, and how it sees that they have heard.

use podmesh_proto::certificate::{Departure, Member, Membership};
use podmesh_proto::id::{NodeId, PlanetId};
use podmesh_proto::network::RootStatement;
use podmesh_proto::signed::Signed;
use podmesh_proto::statements::{Edition, Subject, Summary};
use podmesh_proto::time::UnixSeconds;

use super::Members;
use super::lies::{Lie, Newer, Source};

/// What is newer than something that was said, with its proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Better {
    /// The membership of a node, or of who has its place.
    Member(Box<Membership>),
    /// A node has left.
    Left(Signed<Departure>),
    /// A revocation, or the network itself.
    Statement(Box<Signed<RootStatement>>),
}

impl Members {
    /// Notes that `source` said something older about a node which this one knows better.
    pub fn note_late(
        &mut self,
        (lie, node): (Lie, NodeId),
        source: Source,
        sentence: String,
        now: UnixSeconds,
    ) {
        let newer = (lie, Newer::Member(node));
        self.lies.late(newer, source, sentence, now);
    }

    /// Whether `source` has to be told something that is newer than what it said.
    #[must_use]
    pub fn has_untold(&self, source: Source) -> bool {
        self.lies.has_untold(source)
    }

    /// The next of what `source` has to be told. It counts as told.
    pub fn take_untold(&mut self, source: Source, now: UnixSeconds) -> Option<Better> {
        // What can't be proven to it any more is told to nobody.
        while let Some(newer) = self.lies.take_untold(source, now) {
            if let Some(better) = self.better(newer) {
                return Some(better);
            }
            self.lies.learnt(source, newer);
        }
        None
    }

    fn better(&self, newer: Newer) -> Option<Better> {
        let member = |node: &NodeId| {
            let membership = Box::new((*self.known(node)?.membership).clone());
            Some(Better::Member(membership))
        };
        match newer {
            Newer::Edition => Some(Better::Statement(Box::new(self.network_statement.clone()))),
            Newer::Member(node) => member(&node),
            Newer::Time(_) => None,
            Newer::Gone(node) => {
                let said = self.revocation(&node).map(Box::new).map(Better::Statement);
                let left = || {
                    self.departed
                        .get(&node)
                        .map(|left| Better::Left(left.signed.clone()))
                };
                let by = || self.all().find(|known| known.member.replaces == Some(node));
                said.or_else(left).or_else(|| member(&by()?.member.node))
            }
        }
    }

    fn revocation(&self, node: &NodeId) -> Option<Signed<RootStatement>> {
        let about = self.statements.about(Subject::Node(*node))?;
        let kept = self.statements.get(about)?;
        let revokes = matches!(kept.said, RootStatement::RevokeNode { .. });
        revokes.then(|| kept.signed.clone())
    }

    /// `source` says what a member is.
    pub(super) fn says_present(&mut self, source: Source, member: &Member) {
        self.lies.learnt(source, Newer::Member(member.node));
        if let Some(gone) = member.replaces {
            self.lies.learnt(source, Newer::Gone(gone));
        }
    }

    /// `source` says what the root has said.
    pub(super) fn says_statement(&mut self, source: Source, statement: &Signed<RootStatement>) {
        if *statement == self.network_statement {
            self.holds_edition(source);
        } else if let Ok(RootStatement::RevokeNode { node, .. }) = statement.unverified() {
            self.lies.learnt(source, Newer::Gone(node));
        }
    }

    fn holds_edition(&mut self, source: Source) {
        self.lies.learnt(source, Newer::Edition);
        if let Source::Planet(planet) = source {
            self.up_to_date.insert(planet);
        }
    }

    /// Notes a receipt of a planet that this node's edition doesn't have. Whoever has that edition doesn't
    /// pass such a receipt on in good faith.
    pub(super) fn note_unknown_planet(
        &mut self,
        lie: Lie,
        source: Source,
        (subject, sentence): (String, String),
        now: UnixSeconds,
    ) {
        match source {
            Source::Planet(planet) if self.up_to_date.contains(&planet) => {
                self.lies.note(lie, source, (subject, sentence), now);
            }
            _ => self.lies.late((lie, Newer::Edition), source, sentence, now),
        }
    }

    /// A planet says what it holds of what the root has said.
    pub fn planet_holds(&mut self, planet: PlanetId, summary: &Summary) {
        let source = Source::Planet(planet);
        if summary.edition == Edition::of(&self.network, &self.network_statement) {
            self.holds_edition(source);
        }
        for node in self.lies.ends_in_doubt(source) {
            let about = self.statements.about(Subject::Node(node));
            if about.is_some_and(|hash| self.statements.agrees_on(hash, summary)) {
                self.lies.learnt(source, Newer::Gone(node));
            }
        }
    }

    /// The connection with a planet is lost.
    pub fn planet_is_away(&mut self, planet: PlanetId, now: UnixSeconds) {
        self.up_to_date.remove(&planet);
        self.lies.away(Source::Planet(planet), now);
    }
}
