//! Reading another process's memory, and nothing else: it is never written and never stopped.

use std::{fs, io};

/// Why memory could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The process is gone.
    #[error("the process is gone")]
    Gone,
    /// This process may not read that one's memory.
    #[error("reading its memory is not permitted (needs CAP_SYS_PTRACE)")]
    Denied,
    /// Nothing is mapped there.
    #[error("nothing is mapped at {0:#x}")]
    Unmapped(u64),
}

/// Memory that can be read: a process's, or a test's.
pub trait Memory {
    /// Fills `buffer` from `address`, entirely or not at all.
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), ReadError>;

    /// The pointer (or other 64-bit number) at `address`.
    fn u64(&self, address: u64) -> Result<u64, ReadError> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The 32-bit number at `address`.
    fn u32(&self, address: u64) -> Result<u32, ReadError> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// The byte at `address`.
    fn u8(&self, address: u64) -> Result<u8, ReadError> {
        let mut bytes = [0; 1];
        self.read(address, &mut bytes)?;
        Ok(bytes[0])
    }

    /// `len` bytes from `address`. The caller bounds `len`.
    fn bytes(&self, address: u64, len: usize) -> Result<Vec<u8>, ReadError> {
        let mut bytes = vec![0; len];
        self.read(address, &mut bytes)?;
        Ok(bytes)
    }
}

/// The memory of a live process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessMemory {
    pid: libc::pid_t,
}

impl ProcessMemory {
    /// The memory of the process with this id (in the caller's pid namespace).
    pub fn new(pid: u32) -> Self {
        // No process has an id above i32::MAX; -1 is nobody's, and every read will say so.
        Self {
            pid: libc::pid_t::try_from(pid).unwrap_or(-1),
        }
    }
}

impl ProcessMemory {
    /// Reads `pieces`, each an address and a number of bytes, at most [`Self::PIECES_MAX`] of them, into
    /// `buffer`, `stride` bytes apart, by one system call. An error leaves `buffer` undefined.
    pub(super) fn read_all(
        &self,
        pieces: impl Iterator<Item = (u64, usize)>,
        stride: usize,
        buffer: &mut [u8],
    ) -> Result<(), ReadError> {
        const NOTHING: libc::iovec = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        let mut local = [NOTHING; Self::PIECES_MAX];
        let mut remote = [NOTHING; Self::PIECES_MAX];
        let mut count = 0;
        let mut chunks = buffer.chunks_exact_mut(stride);
        for (address, size) in pieces {
            let chunk = chunks.next().and_then(|chunk| chunk.get_mut(..size));
            let (Some(chunk), Ok(base), true) =
                (chunk, usize::try_from(address), count < Self::PIECES_MAX)
            else {
                return Err(ReadError::Unmapped(address));
            };
            local[count] = libc::iovec {
                iov_base: chunk.as_mut_ptr().cast(),
                iov_len: size,
            };
            remote[count] = libc::iovec {
                iov_base: std::ptr::without_provenance_mut(base),
                iov_len: size,
            };
            count += 1;
        }
        if count == 0 {
            return Ok(());
        }
        self.read_vectors(&local[..count], &remote[..count])
    }

    /// The most that [`Self::read_all`] takes.
    pub(super) const PIECES_MAX: usize = decnet_trace_common::limits::PYTHON_FRAMES_MAX;

    /// Fills `local` from `remote`, entirely or not at all. `local` must describe memory that is
    /// exclusively borrowed by the caller.
    fn read_vectors(&self, local: &[libc::iovec], remote: &[libc::iovec]) -> Result<(), ReadError> {
        let wanted: usize = local.iter().map(|vector| vector.iov_len).sum();
        // The kernel takes at most IOV_MAX vectors, and a `c_ulong` holds any count of them.
        let (locals, remotes) = (local.len() as libc::c_ulong, remote.len() as libc::c_ulong);
        // SAFETY: the callers make `local` from exclusively borrowed buffers; `remote` are addresses
        // in the other process, which the kernel checks.
        let n = unsafe {
            libc::process_vm_readv(
                self.pid,
                local.as_ptr(),
                locals,
                remote.as_ptr(),
                remotes,
                0,
            )
        };
        if usize::try_from(n) == Ok(wanted) {
            return Ok(());
        }
        Err(match (n, io::Error::last_os_error().raw_os_error()) {
            (-1, Some(libc::ESRCH)) => ReadError::Gone,
            (-1, Some(libc::EPERM)) => ReadError::Denied,
            _ => ReadError::Unmapped(
                remote
                    .first()
                    .map_or(0, |vector| vector.iov_base.addr() as u64),
            ),
        })
    }
}

