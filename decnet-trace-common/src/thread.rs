//! What the kernel side lists of each thread of a traced process, when the user side asks.

use crate::assert_layout;

/// A thread at one moment.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadStat {
    /// The process (thread group).
    pub tgid: u32,
    /// The thread.
    pub tid: u32,
    /// The thread pointer (x86-64: `fs` base); up to date only while the thread is on no CPU.
    pub thread_pointer: u64,
    /// How often it has left a CPU. While this stays the same and [`Self::on_cpu`] is 0, it has not run.
    pub switches: u64,
    /// What it waits for (Linux, include/linux/sched.h); a set of [`state`], 0 while it runs or could.
    pub state: u32,
    /// Whether it is on a CPU, or would be had the listing thread not taken that CPU from it.
    pub on_cpu: u32,
}

/// The bits of [`ThreadStat::state`].
pub mod state {
    /// `TASK_UNINTERRUPTIBLE`: waits for a disk or a page, and no signal ends that.
    pub const UNINTERRUPTIBLE: u32 = 2;
}

assert_layout! { ThreadStat = 32 }
