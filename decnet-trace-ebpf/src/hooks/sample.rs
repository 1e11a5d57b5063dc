//! CPU samples: what a traced process's thread was doing when the clock of its CPU ticked.

use core::ptr;

use aya_ebpf::{
    EbpfContext as _, bindings::BPF_F_USER_STACK, helpers::bpf_get_stack, macros::perf_event,
    programs::PerfEventContext,
};
use decnet_trace_common::{
    counter::Counter,
    event::{Kind, PyFrame, Sample, sample_flags},
    limits::{KERNEL_FRAMES_MAX, USER_FRAMES_MAX},
    target,
};

use crate::{
    emit::{self, count},
    gate,
    maps::{FRAMES_BYTES, SAMPLE_SCRATCH},
    python,
    read::mask,
    unwind,
};

const KERNEL_BYTES: u32 = (KERNEL_FRAMES_MAX * 8) as u32;
const USER_BYTES: u32 = (USER_FRAMES_MAX * 8) as u32;

#[perf_event]
pub(crate) fn cpu_sample(ctx: PerfEventContext) -> u32 {
    try_cpu_sample::<false>(&ctx);
    0
}

/// The same, with native frames by unwind tables.
#[perf_event]
pub(crate) fn cpu_sample_unwind(ctx: PerfEventContext) -> u32 {
    try_cpu_sample::<true>(&ctx);
    0
}

#[inline(always)]
fn try_cpu_sample<const TABLES: bool>(ctx: &PerfEventContext) -> Option<()> {
    let (current, target) = gate::traced(target::flags::SAMPLES)?;
    // SAFETY: the slot is this CPU's own, and a sample does not interrupt another.
    let scratch = unsafe { &mut *SAMPLE_SCRATCH.get_ptr_mut(0)? };
    let began = python::thread_state(target);
    if began == 0 && target.python != 0 {
        count(Counter::NoThreadState);
    }
    let (state, holds_gil) = python::running(target, began).unwrap_or_else(|| {
        count(Counter::OtherInterpreter);
        (0, false)
    });
    scratch.sample = Sample {
        header: emit::header(Kind::Sample, current),
        context: python::context(target, state),
        thread_state: state,
        flags: if holds_gil { sample_flags::GIL } else { 0 },
        ..Sample::default()
    };
    let state = through(&mut scratch.sample.thread_state, state);
    let frames = scratch.frames.as_mut_ptr();
    let kernel = if target.flags & target::flags::KERNEL == 0 {
        0
    } else {
        // SAFETY: the verifier bounds the writes by the sizes given.
        unsafe { bpf_get_stack(ctx.as_ptr(), frames.cast(), KERNEL_BYTES, 0) }
    };
    let kernel = if kernel < 0 {
        // A sample that interrupted user code has no kernel stack; that is no failure.
        0
    } else {
        mask::<0x3ff>(kernel as u64)
    };
    let unwound = TABLES
        && target.flags & target::flags::NATIVE != 0
        && unwind::walk(current.tgid, scratch, kernel as usize);
    let user = if unwound {
        unwind::walked(scratch)
    } else if target.flags & target::flags::NATIVE == 0 {
        0
    } else {
        // SAFETY: `kernel` is below 1,024, and the room is far larger.
        unsafe {
            bpf_get_stack(
                ctx.as_ptr(),
                frames.add(kernel as usize).cast(),
                USER_BYTES,
                u64::from(BPF_F_USER_STACK),
            )
        }
    };
    let user = if user < 0 {
        count(Counter::UserStack);
        0
    } else {
        mask::<0x3ff>(user as u64)
    };
    scratch.sample.kernel = (kernel / 8) as u16;
    scratch.sample.user = (user / 8) as u16;
    let native = mask::<0x7ff>(kernel + user);
    let python = if state == 0 {
        0
    } else {
        python::walk(target, state, scratch, native as usize)
    };
    let python = through(&mut scratch.sample.python, python);
    let python = u64::from(python) * size_of::<PyFrame>() as u64;
    let len = size_of::<Sample>() + mask::<0x3fff>(native + python) as usize;
    if len > size_of::<Sample>() + FRAMES_BYTES {
        return None;
    }
    scratch.sample.header.len = len as u16;
    emit::record(ptr::from_mut(scratch).cast(), len);
    Some(())
}

/// Writes a field of the scratch and reads it again: the verifier knows nothing of what lies in maps, and
/// forgets how the value came about. Else it goes on once for each way to it.
#[inline(always)]
fn through<T: Copy>(field: &mut T, value: T) -> T {
    let at = ptr::from_mut(field);
    // SAFETY: a reference is valid for both; volatile, for the compiler to do both.
    unsafe {
        at.write_volatile(value);
        at.read_volatile()
    }
}
