//! Calls that traced processes make, on their way to the requests that caused them.

use std::path::PathBuf;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    bpf::probes::ProcessProbes,
    correlate::{
        Correlator,
        attribution::{Attribution, Call, RequestId, Served},
        exchange::Exchange,
        hidden::{Hidden, When},
        identity::{Identities, Identity},
        outbound::Outbound,
    },
    python::{LineageProbes, PyProcess},
    span::SpanRef,
};

/// How often calls are looked at that wait for their requests, in nanoseconds.
const EVERY: u64 = 100_000_000;

/// How many requests are remembered for calls that come after them; more than are owned at once.
const REQUESTS_MAX: u64 = 1 << 16;

/// How many calls wait for the spans of requests that are not over.
const HELD_MAX: usize = 1 << 14;

/// How long to wait before looking for a process's queues again, in nanoseconds: at first, and at most. Their
/// module is loaded when something needs it.
const ASK_AGAIN: u64 = 250_000_000;
const ASK_EVERY: u64 = 10_000_000_000;

/// How often a process's queues are looked for without another reason.
const ASKS_MAX: u32 = 8;

/// How many processes are remembered that made calls before they could be watched, and how many families.
const REMEMBERED_MAX: usize = 8192;

/// Calls, the requests that they may belong to, and the processes whose contexts are followed.
pub(super) struct Calls {
    enabled: bool,
    attribution: Attribution<Outbound>,
    /// Requests by their number, which counts them.
    requests: FxHashMap<RequestId, SpanRef>,
    next: RequestId,
    /// Requests that are owned and not over: their connections, their numbers on these, and their own.
    begun: FxHashMap<(u64, u32), RequestId>,
    /// Requests that are over and have no place in a trace yet.
    unplaced: FxHashSet<RequestId>,
    /// Calls of both, which wait for their spans.
    held: Vec<(RequestId, Outbound)>,
    /// What could be watched in a process, until it is.
    probes: FxHashMap<u32, (PathBuf, LineageProbes)>,
    watched: FxHashMap<u32, ProcessProbes>,
    /// Processes whose queues are followed too.
    followed: FxHashMap<u32, ProcessProbes>,
    /// Whether work is followed through queues.
    queues: bool,
    /// Processes whose queues should be followed, and when and how often those were asked about.
    rootless: FxHashSet<u32>,
    asked: FxHashMap<u32, (u64, u32)>,
    /// Processes that made calls before it was known what to watch in them, and whether statements were among
    /// these.
    early: FxHashMap<u32, bool>,
    /// Which process each was started by, of those that are traced for that one's sake.
    parents: FxHashMap<u32, u32>,
    /// What the children of a process came to need. The next one, which runs the same program, will too.
    families: FxHashMap<u32, Needs>,
    /// Processes that ended with calls still waiting.
    ended: FxHashSet<u32>,
    due: u64,
    exact: u64,
    without: u64,
    /// Calls that did not wait for their request's span, for want of room.
    unheld: u64,
}

/// What a process needs so that its calls have parents.
#[derive(Clone, Copy, Debug, Default)]
struct Needs {
    lineage: bool,
    queues: bool,
}

impl Calls {
    pub(super) fn new(enabled: bool, queues: bool) -> Self {
        Self {
            enabled,
            queues,
            rootless: FxHashSet::default(),
            asked: FxHashMap::default(),
            early: FxHashMap::default(),
            parents: FxHashMap::default(),
            families: FxHashMap::default(),
            attribution: Attribution::default(),
            requests: FxHashMap::default(),
            next: 0,
            begun: FxHashMap::default(),
            unplaced: FxHashSet::default(),
            held: Vec::new(),
            probes: FxHashMap::default(),
            watched: FxHashMap::default(),
            followed: FxHashMap::default(),
            ended: FxHashSet::default(),
            due: 0,
            exact: 0,
            without: 0,
            unheld: 0,
        }
    }

    /// A process is traced because this one started it, or for another reason.
    pub(super) fn traced(&mut self, tgid: u32, parent: Option<u32>) {
        match parent {
            Some(parent) => self.parents.insert(tgid, parent),
            None => self.parents.remove(&tgid),
        };
    }

