//! Reading and replacing the table.

use std::io;

use crate::blocking_netlink::{Attributes, Conversation, Message};

use super::{
    TABLE,
    expression::Expression,
    rules::{Chain, Rule},
};

const NFPROTO_INET: u8 = 1;
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_USERDATA: u16 = 7;
/// The kind that the `nft` program shows as a comment.
const USERDATA_COMMENT: u8 = 0;
const ACCEPT: u32 = 1;
const HEADER_BYTES: usize = 4;

/// Whether the table is there, awake, and holds these chains and these rules and no others.
pub(super) fn holds(wanted: &[Chain]) -> io::Result<bool> {
    let mut conversation = Conversation::netfilter()?;
    Ok(is_awake(&mut conversation)?
        && has_chains(&mut conversation, wanted)?
        && has_rules(&mut conversation, wanted)?)
}

/// Puts these chains in the place of whatever the table holds, in one transaction.
pub(super) fn replace(wanted: &[Chain]) -> io::Result<()> {
    // Deleting what may be absent is an error, so that it is created first.
    let mut messages = vec![
        batch(BATCH_BEGIN),
        table(NEW_TABLE, Message::CREATE),
        table(DELETE_TABLE, 0),
        table(NEW_TABLE, Message::CREATE),
        chain(&marker(wanted)),
    ];
    for wanted in wanted {
        messages.push(base_chain(wanted));
        messages.extend(
            wanted
                .rules
                .iter()
                .map(|wanted_rule| rule(wanted, wanted_rule)),
        );
    }
    messages.push(batch(BATCH_END));
    Conversation::netfilter()?.transaction(messages)
}

