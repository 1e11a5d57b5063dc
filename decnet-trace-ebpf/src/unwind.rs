//! Native frames by unwind tables (`decnet_trace_common::unwind`), on x86-64. Reads only.
//!
//! The verifier goes through each of the rounds: whatever branches in one, it follows both ways of, and
//! whatever differs behind the loop it carries to the end of the program. Hence the arithmetic in place of
//! branches, and what is known at the end lies in memory, of whose values it knows nothing.

use core::ptr;

use aya_ebpf::{
    bindings::pt_regs,
    helpers::{bpf_get_current_task_btf, bpf_task_pt_regs, generated::bpf_map_lookup_elem},
};
use decnet_trace_common::{
    counter::Counter,
    event::sample_flags,
    limits::USER_FRAMES_MAX,
    unwind::{CHUNK_ROWS, Chunk, Row, SEGMENTS_MAX, Segment, Segments, cfa, rbp},
};

use crate::{
    emit::count,
    maps::{SampleScratch, UNWIND_CHUNKS, UNWIND_SEGMENTS, UNWIND_STATE, UnwindState},
    read::{self, mask},
};

/// The code segment of 64-bit programs (Linux, arch/x86/include/asm/segment.h: `__USER_CS`).
const USER_CS: u64 = 0x33;

/// How a frame pointer leads on: `push %rbp; mov %rsp,%rbp` has been done.
const FRAME_POINTER: Row = Row {
    pc: 0,
    offset: 2,
    rule: cfa::RBP | rbp::AT_CFA,
    rbp: -2,
};

/// The parts of a rule.
const CFA: u64 = cfa::MASK as u64;
const RBP: u64 = rbp::MASK as u64;

/// Why a frame pointer was followed: the code has no table, or its table has no row.
const NO_TABLE: u64 = 1;
const NO_ROW: u64 = 2;

/// Reads a field of the state; volatile, for the verifier to forget what was written.
macro_rules! get {
    ($state:ident.$field:ident) => {
        // SAFETY: the slot is this CPU's own, and a sample does not interrupt another.
        unsafe { ptr::addr_of!((*$state).$field).read_volatile() }
    };
}

/// Writes a field of the state.
macro_rules! set {
    ($state:ident.$field:ident, $value:expr) => {{
        let value = $value;
        // SAFETY: likewise.
        unsafe { ptr::addr_of_mut!((*$state).$field).write_volatile(value) }
    }};
}

/// Walks the native frames of the running thread into the sample, behind `at` bytes of other frames;
/// whether the process has tables. How many bytes of frames there are, [`walked`] tells.
#[inline(always)]
pub(crate) fn walk(tgid: u32, scratch: &mut SampleScratch, at: usize) -> bool {
    // SAFETY: the user side replaces lists whole; one that is replaced stays until this program ends.
    let Some([segments]) = (unsafe { UNWIND_SEGMENTS.get_value(&tgid, &0) }) else {
        count(Counter::UnwindNotReady);
        return false;
    };
    let Some(state) = UNWIND_STATE.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: both helpers return pointers that the verifier knows by their types; plain field reads, which
    // it checks. What they lead to was saved when the thread entered the kernel, by the tick at last.
    let (rip, rsp, rbp, cs) = unsafe {
        let regs = bpf_task_pt_regs(bpf_get_current_task_btf()) as *const pt_regs;
        ((*regs).rip, (*regs).rsp, (*regs).rbp, (*regs).cs)
    };
    if cs != USER_CS {
        return false;
    }
    set!(state.rip, rip);
    set!(state.rsp, rsp);
    set!(state.rbp, rbp);
    set!(state.behind, 0);
    set!(state.guessed, 0);
    for i in 0..USER_FRAMES_MAX {
        let rip = get!(state.rip);
        // A return address stands behind its call, and behind the function where the call is its last
        // instruction; an interrupted one is what it is.
        let pc = rip.wrapping_sub(get!(state.behind));
        let segment = find_segment(segments, pc);
        if pc.wrapping_sub(segment.start) >= segment.end.wrapping_sub(segment.start) {
            stop(
                scratch,
                Counter::UnwindUnmapped,
                sample_flags::NATIVE_BROKEN | sample_flags::NATIVE_UNMAPPED,
            );
            break;
        }
        push(scratch, at, i, rip);
        put_row(state, FRAME_POINTER, NO_TABLE);
        set!(state.chunk, segment.chunk);
        if segment.rows != 0
            && let Some(chunk) = chunk(state)
        {
            put_row(
                state,
                find_row(chunk, &segment, pc.wrapping_sub(segment.bias)),
                0,
            );
        }
        if get!(state.rule) & CFA == cfa::GAP.into() {
            put_row(state, FRAME_POINTER, NO_ROW);
        }
        set!(state.guessed, get!(state.guessed) | get!(state.rule) >> 8);
        let rule = get!(state.rule) & CFA;
        if rule == cfa::END.into() {
            break;
        }
        if rule == cfa::UNSUPPORTED.into() {
            stop(
                scratch,
                Counter::UnwindUnsupported,
                sample_flags::NATIVE_BROKEN,
            );
            break;
        }
        if !step(state) {
            stop(scratch, Counter::UnwindUnread, sample_flags::NATIVE_BROKEN);
            break;
        }
        // The stack grows downwards; a signal's handler may have had one of its own.
        if get!(state.rsp) <= get!(state.before) && get!(state.behind) != 0 {
            stop(scratch, Counter::UnwindAstray, sample_flags::NATIVE_BROKEN);
            break;
        }
        if get!(state.rip) == 0 {
            break;
        }
    }
    let guessed = get!(state.guessed);
    if guessed & NO_TABLE != 0 {
        count(Counter::UnwindNoTable);
    }
    if guessed & NO_ROW != 0 {
        count(Counter::UnwindNoRow);
    }
    true
}

