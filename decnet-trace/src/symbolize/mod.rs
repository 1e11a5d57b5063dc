//! Names for addresses and Python frames, on a thread of its own.
//!
//! The ingest thread hands over each stack that it has not seen before ([`Client::offer`]), soon after
//! it was sampled: processes end and code objects die. The symbolizer's thread names and merges its
//! frames and puts it on a table, where it waits for the profile that it belongs to
//! ([`Client::take`]). The queue and the table are bounded; what does not fit is counted.

use std::{
    fs, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use decnet_trace_common::event::{PyFrame, sample_flags};
use rustc_hash::FxHashMap;

use crate::profile::{
    Frame, FrameKind, Process, Thread,
    merge::{self, PythonStack},
};

mod functions;
mod intern;
mod maps;
mod module;
mod native;
mod perf_map;
mod python;
mod stats;
mod truncation;

pub(crate) use maps::{Backing, Mapping, read as mappings};
pub(crate) use module::{FileId, locate};
pub use python::{NoPython, PythonFrames, PythonLocation};
pub use stats::{Reason, Stats};

/// One life of a process: from its start, or its last `exec`, to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId(pub u64);

/// A distinct stack. Later ones have greater numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StackId(pub u64);

/// A stack as sampled: addresses and Python frames, innermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawStack {
    /// Which.
    pub id: StackId,
    /// The process's life.
    pub process: ProcessId,
    /// The process.
    pub tgid: u32,
    /// The thread, where threads are kept apart.
    pub tid: Option<u32>,
    /// A set of [`sample_flags`].
    pub flags: u16,
    /// Kernel addresses.
    pub kernel: Box<[u64]>,
    /// User addresses of native frames.
    pub user: Box<[u64]>,
    /// Python frames; those without a code object are the interpreter's own, where C called into
    /// Python.
    pub python: Box<[PyFrame]>,
}

/// A stack with names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// The process.
    pub process: Arc<Process>,
    /// The thread, where threads are kept apart.
    pub thread: Option<Thread>,
    /// The frames, outermost first.
    pub frames: Arc<[Arc<Frame>]>,
}

impl Stack {
    /// Whether this is the other stack still, named again. Code that has died since it was sampled, and could
    /// not be named, does not make it another.
    pub fn is_again(&self, earlier: &Self) -> bool {
        let is_unknown =
            |frame: &Arc<Frame>| frame.kind == FrameKind::Python && &*frame.name == UNKNOWN;
        self.frames == earlier.frames || self.frames.iter().any(is_unknown)
    }
}

/// The name of a Python function that could not be read.
const UNKNOWN: &str = "[unknown]";

/// Sizes of what is kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Stacks waiting to be named.
    pub queue: usize,
    /// Stacks named and waiting for their profile.
    pub stacks: usize,
    /// Processes remembered.
    pub processes: usize,
    /// Files open.
    pub modules: usize,
    /// Addresses whose names are remembered.
    pub names: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let native = native::Limits::default();
        Self {
            queue: 1024,
            stacks: 64 * 1024,
            processes: 1024,
            modules: native.modules,
            names: native.names,
        }
    }
}

enum Request {
    Stack(Box<RawStack>),
    Ended { process: ProcessId, tgid: u32 },
    Flush(Sender<()>),
}

/// The stacks that wait for their profile.
#[derive(Debug, Default)]
struct Table {
    stacks: FxHashMap<StackId, Arc<Stack>>,
    /// Stacks before this one have been taken.
    taken: u64,
}

/// The way to the symbolizer's thread, which ends when the last client is dropped.
#[derive(Clone, Debug)]
pub struct Client {
    requests: Sender<Request>,
    table: Arc<Mutex<Table>>,
    stats: Arc<Stats>,
}

impl Client {
    /// Hands over a stack. Never blocks.
    ///
    /// Whether it was taken; where not (the queue is full: counted), offer it again when it is next
    /// seen.
    pub fn offer(&self, stack: Box<RawStack>) -> bool {
        self.send(Request::Stack(stack))
    }

    /// Says that a process ended or executed another program. Never blocks; where the queue is full,
    /// what is known of the process stays until there are too many.
    pub fn process_ended(&self, process: ProcessId, tgid: u32) {
        self.send(Request::Ended { process, tgid });
    }

    fn send(&self, request: Request) -> bool {
        match self.requests.try_send(request) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.stats.add(Reason::QueueFull);
                false
            }
        }
    }

    /// Waits until everything handed over so far has been named. Whether it was, in that time.
    pub fn flush(&self, timeout: Duration) -> bool {
        let (done, wait) = bounded(1);
        self.requests
            .send_timeout(Request::Flush(done), timeout)
            .is_ok()
            && wait.recv_timeout(timeout).is_ok()
    }

    /// A stack that has been named and not been taken.
    pub fn stack(&self, id: StackId) -> Option<Arc<Stack>> {
        lock(&self.table).stacks.get(&id).cloned()
    }

    /// Whether a stack that was named again is the earlier one still, and then off the table; `None` while it is
    /// not named.
    pub fn settle(&self, earlier: StackId, again: StackId) -> Option<bool> {
        let mut table = lock(&self.table);
        let named = table.stacks.get(&again)?;
        let is_same = table
            .stacks
            .get(&earlier)
            .is_some_and(|earlier| named.is_again(earlier));
        if is_same {
            table.stacks.remove(&again);
        }
        Some(is_same)
    }

    /// Takes the stacks before `end` off the table; of those not named yet, nothing is kept.
    pub fn take(&self, end: StackId) -> FxHashMap<StackId, Arc<Stack>> {
        let mut table = lock(&self.table);
        table.taken = table.taken.max(end.0);
        table.stacks.extract_if(|id, _| *id < end).collect()
    }

    /// What could not be done, by reason.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }
}

