//! The hot path's promise: body operations and requests allocate nothing, and a span no more than the list
//! of its attributes, and what is long and new in it.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::Arc,
};

use decnet_trace::{
    correlate::{Correlator, Limits},
    policy::{ClockOffset, Policy, PolicyConfig},
    span::{Resource, Value},
    telemetry::Counters,
};
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

/// In steady state neither a request nor its body's operations cost an allocation, whatever their number
/// and however the body is framed.
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
    assert_eq!((short, long), (0, 0));
}

/// In steady state a request of a browser becomes a span with one allocation, that of its attributes; a
/// path that is long and new costs one more, and the call that it is for another process two: its path
/// and its URL, or one where the URL is that of a call before it.
#[test]
fn spans() {
    let resource = Arc::new(Resource {
        tgid: 1,
        service_name: "shop".to_owned(),
        attributes: vec![("service.name".into(), Value::Str("shop".into()))],
    });
    let clock = ClockOffset::from_readings(0, 1_000_000);
    let mut policy =
        Policy::new(PolicyConfig::default(), Arc::new(Counters::new())).expect("random bytes");
    let mut correlator = Correlator::new(Limits::default());
    let mut out = Vec::with_capacity(4);
    let response = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let mut ts = 0;
    let mut of = |path: &str, serves: bool| {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: api.a-long-name.example.org:8000\r\n\
             User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\r\n"
        );
        let request = request.as_bytes();
        ts += 1000;
        let mut operations = [
            op(6 + u64::from(serves), ts, !serves, request),
            op(6 + u64::from(serves), ts + 500, serves, response),
        ];
        for op in &mut operations {
            // 127.0.0.1 on both ends.
            op.flags |= flags::TUPLE;
            op.tuple.family = 2;
            op.tuple.local[..4].copy_from_slice(&[127, 0, 0, 1]);
            op.tuple.remote[..4].copy_from_slice(&[127, 0, 0, 1]);
        }
        allocations(|| {
            correlator.on_sock_op(&operations[0], request, &mut out);
            correlator.on_sock_op(&operations[1], response, &mut out);
            correlator.asked().for_each(drop);
            for exchange in out.drain(..) {
                let span = policy.span(&exchange, &resource, clock, None);
                assert!(span.attributes.len() > 15, "{span:?}");
            }
        })
    };
    let long = |n: u32| format!("/customers/{n}/orders/2024/items/{n}");
    for serves in [true, false] {
        for n in 0..3 {
            of("/items/7", serves);
            of(&long(n), serves);
        }
    }
    assert_eq!(of("/items/8", true), 1);
    assert_eq!(of(&long(7), true), 2);
    assert_eq!(of("/items/8", false), 2);
    assert_eq!(of("/items/8", false), 1);
    assert_eq!(of(&long(8), false), 3);
}
