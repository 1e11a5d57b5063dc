//! Rows out of the `.eh_frame` of a file (Linux Standard Base, "Exception Frames"; System V ABI, AMD64
//! supplement, "DWARF Definition"). The file is anybody's: what is odd in it costs its own function.

use std::{fs::File, ops::Range, path::Path};

use decnet_trace_common::unwind::{Row, cfa, rbp};
use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, EhFrameHdr, Encoding, EndianSlice, Expression,
    NativeEndian, Operation, Pointer, RegisterRule, UnwindContext, UnwindExpression,
    UnwindSection as _, UnwindTableRow, X86_64,
};
use object::{
    Endianness,
    elf::{EM_X86_64, FileHeader64, PF_X, PT_GNU_EH_FRAME, PT_LOAD},
    read::{
        ReadCache, ReadRef,
        elf::{FileHeader as _, ProgramHeader as _},
    },
};
use thiserror::Error;

/// The most bytes of a file's `.eh_frame` that are read; those of the largest libraries have some 20 MiB.
const TABLE_MAX: u64 = 64 << 20;

/// The most bytes of an `.eh_frame_hdr`, of which the head alone is used.
const HEADER_MAX: u64 = 64;

/// The most rows of a file.
const ROWS_MAX: usize = 4 << 20;

/// The most parts that a file is loaded in.
const SEGMENTS_MAX: usize = 64;

/// Where the frame of a signal keeps the interrupted `rsp`, from `rsp` on in bytes, with `rip` behind it, and
/// `rbp`, in words (Linux, `struct rt_sigframe`): what the C library says of the code that handlers return to.
const SIGNAL_CFA: i64 = 160;
const SIGNAL_RBP: i8 = 120 / 8;

type Slice<'a> = EndianSlice<'a, NativeEndian>;

/// The table of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The parts with code: offsets in the file, and the address of the first.
    pub code: Vec<(Range<u64>, u64)>,
    /// The rows by address. The first one is about address 0; functions that are not described are gaps.
    pub rows: Vec<Row>,
    /// Rows whose rule cannot be expressed.
    pub unsupported: usize,
}

/// Why a file has no table.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum NoTable {
    /// It could not be opened.
    #[error("cannot be opened")]
    Unreadable,
    /// It is not an ELF file for x86-64.
    #[error("is no x86-64 ELF file")]
    Foreign,
    /// It has no `.eh_frame`.
    #[error("has no unwind table")]
    Absent,
    /// Its `.eh_frame` is longer than is read, or makes more rows than are kept.
    #[error("has an unwind table larger than is read")]
    TooLarge,
}

impl Table {
    /// Reads the table of a file.
    ///
    /// # Errors
    ///
    /// When there is none, or none that is read.
    pub fn read(path: &Path) -> Result<Self, NoTable> {
        let file = File::open(path).map_err(|_| NoTable::Unreadable)?;
        Self::parse(&ReadCache::new(file))
    }

