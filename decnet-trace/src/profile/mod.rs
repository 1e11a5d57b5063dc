//! CPU profiles: samples become counted stacks, and those the files that people already open.
//!
//! * [`aggregate`]: on the ingest thread, equal stacks become one with a count.
//! * [`interpreter`]: which native functions stand for Python frames.
//! * [`merge`]: one stack out of the Python, native and kernel frames of a sample.
//! * [`collect`]: counts and resolved stacks become a [`Profile`].
//! * [`sum`]: profiles of one stretch of time after another become one.
//! * [`label`]: how a frame reads in text.
//! * [`top`]: the functions that took the time.
//! * [`formats`]: flamegraph, folded, pprof, speedscope, pstats.
//! * [`output`]: files written whole or not at all.

use std::{sync::Arc, time::Duration};

pub mod aggregate;
pub mod collect;
pub mod formats;
pub mod interpreter;
pub mod label;
pub mod merge;
pub mod output;
pub mod sum;
pub mod top;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrameKind {
    /// A Python function.
    Python,
    /// A native function of the process.
    Native,
    /// A kernel function.
    Kernel,
}

/// A function on a stack, and where in it. Equal frames of one profile are one allocation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frame {
    /// What it is.
    pub kind: FrameKind,
    /// The function's name; in brackets where it is not known (`[libfoo.so+0x12]`, `[unknown]`).
    pub name: Arc<str>,
    /// Python: the source file. Native: the module's path. Kernel: empty, or the kernel module's
    /// name. Empty where unknown.
    pub file: Arc<str>,
    /// The line that was running; 0 where unknown.
    pub line: u32,
    /// The line on which the function begins; 0 where unknown.
    pub first_line: u32,
}

impl Frame {
    /// A frame that stands for something not known, or not a function.
    pub fn marker(kind: FrameKind, name: &str) -> Self {
        Self {
            kind,
            name: name.into(),
            file: "".into(),
            line: 0,
            first_line: 0,
        }
    }

    /// What makes two frames the same function, whatever line of it ran.
    pub fn function(&self) -> FunctionKey<'_> {
        (self.kind, &self.name, &self.file, self.first_line)
    }
}

/// A function: its kind, name, file and first line.
pub type FunctionKey<'a> = (FrameKind, &'a str, &'a str, u32);

/// A process that samples were taken of: one life of it, from its start or its last `exec`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// The process's id.
    pub tgid: u32,
    /// Its command line, or its name where that could not be read.
    pub command: Arc<str>,
}

/// A thread that samples were taken of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Thread {
    /// The thread's id.
    pub tid: u32,
    /// Its name, as the kernel has it; empty where it could not be read.
    pub name: Arc<str>,
}

/// Equal stacks, counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The process.
    pub process: Arc<Process>,
    /// The thread, where the profile keeps threads apart.
    pub thread: Option<Thread>,
    /// The frames, outermost first.
    pub stack: Arc<[Arc<Frame>]>,
    /// How often it was seen.
    pub count: u64,
    /// When it was first seen, in nanoseconds of `CLOCK_MONOTONIC`.
    pub first: u64,
    /// When it was last seen, likewise.
    pub last: u64,
}

/// What a profile says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Samples per second and CPU (or thread).
    pub rate: u32,
    /// When sampling began, in nanoseconds since the Unix epoch.
    pub start: u64,
    /// How long it went on.
    pub duration: Duration,
    /// What was profiled, in the user's words: a command line, or process ids.
    pub command: String,
    /// Samples taken but lost, for every reason.
    pub lost: u64,
    /// Threads were sampled whether they ran or not: samples stand for time, not for CPU time.
    pub wall: bool,
}

impl Meta {
    /// The time that one sample stands for, in nanoseconds.
    pub fn period(&self) -> u64 {
        1_000_000_000 / u64::from(self.rate.max(1))
    }
}

/// A profile in memory: what every format is written from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// What it says of itself.
    pub meta: Meta,
    /// The counted stacks.
    pub samples: Vec<Sample>,
}

impl Profile {
    /// The number of samples in it.
    pub fn total(&self) -> u64 {
        self.samples.iter().map(|sample| sample.count).sum()
    }
}

#[cfg(test)]
pub(crate) mod fixture;
