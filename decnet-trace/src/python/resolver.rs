//! From the kernel's Python frames to names, files and lines, with a bounded cache.
//!
//! Code objects die and their addresses are used again, so a cached one counts only while the
//! fields that identify it are still what they were: one read of memory for each stack, of all its
//! code objects at once.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use decnet_trace_common::event::PyFrame;
use rustc_hash::FxHashMap;

use super::{
    check::{Inspection, Inspector, PyProcess},
    code::{Code, Fingerprint, HEADER_MAX, Header, PIECE_MAX, PIECES},
    layout::Layout,
    memory::{Memory, ProcessMemory, ReadError},
    objects::Objects,
};
use crate::symbolize::{PythonFrames, PythonLocation};

/// How many code objects are kept, of all processes together: some 10 MiB as a rule,
const CODES_MAX: usize = 16_384;

/// and with long line tables no more than this, in bytes.
const CODES_BYTES_MAX: usize = 24 << 20;

/// How many processes are remembered that turned out not to be readable.
const REFUSED_MAX: usize = 1024;

/// How often a code object is read that changes meanwhile.
const TRIES: u32 = 4;

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
    /// Room for the headers of a stack's code objects, and for pieces of them,
    bytes: Vec<u8>,
    /// and for what they come to.
    seen: Vec<Seen>,
}

/// What is at a code object's address now.
#[derive(Clone, Copy)]
enum Seen {
    /// A code object.
    Code(Fingerprint),
    /// What one has left that died: what it leads to may be another's already.
    Dead(Fingerprint),
    /// The process has ended since.
    Ended,
    /// Nothing that can be read, or no code object.
    Nothing,
}

impl Seen {
    const fn fingerprint(&self) -> Option<&Fingerprint> {
        match self {
            Self::Code(fingerprint) | Self::Dead(fingerprint) => Some(fingerprint),
            Self::Ended | Self::Nothing => None,
        }
    }
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
        let (mut bytes, mut seen) = (
            std::mem::take(&mut self.bytes),
            std::mem::take(&mut self.seen),
        );
        let memory = ProcessMemory::new(tgid);
        for frames in frames.chunks(ProcessMemory::PIECES_MAX) {
            look(&process, &memory, frames, &mut bytes, &mut seen);
            for (frame, seen) in frames.iter().zip(&seen) {
                let code = self.code(&process, &memory, frame.code, *seen);
                self.counts.failed += u64::from(code.is_none() && frame.code != 0);
                found.push(code.map(|code| code.location(&process.layout, *frame)));
            }
        }
        (self.bytes, self.seen) = (bytes, seen);
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

    /// The code object at an address, from the cache where it is still the same.
    fn code(
        &mut self,
        process: &Process,
        memory: &ProcessMemory,
        address: u64,
        seen: Seen,
    ) -> Option<Arc<Code>> {
        let key = (process.serial, address);
        let known = self.codes.get(key);
        let fingerprint = match seen {
            Seen::Code(fingerprint) => fingerprint,
            Seen::Dead(fingerprint) => {
                let known = known.filter(|known| known.fingerprint == fingerprint);
                self.counts.hits += u64::from(known.is_some());
                return known;
            }
            // What its code was, it was to the end.
            Seen::Ended => {
                self.counts.hits += u64::from(known.is_some());
                return known;
            }
            Seen::Nothing => return None,
        };
        if let Some(known) = &known
            && known.fingerprint == fingerprint
        {
            self.counts.hits += 1;
            return Some(known.clone());
        }
        self.counts.misses += 1;
        self.counts.reused += u64::from(known.is_some());
        let code = Arc::new(read_whole(process, memory, address, fingerprint)?);
        self.codes.insert(key, code.clone());
        Some(code)
    }
}

/// Reads what a code object leads to, until it is still the same afterwards: else the name may be one object's
/// and the file the next one's.
fn read_whole(
    process: &Process,
    memory: &ProcessMemory,
    address: u64,
    mut fingerprint: Fingerprint,
) -> Option<Code> {
    let objects = Objects {
        memory,
        layout: &process.layout,
    };
    let frame = PyFrame {
        code: address,
        instr: 0,
    };
    let (mut bytes, mut seen) = (Vec::new(), Vec::new());
    for _ in 0..TRIES {
        let code = Code::read(&objects, fingerprint);
        look(process, memory, &[frame], &mut bytes, &mut seen);
        match seen.first()? {
            Seen::Code(now) if *now == fingerprint => return code.ok(),
            Seen::Code(now) => fingerprint = *now,
            // What was read was so to the end.
            Seen::Ended => return code.ok(),
            Seen::Dead(_) | Seen::Nothing => return None,
        }
    }
    None
}

