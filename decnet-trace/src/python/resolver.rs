//! From the kernel's Python frames to names, files and lines, with a bounded cache.
//!
//! Code objects die and their addresses are used again, so a cached one counts only while the
//! fields that identify it are still what they were: one read of memory for each stack, of all its
//! code objects at once.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use decnet_trace_common::{event::PyFrame, limits::PYTHON_FRAMES_MAX};
use rustc_hash::FxHashMap;

use super::{
    check::{Inspection, Inspector, PyProcess},
    code::{Code, HEADER_MAX, Header},
    layout::Layout,
    memory::{Memory, ProcessMemory, ReadError},
    objects::Objects,
};
use crate::symbolize::{PythonFrames, PythonLocation};

/// How many code objects are kept, of all processes together: some 10 MiB.
const CODES_MAX: usize = 16_384;

/// How many processes are remembered that turned out not to be readable.
const REFUSED_MAX: usize = 1024;

/// How long such a process is left alone.
const REFUSED_FOR: Duration = Duration::from_secs(5);

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

/// A code object of a process: the process's serial number and the address.
type Key = (u32, u64);

/// Resolves frames.
///
/// A process that it is not told of with [`Self::add`] it inspects itself, at the first frame: a
/// forked worker, for one.
#[derive(Default)]
pub struct PythonResolver {
    inspector: Inspector,
    processes: FxHashMap<u32, Arc<Process>>,
    refused: FxHashMap<u32, Instant>,
    serial: u32,
    codes: Codes,
    counts: ResolverCounts,
    /// Room for the headers of a stack's code objects.
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
        self.refused.remove(&process.pid);
        self.processes.insert(process.pid, Arc::new(known));
    }

    /// Forgets a process.
    pub fn remove(&mut self, tgid: u32) {
        self.processes.remove(&tgid);
        self.refused.remove(&tgid);
    }

    /// What resolving came to so far.
    pub fn counts(&self) -> ResolverCounts {
        self.counts
    }

    /// Resolves one frame. `None` where the process is unknown or its code object cannot be read.
    pub fn resolve_one(&mut self, tgid: u32, frame: PyFrame) -> Option<PythonLocation> {
        let mut found = Vec::with_capacity(1);
        self.resolve_stack(tgid, &[frame], &mut found);
        found.pop().flatten()
    }

    /// Resolves a stack: appends one item for each frame, in order. A frame without a code object
    /// (the kernel side's mark of the interpreter's own frames) is `None`.
    pub fn resolve_stack(
        &mut self,
        tgid: u32,
        frames: &[PyFrame],
        found: &mut Vec<Option<PythonLocation>>,
    ) {
        let Some(process) = self.process(tgid) else {
            self.counts.failed += frames.iter().filter(|frame| frame.code != 0).count() as u64;
            found.resize(found.len() + frames.len(), None);
            return;
        };
        let mut headers = std::mem::take(&mut self.headers);
        for frames in frames.chunks(PYTHON_FRAMES_MAX) {
            self.resolve_chunk(&process, tgid, frames, &mut headers, found);
        }
        self.headers = headers;
    }

    /// The process with this id, inspected if need be.
    fn process(&mut self, tgid: u32) -> Option<Arc<Process>> {
        if let Some(process) = self.processes.get(&tgid) {
            return Some(process.clone());
        }
        if self
            .refused
            .get(&tgid)
            .is_some_and(|since| since.elapsed() < REFUSED_FOR)
        {
            return None;
        }
        if let Inspection::Python(process) = self.inspector.inspect(tgid) {
            self.add(&process);
            return self.processes.get(&tgid).cloned();
        }
        if self.refused.len() >= REFUSED_MAX {
            self.refused.clear();
        }
        self.refused.insert(tgid, Instant::now());
        None
    }

    fn resolve_chunk(
        &mut self,
        process: &Process,
        tgid: u32,
        frames: &[PyFrame],
        headers: &mut Vec<u8>,
        found: &mut Vec<Option<PythonLocation>>,
    ) {
        let memory = ProcessMemory::new(tgid);
        let size = Header::size(&process.layout);
        let codes = frames
            .iter()
            .map(|frame| frame.code)
            .filter(|code| *code != 0);
        headers.resize(frames.len() * HEADER_MAX, 0);
        let whole = memory.read_all(codes, size, HEADER_MAX, headers);
        let mut chunks = headers.chunks_exact_mut(HEADER_MAX);
        for frame in frames {
            let header = match frame.code {
                0 => None,
                _ => chunks.next().and_then(|chunk| chunk.get_mut(..size)),
            };
            let Some(header) = header else {
                found.push(None);
                continue;
            };
            let read = match whole {
                // One of them was unreadable: which, only reading one by one tells.
                Err(ReadError::Unmapped(_)) => memory.read(frame.code, header),
                result => result,
            };
            let code = self.code(process, &memory, frame.code, read.map(|()| &*header));
            self.counts.failed += u64::from(code.is_none());
            found.push(code.map(|code| code.location(&process.layout, *frame)));
        }
    }

    /// The code object at an address, from the cache where it is still the same.
    fn code(
        &mut self,
        process: &Process,
        memory: &ProcessMemory,
        address: u64,
        header: Result<&[u8], ReadError>,
    ) -> Option<Arc<Code>> {
        let key = (process.serial, address);
        let known = self.codes.get(key);
        let header = match header {
            Ok(bytes) => Header::new(&process.layout, bytes),
            // The process has ended since; what its code was, it was to the end.
            Err(ReadError::Gone) => {
                self.counts.hits += u64::from(known.is_some());
                return known;
            }
            Err(_) => return None,
        };
        if process
            .code_type
            .is_some_and(|kind| header.kind() != Some(kind))
        {
            return None;
        }
        let fingerprint = header.fingerprint()?;
        if let Some(known) = &known
            && known.fingerprint == fingerprint
        {
            self.counts.hits += 1;
            return Some(known.clone());
        }
        self.counts.misses += 1;
        self.counts.reused += u64::from(known.is_some());
        let objects = Objects {
            memory,
            layout: &process.layout,
        };
        let code = Arc::new(Code::read(&objects, fingerprint).ok()?);
        self.codes.insert(key, code.clone());
        Some(code)
    }
}

