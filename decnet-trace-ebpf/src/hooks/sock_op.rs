//! Reads and writes of stream sockets.
//!
//! The tracepoints `sock_send_length` and `sock_recv_length` (Linux 6.3) fire once per operation, in
//! the caller's context, after the data moved. They carry no buffer; the registers of the system call
//! do. On older kernels the exits of the system calls themselves stand in: registers are the same
//! there, and the socket is found through the file descriptor.

use core::ptr;

use aya_ebpf::{
    EbpfContext as _,
    macros::{btf_tracepoint, tracepoint},
    programs::{BtfTracePointContext, TracePointContext},
};
use decnet_trace_common::{
    counter::Counter,
    event::{Kind, SockOp, flags},
    limits::{HEAD_BUDGET, IOVEC_MAX, PAYLOAD_MAX},
    target::{self, Target},
};

use crate::{
    emit::{self, count},
    gate::{self, Current},
    maps::{HEADS, HEADS_MAX, Head, SOCK_SCRATCH, SockScratch},
    python,
    read::{self, mask},
    sock::{self, Reader, Sock},
    syscall::{self, Buffer, Call, Shape},
};

const EINTR: i32 = -4;
const EAGAIN: i32 = -11;
const ERESTARTSYS: i32 = -512;

/// What the kernel makes of `O_NONBLOCK` (include/linux/socket.h).
const MSG_DONTWAIT: i32 = 0x40;

/// Up to so many bytes are read at once, before it is known whether they are worth it.
const SMALL: u64 = 256;

/// The slots of the scratch map: programs that may interrupt each other have one each.
#[repr(u32)]
enum Slot {
    Recv = 0,
    Send = 1,
    Exit = 2,
}

#[btf_tracepoint(function = "sock_send_length")]
pub(crate) fn sock_send_length(ctx: BtfTracePointContext) -> i32 {
    try_sock_length(&ctx, true);
    0
}

#[btf_tracepoint(function = "sock_recv_length")]
pub(crate) fn sock_recv_length(ctx: BtfTracePointContext) -> i32 {
    try_sock_length(&ctx, false);
    0
}

/// The exit of any system call that moves bytes on sockets; attached to each of them where the
/// tracepoints above are missing.
#[tracepoint]
pub(crate) fn sys_exit_io(ctx: TracePointContext) -> u32 {
    try_sys_exit_io(&ctx);
    0
}

#[inline(always)]
fn try_sock_length(ctx: &BtfTracePointContext, send: bool) -> Option<()> {
    // Before all else: event loops read until there is nothing, and up to half of all reads find that.
    let ret: i32 = ctx.arg(1);
    if is_retry(ret) {
        return None;
    }
    let (current, target) = gate::traced(target::flags::SOCKETS)?;
    // SAFETY: the first argument of both tracepoints is a `struct sock *`.
    let sock = unsafe { sock::from_typed(ctx.arg(0)) }?;
    let call = match syscall::current() {
        Some(call) if call.send == send => call,
        // sendfile, splice, several messages at once, an io_uring worker, or a write that the kernel
        // makes of its own accord: the length is known, the bytes are not.
        _ => Call {
            fd: -1,
            buffer: Buffer::HIDDEN,
            send,
            peek: false,
        },
    };
    let slot = if send { Slot::Send } else { Slot::Recv };
    let mut blocking = 0;
    if !send {
        let how: i32 = ctx.arg(2);
        if how & MSG_DONTWAIT == 0 {
            blocking = flags::BLOCKING;
        }
    }
    operation(current, target, &sock, &call, ret, slot, blocking)
}

#[inline(always)]
fn try_sys_exit_io(ctx: &TracePointContext) -> Option<()> {
    let (current, target) = gate::traced(target::flags::SOCKETS)?;
    // SAFETY: the tracepoint's format is common fields (8), nr (8), ret (8); the verifier bounds it.
    let ret = unsafe { *ctx.as_ptr().cast::<i64>().add(2) } as i32;
    if is_retry(ret) {
        return None;
    }
    let call = syscall::current()?;
    let sock = sock::from_fd(call.fd)?;
    operation(
        current,
        target,
        &sock,
        &call,
        ret,
        Slot::Exit,
        flags::FALLBACK,
    )
}

/// Whether nothing happened and the caller will try again.
#[inline(always)]
fn is_retry(ret: i32) -> bool {
    ret == EAGAIN || ret == EINTR || ret == ERESTARTSYS
}

