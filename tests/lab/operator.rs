//! The operator's desk: the folder with the root key, and the commands that need it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::node::program_command;
use crate::planet::Planet;
use crate::process;

/// Whoever owns a network.
#[derive(Debug)]
pub struct Operator {
    folder: PathBuf,
}

impl Operator {
    /// Creates a network with this planet, which adopts and starts it.
    ///
    /// # Errors
    ///
    /// If one of the programs refuses.
    pub fn found(lab: &Lab, network: &str, planet: &Planet, options: &[&str]) -> Result<Self> {
        let address = planet.endpoint().to_string();
        Self::found_at(lab, network, (planet, &address), options)
    }

    /// The same with an address by which nodes shall look for the planet.
    ///
    /// # Errors
    ///
    /// If one of the programs refuses.
    pub fn found_at(
        lab: &Lab,
        network: &str,
        (planet, address): (&Planet, &str),
        options: &[&str],
    ) -> Result<Self> {
        let folder = lab.folder().join(format!("{network}-operator"));
        fs::create_dir_all(&folder)?;
        let operator = Self { folder };
        let key = planet.init().context("cannot make the planet's key")?;
        let planet_at = format!("{key}@{address}");
        operator.meshctl(
            &[
                &[
                    "network",
                    "create",
                    network,
                    "--planet",
                    &planet_at,
                    "--no-passphrase",
                ],
                options,
            ]
            .concat(),
        )?;
        planet.adopt(&operator.document())?;
        planet.start()?;
        Ok(operator)
    }

    /// The folder with the network's document and root key.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The network's public document.
    pub fn document(&self) -> PathBuf {
        self.folder.join("network.podmesh")
    }

    /// Makes a join token and returns the file that it is in.
    ///
    /// # Errors
    ///
    /// If the program refuses.
    pub fn token(&self, name: &str, options: &[&str]) -> Result<PathBuf> {
        let file = self.folder.join(format!("{name}.token"));
        let out = file.to_str().context("the lab's folder is not UTF-8")?;
        self.meshctl(&[&["token", "create", "--out", out], options].concat())?;
        Ok(file)
    }

    /// Runs a `meshctl` command on this desk and returns what it printed.
    ///
    /// # Errors
    ///
    /// If it fails.
    pub fn meshctl(&self, words: &[&str]) -> Result<String> {
        let mut command = program_command("meshctl")?;
        command.args(words).arg("--dir").arg(&self.folder);
        process::succeed(&mut command, b"")
    }
}
