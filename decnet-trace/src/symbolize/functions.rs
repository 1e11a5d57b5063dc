//! Where the functions of a file begin, by its unwind tables: stripped files have those still. With
//! them the addresses of one unnamed function are one frame instead of as many as it has
//! instructions.

use std::{fs::File, ops::Range, path::Path};

use gimli::{BaseAddresses, EhFrameHdr, NativeEndian, Pointer};
use object::{
    Endianness,
    elf::{FileHeader64, PT_GNU_EH_FRAME, PT_LOAD},
    read::{
        ReadCache, ReadRef,
        elf::{FileHeader as _, ProgramHeader as _},
    },
};

/// The most bytes of a table that are read: some two million functions.
const TABLE_MAX: u64 = 16 << 20;

/// The beginnings of functions.
#[derive(Debug, Default)]
pub(super) struct Functions {
    /// The loadable parts of the file: offsets in it, and the address of the first.
    segments: Vec<(Range<u64>, u64)>,
    /// Addresses, sorted.
    starts: Vec<u64>,
}

impl Functions {
    /// Reads the tables of a file; what has none, or is no ELF file of our word size, has no
    /// functions. Nothing is mapped and nothing stays open.
    pub(super) fn read(path: &Path) -> Self {
        Self::try_read(path).unwrap_or_default()
    }

    fn try_read(path: &Path) -> Option<Self> {
        let data = ReadCache::new(File::open(path).ok()?);
        let header = FileHeader64::<Endianness>::parse(&data).ok()?;
        let endian = header.endian().ok()?;
        let mut functions = Self::default();
        let mut table = None;
        for segment in header.program_headers(endian, &data).ok()? {
            let address = segment.p_vaddr(endian);
            let (offset, size) = segment.file_range(endian);
            match segment.p_type(endian) {
                PT_LOAD => {
                    let range = offset..offset.checked_add(size)?;
                    functions.segments.push((range, address));
                }
                PT_GNU_EH_FRAME if size <= TABLE_MAX => table = Some((address, offset, size)),
                _ => {}
            }
        }
        let (address, offset, size) = table?;
        let bytes = (&data).read_bytes_at(offset, size).ok()?;
        let bases = BaseAddresses::default().set_eh_frame_hdr(address);
        let table = EhFrameHdr::new(bytes, NativeEndian).parse(&bases, 8).ok()?;
        let table = table.table()?;
        let mut entries = table.iter(&bases);
        while let Ok(Some((start, _))) = entries.next() {
            if let Pointer::Direct(start) = start {
                functions.starts.push(start);
            }
        }
        functions.starts.sort_unstable();
        Some(functions)
    }

    /// Where in the file the function begins that holds this offset in it; the offset itself where
    /// that is not known.
    pub(super) fn start(&self, offset: u64) -> u64 {
        let address = self
            .segments
            .iter()
            .find(|(range, _)| range.contains(&offset))
            .and_then(|(range, first)| first.checked_add(offset - range.start));
        let Some(address) = address else {
            return offset;
        };
        let after = self.starts.partition_point(|&start| start <= address);
        let start = after.checked_sub(1).map(|at| self.starts[at]);
        start
            .and_then(|start| offset.checked_sub(address - start))
            .unwrap_or(offset)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]
    use std::fs;

    use object::{Object, ObjectSection, ObjectSymbol, SectionKind};
    use proptest::prelude::*;

    use super::*;

    /// Each exported function of the C library begins where its symbol says, wherever in it one looks.
    #[test]
    fn functions_begin_where_their_symbols_say() {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let Some(path) = maps.lines().find_map(|line| {
            line.split(' ')
                .next_back()
                .filter(|path| path.contains("/libc."))
        }) else {
            eprintln!("SKIPPED: functions_begin_where_their_symbols_say: no shared C library");
            return;
        };
        let functions = Functions::read(Path::new(path));
        let bytes = fs::read(path).unwrap();
        let elf = object::File::parse(&*bytes).unwrap();
        let text = elf
            .sections()
            .find(|s| s.kind() == SectionKind::Text && s.name() == Ok(".text"))
            .unwrap();
        let delta = text.address() - text.file_range().unwrap().0;
        let mut checked = 0;
        for symbol in elf.dynamic_symbols() {
            let own = ["qsort", "printf", "getaddrinfo", "strtol"]
                .iter()
                .any(|name| symbol.name() == Ok(name));
            if own && symbol.size() > 16 {
                let start = symbol.address() - delta;
                for inside in [0, 1, symbol.size() / 2, symbol.size() - 1] {
                    assert_eq!(
                        functions.start(start + inside),
                        start,
                        "{:?}",
                        symbol.name()
                    );
                }
                checked += 1;
            }
        }
        assert!(checked >= 3, "{checked} functions");
    }

    proptest! {
        /// No file makes the reader panic, cut short or changed anywhere as it may be.
        #[test]
        fn any_file_is_survived(cut in 0usize..20_000, changes in prop::collection::vec((0usize..4096, any::<u8>()), 0..20), offset in any::<u64>()) {
            let mut bytes = fs::read("/bin/true").unwrap();
            bytes.truncate(bytes.len().saturating_sub(cut));
            for (at, value) in changes {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), bytes).unwrap();
            let _ = Functions::read(file.path()).start(offset);
        }
    }
}