/// Looks at what is at the addresses of frames' code objects now, by one system call for all of them, or two
/// where they have no versions; `seen` is one for each frame.
fn look(
    process: &Process,
    memory: &ProcessMemory,
    frames: &[PyFrame],
    bytes: &mut Vec<u8>,
    seen: &mut Vec<Seen>,
) {
    let size = Header::size(&process.layout);
    let codes = frames.iter().filter(|frame| frame.code != 0);
    let headers = codes.map(|frame| (frame.code, size));
    let mut headers = read_each(memory, headers, HEADER_MAX, bytes);
    seen.clear();
    seen.extend(frames.iter().map(|frame| match frame.code {
        0 => Seen::Nothing,
        _ => headers.next().map_or(Seen::Nothing, |header| match header {
            Ok(header) => process.seen(header),
            Err(error) => unread(error),
        }),
    }));
    drop(headers);
    for seen in seen.chunks_mut(ProcessMemory::PIECES_MAX / PIECES) {
        let lacking =
            |seen: &&mut Seen| seen.fingerprint().is_some_and(|code| code.lacks_content());
        let pieces: Vec<_> = (seen.iter())
            .filter_map(|seen| seen.fingerprint().copied())
            .filter(Fingerprint::lacks_content)
            .flat_map(|code| code.pieces(&process.layout))
            .collect();
        let mut read = read_each(memory, pieces.iter().copied(), PIECE_MAX, bytes);
        for seen in seen.iter_mut().filter(lacking) {
            let pieces: [_; PIECES] = std::array::from_fn(|_| read.next());
            if let Some(error) = pieces
                .iter()
                .flatten()
                .find_map(|piece| piece.as_ref().err())
            {
                *seen = unread(*error);
            } else if let Seen::Code(code) | Seen::Dead(code) = seen {
                code.set_content(pieces.into_iter().flatten().flatten());
            }
        }
    }
}

/// What it means that a code object, or what it leads to, cannot be read.
const fn unread(error: ReadError) -> Seen {
    match error {
        ReadError::Gone => Seen::Ended,
        ReadError::Denied | ReadError::Unmapped(_) => Seen::Nothing,
    }
}

/// Reads pieces of memory, at most [`ProcessMemory::PIECES_MAX`] of at most `stride` bytes, in one go; where that
/// fails, one by one, for one that is unreadable must not spoil the others.
fn read_each<'a>(
    memory: &ProcessMemory,
    pieces: impl Iterator<Item = (u64, usize)> + Clone + 'a,
    stride: usize,
    bytes: &'a mut Vec<u8>,
) -> impl Iterator<Item = Result<&'a [u8], ReadError>> {
    bytes.resize(pieces.clone().count() * stride, 0);
    let whole = memory.read_all(pieces.clone(), stride, bytes);
    let memory = *memory;
    pieces
        .zip(bytes.chunks_exact_mut(stride))
        .map(move |((address, size), chunk)| {
            let chunk = &mut chunk[..size.min(stride)];
            let read = match whole {
                Err(ReadError::Unmapped(_)) => memory.read(address, chunk),
                result => result,
            };
            read.map(|()| &*chunk)
        })
}

impl Process {
    /// What a header says.
    fn seen(&self, header: &[u8]) -> Seen {
        let header = Header::new(&self.layout, header);
        let is_code = self
            .code_type
            .is_none_or(|kind| header.kind() == Some(kind));
        match header.fingerprint() {
            Some(fingerprint) if is_code && header.is_alive() => Seen::Code(fingerprint),
            Some(fingerprint) if is_code => Seen::Dead(fingerprint),
            _ => Seen::Nothing,
        }
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
/// one is dropped, so that of the recently used at most [`CODES_MAX`] of [`CODES_BYTES_MAX`] are kept.
#[derive(Default)]
struct Codes {
    young: FxHashMap<Key, Arc<Code>>,
    /// At least what the young ones take.
    young_bytes: usize,
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
        let size = code.size();
        if self.young.len() >= CODES_MAX / 2 || self.young_bytes + size > CODES_BYTES_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += size;
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

    /// So is its memory: few long line tables take the room of many short ones.
    #[test]
    fn cache_is_bounded_in_bytes() {
        let mut codes = Codes::default();
        let code = Arc::new(Code::with_table(1 << 20));
        for address in 0..100 {
            codes.insert((0, address), code.clone());
            let kept = codes.young.values().chain(codes.old.values());
            assert!(kept.map(|code| code.size()).sum::<usize>() <= CODES_BYTES_MAX);
        }
        assert!(codes.get((0, 99)).is_some() && codes.get((0, 95)).is_some());
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