    /// A process's CPython is understood: its contexts could be followed. Whether they should be at once: it has
    /// made a call, or its siblings make some.
    pub(super) fn understood(&mut self, process: &PyProcess) -> bool {
        let Some(probes) = process.lineage.filter(|_| self.enabled) else {
            return false;
        };
        self.can_watch(process.pid, process.host_path.clone(), probes)
    }

    fn can_watch(&mut self, tgid: u32, interpreter: PathBuf, probes: LineageProbes) -> bool {
        self.probes.insert(tgid, (interpreter, probes));
        let early = self.early.remove(&tgid);
        let needs = self.family(tgid);
        if self.queues && (early == Some(true) || needs.queues) {
            self.rootless.insert(tgid);
        }
        early.is_some() || needs.lineage
    }

    /// What the siblings of a process came to need.
    fn family(&self, tgid: u32) -> Needs {
        let parent = self.parents.get(&tgid);
        let family = parent.and_then(|parent| self.families.get(parent));
        family.copied().unwrap_or_default()
    }

    /// The same, to be changed; `None` where it has none.
    fn family_mut(&mut self, tgid: u32) -> Option<&mut Needs> {
        let parent = *self.parents.get(&tgid)?;
        let is_new = !self.families.contains_key(&parent);
        (!is_new || self.families.len() < REMEMBERED_MAX)
            .then(|| self.families.entry(parent).or_default())
    }

    /// What to watch in a process that is not watched yet. It is asked for once.
    pub(super) fn probes_of(&mut self, tgid: u32) -> Option<(PathBuf, LineageProbes)> {
        self.probes.remove(&tgid)
    }

    /// A process's contexts are followed now, as long as these probes live.
    pub(super) fn watched(&mut self, tgid: u32, probes: ProcessProbes) {
        self.watched.insert(tgid, probes);
        if let Some(needs) = self.family_mut(tgid) {
            needs.lineage = true;
        }
    }

    /// Work through a process's queues is followed now, as long as these probes live.
    pub(super) fn followed(&mut self, tgid: u32, probes: ProcessProbes) {
        self.followed.insert(tgid, probes);
        self.rootless.remove(&tgid);
        if let Some(needs) = self.family_mut(tgid) {
            needs.queues = true;
        }
    }

    /// Whether work through a process's queues is followed.
    pub(super) fn is_followed(&self, tgid: u32) -> bool {
        self.followed.contains_key(&tgid)
    }

    /// Processes whose queues should be followed and are not. Each is told again after a while.
    pub(super) fn needs_queues(&mut self, now: u64) -> Vec<u32> {
        let mut due = Vec::new();
        let asked = &mut self.asked;
        self.rootless.retain(|tgid| {
            let (then, times) = asked.entry(*tgid).or_default();
            let wait = (ASK_AGAIN << times.saturating_sub(1).min(16)).min(ASK_EVERY);
            if *times == 0 || now > *then + wait {
                (*then, *times) = (now, times.saturating_add(1));
                due.push(*tgid);
            }
            *times < ASKS_MAX
        });
        due
    }

    /// A process ended or executed another program.
    pub(super) fn ended(&mut self, tgid: u32) {
        self.probes.remove(&tgid);
        self.watched.remove(&tgid);
        self.followed.remove(&tgid);
        self.rootless.remove(&tgid);
        self.asked.remove(&tgid);
        self.early.remove(&tgid);
        self.parents.remove(&tgid);
        self.families.remove(&tgid);
        self.ended.insert(tgid);
    }

