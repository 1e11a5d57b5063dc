//! For whom threads run, told as stories.

use super::*;

const TGID: u32 = 7;
const MAIN: u32 = 7;
const WORKER: u32 = 8;
/// The loop of a pool's threads, and another function.
const LOOP: u64 = 0x100;
const OTHER: u64 = 0x200;

fn header(ts: u64, tid: u32) -> Header {
    Header {
        ts,
        tgid: TGID,
        tid,
        ..Header::default()
    }
}

/// A watched process with a pool whose loop is known.
fn process() -> Identities {
    let mut all = Identities::default();
    all.arm(TGID, 1);
    for (caller, is_loop) in [(LOOP, true), (OTHER, false)] {
        taken(&mut all, 1, 99, 0, caller);
        assert!(all.unknown_callers().eq([(TGID, caller)]));
        all.set_loop(TGID, caller, Some(is_loop));
    }
    all
}

fn step(all: &mut Identities, header: Header, what: LineageWhat, context: u64, object: u64) {
    all.on_lineage(&Lineage {
        header,
        context,
        object,
        caller: 0,
        what: what as u32,
        reserved: 0,
    });
}

fn put(all: &mut Identities, ts: u64, tid: u32, context: u64, object: u64) {
    step(all, header(ts, tid), LineageWhat::Put, context, object);
}

fn taken(all: &mut Identities, ts: u64, tid: u32, object: u64, caller: u64) {
    all.on_lineage(&Lineage {
        header: header(ts, tid),
        object,
        caller,
        what: LineageWhat::Taken as u32,
        ..Lineage::default()
    });
}

/// Whose work someone does.
fn parent(all: &Identities, identity: Identity) -> Identity {
    all.node(identity)
        .map_or(Identity::UNKNOWN, |node| node.parent)
}

/// What a pool's thread takes out of its queue it does for who put it there, until it looks for more;
/// a context of its own changes nothing, a copied one does.
#[test]
fn work_through_a_queue() {
    let mut all = process();
    let request = all.resolve(&header(10, MAIN), 0xA);
    put(&mut all, 11, MAIN, 0xA, 0x500);
    taken(&mut all, 12, WORKER, 0x500, LOOP);
    let worker = all.resolve(&header(13, WORKER), 0);
    assert_eq!(parent(&all, worker), request);
    assert_eq!(all.resolve(&header(14, WORKER), 0xB), worker);
    step(&mut all, header(15, WORKER), LineageWhat::Copied, 0xB, 0xC);
    let copy = all.resolve(&header(16, WORKER), 0xC);
    assert_eq!(parent(&all, copy), worker);
    // The same thread, idle.
    taken(&mut all, 17, WORKER, 0, LOOP);
    assert!(all.resolve(&header(18, WORKER), 0).is_unknown());
    // What it takes next was put there by nobody known.
    taken(&mut all, 19, WORKER, 0x500, LOOP);
    assert!(all.resolve(&header(20, WORKER), 0).is_unknown());
}

/// A queue that the work itself uses tells nothing about the thread.
#[test]
fn queues_within_the_work() {
    let mut all = process();
    let request = all.resolve(&header(10, MAIN), 0xA);
    put(&mut all, 11, MAIN, 0xA, 0x500);
    put(&mut all, 11, MAIN, 0xF, 0x600);
    taken(&mut all, 12, WORKER, 0x500, LOOP);
    taken(&mut all, 13, WORKER, 0x600, OTHER);
    let worker = all.resolve(&header(14, WORKER), 0);
    assert_eq!(parent(&all, worker), request);
}

