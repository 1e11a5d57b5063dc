//! Equal stacks become one with a count, on the ingest thread: for a stack already known, a hash and
//! an addition.
//!
//! A stack is known by its addresses, and code objects die and leave theirs to others. So a stack that goes on
//! being sampled is named again about once a second; where that gives other names, it is another stack
//! from there on.

use std::{collections::hash_map::RandomState, hash::BuildHasher, hash::Hasher};

use decnet_trace_common::event::{Proc, ProcWhat, Sample, sample_flags};
use rustc_hash::FxHashMap;

use crate::{
    decode::Frames,
    symbolize::{Client, ProcessId, RawStack, StackId},
};

/// Which threads that are on no CPU are sampled too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Waiting {
    /// None: the profile is one of CPU time.
    #[default]
    No,
    /// Those that could run but have no CPU, or wait for a disk or a page.
    Active,
    /// All that have a Python stack.
    All,
}

/// Which samples and frames are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Native user frames are part of a stack.
    pub native: bool,
    /// Kernel frames are part of a stack.
    pub kernel: bool,
    /// Threads are kept apart.
    pub threads: bool,
    /// Only samples of threads that held the GIL count.
    pub gil_only: bool,
    /// Threads on no CPU are sampled too, at the same rate.
    pub waiting: Waiting,
    /// The most distinct stacks between two calls of [`Aggregator::take`].
    pub stacks_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            native: false,
            kernel: false,
            threads: false,
            gil_only: false,
            waiting: Waiting::No,
            stacks_max: 16 * 1024,
        }
    }
}

/// A distinct stack's count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The stack.
    pub id: StackId,
    /// The stack of the same addresses before, where this one was named again and nobody has looked yet whether
    /// it has the same names.
    pub again_of: Option<StackId>,
    /// The process.
    pub tgid: u32,
    /// The thread, where threads are kept apart.
    pub tid: Option<u32>,
    /// How often it was seen.
    pub count: u64,
    /// When it was first seen, in nanoseconds of `CLOCK_MONOTONIC`.
    pub first: u64,
    /// When it was last seen, likewise.
    pub last: u64,
}

/// What was counted since the last time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// The stacks, oldest first.
    pub stacks: Vec<Counted>,
    /// All of them are before this one.
    pub end: StackId,
}

/// Samples that were not counted, by reason, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// There were too many distinct stacks.
    pub stacks_full: u64,
    /// There were too many processes at once.
    pub processes_full: u64,
    /// The thread did not hold the GIL, and only those that do were asked for: not a loss.
    pub without_gil: u64,
}

struct Entry {
    counted: Counted,
    /// Whether the symbolizer has taken it.
    offered: bool,
    /// What was counted since it was offered again.
    again: Option<Counted>,
    /// When it was last offered, or looked at what came of it.
    asked: u64,
}

/// After how long a stack that is still sampled is named again, in nanoseconds.
const ASK_AFTER: u64 = 1_000_000_000;

/// How many stacks are named again in that time, at most: naming one takes some microseconds.
const ASK_MOST: u32 = 512;

/// How many may be named again.
#[derive(Default)]
struct Allowance {
    since: u64,
    left: u32,
}

impl Allowance {
    /// Takes one, if there is one left at this time.
    fn take(&mut self, now: u64) -> bool {
        if now.saturating_sub(self.since) >= ASK_AFTER {
            (self.since, self.left) = (now, ASK_MOST);
        }
        let is_left = self.left > 0;
        self.left -= u32::from(is_left);
        is_left
    }
}

/// The most processes at once; as many as are traced at once, and some that have just ended.
const PROCESSES_MAX: usize = 2 * decnet_trace_common::limits::TARGETS_MAX as usize;

/// Counts samples by stack.
pub struct Aggregator {
    options: Options,
    symbolizer: Client,
    /// Stacks are known by a hash alone, of 64 bits with a random key: with a full table, the odds
    /// that two of them share one are 1 in 10^11.
    hasher: RandomState,
    stacks: FxHashMap<u64, Entry>,
    /// Those whose addresses are another stack's by now.
    former: Vec<Counted>,
    allowance: Allowance,
    processes: FxHashMap<u32, ProcessId>,
    next_stack: u64,
    next_process: u64,
    dropped: Dropped,
}

impl Aggregator {
    /// Counts nothing yet.
    pub fn new(options: Options, symbolizer: Client) -> Self {
        Self {
            options,
            symbolizer,
            hasher: RandomState::new(),
            stacks: FxHashMap::default(),
            former: Vec::new(),
            allowance: Allowance::default(),
            processes: FxHashMap::default(),
            next_stack: 0,
            next_process: 0,
            dropped: Dropped::default(),
        }
    }

