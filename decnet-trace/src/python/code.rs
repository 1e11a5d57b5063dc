//! Code objects: what function a frame runs, in which file, on which line.

use std::{hash::Hasher as _, sync::Arc};

use decnet_trace_common::event::PyFrame;
use rustc_hash::FxHasher;

use super::{
    layout::Layout,
    line_table::Format,
    memory::Memory,
    objects::{ObjectError, Objects},
};
use crate::symbolize::PythonLocation;

/// The most bytes of a code object's header that any version has.
pub(super) const HEADER_MAX: usize = 256;

/// The longest line table that is read, in bytes. Code with a longer one keeps its name, and has no lines.
const LINE_TABLE_MAX: u64 = 1 << 20;

/// How many pieces of content tell code objects apart that have no version.
pub(super) const PIECES: usize = 3;

/// The most bytes of such a piece.
pub(super) const PIECE_MAX: usize = 64;

/// `CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR`: its frames outlive a suspension, and while one
/// of them runs, another frame always runs it.
pub(super) const CO_SUSPENDABLE: u32 = 0x20 | 0x80 | 0x200;

/// What identifies a code object beyond its address: some fields, all of which a new object at the
/// same address would have to share to be taken for the old one. A program that makes code in a loop gets
/// the same blocks of memory again and again; so something of the content is among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fingerprint {
    filename: u64,
    name: u64,
    line_table: u64,
    first_line: u32,
    flags: u32,
    argcount: u32,
    /// `co_version`, which is another one for each object; else a hash of [`Fingerprint::pieces`].
    content: u64,
}

impl Fingerprint {
    /// Whether the header says nothing of the content.
    pub(super) const fn lacks_content(&self) -> bool {
        self.content == 0
    }

    /// The addresses and lengths of what then tells of it: of the name and the file, the length, the hash and,
    /// where they are ASCII, the first characters; of the line table, the length and the first bytes. All
    /// of it lies in the blocks of memory that the shortest objects of these types take.
    pub(super) fn pieces(&self, layout: &Layout) -> [(u64, usize); PIECES] {
        let piece = |object: u64, start: u32, data: u32| {
            // The allocator rounds up to 16 bytes, and each has a last byte of 0.
            let end = (data + 1).next_multiple_of(16);
            let size = (end.saturating_sub(start) as usize).min(PIECE_MAX);
            (object.wrapping_add(u64::from(start)), size)
        };
        let string = |object| piece(object, layout.unicode_length, layout.unicode_ascii_data);
        [
            string(self.name),
            string(self.filename),
            piece(self.line_table, layout.object_var_size, layout.bytes_data),
        ]
    }

    /// Notes what the pieces hold.
    pub(super) fn set_content<'a>(&mut self, pieces: impl Iterator<Item = &'a [u8]>) {
        let mut hasher = FxHasher::default();
        pieces.for_each(|piece| hasher.write(piece));
        self.content = hasher.finish();
    }
}

/// The header of a code object: its bytes before the instructions.
pub(super) struct Header<'a> {
    layout: &'a Layout,
    bytes: &'a [u8],
}

impl<'a> Header<'a> {
    pub(super) fn new(layout: &'a Layout, bytes: &'a [u8]) -> Self {
        Self { layout, bytes }
    }

    /// How many bytes to read.
    pub(super) fn size(layout: &Layout) -> usize {
        (layout.code_size as usize).min(HEADER_MAX)
    }

    fn word(&self, field: u32) -> Option<u64> {
        self.bytes
            .get(field as usize..)?
            .first_chunk()
            .map(|bytes| u64::from_le_bytes(*bytes))
    }

    fn int(&self, field: u32) -> Option<u32> {
        self.bytes
            .get(field as usize..)?
            .first_chunk()
            .map(|bytes| u32::from_le_bytes(*bytes))
    }

    /// The object's type.
    pub(super) fn kind(&self) -> Option<u64> {
        self.word(self.layout.object_type)
    }

