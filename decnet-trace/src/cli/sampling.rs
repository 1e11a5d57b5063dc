//! What the verbs that sample processes share: whom, how often, and for how long.

use std::{
    ffi::OsString,
    thread,
    time::{Duration, Instant},
};

use clap::Args;

use super::{
    alive::Alive,
    child::{Held, Running, Terminal},
    run::{KernelArgs, RATE_MAX},
    wait::Ended,
};
use crate::{
    discover::{Children, Selector},
    error::{Error, Result},
    export::ExportConfig,
    pipeline::{Config, Lineage, Outcome, Overlooked, Pipeline, Python},
    policy::PolicyConfig,
    profile::aggregate::{Options, Waiting},
    sampling::SamplingConfig,
    telemetry::log,
};

/// How long the interpreters of running processes may take to be understood.
const READY_MAX: Duration = Duration::from_secs(10);

/// How often is looked whether they are.
const READY_TICK: Duration = Duration::from_millis(5);

/// Whom to sample, and how.
#[derive(Args, Debug)]
pub(super) struct SamplingArgs {
    /// Sample this process (may be given again, or with commas).
    #[arg(long, short, value_name = "PID", value_delimiter = ',', required_unless_present = "command", value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)), help_heading = "Targets")]
    pid: Vec<u32>,

    /// Start this command, and sample it from its beginning to its end.
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "pid")]
    command: Vec<OsString>,

    /// Sample the processes that they start, too.
    #[arg(long, short, help_heading = "Targets")]
    subprocesses: bool,

    /// Samples per second and CPU; primes keep out of step with what happens at regular times.
    #[arg(long, short, value_name = "HZ", default_value_t = 97, value_parser = clap::value_parser!(u32).range(1..=i64::from(RATE_MAX)))]
    pub(super) rate: u32,

    /// Count only threads that hold the GIL.
    #[arg(long, short)]
    gil: bool,

    /// Show native functions: of the interpreter, of extensions and libraries.
    #[arg(long, short)]
    native: bool,

    /// Show the kernel's functions.
    #[arg(long, short)]
    kernel: bool,

    /// With --native: how much of the kernel's memory unwind tables may take, in MiB; 0 for frame
    /// pointers alone.
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(0..=256))]
    unwind_memory: u64,

    #[command(flatten)]
    loading: KernelArgs,
}

/// Sampling under way.
pub(super) struct Sampling {
    pub(super) pipeline: Pipeline,
    pids: Vec<u32>,
    alive: Alive,
    command: Option<Running>,
    subprocesses: bool,
    native: bool,
    refused: Option<Error>,
}

impl SamplingArgs {
    /// Whether a command is to be started.
    pub(super) const fn has_command(&self) -> bool {
        !self.command.is_empty()
    }

    /// In bytes.
    const fn unwind_memory(&self) -> u64 {
        match self.native {
            true => self.unwind_memory << 20,
            false => 0,
        }
    }

    /// Begins to sample. Where this returns, the interpreters of running processes are read; a command
    /// that it started executes its program now.
    ///
    /// # Errors
    ///
    /// When the kernel or the privileges can't, or a process cannot be sampled.
    pub(super) fn start(&self, threads: bool, waiting: Waiting) -> Result<Sampling> {
        self.begin(threads, waiting, Terminal::Shared, None)
    }

    /// Likewise, with threads apart and a profile of each stretch of time that long. A command that it
    /// starts leaves the terminal alone.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub(super) fn start_by_interval(&self, interval: Duration) -> Result<Sampling> {
        self.begin(true, Waiting::No, Terminal::Ours, Some(interval))
    }

    fn begin(
        &self,
        threads: bool,
        waiting: Waiting,
        terminal: Terminal,
        interval: Option<Duration>,
    ) -> Result<Sampling> {
        // What a person has to know of a recording is in its report.
        let filter = std::env::var_os(log::ENV).is_none().then_some("error");
        log::init(filter).map_err(Error::failed)?;
        let mut pids = self.pid.clone();
        pids.sort_unstable();
        pids.dedup();
        if pids.contains(&std::process::id()) {
            return Err(Error::usage(
                "--pid names decnet-trace itself, which is never traced; name another process",
            ));
        }
        let held = match self.has_command() {
            true => Some(Held::new(&self.command, terminal)?),
            false => None,
        };
        pids.extend(held.as_ref().map(Held::pid));
        let alive = Alive::of(&pids);
        let children = match self.subprocesses {
            true => Children::All,
            false => Children::None,
        };
        let selector = Selector::new(&pids, &[], &[]).map_err(Error::usage)?;
        let pipeline = Pipeline::start(Config {
            selector: selector.with_children(children),
            overrides: Default::default(),
            load: self
                .loading
                .options(false, self.rate, self.unwind_memory())?,
            learn_routes: false,
            lineage: Lineage::Off,
            queues: false,
            overlooked: Overlooked::default(),
            identities_max: 1,
            cpu_budget: None,
            policy: PolicyConfig::default(),
            sampling: SamplingConfig::default(),
            metrics: None,
            export: ExportConfig::default(),
            profile: Some(Options {
                native: self.native,
                kernel: self.kernel,
                threads,
                gil_only: self.gil,
                waiting,
                ..Options::default()
            }),
            interval,
        })?;
        let mut sampling = Sampling {
            pipeline,
            pids,
            alive,
            command: None,
            subprocesses: self.subprocesses,
            native: self.native,
            refused: None,
        };
        match held {
            Some(held) => sampling.command = Some(held.go()?),
            None => sampling.wait_until_read()?,
        }
        Ok(sampling)
    }
}

