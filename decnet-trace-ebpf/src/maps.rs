//! Every map: its size, and why.

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps, HashMap, HashOfMaps, PerCpuArray, RingBuf},
    macros::btf_map,
};
use decnet_trace_common::{
    counter::COUNTERS,
    event::{Sample, SockOp, Statement},
    limits::{
        FILE_NAME_MAX, KERNEL_FRAMES_MAX, PAYLOAD_MAX, PYTHON_FRAMES_MAX, RINGS_MAX, SQLITES_MAX,
        STATEMENT_MAX, TARGETS_MAX, USER_FRAMES_MAX,
    },
    python::{FRAME_SIZE_MAX, LAYOUTS_MAX, PyLayout},
    sqlite::SqliteLayout,
    target::{Control, Target},
    unwind::{CHUNKS_MAX, Chunk, Segments, UNWOUND_MAX},
};

/// What the user side can change while the programs run. One entry of 8 bytes.
#[btf_map]
pub(crate) static CONTROL: Array<Control, 1> = Array::new();

/// The traced processes, by thread group id: 8,192 entries of 24 bytes. A machine with more Python
/// servers than that is told so by the counter `targets_full`.
#[btf_map]
pub(crate) static TARGETS: HashMap<u32, Target, { TARGETS_MAX as usize }> = HashMap::new();

/// One ring per CPU, so that no lock is shared between cores: an array of 8-byte slots which the user
/// side fills at load with rings of the size it was configured with (1 MiB each by default: at 20
/// ms between drains and 200 bytes per record, 260,000 records a second and core).
#[btf_map]
pub(crate) static RINGS: ArrayOfMaps<Ring, { RINGS_MAX as usize }> = ArrayOfMaps::new();

/// The inner map of [`RINGS`]; the size here is only the template's.
pub(crate) type Ring = RingBuf<u8, 4096>;

/// What is counted, one slot per counter and CPU.
#[btf_map]
pub(crate) static COUNTS: PerCpuArray<u64, { COUNTERS as usize }> = PerCpuArray::new();

/// Sockets on which a message head did not end with the operation that began it. An array in which the
/// socket's name chooses the entry, for a look into a hash map costs ten times as much, and one of these
/// is made for every response whose head and body are written at once. Two sockets share an entry where
/// their inode numbers are a multiple of 8,192 apart: what is lost by that is the rest of a head split in
/// two while another socket's was. 16,384 entries of 16 bytes.
#[btf_map]
pub(crate) static HEADS: Array<Head, { HEADS_MAX as usize }> = Array::new();

/// The number of entries of [`HEADS`]; a power of two.
pub(crate) const HEADS_MAX: u32 = 16384;

/// Sockets that a traced process is connecting, by their inode numbers; the low bits choose the entry. That the
/// connection is there is told in an interrupt, where the running process is anyone. Two sockets that share an
/// entry at the same time cost one its connect time. 4,096 entries of 8 bytes.
#[btf_map]
pub(crate) static CONNECTS: Array<u64, { CONNECTS_MAX as usize }> = Array::new();

/// The number of entries of [`CONNECTS`]; a power of two.
pub(crate) const CONNECTS_MAX: u32 = 4096;

/// A head that has not ended.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Head {
    /// The socket's inode number, twice, and 1 more for writes: the low bits choose the entry.
    pub(crate) key: u64,
    /// How many more bytes may be captured for it.
    pub(crate) left: u64,
}

/// Where a socket record is put together: per CPU, one for each program that may interrupt another
/// (reads, writes, the fallback). 3 × 8.4 KiB per CPU.
#[btf_map]
pub(crate) static SOCK_SCRATCH: PerCpuArray<SockScratch, 3> = PerCpuArray::new();

/// A socket record under construction. Twice the room that the payload needs, so that the verifier
/// sees any offset below the limit plus any length up to it stay inside.
#[repr(C)]
pub(crate) struct SockScratch {
    pub(crate) op: SockOp,
    pub(crate) payload: [u8; 2 * PAYLOAD_MAX],
    /// A unix socket's path stands behind the payload, wherever that ends.
    pub(crate) _room: [u8; 128],
}

/// Where the CPythons in use keep what is read of them; a target names its own. 64 entries of 40 bytes:
/// there is one for each version and build.
#[btf_map]
pub(crate) static PY_LAYOUTS: Array<PyLayout, { LAYOUTS_MAX as usize }> = Array::new();

