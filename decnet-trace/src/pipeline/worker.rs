//! The thread that everything passes through, from the rings to the sinks' queues.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::Receiver;
use decnet_trace_common::{counter::Counter, target::flags};
use tracing::{info, warn};

use super::{
    FLUSH_MAX, Lineage, Overlooked,
    calls::Calls,
    discovery::{DiscoveryThread, Finding},
    handing::Unbuilt,
    intervals::IntervalClock,
    joining::Served,
    live::{Live, Python},
    measure::Measure,
    minutes::Minutes,
    outcome::{Outcome, Requests, Unwinding},
    processes::Processes,
    records::Decoder,
    reload::Reload,
    statements::Sqlites,
    wall::Wall,
};
use crate::{
    bpf::load::{Bpf, SockHooks},
    correlate::{Correlator, identity::Identities, joins::Joins},
    discover::{Change, Children, Discovery},
    error::{Error, Result},
    export::Exporters,
    govern::{budget::Budget, cost::CostMeter},
    ingest::Ingest,
    metrics::SharedMetrics,
    policy::{ClockOffset, Policy},
    profile::{self, aggregate::Aggregator, collect::collect},
    sampling::Sampling,
    span::Span,
    symbolize,
    telemetry::{
        Counters,
        clock::{self, unix_offset},
        report::Report,
        usage::SelfUsage,
    },
};

/// How long the rings are left alone between two rounds, at least: a round costs as much as some ten requests,
/// however little there is to do.
const ROUND: Duration = Duration::from_millis(25);

/// The same, at most, while something happens.
const SLOW_ROUND: Duration = Duration::from_millis(75);

/// The same, at most, while nothing does.
const IDLE_ROUND: Duration = Duration::from_millis(200);

/// How many bytes a round should find: far less than wakes it (a quarter of one ring).
const ROUND_BYTES: usize = 64 << 10;

/// How often the slow things are done: looking for quiet closes, forgetting, costs.
const SLOW: Duration = Duration::from_secs(1);

/// How long a record that is being written is waited for at the end.
const DRAIN_MAX: Duration = Duration::from_millis(500);

/// How long naming the last stacks may take at the end.
const SYMBOLIZE_MAX: Duration = Duration::from_secs(10);

/// What a worker is made of.
pub(super) struct Parts {
    pub(super) bpf: Bpf,
    pub(super) ingest: Ingest,
    pub(super) policy: Policy,
    pub(super) exporters: Exporters,
    pub(super) sampling: Sampling<Unbuilt>,
    pub(super) metrics: Option<SharedMetrics>,
    pub(super) symbolizer: symbolize::Client,
    pub(super) symbolizing: thread::JoinHandle<()>,
    pub(super) counters: Arc<Counters>,
    pub(super) requests: bool,
    pub(super) learn_routes: bool,
    pub(super) reloaded: Receiver<Reload>,
    pub(super) lineage: Lineage,
    pub(super) queues: bool,
    pub(super) overlooked: Overlooked,
    pub(super) identities_max: usize,
    pub(super) cpu_budget: Option<f64>,
    pub(super) profile: Option<profile::aggregate::Options>,
    pub(super) clock: Option<IntervalClock>,
    pub(super) minutes: Option<Minutes>,
    pub(super) live: Arc<Live>,
    pub(super) children: Children,
    pub(super) rate: u32,
    pub(super) programs_log: bool,
    pub(super) wall: Option<Wall>,
    pub(super) unwinding: Unwinding,
}

/// The state of the thread.
pub(super) struct Worker {
    pub(super) bpf: Bpf,
    pub(super) ingest: Ingest,
    pub(super) decoder: Decoder,
    pub(super) policy: Policy,
    pub(super) exporters: Exporters,
    pub(super) sampling: Sampling<Unbuilt>,
    pub(super) measure: Option<Measure>,
    pub(super) symbolizer: symbolize::Client,
    pub(super) symbolizing: thread::JoinHandle<()>,
    pub(super) counters: Arc<Counters>,
    pub(super) discovery: Option<DiscoveryThread>,
    pub(super) processes: Processes,
    pub(super) spans: Vec<Span>,
    pub(super) calls: Calls,
    pub(super) joins: Joins<Served>,
    /// Connections forgotten so far.
    pub(super) evicted: u64,
    pub(super) sqlites: Sqlites,
    pub(super) follow_ends: bool,
    pub(super) requests: Requests,
    pub(super) purposes: u32,
    pub(super) rate: u32,
    pub(super) ring_lost: u64,
    /// How often a ring was not waited for any more.
    stuck: u64,
    pub(super) started: Instant,
    pub(super) started_unix: u64,
    pub(super) clock: ClockOffset,
    pub(super) meter: CostMeter,
    budget: Option<Budget>,
    /// Children of traced processes that the kernel side had no room for.
    untraced: u64,
    /// What the eBPF programs say of themselves, where they were built to.
    pub(super) programs_log: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
    pub(super) usage: Option<SelfUsage>,
    pub(super) report: Option<Report>,
    pub(super) interval: Option<IntervalClock>,
    pub(super) minutes: Option<Minutes>,
    pub(super) live: Arc<Live>,
    learn_routes: bool,
    reloaded: Receiver<Reload>,
    /// Samples the threads on no CPU, where that was asked for.
    pub(super) wall: Option<Wall>,
    pub(super) unwinding: Unwinding,
}

