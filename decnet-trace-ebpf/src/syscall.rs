//! The system call under way, from the registers it was made with: which socket operation it is, and
//! where its bytes lie. Both kinds of socket hooks stand on this.
//!
//! Numbers and arguments: Linux, arch/x86/entry/syscalls/syscall_64.tbl. Registers: arch/x86/include/
//! uapi/asm/ptrace.h.

use aya_ebpf::{
    bindings::pt_regs,
    helpers::{bpf_get_current_task_btf, bpf_task_pt_regs},
};

const READ: u64 = 0;
const WRITE: u64 = 1;
const READV: u64 = 19;
const WRITEV: u64 = 20;
const SENDTO: u64 = 44;
const RECVFROM: u64 = 45;
const SENDMSG: u64 = 46;
const RECVMSG: u64 = 47;
const RECVMMSG: u64 = 299;
const SENDMMSG: u64 = 307;

const MSG_PEEK: u64 = 2;

/// `offsetof(struct msghdr, msg_iov)`, whose length follows it.
const MSGHDR_IOV: u64 = 16;

/// Where an operation's bytes lie in user memory.
///
/// A struct rather than an enum with fields: the compiler leaves the fields of the variants that have
/// none undefined, and the verifier refuses to see an undefined register even moved.
#[derive(Clone, Copy)]
pub(crate) struct Buffer {
    pub(crate) shape: Shape,
    /// The address of the bytes, or of the iovec array; 0 where hidden.
    pub(crate) at: u64,
    /// The length of the iovec array; 0 where there is none.
    pub(crate) iovecs: u64,
}

/// How an operation's bytes lie there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// In one piece.
    Flat,
    /// In the pieces of an iovec array.
    Iovecs,
    /// Nowhere that the registers tell.
    Hidden,
}

impl Buffer {
    pub(crate) const HIDDEN: Self = Self {
        shape: Shape::Hidden,
        at: 0,
        iovecs: 0,
    };

    #[inline(always)]
    const fn flat(at: u64) -> Self {
        Self {
            shape: Shape::Flat,
            at,
            iovecs: 0,
        }
    }

    #[inline(always)]
    const fn iovecs(at: u64, iovecs: u64) -> Self {
        Self {
            shape: Shape::Iovecs,
            at,
            iovecs,
        }
    }
}

/// A socket operation's call.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) fd: i32,
    pub(crate) buffer: Buffer,
    pub(crate) send: bool,
    pub(crate) peek: bool,
}

/// The call that the running thread is in; `None` if it is none that moves bytes on a socket.
#[inline(always)]
pub(crate) fn current() -> Option<Call> {
    // SAFETY: both helpers return pointers that the verifier knows by their types.
    let regs = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) as *const pt_regs };
    // SAFETY: as above; plain field reads, which the verifier checks.
    let (number, fd, second, third, fourth) = unsafe {
        (
            (*regs).orig_rax,
            (*regs).rdi,
            (*regs).rsi,
            (*regs).rdx,
            (*regs).r10,
        )
    };
    let (buffer, send, flags) = match number {
        READ => (Buffer::flat(second), false, 0),
        WRITE => (Buffer::flat(second), true, 0),
        RECVFROM => (Buffer::flat(second), false, fourth),
        SENDTO => (Buffer::flat(second), true, 0),
        READV => (Buffer::iovecs(second, third), false, 0),
        WRITEV => (Buffer::iovecs(second, third), true, 0),
        RECVMSG => (message(second), false, third),
        SENDMSG => (message(second), true, 0),
        // Several messages in one call: which of them this is cannot be told, unless it is the only
        // one. A `struct mmsghdr` begins with its `struct msghdr`.
        RECVMMSG if third == 1 => (message(second), false, fourth),
        SENDMMSG if third == 1 => (message(second), true, 0),
        _ => return None,
    };
    Some(Call {
        fd: fd as i32,
        buffer,
        send,
        peek: flags & MSG_PEEK != 0,
    })
}

/// The iovecs of the `struct msghdr` at this address.
#[inline(always)]
fn message(address: u64) -> Buffer {
    match crate::read::user::<[u64; 2]>(address + MSGHDR_IOV) {
        Some([iov, len]) => Buffer::iovecs(iov, len),
        None => Buffer::HIDDEN,
    }
}
