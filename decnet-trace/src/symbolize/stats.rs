//! Everything that symbolizing could not do, counted by reason.

use std::sync::atomic::{AtomicU64, Ordering};

/// Defines the reasons once: the enum, their number and their names.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal),+ $(,)?) => {
        /// What was not done, and why.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason {
            $($(#[$doc])* $name,)+
        }

        impl Reason {
            /// All reasons, in the order of their indices.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The name that logs and metrics use.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

reasons! {
    /// A stack not taken in because the queue was full; it is offered again when it is next seen.
    QueueFull = "queue_full",
    /// A stack not kept because as many as allowed were waiting to be written.
    TableFull = "table_full",
    /// A stack resolved after its profile was written.
    Late = "late",
    /// The mappings of a process could not be read: it was gone.
    ProcessGone = "process_gone",
    /// A user address in no executable mapping: the stack ends there.
    Unmapped = "unmapped",
    /// A user address in a file without a symbol for it: shown as `[file+0xoffset]`.
    NoSymbol = "no_symbol",
    /// A mapped file that could not be opened, or is no ELF file.
    ModuleUnreadable = "module_unreadable",
    /// A line of a perf map that is none.
    PerfMapLine = "perf_map_line_malformed",
    /// A kernel address without a symbol.
    KernelUnknown = "kernel_unknown",
    /// A Python frame whose code object could not be read.
    PythonUnknown = "python_unknown",
    /// A cache of names was full and was emptied.
    CacheEmptied = "cache_emptied",
    /// A process or module was let go to make room for another.
    Evicted = "evicted",
}

/// A count for each [`Reason`].
#[derive(Debug, Default)]
pub struct Stats {
    counts: [AtomicU64; Reason::ALL.len()],
}

impl Stats {
    /// Counts one more.
    pub(super) fn add(&self, reason: Reason) {
        self.add_many(reason, 1);
    }

    /// Counts so many more.
    pub(super) fn add_many(&self, reason: Reason, count: u64) {
        self.counts[reason as usize].fetch_add(count, Ordering::Relaxed);
    }

    /// The count of a reason.
    pub fn get(&self, reason: Reason) -> u64 {
        self.counts[reason as usize].load(Ordering::Relaxed)
    }
}
