//! What a socket is: its name, its kind, its two ends.

use aya_ebpf::helpers::{bpf_get_current_task_btf, bpf_jiffies64};
use decnet_trace_common::{event::Tuple, limits::UNIX_PATH_MAX, offsets::ABSENT};

use crate::{
    offsets::{TICK_NANOS, offset},
    read,
};

pub(crate) const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const SOCK_STREAM: u16 = 1;
const IPPROTO_TCP: u16 = 6;
const S_IFMT: u16 = 0o170_000;
const S_IFSOCK: u16 = 0o140_000;

/// A stream socket.
#[derive(Clone, Copy)]
pub(crate) struct Sock<R> {
    /// Its `struct sock`.
    pub(crate) sk: R,
    /// Its inode number, which names it.
    pub(crate) inode: u64,
    /// Whether it is a unix-domain socket.
    pub(crate) unix: bool,
    /// Whether it speaks TCP.
    pub(crate) tcp: bool,
}

/// How the fields of a `struct sock` are read.
pub(crate) trait Reader: Copy {
    /// The field at this offset, if it can be read.
    fn field<T: Copy>(self, offset: usize) -> Option<T>;

    /// The struct's address.
    fn address(self) -> u64;
}

/// A pointer that the kernel handed over with its type: fields are plain loads.
#[derive(Clone, Copy)]
pub(crate) struct Typed(*const u8);

impl Reader for Typed {
    #[inline(always)]
    fn field<T: Copy>(self, offset: usize) -> Option<T> {
        // SAFETY: made in `from_typed` alone, of a typed pointer.
        Some(unsafe { read::typed(self.0, offset) })
    }

    #[inline(always)]
    fn address(self) -> u64 {
        self.0 as u64
    }
}

/// An address found by following pointers: fields are read by a helper.
#[derive(Clone, Copy)]
pub(crate) struct Walked(u64);

impl Reader for Walked {
    #[inline(always)]
    fn field<T: Copy>(self, offset: usize) -> Option<T> {
        read::kernel(self.0, offset)
    }

    #[inline(always)]
    fn address(self) -> u64 {
        self.0
    }
}

/// The stream socket behind a `struct sock *` of a typed tracepoint; `None` for another kind of
/// socket. The inode is 0 for one that no process holds.
///
/// # Safety
///
/// `sk` must be an argument that the tracepoint declares as `struct sock *`.
#[inline(always)]
pub(crate) unsafe fn from_typed(sk: *const u8) -> Option<Sock<Typed>> {
    let (unix, tcp) = kind(Typed(sk))?;
    // SAFETY: as the caller promises.
    let socket: u64 = unsafe { read::typed(sk, offset!(sock_socket)) };
    let inode = if socket == 0 {
        0
    } else {
        read::kernel(socket, offset!(socket_inode) + offset!(inode_ino)).unwrap_or(0)
    };
    Some(Sock {
        sk: Typed(sk),
        inode,
        unix,
        tcp,
    })
}

/// The stream socket behind a file descriptor of the running process; `None` for anything else.
#[inline(always)]
pub(crate) fn from_fd(fd: i32) -> Option<Sock<Walked>> {
    // SAFETY: the helper returns the running task.
    let files: u64 =
        unsafe { read::typed(bpf_get_current_task_btf().cast::<u8>(), offset!(task_files)) };
    let table: u64 = read::kernel(files, offset!(files_fdt))?;
    let len: u32 = read::kernel(table, offset!(fdtable_max_fds))?;
    if fd < 0 || fd as u32 >= len {
        return None;
    }
    let array: u64 = read::kernel(table, offset!(fdtable_fd))?;
    let file: u64 = read::kernel(array, fd as usize * 8)?;
    let inode: u64 = read::kernel(file, offset!(file_inode))?;
    let mode: u16 = read::kernel(inode, offset!(inode_mode))?;
    if mode & S_IFMT != S_IFSOCK {
        return None;
    }
    let socket: u64 = read::kernel(file, offset!(file_private_data))?;
    let sk: u64 = read::kernel(socket, offset!(socket_sk))?;
    let (unix, tcp) = kind(Walked(sk))?;
    Some(Sock {
        sk: Walked(sk),
        inode: read::kernel(inode, offset!(inode_ino))?,
        unix,
        tcp,
    })
}