/// Puts the record of one operation together and hands it on.
#[inline(always)]
fn operation(
    current: Current,
    target: &Target,
    sock: &Sock<impl Reader>,
    call: &Call,
    ret: i32,
    slot: Slot,
    how: u16,
) -> Option<()> {
    if call.peek {
        return None;
    }
    if sock.inode == 0 {
        count(Counter::SocketUnnamed);
        return None;
    }
    // SAFETY: the slot is this CPU's and this program's own until the program returns.
    let scratch = unsafe { &mut *SOCK_SCRATCH.get_ptr_mut(slot as u32)? };
    let op = &mut scratch.op;
    // SAFETY: the scratch is the map's memory, aligned to eight bytes; a `SockOp` is made of integers.
    unsafe { emit::zero(op) };
    op.header = emit::header(Kind::SockOp, current);
    op.sock = sock.inode;
    op.ret = ret;
    op.fd = call.fd;
    op.flags =
        how | if call.send { flags::SEND } else { 0 } | if sock.unix { flags::UNIX } else { 0 };
    if ret > 0 {
        let moved = u64::from(ret.unsigned_abs());
        if is_wake_up(sock, call, moved) {
            return None;
        }
        capture(scratch, sock, call, moved);
    }
    if scratch.op.flags & flags::HEAD != 0 {
        // A context says nothing where its descent is not followed.
        if target.flags & target::flags::LINEAGE != 0 {
            scratch.op.context = python::context(target, python::thread_state(target));
        }
        // Requests name the ends of their connection; responses need not do it again.
        if !begins_response(&scratch.op) {
            if sock.unix {
                unix_ends(scratch, sock.sk, call.send);
            } else if let Some(tuple) = sock::tuple(sock.sk) {
                scratch.op.tuple = tuple;
                scratch.op.flags |= flags::TUPLE;
            }
        }
        if !call.send {
            scratch.op.arrived = sock::arrived(sock, scratch.op.header.ts);
        }
    }
    let payload = mask::<0x1fff>(u64::from(scratch.op.payload_len)) as usize;
    let path = mask::<0x7f>(u64::from(scratch.op.path_len)) as usize;
    let len = size_of::<SockOp>() + payload + path;
    scratch.op.header.len = len as u16;
    emit::record(ptr::from_mut(scratch).cast(), len);
    Some(())
}

/// Names the other end of a unix socket; who asks something of it also where it is.
#[inline(always)]
fn unix_ends(scratch: &mut SockScratch, sk: impl Reader, send: bool) {
    let Some(peer) = sock::unix_peer(sk) else {
        return;
    };
    scratch.op.tuple.family = sock::AF_UNIX;
    let (inode, _) = scratch.op.tuple.remote.split_at_mut(8);
    inode.copy_from_slice(&sock::inode(peer).to_le_bytes());
    scratch.op.flags |= flags::TUPLE;
    let behind = u64::from(scratch.op.payload_len);
    if !send || behind > (PAYLOAD_MAX - 1) as u64 {
        return;
    }
    // SAFETY: below the payload's limit there is room for as much again.
    let to = unsafe {
        scratch
            .payload
            .as_mut_ptr()
            .add(mask::<0xfff>(behind) as usize)
    };
    if let Some(len) = sock::unix_path(peer, to) {
        scratch.op.path_len = len as u16;
    }
}

/// Whether this is an event loop waking itself: one byte through its own unix socket pair, as
/// asyncio's `call_soon_threadsafe` does. There is one per hand-over between threads.
#[inline(always)]
fn is_wake_up(sock: &Sock<impl Reader>, call: &Call, moved: u64) -> bool {
    if !sock.unix || moved != 1 {
        return false;
    }
    call.buffer.shape == Shape::Flat && read::user::<u8>(call.buffer.at) == Some(0)
}

/// Takes the first and last bytes that moved and, if they may belong to a head, the payload.
#[inline(always)]
fn capture(scratch: &mut SockScratch, sock: &Sock<impl Reader>, call: &Call, moved: u64) {
    let Buffer { shape, at, iovecs } = call.buffer;
    let taken = match shape {
        Shape::Flat => flat(scratch, sock, call, at, moved),
        Shape::Iovecs if iovecs == 1 => match read::user::<[u64; 2]>(at) {
            Some([base, _]) => flat(scratch, sock, call, base, moved),
            None => false,
        },
        Shape::Iovecs => gather(scratch, sock, call, at, iovecs, moved),
        Shape::Hidden => {
            count(Counter::PayloadHidden);
            scratch.op.flags |= flags::UNREAD;
            return;
        }
    };
    if !taken {
        count(Counter::PayloadUnread);
        scratch.op.flags |= flags::UNREAD;
        scratch.op.payload_len = 0;
        scratch.op.tail_len = 0;
    }
}

