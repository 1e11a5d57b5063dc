//! What sampling knows of each route: how often it is asked for, and how long that takes.

use std::hash::{Hash, Hasher};

use hashbrown::{HashTable, hash_table::Entry};
use rustc_hash::FxHasher;

use crate::metrics::exponential::ExponentialHistogram;

/// The most routes; those beyond share one.
const ROUTES_MAX: usize = 1024;

/// A tick, in nanoseconds: rates are of this time.
const TICK: u64 = 1_000_000_000;

/// How long durations count for what is slow: between one and two of these, in ticks.
const WINDOW: u64 = 300;

/// The fewest durations that tell what is slow.
const TELLING: u64 = 100;

/// A route that nobody asked for in so many ticks is forgotten.
const FORGET: u64 = 600;

/// All routes.
#[derive(Debug)]
pub(super) struct Routes {
    target: Option<f64>,
    slow: bool,
    table: HashTable<usize>,
    list: Vec<Route>,
    next_tick: u64,
    ticks: u64,
    /// What a route may have of the target that would use more.
    level: f64,
}

#[derive(Debug)]
struct Route {
    service: Box<str>,
    name: Box<str>,
    /// Traces in this tick, and kept of them.
    seen: u64,
    kept: f64,
    /// Traces in a tick, lately.
    rate: f64,
    /// The share that is kept.
    share: f64,
    /// When so many are kept in this tick, fewer are from then on.
    guard: f64,
    durations: Option<Box<[ExponentialHistogram; 2]>>,
    slow_over: f64,
    last: u64,
}

impl Routes {
    /// What it was made for: the target, and whether durations count.
    pub(super) const fn needs(&self) -> (Option<f64>, bool) {
        (self.target, self.slow)
    }

    pub(super) fn new(target: Option<f64>, slow: bool) -> Self {
        let mut routes = Self {
            target,
            slow,
            table: HashTable::new(),
            list: Vec::new(),
            next_tick: 0,
            ticks: 0,
            level: target.unwrap_or(f64::INFINITY),
        };
        // The first is that of all for which there is no room.
        let others = routes.route("", "");
        routes.list.push(others);
        routes
    }

    /// Whether anything has to be known of routes.
    pub(super) fn is_needed(&self) -> bool {
        self.target.is_some() || self.slow
    }

    /// The route's number.
    pub(super) fn find(&mut self, service: &str, name: &str) -> usize {
        let list = &self.list;
        let is_it = |&at: &usize| *list[at].service == *service && *list[at].name == *name;
        let rehash = |&at: &usize| hash_of(&list[at].service, &list[at].name);
        match self.table.entry(hash_of(service, name), is_it, rehash) {
            Entry::Occupied(at) => *at.get(),
            Entry::Vacant(_) if list.len() > ROUTES_MAX => 0,
            Entry::Vacant(place) => {
                let at = list.len();
                place.insert(at);
                let route = self.route(service, name);
                self.list.push(route);
                at
            }
        }
    }

    fn route(&self, service: &str, name: &str) -> Route {
        Route {
            service: service.into(),
            name: name.into(),
            seen: 0,
            kept: 0.0,
            rate: 0.0,
            share: 1.0,
            guard: self.level.max(1.0),
            durations: self.slow.then(Box::default),
            slow_over: f64::INFINITY,
            last: self.ticks,
        }
    }

    /// The share of a route's traces that is kept, now that there is one more.
    pub(super) fn share(&mut self, at: usize) -> f64 {
        let level = self.level;
        let route = &mut self.list[at];
        route.seen += 1;
        route.last = self.ticks;
        if self.target.is_none() {
            return 1.0;
        }
        // What is not known before the tick is over: that a flood has begun.
        if route.kept >= route.guard {
            route.share /= 2.0;
            route.guard += (level / 2.0).max(1.0);
        }
        route.share
    }

    /// One of them was kept.
    pub(super) fn kept(&mut self, at: usize) {
        self.list[at].kept += 1.0;
    }

    /// Whether so many seconds are slow for a route, which learns of them.
    pub(super) fn is_slow(&mut self, at: usize, seconds: f64) -> bool {
        let route = &mut self.list[at];
        if let Some(durations) = &mut route.durations {
            durations[0].record(seconds);
        }
        seconds > route.slow_over
    }

    /// Lets time pass, in nanoseconds.
    pub(super) fn tick(&mut self, now: u64) {
        if now < self.next_tick || !self.is_needed() {
            return;
        }
        // The first tick has no length; of a long pause, only the rate is too low for a moment.
        let ticks = match self.next_tick {
            0 => 1.0,
            next => ((now - next) as f64 / TICK as f64 + 1.0).max(1.0),
        };
        self.next_tick = now + TICK;
        self.ticks += 1;
        for route in &mut self.list {
            let rate = route.seen as f64 / ticks;
            // Up at once, down slowly.
            route.rate = rate.max((route.rate + rate) / 2.0);
            if route.rate < 0.01 {
                route.rate = 0.0;
            }
            (route.seen, route.kept) = (0, 0.0);
            if let Some(durations) = &mut route.durations {
                let mut both = durations[1].clone();
                both.merge(&durations[0]);
                route.slow_over = match both.count() >= TELLING {
                    // A bucket is known to within its width: the upper bound is meant.
                    true => both.quantile(0.99).unwrap_or(f64::INFINITY),
                    false => f64::INFINITY,
                };
                if self.ticks.is_multiple_of(WINDOW) {
                    durations.swap(0, 1);
                    durations[0] = ExponentialHistogram::default();
                }
            }
        }
        if let Some(target) = self.target {
            self.spread(target);
        }
        if self.ticks.is_multiple_of(FORGET) {
            self.forget();
        }
    }

    /// Spreads the target over routes: each gets all it needs, or as much as any other that needs
    /// more.
    fn spread(&mut self, target: f64) {
        let mut active: Vec<_> = self.list.iter_mut().filter(|r| r.rate > 0.0).collect();
        active.sort_by(|a, b| a.rate.total_cmp(&b.rate));
        let (mut left, mut n) = (target, active.len() as f64);
        self.level = target / n.max(1.0);
        for route in active {
            let level = left / n;
            let given = route.rate.min(level);
            route.share = given / route.rate;
            (left, n) = (left - given, n - 1.0);
            self.level = level;
        }
        for route in &mut self.list {
            if route.rate <= 0.0 {
                route.share = 1.0;
            }
            // Chance may have it that a few more come than are expected.
            route.guard = (1.5 * self.level + 3.0).max(1.0);
        }
    }

    fn forget(&mut self) {
        let old = self.ticks.saturating_sub(FORGET);
        let mut first = true;
        self.list
            .retain(|route| std::mem::take(&mut first) || route.last > old);
        self.table.clear();
        let list = &self.list;
        for at in 1..list.len() {
            let hash = hash_of(&list[at].service, &list[at].name);
            self.table
                .insert_unique(hash, at, |&at| hash_of(&list[at].service, &list[at].name));
        }
    }
}

fn hash_of(service: &str, name: &str) -> u64 {
    let mut hasher = FxHasher::default();
    (service, name).hash(&mut hasher);
    hasher.finish()
}
