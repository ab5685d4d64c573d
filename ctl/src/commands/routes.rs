//! `meshctl routes`.

use clap::Args;
use podmesh_proto::local_api::schema;

use crate::commands::Context;
use crate::problem::{Exit, Problem};
use crate::show::{Items, Output, peers};

/// Arguments of `meshctl routes`.
#[derive(Debug, Args)]
pub(crate) struct Routes {
    #[command(flatten)]
    output: Output,
}

impl Routes {
    pub(super) fn run(self, context: &Context) -> Result<Exit, Problem> {
        let items = context.meshd.routes()?;
        let screen = context.screen;
        if self.output.is_json() {
            screen.print_json(schema::ROUTES, &Items { items: &items })?;
        } else {
            if items.is_empty() {
                context.need_network()?;
            }
            screen.print(&peers::routes(&items, screen))?;
        }
        Ok(Exit::Ok)
    }
}
