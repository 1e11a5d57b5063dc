//! Metrics of every request, sampled or not, by process; and the agent's own. No I/O and no clock.
//!
//! * [`exponential`]: the histograms.
//! * [`series`]: one for each set of attributes, bounded in number.
//! * [`agent`]: what the agent says of itself.
//! * [`shared`]: the metrics as the pipeline and those who read them share them.
//!
//! docs/metrics.md says what is measured.

use std::{net::IpAddr, sync::Arc, time::Duration};

use rustc_hash::FxHashMap;

use crate::{
    correlate::exchange::Role,
    policy::{
        http::{Observed, Server},
        statement,
    },
    span::Resource,
};

pub mod agent;
pub mod exponential;
pub mod series;
pub mod shared;

pub use agent::Agent;
use series::{Attribute, Exemplar, Family, Value};
pub use shared::SharedMetrics;

/// How long a process that ended is still reported, in nanoseconds: longer than readers wait.
const REMEMBER: u64 = 300_000_000_000;

/// How long it is reported at most while what it counted has not got through to where metrics are sent.
const UNTOLD_MAX: u64 = 3_600_000_000_000;

/// The bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricsConfig {
    /// The most series that one instrument of one process has; what comes after shares one.
    pub series_max: usize,
    /// The most series in all.
    pub total_max: usize,
    /// The most processes.
    pub processes_max: usize,
}

impl Default for MetricsConfig {
    /// A series takes about 1.6 KiB: 13 MiB at most.
    fn default() -> Self {
        Self {
            series_max: 1000,
            total_max: 8192,
            processes_max: 1024,
        }
    }
}

/// What is measured of each process, all in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instrument {
    /// Requests served.
    ServerDuration,
    /// Requests made.
    ClientDuration,
    /// Database operations.
    DbDuration,
    /// Time that served requests waited before they were read.
    QueueDuration,
}

impl Instrument {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::ServerDuration,
        Self::ClientDuration,
        Self::DbDuration,
        Self::QueueDuration,
    ];

    /// The name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ServerDuration => "http.server.request.duration",
            Self::ClientDuration => "http.client.request.duration",
            Self::DbDuration => "db.client.operation.duration",
            Self::QueueDuration => "decnet.queue.duration",
        }
    }

    /// The description.
    pub const fn description(self) -> &'static str {
        match self {
            Self::ServerDuration => "Duration of HTTP server requests.",
            Self::ClientDuration => "Duration of HTTP client requests.",
            Self::DbDuration => "Duration of database client operations.",
            Self::QueueDuration => {
                "How long requests waited in the socket before the process read them."
            }
        }
    }

    /// The bounds that the conventions advise for explicit buckets.
    pub const fn bounds(self) -> &'static [f64] {
        match self {
            Self::DbDuration => &[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0],
            Self::ServerDuration | Self::ClientDuration | Self::QueueDuration => &[
                0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
            ],
        }
    }
}

/// The metrics of one process.
#[derive(Clone, Debug)]
pub struct Process {
    /// The process.
    pub resource: Arc<Resource>,
    /// Since when it is measured, in nanoseconds since the Unix epoch.
    pub start: u64,
    ended: Option<u64>,
    /// How many exports there had been when it last counted something.
    counted: u64,
    families: [Family; Instrument::ALL.len()],
    /// Requests under way, by method.
    active: Vec<(&'static str, i64)>,
}

impl Process {
    /// The series of an instrument.
    pub fn family(&self, instrument: Instrument) -> &Family {
        &self.families[instrument as usize]
    }

