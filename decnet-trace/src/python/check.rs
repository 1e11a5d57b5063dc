//! The self-check: whether what the layout says about a process is so, before anything relies on it.

use std::{path::PathBuf, time::Duration};

use decnet_trace_common::{event::PyFrame, python::PyLayout};

use super::{
    cursors::{self, BatchProbes},
    debug_offsets::{self, Refusal},
    frames::{self, End},
    interpreter::{Finder, Found, Interpreter},
    layout::Layout,
    memory::{self, Memory, ProcessMemory, ReadError},
    queues::{self, QueueProbes},
    runtime::{self, ThreadState, WalkError},
    thread_state::{self, Listed, Place, Search},
    version::Version,
};

/// How often one inspection looks again when what it read does not fit together: the process runs
/// on meanwhile.
const TRIES: u32 = 5;

/// Between two such looks.
const PAUSE: Duration = Duration::from_millis(2);

/// How often a process that is starting is looked at without a longer wait each time: for a second, about.
const QUICK_LOOKS: u32 = 16;

/// How many frames of a thread are looked at.
const FRAMES: usize = 32;

/// How often a thread's frames are walked within one look, until they fit together: it calls and returns meanwhile, much
/// faster than it is read. At most some 4,000 small reads, and only for the first thread that never does.
const WALKS: u32 = 64;

/// Why a process with an interpreter is not looked into.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// A version whose layout is not known.
    #[error("CPython {0} is not supported (3.8 to 3.15 are)")]
    Version(String),
    /// Another implementation.
    #[error("PyPy is not supported (CPython is)")]
    PyPy,
    /// A debug build, whose structs have more fields.
    #[error("CPython {0} is a debug build, which is not supported (release builds are)")]
    Debug(Version),
    /// A build with `Py_TRACE_REFS`, whose objects have more fields.
    #[error("CPython {0} is built with Py_TRACE_REFS, which is not supported (release builds are)")]
    TraceRefs(Version),
    /// A build without the GIL.
    #[error("CPython {0} is built without the GIL, which is not supported (builds with it are)")]
    FreeThreaded(Version),
    /// A file that looks like an interpreter but lacks the symbol that everything begins at.
    #[error("{0} looks like CPython but has no symbol _PyRuntime")]
    NoRuntime(String),
    /// What the process says about its own layout cannot be.
    #[error("CPython {0} is not read: {1}")]
    DebugOffsets(Version, Refusal),
    /// What was read does not fit together.
    #[error("CPython {0} is not read, its self-check failed: {1}")]
    SelfCheck(Version, String),
}

/// What inspecting a process came to.
#[derive(Clone, Debug)]
pub enum Inspection {
    /// A CPython that is understood.
    Python(Box<PyProcess>),
    /// A CPython that is not ready yet; look again after [`retry_after`].
    Starting(&'static str),
    /// An interpreter that is not supported.
    Unsupported(Unsupported),
    /// Not a Python process.
    NotPython,
    /// The process cannot be read: it is gone, or reading it is not permitted.
    Unreadable(ReadError),
}

/// How long to wait before inspecting a process again that was starting, after `attempt` (from 0)
/// looks; `None` once it has had a minute, and is hardly starting any more.
pub fn retry_after(attempt: u32) -> Option<Duration> {
    // A worker that takes its time on a busy machine serves as soon as it is up.
    let doubled = attempt.saturating_sub(QUICK_LOOKS).min(7);
    (attempt < QUICK_LOOKS + 14).then(|| Duration::from_millis(50 << doubled))
}

/// A CPython process whose layout was found and checked.
#[derive(Clone, Debug)]
pub struct PyProcess {
    /// The process.
    pub pid: u32,
    /// The version.
    pub version: Version,
    /// The interpreter's file, as the process's own mount namespace names it.
    pub path: String,
    /// The same as this process can open it.
    pub host_path: PathBuf,
    /// Where a thread's `PyThreadState*` is: an offset from the thread pointer, or, with
    /// [`PyLayout::thread_block`], in the block that it leads to.
    pub thread_state: i64,
    /// The address of the pointer to the thread state that holds the GIL (until 3.11); 0 where unknown,
    /// or where thread states say so themselves.
    pub gil_holder: u64,
    /// The layout, as the kernel side takes it.
    pub kernel: PyLayout,
    /// Where to watch the descent of contexts, for uprobes; not known where the interpreter exports too
    /// little.
    pub lineage: Option<LineageProbes>,
    /// The address of `_PyRuntime`.
    pub runtime: u64,
    /// The address of `_asyncio`'s own layout, `.AsyncioDebug` (3.14 on, once it is imported).
    pub asyncio: Option<u64>,
    /// Where a thread's `PyThreadState*` is.
    pub(super) place: Place,
    /// The whole layout.
    pub(super) layout: Layout,
    /// The address of `PyCode_Type`, where it is exported.
    pub(super) code_type: Option<u64>,
}

/// Inspects processes, and remembers the interpreters' files it has read.
#[derive(Default)]
pub struct Inspector {
    finder: Finder,
}

/// Why one look came to nothing.
enum Miss {
    /// The process may be starting.
    Starting(&'static str),
    /// What was read does not fit together.
    Inconsistent(String),
    Unreadable(ReadError),
    Unsupported(Unsupported),
}

impl From<ReadError> for Miss {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Gone | ReadError::Denied => Self::Unreadable(error),
            ReadError::Unmapped(_) => Self::Inconsistent(error.to_string()),
        }
    }
}

