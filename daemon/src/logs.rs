//! The log: lines on standard error, filtered.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Starts logging what `filter` lets pass.
///
/// # Errors
/// The filter makes no sense; one sentence.
pub(crate) fn start(filter: &str) -> Result<(), String> {
    // The tunnel library logs what any peer can provoke, at levels of its own choice.
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
