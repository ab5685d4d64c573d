//! Plays a packet through somebody else's chains.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use super::{
    Harm, Hook, Place, Refusal, Traffic, compat,
    condition::{self, Answer, Judged, UNKNOWN},
    expression::{Comparison, Expression, Verdict},
    packet::{self, Nature, Packet, Value, Way},
    registers::Registers,
    ruleset::{BaseChain, Rule, Ruleset},
};

/// Jumps within each other; the kernel allows as many.
const DEPTH: usize = 16;
/// Where Docker wants rules of others.
const ENTRANCE: &str = "DOCKER-USER";

/// All chains that certainly harm something, sorted.
pub(super) fn refusals(ruleset: &mut Ruleset, traffic: &Traffic) -> io::Result<Vec<Refusal>> {
    let mut found = BTreeMap::new();
    let mut refused = BTreeSet::new();
    for base in ruleset.base_chains() {
        if base.translates {
            ruleset.spare_translating();
        }
        for (way, is_ipv4) in Way::ALL
            .into_iter()
            .flat_map(|way| [(way, true), (way, false)])
        {
            let Some((harm, course)) = play(ruleset, traffic, &base, (way, is_ipv4)) else {
                continue;
            };
            let refusal = found
                .entry((base.place.clone(), harm))
                .or_insert_with(|| blank(&base, harm, traffic));
            refusal.ways.insert(way);
            refusal.by_policy &= course.by_policy;
            refusal.entrance = refusal.entrance.take().or(course.entrance);
            refused.insert((way, is_ipv4));
        }
    }
    // A family that is closed on purpose is left for the other one.
    let is_cut = |way: &Way| {
        let has = |is_ipv4| traffic.has_family(*way, is_ipv4);
        let is_open = |is_ipv4| has(is_ipv4) && !refused.contains(&(*way, is_ipv4));
        !is_open(true) && !is_open(false)
    };
    let mut found: Vec<Refusal> = found.into_values().collect();
    for refusal in &mut found {
        refusal
            .ways
            .retain(|way| !way.needs_one_family() || is_cut(way));
    }
    found.retain(|refusal| !refusal.ways.is_empty());
    found.sort();
    Ok(found)
}

fn blank(base: &BaseChain, harm: Harm, traffic: &Traffic) -> Refusal {
    Refusal {
        chain: base.place.clone(),
        hook: base.hook,
        harm,
        ways: BTreeSet::new(),
        by_policy: true,
        translates: base.translates,
        entrance: None,
        port: traffic.port,
        device: traffic.device.clone(),
        veth_prefix: traffic.veth_prefix.clone(),
    }
}

/// How a packet is harmed.
struct Course {
    by_policy: bool,
    entrance: Option<String>,
}

/// What a chain does to all packets of a kind, or to none.
#[derive(Debug, Default)]
struct Effect {
    is_refused: bool,
    falls_into_drop: bool,
    is_marked: bool,
    is_untracked: bool,
    entrance: Option<String>,
}

/// `None` if packets of that kind aren't certainly harmed by this chain.
fn play(
    ruleset: &mut Ruleset,
    traffic: &Traffic,
    base: &BaseChain,
    (way, is_ipv4): (Way, bool),
) -> Option<(Harm, Course)> {
    let comes_by = match &base.devices[..] {
        [] => way.passes(base.hook),
        devices => way.uses(base.hook, devices, traffic, is_ipv4),
    };
    let is_asked = comes_by && (!base.translates || way.begins_anew());
    if !is_asked || !base.place.family.has(is_ipv4) {
        return None;
    }
    let packet = Packet::of(way, is_ipv4, (base.hook, base.priority), traffic)?;
    let effect = pass(ruleset, traffic, base, (way, packet.clone()));
    let goes_to_mesh = way != Way::World && !Way::TUNNEL.contains(&way);
    let harm = if effect.is_refused {
        // Pods may be kept from the world on purpose.
        let is_meant = way == Way::World || is_closed(ruleset, traffic, base, (way, packet));
        (!is_meant).then_some(Harm::Drops)
    } else if base.translates {
        None
    } else if effect.is_untracked && way == Way::World && base.priority <= packet::TRACKING {
        Some(Harm::Untracks)
    } else if effect.is_marked && goes_to_mesh && base.hook.is_before_routing() {
        Some(Harm::Marks)
    } else {
        None
    };
    let course = Course {
        by_policy: effect.falls_into_drop,
        entrance: effect.entrance,
    };
    Some((harm?, course))
}