impl From<WalkError> for Miss {
    fn from(error: WalkError) -> Self {
        match error {
            WalkError::Read(error) => error.into(),
            WalkError::Endless(_) => Self::Inconsistent(error.to_string()),
        }
    }
}

impl Inspector {
    /// An inspector that has seen nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Finds out what a process is, by reading it only. Takes some milliseconds for the first
    /// process of a file, well under one for the next.
    pub fn inspect(&mut self, pid: u32) -> Inspection {
        let interpreter = match self.finder.find(pid) {
            Ok(Found::Interpreter(interpreter)) => interpreter,
            Ok(Found::Unsupported(reason)) => return Inspection::Unsupported(reason),
            Ok(Found::Starting) => return Inspection::Starting("it has not told its version yet"),
            Ok(Found::NotPython) => return Inspection::NotPython,
            Err(error @ (ReadError::Gone | ReadError::Denied)) => {
                return Inspection::Unreadable(error);
            }
            // The maps changed while they were read.
            Err(ReadError::Unmapped(_)) => {
                return Inspection::Starting("its memory map is changing");
            }
        };
        let mut result = self.look(pid, &interpreter);
        for _ in 1..TRIES {
            if !matches!(result, Err(Miss::Inconsistent(_) | Miss::Starting(_))) {
                break;
            }
            std::thread::sleep(PAUSE);
            result = self.look(pid, &interpreter);
        }
        match result {
            Ok(process) => Inspection::Python(Box::new(process)),
            Err(Miss::Starting(why)) => Inspection::Starting(why),
            Err(Miss::Unreadable(error)) => Inspection::Unreadable(error),
            Err(Miss::Unsupported(reason)) => Inspection::Unsupported(reason),
            Err(Miss::Inconsistent(why)) => {
                Inspection::Unsupported(Unsupported::SelfCheck(interpreter.version, why))
            }
        }
    }

    /// Where work passes through queues in a process; see [`QueueProbes`].
    pub fn queue_probes(&mut self, pid: u32) -> Option<QueueProbes> {
        queues::find(&mut self.finder, pid)
    }

    /// Where a process executes a statement of SQLite many times; see [`BatchProbes`].
    pub fn batch_probes(&mut self, pid: u32) -> Vec<BatchProbes> {
        cursors::find(&mut self.finder, pid)
    }