/// A panic while the table was locked cannot have left it half-changed: each change is one call.
fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the symbolizer's thread.
///
/// # Errors
///
/// When the system has no thread to give.
pub fn spawn(
    limits: Limits,
    python: Box<dyn PythonFrames>,
) -> io::Result<(Client, thread::JoinHandle<()>)> {
    let (requests, queue) = bounded(limits.queue);
    let client = Client {
        requests,
        table: Arc::default(),
        stats: Arc::default(),
    };
    let (table, stats) = (client.table.clone(), client.stats.clone());
    let thread = thread::Builder::new()
        .name("symbolize".to_owned())
        .spawn(move || Worker::new(limits, python, table, stats).run(&queue))?;
    Ok((client, thread))
}

struct Worker {
    native: native::Native,
    python: Box<dyn PythonFrames>,
    /// These two are kept for their room.
    asked: Vec<PyFrame>,
    found: Vec<Option<PythonLocation>>,
    interner: intern::Interner,
    processes: FxHashMap<ProcessId, Known>,
    table: Arc<Mutex<Table>>,
    stats: Arc<Stats>,
    limits: Limits,
    /// Counts up with each stack.
    clock: u64,
}

/// A process as it is shown.
struct Known {
    process: Arc<Process>,
    threads: FxHashMap<u32, Arc<str>>,
    used: u64,
}

/// The most threads of a process whose names are remembered.
const THREADS_MAX: usize = 1024;

/// The most characters of a command line that are kept.
const COMMAND_MAX: usize = 512;

impl Worker {
    fn new(
        limits: Limits,
        python: Box<dyn PythonFrames>,
        table: Arc<Mutex<Table>>,
        stats: Arc<Stats>,
    ) -> Self {
        let native_limits = native::Limits {
            modules: limits.modules,
            names: limits.names,
        };
        Self {
            native: native::Native::new(native_limits, stats.clone()),
            python,
            asked: Vec::new(),
            found: Vec::new(),
            interner: intern::Interner::default(),
            processes: FxHashMap::default(),
            table,
            stats,
            limits,
            clock: 0,
        }
    }

    fn run(mut self, queue: &Receiver<Request>) {
        truncation::survive();
        for request in queue {
            match request {
                Request::Stack(raw) => self.stack(&raw),
                Request::Ended { process, tgid } => {
                    self.processes.remove(&process);
                    self.native.forget(process);
                    self.python.process_ended(tgid);
                }
                Request::Flush(done) => {
                    // Whoever asked may have stopped waiting.
                    let _ = done.send(());
                }
            }
        }
    }

    fn stack(&mut self, raw: &RawStack) {
        let (process, thread) = self.owner(raw);
        let kernel = self.native.kernel(&raw.kernel, &mut self.interner);
        let native = self
            .native
            .user(raw.process, raw.tgid, &raw.user, &mut self.interner);
        let python = self.python_stack(raw);
        let mut frames = merge::merge(&native.frames, &python, &kernel);
        let broken = raw.flags & sample_flags::NATIVE_BROKEN != 0;
        if (native.cut || broken) && python.frames.is_empty() {
            let cut = self.interner.intern(merge::truncated(FrameKind::Native));
            frames.insert(0, cut);
        }
        if frames.is_empty() {
            // Outside Python, on a thread of which nothing else was asked.
            let frame = Frame::marker(FrameKind::Native, "[native]");
            frames.push(self.interner.intern(frame));
        }
        let stack = Arc::new(Stack {
            process,
            thread,
            frames: frames.into(),
        });
        let mut table = lock(&self.table);
        if raw.id.0 < table.taken {
            self.stats.add(Reason::Late);
        } else if table.stacks.len() >= self.limits.stacks {
            self.stats.add(Reason::TableFull);
        } else {
            table.stacks.insert(raw.id, stack);
        }
    }

