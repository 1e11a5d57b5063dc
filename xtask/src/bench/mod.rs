//! `cargo xtask bench`: what the agent costs, measured on the machine at hand. docs/overhead.md says how
//! to read it.

pub mod agent;
pub mod depth;
pub mod flame;
pub mod kernel;
pub mod machine;
pub mod memory;
pub mod overhead;
pub mod pipeline;
pub mod postgres;
pub mod progress;
pub mod report;
pub mod rungs;
pub mod services;
pub mod stats;
pub mod table;
pub mod trap;
pub mod variants;

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use self::{
    machine::{Machine, busy},
    progress::{Progress, minutes},
    report::Report,
    services::{NAMED, SCENARIOS, Scenario, Services},
    table::Style,
};
use crate::{
    command::{output, say},
    paths, run as agent_build,
};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// What a service loses: throughput, latencies and CPU, against the same service untraced
    Overhead,
    /// Where the time goes in the kernel: each program and trap per request, beside what the service loses
    Kernel,
    /// What a CPU sample costs by the depth of the Python stack, and how long it stops a process, beside py-spy
    Samples,
    /// The agent's user side: events per second through each stage and sink, allocations, latency
    Pipeline,
    /// The agent's memory and CPU against processes, connections, requests per second, and time
    Memory,
    /// What each rung of identity costs a request, its probes' traps among it
    Rungs,
    /// The agent's own flamegraph at 3,000 requests a second, target/bench/agent-3000.svg
    Flame,
    /// All of them
    All,
}

/// The arguments of the verb.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// What to measure
    pub kind: Kind,
    /// Short windows and few pairs: to see that it works, not to learn what things cost
    #[arg(long)]
    pub quick: bool,
    /// Pairs of windows with and without [default: 10, quick 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub pairs: Option<u32>,
    /// The length of a window, in seconds [default: 2, quick 1]
    #[arg(long, value_name = "SECS")]
    pub window: Option<f64>,
    /// Only this route of the service: sqlite, plain, def, calls, postgres, rows (may be given again)
    #[arg(long, value_name = "NAME")]
    pub scenario: Vec<String>,
    /// Write the figures to this file, as JSON [default: target/bench/KIND.json]
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the tables to this file, as Markdown
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
    /// Compare with the figures in this file, which an earlier run wrote
    #[arg(long, value_name = "FILE")]
    pub compare: Option<PathBuf>,
    /// For how many minutes to watch whether memory grows [default: 30, quick 0.2]
    #[arg(long, value_name = "MINUTES")]
    pub minutes: Option<f64>,
    /// The agent to measure, instead of one built from this tree
    #[arg(long, value_name = "FILE", hide = true)]
    pub agent: Option<PathBuf>,
    /// The profile that what is measured is built with
    #[arg(long, value_name = "NAME", hide = true, default_value = "release")]
    pub profile: String,
}

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The agent's program.
    pub agent: PathBuf,
    /// Whether it is a quick one.
    pub quick: bool,
    /// Whether all kinds are run: then none repeats what another has measured.
    pub all: bool,
    /// Pairs of windows.
    pub pairs: usize,
    /// A window's length.
    pub window: Duration,
    /// The routes.
    pub scenarios: Vec<Scenario>,
    /// For how long growth is watched.
    pub growth: Duration,
    /// Cargo's profile.
    pub profile: String,
    /// How tables look.
    pub style: Style,
}

impl Setup {
    fn new(args: &BenchArgs, agent: PathBuf) -> Result<Self> {
        let seconds = args.window.unwrap_or(if args.quick { 1.0 } else { 2.0 });
        if !(0.1..=600.0).contains(&seconds) {
            bail!("--window {seconds} is no length to measure for: say 0.1 to 600 seconds");
        }
        let minutes = args.minutes.unwrap_or(if args.quick { 0.2 } else { 30.0 });
        if !(0.01..=10_000.0).contains(&minutes) {
            bail!("--minutes {minutes} is no time to watch for: say 0.01 to 10000 minutes");
        }
        let mut scenarios = SCENARIOS.to_vec();
        if !args.scenario.is_empty() {
            scenarios = args
                .scenario
                .iter()
                .map(|name| services::scenario(name))
                .collect::<Result<_>>()?;
        }
        Ok(Self {
            agent,
            quick: args.quick,
            all: args.kind == Kind::All,
            pairs: args.pairs.unwrap_or(if args.quick { 3 } else { 10 }) as usize,
            window: Duration::from_secs_f64(seconds),
            scenarios,
            growth: Duration::from_secs_f64(60.0 * minutes),
            profile: args.profile.clone(),
            style: Style::of_stdout(),
        })
    }
}