/// Removes the table. True if there was one.
pub(super) fn remove() -> io::Result<bool> {
    let messages = vec![batch(BATCH_BEGIN), table(DELETE_TABLE, 0), batch(BATCH_END)];
    match Conversation::netfilter()?.transaction(messages) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_awake(conversation: &mut Conversation) -> io::Result<bool> {
    match conversation.get(table(GET_TABLE, 0)) {
        Ok(replies) => Ok(replies.iter().any(|reply| {
            // The one flag that matters puts a table to sleep.
            reply
                .attributes(HEADER_BYTES)
                .be32(NFTA_TABLE_FLAGS)
                .unwrap_or(0)
                == 0
        })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn has_chains(conversation: &mut Conversation, wanted: &[Chain]) -> io::Result<bool> {
    let replies = conversation.dump(message(GET_CHAIN, 0))?;
    let found: Vec<_> = replies
        .iter()
        .map(|reply| reply.attributes(HEADER_BYTES))
        .filter(|chain| chain.text(NFTA_CHAIN_TABLE).as_deref() == Some(TABLE))
        .map(found_chain)
        .collect();
    let mut expected = vec![(marker(wanted), None)];
    expected.extend(wanted.iter().map(|chain| {
        let hook = (chain.hook as u32, chain.priority);
        (chain.name.to_owned(), Some(hook))
    }));
    Ok(found.len() == expected.len() && expected.iter().all(|chain| found.contains(chain)))
}

fn found_chain(chain: Attributes<'_>) -> (String, Option<(u32, i32)>) {
    let hook = chain.nested(NFTA_CHAIN_HOOK);
    let number = hook.be32(NFTA_HOOK_HOOKNUM);
    let priority = hook.be32(NFTA_HOOK_PRIORITY).map(u32::cast_signed);
    (
        chain.text(NFTA_CHAIN_NAME).unwrap_or_default(),
        number.zip(priority),
    )
}

fn has_rules(conversation: &mut Conversation, wanted: &[Chain]) -> io::Result<bool> {
    let mut question = message(GET_RULE, 0);
    question.text(NFTA_RULE_TABLE, TABLE);
    let replies = conversation.dump(question)?;
    let found: Vec<_> = replies
        .iter()
        .map(|reply| reply.attributes(HEADER_BYTES))
        // Kernels before 4.9 answer with the rules of every table.
        .filter(|rule| rule.text(NFTA_RULE_TABLE).as_deref() == Some(TABLE))
        .map(|rule| (rule.text(NFTA_RULE_CHAIN).unwrap_or_default(), rule))
        .collect();
    Ok(wanted.iter().all(|chain| {
        let mut found = found.iter().filter(|(name, _)| name == chain.name);
        chain.rules.iter().all(|wanted| {
            found
                .next()
                .is_some_and(|(_, rule)| is_rule(*rule, chain, wanted))
        }) && found.next().is_none()
    }))
}

/// Whether the kernel's rule says what was wanted, in its comment and in each of its steps.
fn is_rule(found: Attributes<'_>, chain: &Chain, wanted: &Rule) -> bool {
    let sent = rule(chain, wanted);
    let sent = sent.attributes(HEADER_BYTES);
    let found_steps = found.nested(NFTA_RULE_EXPRESSIONS);
    let sent_steps = sent.nested(NFTA_RULE_EXPRESSIONS);
    found.find(NFTA_RULE_USERDATA) == sent.find(NFTA_RULE_USERDATA)
        && found_steps.count() == sent_steps.count()
        && found_steps
            .zip(sent_steps)
            .all(|(found, sent)| came_back(found.value, sent.value))
}

/// Whether every attribute that was sent came back; the kernel adds others, such as what a counter
/// has counted.
fn came_back(found: &[u8], sent: &[u8]) -> bool {
    Attributes::of(sent).all(|sent| match Attributes::of(found).find(sent.kind) {
        Some(found) if sent.is_nested => came_back(found, sent.value),
        Some(found) => found == sent.value,
        None => false,
    })
}

/// The chain without rules whose name says which rules the others hold: FNV-1a over the messages
/// that made them, which is the same number in every build.
fn marker(wanted: &[Chain]) -> String {
    let messages = contents(wanted).flat_map(|message| message.finish(0));
    let fingerprint = messages.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("rules-{fingerprint:016x}")
}

fn contents(wanted: &[Chain]) -> impl Iterator<Item = Message> + '_ {
    wanted.iter().flat_map(|chain| {
        let rules = chain.rules.iter().map(|wanted| rule(chain, wanted));
        std::iter::once(base_chain(chain)).chain(rules)
    })
}

fn batch(kind: u16) -> Message {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    Message::new(kind, 0, &[0, 0, high, low])
}

fn message(kind: u16, flags: u16) -> Message {
    Message::new(SUBSYSTEM << 8 | kind, flags, &[NFPROTO_INET, 0, 0, 0])
}

fn table(kind: u16, flags: u16) -> Message {
    let mut message = message(kind, flags);
    message.text(NFTA_TABLE_NAME, TABLE);
    message
}

fn chain(name: &str) -> Message {
    let mut message = message(NEW_CHAIN, Message::CREATE);
    message
        .text(NFTA_CHAIN_TABLE, TABLE)
        .text(NFTA_CHAIN_NAME, name);
    message
}

fn base_chain(wanted: &Chain) -> Message {
    let mut message = chain(wanted.name);
    message
        .nested(NFTA_CHAIN_HOOK, |hook| {
            hook.be32(NFTA_HOOK_HOOKNUM, wanted.hook as u32);
            hook.be32(NFTA_HOOK_PRIORITY, wanted.priority.cast_unsigned());
        })
        .be32(NFTA_CHAIN_POLICY, ACCEPT)
        .text(NFTA_CHAIN_TYPE, wanted.kind);
    message
}

fn rule(chain: &Chain, wanted: &Rule) -> Message {
    let mut message = message(NEW_RULE, Message::CREATE | Message::APPEND);
    message
        .text(NFTA_RULE_TABLE, TABLE)
        .text(NFTA_RULE_CHAIN, chain.name)
        .nested(NFTA_RULE_EXPRESSIONS, |list| {
            Expression::append_all(&wanted.expressions, list);
        })
        .bytes(NFTA_RULE_USERDATA, &comment(&wanted.comment));
    message
}

/// A comment as the `nft` program stores it: kind, length, NUL-terminated text.
fn comment(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    let mut bytes = vec![USERDATA_COMMENT, length];
    bytes.extend(text.bytes().take(usize::from(length) - 1));
    bytes.push(0);
    bytes
}
