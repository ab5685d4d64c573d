//! The lies, one order each.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use podmesh_proto::armor;
use podmesh_proto::candidate::{Candidate, CandidateKind, EndpointRecord};
use podmesh_proto::certificate::{Departure, Grant, Membership};
use podmesh_proto::id::{Name, TokenId};
use podmesh_proto::key::SigningKey;
use podmesh_proto::network::RootStatement;
use podmesh_proto::planet_api::{DirectoryRecord, PlanetMessage};
use podmesh_proto::signed::Signed;
use podmesh_proto::time::UnixSeconds;
use podmesh_proto::token::JoinToken;
use serde::Deserialize;
use serde_json::{Value, json};

use super::StolenPlanet;
use super::books::{certificate, claim};
use crate::clock;
use crate::control::Puppet;
use crate::forge::{Newcomer, Prey};
use crate::knock::knock;
use crate::loot::Keys;
use crate::random;

/// What a stolen planet can be told to do.
#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Order {
    /// Says who is connected and what was harvested.
    Look,
    /// Asks all nodes for all that they know.
    Relearn,
    /// Knocks at all nodes with the accomplice's real keys: shows that knocking would be answered.
    Knock,
    /// A member whose token the root never signed.
    AddMember,
    /// The victim's claim, with another address, signed by the planet.
    MoveAddress {
        /// Whose.
        victim: Name,
    },
    /// The victim's certificate with another `WireGuard` key.
    SwapKey {
        /// Whose.
        victim: Name,
    },
    /// The accomplice claims what is the victim's, and the planet receipts it.
    Claim {
        /// Whose.
        victim: Name,
        /// What of it.
        prey: Prey,
        /// Whether newcomers hear of it too, as of everybody else.
        #[serde(default)]
        kept: bool,
    },
    /// A node that comes in by a token that others have used.
    ReplayToken {
        /// The file with the token.
        token: PathBuf,
        /// How it should be void.
        how: Replay,
        /// What the node claims, and whose that is.
        prey: Option<(Name, Prey)>,
    },
    /// An older edition of the network document.
    ServeOldNetwork {
        /// The file with it.
        document: PathBuf,
    },
    /// The oldest chain that was ever seen of a member, or the newest.
    Serve {
        /// Whose.
        member: Name,
        /// Whether the oldest one.
        oldest: bool,
    },
    /// Endpoints of the victim that the planet signed.
    ForgeEndpoints {
        /// Whose.
        victim: Name,
        /// Where it is said to be.
        at: SocketAddr,
    },
    /// The victim's departure, signed by the planet.
    ForgeDeparture {
        /// Whose.
        victim: Name,
    },
    /// A departure of the victim's own, from before it came back.
    ReplayDeparture {
        /// Whose.
        victim: Name,
    },
    /// The victim's revocation, signed by the planet.
    ForgeRevocation {
        /// Whose.
        victim: Name,
    },
}

/// Why a token should be void.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Replay {
    /// Its first use is somebody else's.
    Used,
    /// It had fewer uses.
    Beyond,
    /// It has expired.
    Late,
    /// It isn't void: the thief came by a token too, which lets it add a node.
    Not,
}

impl Puppet for StolenPlanet {
    type Order = Order;

    async fn obey(&self, order: Order) -> Result<Value> {
        match order {
            Order::Look => Ok(self.look()),
            Order::Relearn => {
                let told = self.books().announce(&PlanetMessage::Relearn);
                Ok(json!({ "told": told }))
            }
            Order::Knock => self.knock_with(&self.accomplice()?.keys()).await,
            Order::AddMember => {
                let key = SigningKey::from_seed(random::bytes()?);
                let grant = self.false_grant(&key)?;
                self.bring_in(grant, &key, ((1, clock::now()), None)).await
            }
            Order::ReplayToken { token, how, prey } => {
                let token = read_token(&token)?;
                let grant = token.grant.unverified()?;
                let admitted = match how {
                    Replay::Used => (1, grant.expires.min(clock::now())),
                    Replay::Beyond => (grant.uses + 1, grant.expires.min(clock::now())),
                    Replay::Not => (1, clock::now()),
                    Replay::Late => (grant.uses, grant.expires.plus(86_400)),
                };
                self.bring_in(token.grant, &token.key, (admitted, prey))
                    .await
            }
            Order::SwapKey { victim } => self.swap_key(&victim).await,
            Order::MoveAddress { victim } => self.move_address(&victim),
            Order::Claim { victim, prey, kept } => self.claim_for_accomplice(&victim, (prey, kept)),
            Order::ServeOldNetwork { document } => self.serve_old_network(&document),
            Order::Serve { member, oldest } => self.serve(&member, oldest),
            Order::ForgeEndpoints { victim, at } => self.forge_endpoints(&victim, at),
            Order::ForgeDeparture { victim } => self.forge_departure(&victim),
            Order::ReplayDeparture { victim } => self.replay_departure(&victim),
            Order::ForgeRevocation { victim } => self.forge_revocation(&victim),
        }
    }
}

