//! Nebula as the distribution has it, with its defaults.

use std::process::Command;

use anyhow::Result;

use podmesh_lab::process;

use super::{ENDS, Overlay, System, find, on_both, package_version};
use crate::ground::Ground;

/// Nebula.
pub(crate) struct Nebula;

impl System for Nebula {
    fn name(&self) -> &'static str {
        "nebula"
    }

    fn version(&self) -> Result<String> {
        find(None, "nebula-cert")?;
        package_version("nebula")
    }

    fn start(&self, ground: &Ground) -> Result<Overlay> {
        let sign = |words: &[&str]| {
            let mut command = Command::new(find(None, "nebula-cert")?);
            command.args(words).current_dir(ground.folder());
            process::succeed(&mut command, b"").map(drop)
        };
        sign(&["ca", "-name", "bench"])?;
        for (side, end) in ENDS.iter().enumerate() {
            sign(&[
                "sign",
                "-name",
                &side.to_string(),
                "-ip",
                &format!("{end}/24"),
            ])?;
            let (far, at) = (ENDS[1 - side], Ground::UNDERLAY[1 - side]);
            let folder = ground.folder().display();
            ground.file(
                &format!("{side}.yml"),
                &format!(
                    "pki: {{ca: {folder}/ca.crt, cert: {folder}/{side}.crt, key: {folder}/{side}.key}}\n\
                     static_host_map: {{\"{far}\": [\"{at}:4242\"]}}\n\
                     lighthouse: {{am_lighthouse: false, hosts: []}}\n\
                     listen: {{host: 0.0.0.0, port: 4242}}\n\
                     punchy: {{punch: false}}\n\
                     tun: {{dev: neb0}}\n\
                     logging: {{level: warning, format: text}}\n\
                     firewall:\n  \
                       outbound: [{{port: any, proto: any, host: any}}]\n  \
                       inbound: [{{port: any, proto: any, host: any}}]\n"
                ),
            )?;
        }
        let daemons = on_both(ground, &find(None, "nebula")?, |side| {
            let file = ground.folder().join(format!("{side}.yml"));
            vec!["-config".to_owned(), file.display().to_string()]
        })?;
        Ok(Overlay::of(daemons))
    }
}
