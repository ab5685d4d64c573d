//! The recovery form of a root key: the key itself as text that can be written down.
//!
//! The 32 bytes of the seed and three bytes of checksum make 56 characters of Crockford's base32
//! (no I, L, O and U, which are mistaken for others), printed in groups of four.

use std::fmt::Write;

use podmesh_proto::key::{SigningKey, digest};
use zeroize::Zeroizing;

use crate::problem::Problem;

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const CHECKSUM: usize = 3;
const CHECKSUM_CONTEXT: &str = "podmesh recovery checksum v1";
const GROUP: usize = 4;
const GROUPS_PER_LINE: usize = 7;
const BYTES: usize = 32 + CHECKSUM;
const CHARACTERS: usize = BYTES * 8 / 5;

/// The form, two lines of seven groups.
pub(crate) fn form(key: &SigningKey) -> Zeroizing<String> {
    let mut bytes = Zeroizing::new(key.seed().to_vec());
    let checksum = digest(CHECKSUM_CONTEXT, key.seed());
    bytes.extend(checksum.iter().take(CHECKSUM));
    let mut text = Zeroizing::new(String::with_capacity(CHARACTERS * 2));
    for (number, character) in characters(&bytes).enumerate() {
        if number > 0 && number % (GROUP * GROUPS_PER_LINE) == 0 {
            text.push('\n');
        } else if number > 0 && number % GROUP == 0 {
            text.push(' ');
        }
        // Writing to a string can't fail.
        let _written = text.write_char(character);
    }
    text
}

/// The key of a form, however it is spaced and in either case; `O` counts as `0`, `I` and `L` as
/// `1`.
///
/// # Errors
/// A character that is none of the alphabet, too few or too many, or a wrong checksum.
pub(crate) fn parse(text: &str) -> Result<SigningKey, Problem> {
    let wrong = |cause: String| {
        Problem::failed(cause).next("compare the form with what you typed, group by group")
    };
    let mut values = Zeroizing::new(Vec::with_capacity(CHARACTERS));
    for character in text.chars().filter(|c| !c.is_whitespace() && *c != '-') {
        let group = values.len() / GROUP + 1;
        values.push(value(character).ok_or_else(|| {
            wrong(format!(
                "the recovery form has a wrong character in group {group}"
            ))
        })?);
    }
    if values.len() != CHARACTERS {
        return Err(wrong(format!(
            "the recovery form has {CHARACTERS} characters, this has {}",
            values.len()
        )));
    }
    let mut seed = Zeroizing::new([0; 32]);
    let mut checksum = [0; CHECKSUM];
    let bytes = Zeroizing::new(bytes(&values));
    let filled = seed.iter_mut().chain(checksum.iter_mut());
    filled.zip(bytes.iter()).for_each(|(to, from)| *to = *from);
    if !digest(CHECKSUM_CONTEXT, seed.as_slice()).starts_with(&checksum) {
        return Err(wrong("the recovery form fails its checksum".to_owned()));
    }
    Ok(SigningKey::from_seed(*seed))
}

/// The first form in a text with other lines around it, as `--recovery-file` writes it.
pub(crate) fn groups(text: &str) -> Zeroizing<String> {
    let is_form = |line: &&str| {
        let mut words = line.split_whitespace().peekable();
        words.peek().is_some() && words.all(|word| word.len() == GROUP && parse_word(word))
    };
    let lines = text.lines().filter(is_form);
    let mut form = Zeroizing::new(String::with_capacity(CHARACTERS * 2));
    for line in lines.take(CHARACTERS / GROUP / GROUPS_PER_LINE) {
        form.push_str(line);
        form.push(' ');
    }
    if form.is_empty() {
        form.push_str(text);
    }
    form
}

fn parse_word(word: &str) -> bool {
    word.chars().all(|character| value(character).is_some())
}

fn characters(bytes: &[u8]) -> impl Iterator<Item = char> {
    let bits = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |bit| usize::from(byte >> bit & 1)));
    let bits: Vec<usize> = bits.collect();
    let values: Vec<usize> = bits
        .chunks(5)
        .map(|five| five.iter().fold(0, |value, bit| value << 1 | bit))
        .collect();
    values
        .into_iter()
        .filter_map(|value| ALPHABET.get(value).map(|byte| char::from(*byte)))
}

fn bytes(values: &[u8]) -> Vec<u8> {
    let bits: Vec<u8> = values
        .iter()
        .flat_map(|value| (0..5).rev().map(move |bit| value >> bit & 1))
        .collect();
    bits.chunks_exact(8)
        .map(|eight| eight.iter().fold(0, |byte, bit| byte << 1 | bit))
        .collect()
}

fn value(character: char) -> Option<u8> {
    let character = match character.to_ascii_uppercase() {
        'O' => '0',
        'I' | 'L' => '1',
        other => other,
    };
    let place = ALPHABET
        .iter()
        .position(|letter| char::from(*letter) == character)?;
    u8::try_from(place).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_comes_back_as_its_key_also_when_typed_carelessly() {
        for seed in [[0; 32], [0xff; 32], [0x5a; 32]] {
            let key = SigningKey::from_seed(seed);
            let form = form(&key);
            assert_eq!(form.split_whitespace().count(), 14);
            assert_eq!(form.lines().count(), 2);
            assert_eq!(parse(&form).ok().unwrap().seed(), &seed);
            let careless = form.to_lowercase().replace('0', "o").replace(' ', "-");
            assert_eq!(parse(&careless).ok().unwrap().seed(), &seed);
        }
    }

    #[test]
    fn a_form_is_found_between_lines_of_prose() {
        let key = SigningKey::from_seed([0x5a; 32]);
        let text = format!(
            "Recovery form of the root key:\n\n    {}\n\nkeep\n",
            form(&key).as_str()
        );
        assert_eq!(parse(&groups(&text)).ok().unwrap().seed(), key.seed());
    }

    #[test]
    fn a_wrong_or_missing_character_is_noticed() {
        let form = form(&SigningKey::from_seed([0x5a; 32]));
        for (position, character) in form.char_indices().filter(|(_, c)| !c.is_whitespace()) {
            let other = if character == '7' { "8" } else { "7" };
            let mut wrong = form.to_string();
            wrong.replace_range(position..=position, other);
            assert!(parse(&wrong).is_err(), "{position}");
            wrong.replace_range(position..=position, "");
            assert!(parse(&wrong).is_err(), "{position}");
        }
        assert!(parse("").is_err());
        assert!(parse("ü").is_err());
    }
}
