//! The first call of every hook: may it do anything at all, and for this process?

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use decnet_trace_common::target::Target;

use crate::maps::{CONTROL, TARGETS};

/// Who runs.
#[derive(Clone, Copy)]
pub(crate) struct Current {
    pub(crate) tgid: u32,
    pub(crate) tid: u32,
}

/// The running thread, unless the kill bit is set.
#[inline(always)]
pub(crate) fn current() -> Option<Current> {
    if CONTROL.get(0)?.kill != 0 {
        return None;
    }
    let id = bpf_get_current_pid_tgid();
    Some(Current {
        tgid: (id >> 32) as u32,
        tid: id as u32,
    })
}

/// The running thread and what is known of its process, if that is traced for one of `purposes`
/// (a set of `target::flags`) and the kill bit is not set.
#[inline(always)]
pub(crate) fn traced(purposes: u32) -> Option<(Current, &'static Target)> {
    let current = current()?;
    let target = target(current.tgid)?;
    if target.flags & purposes == 0 {
        return None;
    }
    Some((current, target))
}

/// What is known of a process, if it is traced.
#[inline(always)]
pub(crate) fn target(tgid: u32) -> Option<&'static Target> {
    // SAFETY: the user side replaces entries whole and rarely; a hook that reads one while it is
    // replaced sees the old fields or the new ones, and either is good for one record.
    unsafe { TARGETS.get(tgid) }
}
