//! What is wrong with a configuration, and what to write in its place.

use std::path::PathBuf;

use super::KEYS;

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// No file, or no right to read it.
    #[error("can't read the configuration {}: {cause}; name another one with --config", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// Something in the file.
    #[error("{}: {error}", file.display())]
    InFile {
        /// The file.
        file: PathBuf,
        /// What.
        error: Box<Self>,
    },
    /// No TOML, or a value of another type.
    #[error("line {line}, {source_line}: {message}")]
    Syntax {
        /// Counted from one.
        line: usize,
        /// The text there.
        source_line: String,
        /// What the parser says.
        message: String,
    },
    /// A key that doesn't exist.
    #[error("unknown key '{key}'; {advice}")]
    UnknownKey {
        /// As written.
        key: String,
        /// The key that looks like it, or all.
        advice: String,
    },
    /// A log filter that means something else than it seems to.
    #[error("log = {filter} is not possible; {reason}")]
    Log {
        /// As written.
        filter: String,
        /// What is possible.
        reason: String,
    },
    /// A value that can't be.
    #[error("{key} = {value} is not possible; {expected}")]
    Value {
        /// Its key.
        key: &'static str,
        /// As written.
        value: String,
        /// What is possible.
        expected: &'static str,
    },
}

impl ConfigError {
    pub(super) fn syntax(text: &str, error: &toml::de::Error) -> Self {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map_or(0, |before| before.matches('\n').count());
        let source = text.lines().nth(line).unwrap_or_default().trim();
        Self::Syntax {
            line: line + 1,
            source_line: source
                .chars()
                .take(60)
                .map(|char| match char {
                    '"' | '\'' | '\\' => char.to_string(),
                    other => other.escape_debug().to_string(),
                })
                .collect(),
            message: error.message().replace('\n', ", "),
        }
    }
}

/// A value that can't be, as it was written.
pub(super) fn wrong(
    key: &'static str,
    value: impl ToString,
    expected: &'static str,
) -> ConfigError {
    let value = value.to_string();
    let value = match value.as_str() {
        "" => "\"\"".to_owned(),
        text => text.chars().flat_map(char::escape_default).collect(),
    };
    ConfigError::Value {
        key,
        value,
        expected,
    }
}

/// What to write in a strange key's place.
pub(super) fn advice(key: &str) -> String {
    let key = key.to_lowercase();
    let distances = KEYS.iter().map(|known| (distance(&key, known), known));
    match distances.min() {
        Some((distance, known)) if distance * 2 <= key.chars().count() => {
            format!("did you mean '{known}'?")
        }
        _ => format!("the keys are {}", KEYS.join(", ")),
    }
}

/// Levenshtein's distance: how many characters to add, remove or change.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (to, cell) in b.chars().zip(row.iter_mut().skip(1)) {
            let changed = diagonal + usize::from(from != to);
            diagonal = *cell;
            left = changed.min(left + 1).min(*cell + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_levenshteins() {
        for (a, b, expected) in [
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("port", "prot", 2),
            ("a", "a", 0),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }
}
