//! `lab demo`: the whole story of podmesh in about a minute, on real NATs, with real pods.
//!
//! [`acts`] is what happens, [`stage`] how it is told, [`keeper`] leaves the stage standing.

mod acts;
mod keeper;
mod stage;

use std::process::ExitCode;
use std::thread;

use anyhow::Result;

use podmesh_lab::story;

use acts::Play;
use stage::Stage;

/// Plays the demo; with `keep` the world stays until it is taken down.
pub(crate) fn run(keep: bool, keeper: bool) -> Result<ExitCode> {
    if keep && !keeper {
        return keeper::run_behind();
    }
    let mut stage = Stage::new();
    stage.opening();
    if keeper {
        keeper::end_with_front();
    }
    let lab = story::three_sites("demo").up()?;
    lab.leaks_are_judged_here();
    let outcome = Play::new(&lab, &mut stage).perform();
    if let Err(error) = &outcome {
        stage.broke_off(error);
        lab.keep_logs();
    }
    let good = stage.summary();
    if keeper {
        stage.standing(&lab);
        keeper::tell_front(good);
        loop {
            thread::park();
        }
    }
    if !good {
        lab.keep_logs();
    }
    stage.closing();
    drop(lab);
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
