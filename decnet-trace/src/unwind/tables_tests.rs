#![expect(clippy::unwrap_used, reason = "a test may panic")]

use decnet_trace_common::unwind::cfa;

use super::*;
use crate::symbolize::mappings;

/// Takes what the kernel would, and looks rows up as it does.
#[derive(Default)]
struct Memory {
    chunks: FxHashMap<u32, Vec<Row>>,
    lists: FxHashMap<u32, Vec<Segment>>,
    /// Takes nothing.
    refuses: bool,
}

impl Maps for &mut Memory {
    fn write(&mut self, chunk: u32, first: usize, rows: &[Row]) -> io::Result<()> {
        if self.refuses {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let room = vec![Row::default(); decnet_trace_common::unwind::CHUNK_ROWS];
        let chunk = self.chunks.entry(chunk).or_insert(room);
        chunk[first..first + rows.len()].copy_from_slice(rows);
        Ok(())
    }

    fn set_segments(&mut self, tgid: u32, segments: &Segments) -> io::Result<()> {
        let all = segments.all[..segments.len as usize].to_vec();
        self.lists.insert(tgid, all);
        Ok(())
    }

    fn remove_segments(&mut self, tgid: u32) {
        self.lists.remove(&tgid);
    }
}

impl Memory {
    /// The row about an address of a process, which must be in a segment.
    fn find(&self, tgid: u32, address: u64) -> Option<Row> {
        let segment = self.lists[&tgid]
            .iter()
            .rfind(|segment| segment.start <= address)?;
        assert!(address < segment.end);
        let chunk = self.chunks.get(&segment.chunk)?;
        let rows = &chunk[segment.first.into()..][..segment.rows.into()];
        let pc = (address - segment.bias) as u32;
        rows.iter().rfind(|row| row.pc <= pc).copied()
    }
}

const OWN: fn() -> u32 = std::process::id;

fn own_vdso() -> Option<Mapping> {
    let mut all = mappings(OWN()).unwrap().into_iter();
    all.find(|mapping| mapping.backing == Backing::Vdso)
}

/// This process's code, over several chunks, is in its list in order, without overlaps, and each address of it
/// that is looked up has the row that its file's table has for it.
#[test]
fn own_code_is_found() {
    let mut memory = Memory::default();
    let all = mappings(OWN()).unwrap();
    let mut tables = Tables::new(&mut memory, 64 << 20, own_vdso());
    tables.set(OWN(), &all);
    let held = tables.held();
    assert_eq!((held.refused, held.left_out, held.processes), (0, 0, 1));
    assert!(held.files > 1 && held.rows > 10_000, "{held:?}");
    let list = &memory.lists[&OWN()];
    assert!(list.windows(2).all(|pair| pair[0].end <= pair[1].start));
    assert!(list.iter().all(|segment| segment.end < 1 << 63));
    let mut checked = 0;
    for mapping in &all {
        let Ok((_, path)) = locate(OWN(), mapping) else {
            continue;
        };
        let Ok(table) = Table::read(&path) else {
            continue;
        };
        let first = table.address(mapping.offset).unwrap();
        let len = mapping.range.end - mapping.range.start;
        for at in (0..len).step_by(997) {
            let row = memory.find(OWN(), mapping.range.start + at);
            assert_eq!(row, table.find((first + at) as u32), "{path:?} {at:#x}");
            checked += u32::from(row.is_some_and(|row| row.rule != cfa::GAP));
        }
    }
    assert!(checked > 1000, "{checked}");
    if let Some(vdso) = own_vdso() {
        let described = (vdso.range.start..vdso.range.end)
            .filter_map(|address| memory.find(OWN(), address))
            .any(|row| row.rule != cfa::GAP);
        assert!(described);
    }
}

/// Without room, code is in the list all the same, without rows; room is used again when its process is gone.
#[test]
fn memory_is_bounded() {
    let mut memory = Memory::default();
    let all = mappings(OWN()).unwrap();
    let memory_max = CHUNK_BYTES + 2 * SEGMENTS_BYTES;
    let mut tables = Tables::new(&mut memory, memory_max, None);
    tables.set(OWN(), &all);
    let held = tables.held();
    assert!(held.refused > 0 && held.bytes <= memory_max, "{held:?}");
    let rowless = |tables: &Tables<&mut Memory>, tgid| {
        let list: &Vec<Segment> = &tables.maps.lists[&tgid];
        list.iter().filter(|segment| segment.rows == 0).count()
    };
    assert!(rowless(&tables, OWN()) > 0);
    // A second process shares what is there; a third has no room for its list.
    tables.set(u32::MAX - 1, &all);
    tables.set(u32::MAX, &all);
    assert_eq!((tables.held().processes, tables.held().left_out), (2, 1));
    for tgid in [OWN(), u32::MAX] {
        let lack = (tgid, Lack::Memory(memory_max));
        assert!(tables.lacks().contains(&lack), "{:?}", tables.lacks());
    }
    for tgid in [OWN(), u32::MAX - 1] {
        tables.remove(tgid);
    }
    assert!(tables.maps.lists.is_empty());
    let files = tables.held().files;
    assert!(files > 0);
    while tables.evict() {}
    assert_eq!(tables.held().rows, 0);
    tables.set(OWN(), &all);
    assert_eq!(tables.held().files, files);
}

/// Where the kernel refuses, the process is named with the kernel's reason, and what was taken for its tables
/// is there for others.
#[test]
fn refusals_are_told() {
    let mut memory = Memory {
        refuses: true,
        ..Memory::default()
    };
    let mut tables = Tables::new(&mut memory, 64 << 20, None);
    tables.set(OWN(), &mappings(OWN()).unwrap());
    assert!(tables.held().refused > 0 && tables.held().rows == 0);
    let refused = io::Error::from(io::ErrorKind::OutOfMemory);
    assert_eq!(tables.lacks(), [(OWN(), Lack::refused(&refused))]);
    // Nothing of the chunks that there are is taken.
    let chunks = tables.pages.chunks();
    let all = chunks as usize * decnet_trace_common::unwind::CHUNK_ROWS;
    assert!(chunks > 0 && tables.pages.take(all, chunks).is_some());
}