    /// Requests under way, by method; a method that had some stays, at zero.
    pub fn active(&self) -> &[(&'static str, i64)] {
        &self.active
    }
}

/// What is measured, as it was at one moment: whoever writes it down holds nobody up.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Since when there are metrics, in nanoseconds since the Unix epoch.
    pub start: u64,
    /// All processes, those that ended a while ago too.
    pub processes: Vec<Process>,
    /// What the agent says of itself.
    pub agent: Option<Agent>,
    /// Until when exemplars were exported before.
    pub last_export: u64,
    /// Which export this is.
    pub number: u64,
}

/// What is measured.
#[derive(Debug)]
pub struct Metrics {
    config: MetricsConfig,
    start: u64,
    processes: Vec<Process>,
    places: FxHashMap<u32, usize>,
    /// Since when what a new process has counted is all that it has: since the start, or since
    /// processes were forgotten, which it may be one of.
    counting_since: u64,
    series: usize,
    unmeasured: u64,
    overflowed: u64,
    /// Processes that were forgotten before what they counted had got through.
    untold: u64,
    agent: Option<Agent>,
    rng: fastrand::Rng,
    last_export: u64,
    /// Exports so far.
    exports: u64,
    /// The last export that got through, where there are exports.
    told: Option<u64>,
    untold_max: u64,
}

impl Metrics {
    /// Nothing measured yet; `start` is now, in nanoseconds since the Unix epoch.
    pub fn new(config: MetricsConfig, start: u64) -> Self {
        Self {
            config,
            start,
            processes: Vec::new(),
            places: FxHashMap::default(),
            counting_since: start,
            series: 0,
            unmeasured: 0,
            overflowed: 0,
            untold: 0,
            agent: None,
            rng: fastrand::Rng::with_seed(start),
            last_export: 0,
            exports: 0,
            told: None,
            untold_max: UNTOLD_MAX,
        }
    }

    /// Counts an exchange that ended at `now` (Unix, in nanoseconds). `span` is that which is kept of
    /// it, where it is known to be kept.
    pub fn exchange(
        &mut self,
        resource: &Arc<Resource>,
        seen: &Observed<'_>,
        now: u64,
        span: Option<([u8; 16], [u8; 8])>,
    ) {
        let mut attributes = Attributes::default();
        attributes.text("http.request.method", seen.method);
        let address;
        let instrument = match seen.role {
            Role::Server => {
                attributes.text("url.scheme", &seen.scheme);
                if let Some(route) = seen.route {
                    attributes.text("http.route", route);
                }
                Instrument::ServerDuration
            }
            Role::Client => {
                match seen.server {
                    Server::Named(host, port) => {
                        attributes.text("server.address", host);
                        if let Some(port) = port {
                            attributes.int("server.port", port.into());
                        }
                    }
                    Server::At(at) => {
                        address = Address::new(at.ip());
                        attributes.text("server.address", address.as_str());
                        attributes.int("server.port", at.port().into());
                    }
                    Server::Unknown => {}
                }
                Instrument::ClientDuration
            }
        };
        if let Some(status) = seen.status {
            attributes.int("http.response.status_code", status.into());
        }
        if let Some(error) = &seen.error {
            attributes.text("error.type", error);
        }
        attributes.text("network.protocol.version", &seen.version);
        let duration = seen.duration as f64 / 1e9;
        self.record(resource, instrument, attributes.get(), duration, now, span);
        // Where there have been requests, that none is under way is worth telling.
        if seen.role == Role::Server
            && let Some(&place) = self.places.get(&resource.tgid)
        {
            let active = &mut self.processes[place].active;
            if !active.iter().any(|(known, _)| *known == seen.method) {
                active.push((seen.method, 0));
            }
        }
        if let Some(queued) = seen.queued {
            let queued = queued as f64 / 1e9;
            self.record(resource, Instrument::QueueDuration, &[], queued, now, span);
        }
    }

    /// Counts a database's statement that ended at `now` (Unix, in nanoseconds). `span` is that which is
    /// kept of it, where it is known to be kept.
    pub fn statement(
        &mut self,
        resource: &Arc<Resource>,
        seen: &statement::Observed<'_>,
        now: u64,
        span: Option<([u8; 16], [u8; 8])>,
    ) {
        let mut attributes = Attributes::default();
        attributes.text("db.system.name", seen.system);
        if let Some(namespace) = seen.namespace {
            attributes.text("db.namespace", namespace);
        }
        if let Some(collection) = &seen.collection {
            attributes.text("db.collection.name", collection);
        }
        if let Some(operation) = seen.operation {
            attributes.text("db.operation.name", operation);
        }
        let code;
        if let Some((number, name)) = &seen.error {
            code = number.to_string();
            attributes.text("db.response.status_code", &code);
            attributes.text("error.type", name);
        }
        let duration = seen.duration as f64 / 1e9;
        let instrument = Instrument::DbDuration;
        self.record(resource, instrument, attributes.get(), duration, now, span);
    }

