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

use decnet_trace_common::{
    counter::Counter,
    event::{Header, flags as sock_flags},
    python::ABSENT,
    target::{Target, flags},
};
use tracing::{debug, info, warn};

use super::{
    FLUSH_MAX, Lineage,
    calls::Calls,
    discovery::{DiscoveryThread, Finding},
    intervals::IntervalClock,
    live::{Live, Python},
    outcome::{Outcome, Requests},
    processes::Processes,
};
use crate::{
    bpf::load::Bpf,
    correlate::{
        Correlator,
        exchange::{Exchange, Role},
        identity::Identities,
    },
    decode::{Event, decode},
    discover::{Change, Children, Discovery, Runtime, TracedProcess},
    error::{Error, Result},
    export::Exporters,
    govern::cost::CostMeter,
    ingest::Ingest,
    policy::{ClockOffset, Link, Parent, Policy},
    profile::{self, aggregate::Aggregator, collect::collect},
    python::PyProcess,
    span::{Resource, Span},
    symbolize,
    telemetry::{
        Counters,
        clock::{self, unix_offset},
        report::Report,
        usage::SelfUsage,
    },
};

/// How long the rings are left alone between two rounds, while something happens.
const ROUND: Duration = Duration::from_millis(25);

/// The same, while nothing does.
const IDLE_ROUND: Duration = Duration::from_millis(100);

/// How often the slow things are done: looking for quiet closes, forgetting, costs.
const SLOW: Duration = Duration::from_secs(1);

/// How long naming the last stacks may take at the end.
const SYMBOLIZE_MAX: Duration = Duration::from_secs(10);

/// Replace an entry, but don't make one (Linux, include/uapi/linux/bpf.h).
const BPF_EXIST: u64 = 2;

/// What a worker is made of.
pub(super) struct Parts {
    pub(super) bpf: Bpf,
    pub(super) ingest: Ingest,
    pub(super) policy: Policy,
    pub(super) exporters: Exporters,
    pub(super) symbolizer: symbolize::Client,
    pub(super) symbolizing: thread::JoinHandle<()>,
    pub(super) counters: Arc<Counters>,
    pub(super) requests: bool,
    pub(super) lineage: Lineage,
    pub(super) profile: Option<profile::aggregate::Options>,
    pub(super) clock: Option<IntervalClock>,
    pub(super) live: Arc<Live>,
    pub(super) children: Children,
    pub(super) rate: u32,
    pub(super) programs_log: bool,
}

/// The state of the thread.
pub(super) struct Worker {
    bpf: Bpf,
    ingest: Ingest,
    decoder: Decoder,
    policy: Policy,
    exporters: Exporters,
    symbolizer: symbolize::Client,
    symbolizing: thread::JoinHandle<()>,
    counters: Arc<Counters>,
    discovery: Option<DiscoveryThread>,
    processes: Processes,
    spans: Vec<Span>,
    calls: Calls,
    follow_ends: bool,
    requests: Requests,
    purposes: u32,
    rate: u32,
    ring_lost: u64,
    unknown_process: u64,
    started: Instant,
    started_unix: u64,
    clock: ClockOffset,
    meter: CostMeter,
    /// What the eBPF programs say of themselves, where they were built to.
    programs_log: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
    usage: Option<SelfUsage>,
    report: Option<Report>,
    interval: Option<IntervalClock>,
    live: Arc<Live>,
}

/// The part of the state that each record goes through; apart from the rest so that the rings can be
/// read meanwhile.
struct Decoder {
    identities: Identities,
    correlator: Correlator,
    profile: Option<Aggregator>,
    exchanges: Vec<Exchange>,
    live: Arc<Live>,
    undecoded: u64,
}

