//! The only place where threads and channels are wired: rings → decode → correlate → policy → sinks.
//!
//! Every verb runs this one pipeline; they differ in what is recorded and where it goes.

mod arming;
mod calls;
mod discovery;
mod forward;
mod handing;
mod inheriting;
mod intervals;
mod joining;
mod live;
mod measure;
mod minutes;
mod outcome;
mod processes;
mod statements;
pub mod records;
mod reload;
mod wall;
mod worker;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use crossbeam_channel::Sender;
use intervals::Intervals;
pub use live::{Gap, Gaps, Live, Python, Tally};
use minutes::Minutes;
pub use outcome::{Outcome, Requests, Unwinding, is_loss};
pub use reload::Reload;
use tracing::warn;
use wall::Wall;

use crate::{
    bpf::{
        features::Features,
        load::{Bpf, LoadOptions},
    },
    discover::{Discovery, Overrides, Selector},
    error::{Error, Result},
    export::{ExportConfig, Exporters, Reopener},
    ingest::Ingest,
    metrics::{MetricsConfig, SharedMetrics},
    policy::{Policy, PolicyConfig},
    profile::{self, aggregate::Waiting, sum::Sum},
    python::PythonResolver,
    sampling::{Sampling, SamplingConfig},
    symbolize,
    telemetry::{Counters, clock},
    unwind,
};

/// How long the sinks may take to send what they hold when the agent stops.
const FLUSH_MAX: Duration = Duration::from_secs(5);

/// How long the code of the first targets may take to be read before they are sampled without it.
const UNWIND_MAX: Duration = Duration::from_secs(10);

/// What to record, of whom, and where it goes.
#[derive(Debug)]
pub struct Config {
    /// Which processes.
    pub selector: Selector,
    /// What their telemetry is said to come from, where the user says so.
    pub overrides: Overrides,
    /// How the programs are loaded: with those for sockets, requests are recorded.
    pub load: LoadOptions,
    /// Put calls under the requests that caused them.
    pub lineage: Lineage,
    /// Follow work through queues to threads that have entered no context, where a process needs it.
    pub queues: bool,
    /// What is overlooked at sockets.
    pub overlooked: Overlooked,
    /// The most identities (contexts, as a rule) that are remembered.
    pub identities_max: usize,
    /// What the agent's own process may use of one core, in per cent, before the log says so.
    pub cpu_budget: Option<f64>,
    /// Read the routes that services declare.
    pub learn_routes: bool,
    /// What becomes of a request on its way to a span.
    pub policy: PolicyConfig,
    /// Where spans go.
    pub export: ExportConfig,
    /// Which traces are kept.
    pub sampling: SamplingConfig,
    /// Count requests, for the sinks that send metrics.
    pub metrics: Option<MetricsConfig>,
    /// Which samples and frames are counted; sampled at [`LoadOptions::rate`].
    pub profile: Option<profile::aggregate::Options>,
    /// Hand over a profile of each stretch of time that long; [`Outcome::profile`] is then of the last
    /// one only.
    pub interval: Option<Duration>,
}

/// How the descent of Python contexts is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lineage {
    /// Not at all: calls have no parents.
    Off,
    /// Copies alone: addresses that pass from one context to another go unnoticed. For tests.
    WithoutEnds,
    /// Copies and ends.
    On,
}

/// What of a socket operation is not looked at, so that tests see what comes of that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overlooked {
    /// The context of the thread.
    pub contexts: bool,
    /// That the thread would have waited.
    pub blocking: bool,
}

/// A pipeline at work.
pub struct Pipeline {
    stop: Arc<AtomicBool>,
    live: Arc<Live>,
    intervals: Option<Intervals>,
    reloads: Sender<Reload>,
    reopener: Reopener,
    worker: thread::JoinHandle<Result<Outcome>>,
}