/// How many bytes of frames were walked.
#[inline(always)]
pub(crate) fn walked(scratch: &SampleScratch) -> i64 {
    // SAFETY: a plain read; volatile for the verifier to forget what was written.
    let frames = unsafe { ptr::addr_of!(scratch.sample.user).read_volatile() };
    i64::from(frames) * 8
}

/// Goes from a frame to its caller's, by the row in the state; whether the stack could be read.
#[inline(always)]
fn step(state: *mut UnwindState) -> bool {
    let (rip, rsp, rbp) = (get!(state.rip), get!(state.rsp), get!(state.rbp));
    let offset = get!(state.offset);
    let rule = get!(state.rule) & CFA;
    set!(state.before, rsp);
    let from_rbp = among(rule, &[cfa::RBP, cfa::AT_RBP]);
    let signal = among(rule, &[cfa::SIGNAL]);
    let plt = among(rule, &[cfa::PLT]);
    // In a procedure linkage table: one word, and from the threshold on another.
    let pushed = 1 + (1 - sign((rip & 15) as i64 - offset));
    let words = (offset as u64).wrapping_add(pushed.wrapping_sub(offset as u64).wrapping_mul(plt));
    let base = rsp.wrapping_add(rbp.wrapping_sub(rsp).wrapping_mul(from_rbp));
    set!(state.rsp, base.wrapping_add(words.wrapping_mul(8)));
    if among(rule, &[cfa::AT_RSP, cfa::AT_RBP, cfa::SIGNAL]) != 0 {
        if !read(state, get!(state.rsp)) {
            return false;
        }
        set!(state.rsp, get!(state.word));
    }
    let frame = get!(state.rsp);
    // Behind the saved `rsp`, where a signal has interrupted.
    let behind = rsp.wrapping_add(words.wrapping_mul(8)).wrapping_add(16);
    let above = frame.wrapping_add(behind.wrapping_sub(frame).wrapping_mul(signal));
    if !read(state, above.wrapping_sub(8)) {
        return false;
    }
    set!(state.rip, get!(state.word));
    set!(state.behind, 1 - signal);
    let saved = get!(state.rule) & RBP;
    if saved == rbp::LOST.into() {
        set!(state.rbp, 0);
    } else if saved != rbp::SAME.into() {
        let at_rbp = among(saved >> 4, &[rbp::AT_RBP >> 4]);
        let at_rsp = among(saved >> 4, &[rbp::AT_RSP >> 4]);
        let base = frame
            .wrapping_add(rbp.wrapping_sub(frame).wrapping_mul(at_rbp))
            .wrapping_add(rsp.wrapping_sub(frame).wrapping_mul(at_rsp));
        let at = (get!(state.rbp_offset) as u64).wrapping_mul(8);
        if !read(state, base.wrapping_add(at)) {
            return false;
        }
        set!(state.rbp, get!(state.word));
    }
    true
}

