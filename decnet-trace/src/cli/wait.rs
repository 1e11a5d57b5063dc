//! Waiting for a signal, the end of the time, or of the work.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
};

use crate::error::{Error, Result};

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// SIGINT: a terminal sends it to all of the foreground.
    Interrupted,
    /// SIGTERM, or another request to end.
    Terminated,
    /// The deadline.
    Time,
    /// The work.
    Work,
}

/// What tells the agent to stop.
pub(super) struct Stop {
    runtime: Runtime,
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
}

/// What the end of the terminal means (SIGHUP).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnHangup {
    /// The end, like SIGTERM.
    End,
    /// Something else, which [`Hangup`] watches for.
    Other,
}

impl Stop {
    /// Watches for signals from now on: one that comes while the hooks are attached must not end the
    /// process with all that was seen.
    ///
    /// # Errors
    ///
    /// When signals cannot be watched for.
    pub(super) fn watch(on_hangup: OnHangup) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Error::failed(format!("cannot start the signal handler: {error}")))?;
        let failed = |error| Error::failed(format!("cannot watch for signals: {error}"));
        let entered = runtime.enter();
        let interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let terminate = signal(SignalKind::terminate()).map_err(failed)?;
        // `nohup` has it ignored, and ignored it stays.
        let hangup = match on_hangup {
            OnHangup::End if !is_hangup_ignored() => {
                Some(signal(SignalKind::hangup()).map_err(failed)?)
            }
            OnHangup::End | OnHangup::Other => None,
        };
        drop(entered);
        Ok(Self {
            runtime,
            interrupt,
            terminate,
            hangup,
        })
    }

    /// Waits, and asks `is_done` every so often.
    pub(super) fn until(
        self,
        deadline: Option<Instant>,
        every: Duration,
        mut is_done: impl FnMut() -> bool,
    ) -> Ended {
        let Self {
            runtime,
            mut interrupt,
            mut terminate,
            mut hangup,
        } = self;
        runtime.block_on(async {
            // One timer: each that is made anew wakes this thread.
            let mut next = Instant::now();
            loop {
                next += every;
                let tick = deadline.map_or(next, |deadline| deadline.min(next));
                tokio::select! {
                    _ = interrupt.recv() => return Ended::Interrupted,
                    _ = terminate.recv() => return Ended::Terminated,
                    () = came(hangup.as_mut()) => return Ended::Terminated,
                    () = tokio::time::sleep_until(tick.into()) => {
                        if is_done() {
                            return Ended::Work;
                        }
                        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                            return Ended::Time;
                        }
                    }
                }
            }
        })
    }
}

/// Ends when the signal comes; never where none is watched for.
async fn came(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// Whether whoever started this process has it ignore SIGHUP.
fn is_hangup_ignored() -> bool {
    // SAFETY: an all-zero sigaction is a valid one, and with no new one given the call only fills it in.
    let handler = unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGHUP, std::ptr::null(), &mut old);
        old.sa_sigaction
    };
    handler == libc::SIG_IGN
}

/// Whether SIGHUP came: to read the configuration again.
pub(super) struct Hangup(Arc<AtomicBool>);

impl Hangup {
    /// Watches for it from now on; it ends the process no longer.
    ///
    /// # Errors
    ///
    /// When signals cannot be watched for.
    pub(super) fn watch() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGHUP, Arc::clone(&flag))
            .map_err(|error| Error::failed(format!("cannot watch for signals: {error}")))?;
        Ok(Self(flag))
    }

    /// Whether it came since the last call.
    pub(super) fn came(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}
