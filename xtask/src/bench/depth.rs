//! What a CPU sample costs: the sampling program's time by the depth of the Python stack that it reads, and
//! for how long a process of many threads stands still for one, beside py-spy, which stops it.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::sys::{Stats, enable_stats};

use super::{
    Setup,
    agent::Tool,
    kernel::{Runs, runs, since},
    machine::cpu_time,
    progress::Progress,
    report::Report,
    services::{Services, asset, py_spy},
    stats::median,
    table::Table,
};
use crate::bed::process::{Folder, Process};

/// Python frames, and threads that sleep beside the one that runs.
const CASES: [(u32, u32); 4] = [(10, 0), (50, 0), (128, 0), (50, 150)];

/// Samples per second and CPU: enough of them in a short window.
const RATE: u32 = 499;

/// Windows of each case.
const fn windows(setup: &Setup) -> usize {
    if setup.quick { 2 } else { 5 }
}

/// How often the process of many threads is sampled: as py-spy does by default.
const STOP_RATE: u32 = 100;

/// The sampling program's name, as the kernel cuts it.
const PROGRAM: &str = "cpu_sample";

/// How long the program and the agent may take to be ready.
const START: Duration = Duration::from_secs(20);

/// How long it takes.
pub fn plan(setup: &Setup) -> Duration {
    let windows =
        u32::try_from(windows(setup) * (CASES.len() + 1) + 6 * setup.pairs).unwrap_or(u32::MAX);
    windows * setup.window + Duration::from_secs(20)
}

/// Measures all cases, and prints the tables.
///
/// # Errors
/// Something does not start, there are no statistics, or the run is interrupted.
pub fn run(
    setup: &Setup,
    services: &Services,
    progress: &mut Progress,
    report: &mut Report,
) -> Result<()> {
    let window = setup.window;
    progress.step("samples: of others", window * 5)?;
    let refused = refused(setup, services, progress)?;
    let mut table = Table::new(&["Python frames", "other threads", "ns per sample"]);
    for (depth, threads) in CASES {
        progress.step(&format!("samples: {depth} frames"), window * 5)?;
        let busy = busy(services, depth, threads)?;
        let agent = sampler(setup, busy.pid(), RATE)?;
        let mut prices = Vec::new();
        for _ in 0..windows(setup) {
            let before = cpu_time(busy.pid())?;
            let seen = seen(&agent, window, progress)?;
            let used = cpu_time(busy.pid())?.saturating_sub(before);
            prices.push(price(&seen, refused, used));
        }
        agent.stop()?;
        let id = format!("samples/{depth}/{threads}/ns");
        let shown = report.note(id, "ns", prices);
        table.row([depth.to_string(), threads.to_string(), shown]);
    }
    progress.clear();
    report.section(
        "samples: the program's time for one",
        &format!("a look at a thread that is not traced takes {refused:.0} ns"),
        &table,
    );
    let table = stops(setup, services, progress, report)?;
    progress.clear();
    report.section(
        "samples: for how long 151 threads stand still for one, in µs",
        "",
        &table,
    );
    Ok(())
}

/// A program that is busy so many calls deep.
fn busy(services: &Services, depth: u32, threads: u32) -> Result<Process> {
    let folder = Folder::new()?;
    let mut command = Command::new(services.venv.program("python"));
    command.arg(asset("depth.py"));
    command.args([depth.to_string(), threads.to_string()]);
    let log = folder.path().join("log");
    let started = services
        .cpus
        .on_service(|| Process::start(&mut command, &log))?;
    let mut process = started?;
    process.wait_for(START, |log| log.contains("ready").then_some(()))?;
    Ok(process)
}

/// The agent that samples a process.
fn sampler(setup: &Setup, pid: u32, rate: u32) -> Result<Tool> {
    let (pid, rate) = (pid.to_string(), rate.to_string());
    let args = ["run", "--store", "off", "--pid", &pid, "--rate", &rate];
    let args: Vec<String> = args
        .into_iter()
        .chain(["--profile-out", "{}/profile.folded"])
        .map(str::to_owned)
        .collect();
    let mut agent = Tool::agent(&setup.agent, &args)?;
    agent
        .says("reading CPython", START)
        .context("the agent does not read the program")?;
    Ok(agent)
}

