//! What a thread of CPython is running, from its thread state. Reads only.
//!
//! How the parts are found: `decnet_trace_common::python`.

use core::ptr;

use aya_ebpf::{
    bindings::pt_regs,
    helpers::{bpf_get_current_task_btf, bpf_task_pt_regs},
};
use decnet_trace_common::{
    counter::Counter,
    event::{PyFrame, sample_flags},
    limits::PYTHON_FRAMES_MAX,
    python::{ABSENT, FRAME_SIZE_MAX, PyLayout, flags},
    target::Target,
};

use crate::{
    emit::count,
    maps::{PY_LAYOUTS, SampleScratch},
    offsets::offset,
    read::{self, mask},
};

/// The running thread's `PyThreadState*`; 0 where it has none or the process is not known well enough.
#[inline(always)]
pub(crate) fn thread_state(target: &Target) -> u64 {
    if target.thread_state == 0 {
        return 0;
    }
    let pointer = thread_pointer();
    let base = if target.thread_block == 0 {
        pointer
    } else {
        match read::user(pointer + u64::from(target.thread_block)) {
            Some(block) if block != 0 => block,
            _ => return 0,
        }
    };
    read::user(base.wrapping_add_signed(target.thread_state)).unwrap_or(0)
}

/// The running thread's thread pointer.
#[inline(always)]
fn thread_pointer() -> u64 {
    // SAFETY: the helper returns the running task, and the offset is from the kernel's BTF.
    unsafe {
        read::typed(
            bpf_get_current_task_btf().cast::<u8>(),
            offset!(task_fsbase),
        )
    }
}

/// The thread state whose frames the running thread runs, out of the one that it began in
/// ([`thread_state`]), and whether it holds the GIL; `None` where it may be one of another interpreter.
#[inline(always)]
pub(crate) fn running(target: &Target, began: u64) -> Option<(u64, bool)> {
    if began == 0 {
        return Some((0, false));
    }
    let Some(layout) = layout(target) else {
        return Some((began, false));
    };
    if layout.gil != ABSENT {
        let word: u32 = read::user(began + u64::from(layout.gil)).unwrap_or(0);
        return Some((began, word & layout.gil_mask != 0));
    }
    if target.gil_holder == 0 {
        return Some((began, false));
    }
    let holder: u64 = read::user(target.gil_holder).unwrap_or(0);
    if holder == began {
        return Some((began, true));
    }
    let interpreter = |state: u64| read::user::<u64>(state + u64::from(layout.interp));
    if holder == 0 || interpreter(holder) == interpreter(began) {
        return Some((began, false));
    }
    // It is of another interpreter, and any thread may run it.
    if layout.c_frame == ABSENT {
        return None;
    }
    let c_frame: u64 = read::user(holder + u64::from(layout.c_frame))?;
    if is_on_own_stack(c_frame) {
        Some((holder, true))
    } else {
        Some((began, false))
    }
}

/// Whether an address lies on the running thread's stack: above the stack pointer and, but in the first
/// thread, below the thread pointer, for the C library puts a thread's own block above its stack.
#[inline(always)]
fn is_on_own_stack(address: u64) -> bool {
    // SAFETY: both helpers return pointers that the verifier knows; the registers are the task's own.
    let top = unsafe {
        let regs: *const pt_regs = bpf_task_pt_regs(bpf_get_current_task_btf()) as *const _;
        (*regs).rsp
    };
    let block = thread_pointer();
    address > top && (top > block || address < block)
}

/// The layout of the process's CPython.
#[inline(always)]
fn layout(target: &Target) -> Option<&'static PyLayout> {
    target
        .python
        .checked_sub(1)
        .and_then(|index| PY_LAYOUTS.get(index))
}

/// The `PyContext*` that the thread with this thread state has entered; 0 where unknown.
#[inline(always)]
pub(crate) fn context(target: &Target, thread_state: u64) -> u64 {
    if thread_state == 0 {
        return 0;
    }
    read::user(thread_state + u64::from(target.context)).unwrap_or(0)
}

/// The code object of the function that the thread with this thread state runs; 0 where unknown.
#[inline(always)]
pub(crate) fn running_code(target: &Target, thread_state: u64) -> u64 {
    if thread_state == 0 {
        return 0;
    }
    let Some(layout) = layout(target) else {
        return 0;
    };
    match innermost(layout, thread_state) {
        Some(frame) if frame != 0 => {
            let code = read::user::<u64>(frame + u64::from(layout.code)).unwrap_or(0);
            code & !u64::from(layout.code_tag)
        }
        _ => 0,
    }
}