    /// A request is over. Where calls may belong to it, [`Self::placed`] is to be told where it stands.
    pub(super) fn served(
        &mut self,
        identities: &Identities,
        exchange: &Exchange,
    ) -> Option<RequestId> {
        // That of a process which has ended is told too: its calls may still wait, and one that was never
        // answered is not to be taken for another's.
        if !self.watched.contains_key(&exchange.tgid) && !self.ended.contains(&exchange.tgid) {
            return None;
        }
        if let Some(id) = self.begun.remove(&(exchange.sock, exchange.number)) {
            self.unplaced.insert(id);
            if let Some(since) = hides(exchange) {
                self.attribution.hides(exchange.tgid, exchange.sock, since);
            }
            self.attribution.ended(exchange.tgid, id, exchange.end);
            return Some(id);
        }
        let request = served(self.number(), exchange);
        self.unplaced.insert(request.id);
        self.attribution.served(identities, exchange.tgid, &request);
        Some(request.id)
    }

    /// Requests of a process may have been out of sight, of which it is known since when and until when.
    pub(super) fn hidden(&mut self, hidden: &Hidden) {
        let tgid = hidden.tgid;
        if !self.watched.contains_key(&tgid) && !self.ended.contains(&tgid) {
            return;
        }
        match hidden.when {
            When::Since(since) => self.attribution.hidden(tgid, hidden.connection, since),
            When::Closed(at) => self.attribution.closed(tgid, hidden.connection, at),
        }
    }

    /// There were too many of these; requests of any process may have been out of sight until then.
    pub(super) fn any_hidden(&mut self, until: u64) {
        self.attribution.any_hidden(until);
    }

    /// A request that is over has its place in a trace.
    pub(super) fn placed(&mut self, id: RequestId, span: SpanRef) {
        self.unplaced.remove(&id);
        if id + REQUESTS_MAX >= self.next {
            self.requests.insert(id, span);
        }
    }

    /// The next request's number.
    fn number(&mut self) -> RequestId {
        let id = self.next;
        self.next += 1;
        if let Some(oldest) = id.checked_sub(REQUESTS_MAX) {
            self.requests.remove(&oldest);
        }
        id
    }

    /// Looks through the requests that are under way: since when the oldest is of which it is not certain
    /// yet who owns it.
    fn look_through(
        &mut self,
        identities: &Identities,
        correlator: &Correlator,
    ) -> FxHashMap<u32, u64> {
        let mut open = FxHashMap::default();
        let oldest = correlator.oldest_open(|exchange| {
            let key = (exchange.sock, exchange.number);
            if let Some(&id) = self.begun.get(&key) {
                open.insert(key, id);
                if let Some(since) = hides(exchange) {
                    self.attribution.hides(exchange.tgid, exchange.sock, since);
                }
                return false;
            }
            if exchange.response_start.is_none() || !self.watched.contains_key(&exchange.tgid) {
                return true;
            }
            let request = served(self.next, exchange);
            let is_certain = self.attribution.begun(identities, exchange.tgid, &request);
            if is_certain {
                open.insert(key, self.number());
            }
            !is_certain
        });
        // Others were lost: what waits for their spans waits no longer.
        self.begun = open;
        oldest
    }

    /// A call is over; whether its process could be watched more closely from now on.
    pub(super) fn made(&mut self, what: Outbound) -> bool {
        let tgid = what.tgid();
        // Statements are what asyncio hands to threads through queues most of all: they are followed before
        // one of them has no owner. Where nothing passes through queues, that costs nothing.
        let is_statement = matches!(what, Outbound::Statement(_));
        let may_follow = self.watched.contains_key(&tgid) || self.probes.contains_key(&tgid);
        if is_statement && self.queues && may_follow && !self.asked.contains_key(&tgid) {
            self.rootless.insert(tgid);
        }
        // It is over before its interpreter was read, and the next one may be long in coming.
        if !may_follow && self.enabled {
            let is_known = self.early.contains_key(&tgid);
            if is_known || self.early.len() < REMEMBERED_MAX {
                *self.early.entry(tgid).or_default() |= is_statement;
            }
        }
        let call = Call {
            identity: what.identity(),
            at: what.start(),
            what,
        };
        self.attribution.call(tgid, call);
        self.probes.contains_key(&tgid)
    }

