#![expect(clippy::unwrap_used, reason = "a test may panic")]

use super::*;
use crate::{correlate::exchange::End, policy::tests as policy};

const CALLER: u32 = 1;
const SERVER: u32 = 2;
const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;

/// The server's end of an exchange that was read and answered at these times.
fn served(port: u16, target: &str, start: u64, end: u64) -> Exchange {
    Exchange {
        tgid: SERVER,
        ends: Ends::Ip {
            local: "10.0.0.2:80".parse().unwrap(),
            remote: SocketAddr::from(([10, 0, 0, 1], port)),
        },
        sock: 1_000 + u64::from(port),
        target: target.into(),
        start,
        response_start: Some(end),
        end,
        ..policy::served()
    }
}

/// The client's end of one.
fn called(port: u16, target: &str, start: u64, end: u64) -> Exchange {
    Exchange {
        tgid: CALLER,
        role: Role::Client,
        sock: u64::from(port),
        ends: Ends::Ip {
            local: SocketAddr::from(([10, 0, 0, 1], port)),
            remote: "10.0.0.2:80".parse().unwrap(),
        },
        ..served(port, target, start, end)
    }
}

/// A call on a connection that was last read from before.
fn nth(number: u32, before: u64, call: Exchange) -> Exchange {
    Exchange {
        number,
        before,
        ..call
    }
}

fn span(id: u8) -> SpanRef {
    SpanRef {
        trace_id: [id; 16],
        span_id: [id; 8],
        trace_state: "".into(),
        trace_flags: 0,
    }
}

/// Two processes of one network namespace, seen from 1 s on.
fn joins() -> Joins<u8> {
    let mut joins = Joins::default();
    joins.trace(CALLER, 4, SECOND);
    joins.trace(SERVER, 4, SECOND);
    joins
}

impl Joins<u8> {
    /// A call, from its begin to its place.
    fn make(&mut self, call: &Exchange, id: u8) {
        self.asked(Asked::new(call).unwrap());
        self.over(call);
        self.placed(call, || span(id), call.end);
    }

    /// What becomes of requests that wait, in the order of their ends: the call that each is put under.
    fn look(&mut self, now: u64, last: bool) -> Vec<(u8, Option<u8>)> {
        let mut out = Vec::new();
        // What was not found at first is looked for again.
        for _ in 0..2 {
            self.decide(now, last, |_, what, span| {
                out.push((what, span.map(|span| span.span_id[0])));
            });
        }
        out.sort_unstable();
        out
    }
}

/// Requests that take turns on a connection are put under their own calls, though all ask for the same.
#[test]
fn in_turn() {
    let mut joins = joins();
    let base = 2 * SECOND;
    let mut before = 0;
    for n in 0..5_u64 {
        let at = base + n * 10 * MS;
        joins.make(
            &nth(n as u32, before, called(9, "/", at, at + 5 * MS)),
            n as u8,
        );
        before = at + 5 * MS;
    }
    for n in (0..5_u64).rev() {
        let at = base + n * 10 * MS;
        let request = served(9, "/", at + MS, at + 4 * MS);
        assert!(joins.may_be_called(&request));
        assert!(joins.wait(request, n as u8).is_none());
    }
    let all: Vec<_> = (0..5).map(|n| (n, Some(n))).collect();
    assert_eq!(joins.look(3 * SECOND, false), all);
    assert_eq!((joins.waiting(), joins.count), (0, 0));
}

/// A request waits until its call is over and has its place.
#[test]
fn waits_for_the_call() {
    let mut joins = joins();
    let at = 2 * SECOND;
    let call = called(9, "/", at, at + 9 * MS);
    assert!(!joins.may_be_called(&served(9, "/", at + 1, at + 2)));
    joins.asked(Asked::new(&call).unwrap());
    joins.wait(served(9, "/", at + 1, at + 2), 7);
    assert_eq!(joins.look(at + 3, false), []);
    joins.over(&call);
    assert_eq!(joins.look(at + 10 * MS, false), []);
    joins.placed(&call, || span(3), at + 20 * MS);
    assert_eq!(joins.look(at + 20 * MS, false), [(7, Some(3))]);
}

