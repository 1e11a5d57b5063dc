//! How far a ring has been written and read.
//!
//! A reader stops at a record that is reserved and not written yet, and cannot tell it from the end of the ring.
//! What tells is the position of the writer (Linux, kernel/bpf/ringbuf.c: `struct bpf_ringbuf`, whose first
//! mapped page begins with the reader's position, and whose second with the writer's).

use std::{
    io,
    os::fd::AsFd,
    ptr,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The positions of a ring, mapped to be read.
#[derive(Debug)]
pub(super) struct Positions {
    pages: *mut libc::c_void,
    page: usize,
}

// SAFETY: the mapping is the process's, not a thread's, and is only read.
unsafe impl Send for Positions {}

impl Positions {
    /// The positions of the ring behind this descriptor.
    ///
    /// # Errors
    ///
    /// When it cannot be mapped.
    pub(super) fn new(ring: impl AsFd) -> io::Result<Self> {
        // SAFETY: the call takes no pointers.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let page = usize::try_from(page).map_err(io::Error::other)?;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let pages = unsafe {
            mmap(
                ptr::null_mut(),
                2 * page,
                ProtFlags::READ,
                MapFlags::SHARED,
                ring,
                0,
            )
        }?;
        Ok(Self { pages, page })
    }

    /// Whether all that was reserved has been read.
    pub(super) fn is_drained(&self) -> bool {
        self.position(0) == self.position(self.page)
    }

    fn position(&self, offset: usize) -> u64 {
        // SAFETY: both pages are mapped as long as this lives, and begin with an aligned position.
        let position = unsafe { &*self.pages.byte_add(offset).cast::<AtomicU64>() };
        position.load(Ordering::Acquire)
    }
}

impl Drop for Positions {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's own, and nobody has a reference into it.
        let _ = unsafe { munmap(self.pages, 2 * self.page) };
    }
}
