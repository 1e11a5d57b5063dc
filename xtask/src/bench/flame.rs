//! The agent's own flamegraph, which it draws itself: where its user side's time goes at 3,000 requests a
//! second.

use std::{
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    Setup,
    agent::Tool,
    progress::Progress,
    report::Report,
    services::{Services, folder, length},
    table::Table,
    variants::Variant,
};
use crate::{
    bed::load::{Load, Request},
    command::output,
};

/// Requests a second.
const RATE: f64 = 3000.0;

/// Samples a second: the agent takes a few per cent of a core, of which many are wanted.
const SAMPLES: &str = "997";

/// How long the load runs before: what is done once, as it begins, is not of interest.
fn before(setup: &Setup) -> Duration {
    2 * setup.window
}

/// How long is sampled.
fn sampled(setup: &Setup) -> Duration {
    15 * setup.window
}

/// How long it takes.
pub fn plan(setup: &Setup) -> Duration {
    before(setup) + sampled(setup) + Duration::from_secs(8)
}

/// Where it is written.
///
/// # Errors
/// The folder cannot be made.
pub fn path() -> Result<PathBuf> {
    Ok(folder()?.join("agent-3000.svg"))
}

/// Draws it.
///
/// # Errors
/// Something does not start, the load fails, or the run is interrupted.
pub fn run(
    setup: &Setup,
    services: &Services,
    progress: &mut Progress,
    report: &mut Report,
) -> Result<()> {
    progress.step("flame: the agent at 3,000 requests/s", plan(setup))?;
    let service = services.service(None)?;
    let variant = Variant::named("agent").context("no such variant")?;
    let args = variant
        .args(service.pid, &services.backend()?)
        .context("not the agent")?;
    let agent = Tool::agent(&setup.agent, &args)?;
    let path = path()?;
    let stop = Arc::new(AtomicBool::new(false));
    let share = thread::scope(|scope| {
        let load = scope.spawn(|| {
            // In pieces: the truth about each request takes memory of its own.
            while !stop.load(Ordering::Relaxed) {
                Load::new(service.target.clone(), [Request::get("/plain")])
                    .connections(32)
                    .rate(RATE)
                    .duration(Duration::from_secs(2))
                    .stop_on(&stop)
                    .run()?;
            }
            anyhow::Ok(())
        });
        let drawn = progress.sleep(before(setup)).and_then(|()| {
            let (begun, burnt) = (Instant::now(), agent.cpu()?);
            record(setup, agent.pid(), &path)?;
            let burnt = agent.cpu()?.saturating_sub(burnt);
            Ok(100.0 * burnt.as_secs_f64() / begun.elapsed().as_secs_f64())
        });
        stop.store(true, Ordering::Relaxed);
        match load.join() {
            Ok(ended) => ended?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
        drawn
    })?;
    agent.stop()?;
    progress.clear();
    let size = length(&path);
    if size == 0 {
        bail!("no flamegraph was written");
    }
    let share = report.note("flame/cpu", "% of a core", vec![share]);
    let size = report.note("flame/size", "bytes", vec![size as f64]);
    let mut table = Table::new(&["", ""]);
    table.row([
        "the agent meanwhile, sampled 997 times a second, % of a core".to_owned(),
        share,
    ]);
    table.row(["the flamegraph, bytes".to_owned(), size]);
    table.row(["it is".to_owned(), path.display().to_string()]);
    report.section("flame: the agent at 3,000 requests/s", "", &table);
    Ok(())
}

/// The agent samples the agent.
fn record(setup: &Setup, pid: u32, path: &std::path::Path) -> Result<()> {
    let mut record = Command::new(&setup.agent);
    record
        .args(["record", "--native", "--kernel", "--rate", SAMPLES, "--pid"])
        .arg(pid.to_string())
        .arg("--duration")
        .arg(sampled(setup).as_secs().max(1).to_string())
        .args(["--format", "flamegraph", "--output"])
        .arg(path);
    output(&mut record).map(drop)
}
