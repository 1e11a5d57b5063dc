//! Counting a sample whose stack is known allocates nothing.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use decnet_trace::{
    decode::{Event, decode},
    profile::aggregate::{Aggregator, Options},
    symbolize::{self, Limits, NoPython},
};
use decnet_trace_common::event::{ABI_VERSION, Header, Kind, Sample};

/// The system's allocator, which counts what each thread asks of it.
struct Counting;

thread_local! {
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is handed on to the system's allocator unchanged; the counter is a plain cell
// that needs no allocation and no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED.set(ASKED.get() + 1);
        // SAFETY: as promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as promised by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ASKED.set(ASKED.get() + 1);
        // SAFETY: as promised by the caller.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A record of a sample with one Python frame at this line, and some of everything else.
fn record(line: u64) -> Vec<u8> {
    let (kernel, user, python) = (20_u16, 40_u16, 1_u16);
    let words = usize::from(kernel + user + 2 * python);
    let len = size_of::<Sample>() + 8 * words;
    let mut bytes = vec![0; size_of::<Header>()];
    bytes[8..12].copy_from_slice(&7_u32.to_ne_bytes());
    bytes[20..22].copy_from_slice(&u16::try_from(len).unwrap().to_ne_bytes());
    bytes[22..24].copy_from_slice(&[Kind::Sample as u8, ABI_VERSION]);
    bytes.extend([0; 16]);
    for count in [kernel, user, python, 0] {
        bytes.extend(count.to_ne_bytes());
    }
    for word in 0..words as u64 - 1 {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(line.to_ne_bytes());
    assert_eq!(bytes.len(), len);
    bytes
}

/// After each of some stacks has been seen, seeing them again asks nothing of the allocator; a new
/// one does, or this test would count nothing.
#[test]
fn a_known_stack_allocates_nothing() {
    let (client, _) = symbolize::spawn(Limits::default(), Box::new(NoPython)).unwrap();
    let options = Options {
        native: true,
        kernel: true,
        threads: true,
        ..Options::default()
    };
    let mut aggregator = Aggregator::new(options, client);
    let records: Vec<Vec<u8>> = (0..100).map(record).collect();
    let mut feed = |bytes: &[u8]| {
        let before = ASKED.get();
        let Event::Sample(sample, frames) = decode(bytes).unwrap() else {
            panic!("a sample was made");
        };
        aggregator.sample(&sample, &frames).unwrap();
        ASKED.get() - before
    };
    for record in &records {
        assert!(feed(record) > 0);
    }
    for _ in 0..1_000 {
        for record in &records {
            assert_eq!(feed(record), 0);
        }
    }
}
