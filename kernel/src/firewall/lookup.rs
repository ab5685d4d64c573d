//! Sets and maps, asked by the element, so that their size doesn't matter.

use super::{
    Place,
    condition::{self, Answer, Judged, UNKNOWN},
    evaluate::{Player, Step},
    expression::{Lookup, Verdict},
    packet::{Nature, Value},
    registers::Registers,
};

impl Player<'_> {
    /// Looks a key up, and gives the verdict that a map leads to.
    pub(super) fn lookup(
        &mut self,
        place: &Place,
        lookup: &Lookup,
        registers: &mut Registers,
    ) -> Step {
        let length = self.ruleset.key_length(place, &lookup.set);
        let row = length.and_then(|length| registers.row(lookup.from, length));
        let row = row.filter(|row| !row.iter().any(|value| value.is_index));
        if let Some(to) = lookup.to {
            registers.put(to, None);
        }
        let leads_to_verdicts = lookup.is_map && lookup.to.is_none();
        let undecided = || {
            if leads_to_verdicts {
                Step::Verdict(Verdict::Unknown, UNKNOWN)
            } else {
                Step::Judged(UNKNOWN)
            }
        };
        let Some(row) = row else {
            return undecided();
        };
        let Ok(found) = self.ruleset.element(place, &lookup.set, &key(&row)) else {
            return undecided();
        };
        let judged = match &found {
            Some(_) => present(&row),
            None => self.absent(place, lookup, &row),
        };
        match found {
            Some(element) if leads_to_verdicts => {
                Step::Verdict(element.verdict.unwrap_or(Verdict::Unknown), judged)
            }
            None if leads_to_verdicts && judged.0 == Answer::Perhaps => undecided(),
            _ if lookup.is_inverted => Step::Judged(condition::not(judged)),
            _ => Step::Judged(judged),
        }
    }

    /// What it means that the key isn't there.
    fn absent(&mut self, place: &Place, lookup: &Lookup, row: &[Value]) -> Judged {
        let prefix = &self.traffic.veth_prefix;
        let others = |key: &[u8]| match row {
            [value] => condition::may_be(key, value.nature, prefix),
            _ => may_be_in_row(key, row, prefix),
        };
        if self.ruleset.may_hold(place, &lookup.set, others) {
            UNKNOWN
        } else if row.iter().any(|value| value.nature == Nature::Any) {
            (Answer::Few, false)
        } else {
            (Answer::No, false)
        }
    }
}

/// Whether a key of several values could be that of another packet of this kind.
fn may_be_in_row(mut key: &[u8], row: &[Value], veth_prefix: &str) -> bool {
    row.iter().all(|value| {
        let found = key.get(..value.bytes.len()).unwrap_or_default();
        key = key.get(value.padded().len()..).unwrap_or_default();
        found == value.bytes || condition::may_be(found, value.nature, veth_prefix)
    })
}

fn key(row: &[Value]) -> Vec<u8> {
    match row {
        [value] => value.bytes.clone(),
        _ => row.iter().flat_map(Value::padded).collect(),
    }
}

/// What it means that the key is there.
fn present(row: &[Value]) -> Judged {
    let is_any = row.iter().any(|value| value.nature == Nature::Any);
    let names_own = row
        .iter()
        .any(|value| !matches!(value.nature, Nature::Any | Nature::Certain));
    let answer = if is_any { Answer::Perhaps } else { Answer::Yes };
    (answer, names_own)
}
