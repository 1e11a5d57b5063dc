//! The ABI between the eBPF programs and the user side, and nothing else.
//!
//! Everything here is `repr(C)` without implicit padding; sizes and alignments are asserted at
//! compile time, so a change that moves a field breaks the build on both sides at once.
//!
//! * [`event`]: the records that travel through the ring buffers.
//! * [`target`]: what the kernel knows about a traced process.
//! * [`offsets`]: where the running kernel keeps the struct fields that the hooks read.
//! * [`python`]: where a CPython keeps what the kernel reads of it.
//! * [`sqlite`]: where an SQLite keeps what the kernel reads of it.
//! * [`thread`]: what the kernel lists of each thread when asked.
//! * [`unwind`]: tables by which native callers are found.
//! * [`counter`]: everything that the kernel side counts.
//! * [`limits`]: sizes that both sides must agree on.
#![no_std]

pub mod counter;
pub mod event;
pub mod limits;
pub mod offsets;
pub mod python;
pub mod sqlite;
pub mod target;
pub mod thread;
pub mod unwind;

/// Asserts at compile time that a type has this size and an alignment of at most eight bytes (what a
/// ring buffer guarantees).
macro_rules! assert_layout {
    ($($ty:ty = $size:expr),+ $(,)?) => {
        $(const _: () = {
            assert!(size_of::<$ty>() == $size);
            assert!(align_of::<$ty>() <= 8);
        };)+
    };
}
pub(crate) use assert_layout;

/// Marks types as plain data for aya on the user side.
#[cfg(feature = "user")]
macro_rules! pod {
    ($($ty:ty),+ $(,)?) => {
        $(
            // SAFETY: the type is `repr(C)`, `Copy`, made of integers only, and has no padding
            // (its size is asserted beside its definition), so any byte pattern is a valid value.
            unsafe impl aya::Pod for $ty {}
        )+
    };
}
#[cfg(not(feature = "user"))]
macro_rules! pod {
    ($($ty:ty),+ $(,)?) => {};
}
pub(crate) use pod;
