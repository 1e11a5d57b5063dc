//! The correlator's promise for the hot path: body operations allocate nothing, and an exchange no
//! more than the texts that it hands out.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use decnet_trace::correlate::{Correlator, Limits};
use decnet_trace_common::event::{SockOp, flags};

struct Counting;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator as it is; the counter is a plain cell
// without a destructor, which allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> usize {
    let before = COUNT.with(Cell::get);
    work();
    COUNT.with(Cell::get) - before
}

fn op(sock: u64, ts: u64, send: bool, bytes: &[u8]) -> SockOp {
    let mut op = SockOp {
        sock,
        ret: bytes.len() as i32,
        flags: if send { flags::SEND } else { 0 },
        tail_len: 8,
        ..SockOp::default()
    };
    op.header.ts = ts;
    op.first.copy_from_slice(&bytes[..8]);
    op.tail.copy_from_slice(&bytes[bytes.len() - 8..]);
    op
}

/// In steady state a request costs three small allocations (target, host, user agent), and the
/// operations of a body none, whatever their number and however the body is framed.
#[test]
fn steady_state() {
    let request = b"GET /items?id=1 HTTP/1.1\r\nHost: example.org\r\nUser-Agent: x\r\n\r\n";
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = [&b"3e8\r\n"[..], &[b'x'; 1000], b"\r\n"].concat();
    // Two chunks in one operation: the second one's size is out of sight.
    let chunks = [&chunk[..], &chunk[..]].concat();
    let last = [&chunk[..], b"0\r\n\r\n"].concat();
    let mut correlator = Correlator::new(Limits::default());
    let mut out = Vec::with_capacity(64);
    let mut ts = 0;
    let mut exchange = |out: &mut Vec<_>, ts: &mut u64, bodies: usize| {
        let mut step = |send: bool, bytes: &[u8], payload: &[u8]| {
            *ts += 1000;
            correlator.on_sock_op(&op(6, *ts, send, bytes), payload, out);
            *ts += 1000;
            correlator.on_sock_op(&op(7, *ts, send, bytes), payload, out);
        };
        step(false, request, request);
        step(true, chunked, chunked);
        for _ in 0..bodies {
            step(true, &chunk, &[]);
            step(true, &chunks, &[]);
        }
        step(true, &last, &[]);
        *ts += 100_000_000;
        correlator.tick(*ts, out);
    };
    exchange(&mut out, &mut ts, 10);
    exchange(&mut out, &mut ts, 10);
    assert_eq!(out.len(), 4);
    let short = allocations(|| exchange(&mut out, &mut ts, 1));
    let long = allocations(|| exchange(&mut out, &mut ts, 1000));
    assert_eq!(out.len(), 8);
    assert_eq!((short, long), (6, 6));
}