    fn python_stack(&mut self, raw: &RawStack) -> PythonStack {
        // Frames without code are the interpreter's own, where C called into Python.
        self.asked.clear();
        let code = raw.python.iter().map(|frame| PyFrame {
            code: frame.code_object(),
            ..*frame
        });
        self.asked.extend(code.filter(|frame| frame.code != 0));
        self.found.clear();
        self.python.resolve(raw.tgid, &self.asked, &mut self.found);
        self.found.resize(self.asked.len(), None);

        let cut = raw.flags & (sample_flags::PYTHON_TRUNCATED | sample_flags::PYTHON_BROKEN) != 0;
        let mut stack = PythonStack {
            frames: Vec::with_capacity(self.asked.len() + 1),
            loops: Vec::new(),
            cut,
        };
        if cut && !self.asked.is_empty() {
            let marker = merge::truncated(FrameKind::Python);
            stack.frames.push(self.interner.intern(marker));
        }
        for raw in raw.python.iter().rev() {
            if raw.code_object() == 0 || raw.code & PyFrame::ENTRY != 0 {
                stack.loops.push(stack.frames.len());
            }
            if raw.code_object() == 0 {
                continue;
            }
            let frame = match self.found.pop().flatten() {
                Some(location) if location.is_internal() => continue,
                Some(location) => Frame {
                    kind: FrameKind::Python,
                    name: location.name,
                    file: location.file,
                    line: location.line,
                    first_line: location.first_line,
                },
                None => {
                    self.stats.add(Reason::PythonUnknown);
                    Frame::marker(FrameKind::Python, UNKNOWN)
                }
            };
            stack.frames.push(self.interner.intern(frame));
        }
        stack
    }

    fn owner(&mut self, raw: &RawStack) -> (Arc<Process>, Option<Thread>) {
        self.clock += 1;
        if !self.processes.contains_key(&raw.process)
            && self.processes.len() >= self.limits.processes
        {
            let oldest = self.processes.iter().min_by_key(|(_, known)| known.used);
            if let Some((&oldest, _)) = oldest {
                self.stats.add(Reason::Evicted);
                self.processes.remove(&oldest);
                self.native.forget(oldest);
            }
        }
        let known = self.processes.entry(raw.process).or_insert_with(|| Known {
            process: Arc::new(Process {
                tgid: raw.tgid,
                command: command(raw.tgid),
            }),
            threads: FxHashMap::default(),
            used: 0,
        });
        known.used = self.clock;
        let thread = raw.tid.map(|tid| {
            if known.threads.len() >= THREADS_MAX {
                known.threads.clear();
            }
            let name = known
                .threads
                .entry(tid)
                .or_insert_with(|| thread_name(raw.tgid, tid));
            Thread {
                tid,
                name: name.clone(),
            }
        });
        (known.process.clone(), thread)
    }
}

/// A process's command line, its name where it has none, nothing where it is gone.
fn command(tgid: u32) -> Arc<str> {
    let line = fs::read(format!("/proc/{tgid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line);
    let words: Vec<&str> = line.split('\0').filter(|word| !word.is_empty()).collect();
    if words.is_empty() {
        return thread_name(tgid, tgid);
    }
    words
        .join(" ")
        .chars()
        .take(COMMAND_MAX)
        .collect::<String>()
        .into()
}

/// A thread's name as the kernel has it; nothing where it is gone.
fn thread_name(tgid: u32, tid: u32) -> Arc<str> {
    let name = fs::read(format!("/proc/{tgid}/task/{tid}/comm")).unwrap_or_default();
    String::from_utf8_lossy(&name).trim_end().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names each code object by its address.
    struct Addresses;

    impl PythonFrames for Addresses {
        fn resolve(
            &mut self,
            _tgid: u32,
            frames: &[PyFrame],
            found: &mut Vec<Option<PythonLocation>>,
        ) {
            found.extend(frames.iter().map(|frame| {
                Some(PythonLocation {
                    name: format!("{:x}", frame.code).into(),
                    file: "app.py".into(),
                    line: 1,
                    first_line: 1,
                })
            }));
        }

        fn process_ended(&mut self, _tgid: u32) {}
    }

    /// Where evaluation loops begin is told by frames of the interpreter's own, as from CPython 3.12 on, and
    /// by marks on the frames that they began with, as in 3.11; code objects are asked for without the mark.
    #[test]
    fn loops_are_told_by_marks() {
        let mut worker = Worker::new(
            Limits::default(),
            Box::new(Addresses),
            Arc::default(),
            Arc::default(),
        );
        let mut shown = |codes: &[u64]| {
            let frames = codes.iter().map(|&code| PyFrame { code, instr: 0 });
            let stack = worker.python_stack(&RawStack {
                id: StackId(1),
                process: ProcessId(1),
                tgid: 1,
                tid: None,
                flags: 0,
                kernel: [].into(),
                user: [].into(),
                python: frames.collect(),
            });
            let names: Vec<String> = stack
                .frames
                .iter()
                .map(|frame| frame.name.to_string())
                .collect();
            (names.join(" "), stack.loops)
        };
        // Innermost first.
        let entry = PyFrame::ENTRY;
        assert_eq!(
            shown(&[0x40, 0x30 | entry, 0x20, 0x10 | entry]),
            ("10 20 30 40".to_owned(), vec![0, 2])
        );
        assert_eq!(
            shown(&[0x40, 0x30, 0, 0x20, 0x10, 0]),
            ("10 20 30 40".to_owned(), vec![0, 2])
        );
        assert_eq!(shown(&[0x20, 0x10]), ("10 20".to_owned(), vec![]));
    }
}