/// Until it is known what takes something out of a queue, nothing is said; once it is known to be a loop,
/// what was done meanwhile has its owner too.
#[test]
fn unknown_callers_wait() {
    let mut all = Identities::default();
    all.arm(TGID, 1);
    let request = all.resolve(&header(9, MAIN), 0xA);
    put(&mut all, 10, MAIN, 0xA, 0x500);
    taken(&mut all, 11, WORKER, 0x500, LOOP);
    let early = all.resolve(&header(12, WORKER), 0);
    assert!(parent(&all, early).is_unknown());
    assert!(all.is_rootless(early) && all.is_unjudged(early, 13));
    assert!(!all.is_unjudged(early, 12 + VERDICT_MAX));
    assert!(all.unknown_callers().eq([(TGID, LOOP)]));
    taken(&mut all, 13, WORKER, 0, LOOP);
    assert!(all.resolve(&header(14, WORKER), 0).is_unknown());
    assert_eq!(all.unknown_callers().count(), 0);
    all.set_loop(TGID, LOOP, Some(true));
    assert_eq!(parent(&all, parent(&all, early)), request);
    assert!(!all.is_unjudged(early, 13));
    assert!(all.resolve(&header(15, WORKER), 0).is_unknown());
    put(&mut all, 16, MAIN, 0xA, 0x500);
    taken(&mut all, 17, WORKER, 0x500, LOOP);
    let late = all.resolve(&header(18, WORKER), 0);
    assert_eq!(parent(&all, late), request);
}

/// What a function took that turns out to be no loop is nobody's, then and afterwards; and so is what one
/// took of which nothing is ever found out.
#[test]
fn refused_callers() {
    let mut all = Identities::default();
    all.arm(TGID, 1);
    for (caller, judged) in [(OTHER, true), (OTHER + 8, false)] {
        put(&mut all, 10, MAIN, 0xA, 0x500);
        taken(&mut all, 11, WORKER, 0x500, caller);
        let early = all.resolve(&header(12, WORKER), 0);
        if judged {
            all.set_loop(TGID, caller, Some(false));
            assert!(all.resolve(&header(13, WORKER), 0).is_unknown());
        }
        assert_eq!(all.is_unjudged(early, 13), !judged);
        assert!(parent(&all, early).is_unknown());
    }
}

/// Where it could not be found out what a function is, or could not even be asked, it is asked again when the
/// function takes something else, though not for ever; once it is known, so is whose work was done meanwhile.
#[test]
fn asked_again() {
    let mut all = Identities::default();
    all.arm(TGID, 1);
    let request = all.resolve(&header(9, MAIN), 0xA);
    put(&mut all, 10, MAIN, 0xA, 0x500);
    taken(&mut all, 11, WORKER, 0x500, LOOP);
    let early = all.resolve(&header(12, WORKER), 0);
    assert!(all.unknown_callers().eq([(TGID, LOOP)]));
    all.set_loop(TGID, LOOP, None);
    taken(&mut all, 13, WORKER, 0, LOOP);
    taken(&mut all, 14, WORKER, 0, LOOP);
    assert!(all.unknown_callers().eq([(TGID, LOOP)]));
    all.set_loop(TGID, LOOP, Some(true));
    assert_eq!(parent(&all, parent(&all, early)), request);

    // Too many at once.
    for caller in 0..CALLERS_MAX as u64 + 1 {
        taken(&mut all, 15, WORKER, 0, 0x1000 + caller);
    }
    assert_eq!(all.unknown_callers().count(), CALLERS_MAX);
    let last = 0x1000 + CALLERS_MAX as u64;
    taken(&mut all, 16, WORKER, 0, last);
    assert!(all.unknown_callers().eq([(TGID, last)]));

    let mut times = 1;
    for _ in 0..1_000 {
        all.set_loop(TGID, last, None);
        taken(&mut all, 17, WORKER, 0, last);
        times += all.unknown_callers().count();
    }
    assert!((2..100).contains(&times), "{times}");
}