    /// One look at a process.
    fn look(&mut self, pid: u32, interpreter: &Interpreter) -> Result<PyProcess, Miss> {
        let memory = ProcessMemory::new(pid);
        let layout = layout(&memory, interpreter)?;
        if memory.u32(
            interpreter
                .runtime
                .wrapping_add(u64::from(layout.runtime_initialized)),
        )? == 0
        {
            return Err(Miss::Starting("its interpreter is not initialised"));
        }
        let states = runtime::thread_states(&memory, &layout, interpreter.runtime)?;
        if states.is_empty() {
            return Err(Miss::Starting("it has no thread states yet"));
        }
        let listed = live_threads(pid, &memory, &states)?;
        let place = match thread_state::find(&memory, interpreter, &layout, &listed) {
            Search::At(place) => place,
            Search::Ambiguous => {
                return Err(Miss::Starting("its thread state is ambiguous as yet"));
            }
            Search::Nowhere => {
                return Err(Miss::Inconsistent(
                    "no thread keeps its thread state where it was looked for".to_owned(),
                ));
            }
        };
        let kernel = layout
            .kernel(place.block)
            .ok_or_else(|| Miss::Inconsistent("its frames are too large".to_owned()))?;
        check_contexts(&memory, interpreter, &layout, &states)?;
        let code_type = interpreter.address("PyCode_Type");
        check_frames(&memory, &layout, &kernel, code_type, &states)?;
        let lineage = lineage_probes(&memory, interpreter);
        Ok(PyProcess {
            pid,
            version: interpreter.version,
            path: interpreter.path.clone(),
            host_path: interpreter.host_path.clone(),
            thread_state: place.offset,
            gil_holder: gil_holder(&memory, &layout, interpreter.runtime, &states),
            kernel,
            lineage,
            runtime: interpreter.runtime,
            asyncio: self.finder.asyncio_section(pid, interpreter),
            place,
            layout,
            code_type,
        })
    }
}

/// Offsets in the interpreter's file ([`PyProcess::host_path`]) at which contexts begin and end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineageProbes {
    /// `PyContext_CopyCurrent`, which returns a new context.
    pub copied: u64,
    /// `context_tp_dealloc`, which takes one that ends.
    pub ended: u64,
}

/// `offsetof(PyTypeObject, tp_dealloc)` in release builds (Include/cpython/object.h): behind a
/// `PyVarObject`, a name and two sizes.
const TP_DEALLOC: u64 = 48;

/// The first is exported; the second is static, and found through the type that names it.
fn lineage_probes(memory: &ProcessMemory, interpreter: &Interpreter) -> Option<LineageProbes> {
    let copied = interpreter.elf.symbol("PyContext_CopyCurrent")?;
    let context_type = interpreter.address("PyContext_Type")?;
    let dealloc = memory.u64(context_type.wrapping_add(TP_DEALLOC)).ok()?;
    Some(LineageProbes {
        copied: interpreter.elf.file_offset(copied.value)?,
        ended: interpreter
            .elf
            .file_offset(dealloc.wrapping_sub(interpreter.bias))?,
    })
}

/// The table's layout for the version, or what the process itself says.
fn layout(memory: &impl Memory, interpreter: &Interpreter) -> Result<Layout, Miss> {
    let version = interpreter.version;
    let Some(table) = Layout::of_minor(version.minor) else {
        return Err(Miss::Unsupported(Unsupported::Version(version.to_string())));
    };
    let Some(size) = Layout::get(table.own_size) else {
        return Ok(table.clone());
    };
    let size = usize::try_from(size)
        .unwrap_or(usize::MAX)
        .min(debug_offsets::SIZE_MAX);
    let bytes = memory.bytes(interpreter.runtime, size)?;
    debug_offsets::apply(table, &bytes).map_err(|refusal| {
        Miss::Unsupported(match refusal {
            Refusal::FreeThreaded => Unsupported::FreeThreaded(version),
            refusal => Unsupported::DebugOffsets(version, refusal),
        })
    })
}

/// The thread states whose threads are alive, by thread pointer.
fn live_threads(pid: u32, memory: &impl Memory, states: &[ThreadState]) -> Result<Listed, Miss> {
    let threads = memory::threads(pid)?;
    let alive = |tid: u32| threads.iter().any(|thread| thread.own_tid == tid);
    let mut listed = Listed::default();
    for state in states {
        // A thread state may outlive its thread, or wait for one; those tell nothing.
        if runtime::libc_tid(memory, state.thread_pointer, alive).is_some()
            || (runtime::is_thread_pointer(memory, state.thread_pointer)
                && state.native_id.is_some_and(alive))
        {
            listed
                .entry(state.thread_pointer)
                .or_default()
                .push(state.address);
        }
    }
    if listed.is_empty() {
        return Err(Miss::Inconsistent(format!(
            "none of its {} thread states belongs to one of its {} threads",
            states.len(),
            threads.len()
        )));
    }
    Ok(listed)
}