    /// Whether the object is still alive. One that has died has no references (`_Py_Dealloc`), and CPython's
    /// allocator keeps the list of free blocks in their first words (`pymalloc_free`, Objects/obmalloc.c): pointers,
    /// where the number of references has 32 bits, and from 3.14 on flags above the 48th.
    pub(super) fn is_alive(&self) -> bool {
        self.word(0)
            .is_some_and(|references| references != 0 && (references >> 32) & 0xffff == 0)
    }

    /// What identifies the object.
    pub(super) fn fingerprint(&self) -> Option<Fingerprint> {
        Some(Fingerprint {
            filename: self.word(self.layout.code_filename)?,
            name: match Layout::get(self.layout.code_qualname) {
                Some(_) => self.word(self.layout.code_qualname)?,
                None => self.word(self.layout.code_name)?,
            },
            line_table: self.word(self.layout.code_linetable)?,
            first_line: self.int(self.layout.code_firstlineno)?,
            flags: self.int(self.layout.code_flags)?,
            argcount: self.int(self.layout.code_argcount)?,
            content: match Layout::get(self.layout.code_version) {
                Some(_) => u64::from(self.int(self.layout.code_version)?),
                None => 0,
            },
        })
    }
}

/// What is kept of a code object.
#[derive(Clone, Debug)]
pub(super) struct Code {
    pub(super) fingerprint: Fingerprint,
    /// `co_qualname` from 3.11 on, else `co_name`.
    name: Arc<str>,
    /// `co_filename`
    file: Arc<str>,
    /// `None` where it is too long.
    line_table: Option<Box<[u8]>>,
}

impl Code {
    /// Reads what the header leads to.
    pub(super) fn read<M: Memory>(
        objects: &Objects<'_, M>,
        fingerprint: Fingerprint,
    ) -> Result<Self, ObjectError> {
        Ok(Self {
            fingerprint,
            name: objects.string(fingerprint.name)?.into(),
            file: objects.string(fingerprint.filename)?.into(),
            line_table: match objects.bytes(fingerprint.line_table, LINE_TABLE_MAX) {
                Ok(table) => Some(table.into()),
                Err(ObjectError::TooLong) => None,
                Err(error) => return Err(error),
            },
        })
    }

    /// How much memory it takes, in bytes, about.
    pub(super) fn size(&self) -> usize {
        let table = self.line_table.as_ref().map_or(0, |table| table.len());
        size_of::<Self>() + self.name.len() + self.file.len() + table
    }

    /// Where a frame of this code is.
    pub(super) fn location(&self, layout: &Layout, frame: PyFrame) -> PythonLocation {
        PythonLocation {
            name: self.name.clone(),
            file: self.file.clone(),
            line: self.line(layout, frame),
            first_line: self.fingerprint.first_line,
        }
    }

    /// The line that a frame of this code is on; 0 where the code there belongs to none.
    ///
    /// As in CPython's `PyFrame_GetLineNumber`, the instruction is the one that runs (or, in 3.11 and
    /// 3.12, the last unit of it), so the line is that of a call while the call lasts.
    fn line(&self, layout: &Layout, frame: PyFrame) -> u32 {
        let Some(line_table) = &self.line_table else {
            return 0;
        };
        let minor = layout.minor();
        let offset = match Layout::get(layout.code_instructions) {
            Some(instructions) => frame
                .instr
                .wrapping_sub(frame.code.wrapping_add(instructions))
                .cast_signed(),
            None => {
                // `f_lasti` is an `int`; 3.10 counts in units of two bytes.
                let unit = if minor >= 10 { 2 } else { 1 };
                i64::from((frame.instr as u32).cast_signed()) * unit
            }
        };
        match u32::try_from(offset) {
            Ok(offset) => {
                Format::of_minor(minor).line(line_table, self.fingerprint.first_line, offset)
            }
            // Before the first instruction: the frame is being set up.
            Err(_) if offset < 0 => self.fingerprint.first_line,
            Err(_) => 0,
        }
    }

    /// A code object without anything.
    #[cfg(test)]
    pub(super) fn empty() -> Self {
        Self {
            fingerprint: Fingerprint::default(),
            name: "".into(),
            file: "".into(),
            line_table: Some(Box::default()),
        }
    }

