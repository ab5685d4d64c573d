//! What the root says, applied.

use podmesh_proto::error::CertificateError;
use podmesh_proto::id::{NodeId, TokenId};
use podmesh_proto::network::{Network, RootStatement};
use podmesh_proto::signed::Signed;
use podmesh_proto::time::UnixSeconds;

use super::Members;
use super::holdings::{MemberId, of_member};
use super::lies::{Lie, NETWORK, Newer, Source};
use crate::limits;
use crate::mutation::{self, Mutant};

impl Members {
    /// Takes a statement of the root; whether it was news.
    ///
    /// # Errors
    /// The root didn't say it, or it is about another network.
    pub fn apply(
        &mut self,
        statement: &Signed<RootStatement>,
        source: Source,
        now: UnixSeconds,
    ) -> Result<bool, CertificateError> {
        let hash = statement.hash();
        if self.statements.get(&hash).is_some() || *statement == self.network_statement {
            self.says_statement(source, statement);
            return Ok(false);
        }
        let said = self.network.verify(statement)?;
        if self.statements.is_over(&hash, &said) {
            return Ok(false);
        }
        let kept = said.clone();
        let news = match said {
            RootStatement::Network(network) => {
                // Kept apart: only the newest edition matters.
                return Ok(self.take_edition(network, statement, source, now));
            }
            RootStatement::RevokeNode { .. } if mutation::is(Mutant::RevokedStays) => true,
            RootStatement::RevokeNode { node, issued, .. } => self.revoke(node, issued),
            RootStatement::RevokeToken { token, issued, .. } => self.revoke_token(token, issued),
            RootStatement::External(peer) => self.take_external(peer, source, now),
            RootStatement::RevokeExternal {
                wireguard, issued, ..
            } => self.revoke_external(wireguard, issued),
            RootStatement::Resolve { node, issued, .. } => self.resolve(node, issued, now),
        };
        self.statements.insert(statement.clone(), kept);
        Ok(news)
    }

    /// Lets go of revocations of tokens that admit nobody any more, whoever forgets that they were
    /// revoked; whether there were any. Where a token's memberships end by themselves, its revocation
    /// keeps them from going on, and stays.
    pub fn forget_spent_revocations(&mut self, now: UnixSeconds) -> bool {
        let grants = self.known.values();
        let grants =
            grants.filter_map(|known| known.membership.application.grant.unverified().ok());
        let endless = grants.filter(|grant| grant.membership.is_none());
        let over_at = endless
            .map(|grant| (grant.token, grant.expires.plus(limits::TOKEN_AFTERLIFE)))
            .collect();
        let spent = self.statements.spent(&over_at, now);
        spent.iter().for_each(|hash| self.statements.remove(hash));
        !spent.is_empty()
    }

    fn take_edition(
        &mut self,
        network: Network,
        statement: &Signed<RootStatement>,
        source: Source,
        now: UnixSeconds,
    ) -> bool {
        let (given, known) = (network.version, self.network.version);
        if given <= known {
            // Another signature of the root under the same words is no other edition.
            if given < known {
                let sentence =
                    format!("edition {given} of the network was served, known is {known}");
                let newer = (Lie::OldState, Newer::Edition);
                self.lies.late(newer, source, sentence, now);
            } else if network != self.network {
                let sentence =
                    format!("another edition {given} of the network than this node's is in use");
                let told = (NETWORK.to_owned(), sentence);
                self.lies.note(Lie::TwoEditions, source, told, now);
            }
            return false;
        }
        self.network = network;
        self.network_statement = statement.clone();
        self.lies.overtake(NETWORK, now);
        self.up_to_date.clear();
        self.verify_again();
        true
    }

    /// A new edition may void receipts of planets that it retires.
    fn verify_again(&mut self) {
        let void: Vec<NodeId> = self
            .known
            .iter()
            .filter(|(node, known)| {
                // Whatever the clock says: time ends memberships, it does not unpin them.
                **node != self.own && known.membership.prove(&self.network).is_err()
            })
            .map(|(node, _)| *node)
            .collect();
        for node in void {
            self.remove(&node);
        }
        self.changed.insert(MemberId::Node(self.own));
    }

    fn revoke(&mut self, node: NodeId, issued: UnixSeconds) -> bool {
        let news = self.revoked.insert(node, issued).is_none();
        self.remove(&node);
        self.changed.insert(MemberId::Node(node));
        news
    }

    /// Said more than once, the earliest counts, in whatever order the statements come.
    fn revoke_token(&mut self, token: TokenId, issued: UnixSeconds) -> bool {
        let known = self.revoked_tokens.get(&token).copied();
        let news = known.is_none_or(|known| issued < known);
        if news {
            self.revoked_tokens.insert(token, issued);
        }
        news
    }

    fn resolve(&mut self, node: NodeId, issued: UnixSeconds, now: UnixSeconds) -> bool {
        let before = self.resolved.get(&node).copied();
        if before.is_some_and(|before| before >= issued) {
            return false;
        }
        self.resolved.insert(node, issued);
        self.judge_again(&node);
        // The losers stay out, against a holder now.
        if let Some(known) = self.known.get(&node) {
            let wanted = of_member(&known.member);
            while let Some(rival) = self.quarantine.contested_by(&node, &wanted) {
                let MemberId::Node(loser) = rival.holder else {
                    break;
                };
                self.judge_again(&loser);
                if self.quarantine.contested_by(&node, &wanted) == Some(rival) {
                    break;
                }
            }
        }
        self.lies.settle(&node.to_string());
        self.expire(now);
        true
    }
}