/// Where a sample is put together, per CPU: 12 KiB, twice the room that the frames need, likewise.
#[btf_map]
pub(crate) static SAMPLE_SCRATCH: PerCpuArray<SampleScratch, 1> = PerCpuArray::new();

/// The most bytes of frames in a sample.
pub(crate) const FRAMES_BYTES: usize =
    (KERNEL_FRAMES_MAX + USER_FRAMES_MAX) * 8 + PYTHON_FRAMES_MAX * 16;

/// A sample under construction.
#[repr(C)]
pub(crate) struct SampleScratch {
    pub(crate) sample: Sample,
    pub(crate) frames: [u8; 2 * FRAMES_BYTES],
    /// A Python frame as it was read. Twice the room again: the verifier of Linux 6.1 forgets a bound that was
    /// checked on a copy of the length, and knows it by its mask alone.
    pub(crate) frame: [u8; 2 * FRAME_SIZE_MAX],
    /// What Python frames are read with.
    pub(crate) masks: [u64; 5],
}

/// Where the SQLites in use keep what is read of them; an attachment names its own. 64 entries of 8 bytes:
/// there is one for each file.
#[btf_map]
pub(crate) static SQLITE_LAYOUTS: Array<SqliteLayout, { SQLITES_MAX as usize }> = Array::new();

/// Where a step of a statement is put together, per CPU. Uprobes can be preempted, by a thread that
/// hits one too: hence four, each taken by one program at a time. 4 × 9 KiB per CPU: twice the room for
/// the text, likewise.
#[btf_map]
pub(crate) static STATEMENT_SCRATCH: PerCpuArray<StatementScratch, { STATEMENT_SLOTS as usize }> =
    PerCpuArray::new();

/// How many programs may be at work on statements on one CPU.
pub(crate) const STATEMENT_SLOTS: u32 = 4;

/// A step of a statement under construction.
#[repr(C)]
pub(crate) struct StatementScratch {
    /// Not zero while a program uses it.
    pub(crate) taken: u64,
    pub(crate) statement: Statement,
    pub(crate) text: [u8; 2 * (STATEMENT_MAX + 1) + FILE_NAME_MAX + 1],
}

/// `BPF_F_MMAPABLE`: rows are written through a mapping.
const MMAPABLE: usize = 1 << 10;

/// Rows of unwind tables: an array of 8-byte slots, which the user side fills with chunks of 256 KiB as tables
/// come, up to the memory that it was given. One slot where no tables are
/// asked for.
#[btf_map]
pub(crate) static UNWIND_CHUNKS: ArrayOfMaps<Array<Chunk, 1, MMAPABLE>, { CHUNKS_MAX as usize }> =
    ArrayOfMaps::new();

/// Where a native stack is followed, per CPU: 88 bytes.
#[btf_map]
pub(crate) static UNWIND_STATE: PerCpuArray<UnwindState, 1> = PerCpuArray::new();

/// How far a native stack was followed. In a map, for the verifier to know nothing of it; on the program's
/// stack, it would tell two ways to the same place apart by what lies there.
#[repr(C)]
pub(crate) struct UnwindState {
    pub(crate) rip: u64,
    pub(crate) rsp: u64,
    pub(crate) rbp: u64,
    /// What `rsp` was a frame before.
    pub(crate) before: u64,
    /// 1 where `rip` is a return address, else 0.
    pub(crate) behind: u64,
    /// The row about `rip`, but for its address.
    pub(crate) rule: u64,
    pub(crate) offset: i64,
    pub(crate) rbp_offset: i64,
    /// Not zero where frame pointers were followed: 1 for want of a table, 2 for want of a row.
    pub(crate) guessed: u64,
    /// What was read of the stack.
    pub(crate) word: u64,
    /// The chunk with the row, and the key of its only value.
    pub(crate) chunk: u32,
    pub(crate) zero: u32,
}

/// The native code of the processes whose stacks are followed by tables, by thread group id: 1,024 slots,
/// and 32 KiB for each process in it. One slot where no tables are asked for.
///
/// The value is an array, of one: for a structure, kernels before 6.2 take in no map but one that has the type's
/// description, which the user side's have not.
#[btf_map]
pub(crate) static UNWIND_SEGMENTS: HashOfMaps<
    u32,
    Array<[Segments; 1], 1>,
    { UNWOUND_MAX as usize },
> = HashOfMaps::new();
