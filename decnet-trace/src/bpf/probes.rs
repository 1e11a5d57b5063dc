//! Attachments to single processes, and the thread that undoes them.

use std::thread;

use crossbeam_channel::{Sender, bounded};
use tracing::warn;

use super::load::Link;

/// How many processes' attachments may wait to be undone; whoever has more undoes them itself.
const WAITING_MAX: usize = 1024;

/// Undoes attachments beside. For each one the kernel waits until no CPU runs its program any more, and goes through
/// all processes that map the file: some tens of milliseconds, in which rings would fill up.
#[derive(Clone)]
pub(super) struct Undo(Option<Sender<Vec<Link>>>);

impl Undo {
    /// Starts the thread. It ends when all attachments have been undone, and this was dropped.
    pub(super) fn start() -> Self {
        let (sender, waiting) = bounded::<Vec<Link>>(WAITING_MAX);
        let started = thread::Builder::new()
            .name("detach".into())
            .spawn(move || waiting.into_iter().for_each(drop));
        match started {
            Ok(_) => Self(Some(sender)),
            Err(error) => {
                warn!("cannot start a thread: {error}; ends of processes hold others up");
                Self(None)
            }
        }
    }

    /// Takes care of attachments to a process.
    pub(super) fn of(&self, links: Vec<Link>) -> ProcessProbes {
        ProcessProbes {
            links,
            undo: self.clone(),
        }
    }
}

/// Attachments to one process, which end soon after this is dropped. What they tell until then counts for nothing
/// where the process is traced no longer, or runs another program.
pub struct ProcessProbes {
    links: Vec<Link>,
    undo: Undo,
}

impl ProcessProbes {
    /// Those of a process in which nothing is watched.
    #[cfg(test)]
    pub(crate) const fn none() -> Self {
        Self {
            links: Vec::new(),
            undo: Undo(None),
        }
    }
}

impl Drop for ProcessProbes {
    fn drop(&mut self) {
        let links = std::mem::take(&mut self.links);
        if let Some(undo) = &self.undo.0
            && !links.is_empty()
        {
            // What does not fit comes back, and is undone here.
            drop(undo.try_send(links));
        }
    }
}