    /// Counts a value of a process, in seconds.
    fn record(
        &mut self,
        resource: &Arc<Resource>,
        instrument: Instrument,
        attributes: &[Attribute<'_>],
        value: f64,
        now: u64,
        span: Option<([u8; 16], [u8; 8])>,
    ) {
        let Some(place) = self.place(resource, now) else {
            self.unmeasured += 1;
            return;
        };
        let process = &mut self.processes[place];
        process.counted = self.exports;
        let family = &mut process.families[instrument as usize];
        let room = family.len() < self.config.series_max && self.series < self.config.total_max;
        let before = family.len();
        let series = family.find(attributes, room);
        series.record(value, instrument.bounds());
        if let Some((trace_id, span_id)) = span {
            let exemplar = Exemplar {
                value,
                time: now,
                trace_id,
                span_id,
            };
            series.offer(exemplar, &mut self.rng);
        }
        if !room
            && series
                .attributes
                .first()
                .is_some_and(|(name, _)| *name == series::OVERFLOW)
        {
            self.overflowed += 1;
        }
        self.series += family.len() - before;
    }

    /// Where a process's metrics are.
    fn place(&mut self, resource: &Arc<Resource>, now: u64) -> Option<usize> {
        let known = self.places.get(&resource.tgid).copied();
        if let Some(place) = known
            && Arc::ptr_eq(&self.processes[place].resource, resource)
        {
            return Some(place);
        }
        // Traced again, or known better by now: whoever reads would take a second one for the same.
        let same = |process: &Process| process.resource.is_same(resource);
        let same = self.processes.iter().position(same);
        // The pid is another process's now, or this one executed another program.
        if let Some(place) = known.filter(|known| Some(*known) != same) {
            self.processes[place].ended.get_or_insert(now);
        }
        if let Some(place) = same {
            let process = &mut self.processes[place];
            process.resource = Arc::clone(resource);
            process.ended = None;
            self.places.insert(resource.tgid, place);
            return Some(place);
        }
        if self.processes.len() >= self.config.processes_max && !self.make_room(now) {
            return None;
        }
        let place = self.processes.len();
        self.places.insert(resource.tgid, place);
        self.processes.push(Process {
            resource: Arc::clone(resource),
            start: self.counting_since,
            ended: None,
            counted: self.exports,
            families: Default::default(),
            active: Vec::new(),
        });
        Some(place)
    }

    /// A process ended; what is still under way from it counts all the same.
    pub fn ended(&mut self, tgid: u32, now: u64) {
        if let Some(&place) = self.places.get(&tgid) {
            self.processes[place].ended.get_or_insert(now);
        }
    }

    /// Takes which processes are alive: what is counted of one after its end does not make it live again.
    pub fn set_live(&mut self, is_live: impl Fn(u32) -> bool, now: u64) {
        let living = self.processes.iter_mut().filter(|p| p.ended.is_none());
        for process in living.filter(|process| !is_live(process.resource.tgid)) {
            process.ended = Some(now);
        }
    }

    /// Takes how many requests are under way, by process and method: one call for each.
    pub fn set_active(&mut self, requests: impl Iterator<Item = (u32, &'static str)>) {
        for process in &mut self.processes {
            process.active.iter_mut().for_each(|(_, n)| *n = 0);
        }
        for (tgid, method) in requests {
            // A process that has not ended a request yet has no metrics yet.
            let Some(&place) = self.places.get(&tgid) else {
                continue;
            };
            let active = &mut self.processes[place].active;
            match active.iter_mut().find(|(known, _)| *known == method) {
                Some((_, n)) => *n += 1,
                None => active.push((method, 1)),
            }
        }
    }

    /// Takes what the agent says of itself.
    pub fn set_agent(&mut self, agent: Agent) {
        self.agent = Some(agent);
    }

    /// Since when there are metrics, in nanoseconds since the Unix epoch.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// All processes, those that ended a while ago too.
    pub fn processes(&self) -> &[Process] {
        &self.processes
    }

    /// The counters, by name: values of processes beyond the bound, processes that were forgotten before
    /// what they counted had got through, values that shared a series.
    pub const fn counters(&self) -> [(&'static str, u64); 3] {
        [
            ("metrics_lost_processes_full", self.unmeasured),
            ("metrics_lost_processes_untold", self.untold),
            ("metrics_series_overflowed", self.overflowed),
        ]
    }

    /// All of it as it is now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            start: self.start,
            processes: self.processes.clone(),
            agent: self.agent.clone(),
            last_export: self.last_export,
            number: self.exports,
        }
    }

    /// There will be an export that often: a process that ended is not forgotten before it was told.
    pub fn expect_exports(&mut self, every: Duration) {
        self.told.get_or_insert(0);
        let every = u64::try_from(every.as_nanos()).unwrap_or(u64::MAX);
        self.untold_max = UNTOLD_MAX.max(every.saturating_mul(2));
    }

    /// All of it, to be exported: what comes gets new exemplars.
    pub fn export(&mut self, now: u64) -> Snapshot {
        self.exports += 1;
        let snapshot = self.snapshot();
        self.last_export = now;
        for family in self.processes.iter_mut().flat_map(|p| &mut p.families) {
            family.iter_mut().for_each(series::Series::read);
        }
        snapshot
    }

    /// The export of that number got through.
    pub fn delivered(&mut self, number: u64) {
        self.told = self.told.map(|told| told.max(number));
    }

    /// Forgets processes that ended long ago.
    pub fn forget(&mut self, now: u64) {
        // Those that are alive need their series.
        let is_crowded = self.series > self.config.total_max / 2;
        let over = |process: &Process| {
            process.ended.is_some_and(|ended| {
                let since = now.saturating_sub(ended);
                let is_told = is_crowded || self.is_told(process);
                since > REMEMBER && (is_told || since > self.untold_max)
            })
        };
        let over: Vec<bool> = self.processes.iter().map(over).collect();
        self.remove(&over, now);
    }

    /// Whether all that it counted has got through, or nobody waits for it.
    fn is_told(&self, process: &Process) -> bool {
        self.told.is_none_or(|told| process.counted < told)
    }

    /// Forgets the process that ended first, if one has.
    fn make_room(&mut self, now: u64) -> bool {
        let places = self.processes.iter().enumerate();
        let ended = places.filter_map(|(place, process)| Some((process.ended?, place)));
        let Some((_, first)) = ended.min() else {
            return false;
        };
        let over: Vec<bool> = (0..self.processes.len()).map(|at| at == first).collect();
        self.remove(&over, now);
        true
    }

    /// Forgets the processes at these places.
    fn remove(&mut self, over: &[bool], now: u64) {
        if !over.contains(&true) {
            return;
        }
        let gone = self.processes.iter().zip(over).filter(|(_, over)| **over);
        self.untold += gone.filter(|(process, _)| !self.is_told(process)).count() as u64;
        let mut over = over.iter();
        self.processes.retain(|_| over.next() != Some(&true));
        self.counting_since = now;
        self.series = self
            .processes
            .iter()
            .flat_map(|p| &p.families)
            .map(Family::len)
            .sum();
        // Of those with one pid the one that lives counts; of those that ended, the last.
        let places = self.processes.iter().enumerate();
        let (ended, living): (Vec<_>, Vec<_>) = places.partition(|(_, p)| p.ended.is_some());
        self.places = ended
            .into_iter()
            .chain(living)
            .map(|(place, process)| (process.resource.tgid, place))
            .collect();
    }
}

/// The attributes of one value, on the stack.
struct Attributes<'a> {
    list: [Attribute<'a>; 8],
    len: usize,
}

impl Default for Attributes<'_> {
    fn default() -> Self {
        Self {
            list: [("", Value::Int(0)); 8],
            len: 0,
        }
    }
}

impl<'a> Attributes<'a> {
    fn text(&mut self, name: &'static str, text: &'a str) {
        self.push(name, Value::Text(text));
    }

    fn int(&mut self, name: &'static str, n: i64) {
        self.push(name, Value::Int(n));
    }

    fn push(&mut self, name: &'static str, value: Value<'a>) {
        if let Some(slot) = self.list.get_mut(self.len) {
            *slot = (name, value);
            self.len += 1;
        }
    }

    fn get(&self) -> &[Attribute<'a>] {
        &self.list[..self.len]
    }
}

/// An address as text, on the stack.
struct Address {
    text: [u8; 48],
    len: usize,
}

impl Address {
    fn new(ip: IpAddr) -> Self {
        use std::io::Write as _;
        let mut text = [0; 48];
        let mut rest = &mut text[..];
        // The longest address has 45 bytes.
        let _ = write!(rest, "{}", ip.to_canonical());
        let len = 48 - rest.len();
        Self { text, len }
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text[..self.len]).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
