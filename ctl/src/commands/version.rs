//! `meshctl version`.

use clap::Args;
use serde::Serialize;

use crate::commands::Context;
use crate::problem::{Exit, Problem};
use crate::show::{Output, plain};

const SCHEMA: &str = "podmesh.version/v1";
const MESHCTL: &str = env!("CARGO_PKG_VERSION");

/// Arguments of `meshctl version`.
#[derive(Debug, Args)]
pub(crate) struct Version {
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Versions {
    meshctl: &'static str,
    meshd: Option<String>,
}

impl Version {
    pub(super) fn run(self, context: &Context) -> Result<Exit, Problem> {
        let meshd = context.meshd.status();
        let screen = context.screen;
        if self.output.is_json() {
            let meshd = meshd.ok().map(|status| status.version);
            screen.print_json(
                SCHEMA,
                &Versions {
                    meshctl: MESHCTL,
                    meshd,
                },
            )?;
        } else {
            let meshd = match meshd {
                Ok(status) => status.version,
                Err(problem) => format!("unknown ({problem})"),
            };
            screen.print(&format!("meshctl {MESHCTL}\nmeshd   {}\n", plain(&meshd)))?;
        }
        Ok(Exit::Ok)
    }
}
