//! Who owns a call, told as stories of contexts.

use decnet_trace_common::event::{Header, Lineage, LineageWhat};

use super::*;

const TGID: u32 = 7;

/// A process whose contexts are named by addresses, and what became of its calls.
#[derive(Default)]
struct Story {
    identities: Identities,
    attribution: Attribution<&'static str>,
    next: RequestId,
}

impl Story {
    /// A process that is watched from the start.
    fn new() -> Self {
        let mut story = Self::default();
        story.identities.arm(TGID, 0);
        story
    }

    fn step(&mut self, at: u64, what: LineageWhat, context: u64, object: u64) {
        self.identities.on_lineage(&Lineage {
            header: Header {
                ts: at,
                tgid: TGID,
                ..Header::default()
            },
            context,
            object,
            what: what as u32,
            caller: 0,
            reserved: 0,
        });
    }

    /// `child` is made, a copy of `parent`.
    fn copy(&mut self, at: u64, parent: u64, child: u64) {
        self.step(at, LineageWhat::Copied, parent, child);
    }

    fn end(&mut self, at: u64, context: u64) {
        self.step(at, LineageWhat::Ended, 0, context);
    }

    /// Who runs in a context at a time.
    fn who(&mut self, at: u64, context: u64) -> Identity {
        let header = Header {
            ts: at,
            tgid: TGID,
            ..Header::default()
        };
        self.identities.resolve(&header, context)
    }

    /// A request that was read and answered by these, between these times.
    fn served(
        &mut self,
        connection: u64,
        reader: Identity,
        responder: Identity,
        times: (u64, u64),
    ) {
        let request = Served {
            id: self.next,
            connection,
            reader,
            responder,
            one_thread: true,
            start: times.0,
            end: times.1,
            pipelined: false,
            unsure: false,
            hides: None,
        };
        self.next += 1;
        self.attribution.served(&self.identities, TGID, &request);
    }

    fn call(&mut self, at: u64, context: u64, what: &'static str) {
        let identity = self.who(at, context);
        self.attribution.call(TGID, Call { identity, at, what });
    }

    /// The verdicts, with nothing under way any more.
    fn verdicts(&mut self) -> Vec<(&'static str, Option<RequestId>)> {
        self.verdicts_with(1_000, None)
    }

    fn verdicts_with(
        &mut self,
        now: u64,
        open: Option<u64>,
    ) -> Vec<(&'static str, Option<RequestId>)> {
        let mut all = Vec::new();
        self.attribution.decide(
            &self.identities,
            now,
            |_| open,
            |call, owner| all.push((call.what, owner)),
        );
        all
    }
}

/// A call in the context that answers belongs to the request; so do those of tasks made there, and of
/// tasks made by those, after the response too.
#[test]
fn the_request_and_its_tasks() {
    let mut story = Story::new();
    let reader = story.who(10, 0xA);
    story.copy(11, 0xA, 0xC);
    story.call(12, 0xC, "direct");
    story.copy(13, 0xC, 0xD);
    story.copy(14, 0xD, 0xE);
    story.call(15, 0xE, "nested");
    let responder = story.who(20, 0xC);
    story.served(1, reader, responder, (10, 20));
    story.call(30, 0xD, "detached");
    assert_eq!(
        story.verdicts(),
        [
            ("direct", Some(0)),
            ("nested", Some(0)),
            ("detached", Some(0))
        ]
    );
}

/// A response sent by a task of the handler's still makes the handler's context the request's.
#[test]
fn answered_by_a_child() {
    let mut story = Story::new();
    let reader = story.who(10, 0xA);
    story.copy(11, 0xA, 0xC);
    story.call(12, 0xC, "handler");
    story.copy(13, 0xC, 0xD);
    let responder = story.who(20, 0xD);
    story.served(1, reader, responder, (10, 25));
    assert_eq!(story.verdicts(), [("handler", Some(0))]);
}

/// What an event loop's own context does, or a task of the application's that is older than the
/// request, is nobody's.
#[test]
fn what_was_there_before() {
    let mut story = Story::new();
    story.copy(1, 0xA, 0xF);
    let reader = story.who(10, 0xA);
    story.copy(11, 0xA, 0xC);
    let responder = story.who(20, 0xC);
    story.served(1, reader, responder, (10, 20));
    story.call(15, 0xA, "loop");
    story.call(15, 0xF, "older task");
    assert_eq!(story.verdicts(), [("loop", None), ("older task", None)]);
}

