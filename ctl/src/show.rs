//! What people and programs see: text and JSON on standard output, remarks on standard error.
//!
//! Everything that came from a peer, a planet or a daemon passes [`plain`] on its way to a terminal:
//! no control byte of theirs gets there.

pub(crate) mod network;
pub(crate) mod peers;
pub(crate) mod quantity;
pub(crate) mod status;
pub(crate) mod table;

use std::fmt::Write as _;
use std::io::{self, ErrorKind, IsTerminal, Write as _};

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::clock;
use crate::problem::Problem;

/// The form of an answer.
#[derive(Debug, Args)]
pub(crate) struct Output {
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
    /// The same as `-o json`
    #[arg(long, conflicts_with = "output")]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Table,
    Json,
}

impl Output {
    /// Whether JSON is wanted.
    pub(crate) fn is_json(&self) -> bool {
        self.json || self.output == Form::Json
    }
}

/// Standard output and standard error.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Screen {
    terminal: bool,
    colour: bool,
}

/// A colour with a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As it should be.
    Good,
    /// Somebody should look.
    Attention,
    /// Not working.
    Bad,
    /// Neither.
    Neutral,
}

impl Screen {
    /// Colour is used on a terminal alone, and not with `NO_COLOR` (<https://no-color.org>).
    pub(crate) fn new() -> Self {
        let terminal = io::stdout().is_terminal();
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let colour = terminal && !refused;
        Self { terminal, colour }
    }

    /// Columns of the terminal, if there is one.
    pub(crate) fn width(self) -> Option<usize> {
        let size = self
            .terminal
            .then(|| rustix::termios::tcgetwinsize(io::stdout()).ok())??;
        (size.ws_col > 0).then_some(usize::from(size.ws_col))
    }

    /// `text` in the colour of `tone`, if colours are on.
    pub(crate) fn paint(self, text: &str, tone: Tone) -> String {
        let code = match tone {
            Tone::Good => "32",
            Tone::Attention => "33",
            Tone::Bad => "31",
            Tone::Neutral => return text.to_owned(),
        };
        if self.colour {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }

    /// Prints on standard output. A reader that has gone away is no error.
    ///
    /// # Errors
    /// Standard output can't be written, a full disk for example.
    pub(crate) fn print(self, text: &str) -> Result<(), Problem> {
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Problem::failed(format!(
                "can't write to standard output: {error}"
            ))),
            _ => Ok(()),
        }
    }

    /// Prints `body` as JSON with its schema and the present time.
    ///
    /// # Errors
    /// As [`Self::print`].
    pub(crate) fn print_json(self, schema: &str, body: &impl Serialize) -> Result<(), Problem> {
        let generated = Some(clock::now().to_string());
        self.print(&json(&Envelope {
            schema,
            generated,
            body,
        })?)
    }

    /// Prints `body`, which says itself when it was generated, as JSON with its schema.
    ///
    /// # Errors
    /// As [`Self::print`].
    pub(crate) fn print_dated_json(
        self,
        schema: &str,
        body: &impl Serialize,
    ) -> Result<(), Problem> {
        let generated = None;
        self.print(&json(&Envelope {
            schema,
            generated,
            body,
        })?)
    }

    /// A remark for people, on standard error, in one line.
    pub(crate) fn remark(self, text: &str) {
        // There is no other place to say that standard error is gone.
        let _said = writeln!(io::stderr(), "{}", plain(text));
    }

    /// Wipes the terminal for the next picture of `--watch`.
    pub(crate) fn wipe(self) -> &'static str {
        if self.terminal {
            "\u{1b}[H\u{1b}[2J\u{1b}[3J"
        } else {
            ""
        }
    }
}

/// A list under `items`, as every listing command prints it.
#[derive(Debug, Serialize)]
pub(crate) struct Items<'a, T> {
    /// In the order of the table.
    pub(crate) items: &'a [T],
}

#[derive(Serialize)]
struct Envelope<'a, T> {
    schema: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    generated: Option<String>,
    #[serde(flatten)]
    body: &'a T,
}

fn json(document: &impl Serialize) -> Result<String, Problem> {
    let value = serde_json::to_string_pretty(document)
        .map_err(|error| Problem::failed(format!("can't print the answer as JSON: {error}")))?;
    // Outside of strings JSON is ASCII, so an escape in place of a character keeps the meaning.
    let mut text = String::with_capacity(value.len() + 1);
    for character in value.chars() {
        if character != '\n' && is_dangerous(character) {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                // Writing to a string can't fail.
                let _written = write!(text, "\\u{unit:04x}");
            }
        } else {
            text.push(character);
        }
    }
    text.push('\n');
    Ok(text)
}

/// `text` in one line with every control and direction-changing character escaped.
pub(crate) fn plain(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if is_dangerous(character) {
            safe.extend(character.escape_default());
        } else {
            safe.push(character);
        }
    }
    safe
}

/// C0, DEL and C1 controls, which drive terminals, and the marks that reorder or hide text
/// (Unicode TR 36 §3).
fn is_dangerous(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_and_direction_marks_are_escaped_everything_else_stays() {
        assert_eq!(plain("no route: 3 m, naïve"), "no route: 3 m, naïve");
        for hostile in [
            "\u{1b}]0;x\u{7}",
            "\u{9b}31m",
            "\r\n",
            "\u{202e}x",
            "a\u{7f}",
        ] {
            let safe = plain(hostile);
            assert!(!safe.chars().any(is_dangerous), "{safe:?}");
            let printed = json(&Items { items: &[hostile] }).unwrap();
            assert!(
                !printed.replace('\n', "").chars().any(is_dangerous),
                "{printed:?}"
            );
            let read: serde_json::Value = serde_json::from_str(&printed).unwrap();
            assert_eq!(read["items"][0], hostile);
        }
    }
}
