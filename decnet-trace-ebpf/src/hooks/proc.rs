//! The life of processes: forks of traced ones, programs that any executes, ends of traced ones.

use core::mem::MaybeUninit;

use aya_ebpf::{
    helpers::generated::bpf_get_current_comm, macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use decnet_trace_common::{
    counter::Counter,
    event::{Kind, Proc, ProcWhat},
    target::{Target, flags},
};

use crate::{
    emit::{self, count},
    gate::{self, Current},
    maps::TARGETS,
    offsets::offset,
    read,
};

/// Replace an entry, but don't make one (Linux, include/uapi/linux/bpf.h).
const BPF_EXIST: u64 = 2;

#[btf_tracepoint(function = "sched_process_fork")]
pub(crate) fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    try_fork(&ctx);
    0
}

#[btf_tracepoint(function = "sched_process_exec")]
pub(crate) fn sched_process_exec(_: BtfTracePointContext) -> i32 {
    try_exec();
    0
}

#[btf_tracepoint(function = "sched_process_exit")]
pub(crate) fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    try_exit(&ctx);
    0
}

/// A child of a traced process is traced from its first instruction on: waiting for the user side
/// to say so would lose what it does until then.
#[inline(always)]
fn try_fork(ctx: &BtfTracePointContext) -> Option<()> {
    let current = gate::current()?;
    let child: *const u8 = ctx.arg(1);
    // SAFETY: the tracepoint's second argument is the child's `struct task_struct *`.
    let (tgid, tid): (u32, u32) = unsafe {
        (
            read::typed(child, offset!(task_tgid)),
            read::typed(child, offset!(task_pid)),
        )
    };
    if tgid != tid {
        // A thread.
        return None;
    }
    let mut target = *gate::target(current.tgid)?;
    if target.flags & flags::CHILDREN == 0 {
        return None;
    }
    target.flags |= flags::INHERITED;
    if TARGETS.insert(tgid, target, 0).is_err() {
        count(Counter::TargetsFull);
    }
    say!(ctx, "process {} forked {}", current.tgid, tgid);
    record(Current { tgid, tid }, ProcWhat::Fork, current.tgid);
    Some(())
}

/// A traced process stays traced when it executes a program, for that may be a worker of the same service: its
/// sockets are, for nothing is known of its memory any more.
#[inline(always)]
fn try_exec() -> Option<()> {
    let current = gate::current()?;
    if let Some(target) = gate::target(current.tgid) {
        let mut executed = MaybeUninit::<Target>::uninit();
        // SAFETY: a `Target` is made of integers, and holds a `u64`. (Written field by field it would be cleared by
        // a call of a function.)
        let executed = unsafe {
            emit::zero(executed.as_mut_ptr());
            executed.assume_init_mut()
        };
        executed.flags = target.executed_flags();
        let _ = TARGETS.insert(current.tgid, executed, BPF_EXIST);
    }
    record(current, ProcWhat::Exec, 0);
    Some(())
}

#[inline(always)]
fn try_exit(ctx: &BtfTracePointContext) -> Option<()> {
    let current = gate::current()?;
    let target = gate::target(current.tgid)?;
    let task: *const u8 = ctx.arg(0);
    // SAFETY: the tracepoint's first argument is the `struct task_struct *` that ends.
    let signal: u64 = unsafe { read::typed(task, offset!(task_signal)) };
    let live: i32 = read::kernel(signal, offset!(signal_live))?;
    if live != 0 {
        // Other threads of it go on. For whom one ran matters where contexts or queues are followed.
        if target.flags & (flags::LINEAGE | flags::QUEUES) != 0 {
            record(current, ProcWhat::ThreadExit, 0);
        }
        return None;
    }
    say!(ctx, "process {} ends", current.tgid);
    record(current, ProcWhat::Exit, 0);
    // Its number may soon be another's.
    let _ = TARGETS.remove(current.tgid);
    Some(())
}

#[inline(always)]
fn record(who: Current, what: ProcWhat, parent: u32) {
    let mut record = MaybeUninit::<Proc>::uninit();
    // SAFETY: a `Proc` is made of integers, and holds a `u64`.
    let record = unsafe {
        emit::zero(record.as_mut_ptr());
        record.assume_init_mut()
    };
    record.header = emit::header(Kind::Proc, who);
    record.header.len = size_of::<Proc>() as u16;
    record.what = what as u32;
    record.parent = parent;
    // SAFETY: the helper writes as many bytes as it is told, which is the field's size.
    unsafe { bpf_get_current_comm(record.comm.as_mut_ptr().cast(), record.comm.len() as u32) };
    emit::fixed(record);
}