/// An address that passes on from one request to the next is two identities.
#[test]
fn a_reused_address() {
    let mut story = Story::new();
    let reader = story.who(1, 0xA);
    for (n, name) in [(0, "first"), (1, "second")] {
        let at = 10 + n * 100;
        story.copy(at + 1, 0xA, 0xC);
        story.call(at + 2, 0xC, name);
        let responder = story.who(at + 5, 0xC);
        story.served(n, reader, responder, (at, at + 5));
        story.end(at + 6, 0xC);
    }
    assert_eq!(story.verdicts(), [("first", Some(0)), ("second", Some(1))]);
}

/// Where ends are not told, an address may be another's: nothing is certain.
#[test]
fn an_unwatched_process() {
    let mut story = Story::default();
    let reader = story.who(10, 0xA);
    story.call(12, 0xC, "call");
    let responder = story.who(20, 0xC);
    story.served(1, reader, responder, (10, 20));
    assert_eq!(story.verdicts(), [("call", None)]);
}

/// What was seen before the process was watched is not believed afterwards.
#[test]
fn watched_in_the_middle() {
    let mut story = Story::default();
    let _ = story.who(10, 0xC);
    story.identities.arm(TGID, 50);
    assert!(story.who(40, 0xC).is_unknown());
    story.call(45, 0xC, "before");
    story.copy(60, 0xA, 0xC);
    story.call(61, 0xC, "after");
    let reader = story.who(55, 0xA);
    let responder = story.who(70, 0xC);
    story.served(1, reader, responder, (55, 70));
    assert_eq!(story.verdicts(), [("before", None), ("after", Some(0))]);
}

/// A server that gives each request a fresh context, no copy: the request's until it is answered.
#[test]
fn a_fresh_context() {
    let mut story = Story::new();
    let reader = story.who(1, 0xA);
    story.call(12, 0xC, "open");
    let responder = story.who(20, 0xC);
    story.served(1, reader, responder, (10, 20));
    story.call(30, 0xC, "after");
    assert_eq!(story.verdicts(), [("open", Some(0)), ("after", None)]);
}

/// A task per connection answers one request after the other: each is its own while it is open. Where the next
/// one was read ahead, the last bytes of the one before may wait to be written while it is served: until then
/// it is nobody's.
#[test]
fn a_task_per_connection() {
    let mut story = Story::new();
    let loop_context = story.who(1, 0xA);
    story.copy(2, 0xA, 0xC);
    let task = story.who(3, 0xC);
    story.call(11, 0xC, "first");
    story.call(15, 0xC, "either's");
    story.served(1, loop_context, task, (10, 20));
    story.call(25, 0xC, "second");
    story.served(1, loop_context, task, (12, 30));
    story.call(40, 0xC, "between");
    assert_eq!(
        story.verdicts(),
        [
            ("first", Some(0)),
            ("either's", None),
            ("second", Some(1)),
            ("between", None)
        ]
    );
}

/// One task that answers for several connections owns none of their requests.
#[test]
fn a_task_for_all() {
    let mut story = Story::new();
    let loop_context = story.who(1, 0xA);
    story.copy(2, 0xA, 0xC);
    let task = story.who(3, 0xC);
    story.call(15, 0xC, "call");
    story.served(1, loop_context, task, (10, 20));
    story.served(2, loop_context, task, (11, 21));
    assert_eq!(story.verdicts(), [("call", None)]);
}

/// A pipelined request is started from the context of the one before it, and owns what it does itself.
#[test]
fn pipelined() {
    let mut story = Story::new();
    let reader = story.who(10, 0xA);
    story.copy(11, 0xA, 0xC);
    let first = story.who(20, 0xC);
    story.served(1, reader, first, (10, 20));
    story.copy(21, 0xC, 0xD);
    story.call(22, 0xD, "second's");
    let second = story.who(30, 0xD);
    story.served(1, reader, second, (10, 30));
    story.call(31, 0xC, "first's");
    assert_eq!(
        story.verdicts(),
        [("second's", Some(1)), ("first's", Some(0))]
    );
}

/// A pipelined request that is never answered leaves its calls to nobody, not to the one before it.
#[test]
fn pipelined_and_unanswered() {
    let mut story = Story::new();
    let reader = story.who(10, 0xA);
    story.copy(11, 0xA, 0xC);
    let first = story.who(20, 0xC);
    story.served(1, reader, first, (10, 20));
    story.copy(21, 0xC, 0xD);
    story.call(22, 0xD, "second's");
    story.served(1, reader, Identity::UNKNOWN, (10, 40));
    assert_eq!(story.verdicts(), [("second's", None)]);
}