    /// Reads the table of an ELF file's bytes.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub fn parse<'data>(data: impl ReadRef<'data>) -> Result<Self, NoTable> {
        let header = FileHeader64::<Endianness>::parse(data).map_err(|_| NoTable::Foreign)?;
        let endian = header.endian().map_err(|_| NoTable::Foreign)?;
        if header.e_machine.get(endian) != EM_X86_64 {
            return Err(NoTable::Foreign);
        }
        let segments = header
            .program_headers(endian, data)
            .map_err(|_| NoTable::Foreign)?;
        let mut loaded = Vec::new();
        let mut code = Vec::new();
        let mut hdr = None;
        for segment in segments {
            let address = segment.p_vaddr(endian);
            let (offset, size) = segment.file_range(endian);
            let Some(end) = offset.checked_add(size) else {
                continue;
            };
            match segment.p_type(endian) {
                PT_LOAD if loaded.len() < SEGMENTS_MAX => {
                    loaded.push((offset..end, address));
                    if segment.p_flags(endian).contains(PF_X) {
                        code.push((offset..end, address));
                    }
                }
                PT_GNU_EH_FRAME => hdr = Some((address, offset, size.min(HEADER_MAX))),
                _ => {}
            }
        }
        let (hdr_address, offset, size) = hdr.ok_or(NoTable::Absent)?;
        let bytes = data
            .read_bytes_at(offset, size)
            .map_err(|()| NoTable::Absent)?;
        let bases = BaseAddresses::default().set_eh_frame_hdr(hdr_address);
        let hdr = EhFrameHdr::new(bytes, NativeEndian)
            .parse(&bases, 8)
            .map_err(|_| NoTable::Absent)?;
        let Pointer::Direct(address) = hdr.eh_frame_ptr() else {
            return Err(NoTable::Absent);
        };
        // To the end of the part of the file that it is loaded with: its own end is marked in it.
        let (range, first) = loaded
            .iter()
            .find(|(range, first)| {
                address
                    .checked_sub(*first)
                    .is_some_and(|at| at < range.end - range.start)
            })
            .ok_or(NoTable::Absent)?;
        let start = range.start + (address - first);
        let len = range.end - start;
        if len > TABLE_MAX {
            return Err(NoTable::TooLarge);
        }
        let bytes = data
            .read_bytes_at(start, len)
            .map_err(|()| NoTable::Absent)?;
        let (rows, unsupported) = rows(bytes, address)?;
        Ok(Self {
            code,
            rows,
            unsupported,
        })
    }

    /// The address of an offset in the file, where code is loaded from there.
    pub fn address(&self, offset: u64) -> Option<u64> {
        // Parts are mapped in whole pages: what begins a part may stand in the page of another's end.
        let page = |at: u64| at & !0xfff;
        self.code
            .iter()
            .find(|(range, _)| (page(range.start)..range.end).contains(&offset))
            .map(|(range, first)| first.wrapping_add(offset).wrapping_sub(range.start))
    }

    /// The row about an address.
    pub fn find(&self, address: u32) -> Option<Row> {
        let after = self.rows.partition_point(|row| row.pc <= address);
        after.checked_sub(1).map(|at| self.rows[at])
    }
}

/// The rows of an `.eh_frame` that is loaded at an address; and how many cannot be expressed.
fn rows(bytes: &[u8], address: u64) -> Result<(Vec<Row>, usize), NoTable> {
    let section = EhFrame::new(bytes, NativeEndian);
    let bases = BaseAddresses::default().set_eh_frame(address);
    let mut context = UnwindContext::new();
    let mut entries = section.entries(&bases);
    let gap = |pc| Row {
        pc,
        rule: cfa::GAP,
        ..Row::default()
    };
    let mut all = vec![gap(0)];
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(partial) = entry else {
            continue;
        };
        let Ok(fde) = partial.parse(EhFrame::cie_from_offset) else {
            continue;
        };
        let Ok(end) = u32::try_from(fde.end_address()) else {
            continue;
        };
        let signal = fde.is_signal_trampoline();
        let encoding = fde.cie().encoding();
        // A row per address: the last one said of it holds.
        if let Ok(mut table) = fde.rows(&section, &bases, &mut context) {
            while let Ok(Some(row)) = table.next_row() {
                let Ok(pc) = u32::try_from(row.start_address()) else {
                    break;
                };
                if row.start_address() < row.end_address() {
                    all.push(compact(pc, row, &section, encoding, signal));
                }
            }
        }
        all.push(gap(end));
        if all.len() > ROWS_MAX {
            return Err(NoTable::TooLarge);
        }
    }
    // Where a function begins at the end of another, it is no gap.
    all.sort_by_key(|row| (row.pc, row.rule != cfa::GAP));
    let mut merged: Vec<Row> = Vec::with_capacity(all.len());
    for row in all {
        match merged.last_mut() {
            Some(last) if last.pc == row.pc => *last = row,
            Some(last)
                if Row {
                    pc: row.pc,
                    ..*last
                } == row => {}
            _ => merged.push(row),
        }
    }
    // A row that was replaced may equal the one before it now.
    merged.dedup_by(|row, last| {
        Row {
            pc: row.pc,
            ..*last
        } == *row
    });
    merged.shrink_to_fit();
    let unsupported = merged
        .iter()
        .filter(|row| row.rule & cfa::MASK == cfa::UNSUPPORTED)
        .count();
    Ok((merged, unsupported))
}

