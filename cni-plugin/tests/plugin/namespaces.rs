//! Network namespaces that disappear with the test.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    pub(crate) fn new(name: &str) -> Self {
        let name = format!("pmc{}-{name}", std::process::id());
        let made = Self { name };
        shell(&format!("ip netns add {}", made.name));
        made.command("ip link set lo up");
        made
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Runs a shell script inside; panics with what it said when it fails.
    pub(crate) fn command(&self, script: &str) -> String {
        shell(&format!(
            "exec ip netns exec {} sh -ec '{script}'",
            self.name
        ))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.name])
            .status();
    }
}

fn shell(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(
        output.status.success(),
        "{script}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