/// Walks the Python frames of the thread with this thread state into the sample, behind `at` bytes of
/// other frames; how many there are.
#[inline(always)]
pub(crate) fn walk(
    target: &Target,
    thread_state: u64,
    scratch: &mut SampleScratch,
    at: usize,
) -> u16 {
    let Some(layout) = layout(target) else {
        return 0;
    };
    let Some(mut frame) = innermost(layout, thread_state) else {
        return broken(scratch, 0);
    };
    let size = layout.frame_size.min(FRAME_SIZE_MAX as u16);
    let lasti = layout.flags & flags::LASTI != 0;
    let instr_mask = if lasti { u64::from(u32::MAX) } else { u64::MAX };
    let code_mask = !u64::from(layout.code_tag);
    // Without owners, no byte reaches the least owner of a shim.
    let has_owner = layout.owner != ABSENT;
    let shim = if has_owner {
        layout.owner_shim.into()
    } else {
        i64::from(u16::MAX)
    };
    let no_entry = layout.entry == ABSENT;
    let entry_mask = if no_entry { 0 } else { PyFrame::ENTRY };
    // All ones where no reference count tells that a frame has returned.
    let no_count = if lasti { 0 } else { u64::MAX };
    // Through memory, of whose values the verifier knows nothing: else it goes through the loop for each set
    // of values anew.
    let values = ptr::addr_of_mut!(scratch.masks);
    // SAFETY: the field is this CPU's own; volatile, for the compiler to write and read it.
    let [instr_mask, code_mask, shim, entry_mask, no_count] = unsafe {
        values.write_volatile([instr_mask, code_mask, shim as u64, entry_mask, no_count]);
        values.read_volatile()
    };
    let shim = shim as i64;
    // One way through the loop but for its ends: whatever branches there, the verifier follows both
    // ways of in each of the rounds.
    for i in 0..PYTHON_FRAMES_MAX {
        if frame == 0 {
            return i as u16;
        }
        let size = mask::<0xff>(u64::from(size)) as u32;
        if !read::user_bytes(scratch.frame.as_mut_ptr(), size, frame) {
            return broken(scratch, i as u16);
        }
        let this = frame;
        frame = word(scratch, layout.previous);
        // All ones for a frame that runs code, zero for one of the interpreter's own: those stay in
        // the record without a code object, for they stand where C called into Python.
        let is_code = ((i64::from(byte(scratch, layout.owner)) - shim) >> 63) as u64;
        let code = word(scratch, layout.code) & code_mask & is_code;
        // What has returned leads nowhere any more.
        if (code | !is_code) == 0
            || (word(scratch, 0) | no_count) == 0
            || frame & 7 != 0
            || frame == this
        {
            return broken(scratch, i as u16);
        }
        let value = PyFrame {
            code: code | (u64::from(byte(scratch, layout.entry)) & entry_mask & is_code),
            instr: word(scratch, layout.instr) & instr_mask,
        };
        // SAFETY: `at` is below 2,048, and the room is twice what all frames together need.
        unsafe {
            scratch
                .frames
                .as_mut_ptr()
                .add(at + i * size_of::<PyFrame>())
                .cast::<PyFrame>()
                .write_unaligned(value);
        }
    }
    scratch.sample.flags |= sample_flags::PYTHON_TRUNCATED;
    count(Counter::PythonTruncated);
    PYTHON_FRAMES_MAX as u16
}

/// The address of the innermost frame; 0 if there is none.
#[inline(always)]
fn innermost(layout: &PyLayout, thread_state: u64) -> Option<u64> {
    let frame: u64 = read::user(thread_state + u64::from(layout.frame))?;
    if layout.cframe == ABSENT || frame == 0 {
        return Some(frame);
    }
    read::user(frame + u64::from(layout.cframe))
}

/// The word at this offset of the frame that was read.
#[inline(always)]
fn word(scratch: &SampleScratch, offset: u16) -> u64 {
    let offset = mask::<0x78>(u64::from(offset)) as usize;
    // SAFETY: the mask keeps the word within the frame's 128 bytes.
    unsafe { scratch.frame.as_ptr().add(offset).cast::<u64>().read() }
}

/// The byte at this offset of the frame that was read.
#[inline(always)]
fn byte(scratch: &SampleScratch, offset: u16) -> u8 {
    let offset = mask::<0x7f>(u64::from(offset)) as usize;
    // SAFETY: the mask keeps the byte within the frame's 128 bytes.
    unsafe { scratch.frame.as_ptr().add(offset).read() }
}

/// Notes that the stack could not be read to its end.
#[inline(always)]
fn broken(scratch: &mut SampleScratch, frames: u16) -> u16 {
    scratch.sample.flags |= sample_flags::PYTHON_BROKEN;
    count(Counter::PythonBroken);
    frames
}
