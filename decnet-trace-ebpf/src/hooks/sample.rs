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
};

const KERNEL_BYTES: u32 = (KERNEL_FRAMES_MAX * 8) as u32;
const USER_BYTES: u32 = (USER_FRAMES_MAX * 8) as u32;

#[perf_event]
pub(crate) fn cpu_sample(ctx: PerfEventContext) -> u32 {
    try_cpu_sample(&ctx);
    0
}

#[inline(always)]
fn try_cpu_sample(ctx: &PerfEventContext) -> Option<()> {
    let (current, target) = gate::traced(target::flags::SAMPLES)?;
    // SAFETY: the slot is this CPU's own, and a sample does not interrupt another.
    let scratch = unsafe { &mut *SAMPLE_SCRATCH.get_ptr_mut(0)? };
    let began = python::thread_state(target);
    let running = python::running(target, began);
    let (state, holds_gil) = running.unwrap_or_default();
    scratch.sample = Sample {
        header: emit::header(Kind::Sample, current),
        context: python::context(target, state),
        thread_state: state,
        flags: if holds_gil { sample_flags::GIL } else { 0 },
        ..Sample::default()
    };
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
    let user = if target.flags & target::flags::NATIVE == 0 {
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
        if running.is_none() {
            count(Counter::OtherInterpreter);
        } else if target.python != 0 {
            count(Counter::NoThreadState);
        }
        0
    } else {
        python::walk(target, state, scratch, native as usize)
    };
    // SAFETY: a field of the scratch; volatile, for the verifier to forget the number: else it goes on from here
    // for each number of frames anew.
    let python = unsafe {
        let at = ptr::addr_of_mut!(scratch.sample.python);
        at.write_volatile(python);
        at.read_volatile()
    };
    let python = u64::from(python) * size_of::<PyFrame>() as u64;
    let len = size_of::<Sample>() + mask::<0x3fff>(native + python) as usize;
    if len > size_of::<Sample>() + FRAMES_BYTES {
        return None;
    }
    scratch.sample.header.len = len as u16;
    emit::record(ptr::from_mut(scratch).cast(), len);
    Some(())
}