/// Where a server resumes reading from within a request (asyncio copies its context for that), all that
/// comes by the connection afterwards descends from that request. What is never answered of it is not its.
#[test]
fn read_from_within_a_request() {
    let mut story = Story::new();
    let reader = story.who(10, 0xA);
    story.copy(11, 0xA, 0xC);
    story.copy(13, 0xC, 0xD);
    story.call(14, 0xC, "first's");
    let first = story.who(20, 0xC);
    story.served(1, reader, first, (10, 20));
    let reading = story.who(30, 0xD);
    story.copy(31, 0xD, 0xE);
    story.call(32, 0xE, "second's");
    story.served(1, reading, Identity::UNKNOWN, (30, 40));
    story.copy(50, 0xD, 0xF);
    story.call(51, 0xF, "third's");
    let third = story.who(52, 0xF);
    story.served(1, reading, third, (49, 60));
    assert_eq!(
        story.verdicts(),
        [
            ("first's", Some(0)),
            ("second's", None),
            ("third's", Some(2))
        ]
    );
}

/// What a task per connection started belongs to the request that it served then, not to the one that it
/// serves when the call is made.
#[test]
fn detached_from_a_task_per_connection() {
    let mut story = Story::new();
    let loop_context = story.who(1, 0xA);
    story.copy(2, 0xA, 0xC);
    let task = story.who(3, 0xC);
    story.copy(15, 0xC, 0xD);
    story.served(1, loop_context, task, (10, 20));
    story.call(35, 0xD, "detached");
    story.copy(36, 0xC, 0xE);
    story.call(37, 0xE, "second's");
    story.served(1, loop_context, task, (30, 40));
    story.call(50, 0xE, "second's, later");
    assert_eq!(
        story.verdicts(),
        [
            ("detached", Some(0)),
            ("second's", Some(1)),
            ("second's, later", Some(1))
        ]
    );
}

/// One task takes requests of several connections in turn, and the first is never answered: what it did for
/// that one is not the next one's, though that was open at the time.
#[test]
fn unanswered_within_anothers_time() {
    for fresh in [true, false] {
        let mut story = Story::new();
        let loop_context = story.who(1, 0xA);
        if !fresh {
            story.copy(2, 0xA, 0xC);
        }
        story.call(12, 0xC, "unanswered");
        let task = story.who(12, 0xC);
        story.served(2, loop_context, Identity::UNKNOWN, (11, 16));
        story.call(18, 0xC, "answered");
        story.served(1, loop_context, task, (10, 20));
        assert_eq!(
            story.verdicts(),
            [("unanswered", None), ("answered", Some(1))],
            "{fresh}"
        );
    }
}

/// A task that was started within one request and works for others later descends from that one: what it calls
/// is that one's, as contexts have it, whoever it works for. Not where it answers the others itself.
#[test]
fn a_worker_that_a_request_started() {
    for answers in [false, true] {
        let mut story = Story::new();
        let reader = story.who(10, 0xA);
        story.copy(11, 0xA, 0xC);
        story.copy(12, 0xC, 0xF);
        story.call(13, 0xF, "for the first");
        let first = story.who(15, 0xC);
        story.served(1, reader, first, (10, 20));
        story.copy(31, 0xA, 0xD);
        story.call(32, 0xF, "for the second");
        let second = story.who(35, if answers { 0xF } else { 0xD });
        story.served(2, reader, second, (30, 40));
        let [of_first, of_second] = match answers {
            false => [Some(0), Some(0)],
            true => [None, Some(1)],
        };
        assert_eq!(
            story.verdicts(),
            [("for the first", of_first), ("for the second", of_second)],
            "{answers}"
        );
    }
}

/// Requests that came behind one and were not seen are started from its context too: what is called from
/// copies of it since may be theirs. What it calls itself is its own, and later requests' calls are theirs.
#[test]
fn hidden_behind_it() {
    for since in [10, 15] {
        let mut story = Story::new();
        let reader = story.who(10, 0xA);
        story.attribution.hidden(TGID, 1, since);
        story.copy(11, 0xA, 0xC);
        story.call(12, 0xC, "first's");
        story.copy(13, 0xC, 0xB);
        story.call(14, 0xB, "first's or not");
        let first = story.who(20, 0xC);
        story.served(1, reader, first, (10, 20));
        story.copy(21, 0xC, 0xD);
        story.call(22, 0xD, "hidden one's");
        story.copy(23, 0xD, 0xE);
        story.call(24, 0xE, "the next one's");
        story.copy(31, 0xA, 0xF);
        story.copy(32, 0xF, 0x10);
        story.call(33, 0x10, "of another connection");
        let other = story.who(34, 0xF);
        story.served(2, reader, other, (30, 40));
        let own = (since > 13).then_some(0);
        assert_eq!(
            story.verdicts(),
            [
                ("first's", Some(0)),
                ("first's or not", own),
                ("hidden one's", None),
                ("the next one's", None),
                ("of another connection", Some(1))
            ]
        );
    }
}

