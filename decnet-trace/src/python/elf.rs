//! The few things that are wanted from a mapped ELF file: some symbols, some sections, the segments.

use std::fs::File;

use object::{
    Endianness,
    elf::{self, FileHeader64},
    read::{
        ReadCache,
        elf::{FileHeader, ProgramHeader, SectionHeader, Sym},
    },
};

/// The most of a symbol or string table that is read, in bytes.
const TABLE_MAX: u64 = 256 << 20;

/// What was found in an ELF file. Addresses are those of the file, before relocation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Elf {
    /// The loaded segments.
    pub(crate) loads: Vec<Load>,
    /// The initial image of thread-local storage, if there is one: its size in memory and alignment.
    pub(crate) tls: Option<Tls>,
    /// The symbols asked for, in that order.
    symbols: Vec<(&'static str, Symbol)>,
    /// The sections asked for.
    sections: Vec<(&'static str, Range)>,
}

/// A loaded segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    /// Offset in the file.
    pub(crate) offset: u64,
    /// Address.
    pub(crate) address: u64,
    /// Bytes in the file.
    pub(crate) file_size: u64,
}

/// The thread-local segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tls {
    /// Bytes in memory.
    pub(crate) size: u64,
    /// Alignment.
    pub(crate) align: u64,
}

/// A symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Symbol {
    /// Its address; for a thread-local one, its offset in the thread-local segment.
    pub(crate) value: u64,
    /// Whether it is thread-local.
    pub(crate) thread_local: bool,
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// The first address.
    pub(crate) address: u64,
    /// Bytes.
    pub(crate) size: u64,
}

impl Elf {
    /// Reads what is asked for from a 64-bit little-endian ELF file for x86-64.
    pub(crate) fn read(
        file: File,
        symbols: &[&'static str],
        sections: &[&'static str],
    ) -> object::read::Result<Self> {
        let data = ReadCache::new(file);
        let data = &data;
        let header = FileHeader64::<Endianness>::parse(data)?;
        let endian = header.endian()?;
        let mut elf = Self::default();
        for segment in header.program_headers(endian, data)? {
            match segment.p_type(endian) {
                elf::PT_LOAD => elf.loads.push(Load {
                    offset: segment.p_offset(endian),
                    address: segment.p_vaddr(endian),
                    file_size: segment.p_filesz(endian),
                }),
                elf::PT_TLS => {
                    elf.tls = Some(Tls {
                        size: segment.p_memsz(endian),
                        align: segment.p_align(endian),
                    });
                }
                _ => {}
            }
        }
        let table = header.sections(endian, data)?;
        for (_, section) in table.enumerate() {
            let name = table.section_name(endian, section).unwrap_or_default();
            if let Some(wanted) = sections.iter().find(|wanted| wanted.as_bytes() == name) {
                let range = Range {
                    address: section.sh_addr(endian),
                    size: section.sh_size(endian),
                };
                elf.sections.push((wanted, range));
            }
        }
        for (_, section) in table.enumerate() {
            let kind = section.sh_type(endian);
            if (kind != elf::SHT_DYNSYM && kind != elf::SHT_SYMTAB)
                || elf.symbols.len() == symbols.len()
            {
                continue;
            }
            let strings = table.section(section.link(endian))?;
            if section.sh_size(endian) > TABLE_MAX || strings.sh_size(endian) > TABLE_MAX {
                continue;
            }
            let strings = strings.data(endian, data)?;
            let entries = section.data_as_array::<elf::Sym64<Endianness>, _>(endian, data)?;
            elf.collect_symbols(endian, entries, strings, symbols);
        }
        Ok(elf)
    }

    fn collect_symbols(
        &mut self,
        endian: Endianness,
        entries: &[elf::Sym64<Endianness>],
        strings: &[u8],
        wanted: &[&'static str],
    ) {
        for entry in entries {
            if entry.st_shndx(endian) == elf::SHN_UNDEF {
                continue;
            }
            let Some(name) = strings.get(entry.st_name(endian) as usize..) else {
                continue;
            };
            let Some(wanted) = wanted.iter().find(|wanted| {
                name.starts_with(wanted.as_bytes()) && name.get(wanted.len()) == Some(&0)
            }) else {
                continue;
            };
            if self.symbol(wanted).is_none() {
                let thread_local = entry.st_type() == elf::STT_TLS;
                self.symbols.push((
                    wanted,
                    Symbol {
                        value: entry.st_value(endian),
                        thread_local,
                    },
                ));
            }
        }
    }

    /// A symbol that was asked for.
    pub(crate) fn symbol(&self, name: &str) -> Option<Symbol> {
        self.symbols
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, symbol)| *symbol)
    }

    /// A section that was asked for.
    pub(crate) fn section(&self, name: &str) -> Option<Range> {
        self.sections
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, range)| *range)
    }

    /// What to add to the file's addresses, where `offset` of the file is mapped at `start`.
    pub(crate) fn bias(&self, start: u64, offset: u64) -> Option<u64> {
        // The kernel maps whole pages, so a segment's first page starts before the segment.
        let page = |n: u64| n & !0xfff;
        self.loads
            .iter()
            .find(|load| {
                (page(load.offset)..load.offset.saturating_add(load.file_size)).contains(&offset)
            })
            .map(|load| {
                start
                    .wrapping_sub(offset)
                    .wrapping_add(load.offset)
                    .wrapping_sub(load.address)
            })
    }

    /// The offset in the file of an address.
    pub(crate) fn file_offset(&self, address: u64) -> Option<u64> {
        self.loads.iter().find_map(|load| {
            let inside = address.checked_sub(load.address)?;
            (inside < load.file_size).then(|| load.offset.checked_add(inside))?
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]
    use std::io::{Seek, Write};

    use super::*;

    /// A variable with a name of its own, to be found in this test's executable.
    #[unsafe(no_mangle)]
    static DECNET_TRACE_ELF_TEST: u64 = 0x1122_3344_5566_7788;

    /// A symbol of this very process is found at the address it has in memory.
    #[test]
    fn finds_symbols_where_they_are() {
        let own = std::process::id();
        let exe = super::super::maps::executable(own).unwrap();
        let files = super::super::maps::mapped_files(own).unwrap();
        let mapped = files
            .iter()
            .find(|file| std::path::Path::new(&file.path) == exe)
            .unwrap();
        let elf = Elf::read(
            mapped.open(own).unwrap(),
            &["DECNET_TRACE_ELF_TEST", "absent"],
            &[".text"],
        )
        .unwrap();
        let symbol = elf.symbol("DECNET_TRACE_ELF_TEST").unwrap();
        let bias = elf.bias(mapped.start, mapped.offset).unwrap();
        assert_eq!(
            symbol.value.wrapping_add(bias),
            (&raw const DECNET_TRACE_ELF_TEST).addr() as u64
        );
        assert!(!symbol.thread_local);
        assert_eq!(elf.symbol("absent"), None);
        assert!(elf.section(".text").unwrap().size > 0);
        assert!(elf.file_offset(symbol.value).is_some());
    }

    proptest::proptest! {
        /// A file of garbage is refused, whatever it holds; so is a real one cut off or overwritten.
        #[test]
        fn survives_anything(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..4096)) {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0").unwrap();
            file.write_all(&bytes).unwrap();
            file.rewind().unwrap();
            let _ = Elf::read(file, &["a"], &[".text"]);
        }
    }
}