    /// Hands out calls whose requests are known by now, or never will be: with the span of the request,
    /// if it is certain. Without a correlator nothing is under way any more.
    pub(super) fn decide(
        &mut self,
        identities: &Identities,
        correlator: Option<&Correlator>,
        now: u64,
        mut each: impl FnMut(Outbound, Option<&SpanRef>),
    ) {
        if correlator.is_some() && now < self.due {
            return;
        }
        self.due = now + EVERY;
        self.ended
            .retain(|&tgid| !self.attribution.forget_process(tgid));
        if !self.attribution.is_waiting() && self.held.is_empty() {
            return;
        }
        let oldest = match correlator {
            Some(correlator) => self.look_through(identities, correlator),
            None => {
                self.begun.clear();
                FxHashMap::default()
            }
        };
        self.release(&mut each);
        let Self {
            attribution,
            requests,
            exact,
            without,
            unheld,
            watched,
            followed,
            queues,
            rootless,
            begun,
            unplaced,
            held,
            ..
        } = self;
        let open: FxHashSet<RequestId> = begun.values().chain(&*unplaced).copied().collect();
        // At the end nothing is found out any more.
        let now = correlator.map_or(u64::MAX, |_| now);
        // Those whose queues could be followed and are not.
        let may_follow =
            |tgid| *queues && watched.contains_key(&tgid) && !followed.contains_key(&tgid);
        attribution.decide(
            identities,
            now,
            |tgid| oldest.get(&tgid).copied(),
            |call, request| {
                if let Some(id) = request.filter(|id| open.contains(id)) {
                    if held.len() < HELD_MAX {
                        held.push((id, call.what));
                        return;
                    }
                    *unheld += 1;
                }
                let span = request.and_then(|id| requests.get(&id));
                match span {
                    Some(_) => *exact += 1,
                    None => {
                        *without += 1;
                        let tgid = call.what.tgid();
                        if identities.is_rootless(call.identity) && may_follow(tgid) {
                            rootless.insert(tgid);
                        }
                    }
                }
                each(call.what, span);
            },
        );
    }

    /// Hands out calls whose requests have their spans by now, or never will.
    pub(super) fn release(&mut self, mut each: impl FnMut(Outbound, Option<&SpanRef>)) {
        if self.held.is_empty() {
            return;
        }
        let open = self.begun.values().chain(&self.unplaced);
        let open: FxHashSet<RequestId> = open.copied().collect();
        for (id, call) in self.held.extract_if(.., |(id, _)| !open.contains(id)) {
            let span = self.requests.get(&id);
            match span {
                Some(_) => self.exact += 1,
                None => self.without += 1,
            }
            each(call, span);
        }
    }

    /// What was decided so far.
    pub(super) fn counters(&self) -> [(&'static str, u64); 5] {
        [
            ("calls_linked_exact", self.exact),
            ("calls_linked_none", self.without),
            ("calls_waiting_overflowed", self.attribution.overflowed()),
            ("calls_held_overflowed", self.unheld),
            (
                "requests_unanswered_forgotten",
                self.attribution.forgotten(),
            ),
        ]
    }
}

/// What is told of a request, by this number.
fn served(id: RequestId, exchange: &Exchange) -> Served {
    Served {
        id,
        connection: exchange.sock,
        reader: Identity::from_bits(exchange.request_context),
        responder: Identity::from_bits(exchange.response_context),
        one_thread: exchange.response_tid == exchange.tid,
        start: exchange.start,
        end: exchange.end,
        pipelined: exchange.pipelined,
        unsure: exchange.unseen.before,
        hides: hides(exchange),
    }
}

/// Since when a request may be served that stood behind this one and was not seen, if one may: when this one's
/// response had begun, or earlier where that may have waited for others' to be written.
fn hides(exchange: &Exchange) -> Option<u64> {
    let begun = match exchange.pipelined {
        true => None,
        false => exchange.response_start,
    };
    (exchange.unseen.behind).then(|| begun.unwrap_or(exchange.start))
}

#[cfg(test)]
mod tests {
    use decnet_trace_common::event::{Header, Lineage, LineageWhat};

    use super::*;
    use crate::{
        correlate::{
            exchange::{End, Role},
            statement::Statement,
        },
        policy::tests::served as exchange,
    };

    const TGID: u32 = 7;

