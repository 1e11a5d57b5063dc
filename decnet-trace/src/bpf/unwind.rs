//! The maps that hold unwind tables. A chunk that was made stays, for other tables to use its room.
//!
//! The kernel waits, each time a map within a map is put in or taken out, until no program uses the old one:
//! some milliseconds. Rows are written to memory that is shared with the kernel side.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    ptr,
};

use aya::{
    Ebpf,
    maps::{Array, ArrayOfMaps, HashOfMaps, Map, MapData, MapError},
};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY;
use decnet_trace_common::unwind::{CHUNK_ROWS, Chunk, Row, Segments};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::load::take_map;
use crate::error::Result;

/// `BPF_F_MMAPABLE` (Linux, include/uapi/linux/bpf.h).
const MMAPABLE: u32 = 1 << 10;

/// What a chunk takes of the kernel's memory, in bytes.
pub const CHUNK_BYTES: u64 = size_of::<Chunk>() as u64;

/// What a process's list takes, in bytes.
pub const SEGMENTS_BYTES: u64 = size_of::<Segments>() as u64;

type ChunkMap = Array<MapData, Chunk>;
type SegmentsMap = Array<MapData, Segments>;

/// The maps.
pub struct UnwindMaps {
    outer: ArrayOfMaps<MapData, ChunkMap>,
    /// Those there are.
    chunks: Vec<Option<OwnedFd>>,
    segments: HashOfMaps<MapData, u32, SegmentsMap>,
}

impl UnwindMaps {
    /// Takes them from the loaded object.
    ///
    /// # Errors
    ///
    /// When it has no such maps.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            outer: take_map(ebpf, "UNWIND_CHUNKS")?,
            chunks: Vec::new(),
            segments: take_map(ebpf, "UNWIND_SEGMENTS")?,
        })
    }

    /// Writes rows into a chunk, which is made where it is not there yet. They must lie within it, and no list
    /// that is in use may name them.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn write(&mut self, chunk: u32, first: usize, rows: &[Row]) -> io::Result<()> {
        if first
            .checked_add(rows.len())
            .is_none_or(|end| end > CHUNK_ROWS)
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let at = chunk as usize;
        if self.chunks.len() <= at {
            self.chunks.resize_with(at + 1, || None);
        }
        if self.chunks[at].is_none() {
            let (map, fd) = new_array::<ChunkMap>(size_of::<Chunk>(), MMAPABLE, "UNWIND_CHUNK")?;
            self.outer.set(chunk, &map, 0).map_err(io::Error::other)?;
            self.chunks[at] = Some(fd);
        }
        match &self.chunks[at] {
            Some(map) => write_mapped(map.as_fd(), first, rows),
            None => Ok(()),
        }
    }

    /// Puts in a process's list, in place of the one that it has.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn set_segments(&mut self, tgid: u32, segments: &Segments) -> io::Result<()> {
        let (mut map, _) = new_array::<SegmentsMap>(size_of::<Segments>(), 0, "UNWIND_SEGMENTS")?;
        map.set(0, segments, 0).map_err(io::Error::other)?;
        self.segments
            .insert(tgid, &map, 0)
            .map_err(io::Error::other)
    }

    /// Takes a process's list out.
    pub fn remove_segments(&mut self, tgid: u32) {
        // It may never have had one.
        let _ = self.segments.remove(&tgid);
    }
}

/// A new map of one value, and its descriptor again.
fn new_array<M>(value: usize, flags: u32, name: &str) -> io::Result<(M, OwnedFd)>
where
    M: TryFrom<Map, Error = MapError>,
{
    let kind = BPF_MAP_TYPE_ARRAY as u32;
    let shape = aya_obj::Map::new_from_params(kind, 4, value as u32, 1, flags);
    let data = MapData::create(shape, name, None).map_err(io::Error::other)?;
    let fd = data.fd().as_fd().try_clone_to_owned()?;
    let map = Map::from_map_data(data).and_then(M::try_from);
    Ok((map.map_err(io::Error::other)?, fd))
}

/// Writes rows to a chunk's memory.
fn write_mapped(map: BorrowedFd<'_>, first: usize, rows: &[Row]) -> io::Result<()> {
    // SAFETY: a new mapping at an address of the kernel's choice; the map has as many bytes.
    let memory = unsafe {
        mmap(
            ptr::null_mut(),
            size_of::<Chunk>(),
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            map,
            0,
        )
    }?;
    // SAFETY: the rows lie within the chunk, as the only caller checks, and nobody else writes to them;
    // programs that read them meanwhile see old bytes or new ones. The mapping was made above.
    unsafe {
        ptr::copy_nonoverlapping(rows.as_ptr(), memory.cast::<Row>().add(first), rows.len());
        munmap(memory, size_of::<Chunk>())?;
    }
    Ok(())
}