/// What the sampling program did in a window.
fn seen(agent: &Tool, window: Duration, progress: &Progress) -> Result<Runs> {
    let _stats = enable_stats(Stats::RunTime)
        .context("the kernel keeps no run-time statistics (Linux 5.8 does, for root)")?;
    let before = runs(agent.pid())?;
    progress.sleep(window)?;
    let mut programs = since(&before, runs(agent.pid())?);
    programs
        .remove(PROGRAM)
        .context("the agent's sampling program did not run")
}

/// What the program takes for a thread that is none of a traced process, which most of its runs are.
fn refused(setup: &Setup, services: &Services, progress: &Progress) -> Result<f64> {
    let folder = Folder::new()?;
    let mut idle = Command::new(services.venv.program("python"));
    idle.arg(asset("idle.py")).arg("1");
    let mut idle = Process::start(&mut idle, &folder.path().join("log"))?;
    idle.wait_for(START, |log| log.contains("ready").then_some(()))?;
    let agent = sampler(setup, idle.pid(), RATE)?;
    let mut prices = Vec::new();
    for _ in 0..windows(setup) {
        let seen = seen(&agent, setup.window, progress)?;
        prices.push(ratio(seen.nanos, seen.hits));
    }
    agent.stop()?;
    median(&prices).context("no samples")
}

/// Nanoseconds of one sample of the traced process, of whose CPU time each period gives one.
fn price(seen: &Runs, refused: f64, used: Duration) -> f64 {
    let samples = (used.as_secs_f64() * f64::from(RATE)).max(1.0);
    #[expect(clippy::cast_precision_loss, reason = "below 2^52")]
    let (hits, nanos) = (seen.hits as f64, seen.nanos as f64);
    (nanos - refused * (hits - samples).max(0.0)) / samples
}

fn ratio(nanos: u64, hits: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "below 2^52")]
    let ratio = nanos as f64 / hits.max(1) as f64;
    ratio
}

/// For how long a process of many threads stands still for one sample: the CPU time that it loses, in a window with
/// each tool between two without.
fn stops(
    setup: &Setup,
    services: &Services,
    progress: &mut Progress,
    report: &mut Report,
) -> Result<Table> {
    let mut table = Table::new(&["sampled by", "µs per sample"]);
    for name in ["decnet-trace", "py-spy"] {
        let pairs = u32::try_from(setup.pairs).unwrap_or(u32::MAX);
        progress.step(&format!("samples: {name}"), 3 * pairs * setup.window)?;
        let mut lost = Vec::new();
        for _ in 0..setup.pairs {
            let busy = busy(services, 50, 150)?;
            let before = runs_for(busy.pid(), setup.window, progress)?;
            let tool = match name {
                "py-spy" => Tool::py_spy(&py_spy(&services.venv), busy.pid(), STOP_RATE)?,
                _ => sampler(setup, busy.pid(), STOP_RATE)?,
            };
            let with = runs_for(busy.pid(), setup.window, progress)?;
            tool.stop()?;
            let after = runs_for(busy.pid(), setup.window, progress)?;
            lost.push(1e6 * (f64::midpoint(before, after) - with) / f64::from(STOP_RATE));
        }
        let shown = report.note(format!("samples/stops/{name}"), "µs", lost);
        table.row([name.to_owned(), shown]);
    }
    Ok(table)
}

/// The share of the time that a process is on a CPU.
fn runs_for(pid: u32, window: Duration, progress: &Progress) -> Result<f64> {
    // What was started just now has settled.
    thread::sleep(Duration::from_millis(200));
    let (begun, before) = (Instant::now(), cpu_time(pid)?);
    progress.sleep(window)?;
    let used = cpu_time(pid)?.saturating_sub(before);
    Ok(used.as_secs_f64() / begun.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What looks at other processes take is no part of a sample's price.
    #[test]
    fn prices() {
        let seen = Runs {
            hits: 2 * u64::from(RATE),
            nanos: u64::from(RATE) * (5_000 + 100),
            ..Runs::default()
        };
        let price = price(&seen, 100.0, Duration::from_secs(1));
        assert!((price - 5_000.0).abs() < 1.0, "{price}");
    }
}