/// A request may be read a little before its writing is told; one that was read long before belongs to
/// a call that was not seen.
#[test]
fn read_before_it_was_written() {
    let at = 2 * SECOND;
    for (early, before, found) in [
        (MS, 0, true),
        (RACE + MS, 0, false),
        (RACE + MS, at - RACE - 2 * MS, true),
        (MS, at - MS / 2, false),
    ] {
        let mut joins = joins();
        joins.make(&nth(4, before, called(9, "/", at, at + 5 * MS)), 1);
        joins.wait(served(9, "/", at - early, at + 4 * MS), 7);
        let want = [(7, found.then_some(1))];
        assert_eq!(joins.look(3 * SECOND, false), want, "{early} {before}");
    }
}

/// What was read before everything was seen is nobody's: the call that it was may be missing.
#[test]
fn from_the_middle() {
    let mut joins = joins();
    joins.make(&called(9, "/", SECOND + MS / 2, SECOND + 5 * MS), 1);
    joins.wait(served(9, "/", SECOND - MS, SECOND + 4 * MS), 7);
    assert_eq!(joins.look(3 * SECOND, false), [(7, None)]);
    // Likewise where records were lost.
    joins.make(&called(8, "/", 2 * SECOND, 2 * SECOND + 5 * MS), 2);
    joins.events_lost(2 * SECOND + 2 * MS);
    joins.wait(served(8, "/", 2 * SECOND + MS, 2 * SECOND + 4 * MS), 8);
    assert_eq!(joins.look(3 * SECOND, false), [(8, None)]);
}

/// A request that is read after the response to the only call that was seen is another's.
#[test]
fn of_a_call_that_was_not_seen() {
    let mut joins = joins();
    let at = 2 * SECOND;
    joins.make(&called(9, "/", at, at + 5 * MS), 1);
    joins.wait(served(9, "/", at + 6 * MS, at + 7 * MS), 7);
    assert_eq!(joins.look(3 * SECOND, false), [(7, None)]);
}

/// Pipelined calls, other targets, other statuses: none of them is believed.
#[test]
fn contradictions() {
    let at = 2 * SECOND;
    let whole = || called(9, "/", at, at + 5 * MS);
    for call in [
        Exchange {
            pipelined: true,
            ..whole()
        },
        Exchange {
            status: Some(500),
            ..whole()
        },
        Exchange {
            method: "PUT".into(),
            ..whole()
        },
        Exchange {
            target: "/x".into(),
            ..whole()
        },
    ] {
        let mut joins = joins();
        joins.make(&call, 1);
        joins.wait(served(9, "/", at + 1, at + 2), 7);
        assert_eq!(joins.look(3 * SECOND, false), [(7, None)], "{call:?}");
    }
    let pipelined = Exchange {
        pipelined: true,
        ..served(9, "/", at + 1, at + 2)
    };
    assert!(joins().wait(pipelined, 7).is_some());
}

/// Where two connections have the same ends, in two network namespaces, neither is believed; loopback
/// addresses say nothing across namespaces; and across namespaces sizes must be the same.
#[test]
fn namespaces() {
    let at = 2 * SECOND;
    let mut joins = joins();
    joins.trace(3, 5, SECOND);
    let other = Exchange {
        tgid: 3,
        sock: 77,
        ..called(9, "/", at, at + 5 * MS)
    };
    joins.make(&called(9, "/", at, at + 5 * MS), 1);
    joins.make(&other, 2);
    joins.wait(served(9, "/", at + 1, at + 2), 7);
    assert_eq!(joins.look(3 * SECOND, false), [(7, None)]);
    assert_eq!(joins.counts().ambiguous, 1);

    for (network, loopback, bytes, found) in [
        (4, true, 80, true),
        (5, true, 80, false),
        (0, true, 80, false),
        (4, false, 81, true),
        (5, false, 80, true),
        (5, false, 81, false),
    ] {
        let mut joins: Joins<u8> = super::tests::joins();
        joins.trace(CALLER, network, SECOND);
        let (client, server) = match loopback {
            true => ("127.0.0.1:9", "127.0.0.1:80"),
            false => ("10.0.0.1:9", "10.0.0.2:80"),
        };
        let (client, server) = (client.parse().unwrap(), server.parse().unwrap());
        let mut call = called(9, "/", at, at + 5 * MS);
        call.ends = Ends::Ip {
            local: client,
            remote: server,
        };
        call.request_bytes = bytes;
        let mut request = served(9, "/", at + 1, at + 2);
        request.ends = Ends::Ip {
            local: server,
            remote: client,
        };
        joins.make(&call, 1);
        joins.wait(request, 7);
        let want = [(7, found.then_some(1))];
        assert_eq!(joins.look(3 * SECOND, false), want, "{network} {loopback}");
    }
}

