//! The asyncio tasks of a process, running and suspended, each with the chain of what it awaits.
//!
//! From 3.14 on the interpreter keeps its tasks in lists of its own, and `_asyncio` says in its section
//! `.AsyncioDebug` where; before, and for tasks that are not of `_asyncio`'s type, they are in a
//! `WeakSet` of the module `asyncio.tasks`. uvloop's tasks are `_asyncio`'s too.

use decnet_trace_common::event::PyFrame;

use super::{
    check::PyProcess,
    layout::Layout,
    memory::{Memory, ProcessMemory, ReadError},
    objects::{ObjectError, Objects},
    resolver::PythonResolver,
    stack,
};
use crate::symbolize::PythonLocation;

/// The most tasks that are read.
const TASKS_MAX: usize = 65_536;

/// The most frames of a chain of awaits that are followed.
const CHAIN_MAX: usize = 1024;

/// How often a chain is read until two readings in a row agree.
const TRIES: u32 = 8;

/// Fields of `TaskObj` (Modules/_asynciomodule.c), in bytes. That struct is in no header: these are
/// from the living interpreters, whose `tp_basicsize` guards them.
struct TaskLayout {
    size: u64,
    coro: u32,
    name: u32,
    waiter: Option<u32>,
}

impl TaskLayout {
    const fn of_minor(minor: u8) -> Option<Self> {
        let (size, coro) = match minor {
            8 => (144, 112),
            9 => (184, 152),
            10 => (192, 160),
            11 | 12 => (176, 136),
            13 => (144, 120),
            _ => return None,
        };
        Some(Self {
            size,
            coro,
            name: coro + 8,
            waiter: Some(coro - 8),
        })
    }
}

/// `.AsyncioDebug` (3.14 on): thirteen words.
struct AsyncioDebug {
    task: TaskLayout,
    node: u64,
    interpreter_tasks: u64,
    thread_running_task: u64,
    thread_tasks: u64,
}

impl AsyncioDebug {
    fn read(memory: &impl Memory, address: u64) -> Option<Self> {
        let mut bytes = [0; 13 * 8];
        memory.read(address, &mut bytes).ok()?;
        let mut words = bytes
            .as_chunks()
            .0
            .iter()
            .map(|word| u64::from_le_bytes(*word));
        let mut next = |max: u64| words.next().filter(|word| *word < max);
        // Untrusted: offsets in a task are small, those in the interpreter's struct less so.
        let size = next(4096)?;
        let name = next(4096)?;
        let (_awaited_by, _is_task, _is_set) = (next(4096)?, next(4096)?, next(4096)?);
        let coro = next(4096)?;
        let node = next(4096)?;
        let (_interp_size, interpreter_tasks) = (next(64 << 20)?, next(64 << 20)?);
        let (_thread_size, _running_loop) = (next(1 << 20)?, next(1 << 20)?);
        let (thread_running_task, thread_tasks) = (next(1 << 20)?, next(1 << 20)?);
        Some(Self {
            task: TaskLayout {
                size,
                coro: coro as u32,
                name: name as u32,
                waiter: None,
            },
            node,
            interpreter_tasks,
            thread_running_task,
            thread_tasks,
        })
    }
}

/// What a task is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// It runs now: what is innermost in it is on its thread's stack.
    Running,
    /// It waits.
    Suspended,
    /// It has not begun.
    Created,
    /// It has ended.
    Finished,
}

/// An asyncio task.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its address.
    pub address: u64,
    /// Its name, as `get_name` tells it; empty where it could not be read.
    pub name: String,
    /// What it is doing.
    pub state: TaskState,
    /// The frames of its coroutines, innermost first; `None` where one could not be resolved.
    pub frames: Vec<Option<PythonLocation>>,
    /// What the innermost awaits: the name of a type, as `_asyncio.Future`; empty where unknown.
    pub awaits: String,
    /// The task that it waits for, where that is what it awaits.
    pub awaited_task: Option<u64>,
}