/// The address of the pointer to the thread state that holds the GIL; 0 where that is no such pointer.
fn gil_holder(memory: &impl Memory, layout: &Layout, runtime: u64, states: &[ThreadState]) -> u64 {
    let Some(field) = Layout::get(layout.runtime_current_thread) else {
        return 0;
    };
    let interpreter = |state: u64| memory.u64(state.wrapping_add(u64::from(layout.thread_interp)));
    let address = runtime.wrapping_add(field);
    let is_one = match memory.u64(address) {
        Ok(0) => true,
        // It may be younger than the list of thread states, but not than its interpreter.
        Ok(holder) => interpreter(holder).is_ok_and(|own| {
            states
                .iter()
                .any(|state| interpreter(state.address) == Ok(own))
        }),
        Err(_) => false,
    };
    if is_one { address } else { 0 }
}

/// Every context that a thread has entered must be one.
fn check_contexts(
    memory: &impl Memory,
    interpreter: &Interpreter,
    layout: &Layout,
    states: &[ThreadState],
) -> Result<(), Miss> {
    let Some(context_type) = interpreter.address("PyContext_Type") else {
        return Ok(());
    };
    for state in states {
        let context = memory.u64(state.address.wrapping_add(u64::from(layout.thread_context)))?;
        if context != 0
            && memory.u64(context.wrapping_add(u64::from(layout.object_type)))? != context_type
        {
            return Err(Miss::Inconsistent(
                "a thread's context is no context".to_owned(),
            ));
        }
    }
    Ok(())
}

/// Every frame looked at must run a code object, and one thread at least must have frames.
fn check_frames(
    memory: &impl Memory,
    layout: &Layout,
    kernel: &PyLayout,
    code_type: Option<u64>,
    states: &[ThreadState],
) -> Result<(), Miss> {
    let mut found = Vec::new();
    let mut runs = false;
    for state in states {
        let mut result = Ok(());
        for _ in 0..WALKS {
            found.clear();
            result = check_stack(memory, layout, kernel, code_type, state, &mut found);
            if !matches!(result, Err(Miss::Inconsistent(_))) {
                break;
            }
        }
        result?;
        runs |= !found.is_empty();
    }
    if !runs {
        return Err(Miss::Starting("it runs no Python code yet"));
    }
    Ok(())
}

/// One walk over a thread's frames.
fn check_stack(
    memory: &impl Memory,
    layout: &Layout,
    kernel: &PyLayout,
    code_type: Option<u64>,
    state: &ThreadState,
    found: &mut Vec<PyFrame>,
) -> Result<(), Miss> {
    if frames::walk(memory, kernel, state.address, FRAMES, found) == End::Broken {
        return Err(Miss::Inconsistent(
            "a thread's frames lead nowhere".to_owned(),
        ));
    }
    for frame in found {
        let kind = memory.u64(frame.code.wrapping_add(u64::from(layout.object_type)))?;
        if code_type.is_some_and(|code_type| code_type != kind) {
            return Err(Miss::Inconsistent(
                "a frame runs something that is no code".to_owned(),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits are of 50 ms for about a second, grow from there, and add up to about a minute.
    #[test]
    fn retries_end() {
        let waits: Vec<_> = (0..).map_while(retry_after).collect();
        let quick: Duration = waits.iter().take_while(|wait| **wait == waits[0]).sum();
        assert_eq!(waits[0], Duration::from_millis(50));
        assert!(
            quick.as_secs_f64() > 0.7 && quick.as_secs_f64() < 1.2,
            "{quick:?}"
        );
        let sum: Duration = waits.iter().sum();
        assert!(
            sum > Duration::from_secs(20) && sum < Duration::from_secs(90),
            "{sum:?}"
        );
    }

    /// This very process is no Python, and one that does not exist cannot be read.
    #[test]
    fn tells_what_is_no_python() {
        let mut inspector = Inspector::new();
        assert!(matches!(
            inspector.inspect(std::process::id()),
            Inspection::NotPython
        ));
        assert!(matches!(
            inspector.inspect(u32::MAX),
            Inspection::Unreadable(ReadError::Gone)
        ));
    }
}
