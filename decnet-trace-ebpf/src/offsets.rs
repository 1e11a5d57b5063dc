//! Kernel struct offsets and sizes, resolved at start and constant to the verifier.

use core::{mem::offset_of, ptr};

use aya_ebpf::Global;
use decnet_trace_common::offsets::KernelOffsets;

/// Filled in by the user side before the programs are loaded.
#[unsafe(no_mangle)]
static KERNEL_OFFSETS: Global<KernelOffsets> = Global::new(ZERO);

/// The number of bytes waiting in a ring at which its reader is woken before its timer is due.
#[unsafe(no_mangle)]
pub(crate) static RING_WAKE_BYTES: Global<u64> = Global::new(256 * 1024);

/// How long a tick of the kernel's clock (a jiffy) is, in nanoseconds; 0 where that is not known.
#[unsafe(no_mangle)]
pub(crate) static TICK_NANOS: Global<u64> = Global::new(0);

const ZERO: KernelOffsets = {
    // SAFETY: the struct is made of integers, for which zero is a value.
    unsafe { core::mem::zeroed() }
};

/// Reads the offset at this position of [`KERNEL_OFFSETS`].
#[inline(always)]
pub(crate) fn at(position: usize) -> usize {
    let base: *const u8 = ptr::from_ref(&KERNEL_OFFSETS).cast();
    // SAFETY: `position` is an `offset_of!` in the struct, and its fields are `u32`. The read is
    // volatile because the value is replaced at load.
    let offset = unsafe { ptr::read_volatile(base.add(position).cast::<u32>()) };
    offset as usize
}

/// The offset of a kernel field: `offset!(sock_socket)`.
macro_rules! offset {
    ($field:ident) => {
        $crate::offsets::at(core::mem::offset_of!(
            decnet_trace_common::offsets::KernelOffsets,
            $field
        ))
    };
}
pub(crate) use offset;

// `at` takes positions that `offset_of!` made.
const _: () = assert!(offset_of!(KernelOffsets, sock_socket) == 0);