/// Reads the tasks of a process that are not finished. None where asyncio is not imported.
///
/// # Errors
/// The process is gone or may not be read.
pub fn tasks(process: &PyProcess, resolver: &mut PythonResolver) -> Result<Vec<Task>, ReadError> {
    let memory = ProcessMemory::new(process.pid);
    let reader = Reader {
        objects: Objects {
            memory: &memory,
            layout: &process.layout,
        },
        debug: process
            .asyncio
            .and_then(|address| AsyncioDebug::read(&memory, address)),
    };
    let states = stack::thread_states(process, &memory)?;
    let mut addresses = Vec::new();
    let mut running = Vec::new();
    let mut interpreters: Vec<u64> = states.iter().map(|state| state.interpreter).collect();
    interpreters.sort_unstable();
    interpreters.dedup();
    if let Some(debug) = &reader.debug {
        for state in &states {
            running.extend(
                memory
                    .u64(state.address.wrapping_add(debug.thread_running_task))
                    .ok(),
            );
            reader.list(
                state.address.wrapping_add(debug.thread_tasks),
                debug,
                &mut addresses,
            );
        }
        for interpreter in &interpreters {
            reader.list(
                interpreter.wrapping_add(debug.interpreter_tasks),
                debug,
                &mut addresses,
            );
        }
    }
    for interpreter in &interpreters {
        // A module that is not imported, or a dict that changes just now, gives nothing.
        let _ = reader.module_tasks(*interpreter, &mut addresses, &mut running);
    }
    addresses.sort_unstable();
    addresses.dedup();
    let Some(layout) = reader.task_layout() else {
        return Ok(Vec::new());
    };
    let mut tasks = Vec::new();
    for address in addresses {
        let Some(chain) = reader.chain(address, &layout) else {
            continue;
        };
        if chain.state == TaskState::Finished {
            continue;
        }
        let mut frames = Vec::new();
        resolver.resolve_stack(process.pid, &chain.frames, &mut frames);
        frames.reverse();
        let is_running = running.contains(&address);
        tasks.push(Task {
            address,
            name: reader.name(address, &layout),
            state: if is_running {
                TaskState::Running
            } else {
                chain.state
            },
            frames,
            awaits: chain.awaits,
            awaited_task: chain.awaited,
        });
    }
    // Two tasks that wait for each other would be a bug of the program's: the order is by address.
    let known: Vec<u64> = tasks.iter().map(|task| task.address).collect();
    for task in &mut tasks {
        task.awaited_task = task.awaited_task.filter(|address| known.contains(address));
    }
    Ok(tasks)
}

/// A chain of awaits, outermost first.
#[derive(PartialEq, Eq)]
struct Chain {
    state: TaskState,
    frames: Vec<PyFrame>,
    awaits: String,
    awaited: Option<u64>,
}

struct Reader<'a, M> {
    objects: Objects<'a, M>,
    debug: Option<AsyncioDebug>,
}

