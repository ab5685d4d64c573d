//! Tables of iptables-legacy and ip6tables-legacy: the kernel keeps them beside nftables, and gives each
//! as one block of entries, whose layouts are those of `linux/netfilter_ipv4/ip_tables.h`,
//! `linux/netfilter_ipv6/ip6_tables.h` and `linux/netfilter/x_tables.h`.
//!
//! Their rules are put into the steps that rules of nftables have, so that one judgement does for both.

mod ask;

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use super::{
    Family, Hook, Place,
    expression::{Comparison, Expression, Verdict},
    ruleset::{BaseChain, Rule},
};

/// Tables that can drop, and the priorities of their hooks. In the one that translates the program refuses to.
const TABLES: [(&str, i32); 4] = [
    ("raw", -300),
    ("mangle", -150),
    ("filter", 0),
    ("security", 50),
];
const HOOKS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

const NAME_BYTES: usize = 16;
const ADDRESSES_V4: usize = 4;
const ADDRESSES_V6: usize = 16;
/// Of a match or a target: its length, its name, its revision.
const PART_HEADER_BYTES: usize = 32;
/// Of a rule: its packets and their bytes, right before its matches.
const COUNTER_BYTES: usize = 16;
const PART_NAME: std::ops::Range<usize> = 2..31;
const PART_REVISION: usize = 31;
/// The target that marks where a chain begins, and the end of the table.
const BEGIN: &str = "ERROR";

/// Keys of nftables that stand for the interfaces' names and the protocol.
const META_INCOMING: u32 = 6;
const META_OUTGOING: u32 = 7;
const META_PROTOCOL: u32 = 16;
const NETWORK_HEADER: u32 = 1;

const INVERT_INCOMING: u8 = 0x01;
const INVERT_OUTGOING: u8 = 0x02;
const INVERT_SOURCE: u8 = 0x08;
const INVERT_DESTINATION: u8 = 0x10;
const INVERT_PROTOCOL: u8 = 0x40;

/// What the kernel says of a table before it gives it.
#[derive(Debug, Clone, Copy, Default)]
struct Outline {
    /// One bit for each of [`HOOKS`].
    hooks: u32,
    /// Where the chain of each begins, in bytes from the first entry.
    begins: [u32; 5],
    /// Where its policy is.
    policies: [u32; 5],
}

/// Chains of one table or of several.
#[derive(Debug, Default)]
pub(super) struct Chains {
    pub(super) bases: Vec<BaseChain>,
    pub(super) rules: HashMap<Place, Vec<Rule>>,
}

/// All that there are in this namespace, as far as they may be read.
pub(super) fn read() -> Chains {
    let mut chains = Chains::default();
    for family in [Family::IpLegacy, Family::Ip6Legacy] {
        for (table, priority) in ask::present(family) {
            // One that is changed in the middle of the look is there for the next one.
            if let Ok((outline, entries)) = ask::table(family, table) {
                let place = Place {
                    family,
                    table: table.to_owned(),
                    chain: String::new(),
                };
                chains.add(&place, priority, (outline, &entries));
            }
        }
    }
    chains
}

/// A number that changes with the rules, and not with what they have counted: the kernel announces no
/// change of them.
pub(super) fn print() -> u64 {
    let mut hasher = DefaultHasher::new();
    for family in [Family::IpLegacy, Family::Ip6Legacy] {
        for (table, _) in ask::present(family) {
            (family, table).hash(&mut hasher);
            if let Ok((outline, mut entries)) = ask::table(family, table) {
                forget_counters(family, &mut entries);
                (outline.begins, outline.policies, entries).hash(&mut hasher);
            }
        }
    }
    hasher.finish()
}

fn forget_counters(family: Family, bytes: &mut [u8]) {
    let end = Layout::of(family == Family::IpLegacy).matches;
    let begins: Vec<_> = split(family, bytes)
        .iter()
        .map(|entry| entry.begin)
        .collect();
    for begin in begins {
        if let Some(counters) = bytes.get_mut(begin + end - COUNTER_BYTES..begin + end) {
            counters.fill(0);
        }
    }
}

