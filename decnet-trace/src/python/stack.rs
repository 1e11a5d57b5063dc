//! What every thread of a process runs at this moment, read without stopping it.

use decnet_trace_common::event::PyFrame;
use rustc_hash::FxHashMap;

use super::{
    check::PyProcess,
    code::CO_SUSPENDABLE,
    frames::{self, End},
    layout::Layout,
    memory::{self, Memory, ProcessMemory, ReadError, Thread},
    resolver::PythonResolver,
    runtime::{self, ThreadState},
};
use crate::symbolize::PythonLocation;

/// How often a stack is read until two readings in a row agree: its thread runs on meanwhile.
const TRIES: u32 = 64;

/// How often a stack is looked at before any reading is believed.
const LOOKS: u32 = 8;

/// How often a stack is read whose frames are not all of code objects.
const RESOLVES: u32 = 16;

/// The most frames of a stack that are read.
const FRAMES_MAX: usize = 4096;

/// What a thread runs.
#[derive(Clone, Debug)]
pub struct ThreadStack {
    /// The thread, in this process's pid namespace; `None` where its thread is gone or unknown.
    pub tid: Option<u32>,
    /// Its name; empty where unknown.
    pub name: String,
    /// The address of its `PyThreadState`.
    pub thread_state: u64,
    /// The number of the interpreter that it belongs to; 0 is the main one's.
    pub interpreter: i64,
    /// Whether it held the GIL.
    pub holds_gil: bool,
    /// Whether it waited rather than ran, as the scheduler sees it.
    pub idle: bool,
    /// Its frames, innermost first; `None` where a frame could not be resolved.
    pub frames: Vec<Option<PythonLocation>>,
    /// How the stack ended.
    pub end: End,
    /// Whether two readings in a row agreed, and all frames were resolved: otherwise frames of two moments may be
    /// mixed.
    pub consistent: bool,
}

/// Reads the stacks of all threads that have a thread state, the main thread first.
///
/// # Errors
/// The process is gone or may not be read, or its list of threads could not be walked.
pub fn stacks(
    process: &PyProcess,
    resolver: &mut PythonResolver,
) -> Result<Vec<ThreadStack>, ReadError> {
    let memory = ProcessMemory::new(process.pid);
    let states = thread_states(process, &memory)?;
    let threads = memory::threads(process.pid)?;
    let owners = owners(process, &memory, &states);
    let mut stacks: Vec<ThreadStack> = states
        .iter()
        .map(|state| {
            let thread = owners
                .get(&state.address)
                .and_then(|pointer| thread_of(&memory, state, *pointer, &threads));
            let (mut frames, end, consistent) =
                resolved_stack(&memory, process, resolver, state.address);
            frames.retain(|frame| !frame.as_ref().is_some_and(PythonLocation::is_internal));
            ThreadStack {
                tid: thread.map(|thread| thread.tid),
                name: thread.map_or_else(String::new, |thread| thread.name.clone()),
                thread_state: state.address,
                interpreter: state.interpreter_id,
                holds_gil: holds_gil(process, &memory, state.address),
                idle: thread.is_none_or(|thread| thread.state != 'R'),
                frames,
                end,
                consistent,
            }
        })
        .collect();
    stacks.sort_by_key(|stack| (stack.tid != Some(process.pid), stack.tid));
    Ok(stacks)
}

/// The list of thread states, walked again where it changed under the walk.
pub(super) fn thread_states(
    process: &PyProcess,
    memory: &ProcessMemory,
) -> Result<Vec<ThreadState>, ReadError> {
    let mut error = ReadError::Gone;
    for _ in 0..TRIES {
        match runtime::thread_states(memory, &process.layout, process.runtime) {
            Ok(states) => return Ok(states),
            Err(runtime::WalkError::Read(read @ (ReadError::Gone | ReadError::Denied))) => {
                return Err(read);
            }
            Err(runtime::WalkError::Read(read)) => error = read,
            Err(runtime::WalkError::Endless(_)) => error = ReadError::Unmapped(process.runtime),
        }
    }
    Err(error)
}

