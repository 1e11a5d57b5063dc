//! What is known about a CPython process from outside, by reading its memory and its files: it is
//! never stopped and never written.
//!
//! * [`Inspector`] finds the interpreter, its layout and where its threads keep their state, and
//!   checks all of it on the living process ([`check`]).
//! * The frames of a thread are walked with what the kernel side has too ([`walk`]).
//!
//! docs/python-support.md says what is supported, and why not what is not.

mod asyncio;
mod check;
mod code;
mod containers;
mod cursors;
mod debug_offsets;
pub(crate) mod elf;
mod frames;
mod interpreter;
mod layout;
mod layout_table;
mod line_table;
pub(crate) mod maps;
mod memory;
mod methods;
mod objects;
mod queues;
mod resolver;
mod runtime;
mod stack;
mod thread_state;
mod version;
mod waiting;

pub use asyncio::{Task, TaskState, tasks};
pub use check::{Inspection, Inspector, LineageProbes, PyProcess, Unsupported, retry_after};
pub use cursors::BatchProbes;
pub use debug_offsets::Refusal;
pub use frames::{End, walk};
pub use memory::{Memory, ProcessMemory, ReadError};
pub use queues::{QueueProbes, is_worker_loop};
pub use resolver::{PythonResolver, ResolverCounts};
pub use stack::{ThreadStack, stacks};
pub use version::Version;
