//! The tables in the kernel's hands: one for each file, shared by the processes that map it, and for each
//! process the list of its code.

use std::{collections::hash_map::Entry, io, ops::Range};

use decnet_trace_common::unwind::{CHUNKS_MAX, Row, SEGMENTS_MAX, Segment, Segments, UNWOUND_MAX};
use rustc_hash::{FxHashMap, FxHashSet};
use tracing::debug;

use super::{
    lack::{Lack, Lacks},
    pages::{Pages, Run},
    rows::{NoTable, Table},
};
use crate::{
    bpf::unwind::{CHUNK_BYTES, SEGMENTS_BYTES, UnwindMaps},
    symbolize::{Backing, FileId, Mapping, locate},
};

/// The most files whose tables are known, or of which it is known that they have none.
const FILES_MAX: usize = 4096;

/// Where tables and lists go.
pub(super) trait Maps {
    /// Writes rows into a chunk.
    fn write(&mut self, chunk: u32, first: usize, rows: &[Row]) -> io::Result<()>;
    /// Puts in a process's list.
    fn set_segments(&mut self, tgid: u32, segments: &Segments) -> io::Result<()>;
    /// Takes it out.
    fn remove_segments(&mut self, tgid: u32);
}

impl Maps for UnwindMaps {
    fn write(&mut self, chunk: u32, first: usize, rows: &[Row]) -> io::Result<()> {
        Self::write(self, chunk, first, rows)
    }

    fn set_segments(&mut self, tgid: u32, segments: &Segments) -> io::Result<()> {
        Self::set_segments(self, tgid, segments)
    }

    fn remove_segments(&mut self, tgid: u32) {
        Self::remove_segments(self, tgid);
    }
}

/// A file with code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    File(FileId),
    /// The same in every process.
    Vdso,
}

/// What is known of a file.
#[derive(Debug)]
struct Module {
    /// Its parts with code, by which offsets become addresses; without rows.
    shape: Table,
    /// Where its rows are, in the order of their addresses.
    pieces: Vec<Piece>,
    rows: usize,
    /// How many processes map it.
    users: usize,
    used: u64,
}

/// Rows that lie in one run.
#[derive(Clone, Copy, Debug)]
struct Piece {
    run: Run,
    rows: usize,
    /// The address of the first one.
    pc: u32,
}

/// What is held, and what could not be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Processes with a list.
    pub processes: u64,
    /// Files with a table.
    pub files: u64,
    /// Rows of these tables.
    pub rows: u64,
    /// The kernel's memory for all of this, in bytes.
    pub bytes: u64,
    /// Files that have no table, or none that can be read.
    pub without: u64,
    /// Times that a table found no room.
    pub refused: u64,
    /// Rows that the tables lack because they cannot be expressed.
    pub unsupported: u64,
    /// Processes left out, and parts of processes' code, because there was no room for them.
    pub left_out: u64,
}

/// The tables and lists.
pub(super) struct Tables<M> {
    maps: M,
    pages: Pages,
    modules: FxHashMap<Key, Module>,
    processes: FxHashMap<u32, FxHashSet<Key>>,
    /// At most so many bytes of the kernel's memory.
    memory: u64,
    /// Counts up with each use of a file.
    clock: u64,
    vdso: Option<Mapping>,
    segments: Box<Segments>,
    held: Held,
    lacks: Lacks,
}

impl<M: Maps> Tables<M> {
    /// None yet; `vdso` is where this process has it.
    pub(super) fn new(maps: M, memory: u64, vdso: Option<Mapping>) -> Self {
        Self {
            maps,
            pages: Pages::default(),
            modules: FxHashMap::default(),
            processes: FxHashMap::default(),
            memory,
            clock: 0,
            vdso,
            segments: Box::new(Segments {
                len: 0,
                all: [Segment::default(); SEGMENTS_MAX + 1],
            }),
            held: Held::default(),
            lacks: Lacks::default(),
        }
    }

    /// Which processes lack tables, and why.
    pub(super) fn lacks(&self) -> &[(u32, Lack)] {
        self.lacks.all()
    }

    /// What is held now.
    pub(super) fn held(&self) -> Held {
        let loaded = || self.modules.values().filter(|module| module.rows > 0);
        let processes = self.processes.len() as u64;
        Held {
            processes,
            files: loaded().count() as u64,
            rows: loaded().map(|module| module.rows as u64).sum(),
            bytes: u64::from(self.pages.chunks()) * CHUNK_BYTES + processes * SEGMENTS_BYTES,
            without: (self.modules.len() - loaded().count()) as u64,
            unsupported: loaded().map(|module| module.shape.unsupported as u64).sum(),
            ..self.held
        }
    }