impl Memory for ProcessMemory {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let (Ok(base), Some(_)) = (
            usize::try_from(address),
            address.checked_add(buffer.len() as u64),
        ) else {
            return Err(ReadError::Unmapped(address));
        };
        if buffer.is_empty() {
            return Ok(());
        }
        let local = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        let remote = libc::iovec {
            iov_base: std::ptr::without_provenance_mut(base),
            iov_len: buffer.len(),
        };
        self.read_vectors(&[local], &[remote])
    }
}

/// The threads of a process: the id that this pid namespace gives each, and the one that the
/// process's own namespace does (what `gettid` says there).
pub(super) fn threads(pid: u32) -> Result<Vec<Thread>, ReadError> {
    let gone = |_| ReadError::Gone;
    let mut threads = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task")).map_err(gone)? {
        let Some(tid) = entry
            .map_err(gone)?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // A thread that ends meanwhile is no thread any more.
        if let Ok(status) = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")) {
            threads.push(Thread::parse(tid, &status));
        }
    }
    Ok(threads)
}

/// A thread, as /proc tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Thread {
    /// Its id in this pid namespace.
    pub(super) tid: u32,
    /// Its id in the process's own pid namespace.
    pub(super) own_tid: u32,
    /// Its name.
    pub(super) name: String,
    /// Its scheduler state: `R` runs or wants to, others wait.
    pub(super) state: char,
}

impl Thread {
    /// Reads /proc/PID/task/TID/status.
    fn parse(tid: u32, status: &str) -> Self {
        let field = |key: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(key))
                .map_or("", str::trim)
        };
        Self {
            tid,
            own_tid: field("NSpid:")
                .split_whitespace()
                .next_back()
                .and_then(|id| id.parse().ok())
                .unwrap_or(tid),
            name: field("Name:").to_owned(),
            state: field("State:").chars().next().unwrap_or('?'),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Memory made of pieces, for tests.
    #[derive(Default)]
    pub(in crate::python) struct Image(pub(in crate::python) Vec<(u64, Vec<u8>)>);

    impl Memory for Image {
        fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
            for (start, bytes) in &self.0 {
                if let Some(offset) = address
                    .checked_sub(*start)
                    .and_then(|o| usize::try_from(o).ok())
                    && let Some(end) = offset.checked_add(buffer.len())
                    && let Some(found) = bytes.get(offset..end)
                {
                    buffer.copy_from_slice(found);
                    return Ok(());
                }
            }
            Err(ReadError::Unmapped(address))
        }
    }

    /// A process reads its own memory through the same system call as another's.
    #[test]
    fn reads_memory() {
        let value = [1u8, 2, 3, 4, 5, 6, 7, 8];
        let memory = ProcessMemory::new(std::process::id());
        let address = value.as_ptr().addr() as u64;
        assert_eq!(memory.u64(address), Ok(u64::from_le_bytes(value)));
        assert_eq!(memory.bytes(address + 2, 3), Ok(vec![3, 4, 5]));
    }

    /// An unmapped address, a wrapping one and a process that does not exist are errors of their own.
    #[test]
    fn says_why_not() {
        let memory = ProcessMemory::new(std::process::id());
        assert_eq!(memory.u64(8), Err(ReadError::Unmapped(8)));
        assert_eq!(
            memory.u64(u64::MAX - 3),
            Err(ReadError::Unmapped(u64::MAX - 3))
        );
        assert_eq!(ProcessMemory::new(u32::MAX).u64(8), Err(ReadError::Gone));
        assert_eq!(threads(u32::MAX), Err(ReadError::Gone));
    }

    /// A thread's own id is the last of its namespace ids.
    #[test]
    fn parses_status() {
        let thread = Thread::parse(
            900,
            "Name:\tuvicorn: w\nState:\tS (sleeping)\nNSpid:\t900\t17\t3\n",
        );
        assert_eq!(
            thread,
            Thread {
                tid: 900,
                own_tid: 3,
                name: "uvicorn: w".into(),
                state: 'S'
            }
        );
    }
}
