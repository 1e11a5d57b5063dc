//! The threads of traced processes, listed when the user side reads the iterator.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::seq_file,
    helpers::{bpf_get_current_task_btf, generated::bpf_seq_write},
};
use decnet_trace_common::{offsets::ABSENT, target, thread::ThreadStat};

use crate::{gate, offsets::offset, read};

/// `struct bpf_iter__task` (Linux, kernel/bpf/task_iter.c): what the iterator hands over for each task.
#[repr(C)]
struct Context {
    /// Its first field is the file that is read.
    meta: *const *mut seq_file,
    /// Null at the end.
    task: *const u8,
}

/// aya has no attribute for iterators; a program's section says what it is.
#[unsafe(link_section = "iter/task")]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn list_threads(ctx: *mut c_void) -> i32 {
    try_list(ctx.cast());
    0
}

#[inline(always)]
fn try_list(ctx: *const Context) -> Option<()> {
    // SAFETY: the kernel hands the program this struct; the verifier knows the types of both pointers.
    let (meta, task) = unsafe {
        (
            ptr::addr_of!((*ctx).meta).read_volatile(),
            ptr::addr_of!((*ctx).task).read_volatile(),
        )
    };
    if task.is_null() {
        return None;
    }
    // SAFETY: `task` is the `struct task_struct *` of the iterator, and the offsets are from the kernel's
    // BTF; the user side does not load the program where one is missing.
    let stat = unsafe {
        let tgid: u32 = read::typed(task, offset!(task_tgid));
        if gate::target(tgid)?.flags & target::flags::SAMPLES == 0 {
            return None;
        }
        // Before the switches: a thread that leaves a CPU adds to them first.
        let on_cpu: u32 = read::typed(task, offset!(task_on_cpu));
        let voluntary: u64 = read::typed(task, offset!(task_nvcsw));
        let involuntary: u64 = read::typed(task, offset!(task_nivcsw));
        ThreadStat {
            tgid,
            tid: read::typed(task, offset!(task_pid)),
            thread_pointer: read::typed(task, offset!(task_fsbase)),
            switches: voluntary + involuntary,
            state: read::typed(task, offset!(task_state)),
            on_cpu: on_cpu | u32::from(gave_way(task)),
        }
    };
    // SAFETY: `meta` is the iterator's `struct bpf_iter_meta *`, which begins with the file; the helper reads
    // the record. Where it does not fit, the kernel makes room and calls again.
    unsafe {
        bpf_seq_write(
            meta.read_volatile(),
            ptr::from_ref(&stat).cast(),
            size_of::<ThreadStat>() as u32,
        );
    }
    Some(())
}

/// Whether the task would run, had not the thread that lists it now taken the CPU from it: without this, who is looked at
/// by a thread that needs a CPU would seem to wait for one more often than it does.
///
/// In one switch, the kernel notes the same time as the leaving task's queueing and as the next one's
/// arrival.
#[inline(always)]
fn gave_way(task: *const u8) -> bool {
    if offset!(task_last_queued) == ABSENT as usize || offset!(task_last_arrival) == ABSENT as usize
    {
        return false;
    }
    // SAFETY: both are `struct task_struct *`, and the offsets are from the kernel's BTF.
    unsafe {
        let queued: u64 = read::typed(task, offset!(task_last_queued));
        let arrived: u64 = read::typed(
            bpf_get_current_task_btf().cast::<u8>(),
            offset!(task_last_arrival),
        );
        queued == arrived
    }
}