    fn copied(identities: &mut Identities, ts: u64, context: u64, object: u64) {
        let header = Header {
            tgid: TGID,
            tid: TGID,
            ts,
            ..Header::default()
        };
        identities.on_lineage(&Lineage {
            header,
            context,
            object,
            caller: 0,
            what: LineageWhat::Copied as u32,
            reserved: 0,
        });
    }

    fn of(identities: &mut Identities, ts: u64, context: u64) -> u64 {
        let header = Header {
            tgid: TGID,
            tid: TGID,
            ts,
            ..Header::default()
        };
        identities.resolve(&header, context).to_bits()
    }

    /// A worker is killed while it serves the second request of a connection, in a context that descends from
    /// the first one's; its end is told before that request is. What it called for it is not the first one's.
    #[test]
    fn calls_of_a_killed_process_are_not_an_earlier_requests() {
        const LOOP: u64 = 0x1000;
        const FIRST: u64 = 0x2000;
        const SECOND: u64 = 0x3000;
        let mut identities = Identities::default();
        identities.arm(TGID, 1);
        let mut calls = Calls::new(true, false);

        let reader = of(&mut identities, 10, LOOP);
        copied(&mut identities, 20, LOOP, FIRST);
        let first = Exchange {
            start: 10,
            response_start: Some(30),
            end: 40,
            request_context: reader,
            response_context: of(&mut identities, 30, FIRST),
            ..exchange()
        };
        let request = served(calls.number(), &first);
        calls.attribution.served(&identities, TGID, &request);
        let span = SpanRef {
            trace_id: [1; 16],
            span_id: [1; 8],
            trace_state: "".into(),
            trace_flags: 1,
        };
        calls.placed(request.id, span);

        copied(&mut identities, 60, FIRST, SECOND);
        let call = Exchange {
            role: Role::Client,
            sock: 2,
            start: 70,
            response_start: Some(80),
            end: 90,
            request_context: of(&mut identities, 70, SECOND),
            response_context: 0,
            ..exchange()
        };
        calls.made(Outbound::Exchange(Box::new(call)));
        let second = Exchange {
            number: 2,
            start: 50,
            response_start: None,
            status: None,
            end: 100,
            request_context: of(&mut identities, 50, FIRST),
            response_context: 0,
            ended_by: End::Aborted,
            ..exchange()
        };
        calls.ended(TGID);
        calls.served(&identities, &second);

        let mut parents = Vec::new();
        calls.decide(&identities, None, 200, |_, parent| {
            parents.push(parent.is_some());
        });
        assert_eq!(parents, [false]);
    }

    /// So many calls wait for the span of their request, and get it; one beyond has no parent rather than a wrong one,
    /// and is counted.
    #[test]
    fn calls_beyond_those_that_may_wait() {
        const LOOP: u64 = 0x1000;
        const OWN: u64 = 0x2000;
        let mut identities = Identities::default();
        identities.arm(TGID, 1);
        let mut calls = Calls::new(true, false);
        calls.watched(TGID, ProcessProbes::none());
        let reader = of(&mut identities, 10, LOOP);
        copied(&mut identities, 20, LOOP, OWN);
        let context = of(&mut identities, 30, OWN);
        let request = calls.served(
            &identities,
            &Exchange {
                start: 10,
                response_start: Some(40),
                end: 50,
                request_context: reader,
                response_context: context,
                ..exchange()
            },
        );
        let mut parents = Vec::new();
        for more in [HELD_MAX, 1] {
            for _ in 0..more {
                calls.made(Outbound::Exchange(Box::new(Exchange {
                    role: Role::Client,
                    sock: 2,
                    start: 30,
                    response_start: Some(32),
                    end: 34,
                    request_context: context,
                    response_context: 0,
                    ..exchange()
                })));
            }
            calls.decide(&identities, None, 200, |_, parent| {
                parents.push(parent.is_some());
            });
        }
        assert_eq!(parents, [false]);
        assert!(calls.counters().contains(&("calls_held_overflowed", 1)));
        let span = SpanRef {
            trace_id: [1; 16],
            span_id: [1; 8],
            trace_state: "".into(),
            trace_flags: 1,
        };
        calls.placed(request.expect("a watched process"), span);
        let mut right = 0;
        calls.release(|_, parent| right += usize::from(parent.is_some()));
        assert_eq!(right, HELD_MAX);
    }

