//! The sockets in the runtime folder, open for as long as meshd runs: whoever clears that folder locks
//! nobody out for longer than a moment.

use std::io;
use std::path::{Path, PathBuf};

use podmesh_kernel::process;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::handover::{Handover, Heir, Terms};
use crate::kept::Kept;
use crate::local_socket::{Asked, LocalSocket};

/// Both sockets and what serves them.
pub(crate) struct Doors {
    runtime: PathBuf,
    terms: Terms,
    /// A service manager has started this meshd.
    is_managed: bool,
    requests: mpsc::Sender<Asked>,
    heirs: mpsc::Sender<Heir>,
    local: Door,
    handover: Door,
    trouble: Option<String>,
}

/// A bound socket and the task that serves it, and removes it when it ends.
struct Door {
    kept: Kept,
    task: JoinHandle<()>,
}

impl Doors {
    /// Makes the runtime folder and the sockets in it, and serves them on the runtime of the caller.
    ///
    /// # Errors
    /// The folder or a socket can't be made.
    pub(crate) fn open(
        runtime: &Path,
        (terms, is_managed): (Terms, bool),
        requests: mpsc::Sender<Asked>,
        heirs: mpsc::Sender<Heir>,
    ) -> io::Result<Self> {
        let local = local(runtime, requests.clone())?;
        let handover = handover(runtime, (terms.clone(), is_managed), heirs.clone())?;
        Ok(Self {
            runtime: runtime.to_owned(),
            terms,
            is_managed,
            requests,
            heirs,
            local,
            handover,
            trouble: None,
        })
    }

    /// Binds again what somebody has removed or closed to its callers. True if something was. `helpers`
    /// serve it.
    pub(crate) fn mend(&mut self, helpers: &Handle) -> bool {
        if self.local.kept.stands() && self.handover.kept.stands() {
            self.trouble = None;
            return false;
        }
        let _there = helpers.enter();
        let outcome = self.bind_again();
        let trouble = outcome.as_ref().err().map(ToString::to_string);
        match &trouble {
            None => tracing::warn!(
                folder = %self.runtime.display(),
                "a socket in the runtime folder was removed or changed and is made anew"
            ),
            Some(reason) if self.trouble.as_ref() != Some(reason) => tracing::error!(
                reason,
                "meshctl can't reach this meshd; packets and pods go on; {}",
                self.next_step()
            ),
            Some(_) => {}
        }
        self.trouble = trouble;
        outcome.is_ok()
    }

    /// Why a socket is missing, and what to do about it.
    pub(crate) fn trouble(&self) -> Option<(&str, String)> {
        let trouble = self.trouble.as_deref()?;
        Some((trouble, self.next_step()))
    }

    /// Ends the sockets.
    pub(crate) async fn close(self) {
        for door in [self.local, self.handover] {
            door.task.abort();
            // The abort is what is waited for.
            let _ = door.task.await;
        }
    }

    fn bind_again(&mut self) -> io::Result<()> {
        if !self.local.kept.stands() {
            refuse_to_displace(&self.local.kept)?;
            let next = local(&self.runtime, self.requests.clone())?;
            std::mem::replace(&mut self.local, next).task.abort();
        }
        if !self.handover.kept.stands() {
            refuse_to_displace(&self.handover.kept)?;
            let terms = (self.terms.clone(), self.is_managed);
            let next = handover(&self.runtime, terms, self.heirs.clone())?;
            std::mem::replace(&mut self.handover, next).task.abort();
        }
        Ok(())
    }

    fn next_step(&self) -> String {
        let folder = self.runtime.display();
        if self.is_managed {
            // Nothing beside the folder can be written to by the service.
            return "`systemctl restart meshd` makes the folder anew".to_owned();
        }
        format!(
            "make {folder} a folder that user {} may write to; meshd tries again each second",
            process::effective_uid()
        )
    }
}

/// Only another program that runs can have bound something of that name meanwhile.
fn refuse_to_displace(kept: &Kept) -> io::Result<()> {
    if !kept.is_displaced() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "another program has put something in the place of {}: end it, or give one of the two another \
         --runtime-dir, then remove that file",
        kept.path().display()
    )))
}

fn local(runtime: &Path, requests: mpsc::Sender<Asked>) -> io::Result<Door> {
    let socket = LocalSocket::bind(runtime)?;
    Ok(Door {
        kept: socket.kept().clone(),
        task: tokio::spawn(socket.serve(requests)),
    })
}

fn handover(
    runtime: &Path,
    (terms, is_managed): (Terms, bool),
    heirs: mpsc::Sender<Heir>,
) -> io::Result<Door> {
    let handover = Handover::bind(runtime, terms, is_managed)?;
    Ok(Door {
        kept: handover.kept().clone(),
        task: tokio::spawn(handover.serve(heirs)),
    })
}
