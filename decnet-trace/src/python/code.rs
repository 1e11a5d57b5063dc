//! Code objects: what function a frame runs, in which file, on which line.

use std::sync::Arc;

use decnet_trace_common::event::PyFrame;

use super::{
    layout::Layout,
    line_table::Format,
    memory::Memory,
    objects::{ObjectError, Objects},
};
use crate::symbolize::PythonLocation;

/// The most bytes of a code object's header that any version has.
pub(super) const HEADER_MAX: usize = 256;

/// The longest line table that is read, in bytes.
const LINE_TABLE_MAX: u64 = 1 << 20;

/// `CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR`: its frames outlive a suspension, and while one
/// of them runs, another frame always runs it.
pub(super) const CO_SUSPENDABLE: u32 = 0x20 | 0x80 | 0x200;

/// What identifies a code object beyond its address: some fields, all of which a new object at the
/// same address would have to share to be taken for the old one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fingerprint {
    filename: u64,
    name: u64,
    line_table: u64,
    first_line: u32,
    flags: u32,
    argcount: u32,
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
    line_table: Box<[u8]>,
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
            line_table: objects
                .bytes(fingerprint.line_table, LINE_TABLE_MAX)?
                .into(),
        })
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
                Format::of_minor(minor).line(&self.line_table, self.fingerprint.first_line, offset)
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
            line_table: Box::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

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
}