impl Worker {
    pub(super) fn new(parts: Parts) -> Result<Self> {
        let Parts {
            mut bpf,
            ingest,
            policy,
            exporters,
            sampling,
            metrics,
            symbolizer,
            symbolizing,
            counters,
            requests,
            learn_routes,
            reloaded,
            lineage,
            queues,
            overlooked,
            identities_max,
            cpu_budget,
            profile,
            clock: interval,
            minutes,
            live,
            children,
            rate,
            programs_log,
            wall,
            unwinding,
        } = parts;
        let profiling = profile.is_some() && rate > 0;
        let purposes = [
            (requests, flags::SOCKETS),
            (profiling, flags::SAMPLES),
            (profile.is_some_and(|options| options.native), flags::NATIVE),
            (profile.is_some_and(|options| options.kernel), flags::KERNEL),
            (children != Children::None, flags::CHILDREN),
        ]
        .into_iter()
        .filter(|(wanted, _)| *wanted)
        .fold(0, |all, (_, flag)| all | flag);
        let now = Instant::now();
        let clock = unix_offset();
        let mut correlator = Correlator::new(crate::correlate::Limits::default());
        correlator.want_headers(policy.headers());
        let programs_log = programs_log.then(|| bpf.logger()).transpose()?;
        Ok(Self {
            decoder: Decoder::new(
                Identities::new(identities_max),
                correlator,
                profile
                    .filter(|_| profiling)
                    .map(|options| Aggregator::new(options, symbolizer.clone())),
                Arc::clone(&live),
            )
            .with_unwinding(unwinding.tables().cloned())
            .overlooking(overlooked),
            interval,
            minutes,
            live,
            wall,
            unwinding,
            bpf,
            ingest,
            policy,
            exporters,
            sampling,
            measure: metrics.map(Measure::new),
            symbolizer,
            symbolizing,
            counters,
            discovery: None,
            processes: Processes::default(),
            spans: Vec::new(),
            calls: Calls::new(lineage != Lineage::Off, queues),
            joins: Joins::default(),
            evicted: 0,
            sqlites: Sqlites::default(),
            follow_ends: lineage == Lineage::On,
            requests: Requests::default(),
            purposes,
            rate,
            ring_lost: 0,
            stuck: 0,
            started: now,
            started_unix: clock.to_unix(monotonic()),
            clock,
            meter: CostMeter::new(now),
            budget: cpu_budget.and_then(|percent| Budget::start(percent).ok()),
            untraced: 0,
            programs_log,
            usage: SelfUsage::start().ok(),
            report: Report::start().ok(),
            learn_routes,
            reloaded,
        })
    }

    /// Attaches the hooks.
    pub(super) fn attach(&mut self) -> Result<()> {
        self.bpf.attach()?;
        // Before, nothing was seen.
        self.joins.events_lost(monotonic());
        info!(
            "attached: {}, {} Hz, {} processes traced",
            self.bpf
                .sock_hooks()
                .map_or("no socket hooks", SockHooks::as_str),
            self.rate,
            self.processes.live()
        );
        Ok(())
    }

    /// Starts to look for targets.
    pub(super) fn discover(&mut self, discovery: Discovery, first: Vec<Change>) -> Result<()> {
        let sqlite = self.purposes & flags::SOCKETS != 0;
        self.discovery = Some(DiscoveryThread::start(
            discovery,
            first,
            self.learn_routes,
            sqlite,
        )?);
        Ok(())
    }

