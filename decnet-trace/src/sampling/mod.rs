//! Which traces are kept. Decided when a request ends, before its span is built, so that what is
//! dropped costs nothing more. No I/O and no clock.
//!
//! * [`config`]: the rules.
//! * [`probability`]: what is consistent by a trace's id.
//! * `routes`: rates and durations by route.
//!
//! A trace is kept or dropped as a whole: what comes later in it follows what was decided first. One
//! that would be dropped is kept back for a moment, since an error may show up in it. docs/sampling.md
//! says more.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

pub mod config;
pub mod probability;
mod routes;

pub use config::{Root, Sampler, SamplingConfig, Slow, ratio};
use probability::{Threshold, randomness};
use routes::Routes;

/// How many decisions are remembered for what comes later in a trace.
const DECIDED_MAX: usize = 1 << 16;

/// Why a trace is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its caller has sampled it.
    Parent,
    /// The sampler keeps it, and there are no other rules.
    Head,
    /// There is an error in it.
    Error,
    /// It is slow.
    Slow,
    /// It is one of the share that is kept.
    Rate,
}

impl Reason {
    /// The value of `decnet.sampling.reason`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Parent => "parent",
            Self::Head => "head",
            Self::Error => "error",
            Self::Slow => "slow",
            Self::Rate => "rate",
        }
    }
}

/// That a trace is kept, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kept {
    /// Why.
    pub reason: Reason,
    /// At which threshold: how many traces it stands for.
    pub threshold: Threshold,
}

/// What is decided of a span.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// It is kept. What was kept back of its trace is to be [released](Sampling::release) first.
    Keep(Kept),
    /// It is not known yet: keep it [back](Sampling::hold).
    Hold,
    /// It is dropped.
    Drop,
}

/// What a decision goes by.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The trace.
    pub trace_id: &'a [u8; 16],
    /// The trace's state.
    pub trace_state: &'a str,
    /// What the caller decided, where one named itself.
    pub parent_sampled: Option<bool>,
    /// The service.
    pub service: &'a str,
    /// What routes are told by: the span's name would do.
    pub route: &'a str,
    /// Whether it failed.
    pub error: bool,
    /// How long it took, in nanoseconds.
    pub duration: u64,
    /// Whether it is a request that was served, which is what can be slow.
    pub served: bool,
}

/// What has been decided of a trace.
#[derive(Clone, Copy, Debug)]
enum Decided {
    Kept(Kept),
    Dropped,
    /// Parts of it are kept back.
    Held(Threshold),
}

/// Decides, trace by trace. `T` is what a span can be made of later.
#[derive(Debug)]
pub struct Sampling<T> {
    config: SamplingConfig,
    decided: FxHashMap<[u8; 16], Decided>,
    /// The traces in `decided`, oldest first.
    order: VecDeque<[u8; 16]>,
    held: FxHashMap<[u8; 16], Vec<T>>,
    /// Traces kept back, with the time until when.
    due: VecDeque<(u64, [u8; 16])>,
    held_items: usize,
    dropped: u64,
    hastened: u64,
    routes: Routes,
}

impl<T> Sampling<T> {
    /// Nothing decided yet.
    pub fn new(config: SamplingConfig) -> Self {
        Self {
            routes: Self::routes_for(&config),
            config,
            decided: FxHashMap::default(),
            order: VecDeque::new(),
            held: FxHashMap::default(),
            due: VecDeque::new(),
            held_items: 0,
            dropped: 0,
            hastened: 0,
        }
    }

    /// Goes by other rules from now on. What was decided stays decided; rates and durations of routes are
    /// learnt anew where the rules that need them changed.
    pub fn reconfigure(&mut self, config: SamplingConfig) {
        let fresh = Self::routes_for(&config);
        if fresh.needs() != self.routes.needs() {
            self.routes = fresh;
        }
        self.config = config;
    }

    fn routes_for(config: &SamplingConfig) -> Routes {
        let by_p99 = config.keep_slow == Some(Slow::RouteP99) && config.has_tail();
        Routes::new(config.traces_per_second, by_p99)
    }

    /// Whether spans should say why they are kept: nobody asked for a choice otherwise.
    pub fn is_choosy(&self) -> bool {
        self.config.sampler != Sampler::default() || self.config.has_tail()
    }

    /// Spans dropped, and traces that were kept back for a shorter time than they should have been
    /// because too many were.
    pub const fn counts(&self) -> (u64, u64) {
        (self.dropped, self.hastened)
    }

    /// Decides. `now` is in nanoseconds of any clock that only goes forward.
    pub fn decide(&mut self, candidate: &Candidate<'_>, now: u64) -> Verdict {
        self.tick(now);
        let verdict = match self.decided.get(candidate.trace_id).copied() {
            Some(Decided::Kept(kept)) => Verdict::Keep(kept),
            Some(Decided::Dropped) => Verdict::Drop,
            Some(Decided::Held(threshold)) => match self.tail_rule(candidate) {
                Some((reason, _)) => self.keep(candidate.trace_id, Kept { reason, threshold }),
                None => Verdict::Hold,
            },
            None => self.first(candidate, now),
        };
        if verdict == Verdict::Drop {
            self.dropped += 1;
        }
        verdict
    }