impl Sampling {
    /// What is sampled, in a few words.
    pub(super) fn title(&self) -> String {
        match (&self.command, self.pids.as_slice()) {
            (Some(command), _) => command.name().to_owned(),
            (None, [pid]) => format!("pid {pid}"),
            (None, pids) => format!("{} processes", pids.len()),
        }
    }

    /// Waits until the named processes' Python frames are read, or it is known that they need not be.
    fn wait_until_read(&self) -> Result<()> {
        let deadline = Instant::now() + READY_MAX;
        for &pid in &self.pids {
            while !self.pipeline.is_finished() {
                let late = Instant::now() >= deadline;
                match self.pipeline.live().python(pid) {
                    Some(Python::Read) => break,
                    Some(Python::Absent) if self.native || self.subprocesses => break,
                    Some(Python::Absent) => {
                        return Err(Error::no_target(format!(
                            "process {pid} is not a Python process; --native profiles it all the same"
                        )));
                    }
                    Some(Python::Unsupported(_)) if self.native => break,
                    Some(Python::Unsupported(why)) => return Err(unsupported(pid, &why)),
                    None => {
                        return Err(Error::no_target(format!(
                            "process {pid} ended before recording began"
                        )));
                    }
                    Some(Python::Pending) if late => {
                        return Err(Error::failed(format!(
                            "the interpreter of process {pid} has not come up within {} s; try again when it runs",
                            READY_MAX.as_secs()
                        )));
                    }
                    Some(Python::Pending) => thread::sleep(READY_TICK),
                }
            }
        }
        Ok(())
    }

    /// Whether there is nothing more to sample.
    pub(super) fn has_ended(&mut self) -> bool {
        let live = self.pipeline.live();
        if self.command.is_some()
            && !self.native
            && !self.subprocesses
            && let Some(Python::Unsupported(why)) = live.python(self.pids[0])
        {
            self.refused = Some(unsupported(self.pids[0], &why));
            return true;
        }
        let alive = match &mut self.command {
            Some(command) => !command.has_ended(),
            None => self.alive.any(),
        };
        let children = self.subprocesses && live.traced() > 0;
        self.pipeline.is_finished() || !(alive || children)
    }

    /// Stops, and ends the command that was started; what was seen, and what to say of the command.
    ///
    /// # Errors
    ///
    /// When the pipeline failed at work, or there was nothing that could be sampled.
    pub(super) fn finish(self, ended: Ended) -> Result<(Outcome, Option<String>)> {
        let read = self.native || self.pipeline.live().read_any();
        let outcome = self.pipeline.finish()?;
        if let Some(refused) = self.refused {
            return Err(refused);
        }
        let mut note = None;
        if let Some(mut command) = self.command {
            let status = command.end(ended == Ended::Interrupted)?;
            if !read {
                return Err(Error::no_target(format!(
                    "{} ran no Python that could be read ({status}); --native profiles it all the same, --subprocesses what it starts",
                    command.name()
                )));
            }
            note = (!status.success()).then(|| format!("{} ended with {status}", command.name()));
        }
        Ok((outcome, note))
    }
}

/// What stands against a process whose interpreter is known, but not supported.
fn unsupported(pid: u32, why: &str) -> Error {
    Error::no_target(format!(
        "process {pid} cannot be profiled: {why}; --native profiles it without its Python frames"
    ))
}