    /// Does its work until told to stop.
    pub(super) fn run(mut self, stop: &AtomicBool) -> Result<Outcome> {
        let mut slow = Instant::now() + SLOW;
        let mut round = ROUND;
        while !stop.load(Ordering::Relaxed) {
            self.ingest.wait(round);
            let now = monotonic();
            let found = self.round(now)?;
            self.decoder.tick(now);
            round = next_round(round, found);
            self.follow()?;
            if let Ok(reload) = self.reloaded.try_recv() {
                self.reload(reload);
            }
            self.forward(now, false);
            self.ask(now);
            if let Some(log) = &mut self.programs_log {
                log.flush();
            }
            self.hand_over();
            if Instant::now() >= slow {
                slow = Instant::now() + SLOW;
                self.slow(now)?;
            }
        }
        self.finish()
    }

    /// One round through the rings for records of before `horizon`; how many bytes of records there were.
    fn round(&mut self, horizon: u64) -> Result<usize> {
        let taken = self.ingest.take();
        let stuck = self.ingest.given_up();
        if stuck > self.stuck {
            self.stuck = stuck;
            self.events_lost();
        }
        // Between taking records and looking at them: a loss is noticed before what follows it is paired. A
        // ring that is full is not empty.
        let lossy = taken > 0 && self.notice_losses()?;
        let Self {
            ingest,
            decoder,
            discovery,
            wall,
            ..
        } = self;
        // Before what happened since: an `exec` among it makes these of another program.
        let waiting = wall.as_ref().map_or(0, |wall| {
            wall.hand_on(|bytes| decoder.record(bytes, discovery.as_ref()))
        });
        ingest.hand_on(horizon, |bytes| decoder.record(bytes, discovery.as_ref()));
        if lossy {
            // What a full ring held is older than what it lost.
            self.events_lost();
        }
        // Few of these may wait.
        Ok(taken + waiting * ROUND_BYTES)
    }

    /// Does what the discovery thread found out.
    fn follow(&mut self) -> Result<()> {
        let findings: Vec<_> = self
            .discovery
            .iter()
            .flat_map(DiscoveryThread::findings)
            .collect();
        let mut since = Instant::now();
        for finding in findings {
            match finding {
                Finding::Change(change) => self.apply(&change),
                Finding::Python(process) => self.arm(&process),
                Finding::Queues(tgid, probes) => self.watch_queues(tgid, &probes),
                Finding::Caller {
                    tgid,
                    code,
                    is_loop,
                } => {
                    if is_loop == Some(true) {
                        info!("pid {tgid} has threads that work off a queue");
                    }
                    self.decoder.identities.set_loop(tgid, code, is_loop);
                }
                Finding::Unsupported(tgid, why) => {
                    warn!("no Python frames of pid {tgid}: {why}");
                    self.sample_natively(tgid, Python::Unsupported(why));
                }
                Finding::NotPython(tgid) => self.sample_natively(tgid, Python::Absent),
                Finding::Routes(service, templates) => {
                    info!("{service} declares {} routes", templates.len());
                    self.policy.learn(&service, templates);
                }
                Finding::Sqlite(mapped) => self.watch_statements(&mapped),
                Finding::Batches(pid, probe) => self.watch_batches(pid, &probe),
            }
            // Attaching takes the kernel its time, in which the rings must not fill up.
            if since.elapsed() > ROUND {
                self.round(monotonic())?;
                since = Instant::now();
            }
        }
        self.learn_databases();
        self.watch_singles();
        Ok(())
    }

    /// Hands over a profile of the stretch of time that has ended.
    fn hand_over(&mut self) {
        let Some(profile) = &mut self.decoder.profile else {
            return;
        };
        let dropped = profile.dropped();
        let waiting = self.wall.as_ref().map_or(0, Wall::lost);
        let lost = dropped.stacks_full + dropped.processes_full + waiting;
        self.live.set_lost(self.ring_lost + lost);
        let Some(interval) = &mut self.interval else {
            return;
        };
        if let Some(duration) = interval.ended(Instant::now()) {
            self.hand_over_now(duration);
        }
    }

    /// Ends the stretch of time of which samples are counted, and hands its profile over.
    pub(super) fn cut_profile(&mut self) {
        if let Some(interval) = &mut self.interval {
            let duration = interval.cut(Instant::now());
            self.hand_over_now(duration);
        }
    }

    fn hand_over_now(&mut self, duration: Duration) {
        let Some(profile) = &mut self.decoder.profile else {
            return;
        };
        let dropped = profile.dropped();
        let waiting = self.wall.as_ref().map_or(0, Wall::lost);
        let lost = dropped.stacks_full + dropped.processes_full + waiting;
        if let Some(interval) = &mut self.interval {
            let meta = profile::Meta {
                rate: self.rate,
                start: self.clock.to_unix(monotonic()) - duration.as_nanos() as u64,
                duration,
                command: self.processes.names(),
                lost,
                wall: self.wall.is_some(),
            };
            interval.send(profile.take(), meta);
        }
    }

