//! Reading what is asked for, and no more: chains as a whole, rules chain by chain, sets by the element.

use std::{
    collections::{HashMap, HashSet},
    io,
    rc::Rc,
};

use crate::{
    blocking_netlink::{Attributes, Conversation, Message},
    nft::TABLE,
};

use super::{
    Family, Hook, Place,
    expression::{Element, Expression, verdict},
    legacy,
};

const SUBSYSTEM: u16 = 10;
const GET_TABLE: u16 = 1;
const GET_CHAIN: u16 = 4;
const GET_RULE: u16 = 7;
const GET_SET: u16 = 10;
const GET_SET_ELEMENT: u16 = 13;
const HEADER_BYTES: usize = 4;

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const DORMANT: u32 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_HOOK_DEV: u16 = 3;
const NFTA_HOOK_DEVS: u16 = 4;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_LIST_TABLE: u16 = 1;
const NFTA_LIST_SET: u16 = 2;
const NFTA_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_ELEM_KEY: u16 = 1;
const NFTA_ELEM_DATA: u16 = 2;
const NFTA_ELEM_FLAGS: u16 = 3;
const INTERVAL_END: u32 = 1;
const NFTA_DATA_VALUE: u16 = 1;

const RTM_GETLINK: u16 = 18;
const IFLA_IFNAME: u16 = 3;
const LINK_HEADER_BYTES: usize = 16;

/// Rules that one look reads at most; chains beyond them are not judged.
const MOST_RULES: usize = 20_000;
/// The same of chains that translate, which are long where there are many services.
const MOST_TRANSLATING_RULES: usize = 2_000;
/// Elements of a set that are looked through at most.
const MOST_ELEMENTS: usize = 10_000;

/// A chain that hangs on a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BaseChain {
    pub(super) place: Place,
    pub(super) hook: Hook,
    pub(super) priority: i32,
    pub(super) drops_by_policy: bool,
    /// The interfaces whose packets alone it is asked about; all, where there are none.
    pub(super) devices: Vec<String>,
    /// It is asked about the first packet of each connection alone, and is meant to translate.
    pub(super) translates: bool,
}

/// The steps of one rule.
pub(super) type Rule = Vec<Expression>;

/// The kernel's nftables, as far as they were asked for.
pub(super) struct Ruleset {
    conversation: Conversation,
    base_chains: Vec<BaseChain>,
    rules: HashMap<Place, Option<Rc<Vec<Rule>>>>,
    read: usize,
    /// How many rules may be read.
    most: usize,
}

impl Ruleset {
    /// Reads the chains.
    pub(super) fn read() -> io::Result<Self> {
        let mut conversation = Conversation::netfilter()?;
        let dormant = dormant_tables(&mut conversation)?;
        let replies = conversation.dump(message(GET_CHAIN, 0))?;
        let base_chains = replies.iter().filter_map(|reply| {
            let family = Family::of(*reply.payload.first()?)?;
            base_chain(family, reply.attributes(HEADER_BYTES))
        });
        let of_nftables = base_chains.filter(|chain| {
            let table = (chain.place.family, chain.place.table.clone());
            !dormant.contains(&table) && chain.place.table != TABLE
        });
        let legacy = legacy::read();
        let known = legacy.rules.into_iter();
        Ok(Self {
            conversation,
            base_chains: of_nftables.chain(legacy.bases).collect(),
            rules: known
                .map(|(place, rules)| (place, Some(Rc::new(rules))))
                .collect(),
            read: 0,
            most: MOST_RULES,
        })
    }

    /// Those that filter first.
    pub(super) fn base_chains(&self) -> Vec<BaseChain> {
        let mut chains = self.base_chains.clone();
        chains.sort_by_key(|chain| chain.translates);
        chains
    }

    /// From here on only chains that translate are asked about.
    pub(super) fn spare_translating(&mut self) {
        self.most = self.most.min(self.read + MOST_TRANSLATING_RULES);
    }

    /// The rules of a chain; `None` if they can't be had or are too many.
    pub(super) fn rules(&mut self, place: &Place) -> Option<Rc<Vec<Rule>>> {
        if let Some(known) = self.rules.get(place) {
            return known.clone();
        }
        let may_ask = self.read < self.most && !place.family.is_legacy();
        let rules = may_ask.then(|| self.ask_rules(place).ok()).flatten();
        self.read += rules.as_ref().map_or(0, Vec::len);
        let rules = rules.filter(|_| self.read <= self.most).map(Rc::new);
        self.rules.insert(place.clone(), rules.clone());
        rules
    }

    fn ask_rules(&mut self, place: &Place) -> io::Result<Vec<Rule>> {
        let mut question = message(GET_RULE, place.family.number());
        question
            .text(NFTA_RULE_TABLE, &place.table)
            .text(NFTA_RULE_CHAIN, &place.chain);
        let replies = self.conversation.dump(question)?;
        let rules = replies.iter().filter(|reply| {
            let rule = reply.attributes(HEADER_BYTES);
            // Old kernels answer with the rules of every chain.
            reply.payload.first() == Some(&place.family.number())
                && rule.text(NFTA_RULE_TABLE).as_ref() == Some(&place.table)
                && rule.text(NFTA_RULE_CHAIN).as_ref() == Some(&place.chain)
        });
        Ok(rules
            .map(|reply| {
                let steps = reply.attributes(HEADER_BYTES).nested(NFTA_RULE_EXPRESSIONS);
                steps.map(|step| Expression::read(step.value)).collect()
            })
            .collect())
    }

