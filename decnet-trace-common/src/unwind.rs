//! Unwind tables: how the kernel side gets from a native function to its caller where that keeps no frame
//! pointer (x86-64).
//!
//! The user side makes rows of what files say in `.eh_frame`. Rows lie in chunks, which processes share;
//! each process has a list of segments, which says for each range of its code which rows are about it.

use crate::{assert_layout, pod};

/// How many rows a chunk has: 256 KiB. A power of two.
pub const CHUNK_ROWS: usize = 1 << 15;

/// The most chunks: 256 MiB of rows.
pub const CHUNKS_MAX: u32 = 1024;

/// The most segments of a process. One less than a power of two.
pub const SEGMENTS_MAX: usize = 1023;

/// The most processes with a list of segments.
pub const UNWOUND_MAX: u32 = 1024;

/// How to find the caller from an address on, up to the next row's: the frame's CFA (where the stack
/// pointer was before the call), and the caller's `rbp`. The return address lies at CFA - 8.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// The address, as the file counts them.
    pub pc: u32,
    /// The CFA's offset, in words of eight bytes; for [`cfa::PLT`] the threshold.
    pub offset: i16,
    /// One of [`cfa`], and one of [`rbp`].
    pub rule: u8,
    /// The offset of where the caller's `rbp` lies, in words of eight bytes.
    pub rbp: i8,
}

/// What the CFA is; the low four bits of [`Row::rule`].
pub mod cfa {
    /// Nothing is said of this address.
    pub const GAP: u8 = 0;
    /// `rsp` + offset
    pub const RSP: u8 = 1;
    /// `rbp` + offset
    pub const RBP: u8 = 2;
    /// What lies at `rsp` + offset.
    pub const AT_RSP: u8 = 3;
    /// What lies at `rbp` + offset.
    pub const AT_RBP: u8 = 4;
    /// In a procedure linkage table: `rsp` + 8, and 8 more from the threshold on in each 16 bytes.
    pub const PLT: u8 = 5;
    /// What lies at `rsp` + offset, where a signal's handler returns to: the return address lies behind it.
    pub const SIGNAL: u8 = 6;
    /// There is no caller: a thread begins here.
    pub const END: u8 = 7;
    /// A rule that rows cannot express.
    pub const UNSUPPORTED: u8 = 8;
    /// The bits of [`super::Row::rule`] that these are in.
    pub const MASK: u8 = 15;
}

/// Where the caller's `rbp` is; the high four bits of [`Row::rule`].
pub mod rbp {
    /// It is in `rbp` still.
    pub const SAME: u8 = 0;
    /// At CFA + offset.
    pub const AT_CFA: u8 = 1 << 4;
    /// At `rbp` + offset.
    pub const AT_RBP: u8 = 2 << 4;
    /// Not known.
    pub const LOST: u8 = 3 << 4;
    /// At `rsp` + offset.
    pub const AT_RSP: u8 = 4 << 4;
    /// The bits of [`super::Row::rule`] that these are in.
    pub const MASK: u8 = 15 << 4;
}

/// Executable addresses of a process, and the rows about them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The first address.
    pub start: u64,
    /// The address behind the last.
    pub end: u64,
    /// What to take off an address to get what [`Row::pc`] counts.
    pub bias: u64,
    /// The chunk with the rows.
    pub chunk: u32,
    /// The first row in it, which is about [`Self::start`] or an address before it.
    pub first: u16,
    /// How many rows; 0 where there are none: then frame pointers lead on.
    pub rows: u16,
}

/// The executable addresses of a process, in their order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    /// The segments; the last place stays unused, for the kernel side may read it.
    pub all: [Segment; SEGMENTS_MAX + 1],
    /// How many there are.
    pub len: u64,
}

/// A chunk of rows.
pub type Chunk = [Row; CHUNK_ROWS];

assert_layout! {
    Row = 8,
    Segment = 32,
    Segments = 32 * (SEGMENTS_MAX + 1) + 8,
}
pod!(Row, Segment, Segments);