impl StolenPlanet {
    fn look(&self) -> Value {
        let books = self.books();
        let members = books.members.values().flat_map(certificate);
        let members: Vec<String> = members.map(|member| member.name.to_string()).collect();
        json!({
            "listeners": books.listeners(),
            "members": members,
            "chains_seen": books.seen.len(),
            "doors": books.doors(self.accomplice_id()).len(),
            "statements_withheld": books.withheld.len(),
        })
    }

    async fn knock_with(&self, keys: &Keys) -> Result<Value> {
        let (network, doors) = {
            let books = self.books();
            (books.network.id, books.doors(self.accomplice_id()))
        };
        knock(keys, &network, &doors).await
    }

    fn tell(&self, record: DirectoryRecord) -> Vec<String> {
        self.books().tell_except(&[], &[record])
    }

    fn tell_member(&self, membership: Membership) -> Vec<String> {
        self.tell(DirectoryRecord::Member(Box::new(membership)))
    }

    fn false_grant(&self, token_key: &SigningKey) -> Result<Signed<Grant>> {
        let now = clock::now();
        let grant = Grant {
            network: self.books().network.id,
            token: TokenId(random::bytes()?),
            token_key: token_key.public(),
            issued: now.minus(60),
            expires: now.plus(3_600),
            uses: 1,
            site: None,
            groups: Vec::new(),
            relay: false,
            ranges: Vec::new(),
            membership: None,
            for_name: None,
            replaces: None,
        };
        Ok(Signed::seal(&grant, &self.key)?)
    }

    /// Tells of a newcomer and knocks with its keys.
    async fn bring_in(
        &self,
        grant: Signed<Grant>,
        token_key: &SigningKey,
        (admitted, prey): ((u32, UnixSeconds), Option<(Name, Prey)>),
    ) -> Result<Value> {
        let keys = Keys::new()?;
        let node = keys.identity.node_id();
        let bound = grant.unverified()?.for_name;
        let name = match bound {
            Some(name) => name,
            None => format!("false-{}", node.short()).parse()?,
        };
        let mut membership = self.forger(&mut self.books()).newcomer(Newcomer {
            keys: &keys,
            name: name.clone(),
            grant,
            token_key,
            admitted,
        })?;
        if let Some((victim, prey)) = prey {
            let mut books = self.books();
            let theirs = claim(books.member(&victim)?)?;
            let wanted = prey.claimed_in(claim(&membership)?, &theirs, &books.network)?;
            membership =
                self.forger(&mut books)
                    .with_claim(&membership, &wanted, &keys.identity)?;
        }
        let wanted = claim(&membership)?;
        let told = self.tell_member(membership);
        self.tell(DirectoryRecord::Presence { node, online: true });
        let knocked = self.knock_with(&keys).await?;
        Ok(json!({
            "told": told, "name": name, "node": node, "overlay4": wanted.overlay4,
            "pod_cidrs": wanted.pod_cidrs, "knocked": knocked,
        }))
    }

    async fn swap_key(&self, victim: &Name) -> Result<Value> {
        let mut keys = Keys::new()?;
        let membership = {
            let mut books = self.books();
            let member = books.member(victim)?.clone();
            self.forger(&mut books)
                .with_key(&member, keys.wireguard.public())?
        };
        // The victim's probe key stays; a probe of the thief's is one more thing to be refused.
        keys.identity = SigningKey::from_seed(random::bytes()?);
        let told = self.tell_member(membership);
        let knocked = self.knock_with(&keys).await?;
        Ok(json!({ "told": told, "name": victim, "knocked": knocked }))
    }

    fn move_address(&self, victim: &Name) -> Result<Value> {
        let mut books = self.books();
        let member = books.member(victim)?.clone();
        let mut moved = claim(&member)?;
        moved.serial += 1;
        moved.overlay4 = moved
            .overlay4
            .map(|address| (u32::from(address) ^ 0x80).into());
        let membership = self
            .forger(&mut books)
            .with_claim(&member, &moved, &self.key)?;
        let told = books.tell_except(&[], &[DirectoryRecord::Member(Box::new(membership))]);
        Ok(json!({ "told": told, "name": victim, "overlay4": moved.overlay4 }))
    }