/// Whether a socket is a unix one and whether it speaks TCP; `None` if it is no stream socket.
#[inline(always)]
fn kind(sk: impl Reader) -> Option<(bool, bool)> {
    if sk.field::<u16>(offset!(sock_type))? != SOCK_STREAM {
        return None;
    }
    match sk.field::<u16>(offset!(skc_family))? {
        AF_UNIX => Some((true, false)),
        AF_INET | AF_INET6 => {
            let protocol: u16 = sk.field(offset!(sock_protocol))?;
            Some((false, protocol == IPPROTO_TCP))
        }
        _ => None,
    }
}

/// The two ends of an IP socket, as its own process sees them.
#[inline(always)]
pub(crate) fn tuple(sk: impl Reader) -> Option<Tuple> {
    let mut tuple = Tuple {
        family: sk.field(offset!(skc_family))?,
        local_port: sk.field(offset!(skc_num))?,
        remote_port: u16::from_be(sk.field(offset!(skc_dport))?),
        ..Tuple::default()
    };
    if tuple.family == AF_INET {
        let remote: u32 = sk.field(offset!(skc_daddr))?;
        let local: u32 = sk.field(offset!(skc_rcv_saddr))?;
        tuple.remote[..4].copy_from_slice(&remote.to_ne_bytes());
        tuple.local[..4].copy_from_slice(&local.to_ne_bytes());
        return Some(tuple);
    }
    if tuple.family != AF_INET6 || offset!(skc_v6_daddr) == ABSENT as usize {
        return None;
    }
    // Wider than a register, and so no plain load.
    tuple.remote = read::kernel(sk.address(), offset!(skc_v6_daddr))?;
    tuple.local = read::kernel(sk.address(), offset!(skc_v6_rcv_saddr))?;
    Some(tuple)
}

/// When the last data reached a TCP socket, in nanoseconds of `CLOCK_MONOTONIC`; 0 where the kernel
/// does not tell.
///
/// `lrcvtime` (include/net/inet_connection_sock.h) is the tick in which the last segment with data
/// arrived; reads and writes leave it alone. (`tcp_clock_cache`, which is finer, is refreshed by the
/// read itself.) Of the ticks between then and now, the whole ones are counted: a wait is told short by
/// up to two.
#[inline(always)]
pub(crate) fn arrived(sock: &Sock<impl Reader>, now: u64) -> u64 {
    let tick = TICK_NANOS.load();
    if !sock.tcp || tick == 0 || offset!(icsk_lrcvtime) == ABSENT as usize {
        return 0;
    }
    let Some(then) = read::kernel::<u32>(sock.sk.address(), offset!(icsk_lrcvtime)) else {
        return 0;
    };
    // SAFETY: the helper takes nothing and cannot fail.
    let ticks = unsafe { bpf_jiffies64() } as u32;
    let whole = ticks.wrapping_sub(then).saturating_sub(1);
    now.saturating_sub(u64::from(whole) * tick)
}

/// Who is at the other end of a unix socket: the address of its `struct sock`.
#[inline(always)]
pub(crate) fn unix_peer(sk: impl Reader) -> Option<u64> {
    if offset!(unix_peer) == ABSENT as usize {
        return None;
    }
    read::kernel(sk.address(), offset!(unix_peer)).filter(|&peer| peer != 0)
}

/// The inode number of a socket given by the address of its `struct sock`; 0 where nobody holds it.
#[inline(always)]
pub(crate) fn inode(sk: u64) -> u64 {
    match read::kernel::<u64>(sk, offset!(sock_socket)) {
        Some(socket) if socket != 0 => {
            read::kernel(socket, offset!(socket_inode) + offset!(inode_ino)).unwrap_or(0)
        }
        _ => 0,
    }
}

/// Copies the path that a unix socket is bound to; how many bytes that were. An accepted one is
/// bound to its listener's.
#[inline(always)]
pub(crate) fn unix_path(sk: u64, to: *mut u8) -> Option<u64> {
    let address: u64 = read::kernel(sk, offset!(unix_addr)).filter(|&address| address != 0)?;
    let len: u32 = read::kernel(address, offset!(unix_address_len))?;
    // The family comes first.
    let len = u64::from(len).checked_sub(2)?;
    if len > UNIX_PATH_MAX as u64 {
        return None;
    }
    let len = read::mask::<0x7f>(len);
    let from = address + offset!(unix_address_name) as u64 + 2;
    read::kernel_bytes(to, len as u32, from).then_some(len)
}