    /// The first that is seen of a trace decides.
    fn first(&mut self, candidate: &Candidate<'_>, now: u64) -> Verdict {
        let r = randomness(candidate.trace_id, candidate.trace_state);
        let sampler = self.config.sampler;
        let parent = candidate.parent_sampled.filter(|_| sampler.parent_based);
        let (passes, threshold, reason) = match (parent, sampler.root) {
            (Some(sampled), _) => {
                let threshold = probability::threshold(candidate.trace_state);
                (
                    sampled,
                    threshold.unwrap_or(Threshold::KEEP),
                    Reason::Parent,
                )
            }
            (None, Root::AlwaysOn) => (true, Threshold::KEEP, Reason::Head),
            (None, Root::AlwaysOff) => (false, Threshold::KEEP, Reason::Head),
            (None, Root::Ratio(ratio)) => {
                let threshold = Threshold::of_ratio(ratio);
                (threshold.keeps(r), threshold, Reason::Head)
            }
        };
        let id = candidate.trace_id;
        if !passes {
            self.remember(id, Decided::Dropped);
            return Verdict::Drop;
        }
        if !self.config.has_tail() {
            let kept = Kept { reason, threshold };
            // Without a choice there is nothing to remember: what comes later is kept as well.
            return match self.is_choosy() {
                true => self.keep(id, kept),
                false => Verdict::Keep(kept),
            };
        }
        let rule = self.tail_rule(candidate);
        let route = rule
            .and_then(|(_, route)| route)
            .or_else(|| self.route(candidate));
        let share = route.map_or(1.0, |route| self.routes.share(route));
        if let Some((reason, _)) = rule {
            return self.keep(id, Kept { reason, threshold });
        }
        let by_rate = Threshold::of_ratio(self.config.ratio.min(share));
        if by_rate.keeps(r) {
            if let Some(route) = route {
                self.routes.kept(route);
            }
            let reason = Reason::Rate;
            let threshold = threshold.max(by_rate);
            return self.keep(id, Kept { reason, threshold });
        }
        if !self.config.keep_errors && self.config.keep_slow.is_none() {
            self.remember(id, Decided::Dropped);
            return Verdict::Drop;
        }
        self.remember(id, Decided::Held(threshold));
        self.due
            .push_back((now + self.config.hold.as_nanos() as u64, *id));
        Verdict::Hold
    }

    /// The rule that keeps a span whatever the rate is, and its route where that was looked up.
    fn tail_rule(&mut self, candidate: &Candidate<'_>) -> Option<(Reason, Option<usize>)> {
        let mut route = None;
        let slow = match self.config.keep_slow {
            _ if !candidate.served => false,
            None => false,
            Some(Slow::Over(limit)) => u128::from(candidate.duration) > limit.as_nanos(),
            Some(Slow::RouteP99) => {
                route = self.route(candidate);
                let seconds = candidate.duration as f64 / 1e9;
                route.is_some_and(|route| self.routes.is_slow(route, seconds))
            }
        };
        match (candidate.error && self.config.keep_errors, slow) {
            (true, _) => Some((Reason::Error, route)),
            (false, true) => Some((Reason::Slow, route)),
            (false, false) => None,
        }
    }

    fn route(&mut self, candidate: &Candidate<'_>) -> Option<usize> {
        let needed = self.routes.is_needed();
        needed.then(|| self.routes.find(candidate.service, candidate.route))
    }

    fn keep(&mut self, trace_id: &[u8; 16], kept: Kept) -> Verdict {
        self.remember(trace_id, Decided::Kept(kept));
        Verdict::Keep(kept)
    }

    fn remember(&mut self, trace_id: &[u8; 16], decided: Decided) {
        if self.decided.insert(*trace_id, decided).is_none() {
            self.order.push_back(*trace_id);
            if self.order.len() > DECIDED_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.decided.remove(&oldest);
                self.drop_held(&oldest);
            }
        }
    }

    /// Keeps back what a span can be made of: the verdict was [`Verdict::Hold`].
    pub fn hold(&mut self, trace_id: &[u8; 16], item: T) {
        self.held.entry(*trace_id).or_default().push(item);
        self.held_items += 1;
        while self.held_items > self.config.held_max
            && let Some((_, oldest)) = self.due.pop_front()
        {
            self.hastened += 1;
            self.expire(&oldest);
        }
    }

    /// What was kept back of a trace that is kept now.
    pub fn release(&mut self, trace_id: &[u8; 16]) -> Vec<T> {
        // As a rule, nothing is kept back at all.
        if self.held.is_empty() {
            return Vec::new();
        }
        let items = self.held.remove(trace_id).unwrap_or_default();
        self.held_items -= items.len();
        items
    }

    /// Lets time pass: what was kept back for long enough is dropped.
    pub fn tick(&mut self, now: u64) {
        self.routes.tick(now);
        while self.due.front().is_some_and(|(due, _)| *due <= now)
            && let Some((_, trace_id)) = self.due.pop_front()
        {
            self.expire(&trace_id);
        }
    }

    /// Nothing comes any more: what is kept back has no reason to be kept, and is dropped.
    pub fn finish(&mut self) {
        while let Some((_, trace_id)) = self.due.pop_front() {
            self.expire(&trace_id);
        }
    }

    fn expire(&mut self, trace_id: &[u8; 16]) {
        if let Some(decided @ Decided::Held(_)) = self.decided.get_mut(trace_id) {
            *decided = Decided::Dropped;
        }
        self.drop_held(trace_id);
    }

    fn drop_held(&mut self, trace_id: &[u8; 16]) {
        if let Some(items) = self.held.remove(trace_id) {
            self.held_items -= items.len();
            self.dropped += items.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests;