impl<M: Memory> Reader<'_, M> {
    fn task_layout(&self) -> Option<TaskLayout> {
        match &self.debug {
            Some(debug) => Some(TaskLayout { ..debug.task }),
            None => TaskLayout::of_minor(self.objects.layout.minor()),
        }
    }

    /// The tasks of a circular list (3.14 on).
    fn list(&self, head: u64, debug: &AsyncioDebug, tasks: &mut Vec<u64>) {
        let next = |node: u64| self.objects.memory.u64(node).ok();
        let mut node = next(head);
        while let Some(address) = node.filter(|node| *node != head && *node != 0) {
            if tasks.len() >= TASKS_MAX {
                return;
            }
            tasks.push(address.wrapping_sub(debug.node));
            node = next(address);
        }
    }

    /// The tasks that the module `asyncio.tasks` of an interpreter knows.
    fn module_tasks(
        &self,
        interpreter: u64,
        tasks: &mut Vec<u64>,
        running: &mut Vec<u64>,
    ) -> Result<(), ObjectError> {
        let objects = &self.objects;
        let layout = objects.layout;
        let modules = objects.pointer(interpreter, layout.interp_modules)?;
        let Some(module) = objects.dict_get(modules, "asyncio.tasks")? else {
            return Ok(());
        };
        if let Some(current) = objects.module_attribute(module, "_current_tasks")? {
            running.extend(
                objects
                    .dict_items(current)?
                    .into_iter()
                    .map(|(_, task)| task),
            );
        }
        let weak = if layout.minor() <= 11 {
            "_all_tasks"
        } else {
            "_scheduled_tasks"
        };
        if let Some(set) = objects.module_attribute(module, weak)?
            && let Some(data) = objects.attribute(set, "data")?
        {
            for reference in objects.set_items(data)? {
                // What stands for a removed element is no reference.
                if objects
                    .type_name(reference)
                    .is_ok_and(|name| name.contains("weakref") || name.contains("Reference"))
                {
                    tasks.push(objects.pointer(reference, layout.weakref_object)?);
                }
            }
        }
        if let Some(set) = objects.module_attribute(module, "_eager_tasks")? {
            tasks.extend(objects.set_items(set)?);
        }
        Ok(())
    }

    /// Whether an object is a task of `_asyncio`'s type, or of one that extends it.
    fn is_task(&self, object: u64, layout: &TaskLayout) -> bool {
        let size = self
            .objects
            .pointer(object, self.objects.layout.object_type)
            .and_then(|kind| {
                self.objects
                    .pointer(kind, self.objects.layout.type_basicsize)
            });
        match self.objects.type_name(object) {
            Ok(name) => name == "_asyncio.Task" && size == Ok(layout.size),
            Err(_) => false,
        }
    }

    /// The task's name.
    fn name(&self, task: u64, layout: &TaskLayout) -> String {
        let Ok(name) = self.objects.pointer(task, layout.name) else {
            return String::new();
        };
        match self.objects.type_name(name).as_deref() {
            // Not asked for yet, so not written out either (3.12 on).
            Ok("int") => self
                .objects
                .small_int(name)
                .map_or_else(|_| String::new(), |number| format!("Task-{number}")),
            _ => self.objects.string(name).unwrap_or_default(),
        }
    }

    /// The chain of awaits of a task, read until it is the same twice.
    fn chain(&self, task: u64, layout: &TaskLayout) -> Option<Chain> {
        if !self.is_task(task, layout) {
            return None;
        }
        let mut last = self.read_chain(task, layout);
        for _ in 0..TRIES {
            let next = self.read_chain(task, layout);
            if next.is_some() && next == last {
                break;
            }
            last = next.or(last);
        }
        last
    }

    fn read_chain(&self, task: u64, layout: &TaskLayout) -> Option<Chain> {
        let objects = &self.objects;
        let mut chain = Chain {
            state: TaskState::Finished,
            frames: Vec::new(),
            awaits: String::new(),
            awaited: None,
        };
        let mut object = objects.pointer(task, layout.coro).ok()?;
        for _ in 0..CHAIN_MAX {
            if object == 0 {
                return Some(chain);
            }
            let name = objects.type_name(object).ok()?;
            match name.as_str() {
                "coroutine" | "generator" | "async_generator" => {}
                // What an asynchronous generator, or `__await__` of a coroutine, hands out: the
                // generator or coroutine is its first field.
                "async_generator_asend" | "async_generator_athrow" | "coroutine_wrapper" => {
                    object = objects.pointer(object, 16).ok()?;
                    continue;
                }
                _ => {
                    self.end(object, name, task, layout, &mut chain);
                    return Some(chain);
                }
            }
            let (state, frame, awaited) = self.coroutine(object)?;
            if chain.frames.is_empty() {
                chain.state = state;
            }
            chain.frames.extend(frame);
            if state != TaskState::Suspended {
                return Some(chain);
            }
            object = awaited;
        }
        Some(chain)
    }

    /// What stands at the end of a chain: a future's iterator, for most.
    fn end(&self, object: u64, name: String, task: u64, layout: &TaskLayout, chain: &mut Chain) {
        let waiter = layout
            .waiter
            .and_then(|field| self.objects.pointer(task, field).ok());
        // A future's iterator holds the future in its first field.
        let future = match name.as_str() {
            "_asyncio.FutureIter" => self.objects.pointer(object, 16).ok(),
            _ => waiter,
        };
        let future = future.filter(|future| *future != 0);
        let kind = future.and_then(|future| self.objects.type_name(future).ok());
        chain.awaited = future.filter(|future| self.is_task(*future, layout));
        chain.awaits = kind.unwrap_or(name);
    }

    /// A coroutine or generator: what it is doing, its frame, what it awaits.
    fn coroutine(&self, object: u64) -> Option<(TaskState, Option<PyFrame>, u64)> {
        let objects = &self.objects;
        let (memory, layout) = (objects.memory, objects.layout);
        let at = |base: u64, field: u32| base.wrapping_add(u64::from(field));
        let minor = layout.minor();
        let frame = match minor {
            ..=10 => objects.pointer(object, layout.coro_frame).ok()?,
            _ => at(object, layout.coro_frame),
        };
        if frame == 0 {
            return Some((TaskState::Finished, None, 0));
        }
        let state_at = if minor <= 10 {
            at(frame, layout.frame_state)
        } else {
            at(object, layout.coro_frame_state)
        };
        let state = memory.u8(state_at).ok()?;
        let instr = match minor {
            ..=10 => u64::from(memory.u32(at(frame, layout.frame_instr)).ok()?),
            _ => objects.pointer(frame, layout.frame_instr).ok()?,
        };
        let state = if minor <= 9 {
            match (state, instr as u32) {
                (1, _) => TaskState::Running,
                (_, u32::MAX) => TaskState::Created,
                _ => TaskState::Suspended,
            }
        } else {
            let signed = |byte: u32| (byte as u8).cast_signed();
            let executing = signed(layout.state_executing);
            match state.cast_signed() {
                state if state > executing => TaskState::Finished,
                state if state == executing => TaskState::Running,
                state if state == signed(layout.state_created) => TaskState::Created,
                _ => TaskState::Suspended,
            }
        };
        if state == TaskState::Finished {
            return Some((state, None, 0));
        }
        let tag = Layout::get(layout.frame_code_tag).unwrap_or(0);
        let code = objects.pointer(frame, layout.frame_code).ok()? & !tag;
        let awaited = match state {
            TaskState::Suspended => self.awaited(frame).unwrap_or(0) & !tag,
            _ => 0,
        };
        Some((state, Some(PyFrame { code, instr }), awaited))
    }

    /// What a suspended frame awaits: the top of its value stack.
    fn awaited(&self, frame: u64) -> Option<u64> {
        let objects = &self.objects;
        let layout = objects.layout;
        let depth = |field: u32| {
            let depth = objects
                .memory
                .u32(frame.wrapping_add(u64::from(field)))
                .ok()?
                .cast_signed();
            u64::try_from(depth.checked_sub(1)?)
                .ok()
                .filter(|top| *top < 1 << 16)
        };
        let slot = match layout.minor() {
            8 | 9 => objects
                .pointer(frame, layout.frame_stack_top)
                .ok()?
                .wrapping_sub(8),
            10 => {
                let base = objects.pointer(frame, layout.frame_stack_base).ok()?;
                base.wrapping_add(depth(layout.frame_stack_depth)? * 8)
            }
            11..=13 => frame
                .wrapping_add(u64::from(layout.frame_localsplus))
                .wrapping_add(depth(layout.frame_stack_depth)? * 8),
            // 3.15 has a second word on the stack: what to call to send into the awaited.
            minor => {
                let top = objects.pointer(frame, layout.frame_stack_top).ok()?;
                top.wrapping_sub(if minor >= 15 { 16 } else { 8 })
            }
        };
        objects.memory.u64(slot).ok()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]
    use proptest::prelude::*;

    use super::{super::memory::tests::Image, *};

    proptest! {
        /// Whatever memory holds, reading tasks, chains and containers out of it ends, without a
        /// panic. Words that lead back into the memory are what it is most of.
        #[test]
        fn survives_garbage(
            minor in 8u8..=15,
            words in proptest::collection::vec(
                prop_oneof![0x1000u64..0x1400, any::<u64>(), 0u64..4, Just(u64::MAX)],
                128,
            ),
            object in 0x1000u64..0x1400,
        ) {
            let layout = Layout::of_minor(minor).unwrap();
            let bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let memory = Image(vec![(0x1000, bytes)]);
            let debug = AsyncioDebug::read(&memory, object);
            let reader = Reader { objects: Objects { memory: &memory, layout }, debug };
            if let Some(debug) = &reader.debug {
                reader.list(object, debug, &mut Vec::new());
            }
            let _ = reader.module_tasks(object, &mut Vec::new(), &mut Vec::new());
            let _ = reader.coroutine(object);
            let _ = reader.awaited(object);
            if let Some(task) = reader.task_layout() {
                let _ = reader.read_chain(object, &task);
                let _ = reader.name(object, &task);
            }
            let _ = reader.objects.attribute(object, "data");
            let _ = reader.objects.dict_items(object);
            let _ = reader.objects.set_items(object);
        }
    }
}