/// Where a response may be that of a request which was not seen, a context is its request's if it was made
/// after that was read, and nothing else was under way.
#[test]
fn unsure_responses() {
    for (pipelined, made, sure) in [(false, 11, true), (true, 11, false), (false, 9, false)] {
        let mut story = Story::new();
        let reader = story.who(1, 0xA);
        story.copy(made, 0xA, 0xC);
        story.call(12, 0xC, "call");
        let responder = story.who(20, 0xC);
        let request = Served {
            id: 0,
            connection: 1,
            reader,
            responder,
            one_thread: true,
            start: 10,
            end: 20,
            pipelined,
            unsure: true,
            hides: None,
        };
        story.attribution.served(&story.identities, TGID, &request);
        assert_eq!(story.verdicts(), [("call", sure.then_some(0))]);
    }
}

/// A request behind which another may stand keeps what it called until its response began.
#[test]
fn what_stands_behind_a_request() {
    let mut story = Story::new();
    let reader = story.who(10, 0xA);
    story.copy(11, 0xA, 0xC);
    story.copy(12, 0xC, 0xD);
    story.call(13, 0xD, "before");
    let responder = story.who(15, 0xC);
    let request = Served {
        id: 0,
        connection: 1,
        reader,
        responder,
        one_thread: true,
        start: 10,
        end: 20,
        pipelined: false,
        unsure: false,
        hides: Some(15),
    };
    assert!(story.attribution.begun(&story.identities, TGID, &request));
    story.call(16, 0xC, "itself");
    story.copy(17, 0xC, 0xE);
    story.call(18, 0xE, "the next one's, perhaps");
    assert_eq!(
        story.verdicts(),
        [
            ("before", Some(0)),
            ("itself", Some(0)),
            ("the next one's, perhaps", None)
        ]
    );
}

/// A call waits while a request is under way that began before it; for ever it does not.
#[test]
fn waiting() {
    let mut story = Story::new();
    story.copy(11, 0xA, 0xC);
    story.call(12, 0xC, "call");
    assert_eq!(story.verdicts_with(100, Some(10)), []);
    assert_eq!(story.verdicts_with(12 + WAIT_MAX, Some(10)), []);
    assert_eq!(
        story.verdicts_with(13 + WAIT_MAX, Some(10)),
        [("call", None)]
    );
}

/// Identities that were forgotten for want of room own nothing, and wrong owners are not made up.
#[test]
fn forgotten_identities() {
    let mut story = Story {
        identities: Identities::new(8),
        ..Story::default()
    };
    story.identities.arm(TGID, 0);
    let reader = story.who(10, 0xA);
    story.copy(11, 0xA, 0xC);
    story.copy(12, 0xC, 0xD);
    story.call(13, 0xD, "call");
    let responder = story.who(20, 0xC);
    story.served(1, reader, responder, (10, 20));
    for n in 0..20 {
        story.copy(30 + n, 0xA, 0x100 + n);
    }
    assert_eq!(story.verdicts(), [("call", None)]);
    assert!(story.identities.evicted() > 0);
}

/// A response that goes on for long keeps no other request's calls waiting, and its own stay its own, while
/// it lasts and afterwards.
#[test]
fn a_response_that_has_begun() {
    let mut story = Story::new();
    let reader = story.who(10, 0xA);
    story.copy(11, 0xA, 0xC);
    let responder = story.who(12, 0xC);
    let stream = Served {
        id: 7,
        connection: 1,
        reader,
        responder,
        one_thread: true,
        start: 10,
        end: 0,
        pipelined: false,
        unsure: false,
        hides: None,
    };
    assert!(story.attribution.begun(&story.identities, TGID, &stream));
    story.call(20, 0xC, "within");
    assert_eq!(story.verdicts(), [("within", Some(7))]);
    story.attribution.ended(TGID, 7, 30);
    story.call(40, 0xC, "behind");
    assert_eq!(story.verdicts(), [("behind", Some(7))]);
    // What is answered in a context that was not made for it has to wait.
    let shared = Served {
        id: 8,
        responder: reader,
        ..stream
    };
    assert!(!story.attribution.begun(&story.identities, TGID, &shared));
}
