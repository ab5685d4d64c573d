//! A running `rogue`: takes orders over its control socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use podmesh_lab::process::Process;
use podmesh_lab::{Lab, Namespace, Node, wait};
use serde_json::Value;

/// How long an order may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A thief.
#[derive(Debug)]
pub(crate) struct Puppet {
    _process: Process,
    control: PathBuf,
}

impl Puppet {
    /// A planet whose key was stolen, in the place of the honest one, which must not run any more.
    pub(crate) fn planet(
        lab: &Lab,
        (document, accomplice): (&Path, &Path),
        flags: &[&str],
    ) -> Result<Self> {
        let planet = lab.planet("planet-1")?;
        let key = planet.state_dir().join("planet.key");
        let listen = planet.endpoint().to_string();
        let options = [
            ("--key", key.display().to_string()),
            ("--network", document.display().to_string()),
            ("--listen", listen),
            ("--accomplice", accomplice.display().to_string()),
        ];
        Self::start(
            lab.folder(),
            planet.namespace(),
            ("planet", &options, flags),
        )
    }

    /// A member that joins by the token and then does as it is told. It keeps what it sees in
    /// [`loot_of`] its node.
    pub(crate) fn member(node: &Node, token: &Path) -> Result<Self> {
        Self::member_with(node, token, &[])
    }

    /// The same with further options.
    pub(crate) fn member_with(node: &Node, token: &Path, flags: &[&str]) -> Result<Self> {
        let listen = format!("{}:{}", node.seat().v4, 20_000);
        let options = [
            ("--token", token.display().to_string()),
            ("--name", node.name().to_owned()),
            ("--listen", listen),
            ("--save", loot_of(node).display().to_string()),
        ];
        Self::start(
            node.folder(),
            &node.namespace(),
            ("member", &options, flags),
        )
    }

    /// Gives an order and returns the answer.
    ///
    /// # Errors
    ///
    /// If it can't be done.
    pub(crate) fn order(&self, order: &Value) -> Result<Value> {
        let mut stream = UnixStream::connect(&self.control).context("the rogue has ended")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(format!("{order}\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        let answer: Value =
            serde_json::from_str(&line).with_context(|| format!("{order}: {line}"))?;
        if let Some(error) = answer["error"].as_str() {
            bail!("{order}: {error}");
        }
        Ok(answer)
    }

    fn start(
        folder: &Path,
        place: &Namespace,
        (role, options, flags): (&str, &[(&str, String)], &[&str]),
    ) -> Result<Self> {
        let control = folder.join(format!("rogue-{role}.sock"));
        let log = folder.join(format!("rogue-{role}.log"));
        let mut command = place.command(podmesh_lab::node::program("rogue")?);
        command.arg(role).arg("--control").arg(&control).args(flags);
        for (option, value) in options {
            command.arg(option).arg(value);
        }
        let process = Process::start(&format!("rogue {role}"), command, &log)?;
        wait::until(
            &format!("the rogue {role} to take orders"),
            Duration::from_secs(10),
            || {
                Ok(match process.ended() {
                    Some(status) => wait::Now(Err(status)),
                    None if control.exists() => wait::Now(Ok(())),
                    None => wait::NotYet("no socket".into()),
                })
            },
        )?
        .map_err(|status| anyhow::anyhow!("rogue {role}: {status}: {}", process.last_words(5)))?;
        Ok(Self {
            _process: process,
            control,
        })
    }
}

/// Where a rogue member keeps its loot.
pub(crate) fn loot_of(node: &Node) -> PathBuf {
    node.folder().join("loot")
}

/// The strings of a JSON list.
pub(crate) fn strings(list: &Value) -> Vec<String> {
    let items = list.as_array().into_iter().flatten();
    items.filter_map(Value::as_str).map(str::to_owned).collect()
}
