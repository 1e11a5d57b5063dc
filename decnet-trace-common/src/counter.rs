//! Everything that the kernel side counts, per CPU.

/// Defines the counters once: the enum, their number and their names.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $text:literal),+ $(,)?) => {
        /// An index into the per-CPU counter map.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter {
            $($(#[$doc])* $name,)+
        }

        impl Counter {
            /// All counters, in the order of their indices.
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

counters! {
    /// Records handed to a ring.
    Events = "events",
    /// Records lost because the CPU's ring was full.
    RingFull = "lost_ring_full",
    /// Records lost because the CPU has no ring.
    NoRing = "lost_no_ring",
    /// Operations whose bytes could not be read from user memory.
    PayloadUnread = "payload_unread",
    /// Operations of a kind that hides its buffer (sendfile, splice, io_uring, sendmmsg of several).
    PayloadHidden = "payload_hidden",
    /// Operations on a socket without an inode, which cannot be named.
    SocketUnnamed = "socket_unnamed",
    /// The map of traced processes was full when one forked.
    TargetsFull = "targets_full",
    /// Vectored operations of more buffers than are read.
    IovecsCut = "iovecs_cut",
    /// Steps of statements lost because the programs that record them were interrupted too often at once.
    StatementBusy = "statements_lost_busy",
    /// Samples whose kernel stack could not be taken.
    KernelStack = "kernel_stack_failed",
    /// Samples whose user stack could not be taken.
    UserStack = "user_stack_failed",
    /// Samples of a Python process on a thread without a thread state.
    NoThreadState = "no_thread_state",
    /// Samples of a thread that may run in another interpreter of its process, which is not known.
    OtherInterpreter = "other_interpreter",
    /// Samples whose Python stack could not be read to its end.
    PythonBroken = "python_stack_broken",
    /// Samples with more Python frames than fit.
    PythonTruncated = "python_stack_truncated",
    /// Samples whose native stack led to an address that no table and no known code is at.
    UnwindUnmapped = "unwind_unmapped",
    /// Samples whose native stack was followed by frame pointers through code that has no table.
    UnwindNoTable = "unwind_no_table",
    /// Samples whose native stack was followed by frame pointers through code that its table lacks.
    UnwindNoRow = "unwind_no_row",
    /// Samples whose native stack could not be read to its end.
    UnwindUnread = "unwind_unread",
    /// Samples whose native stack led to a rule that tables here cannot express.
    UnwindUnsupported = "unwind_unsupported",
    /// Samples whose native stack led back to where it had been.
    UnwindAstray = "unwind_astray",
    /// Samples by frame pointers alone, for the process's tables were not there yet.
    UnwindNotReady = "unwind_not_ready",
}

/// The number of counters.
pub const COUNTERS: u32 = Counter::ALL.len() as u32;
