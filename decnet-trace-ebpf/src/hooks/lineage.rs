//! Which context descends from which, and which work goes to which thread: uprobes on CPython,
//! attached to single processes and only while they need them.
//!
//! Return probes stand on functions alone that cannot switch C stacks: `PyContext_CopyCurrent`
//! allocates an object; `SimpleQueue.get` waits for a lock.

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
    record(LineageWhat::Copied, ctx.ret());
    0
}

/// Entry of `context_tp_dealloc(PyContext *self)`.
#[uprobe]
pub(crate) fn py_context_ended(ctx: ProbeContext) -> u32 {
    if let Some(context) = ctx.arg(0) {
        record(LineageWhat::Ended, context);
    }
    0
}

/// Entry of `SimpleQueue.put` and `.put_nowait`, as CPython calls them: `(self, args, …)` with the item
/// as the first of the arguments (METH_FASTCALL | METH_KEYWORDS).
#[uprobe]
pub(crate) fn py_queue_put(ctx: ProbeContext) -> u32 {
    if let Some(args) = ctx.arg::<u64>(1)
        && let Some(item) = read::user(args)
    {
        record(LineageWhat::Put, item);
    }
    0
}

/// Return of `SimpleQueue.get` and `.get_nowait`: the item, or null with an exception set.
#[uretprobe]
pub(crate) fn py_queue_got(ctx: RetProbeContext) -> u32 {
    record(LineageWhat::Got, ctx.ret());
    0
}

#[inline(always)]
fn record(what: LineageWhat, object: u64) {
    let Some((current, target)) = gate::traced(flags::LINEAGE) else {
        return;
    };
    if object == 0 {
        return;
    }
    let mut record = Lineage {
        header: emit::header(Kind::Lineage, current),
        context: python::context(target, python::thread_state(target)),
        object,
        what: what as u32,
        reserved: 0,
    };
    record.header.len = size_of::<Lineage>() as u16;
    emit::fixed(&mut record);
}