/// Whether this machine is kept so that nobody begins a conversation with it, as far as no port is named, while
/// the answers to its own pass: who keeps it so means pods and other nodes, too.
fn is_closed(
    ruleset: &mut Ruleset,
    traffic: &Traffic,
    base: &BaseChain,
    (way, packet): (Way, Packet),
) -> bool {
    let comes_in = matches!(way, Way::PodToNode | Way::PeerToNode) && base.hook == Hook::Input;
    if !comes_in || base.translates {
        return false;
    }
    let stranger = Packet::of_stranger(packet.is_ipv4);
    let answer = packet.answered();
    !pass(ruleset, traffic, base, (way, answer)).is_refused
        && pass(ruleset, traffic, base, (Way::TunnelIn, stranger)).is_refused
}

/// Has a packet pass a chain.
fn pass(
    ruleset: &mut Ruleset,
    traffic: &Traffic,
    base: &BaseChain,
    (way, packet): (Way, Packet),
) -> Effect {
    let mut player = Player {
        ruleset,
        traffic,
        packet,
        entrance: None,
        way,
        is_sure: true,
        is_marked: false,
        is_untracked: false,
    };
    let ends = player.chain(&base.place, (0, false));
    let falls_into_drop = ends.may_fall && base.drops_by_policy;
    Effect {
        is_refused: !ends.may_pass && (!ends.may_fall || falls_into_drop),
        falls_into_drop,
        is_marked: player.is_marked,
        is_untracked: player.is_untracked,
        entrance: player.entrance,
    }
}

/// How a chain may end for some packets of the kind.
#[derive(Debug, Clone, Copy, Default)]
struct Ends {
    may_pass: bool,
    /// Its end is reached, or a return.
    may_fall: bool,
}

/// A verdict of a rule, for all packets of the kind or for some.
struct Ruling {
    verdict: Verdict,
    is_certain: bool,
    names_own: bool,
}

impl Ruling {
    /// Whether somebody refuses on purpose what comes to or from this machine itself.
    fn is_meant(&self, way: Way) -> bool {
        way.is_of_node() && self.names_own && self.verdict == Verdict::Drop
    }

    /// Whether the packets that are left are still all, or none.
    fn leaves_sure(&self) -> bool {
        self.is_certain || matches!(self.verdict, Verdict::Drop | Verdict::Continue)
    }
}

pub(super) struct Player<'a> {
    pub(super) ruleset: &'a mut Ruleset,
    pub(super) traffic: &'a Traffic,
    packet: Packet,
    entrance: Option<String>,
    way: Way,
    /// Whether what comes is asked about all packets that have not been dropped.
    is_sure: bool,
    /// Whether all have the mark of the tunnels' datagrams by now.
    is_marked: bool,
    /// Whether the connection of none will be tracked.
    is_untracked: bool,
}