/// A unix socket's ends know each other by the client's inode number.
#[test]
fn unix_sockets() {
    let at = 2 * SECOND;
    let mut joins = joins();
    let call = Exchange {
        ends: Ends::Unix,
        ..called(9, "/", at, at + 5 * MS)
    };
    joins.make(&call, 1);
    for (peer, found) in [(8, None), (0, None), (9, Some(1))] {
        let request = Exchange {
            ends: Ends::Unix,
            unix_peer: peer,
            ..served(9, "/", at + 1, at + 2)
        };
        match joins.wait(request, 7) {
            Some(_) => assert_eq!(peer, 0),
            None => assert_eq!(joins.look(3 * SECOND, false), [(7, found)]),
        }
    }
}

/// A client that gave up is found by its server for a while; one that had its answer not for so long; and
/// nothing is remembered for ever.
#[test]
fn forgets() {
    let at = 2 * SECOND;
    for (broken, later, found) in [
        (false, KEEP / 2, true),
        (false, KEEP + SECOND, false),
        (true, KEEP + SECOND, true),
        (true, KEEP_BROKEN + SECOND, false),
    ] {
        let mut joins = joins();
        let mut call = called(9, "/", at, at + 5 * MS);
        if broken {
            call.ended_by = End::Aborted;
            (call.status, call.response_start) = (None, None);
        }
        joins.make(&call, 1);
        joins.sweep(at + later, |_, _| false);
        assert_eq!(joins.count, usize::from(found));
        joins.wait(served(9, "/", at + 1, at + later), 7);
        let want = [(7, found.then_some(1))];
        assert_eq!(joins.look(at + later, false), want, "{broken} {later}");
    }
    let mut joins = joins();
    joins.asked(Asked::new(&called(9, "/", at, at)).unwrap());
    joins.sweep(at + SECOND, |_, _| false);
    joins.sweep(at + 2 * KEEP, |sock, _| sock == 9);
    assert_eq!(joins.count, 1);
    joins.sweep(at + 2 * KEEP, |_, _| false);
    assert_eq!((joins.count, joins.calls.len()), (0, 0));
}

/// However long a call takes to find its place, a request does not wait for ever, and at the end for
/// nothing.
#[test]
fn gives_up() {
    let at = 2 * SECOND;
    for last in [false, true] {
        let mut joins = joins();
        joins.asked(Asked::new(&called(9, "/", at, at)).unwrap());
        joins.wait(served(9, "/", at + 1, at + 2), 7);
        assert_eq!(joins.look(at + SECOND, false), []);
        let later = if last { SECOND } else { WAIT_MAX + SECOND };
        joins.sweep(at + later, |_, _| true);
        assert_eq!(joins.look(at + later, last), [(7, None)]);
        assert_eq!((joins.counts().late, joins.waiting()), (1, 0));
    }
}

/// Of calls that nobody answers, and of requests whose calls never end, only so many are kept.
#[test]
fn is_bounded() {
    let mut joins = joins();
    let at = 2 * SECOND;
    for n in 0..CALLS_MAX as u64 + 10 {
        let call = Exchange {
            sock: n,
            ..called((n % 60_000) as u16, "/", at, at)
        };
        joins.asked(Asked::new(&call).unwrap());
    }
    assert_eq!(joins.count, CALLS_MAX);
    for n in 0..WAITING_MAX + 10 {
        let request = served(n as u16, "/", at + 1, at + 2);
        let is_kept = joins.wait(request, 0).is_none();
        assert_eq!(is_kept, n < WAITING_MAX);
    }
    assert_eq!(joins.counts().overflowed, 20);
    assert_eq!(joins.look(at + 3, true).len(), WAITING_MAX);
    assert_eq!(joins.waiting(), 0);
}
