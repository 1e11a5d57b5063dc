//! What the kernel side knows about a traced process.

use crate::{assert_layout, pod};

/// A traced process: the value of the map that the gate looks processes up in.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// A set of [`flags`].
    pub flags: u32,
    /// 1 + the index of the process's CPython layout; 0 where it has none.
    pub python: u32,
    /// Where `PyThreadState*` of the running thread stands: an offset from the thread pointer
    /// (x86-64: `fs` base), or from the block that [`Self::thread_block`] leads to; 0 where unknown.
    pub thread_state: i64,
    /// Offset of `PyThreadState.context` (a `PyContext*`), in bytes.
    pub context: u32,
    /// From the thread pointer, the pointer to the block that [`Self::thread_state`] is an offset
    /// into; 0 where that is the thread pointer itself.
    pub thread_block: u32,
    /// The address of `_PyRuntime.gilstate.tstate_current` (CPython ≤ 3.11), a `PyThreadState*`: the
    /// thread state that holds the GIL; 0 where unknown, or where thread states say so themselves.
    pub gil_holder: u64,
}

impl Target {
    /// The same process when it has executed another program: what was known of its memory is void, and the
    /// uprobes that told of it are gone. Its sockets are recorded on, and with them every request, until it
    /// is decided what the new program is.
    #[must_use]
    pub fn executed(self) -> Self {
        Self {
            flags: self.executed_flags(),
            ..Self::default()
        }
    }

    /// The flags of [`Self::executed`]; all else is zero.
    #[must_use]
    #[inline(always)]
    pub const fn executed_flags(&self) -> u32 {
        let kept = self.flags & !(flags::LINEAGE | flags::QUEUES);
        match kept & flags::NATIVE {
            // No sample is to lack its Python frames.
            0 => kept & !flags::SAMPLES,
            _ => kept,
        }
    }
}

/// The bits of [`Target::flags`].
pub mod flags {
    /// Socket operations are recorded.
    pub const SOCKETS: u32 = 1;
    /// CPU samples are taken.
    pub const SAMPLES: u32 = 1 << 1;
    /// Lineage of contexts is recorded, by the uprobes attached to the process.
    pub const LINEAGE: u32 = 1 << 3;
    /// Put in by the kernel side itself when a traced process forked.
    pub const INHERITED: u32 = 1 << 2;
    /// A sample has the native frames of user space.
    pub const NATIVE: u32 = 1 << 4;
    /// A sample has the kernel's frames.
    pub const KERNEL: u32 = 1 << 5;
    /// Processes that it forks are traced as it is.
    pub const CHILDREN: u32 = 1 << 6;
    /// Work that passes through queues is recorded, by the uprobes attached to the process, and ends
    /// of threads are.
    pub const QUEUES: u32 = 1 << 7;
}

/// What the user side can change while the programs run: the value of a one-entry map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Not zero: every hook returns at once.
    pub kill: u32,
    /// The agent's own process, which is never traced.
    pub own_tgid: u32,
}

assert_layout! {
    Target = 32,
    Control = 8,
}
pod!(Target, Control);