    /// Tells the kernel side what code a process has mapped, and loads the tables for it that are not there.
    /// What finds no room is followed by frame pointers.
    pub(super) fn set(&mut self, tgid: u32, mappings: &[Mapping]) {
        let first = !self.processes.contains_key(&tgid);
        if first {
            let lists = self.processes.len() as u64 + 1;
            let bytes = u64::from(self.pages.chunks()) * CHUNK_BYTES + lists * SEGMENTS_BYTES;
            let is_full = lists > u64::from(UNWOUND_MAX);
            if is_full || bytes > self.memory {
                self.held.left_out += 1;
                let lack = match is_full {
                    true => Lack::Processes,
                    false => Lack::Memory(self.memory),
                };
                self.lacks.add(tgid, lack);
                return;
            }
            self.processes.insert(tgid, FxHashSet::default());
        }
        // The largest first: where memory is short, it goes to the code that most of the time is spent in,
        // the interpreter's. Its own file is first in the order of addresses, as a rule.
        let mut order: Vec<usize> = (0..mappings.len()).collect();
        let size = |at: &usize| mappings[*at].range.end - mappings[*at].range.start;
        order.sort_by_key(|at| std::cmp::Reverse(size(at)));
        let mut keys = vec![None; mappings.len()];
        let mut wanted = FxHashSet::default();
        for at in order {
            let key = self.module(tgid, &mappings[at], &mut wanted);
            keys[at] = key;
        }
        let mut all = Vec::new();
        for (mapping, key) in mappings.iter().zip(&keys) {
            let module = key.as_ref().and_then(|key| self.modules.get(key));
            place(mapping, module, &mut all);
        }
        if all.len() > SEGMENTS_MAX {
            self.held.left_out += (all.len() - SEGMENTS_MAX) as u64;
            self.lacks.add(tgid, Lack::Segments);
            all.truncate(SEGMENTS_MAX);
        }
        self.segments.len = all.len() as u64;
        self.segments.all[..all.len()].copy_from_slice(&all);
        if let Err(error) = self.maps.set_segments(tgid, &self.segments) {
            debug!("no unwind tables for pid {tgid}: {error}");
            self.held.left_out += 1;
            self.lacks.add(tgid, Lack::refused(&error));
        }
        // Only now does nobody use those that it no longer maps.
        let before = self.processes.insert(tgid, wanted).unwrap_or_default();
        self.release(before);
    }

    /// Lets go of a process.
    pub(super) fn remove(&mut self, tgid: u32) {
        if let Some(keys) = self.processes.remove(&tgid) {
            self.maps.remove_segments(tgid);
            self.release(keys);
        }
    }

    fn release(&mut self, keys: FxHashSet<Key>) {
        for key in keys {
            if let Some(module) = self.modules.get_mut(&key) {
                module.users -= 1;
            }
        }
    }

    /// The file behind a mapping, its table loaded if that can be; the process uses it from now on.
    fn module(&mut self, tgid: u32, mapping: &Mapping, used: &mut FxHashSet<Key>) -> Option<Key> {
        let (key, path) = match &mapping.backing {
            Backing::Anonymous => return None,
            Backing::Vdso => (Key::Vdso, None),
            Backing::File { .. } => {
                let (file, path) = locate(tgid, mapping).ok()?;
                (Key::File(file), Some(path))
            }
        };
        self.clock += 1;
        if !self.modules.contains_key(&key) {
            if self.modules.len() >= FILES_MAX && !self.evict() {
                self.held.refused += 1;
                self.lacks.add(tgid, Lack::Files(FILES_MAX));
                return None;
            }
            let table = match &path {
                Some(path) => Table::read(path),
                None => self.vdso_table(),
            };
            let module = match self.load(table, mapping) {
                Ok(module) => module,
                Err(lack) => {
                    self.held.refused += 1;
                    self.lacks.add(tgid, lack);
                    return None;
                }
            };
            self.modules.insert(key, module);
        }
        let Entry::Occupied(mut entry) = self.modules.entry(key) else {
            return None;
        };
        let module = entry.get_mut();
        module.used = self.clock;
        module.users += usize::from(used.insert(key));
        Some(key)
    }