impl Worker {
    pub(super) fn new(parts: Parts) -> Result<Self> {
        let Parts {
            mut bpf,
            ingest,
            policy,
            exporters,
            symbolizer,
            symbolizing,
            counters,
            requests,
            lineage,
            profile,
            clock: interval,
            live,
            children,
            rate,
            programs_log,
        } = parts;
        let sampling = profile.is_some() && rate > 0;
        let purposes = [
            (requests, flags::SOCKETS),
            (sampling, flags::SAMPLES),
            (profile.is_some_and(|options| options.native), flags::NATIVE),
            (profile.is_some_and(|options| options.kernel), flags::KERNEL),
            (children != Children::None, flags::CHILDREN),
        ]
        .into_iter()
        .filter(|(wanted, _)| *wanted)
        .fold(0, |all, (_, flag)| all | flag);
        let now = Instant::now();
        let clock = unix_offset();
        let programs_log = programs_log.then(|| bpf.logger()).transpose()?;
        Ok(Self {
            decoder: Decoder {
                identities: Identities::default(),
                correlator: Correlator::new(crate::correlate::Limits::default()),
                profile: profile
                    .filter(|_| sampling)
                    .map(|options| Aggregator::new(options, symbolizer.clone())),
                exchanges: Vec::new(),
                live: Arc::clone(&live),
                undecoded: 0,
            },
            interval,
            live,
            bpf,
            ingest,
            policy,
            exporters,
            symbolizer,
            symbolizing,
            counters,
            discovery: None,
            processes: Processes::default(),
            spans: Vec::new(),
            calls: Calls::new(lineage != Lineage::Off),
            follow_ends: lineage == Lineage::On,
            requests: Requests::default(),
            purposes,
            rate,
            ring_lost: 0,
            unknown_process: 0,
            started: now,
            started_unix: clock.to_unix(monotonic()),
            clock,
            meter: CostMeter::new(now),
            programs_log,
            usage: SelfUsage::start().ok(),
            report: Report::start().ok(),
        })
    }

    /// Attaches the hooks.
    pub(super) fn attach(&mut self) -> Result<()> {
        self.bpf.attach(self.purposes & flags::SOCKETS != 0)?;
        info!(
            "attached: {}, {} Hz, {} processes traced",
            match self.purposes & flags::SOCKETS {
                0 => "no socket hooks",
                _ => self.bpf.sock_hooks().as_str(),
            },
            self.rate,
            self.processes.live()
        );
        Ok(())
    }

    /// Starts to look for targets.
    pub(super) fn discover(&mut self, discovery: Discovery, first: Vec<Change>) -> Result<()> {
        self.discovery = Some(DiscoveryThread::start(discovery, first)?);
        Ok(())
    }