    /// The name of the interface with a number, as a rule has it.
    pub(super) fn interface(&mut self, index: &[u8]) -> Option<String> {
        let mut header = [0; LINK_HEADER_BYTES];
        header
            .get_mut(4..8)?
            .copy_from_slice(index.first_chunk::<4>()?);
        let question = Message::new(RTM_GETLINK, 0, &header);
        let replies = Conversation::route().ok()?.get(question).ok()?;
        replies
            .first()?
            .attributes(LINK_HEADER_BYTES)
            .text(IFLA_IFNAME)
    }

    /// Bytes of a set's keys.
    pub(super) fn key_length(&mut self, place: &Place, set: &str) -> Option<usize> {
        let mut question = message(GET_SET, place.family.number());
        question
            .text(NFTA_SET_TABLE, &place.table)
            .text(NFTA_SET_NAME, set);
        let replies = self.conversation.get(question).ok()?;
        let length = replies
            .first()?
            .attributes(HEADER_BYTES)
            .be32(NFTA_SET_KEY_LEN)?;
        usize::try_from(length).ok()
    }

    /// The element of a set or map that a key finds; `None` if there is none, an error if nobody knows.
    pub(super) fn element(
        &mut self,
        place: &Place,
        set: &str,
        key: &[u8],
    ) -> io::Result<Option<Element>> {
        let mut question = set_question(place, set);
        question.nested(NFTA_LIST_ELEMENTS, |list| {
            list.nested(NFTA_LIST_ELEM, |element| {
                element.nested(NFTA_ELEM_KEY, |value| {
                    value.bytes(NFTA_DATA_VALUE, key);
                });
            });
        });
        let replies = match self.conversation.get(question) {
            Ok(replies) => replies,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let found = replies.iter().flat_map(|reply| {
            let list = reply.attributes(HEADER_BYTES).nested(NFTA_LIST_ELEMENTS);
            list.map(|element| Attributes::of(element.value).nested(NFTA_ELEM_DATA))
        });
        Ok(found
            .map(|data| Element {
                verdict: verdict(data),
            })
            .next())
    }

    /// Whether `matches` holds for a key of the set, or for the last one of an interval; with `true` for what
    /// nobody knows.
    pub(super) fn may_hold(
        &mut self,
        place: &Place,
        set: &str,
        matches: impl Fn(&[u8]) -> bool,
    ) -> bool {
        let (mut count, mut holds) = (0, false);
        let walked = self.conversation.walk(set_question(place, set), |reply| {
            let list = reply.attributes(HEADER_BYTES).nested(NFTA_LIST_ELEMENTS);
            for element in list {
                count += 1;
                let element = Attributes::of(element.value);
                let is_end = element.be32(NFTA_ELEM_FLAGS).unwrap_or(0) & INTERVAL_END != 0;
                let key = element.nested(NFTA_ELEM_KEY).find(NFTA_DATA_VALUE);
                holds |= key.is_none_or(|key| {
                    if is_end {
                        matches(&before(key))
                    } else {
                        matches(key)
                    }
                });
            }
        });
        walked.is_err() || holds || count > MOST_ELEMENTS
    }
}

/// The key before this one, which as an interval's end isn't in it.
fn before(key: &[u8]) -> Vec<u8> {
    let mut key = key.to_vec();
    for byte in key.iter_mut().rev() {
        *byte = byte.wrapping_sub(1);
        if *byte != u8::MAX {
            break;
        }
    }
    key
}

fn dormant_tables(conversation: &mut Conversation) -> io::Result<HashSet<(Family, String)>> {
    let replies = conversation.dump(message(GET_TABLE, 0))?;
    let dormant = replies.iter().filter_map(|reply| {
        let family = Family::of(*reply.payload.first()?)?;
        let table = reply.attributes(HEADER_BYTES);
        let sleeps = table.be32(NFTA_TABLE_FLAGS).unwrap_or(0) & DORMANT != 0;
        Some((family, table.text(NFTA_TABLE_NAME)?)).filter(|_| sleeps)
    });
    Ok(dormant.collect())
}

/// One that may be asked for IP packets.
fn base_chain(family: Family, chain: Attributes<'_>) -> Option<BaseChain> {
    let hook = chain.nested(NFTA_CHAIN_HOOK);
    let kind = chain.text(NFTA_CHAIN_TYPE)?;
    Some(BaseChain {
        place: Place {
            family,
            table: chain.text(NFTA_CHAIN_TABLE)?,
            chain: chain.text(NFTA_CHAIN_NAME)?,
        },
        hook: Hook::of(family, hook.be32(NFTA_HOOK_HOOKNUM)?)?,
        priority: hook.be32(NFTA_HOOK_PRIORITY)?.cast_signed(),
        drops_by_policy: chain.be32(NFTA_CHAIN_POLICY) == Some(0),
        devices: devices(hook),
        translates: kind == "nat",
    })
}

fn devices(hook: Attributes<'_>) -> Vec<String> {
    let text = |bytes: &[u8]| {
        let end = bytes.iter().position(|byte| *byte == 0);
        let name = bytes.get(..end.unwrap_or(bytes.len()));
        String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
    };
    let several = hook.nested(NFTA_HOOK_DEVS).map(|name| text(name.value));
    hook.find(NFTA_HOOK_DEV)
        .map(text)
        .into_iter()
        .chain(several)
        .collect()
}

fn set_question(place: &Place, set: &str) -> Message {
    let mut question = message(GET_SET_ELEMENT, place.family.number());
    question
        .text(NFTA_LIST_TABLE, &place.table)
        .text(NFTA_LIST_SET, set);
    question
}

fn message(kind: u16, family: u8) -> Message {
    Message::new(SUBSYSTEM << 8 | kind, 0, &[family, 0, 0, 0])
}