/// Bytes in one piece. Reads of user memory are what a hook's time goes to, so there are as few as can be.
#[inline(always)]
fn flat(
    scratch: &mut SockScratch,
    sock: &Sock<impl Reader>,
    call: &Call,
    at: u64,
    moved: u64,
) -> bool {
    let op = &mut scratch.op;
    if moved < 8 {
        let len = mask::<7>(moved) as u32;
        if !read::user_bytes(op.first.as_mut_ptr(), len, at) {
            return false;
        }
        // The tail is right-aligned: little-endian, so to the high end of the word.
        let word = u64::from_le_bytes(op.first);
        op.tail = (word << ((8 - moved) * 8)).to_le_bytes();
        op.tail_len = moved as u16;
        if !wanted(op, sock, call, moved) {
            return true;
        }
        op.payload_len = len as u16;
        return read::user_bytes(scratch.payload.as_mut_ptr(), len, at);
    }
    op.tail_len = 8;
    if moved <= SMALL {
        let len = mask::<0x1ff>(moved);
        if !read::user_bytes(scratch.payload.as_mut_ptr(), len as u32, at) {
            return false;
        }
        op.first = word(&scratch.payload, 0);
        op.tail = word(&scratch.payload, len - 8);
        if wanted(op, sock, call, moved) {
            op.payload_len = len as u16;
        }
        return true;
    }
    let Some(first) = read::user(at) else {
        return false;
    };
    op.first = first;
    if moved <= PAYLOAD_MAX as u64 && may_begin_head(op.first[0], call.send) {
        let len = mask::<0x1fff>(moved);
        if !read::user_bytes(scratch.payload.as_mut_ptr(), len as u32, at) {
            return false;
        }
        op.tail = word(&scratch.payload, len - 8);
        op.payload_len = len as u16;
        begins(op, sock, call);
        return true;
    }
    let Some(tail) = read::user(at + moved - 8) else {
        return false;
    };
    op.tail = tail;
    if !wanted(op, sock, call, moved) {
        return true;
    }
    let len = if moved > PAYLOAD_MAX as u64 {
        op.flags |= flags::CUT;
        PAYLOAD_MAX as u64
    } else {
        moved
    };
    let len = mask::<0x1fff>(len) as u32;
    op.payload_len = len as u16;
    read::user_bytes(scratch.payload.as_mut_ptr(), len, at)
}

/// Eight bytes of the payload, as they stand there.
#[inline(always)]
fn word(payload: &[u8; 2 * PAYLOAD_MAX], at: u64) -> [u8; 8] {
    let at = mask::<0xfff>(at) as usize;
    // SAFETY: `at` is below the payload's limit, half of its room.
    unsafe { payload.as_ptr().add(at).cast::<[u8; 8]>().read_unaligned() }
}

/// Bytes in several pieces: all of the first 4 KiB are gathered, for where the pieces begin is where
/// heads begin.
#[inline(always)]
fn gather(
    scratch: &mut SockScratch,
    sock: &Sock<impl Reader>,
    call: &Call,
    at: u64,
    iovecs: u64,
    moved: u64,
) -> bool {
    let mut left = moved;
    let mut taken: u64 = 0;
    let mut last = (0, 0);
    let mut before = (0, 0);
    for i in 0..IOVEC_MAX as u64 {
        if i >= iovecs || left == 0 {
            break;
        }
        let Some([base, len]) = read::user::<[u64; 2]>(at + i * 16) else {
            return false;
        };
        let len = len.min(left);
        if len == 0 {
            continue;
        }
        before = last;
        last = (base, len);
        left -= len;
        if taken < PAYLOAD_MAX as u64 {
            let take = mask::<0x1fff>(len.min(PAYLOAD_MAX as u64 - taken));
            if take > PAYLOAD_MAX as u64 {
                return false;
            }
            let to = mask::<0xfff>(taken) as usize;
            // SAFETY: `to` is below the payload's limit, half of its room.
            let to = unsafe { scratch.payload.as_mut_ptr().add(to) };
            if !read::user_bytes(to, take as u32, base) {
                return false;
            }
            taken += take;
        }
    }
    let op = &mut scratch.op;
    if left > 0 {
        count(Counter::IovecsCut);
    } else {
        match tail(last, before) {
            Some(bytes) => {
                op.tail = bytes;
                op.tail_len = 8;
            }
            // Shorter than eight bytes in all, or in crumbs.
            None => op.tail_len = 0,
        }
    }
    // SAFETY: the payload's room is larger than eight bytes.
    op.first = unsafe { scratch.payload.as_ptr().cast::<[u8; 8]>().read_unaligned() };
    if taken < 8 {
        let word = u64::from_le_bytes(op.first) & ((1 << (taken * 8)) - 1);
        op.first = word.to_le_bytes();
    }
    if wanted(op, sock, call, moved) {
        op.payload_len = taken as u16;
        if taken < moved {
            op.flags |= flags::CUT;
        }
    }
    true
}