    fn claim_for_accomplice(&self, victim: &Name, (prey, kept): (Prey, bool)) -> Result<Value> {
        let accomplice = self.accomplice()?;
        let mut books = self.books();
        let theirs = claim(books.member(victim)?)?;
        let mut former = claim(&accomplice.membership)?;
        // Higher than any claim before, this order's forerunners included.
        former.serial = former.serial.max(books.sequence) + 1;
        let wanted = prey.claimed_in(former, &theirs, &books.network)?;
        let membership = self.forger(&mut books).with_claim(
            &accomplice.membership,
            &wanted,
            &accomplice.keys().identity,
        )?;
        if kept {
            books.harvest(&membership);
        }
        let name = certificate(&membership)?.name;
        let told = books.tell_except(&[], &[DirectoryRecord::Member(Box::new(membership))]);
        Ok(json!({
            "told": told, "name": name, "overlay4": wanted.overlay4, "pod_cidrs": wanted.pod_cidrs,
        }))
    }

    fn serve_old_network(&self, document: &Path) -> Result<Value> {
        let statement = armor::decode_statement(&fs::read_to_string(document)?)?;
        let RootStatement::Network(network) = statement.unverified()? else {
            anyhow::bail!("{} is no network", document.display());
        };
        let message = PlanetMessage::Statement(Box::new(statement));
        let told = self.books().announce(&message);
        Ok(json!({ "told": told, "version": network.version }))
    }

    fn serve(&self, name: &Name, oldest: bool) -> Result<Value> {
        let mut books = self.books();
        let membership = if oldest {
            let mut seen = books.seen.iter();
            let old = seen.find(|chain| certificate(chain).is_ok_and(|found| found.name == *name));
            old.context("no chain of that name was seen")?.clone()
        } else {
            books.member(name)?.clone()
        };
        let serial = claim(&membership)?.serial;
        let node = certificate(&membership)?.node;
        let told = books.tell_except(
            &[],
            &[
                DirectoryRecord::Member(Box::new(membership)),
                DirectoryRecord::Presence { node, online: true },
            ],
        );
        Ok(json!({ "told": told, "name": name, "serial": serial }))
    }

    fn forge_endpoints(&self, victim: &Name, at: SocketAddr) -> Result<Value> {
        let node = certificate(self.books().member(victim)?)?.node;
        let known = self.books().endpoints_of(&node).map(Signed::unverified);
        let incarnation = match known {
            Some(Ok(known)) => known.incarnation + 1,
            _ => clock::now().0 + 1,
        };
        let record = EndpointRecord {
            network: self.books().network.id,
            node,
            incarnation,
            sequence: 1,
            candidates: vec![Candidate {
                kind: CandidateKind::Host,
                endpoint: at,
            }],
            planets: vec![self.key.planet_id()],
        };
        let record = Signed::seal(&record, &self.key)?;
        let told = self.tell(DirectoryRecord::Endpoints(record));
        Ok(json!({ "told": told, "name": victim, "at": at }))
    }

    fn forge_departure(&self, victim: &Name) -> Result<Value> {
        let node = certificate(self.books().member(victim)?)?.node;
        let departure = Departure {
            network: self.books().network.id,
            node,
            successions: Vec::new(),
            time: clock::now(),
        };
        let told = self.tell(DirectoryRecord::Left(Signed::seal(&departure, &self.key)?));
        Ok(json!({ "told": told, "name": victim }))
    }

    fn replay_departure(&self, victim: &Name) -> Result<Value> {
        let node = certificate(self.books().member(victim)?)?.node;
        let mut seen = self.accomplice()?.departures.iter();
        let departure = seen.find(|seen| seen.unverified().is_ok_and(|seen| seen.node == node));
        let departure = departure.context("no departure of that name was seen")?;
        let told = self.tell(DirectoryRecord::Left(departure.clone()));
        Ok(json!({ "told": told, "name": victim }))
    }

    fn forge_revocation(&self, victim: &Name) -> Result<Value> {
        let node = certificate(self.books().member(victim)?)?.node;
        let revocation = RootStatement::RevokeNode {
            network: self.books().network.id,
            node,
            issued: clock::now(),
        };
        let statement = Signed::seal(&revocation, &self.key)?;
        let told = self
            .books()
            .announce(&PlanetMessage::Statement(Box::new(statement)));
        Ok(json!({ "told": told, "name": victim }))
    }
}

fn read_token(path: &Path) -> Result<JoinToken> {
    let text = fs::read_to_string(path).with_context(|| format!("no {}", path.display()))?;
    Ok(text.parse()?)
}
