//! Surviving files that shrink while they are mapped.
//!
//! blazesym maps the files that it reads. Whoever may write to such a file can cut it short, and a read
//! of what is gone then raises SIGBUS, which ends the agent. On the threads that ask for it, a page
//! that is gone is replaced by zeros instead, as systemd's journal does (src/basic/sigbus.c), and the
//! thread finds out by [`faults`].

use std::{
    cell::Cell,
    io, mem, ptr,
    sync::{Once, OnceLock},
};

thread_local! {
    /// How many pages were gone; `None` on threads that did not ask.
    static FAULTS: Cell<Option<u64>> = const { Cell::new(None) };
}

/// What was in force before.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Makes this thread survive; where the handler cannot be installed, it would not, and that is all.
pub(super) fn survive() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        if let Err(error) = install() {
            tracing::warn!(%error, "A file cut short while it is read will end the agent.");
        }
    });
    FAULTS.set(Some(0));
}

/// How many pages were gone on this thread so far.
pub(super) fn faults() -> u64 {
    FAULTS.get().unwrap_or(0)
}

fn install() -> io::Result<()> {
    // SAFETY: an all-zero sigaction is valid (default action, empty mask); the pointers are to live
    // locals; the handler has the signature that SA_SIGINFO asks for.
    unsafe {
        let mut previous: libc::sigaction = mem::zeroed();
        if libc::sigaction(libc::SIGBUS, ptr::null(), &mut previous) != 0 {
            return Err(io::Error::last_os_error());
        }
        // Before the handler can run and look for it.
        let _ = PREVIOUS.set(previous);
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        if libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Only async-signal-safe things happen here: a thread-local cell without a destructor, system calls,
/// and a `OnceLock` that was set before.
extern "C" fn handle(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel gives a valid siginfo, and for SIGBUS the address is filled in.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    if code == libc::BUS_ADRERR
        && let Some(faults) = FAULTS.get()
        && zero_page(address)
    {
        FAULTS.set(Some(faults + 1));
        return;
    }
    // Not ours: what was in force before is put back, and the instruction raises it again.
    if let Some(previous) = PREVIOUS.get() {
        // SAFETY: it was given by sigaction.
        unsafe { libc::sigaction(libc::SIGBUS, previous, ptr::null_mut()) };
    }
}

/// Puts a page of zeros at an address whose page is gone.
fn zero_page(address: usize) -> bool {
    // SAFETY: sysconf has no preconditions.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let Ok(size) = usize::try_from(size) else {
        return false;
    };
    let page = (address & !(size - 1)) as *mut libc::c_void;
    // SAFETY: the page replaced is one of a mapping whose file no longer reaches there: no access to
    // it could have succeeded, so nothing is taken from anyone. errno is not looked at by the code
    // interrupted, which was reading memory.
    let mapped = unsafe {
        libc::mmap(
            page,
            size,
            libc::PROT_READ,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    mapped == page
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]
    use std::os::fd::AsRawFd;

    use super::*;

    /// Bytes of a mapped file that was cut short read as zeros, and the thread finds out.
    #[test]
    fn what_is_gone_reads_as_zeros() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        // SAFETY: a fresh mapping of an open file, unmapped by nobody.
        let map = unsafe {
            libc::mmap(
                ptr::null_mut(),
                8192,
                libc::PROT_READ,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(map, libc::MAP_FAILED);
        file.set_len(0).unwrap();
        survive();
        let before = faults();
        for offset in [0, 5000, 5001] {
            // SAFETY: within the mapping; a page that is gone is replaced by the handler.
            let byte = unsafe { map.cast::<u8>().add(offset).read_volatile() };
            assert_eq!(byte, 0);
        }
        assert_eq!(faults() - before, 2);
    }
}
