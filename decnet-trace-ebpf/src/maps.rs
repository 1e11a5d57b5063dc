//! Every map: its size, and why.

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps, HashMap, LruHashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use decnet_trace_common::{
    counter::COUNTERS,
    event::{Sample, SockOp},
    limits::{
        KERNEL_FRAMES_MAX, PAYLOAD_MAX, PYTHON_FRAMES_MAX, RINGS_MAX, TARGETS_MAX, USER_FRAMES_MAX,
    },
    python::{FRAME_SIZE_MAX, LAYOUTS_MAX, PyLayout},
    target::{Control, Target},
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

/// Sockets on which a message head did not end with the operation that began it, and how many more
/// bytes may be captured for it. Least recently used entries go first: what is lost by that is the
/// rest of a head split in two while 16,384 others were. 16,384 entries of 16 bytes.
#[btf_map]
pub(crate) static HEADS: LruHashMap<HeadKey, u32, 16384> = LruHashMap::new();

/// A socket and a direction.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct HeadKey {
    pub(crate) sock: u64,
    /// 1 for writes, 0 for reads; eight bytes wide so that there is no padding.
    pub(crate) send: u64,
}

/// Where a socket record is put together: per CPU, one for each program that may interrupt another
/// (reads, writes, the fallback). 3 × 8.3 KiB per CPU.
#[btf_map]
pub(crate) static SOCK_SCRATCH: PerCpuArray<SockScratch, 3> = PerCpuArray::new();

/// A socket record under construction. Twice the room that the payload needs, so that the verifier
/// sees any offset below the limit plus any length up to it stay inside.
#[repr(C)]
pub(crate) struct SockScratch {
    pub(crate) op: SockOp,
    pub(crate) payload: [u8; 2 * PAYLOAD_MAX],
}

/// Where the CPythons in use keep what is read of them; a target names its own. 64 entries of 40 bytes:
/// there is one for each version and build.
#[btf_map]
pub(crate) static PY_LAYOUTS: Array<PyLayout, { LAYOUTS_MAX as usize }> = Array::new();

/// Where a sample is put together, per CPU: 10 KiB, twice the room that the frames need, likewise.
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
}
