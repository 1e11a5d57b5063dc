//! From the kernel's Python frames to names, files and lines, with a bounded cache.
//!
//! Code objects die and their addresses are used again, so a cached one counts only while the
//! fields that identify it are still what they were: one read of memory for each stack, of all its
//! code objects at once.

use std::sync::Arc;

use decnet_trace_common::{event::PyFrame, limits::PYTHON_FRAMES_MAX};
use rustc_hash::FxHashMap;

use super::{
    check::PyProcess,
    code::{Code, Fingerprint, Function, HEADER_MAX, Header},
    layout::Layout,
    memory::{Memory, ProcessMemory, ReadError},
    objects::{ObjectError, Objects},
};

/// How many code objects are kept, of all processes together: some 10 MiB.
const CODES_MAX: usize = 16_384;

/// A frame's function and line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The function.
    pub function: Arc<Function>,
    /// The line; 0 where the instruction belongs to none.
    pub line: u32,
}

/// What resolving came to, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResolverCounts {
    /// Frames whose code object was known.
    pub hits: u64,
    /// Frames whose code object was read.
    pub misses: u64,
    /// Of those, how many had another at the same address before.
    pub reused: u64,
    /// Frames whose code object could not be read, or was none.
    pub failed: u64,
}

/// A process as the resolver knows it.
struct Process {
    /// Distinguishes it from an earlier one with the same id.
    serial: u32,
    layout: Layout,
    code_type: Option<u64>,
}

/// A code object of a process.
type Key = (u32, u64);

/// Resolves frames.
#[derive(Default)]
pub struct PythonResolver {
    processes: FxHashMap<u32, Process>,
    serial: u32,
    /// Two generations: what was used since the last turn, and before. At a turn the older half is
    /// dropped, so that the cache holds at most [`CODES_MAX`] of the recently used.
    young: FxHashMap<Key, Arc<Code>>,
    old: FxHashMap<Key, Arc<Code>>,
    counts: ResolverCounts,
    headers: Vec<u8>,
}

impl PythonResolver {
    /// A resolver that knows no process.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a process known; one of the same id that was known before is forgotten.
    pub fn add(&mut self, process: &PyProcess) {
        self.serial = self.serial.wrapping_add(1);
        let known = Process {
            serial: self.serial,
            layout: process.layout.clone(),
            code_type: process.code_type,
        };
        self.processes.insert(process.pid, known);
    }

    /// Forgets a process.
    pub fn remove(&mut self, tgid: u32) {
        self.processes.remove(&tgid);
    }

    /// What resolving came to so far.
    pub fn counts(&self) -> ResolverCounts {
        self.counts
    }

    /// Resolves one frame. `None` where the process is unknown or its code object cannot be read.
    pub fn resolve(&mut self, tgid: u32, frame: PyFrame) -> Option<Location> {
        let mut found = Vec::with_capacity(1);
        self.resolve_stack(tgid, &[frame], &mut found);
        found.pop().flatten()
    }

    /// Resolves a stack: appends one item for each frame, in order.
    pub fn resolve_stack(
        &mut self,
        tgid: u32,
        frames: &[PyFrame],
        found: &mut Vec<Option<Location>>,
    ) {
        let mut headers = std::mem::take(&mut self.headers);
        for frames in frames.chunks(PYTHON_FRAMES_MAX) {
            self.resolve_chunk(tgid, frames, &mut headers, found);
        }
        self.headers = headers;
    }

    fn resolve_chunk(
        &mut self,
        tgid: u32,
        frames: &[PyFrame],
        headers: &mut Vec<u8>,
        found: &mut Vec<Option<Location>>,
    ) {
        let Some(process) = self.processes.get(&tgid) else {
            self.counts.failed += frames.len() as u64;
            found.resize(found.len() + frames.len(), None);
            return;
        };
        let memory = ProcessMemory::new(tgid);
        let size = Header::size(&process.layout);
        headers.resize(frames.len() * HEADER_MAX, 0);
        let whole = memory.read_all(
            frames.iter().map(|frame| frame.code),
            size,
            HEADER_MAX,
            headers,
        );
        for (index, frame) in frames.iter().enumerate() {
            let header = &mut headers[index * HEADER_MAX..][..size];
            let read = match whole {
                // One of them was unreadable: which, only reading one by one tells.
                Err(ReadError::Unmapped(_)) => memory.read(frame.code, header),
                result => result,
            };
            let code = self.code(tgid, &memory, *frame, read.map(|()| &*header));
            let process = self.processes.get(&tgid);
            found.push(code.zip(process).map(|(code, process)| Location {
                function: code.function.clone(),
                line: code.line(&process.layout, *frame),
            }));
        }
    }

    /// The code object of a frame, from the cache where it is still the same.
    fn code(
        &mut self,
        tgid: u32,
        memory: &ProcessMemory,
        frame: PyFrame,
        header: Result<&[u8], ReadError>,
    ) -> Option<Arc<Code>> {
        let process = self.processes.get(&tgid)?;
        let key = (process.serial, frame.code);
        let known = self.young.get(&key).or_else(|| self.old.get(&key)).cloned();
        let (bytes, known) = match (header, known) {
            (Ok(bytes), known) => (bytes, known),
            // The process has ended since; what its code was, it was to the end.
            (Err(ReadError::Gone), Some(known)) => {
                self.counts.hits += 1;
                return Some(known);
            }
            (Err(_), _) => {
                self.counts.failed += 1;
                return None;
            }
        };
        let header = Header::new(&process.layout, bytes);
        let is_code = process
            .code_type
            .is_none_or(|kind| header.kind() == Some(kind));
        let Some(fingerprint) = header.fingerprint().filter(|_| is_code) else {
            self.counts.failed += 1;
            return None;
        };
        let code = match known {
            Some(known) if known.fingerprint == fingerprint => {
                self.counts.hits += 1;
                if self.young.contains_key(&key) {
                    return Some(known);
                }
                known
            }
            other => {
                self.counts.misses += 1;
                self.counts.reused += u64::from(other.is_some());
                match read_code(&process.layout, memory, fingerprint) {
                    Ok(code) => Arc::new(code),
                    Err(_) => {
                        self.counts.failed += 1;
                        return None;
                    }
                }
            }
        };
        if self.young.len() >= CODES_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, code.clone());
        Some(code)
    }
}

fn read_code(
    layout: &Layout,
    memory: &ProcessMemory,
    fingerprint: Fingerprint,
) -> Result<Code, ObjectError> {
    Code::read(&Objects { memory, layout }, fingerprint)
}