impl Chains {
    /// Whatever makes no sense ends the table: what is not read is not judged.
    fn add(&mut self, table: &Place, priority: i32, (outline, entries): (Outline, &[u8])) {
        let entries = split(table.family, entries);
        let place = |chain: &str| Place {
            chain: chain.to_owned(),
            ..table.clone()
        };
        let mut names: HashMap<usize, String> = HashMap::new();
        for entry in &entries {
            if let Some(name) = entry.begun_chain() {
                names.insert(entry.end, name);
            }
        }
        let mut bases = Vec::new();
        for (number, name) in (0_usize..).zip(HOOKS) {
            let (Some(hook), true) = (Hook::ALL.get(number), outline.hooks >> number & 1 == 1)
            else {
                continue;
            };
            let at = |list: [u32; 5]| list.get(number).and_then(|at| usize::try_from(*at).ok());
            let (Some(begin), Some(policy)) = (at(outline.begins), at(outline.policies)) else {
                continue;
            };
            let policy_of = entries.iter().find(|entry| entry.begin == policy);
            self.bases.push(BaseChain {
                place: place(name),
                hook: *hook,
                priority,
                drops_by_policy: policy_of.and_then(Entry::verdict) == Some(-1),
                devices: Vec::new(),
                translates: false,
            });
            bases.push((begin, policy, name.to_owned()));
        }
        let users = names
            .iter()
            .map(|(begin, name)| (*begin, usize::MAX, name.clone()));
        for (begin, end, name) in bases.into_iter().chain(users) {
            let inside = entries
                .iter()
                .skip_while(|entry| entry.begin != begin)
                .take_while(|entry| entry.begin != end && entry.begun_chain().is_none());
            let rules = inside.map(|entry| entry.rule(&names)).collect();
            self.rules.insert(place(&name), rules);
        }
    }
}

/// One rule as it lies in its table.
struct Entry<'a> {
    is_ipv4: bool,
    begin: usize,
    end: usize,
    bytes: &'a [u8],
    /// Where its target is.
    target: usize,
}

/// Where the parts of an entry are, for a family.
struct Layout {
    addresses: usize,
    protocol: usize,
    flags: usize,
    inverted: usize,
    target_offset: usize,
    matches: usize,
    /// The flag of a jump that doesn't come back.
    goes_to: u8,
    /// Flags of conditions that aren't understood, and those of the protocol's presence.
    unknown: u8,
}

impl Layout {
    const V4: Self = Self {
        addresses: ADDRESSES_V4,
        protocol: 80,
        flags: 82,
        inverted: 83,
        target_offset: 88,
        matches: 112,
        goes_to: 0x02,
        // Fragments.
        unknown: 0x01,
    };
    const V6: Self = Self {
        addresses: ADDRESSES_V6,
        protocol: 128,
        flags: 131,
        inverted: 132,
        target_offset: 140,
        matches: 168,
        goes_to: 0x04,
        // The class of traffic.
        unknown: 0x02,
    };

    fn of(is_ipv4: bool) -> &'static Self {
        if is_ipv4 { &Self::V4 } else { &Self::V6 }
    }
}

fn split(family: Family, bytes: &[u8]) -> Vec<Entry<'_>> {
    let is_ipv4 = family == Family::IpLegacy;
    let layout = Layout::of(is_ipv4);
    let mut entries = Vec::new();
    let mut begin = 0;
    while let Some(rest) = bytes.get(begin..) {
        let (Some(target), Some(length)) = (
            half(rest, layout.target_offset),
            half(rest, layout.target_offset + 2),
        ) else {
            break;
        };
        let is_sound = layout.matches <= target && target + PART_HEADER_BYTES <= length;
        let Some(bytes) = rest.get(..length).filter(|_| is_sound) else {
            break;
        };
        entries.push(Entry {
            is_ipv4,
            begin,
            end: begin + length,
            bytes,
            target,
        });
        begin += length;
    }
    entries
}

