//! Which context descends from which, and which work passes through queues: uprobes on CPython,
//! attached to single processes and only while they need them.
//!
//! A return probe may stand on a function alone that cannot switch C stacks, as greenlets do:
//! `PyContext_CopyCurrent` does nothing but make an object.

use aya_ebpf::{
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use decnet_trace_common::{
    event::{Kind, Lineage, LineageWhat},
    target::flags,
};

use crate::{emit, gate, python, read};

/// Return of `PyContext_CopyCurrent()`: the current context is still the parent's.
#[uretprobe]
pub(crate) fn py_context_copied(ctx: RetProbeContext) -> u32 {
    record(flags::LINEAGE, LineageWhat::Copied, ctx.ret());
    0
}

/// Entry of `context_tp_dealloc(PyContext *self)`.
#[uprobe]
pub(crate) fn py_context_ended(ctx: ProbeContext) -> u32 {
    if let Some(context) = ctx.arg(0) {
        record(flags::LINEAGE, LineageWhat::Ended, context);
    }
    0
}

/// Entry of `SimpleQueue.put(self, *args)` and `.put_nowait`: `METH_FASTCALL` functions, whose second
/// argument is the array of arguments. The first of these is the item; were it named otherwise, it
/// would be one that nobody takes out.
#[uprobe]
pub(crate) fn py_queue_put(ctx: ProbeContext) -> u32 {
    if let Some(args) = ctx.arg::<u64>(1)
        && let Some(item) = read::user(args)
    {
        record(flags::QUEUES, LineageWhat::Put, item);
    }
    0
}

/// Return of `SimpleQueue.get()` and `.get_nowait`. They wait without the GIL but stay on their stack: what
/// could switch it is a signal handler alone, which CPython runs on the main thread.
#[uretprobe]
pub(crate) fn py_queue_taken(ctx: RetProbeContext) -> u32 {
    record(flags::QUEUES, LineageWhat::Taken, ctx.ret());
    0
}

#[inline(always)]
fn record(purpose: u32, what: LineageWhat, object: u64) {
    let Some((current, target)) = gate::traced(purpose) else {
        return;
    };
    if object == 0 && what != LineageWhat::Taken {
        return;
    }
    let state = python::thread_state(target);
    let (context, caller) = match what {
        LineageWhat::Taken => (0, python::running_code(target, state)),
        _ => (python::context(target, state), 0),
    };
    let mut record = Lineage {
        header: emit::header(Kind::Lineage, current),
        context,
        object,
        caller,
        what: what as u32,
        reserved: 0,
    };
    record.header.len = size_of::<Lineage>() as u16;
    emit::fixed(&mut record);
}