/// A thread that ended, and lost events, leave nothing behind.
#[test]
fn what_ends_it() {
    let mut all = process();
    put(&mut all, 10, MAIN, 0xA, 0x500);
    taken(&mut all, 11, WORKER, 0x500, LOOP);
    all.on_proc(&Proc {
        header: header(12, WORKER),
        what: ProcWhat::ThreadExit as u32,
        ..Proc::default()
    });
    assert!(all.resolve(&header(13, WORKER), 0).is_unknown());
    put(&mut all, 14, MAIN, 0xA, 0x500);
    all.events_lost(20);
    taken(&mut all, 21, WORKER, 0x500, LOOP);
    assert!(all.resolve(&header(22, WORKER), 0).is_unknown());
    // What happened before the loss was noticed is nobody's.
    assert!(all.resolve(&header(19, MAIN), 0xA).is_unknown());
}

fn read(all: &mut Identities, ts: u64, sock: u64, how: u16) -> Identity {
    all.on_sock_op(&SockOp {
        header: header(ts, WORKER),
        sock,
        ret: 40,
        flags: flags::HEAD | how,
        first: *b"GET / HT",
        ..SockOp::default()
    })
}

fn answer(all: &mut Identities, ts: u64, sock: u64) -> Identity {
    all.on_sock_op(&SockOp {
        header: header(ts, WORKER),
        sock,
        ret: 40,
        flags: flags::HEAD | flags::SEND,
        first: *b"HTTP/1.1",
        ..SockOp::default()
    })
}

/// A thread that reads and answers requests one by one is somebody else for each.
#[test]
fn turns_of_a_thread() {
    let mut all = process();
    let first = read(&mut all, 10, 1, flags::BLOCKING);
    assert!(!first.is_unknown());
    assert_eq!(all.resolve(&header(11, WORKER), 0), first);
    assert_eq!(answer(&mut all, 12, 1), first);
    let second = read(&mut all, 20, 2, flags::BLOCKING);
    assert!(!second.is_unknown() && second != first);
    assert_eq!(answer(&mut all, 21, 2), second);
}

/// A thread that does not wait for its requests, or reads one before it has answered another, has no
/// turns.
#[test]
fn no_turns_where_requests_interleave() {
    let mut all = process();
    assert!(read(&mut all, 10, 1, 0).is_unknown());
    assert!(!read(&mut all, 11, 1, flags::BLOCKING).is_unknown());
    assert!(read(&mut all, 12, 2, flags::BLOCKING).is_unknown());
    assert!(answer(&mut all, 13, 1).is_unknown());
    assert!(answer(&mut all, 14, 2).is_unknown());
    // From here on it behaves.
    assert!(!read(&mut all, 15, 3, flags::BLOCKING).is_unknown());
}

/// A request that was never answered does not spoil those after it once its connection is closed.
#[test]
fn an_aborted_turn() {
    let mut all = process();
    read(&mut all, 10, 1, flags::BLOCKING);
    all.on_sock_state(&SockState {
        header: header(11, WORKER),
        sock: 1,
        new: tcp_state::LAST_ACK,
        ..SockState::default()
    });
    assert!(!read(&mut all, 12, 2, flags::BLOCKING).is_unknown());
}

/// What is remembered is bounded, and what is forgotten is nobody's.
#[test]
fn bounds() {
    let mut all = Identities::new(16);
    all.arm(TGID, 1);
    let first = all.resolve(&header(2, MAIN), 0xA);
    for n in 0..CONTEXTS_MAX as u64 + 10 {
        step(
            &mut all,
            header(3, MAIN),
            LineageWhat::Copied,
            0xA,
            0x1000 + n * 8,
        );
    }
    assert!(all.node(first).is_none());
    assert!(all.evicted() >= CONTEXTS_MAX as u64);
    assert!(all.processes[&TGID].contexts.len() <= CONTEXTS_MAX);
}

/// Requests begin with a method; responses and other protocols do not.
#[test]
fn methods() {
    for (first, want) in [
        (b"GET / HT", true),
        (b"DELETE /", true),
        (b"OPTIONS ", true),
        (b"PROPFIND", true),
        (b"HTTP/1.1", false),
        (b"T\0\0\0\x20\0\x01\0", false),
        (b"hello, w", false),
    ] {
        assert_eq!(begins_request(*first), want, "{first:?}");
    }
}