    /// Counts a sample. Its stack, where it was counted.
    pub fn sample(&mut self, sample: &Sample, frames: &Frames<'_>) -> Option<StackId> {
        if self.options.gil_only && sample.flags & sample_flags::GIL == 0 {
            self.dropped.without_gil += 1;
            return None;
        }
        let header = &sample.header;
        let process = self.process_of(header.tgid)?;
        let tid = self.options.threads.then_some(header.tid);
        let flags = sample.flags & (sample_flags::PYTHON_TRUNCATED | sample_flags::PYTHON_BROKEN);
        let hash = self.hash(process, tid, flags, frames);
        let full = self.stacks.len() + self.former.len() >= self.options.stacks_max;
        let begun = |id, again_of| Counted {
            id,
            again_of,
            tgid: header.tgid,
            tid,
            count: 0,
            first: header.ts,
            last: header.ts,
        };
        let entry = match self.stacks.entry(hash) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(_) if full => {
                self.dropped.stacks_full += 1;
                return None;
            }
            std::collections::hash_map::Entry::Vacant(entry) => {
                let id = StackId(self.next_stack);
                self.next_stack += 1;
                entry.insert(Entry {
                    counted: begun(id, None),
                    offered: false,
                    again: None,
                    asked: header.ts,
                })
            }
        };
        let options = &self.options;
        let raw = |id| {
            let collect = |wanted: bool, words: &mut dyn Iterator<Item = u64>| {
                if wanted {
                    words.collect()
                } else {
                    Box::default()
                }
            };
            Box::new(RawStack {
                id,
                process,
                tgid: header.tgid,
                tid,
                flags,
                kernel: collect(options.kernel, &mut frames.kernel()),
                user: collect(options.native, &mut frames.user()),
                python: frames.python().collect(),
            })
        };
        if !entry.offered {
            entry.offered = self.symbolizer.offer(raw(entry.counted.id));
        } else if header.ts.saturating_sub(entry.asked) >= ASK_AFTER && sample.python > 0 {
            entry.settle(&self.symbolizer, &mut self.former);
            if entry.again.is_some() {
                // It is still being named.
                entry.asked = header.ts;
            } else if !full && self.allowance.take(header.ts) {
                let id = StackId(self.next_stack);
                if self.symbolizer.offer(raw(id)) {
                    self.next_stack += 1;
                    entry.again = Some(begun(id, Some(entry.counted.id)));
                }
                entry.asked = header.ts;
            }
        }
        let counted = entry.again.as_mut().unwrap_or(&mut entry.counted);
        counted.count += 1;
        // Rings of different CPUs are drained one after another.
        counted.first = counted.first.min(header.ts);
        counted.last = counted.last.max(header.ts);
        Some(counted.id)
    }

    /// Takes note of a process that ended or executed another program: its addresses mean something
    /// else from here on.
    pub fn process(&mut self, event: &Proc) {
        let over = event.what == ProcWhat::Exec as u32 || event.what == ProcWhat::Exit as u32;
        let tgid = event.header.tgid;
        if over && let Some(process) = self.processes.remove(&tgid) {
            self.symbolizer.process_ended(process, tgid);
        }
    }

    /// Takes what was counted since the last time, and begins anew.
    pub fn take(&mut self) -> Counts {
        let mut stacks = std::mem::take(&mut self.former);
        let known = self.stacks.drain();
        stacks.extend(
            known.flat_map(|(_, entry)| [Some(entry.counted), entry.again].into_iter().flatten()),
        );
        stacks.sort_unstable_by_key(|counted| counted.id);
        Counts {
            stacks,
            end: StackId(self.next_stack),
        }
    }

    /// What was not counted.
    pub fn dropped(&self) -> Dropped {
        self.dropped
    }

    fn process_of(&mut self, tgid: u32) -> Option<ProcessId> {
        if let Some(&process) = self.processes.get(&tgid) {
            return Some(process);
        }
        if self.processes.len() >= PROCESSES_MAX {
            self.dropped.processes_full += 1;
            return None;
        }
        let process = ProcessId(self.next_process);
        self.next_process += 1;
        self.processes.insert(tgid, process);
        Some(process)
    }

    fn hash(&self, process: ProcessId, tid: Option<u32>, flags: u16, frames: &Frames<'_>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u64(process.0);
        hasher.write_u64(tid.map_or(u64::MAX, u64::from));
        hasher.write_u16(flags);
        let [kernel, user, python] = frames.as_bytes();
        for (wanted, bytes) in [
            (self.options.kernel, kernel),
            (self.options.native, user),
            (true, python),
        ] {
            if wanted {
                hasher.write_usize(bytes.len());
                hasher.write(bytes);
            }
        }
        hasher.finish()
    }
}

impl Entry {
    /// Looks at the names that the stack was given again: samples since then are its own, or another's.
    fn settle(&mut self, symbolizer: &Client, former: &mut Vec<Counted>) {
        let Some(again) = self.again else {
            return;
        };
        match symbolizer.settle(self.counted.id, again.id) {
            None => return,
            Some(true) => self.counted.add(&again),
            Some(false) => {
                former.push(self.counted);
                self.counted = Counted {
                    again_of: None,
                    ..again
                };
            }
        }
        self.again = None;
    }
}

impl Counted {
    /// Adds what was counted of the same stack.
    fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
    }
}

#[cfg(test)]
mod tests;
