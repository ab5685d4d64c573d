//! Where a passphrase comes from: the terminal, without echo, or a file. Never an argument or the
//! environment, which other processes can see.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use crate::files;
use crate::problem::{Exit, Problem};

/// Characters. A new passphrase has at least this many.
const MIN_LENGTH: usize = 8;

/// How to open a root key.
#[derive(Debug, Args)]
pub(crate) struct Unlock {
    /// Read the root key's passphrase from the first line of this file (mode 0600)
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

/// How to protect a root key that is being written.
#[derive(Debug, Args)]
pub(crate) struct Protect {
    /// Read the root key's passphrase from the first line of this file (mode 0600)
    #[arg(long, value_name = "FILE", conflicts_with = "no_passphrase")]
    passphrase_file: Option<PathBuf>,
    /// Write the root key plain: whoever reads the file owns the network
    #[arg(long)]
    no_passphrase: bool,
}

impl Unlock {
    /// The passphrase of an existing key.
    ///
    /// # Errors
    /// The file can't be read, or there is neither a file nor a terminal.
    pub(crate) fn passphrase(&self) -> Result<Zeroizing<String>, Problem> {
        match &self.passphrase_file {
            Some(file) => first_line(file),
            None => Terminal::open("the root key's passphrase is needed")?
                .ask_hidden("Passphrase of the root key: "),
        }
    }
}

impl Protect {
    /// The passphrase for a new key, asked for twice on a terminal; `None` for a plain one.
    ///
    /// # Errors
    /// As [`Unlock::passphrase`], or the passphrase is too short, or the two differ.
    pub(crate) fn passphrase(&self) -> Result<Option<Zeroizing<String>>, Problem> {
        if self.no_passphrase {
            return Ok(None);
        }
        let passphrase = match &self.passphrase_file {
            Some(file) => first_line(file)?,
            None => ask_twice()?,
        };
        long_enough(&passphrase)?;
        Ok(Some(passphrase))
    }
}

/// The controlling terminal, whatever standard input and output are.
pub(crate) struct Terminal {
    lines: BufReader<File>,
    screen: File,
}

impl Terminal {
    /// Opens it; `need` says what for.
    ///
    /// # Errors
    /// There is no terminal.
    pub(crate) fn open(need: &str) -> Result<Self, Problem> {
        let opened = OpenOptions::new().read(true).write(true).open("/dev/tty");
        let pair = opened.and_then(|file| Ok((file.try_clone()?, file)));
        match pair {
            Ok((screen, file)) if file.is_terminal() => Ok(Self {
                lines: BufReader::new(file),
                screen,
            }),
            _ => Err(
                Problem::usage(format!("{need}, and there is no terminal to ask at"))
                    .next("give it in a file; `--help` names the option"),
            ),
        }
    }

    /// Asks for a line that is not shown while it is typed.
    ///
    /// # Errors
    /// The terminal can't be read.
    pub(crate) fn ask_hidden(&mut self, question: &str) -> Result<Zeroizing<String>, Problem> {
        let quiet = Quiet::start(&self.screen)?;
        let answer = self.ask(question);
        drop(quiet);
        // The user's return key was not shown either.
        let _shown = self.screen.write_all(b"\n");
        answer
    }

    /// Asks for a line.
    ///
    /// # Errors
    /// The terminal can't be read.
    pub(crate) fn ask(&mut self, question: &str) -> Result<Zeroizing<String>, Problem> {
        let mut line = Zeroizing::new(String::with_capacity(1024));
        let read = self
            .screen
            .write_all(question.as_bytes())
            .and_then(|()| self.lines.read_line(&mut line));
        match read {
            Ok(0) => Err(Problem::failed("nothing was typed")),
            Ok(_) => Ok(trim_end_of_line(&line)),
            Err(error) => Err(Problem::failed(format!("can't read the terminal: {error}"))),
        }
    }
}

/// The terminal's echo, off until this is dropped.
struct Quiet {
    screen: File,
    before: Termios,
}

impl Quiet {
    fn start(screen: &File) -> Result<Self, Problem> {
        let started = || {
            let screen = screen.try_clone()?;
            let before = tcgetattr(&screen)?;
            let mut quiet = before.clone();
            quiet.local_modes.remove(LocalModes::ECHO);
            tcsetattr(&screen, OptionalActions::Flush, &quiet)?;
            Ok(Self { screen, before })
        };
        started().map_err(|error: std::io::Error| {
            Problem::failed(format!("can't hide what is typed at the terminal: {error}"))
        })
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // Nothing more can be done about a terminal that has gone.
        let _restored = tcsetattr(&self.screen, OptionalActions::Now, &self.before);
    }
}

fn ask_twice() -> Result<Zeroizing<String>, Problem> {
    let need = "a passphrase for the root key is needed";
    let mut terminal = Terminal::open(need).map_err(|problem| {
        problem.next("give --passphrase-file FILE, or --no-passphrase for a plain key")
    })?;
    let first = terminal.ask_hidden("New passphrase for the root key: ")?;
    long_enough(&first)?;
    let second = terminal.ask_hidden("The same again: ")?;
    if *first == *second {
        Ok(first)
    } else {
        Err(Problem::failed("the two passphrases differ").next("run the command again"))
    }
}

fn long_enough(passphrase: &str) -> Result<(), Problem> {
    if passphrase.chars().count() >= MIN_LENGTH {
        return Ok(());
    }
    let cause = format!("the passphrase has fewer than {MIN_LENGTH} characters");
    Err(Problem::usage(cause)
        .next("choose a longer one: whoever has the file can try as many as they like"))
}

fn first_line(file: &Path) -> Result<Zeroizing<String>, Problem> {
    let text = files::read_secret(file)?;
    let line = text.split_inclusive('\n').next().unwrap_or_default();
    let line = trim_end_of_line(line);
    if line.is_empty() {
        let cause = format!("{} holds no passphrase", file.display());
        return Err(Problem::new(Exit::Usage, cause).next("put it in the first line"));
    }
    Ok(line)
}

fn trim_end_of_line(line: &str) -> Zeroizing<String> {
    let line = line.strip_suffix('\n').unwrap_or(line);
    Zeroizing::new(line.strip_suffix('\r').unwrap_or(line).to_owned())
}
