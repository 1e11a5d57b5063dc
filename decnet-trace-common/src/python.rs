//! Where a CPython keeps what the kernel side reads of it.
//!
//! One layout serves every process of the same version and thread-state location; a
//! [`Target`](crate::target::Target) names its own by index. All offsets are bytes; a field that a
//! version lacks is [`ABSENT`].
//!
//! How to read a thread's stack with it:
//!
//! 1. `base` = the thread pointer (x86-64: `fs` base), or, where [`PyLayout::thread_block`] is not
//!    [`ABSENT`], the pointer at thread pointer + `thread_block`. The thread state is the pointer at
//!    `base` + [`Target::thread_state`](crate::target::Target::thread_state); 0: the thread runs no
//!    Python.
//!
//!    Until 3.11 that is the state in which the thread began, also while it runs in another interpreter.
//!    Whether it does is told by the thread state that holds the GIL
//!    ([`Target::gil_holder`](crate::target::Target::gil_holder)): if it is of another interpreter, and
//!    what it points to at [`PyLayout::c_frame`] lies on the running thread's own stack, then it is what
//!    the thread runs. Without `c_frame` nothing tells, and the thread's frames are unknown.
//! 2. `frame` = the pointer at thread state + [`PyLayout::frame`]; where [`PyLayout::cframe`] is not
//!    [`ABSENT`], that is a `_PyCFrame*` and the frame is the pointer at it + `cframe`.
//! 3. While `frame` is not 0, read [`PyLayout::frame_size`] bytes at it, and pick out of them the
//!    code object (a pointer, its [`PyLayout::code_tag`] bits cleared), the instruction (a pointer;
//!    an `i32` with [`flags::LASTI`]), and the next outer frame. Where [`PyLayout::owner`] is not
//!    [`ABSENT`], a frame whose owner byte is at least [`PyLayout::owner_shim`] is the
//!    interpreter's own: it runs no code (the kernel side records its place alone). Where
//!    [`PyLayout::entry`] is not [`ABSENT`], that byte is 1 in the outermost frame of each evaluation
//!    loop. A frame without a code object, or, with [`flags::LASTI`], one whose first word (its
//!    reference count) is 0, has returned: the stack was read while it changed, and is broken there.
//!    So it is where the next frame is the same one, or not aligned to a word.

use crate::{assert_layout, pod};

/// The offset of a field that a version lacks.
pub const ABSENT: u16 = u16::MAX;

/// The most bytes of a frame that are read ([`PyLayout::frame_size`]).
pub const FRAME_SIZE_MAX: usize = 128;

/// The most layouts that the kernel side holds.
pub const LAYOUTS_MAX: u32 = 64;

/// Where a CPython keeps what the kernel side reads of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PyLayout {
    /// The version: major × 256 + minor (0x030b is 3.11).
    pub version: u16,
    /// A set of [`flags`].
    pub flags: u16,
    /// From the thread pointer, the pointer to the block that
    /// [`Target::thread_state`](crate::target::Target::thread_state) is an offset into (musl, and
    /// glibc from the 33rd thread-specific key on); [`ABSENT`] where that is the thread pointer
    /// itself.
    pub thread_block: u16,
    /// `PyThreadState.interp`
    pub interp: u16,
    /// `PyThreadState.context`
    pub context: u16,
    /// `PyThreadState.frame` (≤ 3.10), `.cframe` (3.11, 3.12), `.current_frame` (3.13 on).
    pub frame: u16,
    /// `_PyCFrame.current_frame` (3.11, 3.12).
    pub cframe: u16,
    /// `PyThreadState.native_thread_id` (3.11 on): the thread's id in its own pid namespace.
    pub native_thread_id: u16,
    /// In `PyThreadState` (3.12 on): a `u32`, of which one of [`Self::gil_mask`]'s bits is set while
    /// the thread holds its interpreter's GIL.
    pub gil: u16,
    /// `PyThreadState.cframe` (3.10, 3.11): a pointer into the C stack of the thread that runs it.
    pub c_frame: u16,
    /// In a frame: the byte that is 1 where an evaluation loop began with it, `is_entry` (3.11).
    pub entry: u16,
    /// How many bytes of a frame to read; at most [`FRAME_SIZE_MAX`].
    pub frame_size: u16,
    /// In a frame: the next outer frame.
    pub previous: u16,
    /// In a frame: the code object.
    pub code: u16,
    /// The bits to clear in the code object's pointer.
    pub code_tag: u16,
    /// In a frame: the instruction.
    pub instr: u16,
    /// In a frame: the byte that says who owns it (3.11 on).
    pub owner: u16,
    /// The least owner of a frame that is the interpreter's own and runs no code (3.12 on).
    pub owner_shim: u16,
    /// See [`Self::gil`].
    pub gil_mask: u32,
}

/// The bits of [`PyLayout::flags`].
pub mod flags {
    /// The instruction is `f_lasti`, an `i32` (≤ 3.10); a pointer otherwise.
    pub const LASTI: u16 = 1;
}

assert_layout! { PyLayout = 40 }
pod!(PyLayout);
