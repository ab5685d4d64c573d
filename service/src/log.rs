//! The log: lines on standard error, filtered, limited per kind and party, and with the journal's
//! priorities where the journal reads them.

mod journal;
mod limit;

use std::env;
use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::OnceLock;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use self::journal::{ERROR, JournalLines};
use self::limit::Limiter;

/// What a directive without a target may say.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
/// What the limiter says passes whatever the filter is: it stands for lines that had passed.
const OWN: &str = "podmesh_service=trace";

/// Whether `filter` means what it says. A bare word that is no level would be taken for a target, and
/// silence everything else.
///
/// # Errors
/// What is possible, for a sentence.
pub fn check(filter: &str) -> Result<(), String> {
    let bare = filter.split(',').map(str::trim);
    let mut bare = bare.filter(|word| !word.contains(['=', '[']));
    if let Some(word) = bare.find(|word| !LEVELS.contains(&word.to_ascii_lowercase().as_str())) {
        return Err(format!(
            "'{}' is no level; use {}, or target=level",
            word.escape_default(),
            LEVELS.join(", ")
        ));
    }
    let parsed = EnvFilter::try_new(filter);
    // The error repeats parts of the filter as they are.
    parsed.map_err(|error| {
        let said = error.to_string();
        format!("{}; use a level such as info", said.escape_default())
    })?;
    Ok(())
}

/// Starts logging what `filter` lets pass, and `more`, directives that the filter doesn't overrule. The
/// first start of a process counts.
///
/// # Errors
/// The filter makes no sense; one sentence.
pub fn start(filter: &str, more: &str) -> Result<(), String> {
    check(filter).map_err(|reason| format!("log = {filter} is not possible; {reason}"))?;
    let filter = [filter, more, OWN]
        .into_iter()
        .filter(|part| !part.is_empty());
    let filter = filter.collect::<Vec<_>>().join(",");
    let filter = EnvFilter::try_new(&filter).map_err(|error| error.to_string())?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && !is_journal());
    let lines = if is_journal() {
        lines.event_format(JournalLines).boxed()
    } else {
        lines.boxed()
    };
    // A second one is that of another try to start, with the same configuration but for what was wrong.
    let _ = tracing_subscriber::registry()
        .with(lines)
        .with(filter)
        .with(Limiter::default())
        .try_init();
    Ok(())
}

/// Tells why `program` fails, also before there is a log.
pub fn complain(program: &str, message: &str) {
    let priority = if is_journal() { ERROR } else { "" };
    let message = journal::on_one_line(message);
    // Without standard error there is nobody to tell.
    let _ = writeln!(io::stderr(), "{priority}{program}: {message}");
}

/// Whether standard error is the journal's (systemd.exec(5), `JOURNAL_STREAM`).
fn is_journal() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let named = env::var("JOURNAL_STREAM").unwrap_or_default();
        let own = io::stderr().as_fd().try_clone_to_owned().map(File::from);
        let own = own.and_then(|file| file.metadata());
        own.is_ok_and(|own| named == format!("{}:{}", own.dev(), own.ino()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_level_is_no_target() {
        for good in [
            "info",
            "WARN",
            "off",
            "info,meshd::planet_link=debug",
            "meshd[span]=trace",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in ["verbose", "", "info,meshd", "meshd=loud", "what=ever="] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert!(check("verbose").is_err_and(|reason| reason.contains("error, warn, info")));
    }

    #[test]
    fn what_is_wrong_with_a_filter_is_said_in_printable_characters() {
        for bad in [
            "i\tnfo",
            "\u{1b}[31m",
            "a=\u{1b}[31m",
            "a[\u{1b}=info",
            "a=b=\u{7}",
        ] {
            let reason = check(bad).expect_err(bad);
            assert!(!reason.chars().any(char::is_control), "{reason:?}");
        }
    }
}
