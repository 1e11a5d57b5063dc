//! What a pipeline can be asked while it works.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use decnet_trace_common::event::{Sample, sample_flags};
use rustc_hash::FxHashMap;

use crate::python::ReadError;

/// What is known of a traced process's Python.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Python {
    /// Nothing yet: it is being looked at, or its interpreter is starting.
    Pending,
    /// Its frames are read.
    Read,
    /// It runs none.
    Absent,
    /// Its frames cannot be read, for this reason.
    Unsupported(String),
}

/// What a profile lacks of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gap {
    /// It is not sampled at all.
    Process(String),
    /// Its Python frames.
    Frames(String),
    /// Its threads that are on no CPU.
    Waiting(String),
}

/// The most gaps that are remembered; there is one for each process, as a rule.
const GAPS_MAX: usize = 256;

/// Processes of which a profile lacks something, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gaps {
    /// In the order in which that was found.
    pub known: Vec<(u32, Gap)>,
    /// How many more there were than are remembered.
    pub more: u64,
}

/// Samples since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// All that came.
    pub samples: u64,
    /// Those of threads that held the GIL.
    pub gil: u64,
    /// Those of threads that ran no Python.
    pub outside: u64,
    /// Those whose Python frames could not be read to their end.
    pub broken: u64,
    /// Those that were lost, and other records.
    pub lost: u64,
}

/// The state of a pipeline at work, kept by its thread and read by others.
#[derive(Debug, Default)]
pub struct Live {
    samples: AtomicU64,
    gil: AtomicU64,
    outside: AtomicU64,
    broken: AtomicU64,
    lost: AtomicU64,
    traced: AtomicUsize,
    read_any: AtomicBool,
    /// One entry for each traced process.
    python: Mutex<FxHashMap<u32, Python>>,
    gaps: Mutex<Gaps>,
}

impl Live {
    /// The samples so far.
    pub fn tally(&self) -> Tally {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Tally {
            samples: get(&self.samples),
            gil: get(&self.gil),
            outside: get(&self.outside),
            broken: get(&self.broken),
            lost: get(&self.lost),
        }
    }

    /// How many processes are traced.
    pub fn traced(&self) -> usize {
        self.traced.load(Ordering::Relaxed)
    }

    /// Whether any process's Python frames were ever read.
    pub fn read_any(&self) -> bool {
        self.read_any.load(Ordering::Relaxed)
    }

    /// What is known of a process's Python; `None` where it is not traced.
    pub fn python(&self, tgid: u32) -> Option<Python> {
        self.lock().get(&tgid).cloned()
    }

    /// What the profile lacks so far, and of whom; of processes that have ended, too.
    pub fn gaps(&self) -> Gaps {
        let gaps = self.gaps.lock();
        gaps.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes what the profile lacks of a process.
    pub(super) fn add_gap(&self, tgid: u32, gap: Gap) {
        let mut gaps = self.gaps.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = (tgid, gap);
        if gaps.known.contains(&entry) {
            return;
        }
        match gaps.known.len() < GAPS_MAX {
            true => gaps.known.push(entry),
            false => gaps.more += 1,
        }
    }

    /// Counts a sample. Only the pipeline's thread does.
    pub(super) fn count(&self, sample: &Sample) {
        let add = |counter: &AtomicU64, wanted: bool| {
            if wanted {
                // There is one writer.
                counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            }
        };
        add(&self.samples, true);
        add(&self.gil, sample.flags & sample_flags::GIL != 0);
        add(&self.outside, sample.python == 0);
        add(
            &self.broken,
            sample.flags & sample_flags::PYTHON_BROKEN != 0,
        );
    }

    pub(super) fn set_lost(&self, lost: u64) {
        self.lost.store(lost, Ordering::Relaxed);
    }

    /// Notes what is known of a traced process.
    pub(super) fn set_python(&self, tgid: u32, python: Python) {
        if python == Python::Read {
            self.read_any.store(true, Ordering::Relaxed);
        }
        // One that has ended before it was looked at lacks nothing that could be told.
        if let Python::Unsupported(why) = &python
            && *why != ReadError::Gone.to_string()
        {
            self.add_gap(tgid, Gap::Frames(why.clone()));
        }
        let mut known = self.lock();
        known.insert(tgid, python);
        self.traced.store(known.len(), Ordering::Relaxed);
    }

    /// A process is no longer traced.
    pub(super) fn forget(&self, tgid: u32) {
        let mut known = self.lock();
        known.remove(&tgid);
        self.traced.store(known.len(), Ordering::Relaxed);
    }

    /// A panic while it was locked cannot have left the map half-changed: each change is one call.
    fn lock(&self) -> MutexGuard<'_, FxHashMap<u32, Python>> {
        self.python.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Samples are counted once in each of the ways that they are.
    #[test]
    fn samples_are_counted() {
        let live = Live::default();
        let mut sample = Sample {
            flags: sample_flags::GIL | sample_flags::PYTHON_BROKEN,
            ..Sample::default()
        };
        live.count(&sample);
        sample.flags = 0;
        sample.python = 3;
        live.count(&sample);
        live.set_lost(7);
        let tally = Tally {
            samples: 2,
            gil: 1,
            outside: 1,
            broken: 1,
            lost: 7,
        };
        assert_eq!(live.tally(), tally);
    }

    /// A process is known from its first note until it is forgotten; that one was read stays known.
    #[test]
    fn processes_come_and_go() {
        let live = Live::default();
        live.set_python(5, Python::Pending);
        assert!(!live.read_any());
        live.set_python(5, Python::Read);
        assert_eq!((live.python(5), live.traced()), (Some(Python::Read), 1));
        live.forget(5);
        assert_eq!((live.python(5), live.traced()), (None, 0));
        assert!(live.read_any());
    }

    /// What cannot be read stays known when its process is gone: once for each process and reason, of a bounded
    /// number of processes. One that was gone when it was looked at is none of these.
    #[test]
    fn gaps_are_remembered() {
        let live = Live::default();
        let why = Python::Unsupported("too old".into());
        for _ in 0..2 {
            live.set_python(5, why.clone());
            live.forget(5);
        }
        live.set_python(6, Python::Unsupported(ReadError::Gone.to_string()));
        live.set_python(7, Python::Absent);
        let expected = Gaps {
            known: vec![(5, Gap::Frames("too old".into()))],
            more: 0,
        };
        assert_eq!(live.gaps(), expected);
        for tgid in 0..1000 {
            live.add_gap(tgid, Gap::Process("no room".into()));
        }
        let gaps = live.gaps();
        assert_eq!(
            (gaps.known.len(), gaps.more),
            (GAPS_MAX, 1001 - GAPS_MAX as u64)
        );
    }
}
