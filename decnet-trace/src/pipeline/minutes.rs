//! Each minute's samples to the store, and all of them together to whoever asked for a profile.

use std::{io, thread, time::Duration};

use super::intervals::Intervals;
use crate::{
    export::Profiles,
    profile::{Profile, sum::Sum},
};

/// How often samples go to the store.
pub(super) const EVERY: Duration = Duration::from_secs(60);

/// The thread that hands profiles on.
pub(super) struct Minutes {
    thread: thread::JoinHandle<Option<Sum>>,
    store: Profiles,
}

/// What it leaves for the last profile.
pub(super) struct Ended {
    sum: Option<Sum>,
    store: Profiles,
}

impl Minutes {
    /// Starts the thread; with a `sum`, profiles are added to it too.
    pub(super) fn start(
        intervals: Intervals,
        store: Profiles,
        mut sum: Option<Sum>,
    ) -> io::Result<Self> {
        let out = store.clone();
        let thread = thread::Builder::new()
            .name("minutes".into())
            .spawn(move || {
                while let Some(profile) = intervals.wait() {
                    if let Some(sum) = &mut sum {
                        sum.add(profile.samples.clone());
                    }
                    out.send(profile);
                }
                sum
            })?;
        Ok(Self { thread, store })
    }

    /// Waits until what was handed over is with the store; the clock has ended.
    pub(super) fn end(self) -> Ended {
        Ended {
            // A thread that panicked has said so.
            sum: self.thread.join().ok().flatten(),
            store: self.store,
        }
    }
}

impl Ended {
    /// Hands on the last profile; the sum of all, where there is one.
    pub(super) fn finish(self, last: Profile) -> Option<Profile> {
        self.store.send(last.clone());
        Some(self.sum?.finish(last))
    }
}