/// Reads a word of the stack into the state; whether that worked.
#[inline(always)]
fn read(state: *mut UnwindState, address: u64) -> bool {
    // SAFETY: a field of this CPU's own slot.
    let word = unsafe { ptr::addr_of_mut!((*state).word) };
    read::user_bytes(word.cast(), size_of::<u64>() as u32, address)
}

/// The chunk that the state names.
#[inline(always)]
fn chunk(state: *mut UnwindState) -> Option<&'static Chunk> {
    // SAFETY: fields of this CPU's own slot; the maps are as they are declared, and what they hold stays until
    // the program ends.
    unsafe {
        let outer = ptr::from_ref(&UNWIND_CHUNKS).cast_mut().cast();
        let inner = bpf_map_lookup_elem(outer, ptr::addr_of!((*state).chunk).cast());
        if inner.is_null() {
            return None;
        }
        let found = bpf_map_lookup_elem(inner, ptr::addr_of!((*state).zero).cast());
        found.cast::<Chunk>().as_ref()
    }
}

/// 1 for a rule that is among these, else 0.
#[inline(always)]
fn among(rule: u64, these: &[u8]) -> u64 {
    let mut set = 0u64;
    for &one in these {
        set |= 1 << one;
    }
    mask::<1>(set >> (rule & 15))
}

/// Puts a row into the state.
#[inline(always)]
fn put_row(state: *mut UnwindState, row: Row, guessed: u64) {
    set!(state.rule, u64::from(row.rule) | guessed << 8);
    set!(state.offset, i64::from(row.offset));
    set!(state.rbp_offset, i64::from(row.rbp));
}

/// The last segment that begins at this address or before it; the first one where none does.
#[inline(always)]
fn find_segment(segments: &Segments, pc: u64) -> Segment {
    const STEPS: u32 = (SEGMENTS_MAX + 1).ilog2();
    let all = ptr::addr_of!(segments.all).cast::<Segment>();
    let mut found = 0;
    for step in (0..STEPS).rev() {
        let probe = mask::<{ SEGMENTS_MAX as i32 }>(found + (1 << step));
        // SAFETY: the mask keeps the segment within the list and its unused end.
        let start = unsafe { ptr::addr_of!((*all.add(probe as usize)).start).read_volatile() };
        // Addresses of user space have no sign.
        let fits = (start as i64 - 1 - pc as i64) & (probe as i64 - segments.len as i64);
        found += sign(fits) << step;
    }
    let found = mask::<{ SEGMENTS_MAX as i32 }>(found);
    // SAFETY: likewise.
    unsafe { *all.add(found as usize) }
}

/// The last row of a segment at this address or before it.
#[inline(always)]
fn find_row(chunk: &Chunk, segment: &Segment, pc: u64) -> Row {
    const STEPS: u32 = CHUNK_ROWS.ilog2();
    const LAST: i32 = CHUNK_ROWS as i32 - 1;
    let rows = chunk.as_ptr();
    let first = u64::from(segment.first);
    let mut found = 0;
    for step in (0..STEPS).rev() {
        let probe = found + (1 << step);
        let at = mask::<LAST>(first + probe) as usize;
        // SAFETY: the mask keeps the row within the chunk.
        let row = unsafe { ptr::addr_of!((*rows.add(at)).pc).read_volatile() };
        let fits = (i64::from(row) - 1 - pc as i64) & (probe as i64 - i64::from(segment.rows));
        found += sign(fits) << step;
    }
    let at = mask::<LAST>(first + found) as usize;
    // SAFETY: likewise.
    unsafe { *rows.add(at) }
}

/// 1 for a negative number, else 0. No mask of ones: the verifier of Linux 6.18 follows both of its values.
#[inline(always)]
fn sign(number: i64) -> u64 {
    mask::<1>(number as u64 >> 63)
}

/// Puts a frame into the sample, and counts it.
#[inline(always)]
fn push(scratch: &mut SampleScratch, at: usize, i: usize, rip: u64) {
    // SAFETY: `at` is below 1,024, and the room is far larger than it and all frames.
    unsafe {
        let frames = scratch.frames.as_mut_ptr();
        frames.add(at + i * 8).cast::<u64>().write_unaligned(rip);
        ptr::addr_of_mut!(scratch.sample.user).write_volatile(i as u16 + 1);
    }
}

/// Notes why the stack did not come to its end.
#[inline(always)]
fn stop(scratch: &mut SampleScratch, why: Counter, flags: u16) {
    scratch.sample.flags |= flags;
    count(why);
}