    /// Does its work until told to stop.
    pub(super) fn run(mut self, stop: &AtomicBool) -> Result<Outcome> {
        let mut slow = Instant::now() + SLOW;
        let mut round = ROUND;
        while !stop.load(Ordering::Relaxed) {
            self.ingest.wait(round);
            let now = monotonic();
            let handled = self.round(now)?;
            self.decoder.tick(now);
            round = if handled > 0 { ROUND } else { IDLE_ROUND };
            self.follow();
            self.forward(now, false);
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

    /// One round through the rings for records of before `horizon`; how many there were.
    fn round(&mut self, horizon: u64) -> Result<usize> {
        self.ingest.take();
        // Between taking records and looking at them: a loss is noticed before what follows it is paired.
        self.notice_losses()?;
        let Self {
            ingest,
            decoder,
            discovery,
            ..
        } = self;
        Ok(ingest.hand_on(horizon, |bytes| decoder.record(bytes, discovery.as_ref())))
    }

    /// Does what the discovery thread found out.
    fn follow(&mut self) {
        let findings: Vec<_> = self
            .discovery
            .iter()
            .flat_map(DiscoveryThread::findings)
            .collect();
        for finding in findings {
            match finding {
                Finding::Change(change) => self.apply(&change),
                Finding::Python(process) => self.arm(&process),
                Finding::Unsupported(tgid, why) => {
                    warn!("no Python frames of pid {tgid}: {why}");
                    self.sample_natively(tgid, Python::Unsupported(why));
                }
                Finding::NotPython(tgid) => self.sample_natively(tgid, Python::Absent),
            }
        }
    }

    /// Traces a process, or no longer.
    pub(super) fn apply(&mut self, change: &Change) {
        match change {
            Change::Trace(process) => {
                let tgid = process.resource.tgid;
                let mut python = python_of(process);
                // What is known of its Python comes first, so that no sample lacks its Python frames.
                let samples = match python {
                    Python::Pending | Python::Read => 0,
                    Python::Absent | Python::Unsupported(_) => self.native_samples(),
                };
                let mut target = Target {
                    flags: self.purposes & !flags::SAMPLES | samples,
                    ..Target::default()
                };
                if let Some(inherited) = self.inherited(tgid) {
                    target = inherited;
                    python = Python::Read;
                }
                if let Err(error) = self.bpf.targets.insert(tgid, target, 0) {
                    warn!("cannot trace process {tgid}: {error}");
                    return;
                }
                info!("tracing {} (pid {tgid})", process.resource.service_name);
                self.processes.add(Arc::clone(&process.resource));
                self.live.set_python(tgid, python);
            }
            Change::Untrace(tgid, reason) => {
                self.calls.ended(*tgid);
                self.decoder.identities.forget_process(*tgid);
                // The kernel side has removed one that ended by itself.
                let _ = self.bpf.targets.remove(tgid);
                self.live.forget(*tgid);
                if self.processes.resource(*tgid).is_some() {
                    debug!("no longer tracing pid {tgid}: {reason:?}");
                    self.processes.end(*tgid, monotonic());
                }
            }
        }
    }

    /// What a fork has of a parent whose Python frames are read: all that reading its own takes. The
    /// parent's uprobes it has not.
    fn inherited(&self, tgid: u32) -> Option<Target> {
        let mut target = self.bpf.targets.get(&tgid, 0).ok()?;
        if target.flags & flags::INHERITED == 0 || target.python == 0 {
            return None;
        }
        target.flags &= !flags::LINEAGE;
        Some(target)
    }

    /// Lets the kernel side read a process's Python frames and contexts.
    fn arm(&mut self, process: &PyProcess) {
        // It may have ended, and its target with it.
        let Ok(mut target) = self.bpf.targets.get(&process.pid, 0) else {
            return;
        };
        let layout = &process.kernel;
        let index = match self.bpf.add_layout(layout) {
            Ok(index) => index,
            Err(error) => {
                warn!("no Python frames of pid {}: {error}", process.pid);
                return;
            }
        };
        target.flags |= self.purposes & flags::SAMPLES;
        target.python = index + 1;
        target.thread_state = process.thread_state;
        target.context = u32::from(layout.context);
        target.thread_block = match layout.thread_block {
            ABSENT => 0,
            offset => u32::from(offset),
        };
        if let Err(error) = self.bpf.targets.insert(process.pid, target, BPF_EXIST) {
            debug!("pid {} ended before it was armed: {error}", process.pid);
            return;
        }
        self.live.set_python(process.pid, Python::Read);
        info!("reading CPython {} (pid {})", process.version, process.pid);
        self.calls.understood(process);
    }

    /// Samples a process that has no Python frames, where native ones were asked for.
    fn sample_natively(&mut self, tgid: u32, python: Python) {
        // It may have ended.
        let Ok(mut target) = self.bpf.targets.get(&tgid, 0) else {
            return;
        };
        self.live.set_python(tgid, python);
        target.flags |= self.native_samples();
        if let Err(error) = self.bpf.targets.insert(tgid, target, BPF_EXIST) {
            debug!("pid {tgid} ended before it was sampled: {error}");
        }
    }

    /// The flag by which a process without Python frames is sampled, where it makes sense.
    fn native_samples(&self) -> u32 {
        match self.purposes & flags::NATIVE {
            0 => 0,
            _ => self.purposes & flags::SAMPLES,
        }
    }

    /// Hands over a profile of the stretch of time that has ended.
    fn hand_over(&mut self) {
        let Some(profile) = &mut self.decoder.profile else {
            return;
        };
        let dropped = profile.dropped();
        let lost = dropped.stacks_full + dropped.processes_full;
        self.live.set_lost(self.ring_lost + lost);
        let Some(interval) = &mut self.interval else {
            return;
        };
        if let Some(duration) = interval.ended(Instant::now()) {
            let meta = profile::Meta {
                rate: self.rate,
                start: self.clock.to_unix(monotonic()) - duration.as_nanos() as u64,
                duration,
                command: self.processes.names(),
                lost,
            };
            interval.send(profile.take(), meta);
        }
    }

    /// Turns finished exchanges into spans and hands them to the sinks.
    fn forward(&mut self, now: u64, all: bool) {
        let mut exchanges = std::mem::take(&mut self.decoder.exchanges);
        let waited = self.processes.ready(now, all);
        for exchange in exchanges.drain(..).chain(waited) {
            let tgid = exchange.tgid;
            let resource = match self.processes.resource(tgid) {
                Some(resource) => Arc::clone(resource),
                None if all => nameless(tgid),
                None => {
                    if self.processes.wait(now, exchange).is_some() {
                        self.unknown_process += 1;
                    }
                    continue;
                }
            };
            match exchange.role {
                Role::Server => {
                    self.requests.served += 1;
                    let span = self.policy.span(&exchange, &resource, self.clock, None);
                    self.calls
                        .served(&self.decoder.identities, &exchange, span.reference());
                    self.spans.push(span);
                }
                Role::Client => {
                    self.requests.made += 1;
                    if self.calls.made(exchange) {
                        self.watch_lineage(tgid);
                    }
                }
            }
        }
        self.decoder.exchanges = exchanges;
        self.link(now, all);
        if !self.spans.is_empty() {
            self.exporters.send(std::mem::take(&mut self.spans));
        }
    }

    /// Puts calls under the requests that caused them, as far as that is known by now.
    fn link(&mut self, now: u64, all: bool) {
        let Self {
            calls,
            decoder,
            policy,
            processes,
            spans,
            clock,
            ..
        } = self;
        calls.decide(
            &decoder.identities,
            if all { None } else { Some(&decoder.correlator) },
            now,
            |exchange, parent| {
                let resource = match processes.resource(exchange.tgid) {
                    Some(resource) => Arc::clone(resource),
                    None => nameless(exchange.tgid),
                };
                let parent = parent.map(|span| Parent {
                    span,
                    link: Link::Exact,
                });
                spans.push(policy.span(&exchange, &resource, *clock, parent));
            },
        );
    }

    /// Watches the descent of a process's contexts: it makes calls, and they have no owner.
    fn watch_lineage(&mut self, tgid: u32) {
        let Some((interpreter, probes)) = self.calls.probes_of(tgid) else {
            return;
        };
        let Ok(mut target) = self.bpf.targets.get(&tgid, 0) else {
            return;
        };
        match self
            .bpf
            .watch_lineage(tgid, &interpreter, probes, self.follow_ends)
        {
            Ok(attached) => {
                target.flags |= flags::LINEAGE;
                if self.bpf.targets.insert(tgid, target, BPF_EXIST).is_ok() {
                    info!("following the contexts of pid {tgid}");
                    self.calls.watched(tgid, attached);
                    self.decoder.identities.arm(tgid, monotonic());
                }
            }
            Err(error) => warn!("calls of pid {tgid} stay without parents: {error}"),
        }
    }

    /// What is done about once a second.
    fn slow(&mut self, now: u64) -> Result<()> {
        self.clock = unix_offset();
        self.processes.sweep(now);
        self.close_quiet(now);
        let served = self.requests.served;
        self.meter.tick(Instant::now(), &self.bpf, served)?;
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

    /// Where records were lost, what is half-seen must not be paired wrongly.
    fn notice_losses(&mut self) -> Result<()> {
        let lost = self.bpf.count(Counter::RingFull)? + self.bpf.count(Counter::NoRing)?;
        if lost > self.ring_lost {
            warn!(
                "{} records were lost because a ring was full; requests under way are dropped",
                lost - self.ring_lost
            );
            self.ring_lost = lost;
            self.decoder.correlator.events_lost();
        }
        Ok(())
    }

    /// Every counter there is, by name.
    fn all_counters(&self) -> Result<Vec<(&'static str, u64)>> {
        let mut all: Vec<_> = self
            .bpf
            .counts()?
            .into_iter()
            .map(|(counter, value)| (counter.name(), value))
            .collect();
        all.extend(self.decoder.correlator.counters().iter());
        all.extend(self.counters.iter());
        all.push(("records_lost_undecoded", self.decoder.undecoded));
        all.push(("exchanges_lost_unknown_process", self.unknown_process));
        all.extend(self.calls.counters());
        all.push(("identities_evicted", self.decoder.identities.evicted()));
        all.push((
            "discovery_notices_overflowed",
            self.discovery.as_ref().map_or(0, DiscoveryThread::lost),
        ));
        if let Some(profile) = &self.decoder.profile {
            let dropped = profile.dropped();
            all.push(("samples_lost_stacks_full", dropped.stacks_full));
            all.push(("samples_lost_processes_full", dropped.processes_full));
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
        self.round(u64::MAX)?;
        self.decoder
            .correlator
            .finish(now, &mut self.decoder.exchanges);
        self.follow();
        self.forward(now, true);
        let duration = self.started.elapsed();
        let profile = self.decoder.profile.as_mut().map(|aggregator| {
            let dropped = aggregator.dropped();
            let meta = profile::Meta {
                rate: self.rate,
                start: self.started_unix,
                duration,
                command: self.processes.names(),
                lost: dropped.stacks_full + dropped.processes_full + self.ring_lost,
            };
            collect(aggregator.take(), &self.symbolizer, meta, SYMBOLIZE_MAX)
        });
        let counters = Arc::clone(&self.counters);
        let meter = std::mem::replace(&mut self.meter, CostMeter::new(Instant::now()));
        let bill = meter.finish(Instant::now(), &self.bpf, self.requests.served)?;
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
            counters: all,
        })
    }
}

impl Decoder {
    /// Lets time pass.
    fn tick(&mut self, now: u64) {
        self.correlator.tick(now, &mut self.exchanges);
    }

    /// Sends one record where it belongs.
    fn record(&mut self, bytes: &[u8], discovery: Option<&DiscoveryThread>) {
        match decode(bytes) {
            Ok(Event::SockOp(mut op, payload)) => {
                let Header { tgid, ts, .. } = op.header;
                if op.flags & sock_flags::HEAD != 0 {
                    // From here on the context's address, which is reused, is a number that is not.
                    let identity = self.identities.resolve(tgid, op.context, ts);
                    op.context = identity.to_bits();
                }
                self.correlator
                    .on_sock_op(&op, payload, &mut self.exchanges);
            }
            Ok(Event::SockState(state)) => {
                self.correlator.on_sock_state(&state, &mut self.exchanges);
                if let Some(discovery) = discovery {
                    discovery.on_sock_state(&state);
                }
            }
            Ok(Event::Proc(event)) => {
                self.correlator.on_proc(&event, &mut self.exchanges);
                if let Some(profile) = &mut self.profile {
                    profile.process(&event);
                }
                if let Some(discovery) = discovery {
                    discovery.on_proc(&event);
                }
            }
            Ok(Event::Sample(sample, frames)) => {
                self.live.count(&sample);
                if let Some(profile) = &mut self.profile {
                    profile.sample(&sample, &frames);
                }
            }
            Ok(Event::Lineage(step)) => self.identities.on_lineage(&step),
            Err(_) => self.undecoded += 1,
        }
    }
}

/// What is known of a process's Python from its file alone.
fn python_of(process: &TracedProcess) -> Python {
    match &process.process.runtime {
        Runtime::CPython { .. } => Python::Pending,
        Runtime::Other(_) if process.process.runtime.is_python() => Python::Unsupported(format!(
            "{} is not supported (CPython is)",
            process.process.runtime.name()
        )),
        Runtime::Other(_) => Python::Absent,
    }
}

/// What is said of a process of which nothing could be learnt before it was gone.
fn nameless(tgid: u32) -> Arc<Resource> {
    Arc::new(Resource {
        tgid,
        service_name: "unknown_service".into(),
        attributes: vec![(
            "service.name".into(),
            crate::span::Value::Str("unknown_service".into()),
        )],
    })
}

/// Now, as the kernel side stamps its records.
fn monotonic() -> u64 {
    clock::read(libc::CLOCK_MONOTONIC)
}