    /// One with a line table of so many bytes.
    #[cfg(test)]
    pub(super) fn with_table(bytes: usize) -> Self {
        Self {
            line_table: Some(vec![0; bytes].into()),
            ..Self::empty()
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]
    use super::{super::memory::tests::Image, *};

    /// Until 3.10 the instruction is an `int`: -1 is a frame that has not begun, in the four bytes
    /// that the kernel side hands over as in eight.
    #[test]
    fn frames_that_have_not_begun() {
        let mut code = Code::empty();
        code.fingerprint.first_line = 7;
        for minor in 8..=10 {
            for instr in [u64::MAX, u64::from(u32::MAX)] {
                let frame = PyFrame {
                    code: 0x1000,
                    instr,
                };
                assert_eq!(code.line(Layout::of_minor(minor).unwrap(), frame), 7);
            }
        }
        let frame = PyFrame {
            code: 0x1000,
            instr: 0x1000,
        };
        assert_eq!(code.line(Layout::of_minor(11).unwrap(), frame), 7);
    }

    /// An object that has died is told by its first word: no references, or a pointer to the next free block.
    #[test]
    fn the_dead_are_told() {
        for minor in 8..=15 {
            let layout = Layout::of_minor(minor).unwrap();
            let is_alive = |references: u64| {
                let mut bytes = [0; HEADER_MAX];
                bytes[..8].copy_from_slice(&references.to_le_bytes());
                Header::new(layout, &bytes).is_alive()
            };
            // One reference, many, an immortal object's of 3.12 and of 3.14, where it is static too.
            for references in [1, 40_000, 0xffff_ffff, 3 << 30, 3 << 30 | 4 << 48] {
                assert!(is_alive(references), "3.{minor}: {references:#x}");
            }
            for pointer in [0, 0x7f12_3456_7890, 0x5612_3456_7890] {
                assert!(!is_alive(pointer), "3.{minor}: {pointer:#x}");
            }
        }
    }

    /// A code object whose line table is too long keeps its name and its first line, and has no line; one
    /// whose strings are none is not read.
    #[test]
    fn long_tables_cost_the_lines_alone() {
        let layout = Layout::of_minor(12).unwrap();
        let mut bytes = vec![0u8; 0x100];
        let mut set = |at: usize, value: u64| {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        };
        // A string "f", and a table that is longer than any that is read.
        set(layout.unicode_length as usize, 1);
        let state = layout.unicode_compact_mask
            | layout.unicode_ascii_mask
            | 1 << layout.unicode_kind_mask.trailing_zeros();
        set(layout.unicode_state as usize, u64::from(state));
        set(layout.unicode_ascii_data as usize, u64::from(b'f'));
        set(0x80 + layout.object_var_size as usize, LINE_TABLE_MAX + 1);
        let memory = Image(vec![(0x1000, bytes)]);
        let objects = Objects {
            memory: &memory,
            layout,
        };
        let fingerprint = Fingerprint {
            name: 0x1000,
            filename: 0x1000,
            line_table: 0x1080,
            first_line: 7,
            ..Fingerprint::default()
        };
        let code = Code::read(&objects, fingerprint).unwrap();
        let frame = PyFrame {
            code: 0x5000,
            instr: 0x5100,
        };
        let found = code.location(layout, frame);
        assert_eq!((&*found.name, found.line, found.first_line), ("f", 0, 7));
        let garbage = Fingerprint {
            name: 0x1080,
            ..fingerprint
        };
        assert!(Code::read(&objects, garbage).is_err());
    }

    /// What is read of the content lies within the blocks of the shortest objects, in every version.
    #[test]
    fn pieces_are_short() {
        for minor in 8..=15 {
            let layout = Layout::of_minor(minor).unwrap();
            let pieces = Fingerprint::default().pieces(layout);
            for (start, size) in pieces {
                assert_eq!(start, 16, "3.{minor}");
                assert!((24..=PIECE_MAX).contains(&size), "3.{minor}: {size}");
                assert_eq!((start as usize + size) % 16, 0, "3.{minor}");
            }
        }
    }
}