/// The last eight bytes of several pieces, given the last piece and the one before it; `None` where they
/// are spread wider.
#[inline(always)]
fn tail((base, len): (u64, u64), (before, before_len): (u64, u64)) -> Option<[u8; 8]> {
    if len >= 8 {
        return read::user(base + len - 8);
    }
    if before_len < 8 {
        return None;
    }
    let head: [u8; 8] = read::user(before + before_len - 8)?;
    let mut end = [0u8; 8];
    let len = mask::<7>(len);
    if !read::user_bytes(end.as_mut_ptr(), len as u32, base) {
        return None;
    }
    // Little-endian: later bytes stand higher in the word.
    let word = u64::from_le_bytes(head) >> (len * 8) | u64::from_le_bytes(end) << ((8 - len) * 8);
    Some(word.to_le_bytes())
}

/// Whether the bytes may begin a head, or continue one: then they are worth their copy.
#[inline(always)]
fn wanted(op: &mut SockOp, sock: &Sock<impl Reader>, call: &Call, moved: u64) -> bool {
    if may_begin_head(op.first[0], call.send) {
        begins(op, sock, call);
        return true;
    }
    let (key, head) = head(sock, call);
    let Some(head) = head else {
        return false;
    };
    // SAFETY: the entry is this socket's and direction's. One thread at a time moves bytes there; where
    // two race, or two sockets share the entry, what is left is off by one operation.
    unsafe {
        let left = (*head).left;
        if (*head).key != key || left == 0 {
            return false;
        }
        (*head).left = left.saturating_sub(moved.min(PAYLOAD_MAX as u64));
    }
    op.flags |= flags::CONTINUATION;
    true
}

/// Notes that the bytes may begin a head, and whether it ends with them.
#[inline(always)]
fn begins(op: &mut SockOp, sock: &Sock<impl Reader>, call: &Call) {
    op.flags |= flags::HEAD;
    let left = if ends_head(op) {
        0
    } else {
        u64::from(HEAD_BUDGET)
    };
    if let (key, Some(head)) = head(sock, call) {
        // SAFETY: the entry lies in the map; see `wanted` for races.
        unsafe { head.write(Head { key, left }) };
    }
}

/// What is remembered of heads in a direction of a socket: the key, and the entry for it.
#[inline(always)]
fn head(sock: &Sock<impl Reader>, call: &Call) -> (u64, Option<*mut Head>) {
    let key = sock.inode << 1 | u64::from(call.send);
    (key, HEADS.get_ptr_mut(key as u32 & (HEADS_MAX - 1)))
}

/// Whether a head may begin with this byte: a method or `HTTP/1.` does with a letter, and an empty line
/// may stand before a request. What a traced process writes itself is well-formed, and then the letter
/// is a capital one.
#[inline(always)]
fn may_begin_head(byte: u8, send: bool) -> bool {
    byte.is_ascii_uppercase()
        || (!send && (byte.is_ascii_lowercase() || byte == b'\r' || byte == b'\n'))
}

/// Whether the first bytes are those of a response head, which no request's are.
#[inline(always)]
fn begins_response(op: &SockOp) -> bool {
    const BEGIN: u64 = u64::from_le_bytes(*b"HTTP/\0\0\0");
    u64::from_le_bytes(op.first) & 0xff_ffff_ffff == BEGIN
}

/// Whether the last bytes are the empty line that ends a head.
#[inline(always)]
fn ends_head(op: &SockOp) -> bool {
    const END: u64 = u32::from_le_bytes(*b"\r\n\r\n") as u64;
    op.tail_len >= 4 && u64::from_le_bytes(op.tail) >> 32 == END
}
