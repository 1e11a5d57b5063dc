//! Sockets that begin to listen, and those that a traced process connects or closes.

use core::mem::MaybeUninit;

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use decnet_trace_common::event::{Kind, SockState, tcp_state};

use crate::{
    emit, gate,
    maps::{CONNECTS, CONNECTS_MAX},
    sock,
};

#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    try_inet_sock_set_state(&ctx);
    0
}

#[inline(always)]
fn try_inet_sock_set_state(ctx: &BtfTracePointContext) -> Option<()> {
    let current = gate::current()?;
    let (old, new) = (ctx.arg::<i32>(1) as u8, ctx.arg::<i32>(2) as u8);
    match new {
        // Of any process: it may be one to trace.
        tcp_state::LISTEN => {}
        // A close by the process itself. The peer's doing reaches the process as the end of the
        // stream or an error, which the socket hooks see. In a softirq the running process is anyone,
        // but then the socket is none that it owns, and the correlator knows.
        tcp_state::FIN_WAIT1 | tcp_state::LAST_ACK | tcp_state::CLOSE => {
            gate::target(current.tgid)?;
        }
        // The process connects.
        tcp_state::SYN_SENT => {
            gate::target(current.tgid)?;
        }
        // The connection is there; as a rule, this is a softirq.
        tcp_state::ESTABLISHED if old == tcp_state::SYN_SENT => {}
        _ => return None,
    }
    // SAFETY: the tracepoint's first argument is a `const struct sock *`.
    let sock = unsafe { sock::from_typed(ctx.arg(0)) }?;
    if sock.inode == 0 {
        return None;
    }
    if new == tcp_state::SYN_SENT || new == tcp_state::ESTABLISHED {
        let connect = CONNECTS.get_ptr_mut(sock.inode as u32 & (CONNECTS_MAX - 1))?;
        // SAFETY: the entry lies in the map. Where two sockets share it, the last to connect has it.
        unsafe {
            if new == tcp_state::SYN_SENT {
                connect.write(sock.inode);
            } else if connect.read() == sock.inode {
                connect.write(0);
            } else {
                return None;
            }
        }
    }
    say!(
        ctx,
        "socket {} of process {}: state {} to {}",
        sock.inode,
        current.tgid,
        old,
        new
    );
    let mut record = MaybeUninit::<SockState>::uninit();
    // SAFETY: a `SockState` is made of integers, and holds a `u64`.
    let record = unsafe {
        emit::zero(record.as_mut_ptr());
        record.assume_init_mut()
    };
    record.header = emit::header(Kind::SockState, current);
    record.header.len = size_of::<SockState>() as u16;
    record.sock = sock.inode;
    if let Some(tuple) = sock::tuple(sock.sk) {
        record.tuple = tuple;
    }
    record.old = old;
    record.new = new;
    emit::fixed(record);
    Some(())
}