impl PythonFrames for PythonResolver {
    fn resolve(&mut self, tgid: u32, frames: &[PyFrame], found: &mut Vec<Option<PythonLocation>>) {
        self.resolve_stack(tgid, frames, found);
    }

    fn process_ended(&mut self, tgid: u32) {
        self.remove(tgid);
    }
}

/// The cache, in two generations: what was used since the last turn, and before. At a turn the older
/// one is dropped, so that of the recently used at most [`CODES_MAX`] are kept.
#[derive(Default)]
struct Codes {
    young: FxHashMap<Key, Arc<Code>>,
    old: FxHashMap<Key, Arc<Code>>,
}

impl Codes {
    fn get(&mut self, key: Key) -> Option<Arc<Code>> {
        if let Some(code) = self.young.get(&key) {
            return Some(code.clone());
        }
        let code = self.old.remove(&key)?;
        self.insert(key, code.clone());
        Some(code)
    }

    fn insert(&mut self, key: Key, code: Arc<Code>) {
        if self.young.len() >= CODES_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, code);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cache is bounded, and what is used stays in it while others pass through.
    #[test]
    fn cache_is_bounded() {
        let mut codes = Codes::default();
        let code = Arc::new(Code::empty());
        codes.insert((0, 0), code.clone());
        for address in 1..(3 * CODES_MAX as u64) {
            codes.insert((0, address), code.clone());
            assert!(codes.get((0, 0)).is_some());
            assert!(codes.young.len() + codes.old.len() <= CODES_MAX);
        }
        assert!(codes.get((0, 1)).is_none());
    }

    /// Of a process that is none, and of one that is no Python, every frame is unknown, and the
    /// process is not looked into again at once.
    #[test]
    fn unknown_processes() {
        let mut resolver = PythonResolver::new();
        let frame = PyFrame {
            code: 0x1000,
            instr: 0,
        };
        let mark = PyFrame { code: 0, instr: 0 };
        let mut found = Vec::new();
        for tgid in [u32::MAX, std::process::id()] {
            resolver.resolve_stack(tgid, &[frame, mark, frame], &mut found);
            assert!(resolver.refused.contains_key(&tgid));
        }
        assert_eq!(found, vec![None; 6]);
        assert_eq!(resolver.counts().failed, 4);
    }
}