/// A row in few bytes.
fn compact(
    pc: u32,
    row: &UnwindTableRow<usize>,
    section: &EhFrame<Slice<'_>>,
    encoding: Encoding,
    signal: bool,
) -> Row {
    let unsupported = Row {
        pc,
        rule: cfa::UNSUPPORTED,
        ..Row::default()
    };
    if row.register(X86_64::RA) == Some(RegisterRule::Undefined) {
        return Row {
            rule: cfa::END,
            ..unsupported
        };
    }
    let found = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            let rule = match *register {
                X86_64::RSP => Some(cfa::RSP),
                X86_64::RBP => Some(cfa::RBP),
                _ => None,
            };
            rule.zip(words(*offset))
        }
        CfaRule::Expression(expression) => cfa_of(expression, section, encoding, signal),
    };
    let Some((rule, offset)) = found else {
        return unsupported;
    };
    if rule == cfa::SIGNAL {
        return Row {
            pc,
            offset,
            rule: rule | rbp::AT_RSP,
            rbp: SIGNAL_RBP,
        };
    }
    // Everything else keeps the return address where the call put it.
    if row.register(X86_64::RA) != Some(RegisterRule::Offset(-8)) {
        return unsupported;
    }
    let (rbp_rule, rbp) = match row.register(X86_64::RBP) {
        // What no instruction names keeps its value, by the ABI: it is the callee's to preserve.
        None | Some(RegisterRule::SameValue) => (rbp::SAME, 0),
        Some(RegisterRule::Offset(offset)) => match words(offset).map(i8::try_from) {
            Some(Ok(words)) => (rbp::AT_CFA, words),
            _ => (rbp::LOST, 0),
        },
        Some(RegisterRule::Expression(expression)) => {
            match operations(&expression, section, encoding).as_slice() {
                [
                    Operation::RegisterOffset {
                        register, offset, ..
                    },
                ] if *register == X86_64::RBP => match words(*offset).map(i8::try_from) {
                    Some(Ok(words)) => (rbp::AT_RBP, words),
                    _ => (rbp::LOST, 0),
                },
                _ => (rbp::LOST, 0),
            }
        }
        _ => (rbp::LOST, 0),
    };
    Row {
        pc,
        offset,
        rule: rule | rbp_rule,
        rbp,
    }
}

/// A number of bytes as words of eight.
fn words(bytes: i64) -> Option<i16> {
    (bytes % 8 == 0).then(|| i16::try_from(bytes / 8).ok())?
}

/// The rule and the offset of a CFA that is given by an expression, where it is one of those in use.
fn cfa_of(
    expression: &UnwindExpression<usize>,
    section: &EhFrame<Slice<'_>>,
    encoding: Encoding,
    signal: bool,
) -> Option<(u8, i16)> {
    use Operation::{And, Deref, Ge, Plus, RegisterOffset, Shl, UnsignedConstant};
    match operations(expression, section, encoding).as_slice() {
        [
            RegisterOffset {
                register, offset, ..
            },
            Deref {
                size: 8,
                space: false,
                ..
            },
        ] => match *register {
            X86_64::RSP if signal && *offset == SIGNAL_CFA => Some((cfa::SIGNAL, words(*offset)?)),
            X86_64::RSP => Some((cfa::AT_RSP, words(*offset)?)),
            X86_64::RBP => Some((cfa::AT_RBP, words(*offset)?)),
            _ => None,
        },
        // `rsp + 8 + (((rip & 15) >= threshold) << 3)`, which linkers write for `.plt`.
        [
            RegisterOffset {
                register: X86_64::RSP,
                offset: 8,
                ..
            },
            RegisterOffset {
                register: X86_64::RA,
                offset: 0,
                ..
            },
            UnsignedConstant { value: 15 },
            And,
            UnsignedConstant {
                value: threshold @ 0..=15,
            },
            Ge,
            UnsignedConstant { value: 3 },
            Shl,
            Plus,
        ] => Some((cfa::PLT, i16::try_from(*threshold).ok()?)),
        _ => None,
    }
}

/// The most operations of an expression that are looked at.
const OPERATIONS_MAX: usize = 16;

/// The operations of an expression; none where it is malformed.
fn operations<'a>(
    expression: &UnwindExpression<usize>,
    section: &EhFrame<Slice<'a>>,
    encoding: Encoding,
) -> Vec<Operation<Slice<'a>>> {
    let Ok(Expression(bytes)) = expression.get(section) else {
        return Vec::new();
    };
    let mut all = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() && all.len() < OPERATIONS_MAX {
        match Operation::parse(&mut rest, encoding) {
            Ok(operation) => all.push(operation),
            Err(_) => return Vec::new(),
        }
    }
    all
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;
