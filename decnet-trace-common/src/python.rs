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
//! 2. `frame` = the pointer at thread state + [`PyLayout::frame`]; where [`PyLayout::cframe`] is not
//!    [`ABSENT`], that is a `_PyCFrame*` and the frame is the pointer at it + `cframe`.
//! 3. While `frame` is not 0, read [`PyLayout::frame_size`] bytes at it, and pick out of them the
//!    code object (a pointer, its [`PyLayout::code_tag`] bits cleared), the instruction (a pointer;
//!    an `i32` with [`flags::LASTI`]), and the next outer frame. Where [`PyLayout::owner`] is not
//!    [`ABSENT`], a frame whose owner byte is at least [`PyLayout::owner_shim`] is the
//!    interpreter's own: it runs no code (the kernel side records its place alone). A frame without a code object, or, with
//!    [`flags::LASTI`], one whose first word (its reference count) is 0, has returned: the stack was
//!    read while it changed, and is broken there.

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
    /// `PyInterpreterState.runtime` (3.9 to 3.11): a pointer to `_PyRuntime`.
    pub interp_runtime: u16,
    /// `_PyRuntime.gilstate.tstate_current` (≤ 3.11): the thread state that holds the GIL.
    pub runtime_current: u16,
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