    const PROBES: LineageProbes = LineageProbes {
        copied: 1,
        ended: 2,
    };

    fn call(tgid: u32) -> Outbound {
        Outbound::Exchange(Box::new(Exchange {
            tgid,
            role: Role::Client,
            ..exchange()
        }))
    }

    fn statement(tgid: u32) -> Outbound {
        Outbound::Statement(Box::new(Statement {
            tgid,
            tid: tgid,
            identity: Identity::UNKNOWN,
            start: 10,
            end: 20,
            text: None,
            cut: false,
            database: None,
            rows: None,
            batch: None,
            waited: 0,
            error: None,
        }))
    }

    /// A call that is over before its process's interpreter was read is not forgotten: the process is watched as
    /// soon as it can be, and its queues where it was a statement. Of a process that ended nothing is kept.
    #[test]
    fn early_calls_arm() {
        let mut calls = Calls::new(true, true);
        let can_watch = |calls: &mut Calls, tgid| calls.can_watch(tgid, PathBuf::new(), PROBES);
        assert!(!can_watch(&mut calls, 1));
        assert!(calls.made(call(1)), "from the next call on");
        assert!(!calls.made(call(2)));
        assert!(can_watch(&mut calls, 2));
        assert_eq!(calls.needs_queues(1), [0; 0]);
        assert!(!calls.made(statement(3)));
        assert!(can_watch(&mut calls, 3));
        assert_eq!(calls.needs_queues(1), [3]);
        assert!(!calls.made(call(4)));
        calls.ended(4);
        assert!(!can_watch(&mut calls, 4));

        let mut without = Calls::new(false, true);
        without.made(call(5));
        assert!(without.early.is_empty());
    }

    /// What the workers of a server came to need, the next one gets before it makes a call; other processes do
    /// not.
    #[test]
    fn needs_run_in_families() {
        const PARENT: u32 = 10;
        let mut calls = Calls::new(true, true);
        let can_watch = |calls: &mut Calls, tgid| calls.can_watch(tgid, PathBuf::new(), PROBES);
        calls.traced(11, Some(PARENT));
        assert!(!can_watch(&mut calls, 11));
        calls.watched(11, ProcessProbes::none());
        calls.traced(12, Some(PARENT));
        assert!(can_watch(&mut calls, 12));
        assert_eq!(calls.needs_queues(1), [0; 0]);
        calls.followed(11, ProcessProbes::none());
        calls.traced(13, Some(PARENT));
        assert!(can_watch(&mut calls, 13));
        assert_eq!(calls.needs_queues(1), [13]);
        for (tgid, parent) in [(14, Some(99)), (15, None)] {
            calls.traced(tgid, parent);
            assert!(!can_watch(&mut calls, tgid));
        }
        calls.ended(PARENT);
        calls.traced(16, Some(PARENT));
        assert!(!can_watch(&mut calls, 16));
    }

    /// Queues are asked about again until they are found, ever less often, and not for ever.
    #[test]
    fn queues_are_asked_about_again() {
        let mut calls = Calls::new(true, true);
        let times = |calls: &mut Calls, seconds: std::ops::Range<u64>| {
            (seconds.start * 10..seconds.end * 10)
                .filter(|tenth| !calls.needs_queues(1 + tenth * 100_000_000).is_empty())
                .count()
        };
        calls.rootless.insert(7);
        let first = times(&mut calls, 0..1);
        assert!((2..=3).contains(&first), "{first}");
        assert_eq!(first + times(&mut calls, 1..600), ASKS_MAX as usize);
        calls.rootless.insert(7);
        assert_eq!(times(&mut calls, 600..1200), 1);
        calls.rootless.insert(8);
        assert_eq!(calls.needs_queues(1), [8]);
        calls.followed(8, ProcessProbes::none());
        assert_eq!(times(&mut calls, 0..60), 0);
    }
}
