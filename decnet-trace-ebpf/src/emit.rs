//! Records into the CPU's ring, without waking its reader; and the counters.

use core::ptr;

use aya_ebpf::helpers::{
    bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_ringbuf_output, bpf_ringbuf_query,
};
use decnet_trace_common::{
    counter::Counter,
    event::{ABI_VERSION, Header, Kind},
};

use crate::{
    gate::Current,
    maps::{COUNTS, RINGS},
    offsets::RING_WAKE_BYTES,
};

const BPF_RB_NO_WAKEUP: u64 = 1;
const BPF_RB_FORCE_WAKEUP: u64 = 2;
const BPF_RB_AVAIL_DATA: u64 = 0;

/// How many records pass between two looks at how full the ring is.
const FULLNESS_EVERY: u64 = 64;

/// A header for a record that happens now; its length is set by [`record`].
#[inline(always)]
pub(crate) fn header(kind: Kind, current: Current) -> Header {
    Header {
        ts: now(),
        tgid: current.tgid,
        tid: current.tid,
        cpu: cpu(),
        len: 0,
        kind: kind as u8,
        version: ABI_VERSION,
    }
}

/// `CLOCK_MONOTONIC`, in nanoseconds.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: the helper takes nothing and cannot fail.
    unsafe { bpf_ktime_get_ns() }
}

/// The CPU that this runs on.
#[inline(always)]
fn cpu() -> u32 {
    // SAFETY: the helper takes nothing and cannot fail.
    unsafe { bpf_get_smp_processor_id() }
}

/// Hands `len` bytes at `data`, which begin with a [`Header`], to the CPU's ring.
///
/// The reader drains the rings on a timer. It is woken only when a look at every 64th record finds
/// its ring a quarter full: a wake-up costs more than all else that a hook does.
#[inline(always)]
pub(crate) fn record(data: *mut u8, len: usize) {
    let Some(ring) = RINGS.get(cpu()) else {
        count(Counter::NoRing);
        return;
    };
    let ring = ptr::from_ref(ring).cast_mut().cast();
    let wake = match count(Counter::Events) {
        Some(nth) if nth % FULLNESS_EVERY == 0 => {
            // SAFETY: `ring` is a ring buffer that the lookup returned.
            let waiting = unsafe { bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA) };
            if waiting > RING_WAKE_BYTES.load() {
                BPF_RB_FORCE_WAKEUP
            } else {
                BPF_RB_NO_WAKEUP
            }
        }
        _ => BPF_RB_NO_WAKEUP,
    };
    // SAFETY: the verifier proves `data` readable for `len` bytes.
    if unsafe { bpf_ringbuf_output(ring, data.cast(), len as u64, wake) } != 0 {
        count(Counter::RingFull);
    }
}

/// Hands a record of fixed size to the CPU's ring.
#[inline(always)]
pub(crate) fn fixed<T>(record: &mut T) {
    self::record(ptr::from_mut(record).cast(), size_of::<T>());
}

/// Sets a record to zero, word by word.
///
/// Left to itself the compiler calls `memset` for that, which goes byte by byte, and is a function of its
/// own: with such calls in the hooks, the verifier of Linux 5.15 came to no end in minutes.
///
/// # Safety
///
/// `record` must be writable and aligned to eight bytes, and `T` valid where all its bytes are zero.
#[inline(always)]
pub(crate) unsafe fn zero<T>(record: *mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8)) };
    for i in 0..size_of::<T>() / 8 {
        // SAFETY: as the caller promises; the word lies within the record.
        unsafe { record.cast::<u64>().add(i).write_volatile(0) };
    }
}

/// Adds one to a counter; its new value.
#[inline(always)]
pub(crate) fn count(counter: Counter) -> Option<u64> {
    let slot = COUNTS.get_ptr_mut(counter as u32)?;
    // SAFETY: the slot is this CPU's own. A program that interrupts this one may lose an increment
    // of the same counter to it; nothing else can happen.
    unsafe {
        *slot += 1;
        Some(*slot)
    }
}
