//! Calls that traced processes make, on their way to the requests that caused them.

use std::path::PathBuf;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    bpf::load::ProcessProbes,
    correlate::{
        Correlator,
        attribution::{Attribution, Call, RequestId, Served},
        exchange::Exchange,
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

/// How long to wait before looking for a process's queues again, in nanoseconds.
const ASK_EVERY: u64 = 10_000_000_000;

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
    /// Processes with calls of threads that run for nobody known, and when they were last asked about.
    rootless: FxHashSet<u32>,
    asked: FxHashMap<u32, u64>,
    /// Processes that ended with calls still waiting.
    ended: FxHashSet<u32>,
    due: u64,
    exact: u64,
    without: u64,
}

impl Calls {
    pub(super) fn new(enabled: bool, queues: bool) -> Self {
        Self {
            enabled,
            queues,
            rootless: FxHashSet::default(),
            asked: FxHashMap::default(),
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
        }
    }

    /// A process's CPython is understood: its contexts could be followed.
    pub(super) fn understood(&mut self, process: &PyProcess) {
        if let Some(probes) = process.lineage.filter(|_| self.enabled) {
            self.probes
                .insert(process.pid, (process.host_path.clone(), probes));
        }
    }

    /// What to watch in a process that is not watched yet. It is asked for once.
    pub(super) fn probes_of(&mut self, tgid: u32) -> Option<(PathBuf, LineageProbes)> {
        self.probes.remove(&tgid)
    }

    /// A process's contexts are followed now, as long as these probes live.
    pub(super) fn watched(&mut self, tgid: u32, probes: ProcessProbes) {
        self.watched.insert(tgid, probes);
    }

    /// Work through a process's queues is followed now, as long as these probes live.
    pub(super) fn followed(&mut self, tgid: u32, probes: ProcessProbes) {
        self.followed.insert(tgid, probes);
    }

    /// Processes whose queues should be followed and are not. Each is told again after a while.
    pub(super) fn needs_queues(&mut self, now: u64) -> Vec<u32> {
        let mut due: Vec<u32> = self.rootless.drain().collect();
        due.retain(|tgid| {
            let is_due = self
                .asked
                .get(tgid)
                .is_none_or(|then| now > then + ASK_EVERY);
            if is_due {
                self.asked.insert(*tgid, now);
            }
            is_due
        });
        due
    }

    /// A process ended or executed another program.
    pub(super) fn ended(&mut self, tgid: u32) {
        self.probes.remove(&tgid);
        self.watched.remove(&tgid);
        self.followed.remove(&tgid);
        self.asked.remove(&tgid);
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
            self.attribution.ended(exchange.tgid, id, exchange.end);
            return Some(id);
        }
        let request = served(self.number(), exchange);
        self.unplaced.insert(request.id);
        self.attribution.served(identities, exchange.tgid, &request);
        Some(request.id)
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
                if let Some(id) = request.filter(|id| open.contains(id))
                    && held.len() < HELD_MAX
                {
                    held.push((id, call.what));
                    return;
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
    pub(super) fn counters(&self) -> [(&'static str, u64); 3] {
        [
            ("calls_linked_exact", self.exact),
            ("calls_linked_none", self.without),
            ("calls_waiting_overflowed", self.attribution.overflowed()),
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
    }
}

#[cfg(test)]
mod tests {
    use decnet_trace_common::event::{Header, Lineage, LineageWhat};

    use super::*;
    use crate::{
        correlate::exchange::{End, Role},
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
}