/// Which thread has each thread state, by its thread pointer.
///
/// A thread state names the thread that it was made for, but a sub-interpreter's may run on another:
/// from 3.12 on that thread keeps a pointer to it. Until 3.11 it does not, and nothing tells.
fn owners(
    process: &PyProcess,
    memory: &impl Memory,
    states: &[ThreadState],
) -> FxHashMap<u64, u64> {
    let mut owners = FxHashMap::default();
    let mut current = FxHashMap::default();
    for state in states {
        if runtime::is_thread_pointer(memory, state.thread_pointer)
            && let Some(found) = process.place.read(memory, state.thread_pointer)
        {
            current.insert(state.thread_pointer, found);
            owners.insert(found, state.thread_pointer);
        }
    }
    for state in states {
        let is_main = state.interpreter_id == 0;
        if is_main
            || current
                .get(&state.thread_pointer)
                .is_none_or(|found| *found == 0)
        {
            owners.entry(state.address).or_insert(state.thread_pointer);
        }
    }
    owners
}

/// The thread that a thread state is for.
fn thread_of<'a>(
    memory: &impl Memory,
    state: &ThreadState,
    thread_pointer: u64,
    threads: &'a [Thread],
) -> Option<&'a Thread> {
    let find = |tid: u32| threads.iter().find(|thread| thread.own_tid == tid);
    let told = runtime::libc_tid(memory, thread_pointer, |tid| find(tid).is_some());
    find(told.or(state.native_id)?)
}

/// Whether the thread with this thread state holds the GIL.
pub(super) fn holds_gil(process: &PyProcess, memory: &impl Memory, state: u64) -> bool {
    let layout = &process.layout;
    if let Some(field) = Layout::get(layout.thread_gil) {
        return memory
            .u32(state.wrapping_add(field))
            .is_ok_and(|word| word & layout.thread_gil_mask != 0);
    }
    Layout::get(layout.runtime_current_thread)
        .is_some_and(|field| memory.u64(process.runtime.wrapping_add(field)) == Ok(state))
}

/// Reads a stack and resolves its frames, again where one of them is none.
///
/// From 3.13 on the interpreter's own frames lie on the C stack, which is used for something else as soon as
/// their loop has ended; and a loop that comes by there again and again leaves the same garbage for two readings
/// to agree on. A code object may also have died since.
fn resolved_stack(
    memory: &impl Memory,
    process: &PyProcess,
    resolver: &mut PythonResolver,
    state: u64,
) -> (Vec<Option<PythonLocation>>, End, bool) {
    let mut frames = Vec::new();
    let mut end = End::Broken;
    for _ in 0..RESOLVES {
        let (raw, its_end, consistent) = read_stack(memory, process, state);
        end = its_end;
        frames.clear();
        resolver.resolve_stack(process.pid, &raw, &mut frames);
        if frames.iter().all(Option::is_some) {
            return (frames, end, consistent);
        }
    }
    (frames, end, false)
}

/// Reads a stack until it is the same twice, and whole.
///
/// While a thread runs, what is read of it may be of two moments; a frame that has returned may have
/// lost the one that called it, so that a stack seems to end early. The outermost frame of a thread
/// hardly ever changes: a stack that ends with another than the deepest one seen is not believed.
fn read_stack(memory: &impl Memory, process: &PyProcess, state: u64) -> (Vec<PyFrame>, End, bool) {
    let read = || {
        let mut frames = Vec::new();
        let end = frames::walk(memory, &process.kernel, state, FRAMES_MAX, &mut frames);
        let whole = end != End::Broken && !cut_off(memory, &process.layout, frames.last());
        (frames, end, whole)
    };
    let code = |frames: &[PyFrame]| frames.last().map(|frame| frame.code);
    let mut last = read();
    let (mut deepest, mut outermost) = (last.0.len(), code(&last.0));
    for round in 0..TRIES {
        let next = read();
        if next.0.len() > deepest {
            (deepest, outermost) = (next.0.len(), code(&next.0));
        }
        if round >= LOOKS && next.2 && next == last && code(&next.0) == outermost {
            return next;
        }
        // A stack that could be followed to its end tells more than one that could not.
        if next.2 || !last.2 {
            last = next;
        }
    }
    (last.0, last.1, false)
}

/// Whether a stack that ends with this frame is cut off: a generator that yields between two reads
/// leaves its frame without the one that ran it.
fn cut_off(memory: &impl Memory, layout: &Layout, outermost: Option<&PyFrame>) -> bool {
    outermost.is_some_and(|frame| {
        memory
            .u32(frame.code.wrapping_add(u64::from(layout.code_flags)))
            .is_ok_and(|flags| flags & CO_SUSPENDABLE != 0)
    })
}
