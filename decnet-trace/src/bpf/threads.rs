//! The threads of a process as the kernel sees them at one moment: which are on a CPU, which wait.
//!
//! /proc does not tell a thread that runs from one that could. aya attaches iterators to all tasks of the
//! machine, and to each reading anew; these are attached to one process, once.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::Arc,
};

use decnet_trace_common::thread::ThreadStat;

/// `BPF_LINK_CREATE` (Linux, include/uapi/linux/bpf.h).
const BPF_LINK_CREATE: libc::c_long = 28;
/// `BPF_ITER_CREATE`
const BPF_ITER_CREATE: libc::c_long = 33;
/// `BPF_TRACE_ITER`
const BPF_TRACE_ITER: u32 = 28;

/// How many bytes are read at a time: of as many threads as most processes have.
const CHUNK: usize = 256 * size_of::<ThreadStat>();

/// Lists the threads of traced processes.
#[derive(Clone, Debug)]
pub struct ThreadLister {
    program: Arc<OwnedFd>,
}

/// The list of one process's threads, to be read again and again.
#[derive(Debug)]
pub struct Threads {
    link: OwnedFd,
    tgid: u32,
}

/// The arguments of `BPF_LINK_CREATE`, as far as they are used.
#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    info: u64,
    info_len: u32,
    reserved: u32,
}

/// `union bpf_iter_link_info`, for tasks (Linux 6.1).
#[repr(C)]
struct TaskInfo {
    tid: u32,
    tgid: u32,
    pid_fd: u32,
    reserved: u32,
}

/// The arguments of `BPF_ITER_CREATE`.
#[repr(C)]
struct IterCreate {
    link: u32,
    flags: u32,
}

impl ThreadLister {
    /// A lister with this program, which is loaded.
    pub(super) fn new(program: OwnedFd) -> Self {
        Self {
            program: Arc::new(program),
        }
    }

    /// The list of a process that is traced.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn of(&self, tgid: u32) -> io::Result<Threads> {
        let info = TaskInfo {
            tid: 0,
            tgid,
            pid_fd: 0,
            reserved: 0,
        };
        let mut arguments = LinkCreate {
            program: self.program.as_raw_fd().cast_unsigned(),
            target: 0,
            attach_type: BPF_TRACE_ITER,
            flags: 0,
            info: (&raw const info).addr() as u64,
            info_len: size_of::<TaskInfo>() as u32,
            reserved: 0,
        };
        // SAFETY: the arguments are laid out as the kernel expects, and `info` lives until the call returns.
        let mut link = unsafe { bpf(BPF_LINK_CREATE, &arguments) };
        if link.is_err() {
            // Before Linux 6.1 all tasks are gone through; the program leaves out those not traced.
            (arguments.info, arguments.info_len) = (0, 0);
            // SAFETY: likewise.
            link = unsafe { bpf(BPF_LINK_CREATE, &arguments) };
        }
        Ok(Threads { link: link?, tgid })
    }
}

impl Threads {
    /// Reads the list: as the threads are now, one after the other. Empty where the process is gone.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn read(&self, bytes: &mut Vec<u8>, found: &mut Vec<ThreadStat>) -> io::Result<()> {
        found.clear();
        let arguments = IterCreate {
            link: self.link.as_raw_fd().cast_unsigned(),
            flags: 0,
        };
        // SAFETY: the arguments are laid out as the kernel expects.
        let mut file = File::from(unsafe { bpf(BPF_ITER_CREATE, &arguments) }?);
        bytes.resize(CHUNK, 0);
        let mut have = 0;
        loop {
            match file.read(&mut bytes[have..]) {
                Ok(0) => return Ok(()),
                Ok(read) => have += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            let whole = have - have % size_of::<ThreadStat>();
            let threads = bytes[..whole].chunks_exact(size_of::<ThreadStat>());
            found.extend(threads.map(parse).filter(|thread| thread.tgid == self.tgid));
            bytes.copy_within(whole..have, 0);
            have -= whole;
        }
    }
}

/// Reads one record.
fn parse(record: &[u8]) -> ThreadStat {
    debug_assert_eq!(record.len(), size_of::<ThreadStat>());
    // SAFETY: the callers hand over as many bytes as the struct has; it is made of integers alone, and the
    // read is unaligned.
    unsafe { record.as_ptr().cast::<ThreadStat>().read_unaligned() }
}

/// The system call, for commands that return a file descriptor.
///
/// # Safety
///
/// `arguments` must be those of the command, and whatever they point to must live.
unsafe fn bpf<T>(command: libc::c_long, arguments: &T) -> io::Result<OwnedFd> {
    // SAFETY: as the caller promises; the size is the struct's own.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(arguments),
            size_of::<T>(),
        )
    };
    match i32::try_from(fd) {
        // SAFETY: the call made it, and nobody else has it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