    /// What is done about once a second.
    fn slow(&mut self, now: u64) -> Result<()> {
        self.clock = unix_offset();
        self.notice_losses()?;
        self.notice_untraced()?;
        self.processes.sweep(now);
        self.close_quiet(now);
        self.sweep_joins(now);
        let served = self.requests.served;
        self.meter.tick(Instant::now(), &self.bpf, served)?;
        self.measure()?;
        if let Some(budget) = &mut self.budget {
            budget.tick(Instant::now());
        }
        if self.report.as_ref().is_some_and(Report::is_due) {
            let counters = self.all_counters()?;
            if let Some(report) = &mut self.report {
                report.log(counters.into_iter());
            }
        }
        Ok(())
    }

    /// Unix sockets close without a word: looks after those whose close is all that is missing.
    fn close_quiet(&mut self, now: u64) {
        let gone: Vec<_> = self
            .decoder
            .correlator
            .quiet_close_delimited()
            .filter(|&(tgid, fd, sock)| {
                let link = fs::read_link(format!("/proc/{tgid}/fd/{fd}"));
                link.ok() != Some(PathBuf::from(format!("socket:[{sock}]")))
            })
            .map(|(_, _, sock)| sock)
            .collect();
        for sock in gone {
            self.decoder
                .correlator
                .closed(sock, now, &mut self.decoder.exchanges);
        }
    }

    /// Where records were lost, what is half-seen must not be paired wrongly. Whether some were.
    fn notice_losses(&mut self) -> Result<bool> {
        let lost = self.bpf.count(Counter::RingFull)? + self.bpf.count(Counter::NoRing)?;
        let is_more = lost > self.ring_lost;
        if is_more {
            warn!(
                "{} records were lost because a ring was full; requests under way are dropped",
                lost - self.ring_lost
            );
            self.ring_lost = lost;
            self.events_lost();
        }
        Ok(is_more)
    }

    /// Says that children of traced processes are not traced, for the kernel side knows too many already.
    fn notice_untraced(&mut self) -> Result<()> {
        let untraced = self.bpf.count(Counter::TargetsFull)?;
        if untraced > self.untraced {
            warn!(
                "{} children of traced processes are not traced yet: the map of traced processes is full; name fewer",
                untraced - self.untraced
            );
            self.untraced = untraced;
        }
        Ok(())
    }

    /// What is half-seen may be paired wrongly, and is dropped.
    fn events_lost(&mut self) {
        self.decoder.events_lost();
        self.decoder.identities.events_lost(monotonic());
        self.joins.events_lost(monotonic());
    }

    /// Every counter there is, by name.
    pub(super) fn all_counters(&self) -> Result<Vec<(&'static str, u64)>> {
        let mut all: Vec<_> = self
            .bpf
            .counts()?
            .into_iter()
            .map(|(counter, value)| (counter.name(), value))
            .collect();
        all.extend(self.decoder.correlator.counters().iter());
        all.extend(self.counters.iter());
        all.extend(self.decoder.statements.counters().iter());
        all.push(("records_lost_undecoded", self.decoder.undecoded));
        all.push(("rings_not_waited_for", self.ingest.given_up()));
        all.push(("exchanges_lost_unknown_process", self.processes.lost()));
        all.extend(self.calls.counters());
        all.extend(self.join_counters());
        if let Some(measure) = &self.measure {
            all.extend(measure.metrics.lock().counters());
        }
        all.push(("otlp_logs_lost_queue_full", self.exporters.events_dropped()));
        let (dropped, hastened) = self.sampling.counts();
        all.push(("spans_sampled_out", dropped));
        all.push(("sampling_hold_overflowed", hastened));
        all.push(("identities_evicted", self.decoder.identities.evicted()));
        all.push((
            "discovery_notices_overflowed",
            self.discovery.as_ref().map_or(0, DiscoveryThread::lost),
        ));
        all.push((
            "processes_traced_late",
            self.discovery.as_ref().map_or(0, DiscoveryThread::late),
        ));
        if let Some(profile) = &self.decoder.profile {
            let dropped = profile.dropped();
            all.push(("samples_lost_stacks_full", dropped.stacks_full));
            all.push(("samples_lost_processes_full", dropped.processes_full));
        }
        if let Some(wall) = &self.wall {
            all.extend(wall.counters());
        }
        if let Some(tables) = self.unwinding.tables() {
            all.extend(tables.counters());
        }
        if let Some(interval) = &self.interval {
            all.push(("samples_lost_not_shown", interval.lost()));
        }
        let stats = self.symbolizer.stats();
        all.extend(
            symbolize::Reason::ALL
                .iter()
                .map(|&reason| (reason.name(), stats.get(reason))),
        );
        Ok(all)
    }