impl Entry<'_> {
    fn part(&self, at: usize) -> Option<(String, u32, &[u8])> {
        let length = half(self.bytes, at)?;
        let part = self.bytes.get(at..at.checked_add(length)?)?;
        let name = text(part.get(PART_NAME)?);
        let revision = u32::from(*part.get(PART_REVISION)?);
        Some((name, revision, part.get(PART_HEADER_BYTES..)?))
    }

    /// The name of the chain that begins behind this entry, empty at the table's end.
    fn begun_chain(&self) -> Option<String> {
        let (target, _, data) = self.part(self.target)?;
        (target == BEGIN).then(|| text(data))
    }

    /// The number of the plain verdict that it ends with.
    fn verdict(&self) -> Option<i32> {
        let (target, _, data) = self.part(self.target)?;
        let number = i32::from_ne_bytes(*data.first_chunk()?);
        target.is_empty().then_some(number)
    }

    fn rule(&self, names: &HashMap<usize, String>) -> Rule {
        // What can't be read may let packets pass.
        self.steps(names)
            .unwrap_or_else(|| vec![Expression::Verdict(Verdict::Unknown)])
    }

    fn steps(&self, names: &HashMap<usize, String>) -> Option<Rule> {
        let layout = Layout::of(self.is_ipv4);
        let flags = *self.bytes.get(layout.flags)?;
        let mut steps = self.head(layout)?;
        if flags & layout.unknown != 0 {
            steps.push(Expression::Unknown);
        }
        let mut at = layout.matches;
        while at < self.target {
            let (name, revision, wants) = self.part(at)?;
            steps.push(Expression::Match {
                name,
                revision,
                wants: wants.to_vec(),
            });
            // Each is longer than nothing, or the table is nonsense.
            at += half(self.bytes, at).filter(|length| *length >= PART_HEADER_BYTES)?;
        }
        steps.push(match self.verdict() {
            Some(-1) => Expression::Verdict(Verdict::Drop),
            Some(-2) => Expression::Verdict(Verdict::Accept),
            Some(-5) => Expression::Verdict(Verdict::Return),
            Some(number) => {
                let chain = usize::try_from(number).ok().and_then(|at| names.get(&at));
                Expression::Verdict(match chain {
                    Some(chain) if flags & layout.goes_to != 0 => Verdict::Goto(chain.clone()),
                    Some(chain) => Verdict::Jump(chain.clone()),
                    None => Verdict::Unknown,
                })
            }
            None => {
                let (name, _, wants) = self.part(self.target)?;
                Expression::Target {
                    name,
                    wants: wants.to_vec(),
                }
            }
        });
        Some(steps)
    }

    /// The conditions about addresses, interfaces and the protocol.
    fn head(&self, layout: &Layout) -> Option<Rule> {
        let inverted = *self.bytes.get(layout.inverted)?;
        let size = layout.addresses;
        let field = |from: usize, length: usize| self.bytes.get(from..from + length);
        let (source, destination) = if self.is_ipv4 { (12, 16) } else { (8, 24) };
        let mut steps = Vec::new();
        for (number, offset, bit) in [
            (0, source, INVERT_SOURCE),
            (1, destination, INVERT_DESTINATION),
        ] {
            let address = field(number * size, size)?;
            let mask = field((number + 2) * size, size)?;
            if mask.iter().any(|byte| *byte != 0) {
                steps.extend(address_steps(offset, mask));
                steps.push(compare(address.to_vec(), inverted & bit != 0));
            }
        }
        for (number, key, bit) in [
            (0, META_INCOMING, INVERT_INCOMING),
            (1, META_OUTGOING, INVERT_OUTGOING),
        ] {
            let name = field(4 * size + number * NAME_BYTES, NAME_BYTES)?;
            let mask = field(4 * size + (number + 2) * NAME_BYTES, NAME_BYTES)?;
            let length = mask.iter().take_while(|byte| **byte == 0xff).count();
            if length > 0 {
                steps.push(Expression::Meta { key, to: 0 });
                let wanted = name.get(..length)?.to_vec();
                steps.push(compare(wanted, inverted & bit != 0));
            }
        }
        let protocol = half(self.bytes, layout.protocol)?;
        if protocol != 0 {
            let key = META_PROTOCOL;
            steps.push(Expression::Meta { key, to: 0 });
            let wanted = vec![u8::try_from(protocol).ok()?];
            steps.push(compare(wanted, inverted & INVERT_PROTOCOL != 0));
        }
        Some(steps)
    }
}

fn address_steps(offset: usize, mask: &[u8]) -> [Expression; 2] {
    [
        Expression::Payload {
            base: NETWORK_HEADER,
            offset,
            length: mask.len(),
            to: 0,
        },
        Expression::Mask {
            from: 0,
            to: 0,
            mask: mask.to_vec(),
            flip: vec![0; mask.len()],
        },
    ]
}

fn compare(value: Vec<u8>, is_inverted: bool) -> Expression {
    Expression::Compare {
        from: 0,
        comparison: if is_inverted {
            Comparison::Different
        } else {
            Comparison::Equal
        },
        value,
    }
}

fn half(bytes: &[u8], at: usize) -> Option<usize> {
    let number = bytes.get(at..)?.first_chunk::<2>()?;
    Some(usize::from(u16::from_ne_bytes(*number)))
}

/// Up to its first NUL.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    let bytes = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table that anybody may have made, of any bytes, is read without a panic and ends.
    #[test]
    fn whatever_lies_in_a_table_is_read_to_an_end() {
        let mut seed = 1_u64;
        let mut byte = || {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695);
            (seed >> 33) as u8
        };
        for round in 0..2_000 {
            let mut bytes: Vec<u8> = (0..600).map(|_| byte()).collect();
            let family = [Family::IpLegacy, Family::Ip6Legacy][round % 2];
            let layout = Layout::of(family == Family::IpLegacy);
            // Now and then an entry that looks sound.
            let length = (200 + byte() % 50) as u16;
            bytes[layout.target_offset..][..2]
                .copy_from_slice(&(layout.matches as u16).to_ne_bytes());
            bytes[layout.target_offset + 2..][..2].copy_from_slice(&length.to_ne_bytes());
            bytes[layout.matches..][..2].copy_from_slice(&32_u16.to_ne_bytes());
            let outline = Outline {
                hooks: 0b1_1111,
                begins: [0, 200, 210, 220, u32::MAX],
                policies: [0, 0, 200, 0, u32::MAX],
            };
            let table = Place {
                family,
                table: "filter".to_owned(),
                chain: String::new(),
            };
            let mut chains = Chains::default();
            chains.add(&table, 0, (outline, &bytes));
            assert!(chains.rules.len() >= 5);
        }
    }
}
