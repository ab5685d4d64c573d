//! The log: lines on standard error, filtered.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// What a directive without a target may say.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Whether `filter` means what it says. A bare word that is no level would be taken for a target, and
/// silence everything else.
///
/// # Errors
/// What is possible, for a sentence.
pub(crate) fn check(filter: &str) -> Result<(), String> {
    let bare = filter.split(',').map(str::trim);
    let mut bare = bare.filter(|word| !word.contains(['=', '[']));
    if let Some(word) = bare.find(|word| !LEVELS.contains(&word.to_ascii_lowercase().as_str())) {
        return Err(format!(
            "'{word}' is no level; use {}, or target=level",
            LEVELS.join(", ")
        ));
    }
    let parsed = EnvFilter::try_new(filter);
    parsed.map_err(|error| format!("{error}; use a level such as info"))?;
    Ok(())
}

/// Starts logging what `filter` lets pass.
///
/// # Errors
/// The filter makes no sense; one sentence.
pub(crate) fn start(filter: &str) -> Result<(), String> {
    // The tunnel library logs what any peer can provoke, at levels of its own choice.
    check(filter).map_err(|reason| format!("log = {filter} is not possible; {reason}"))?;
    let directives = format!("{filter},boringtun=error");
    let filter = EnvFilter::try_new(directives).map_err(|error| {
        format!("log = {filter} is not possible: {error}; use a level such as info")
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
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
}
