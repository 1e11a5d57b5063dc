//! The thread that reads /proc: told by the kernel side what happened, it says which processes to trace.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use decnet_trace_common::event::{Proc, ProcWhat, SockState, tcp_state};

use crate::{
    discover::{Change, Discovery},
    error::{Error, Result},
};

/// How many notices may wait. One that does not fit makes the thread look through all processes.
const NOTICES_MAX: usize = 8192;

/// How many changes may wait for the pipeline; it takes them every round.
const CHANGES_MAX: usize = 4096;

/// The longest that the thread sleeps.
const NAP_MAX: Duration = Duration::from_secs(1);

/// Something happened to a process.
#[derive(Clone, Copy, Debug)]
enum Notice {
    Exec(u32),
    Fork { parent: u32, child: u32 },
    Listen(u32),
    Exit(u32),
}

/// The pipeline's end of the discovery thread.
pub(super) struct DiscoveryThread {
    notices: Sender<Notice>,
    changes: Receiver<Change>,
    overflowed: Arc<AtomicBool>,
    lost: AtomicU64,
}

impl DiscoveryThread {
    /// Starts the thread. It ends when this is dropped.
    pub(super) fn start(discovery: Discovery) -> Result<Self> {
        let (notices, inbox) = bounded(NOTICES_MAX);
        let (outbox, changes) = bounded(CHANGES_MAX);
        let overflowed = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&overflowed);
        thread::Builder::new()
            .name("discover".into())
            .spawn(move || work(discovery, &inbox, &outbox, &flag))
            .map_err(|error| Error::failed(format!("cannot start a thread: {error}")))?;
        Ok(Self {
            notices,
            changes,
            overflowed,
            lost: AtomicU64::new(0),
        })
    }

    /// Passes on what happened to a process.
    pub(super) fn on_proc(&self, event: &Proc) {
        let tgid = event.header.tgid;
        match ProcWhat::from_u32(event.what) {
            Some(ProcWhat::Exec) => self.tell(Notice::Exec(tgid)),
            Some(ProcWhat::Fork) => self.tell(Notice::Fork {
                parent: event.parent,
                child: tgid,
            }),
            Some(ProcWhat::Exit) => self.tell(Notice::Exit(tgid)),
            None => {}
        }
    }

    /// Passes on that a process began to listen.
    pub(super) fn on_sock_state(&self, event: &SockState) {
        if event.new == tcp_state::LISTEN {
            self.tell(Notice::Listen(event.header.tgid));
        }
    }

    /// What changed since the last call.
    pub(super) fn changes(&self) -> impl Iterator<Item = Change> {
        self.changes.try_iter()
    }

    /// Notices that did not fit.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn tell(&self, notice: Notice) {
        if self.notices.try_send(notice).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
            self.overflowed.store(true, Ordering::Relaxed);
        }
    }
}

fn work(
    mut discovery: Discovery,
    notices: &Receiver<Notice>,
    changes: &Sender<Change>,
    overflowed: &AtomicBool,
) {
    loop {
        let now = Instant::now();
        let nap = discovery
            .next_due()
            .map_or(NAP_MAX, |due| due.saturating_duration_since(now))
            .min(NAP_MAX);
        match notices.recv_timeout(nap) {
            Ok(first) => {
                for notice in std::iter::once(first).chain(notices.try_iter()) {
                    match notice {
                        Notice::Exec(pid) => discovery.on_exec(pid),
                        Notice::Fork { parent, child } => discovery.on_fork(parent, child),
                        Notice::Listen(pid) => discovery.on_listen(pid),
                        Notice::Exit(pid) => discovery.on_exit(pid),
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let found = if overflowed.swap(false, Ordering::Relaxed) {
            discovery.scan_all()
        } else {
            discovery.tick(Instant::now())
        };
        for change in found {
            if changes.send(change).is_err() {
                return;
            }
        }
    }
}
