//! What a thread of CPython is running, from its thread state. Reads only.

use aya_ebpf::helpers::bpf_get_current_task_btf;
use decnet_trace_common::target::Target;

use crate::{offsets::offset, read};

/// The running thread's `PyThreadState*`; 0 where it has none or the process is not known well enough.
#[inline(always)]
pub(crate) fn thread_state(target: &Target) -> u64 {
    if target.thread_state == 0 {
        return 0;
    }
    // SAFETY: the helper returns the running task, and the offset is from the kernel's BTF.
    let base: u64 = unsafe {
        read::typed(
            bpf_get_current_task_btf().cast::<u8>(),
            offset!(task_fsbase),
        )
    };
    read::user(base.wrapping_add_signed(target.thread_state)).unwrap_or(0)
}

/// The `PyContext*` that the running thread has entered; 0 where unknown.
#[inline(always)]
pub(crate) fn context(target: &Target) -> u64 {
    match thread_state(target) {
        0 => 0,
        state => read::user(state + u64::from(target.context)).unwrap_or(0),
    }
}