impl Pipeline {
    /// Loads, attaches, finds the first targets, and begins. Everything that can be found wrong is found
    /// before anything is attached; what the privileges do not allow, before that a target is not found.
    ///
    /// # Errors
    ///
    /// When the kernel can't, a sink can't be opened, or no process named by its pid exists.
    pub fn start(config: Config) -> Result<Self> {
        let counters = Arc::new(Counters::new());
        let policy = Policy::new(config.policy, Arc::clone(&counters))
            .map_err(|error| Error::failed(format!("cannot get random numbers: {error}")))?;
        Features::probe().require()?;
        let mut bpf = Bpf::load(&config.load)?;
        let children = config.selector.children();
        let mut discovery =
            Discovery::new(config.selector, std::process::id()).with_overrides(config.overrides);
        let first = discovery.scan_all();
        if let Some(pid) = discovery.missing().first() {
            return Err(Error::no_target(format!(
                "there is no process {pid} that can be traced; `decnet-trace ps --all` lists processes"
            )));
        }
        let started = clock::read(libc::CLOCK_REALTIME);
        let metrics = config
            .metrics
            .map(|config| SharedMetrics::new(config, started));
        let export = ExportConfig {
            metrics: metrics.clone(),
            ..config.export
        };
        let exporters = Exporters::start(export, Arc::clone(&counters))?;
        let reopener = exporters.reopener();
        let (reloads, reloaded) = crossbeam_channel::bounded(1);
        let (symbolizer, symbolizing) = symbolize::spawn(
            symbolize::Limits::default(),
            Box::new(PythonResolver::new()),
        )
        .map_err(|error| Error::failed(format!("cannot start a thread: {error}")))?;
        let ingest = Ingest::new(bpf.take_rings())?;
        let unwinding = match bpf.take_unwind() {
            None => Unwinding::FramePointers,
            Some(Ok(maps)) => unwind::spawn(*maps, config.load.unwind_memory)
                .map(Unwinding::Tables)
                .map_err(|error| Error::failed(format!("cannot start a thread: {error}")))?,
            Some(Err(error)) => {
                warn!("native frames by frame pointers alone: {error}");
                Unwinding::Refused(error.to_string())
            }
        };
        // A store gets samples whether or not somebody else wants a profile.
        let store = exporters.profiles().filter(|_| config.load.rate > 0);
        let interval = config.interval.or(store.map(|_| minutes::EVERY));
        let profile = config
            .profile
            .or(store.map(|_| profile::aggregate::Options {
                native: true,
                kernel: true,
                ..Default::default()
            }));
        let (clock, mut intervals) = interval
            .map(|every| intervals::intervals(every, symbolizer.clone()))
            .unzip();
        let minutes = match store.filter(|_| config.interval.is_none()) {
            Some(store) => intervals.take().map(|intervals| {
                let sum = config.profile.map(|options| Sum::new(options.stacks_max));
                Minutes::start(intervals, store.clone(), sum)
            }),
            None => None,
        };
        let minutes = minutes
            .transpose()
            .map_err(|error| Error::failed(format!("cannot start a thread: {error}")))?;
        let waiting = config.profile.map(|options| options.waiting);
        let live = Arc::new(Live::default());
        let wall = match waiting.filter(|which| *which != Waiting::No) {
            Some(which) => {
                let (lister, rate) = (bpf.list_threads()?, config.load.rate);
                Some(Wall::start(lister, rate, which, Arc::clone(&live))?)
            }
            None => None,
        };
        let mut worker = worker::Worker::new(worker::Parts {
            ingest,
            policy,
            exporters,
            sampling: Sampling::new(config.sampling),
            metrics,
            symbolizer,
            symbolizing,
            counters,
            requests: config.load.sockets,
            learn_routes: config.learn_routes,
            reloaded,
            lineage: config.lineage,
            queues: config.queues,
            overlooked: config.overlooked,
            identities_max: config.identities_max,
            cpu_budget: config.cpu_budget,
            profile,
            clock,
            minutes,
            live: Arc::clone(&live),
            children,
            rate: config.load.rate,
            programs_log: config.load.log,
            wall,
            unwinding: unwinding.clone(),
            bpf,
        })?;
        // Targets first: from the moment a hook is attached, it knows whom it is for.
        for change in &first {
            worker.apply(change);
        }
        if let Some(tables) = unwinding.tables() {
            tables.wait(UNWIND_MAX);
        }
        worker.attach()?;
        worker.discover(discovery, first)?;
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let worker = thread::Builder::new()
            .name("pipeline".into())
            .spawn(move || worker.run(&flag))
            .map_err(|error| Error::failed(format!("cannot start a thread: {error}")))?;
        Ok(Self {
            stop,
            live,
            intervals,
            reloads,
            reopener,
            worker,
        })
    }

    /// Whether it has come to its end by itself.
    pub fn is_finished(&self) -> bool {
        self.worker.is_finished()
    }

    /// What can be asked while it works.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// Works otherwise from now on; whether it was taken.
    pub fn reload(&self, reload: Reload) -> bool {
        self.reloads.try_send(reload).is_ok()
    }

    /// Opens the files of spans anew: they may have been moved away.
    pub fn reopen(&self) {
        self.reopener.reopen();
    }

    /// The profile of the next stretch of time, if it comes within `timeout`; see [`Config::interval`].
    pub fn next_profile(&self, timeout: Duration) -> Option<profile::Profile> {
        self.intervals.as_ref()?.next(timeout)
    }

    /// Detaches, lets everything under way reach its sink, and hands over what was seen.
    ///
    /// # Errors
    ///
    /// When the pipeline failed at work.
    pub fn finish(self) -> Result<Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        // The symbolizer ends with its last client.
        drop(self.intervals);
        self.worker
            .join()
            .unwrap_or_else(|_| Err(Error::failed("the pipeline panicked; this is a bug")))
    }
}