    /// Hands a table to the kernel side.
    ///
    /// # Errors
    ///
    /// When there is no room, or the kernel refuses.
    fn load(&mut self, table: Result<Table, NoTable>, mapping: &Mapping) -> Result<Module, Lack> {
        let mut table = table.unwrap_or_else(|why| {
            debug!("{:?} {why}", mapping.backing);
            Table::default()
        });
        let rows = std::mem::take(&mut table.rows);
        let mut module = Module {
            shape: table,
            pieces: Vec::new(),
            rows: rows.len(),
            users: 0,
            used: 0,
        };
        let runs = loop {
            let lists = self.processes.len() as u64 * SEGMENTS_BYTES;
            let chunks = self.memory.saturating_sub(lists) / CHUNK_BYTES;
            let chunks = chunks.min(CHUNKS_MAX.into()) as u32;
            match self.pages.take(rows.len(), chunks) {
                Some(runs) => break runs,
                None if self.evict() => {}
                None => return Err(Lack::Memory(self.memory)),
            }
        };
        let mut rest = rows.as_slice();
        for (at, &run) in runs.iter().enumerate() {
            let (part, behind) = rest.split_at(rest.len().min(run.rows()));
            rest = behind;
            if let Err(error) = self.maps.write(run.chunk, run.first_row(), part) {
                debug!("no unwind table for {:?}: {error}", mapping.backing);
                // Of this file nothing is in use.
                for &run in &runs[at..] {
                    self.pages.give_back(run);
                }
                self.give_back(&module);
                return Err(Lack::refused(&error));
            }
            module.pieces.push(Piece {
                run,
                rows: part.len(),
                pc: part.first().map_or(0, |row| row.pc),
            });
        }
        Ok(module)
    }

    /// Forgets the file that no process has mapped for the longest time; whether there was one.
    fn evict(&mut self) -> bool {
        let oldest = self
            .modules
            .iter()
            .filter(|(_, module)| module.users == 0)
            .min_by_key(|(_, module)| module.used)
            .map(|(&key, _)| key);
        let Some(module) = oldest.and_then(|key| self.modules.remove(&key)) else {
            return false;
        };
        self.give_back(&module);
        true
    }

    fn give_back(&mut self, module: &Module) {
        for piece in &module.pieces {
            self.pages.give_back(piece.run);
        }
    }

    /// The vDSO's table, from where this process has it.
    fn vdso_table(&self) -> Result<Table, NoTable> {
        let mapping = self.vdso.as_ref().ok_or(NoTable::Absent)?;
        let len = (mapping.range.end - mapping.range.start) as usize;
        // SAFETY: the kernel maps the vDSO into this process, readable, for as long as it lives, and nobody
        // writes to it; the range is from /proc/self/maps.
        let bytes =
            unsafe { std::slice::from_raw_parts(mapping.range.start as usize as *const u8, len) };
        Table::parse(bytes)
    }
}

/// Adds a mapping's segments to a process's, which are in the order of their addresses.
fn place(mapping: &Mapping, module: Option<&Module>, all: &mut Vec<Segment>) {
    let Range { start, end } = mapping.range;
    // The page of old system calls lies where the kernel is, and the kernel side's search ends below.
    if end > i64::MAX as u64 {
        return;
    }
    let address = module
        .filter(|module| !module.pieces.is_empty())
        .and_then(|module| Some((module, module.shape.address(mapping.offset)?)));
    let Some((module, address)) = address else {
        // Side by side or not: what lies between two without tables has none either.
        match all.last_mut() {
            Some(last) if last.rows == 0 => last.end = end,
            _ => all.push(Segment {
                start,
                end,
                ..Segment::default()
            }),
        }
        return;
    };
    let bias = start.wrapping_sub(address);
    let last = address.saturating_add(end - start);
    for (at, piece) in module.pieces.iter().enumerate() {
        let next = module.pieces.get(at + 1);
        let from = address.max(piece.pc.into());
        let to = next.map_or(last, |next| last.min(next.pc.into()));
        if from < to {
            all.push(Segment {
                start: bias.wrapping_add(from),
                end: bias.wrapping_add(to),
                bias,
                chunk: piece.run.chunk,
                first: piece.run.first_row() as u16,
                rows: piece.rows as u16,
            });
        }
    }
}

#[cfg(test)]
#[path = "tables_tests.rs"]
mod tests;