impl Player<'_> {
    /// The number of the interface by which the packet comes or goes: those of pods nobody knows
    /// before, so that its name stands for it.
    fn index(&self, is_incoming: bool) -> Option<Value> {
        let name = if is_incoming {
            self.packet.incoming.clone()
        } else {
            self.packet.outgoing.clone()
        };
        name.map(|name| Value {
            is_index: true,
            ..name
        })
    }

    fn compare(&mut self, found: &Value, comparison: Comparison, wanted: &[u8]) -> Judged {
        let prefix = &self.traffic.veth_prefix;
        if !found.is_index {
            return condition::compare(found, comparison, wanted, prefix);
        }
        // Of an interface that is gone nothing comes any more.
        let wanted = self.ruleset.interface(wanted).unwrap_or_default();
        condition::compare(found, comparison, &packet::name(&wanted), prefix)
    }

    /// `depth` of jumps; `is_for_own` if one of them named what is podmesh's.
    fn chain(&mut self, place: &Place, (depth, is_for_own): (usize, bool)) -> Ends {
        let mut ends = Ends::default();
        let rules = (depth < DEPTH).then(|| self.ruleset.rules(place)).flatten();
        let Some(rules) = rules else {
            ends.may_pass = true;
            return ends;
        };
        for rule in rules.iter() {
            let Some(ruling) = self.rule(place, rule, is_for_own) else {
                continue;
            };
            if ruling.is_meant(self.way) {
                ends.may_pass = true;
                return ends;
            }
            self.is_sure &= ruling.leaves_sure();
            let inside = (depth + 1, is_for_own || ruling.names_own);
            let goes_on = self.follow(place, ruling.verdict, inside, &mut ends);
            // Nothing is certain any more once something may pass.
            if ends.may_pass || ruling.is_certain && !goes_on {
                return ends;
            }
        }
        ends.may_fall = true;
        ends
    }

    /// Whether the chain goes on after a verdict.
    fn follow(
        &mut self,
        place: &Place,
        verdict: Verdict,
        inside: (usize, bool),
        ends: &mut Ends,
    ) -> bool {
        match verdict {
            Verdict::Continue => true,
            Verdict::Drop => false,
            Verdict::Return => {
                ends.may_fall = true;
                false
            }
            Verdict::Accept | Verdict::Unknown => {
                ends.may_pass = true;
                false
            }
            Verdict::Jump(ref chain) | Verdict::Goto(ref chain) => {
                if chain == ENTRANCE {
                    self.entrance = Some(chain.clone());
                }
                let there = Place {
                    chain: chain.clone(),
                    ..place.clone()
                };
                let there = self.chain(&there, inside);
                ends.may_pass |= there.may_pass;
                let comes_back = matches!(verdict, Verdict::Jump(_));
                ends.may_fall |= !comes_back && there.may_fall;
                comes_back && there.may_fall
            }
        }
    }

    /// What a rule rules; `None` if that touches no packet of the kind.
    fn rule(&mut self, place: &Place, rule: &Rule, is_for_own: bool) -> Option<Ruling> {
        let mut registers = Registers::default();
        let (mut is_certain, mut are_few, mut names_own) = (true, false, is_for_own);
        for step in rule {
            self.note_effect(step, &registers, is_certain && !are_few && self.is_sure);
            let (answer, names) = match self.step(place, step, &mut registers) {
                Step::Done => continue,
                Step::Judged(judged) => judged,
                Step::Verdict(verdict, judged) => {
                    let (answer, names) = judged;
                    names_own |= names;
                    is_certain &= answer == Answer::Yes;
                    are_few |= answer == Answer::Few;
                    // Somebody who lets few ports of podmesh's pass, or none, has thought of it.
                    let touches = answer != Answer::No && (!are_few || names_own);
                    return touches.then_some(Ruling {
                        verdict,
                        is_certain: is_certain && !are_few,
                        names_own,
                    });
                }
            };
            names_own |= names;
            match answer {
                Answer::Yes => {}
                Answer::No => return None,
                Answer::Perhaps => is_certain = false,
                Answer::Few => are_few = true,
            }
        }
        None
    }

    fn step(&mut self, place: &Place, step: &Expression, registers: &mut Registers) -> Step {
        match step {
            Expression::Compare {
                from,
                comparison,
                value,
            } => {
                let found = registers.get(*from);
                Step::Judged(
                    found.map_or(UNKNOWN, |found| self.compare(&found, *comparison, value)),
                )
            }
            Expression::Range {
                from,
                is_inside,
                least,
                most,
            } => {
                let found = registers.get(*from).filter(|found| !found.is_index);
                let judged = found.map_or(UNKNOWN, |found| {
                    condition::lies_between(&found, least, most)
                });
                Step::Judged(if *is_inside {
                    judged
                } else {
                    condition::not(judged)
                })
            }
            Expression::Lookup(lookup) => self.lookup(place, lookup, registers),
            Expression::Verdict(verdict) => Step::Verdict(verdict.clone(), (Answer::Yes, false)),
            Expression::Match {
                name,
                revision,
                wants,
            } => Step::Judged(compat::judge(name, *revision, wants, &self.packet)),
            Expression::Target { name, wants } => self.target(name, wants),
            Expression::SetMark { from } => {
                self.packet.mark = registers.get(*from).filter(|value| value.bytes.len() == 4);
                Step::Done
            }
            Expression::Neutral | Expression::Untrack => Step::Done,
            Expression::Unknown => Step::Judged(UNKNOWN),
            load => {
                self.load(load, registers);
                Step::Done
            }
        }
    }

    /// The mark that a target of iptables leaves.
    fn mark_left(&self, name: &str, wants: &[u8]) -> Option<Value> {
        let before = u32::from_ne_bytes(*self.packet.mark.as_ref()?.bytes.first_chunk()?);
        let mark = compat::marked(name, wants, before)?;
        Some(Value::new(mark.to_ne_bytes(), Nature::Certain))
    }

    /// What a step does to all packets, if it `is_certain`, or to some.
    fn note_effect(&mut self, step: &Expression, registers: &Registers, is_certain: bool) {
        let mark = match step {
            Expression::Untrack => {
                self.is_untracked |= is_certain;
                return;
            }
            Expression::Target { name, wants } => {
                self.is_untracked |= is_certain && compat::untracks(name, wants);
                if !compat::marks(name) {
                    return;
                }
                self.mark_left(name, wants)
            }
            Expression::SetMark { from } => registers.get(*from),
            _ => return,
        };
        let number = mark.and_then(|mark| Some(u32::from_ne_bytes(*mark.bytes.first_chunk()?)));
        let ours = self.traffic.mark;
        let is_ours = number.is_some_and(|number| number & ours.mask == ours.value);
        self.is_marked = is_certain && is_ours;
    }

    /// Steps that fill a register.
    fn load(&mut self, step: &Expression, registers: &mut Registers) {
        let packet = &self.packet;
        match step {
            Expression::Meta { key, to } => registers.put(*to, packet.meta(*key)),
            Expression::Index { is_incoming, to } => {
                let value = self.index(*is_incoming);
                registers.put(*to, value);
            }
            Expression::Payload {
                base,
                offset,
                length,
                to,
            } => registers.put(*to, packet.payload(*base, *offset, *length)),
            Expression::Connection { key, to } => registers.put(*to, packet.connection(*key)),
            Expression::Mask {
                from,
                to,
                mask,
                flip,
            } => {
                let value = registers.get(*from);
                let value = value.and_then(|value| condition::masked(&value, mask, flip));
                registers.put(*to, value);
            }
            Expression::ByteOrder { from, to, size } => {
                let value = registers.get(*from);
                registers.put(*to, value.map(|value| value.swapped(*size)));
            }
            Expression::Value { to, value } => {
                registers.put(*to, Some(Value::new(value.as_slice(), Nature::Certain)));
            }
            Expression::Load { to } => registers.put(*to, None),
            _ => {}
        }
    }

    fn target(&mut self, name: &str, wants: &[u8]) -> Step {
        if compat::marks(name) {
            self.packet.mark = self.mark_left(name, wants);
        }
        match compat::target(name) {
            Verdict::Continue => Step::Done,
            verdict => Step::Verdict(verdict, (Answer::Yes, false)),
        }
    }
}

/// What a step comes to.
pub(super) enum Step {
    Done,
    Judged(Judged),
    Verdict(Verdict, Judged),
}