/// One kind of measurement.
#[derive(Clone, Copy)]
struct Part {
    kind: Kind,
    /// How long it takes.
    plan: fn(&Setup) -> Duration,
    /// Does it.
    run: fn(&Setup, &Services, &mut Progress, &mut Report) -> Result<()>,
}

/// All kinds, in the order in which they are run.
const PARTS: &[Part] = &[
    Part {
        kind: Kind::Overhead,
        plan: overhead::plan,
        run: overhead::run,
    },
    Part {
        kind: Kind::Kernel,
        plan: kernel::plan,
        run: kernel::run,
    },
    Part {
        kind: Kind::Rungs,
        plan: rungs::plan,
        run: rungs::run,
    },
    Part {
        kind: Kind::Samples,
        plan: depth::plan,
        run: depth::run,
    },
    Part {
        kind: Kind::Pipeline,
        plan: pipeline::plan,
        run: pipeline::run,
    },
    Part {
        kind: Kind::Memory,
        plan: memory::plan,
        run: memory::run,
    },
    Part {
        kind: Kind::Flame,
        plan: flame::plan,
        run: flame::run,
    },
];

/// The verb: measures, prints, and writes the figures.
///
/// # Errors
/// Something cannot be had or built, fails at work, or the run is interrupted; nothing is left running.
pub fn run(args: &BenchArgs) -> Result<Report> {
    if !rustix::process::geteuid().is_root() {
        bail!("the bench loads eBPF programs: run it as root");
    }
    let old = args.compare.as_deref().map(Report::read).transpose()?;
    let venv = services::venv()?;
    let agent = match &args.agent {
        Some(agent) => agent.clone(),
        None => agent_build::build()?,
    };
    let mut setup = Setup::new(args, agent)?;
    let wants = |kind| args.kind == kind || args.kind == Kind::All;
    let with_postgres = setup
        .scenarios
        .iter()
        .any(|scenario| scenario.name == "postgres");
    let services = Services::start(venv, with_postgres)?;
    let machine = Machine::read(&services.cpus, &services.venv, NAMED)?;
    let style = setup.style;
    println!("{}", style.head(&machine.to_string()));
    println!("{}", services.cpus);
    let mut report = Report::new(command(), version(&setup), args.quick, machine);
    println!("agent: {}", report.agent);
    setup.scenarios.retain(|scenario| services.can(*scenario));
    if let Some(why) = &services.no_postgres {
        println!("SKIPPED: postgres: {why}");
        report.skipped.push(format!("postgres: {why}"));
    }
    let parts: Vec<Part> = PARTS
        .iter()
        .filter(|part| wants(part.kind))
        .copied()
        .collect();
    let planned = parts.iter().map(|part| (part.plan)(&setup)).sum();
    println!("this takes about {}", minutes(planned));
    let noise = busy()?;
    if noise > 0.1 {
        let note = format!(
            "The machine was busy: others took {:.0} % of its CPUs as the run began, and the figures are worth little",
            100.0 * noise
        );
        println!("{}", style.bad(&note));
        report.notes.push(note);
    }
    let mut progress = Progress::start(planned)?;
    let json = match &args.json {
        Some(path) => path.clone(),
        None => services::folder()?.join(format!("{}.json", name(args.kind))),
    };
    for part in parts {
        let done = (part.run)(&setup, &services, &mut progress, &mut report);
        progress.clear();
        // A load that is stopped fails: why it was stopped says more.
        let stopped = progress.check();
        if let Err(why) = done
            && stopped.is_ok()
        {
            report.failed(format!("{}: {why:#}", name(part.kind)));
        }
        // What is done is kept.
        report.write(&json)?;
        if let Some(path) = &args.markdown {
            fs::write(path, report.document())
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        stopped?;
    }
    let goals = report.goals(style);
    if !goals.is_empty() {
        println!("\n{goals}");
    }
    if let Some(old) = &old {
        println!(
            "\n{}\n{}",
            style.head("compared with the old run"),
            report.compared(old, style)
        );
    }
    say(format!("figures: {}", json.display()));
    if let Some(first) = report.failures.first() {
        bail!("{first}; what else was asked for was measured");
    }
    Ok(report)
}

fn name(kind: Kind) -> String {
    kind.to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

/// The command line, as it is typed.
fn command() -> String {
    let args: Vec<_> = std::env::args().skip(1).collect();
    format!("cargo xtask {}", args.join(" "))
}

/// The agent's version, and the commit that it was built from.
fn version(setup: &Setup) -> String {
    let version = output(Command::new(&setup.agent).arg("--version")).unwrap_or_default();
    let mut git = Command::new("git");
    git.current_dir(paths::workspace());
    let commit = output(git.args(["describe", "--always", "--dirty", "--abbrev=12"]));
    format!("{} ({})", version.trim(), commit.unwrap_or_default().trim())
}
