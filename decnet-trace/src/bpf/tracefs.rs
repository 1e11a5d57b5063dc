//! The tracing file system, which names the system call tracepoints, where nobody has mounted it.

use std::{io, path::Path, thread};

use crate::error::{Error, Result};

const TRACEFS: &str = "/sys/kernel/tracing";

/// Does something for which the tracing file system must be mounted. Where it is not, it is mounted
/// in a mount namespace that lives as long as this call: the machine is left as it was.
///
/// # Errors
///
/// Those of `work`, or when the file system cannot be mounted.
pub fn with_tracefs<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let is_mounted = |path: &str| Path::new(path).join("events").exists();
    if is_mounted(TRACEFS) || is_mounted("/sys/kernel/debug/tracing") {
        return work();
    }
    thread::scope(|scope| {
        scope
            .spawn(|| {
                mount_privately().map_err(|error| {
                    Error::unsupported(format!(
                        "cannot mount the tracing file system: {error}; try `mount -t tracefs tracefs {TRACEFS}`"
                    ))
                })?;
                work()
            })
            .join()
            .unwrap_or_else(|_| Err(Error::failed("a thread that attached hooks panicked")))
    })
}

/// Mounts the tracing file system for the calling thread alone.
fn mount_privately() -> io::Result<()> {
    let check = |ret: libc::c_int| match ret {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: the calls take constant, NUL-terminated strings or null pointers, and change the mount
    // table of this thread's own new namespace only.
    unsafe {
        check(libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS))?;
        check(libc::mount(
            std::ptr::null(),
            c"/".as_ptr(),
            std::ptr::null(),
            libc::MS_REC | libc::MS_PRIVATE,
            std::ptr::null(),
        ))?;
        check(libc::mount(
            c"tracefs".as_ptr(),
            c"/sys/kernel/tracing".as_ptr(),
            c"tracefs".as_ptr(),
            libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
            std::ptr::null(),
        ))
    }
}
