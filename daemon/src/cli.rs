//! The command line of meshd.

use std::path::PathBuf;

use clap::{CommandFactory as _, Parser, Subcommand};
use podmesh_proto::id::Name;

/// The node of a podmesh network: encrypted tunnels to every peer, routes for pods.
///
/// meshd runs as a service and is told what to do by meshctl. While it is stopped no packet passes between
/// nodes, since it carries them itself; the interface, routes, rules and the guard stay in place, so that
/// pods of one node keep talking and nothing leaves in plaintext. A restart by systemd, and `--replace`, keep
/// packets moving.
#[derive(Debug, Parser)]
#[command(name = "meshd", version)]
pub(crate) struct Cli {
    /// Configuration file; without it /etc/podmesh/meshd.toml if that exists
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Folder of keys, certificate and peers
    #[arg(long, value_name = "FOLDER", default_value = "/var/lib/podmesh")]
    pub(crate) state_dir: PathBuf,
    /// Folder of the local socket and of the file for the CNI plugin
    #[arg(long, value_name = "FOLDER", default_value = "/run/podmesh")]
    pub(crate) runtime_dir: PathBuf,
    /// Name of this node, over that of the configuration
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<Name>,
    /// What to log, over that of the configuration: a level, or `target=level,...`
    #[arg(long, value_name = "FILTER")]
    pub(crate) log: Option<String>,
    /// Read the configuration, say whether it is good, and end
    #[arg(long)]
    pub(crate) check: bool,
    /// Take interface and sockets over from the meshd that runs, which ends. For a new version or
    /// configuration without systemd, whose restart does the same; `device`, `shards` and `port`
    /// can't change that way
    #[arg(long)]
    pub(crate) replace: bool,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// What meshd does instead of running.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print the manual page
    #[command(hide = true)]
    Man,
}

/// The manual page, in troff.
///
/// # Errors
/// Never in practice: it is written to memory.
pub(crate) fn manual_page() -> std::io::Result<Vec<u8>> {
    let mut page = Vec::new();
    // Without the hidden subcommand, which would bring a list and a help page along.
    let cli = Cli::command();
    let about = cli.get_long_about().cloned().unwrap_or_default();
    let command = clap::Command::new("meshd")
        .version(env!("CARGO_PKG_VERSION"))
        .about(cli.get_about().cloned().unwrap_or_default())
        .long_about(about)
        .args(cli.get_arguments().cloned());
    clap_mangen::Man::new(command)
        .section("8")
        .render(&mut page)?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound_and_has_a_manual_page() {
        Cli::command().debug_assert();
        let page = String::from_utf8(manual_page().expect("a page")).expect("text");
        assert!(page.contains("state\\-dir"), "{page}");
        assert!(page.is_ascii(), "{page}");
        for word in ["subcommands", "SUBCOMMANDS", "help(8)"] {
            assert!(!page.contains(word), "{word}: {page}");
        }
    }
}