    /// Detaches, drains, flushes.
    fn finish(mut self) -> Result<Outcome> {
        self.bpf.detach();
        let now = monotonic();
        // Nothing comes after these: all of them are due.
        self.round(now)?;
        let end = Instant::now() + DRAIN_MAX;
        while !self.ingest.is_drained() && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
            self.round(now)?;
        }
        self.round(u64::MAX)?;
        self.notice_losses()?;
        self.decoder
            .correlator
            .finish(now, &mut self.decoder.exchanges);
        self.follow()?;
        self.forward(now, true);
        let duration = self.started.elapsed();
        if let Some(interval) = &mut self.interval {
            interval.end();
        }
        let minutes = self.minutes.take().map(Minutes::end);
        let waiting = self.wall.as_ref().map_or(0, Wall::lost);
        let profile = self.decoder.profile.as_mut().map(|aggregator| {
            let dropped = aggregator.dropped();
            let meta = profile::Meta {
                rate: self.rate,
                start: self.started_unix,
                duration,
                command: self.processes.names(),
                lost: dropped.stacks_full + dropped.processes_full + self.ring_lost + waiting,
                wall: self.wall.is_some(),
            };
            collect(aggregator.take(), &self.symbolizer, meta, SYMBOLIZE_MAX)
        });
        let profile = profile.and_then(|last| match minutes {
            Some(minutes) => minutes.finish(last),
            None => Some(last),
        });
        let counters = Arc::clone(&self.counters);
        let meter = std::mem::replace(&mut self.meter, CostMeter::new(Instant::now()));
        let bill = meter.finish(Instant::now(), &self.bpf, self.requests.served)?;
        self.measure()?;
        let mut all = self.all_counters()?;
        let summary = self.exporters.shutdown(FLUSH_MAX);
        // What the sinks did last.
        for (name, value) in counters.iter() {
            if let Some(entry) = all.iter_mut().find(|(known, _)| *known == name) {
                entry.1 = value;
            }
        }
        if let Some(report) = &mut self.report {
            report.log(all.iter().copied());
        }
        drop(self.decoder);
        drop(self.symbolizer);
        self.symbolizing
            .join()
            .map_err(|_| Error::failed("the symbolizer panicked; this is a bug"))?;
        Ok(Outcome {
            duration,
            requests: self.requests,
            summary,
            profile,
            bill,
            usage: self.usage.as_mut().and_then(|usage| usage.read().ok()),
            unwinding: self.unwinding,
            counters: all,
        })
    }
}

/// How long to leave the rings alone after a round that found so many bytes: long enough to find
/// [`ROUND_BYTES`], and ever longer where there is nothing.
fn next_round(last: Duration, found: usize) -> Duration {
    match found {
        0 => (last * 2).min(IDLE_ROUND),
        _ => last
            .mul_f64(ROUND_BYTES as f64 / found as f64)
            .clamp(ROUND, SLOW_ROUND),
    }
}

/// Now, as the kernel side stamps its records.
pub(super) fn monotonic() -> u64 {
    clock::read(libc::CLOCK_MONOTONIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds get longer while there is little to find, are short at once when there is much, and longest
    /// when there is nothing.
    #[test]
    fn rounds() {
        let mut round = ROUND;
        for _ in 0..5 {
            round = next_round(round, 10_000);
        }
        assert_eq!(round, SLOW_ROUND);
        assert_eq!(next_round(round, 1 << 20), ROUND);
        for _ in 0..5 {
            round = next_round(round, 0);
        }
        assert_eq!(round, IDLE_ROUND);
        assert_eq!(next_round(round, 100), SLOW_ROUND);
        // A load that stays the same finds as much in each round.
        let rate = 1000.0 * 1000.0;
        let round = (0..20).fold(ROUND, |round, _| {
            next_round(round, (rate * round.as_secs_f64()) as usize)
        });
        assert!((round.as_secs_f64() * rate / ROUND_BYTES as f64 - 1.0).abs() < 0.01);
    }
}
