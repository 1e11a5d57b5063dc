//! Which context descends from which: uprobes on CPython, attached to single processes and only while
//! they need them.
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

use crate::{emit, gate, python};

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
