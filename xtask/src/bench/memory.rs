//! What the agent holds: resident memory and eBPF maps, against processes, connections, request rates
//! and time; and the CPU time that goes with it.

use std::{
    net::SocketAddr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{
    Setup,
    agent::Tool,
    machine::{BpfUse, rss_kib},
    progress::Progress,
    report::Report,
    services::{Bare, Services, asset},
    stats::slope,
    table::Table,
};
use crate::bed::{
    load::{Load, Request, Target},
    process::{Folder, Process},
};

/// How many connections one address of the loopback network gets: it has 28,232 ports for them.
const PER_HOST: usize = 20_000;

/// What the agent does meanwhile: its defaults, 19 Hz and a store among them, for that is promised.
const ARGS: [&str; 3] = ["--store", "{}/store", "--pid"];

fn processes(quick: bool) -> &'static [usize] {
    if quick {
        &[1, 50]
    } else {
        &[1, 10, 50, 100, 500]
    }
}

fn connections(quick: bool) -> &'static [usize] {
    if quick {
        &[100, 2000]
    } else {
        &[100, 1000, 10_000, 50_000]
    }
}

fn rates(quick: bool) -> &'static [u32] {
    if quick { &[1000] } else { &[100, 1000, 3000] }
}

/// How long each state is looked at.
fn look(setup: &Setup) -> Duration {
    3 * setup.window
}

/// How long it takes.
pub fn plan(setup: &Setup) -> Duration {
    let states =
        processes(setup.quick).len() + connections(setup.quick).len() + rates(setup.quick).len();
    u32::try_from(states).unwrap_or(1) * (look(setup) + Duration::from_secs(5)) + setup.growth
}

/// The agent at one moment after another.
#[derive(Debug, Default)]
struct Seen {
    /// Seconds since the first, and MiB.
    rss: Vec<(f64, f64)>,
    maps: f64,
    /// Of one core, in per cent.
    cpu: Vec<f64>,
}

impl Seen {
    /// Looks at the agent for so long.
    fn of(agent: &Tool, time: Duration, progress: &Progress) -> Result<Self> {
        let mut seen = Self::default();
        let start = Instant::now();
        let step = (time / 10).clamp(Duration::from_millis(100), Duration::from_secs(10));
        let mut last = (Instant::now(), agent.cpu()?);
        while start.elapsed() < time {
            progress.sleep(step)?;
            let now = (Instant::now(), agent.cpu()?);
            let burnt = now.1.saturating_sub(last.1).as_secs_f64();
            seen.cpu
                .push(100.0 * burnt / (now.0 - last.0).as_secs_f64());
            last = now;
            #[expect(clippy::cast_precision_loss, reason = "below 2^52")]
            let rss = rss_kib(agent.pid())? as f64 / 1024.0;
            seen.rss.push((start.elapsed().as_secs_f64(), rss));
        }
        #[expect(clippy::cast_precision_loss, reason = "below 2^52")]
        let maps = BpfUse::of(agent.pid())?.map_bytes as f64 / f64::from(1 << 20);
        seen.maps = maps;
        Ok(seen)
    }

    /// Notes the figures; gives the cells of a row.
    fn note(&self, id: &str, report: &mut Report) -> [String; 3] {
        let rss = self.rss.iter().map(|(_, rss)| *rss).collect();
        [
            report.note(format!("{id}/rss"), "MiB", rss),
            report.note(format!("{id}/maps"), "MiB", vec![self.maps]),
            report.note(format!("{id}/cpu"), "% of a core", self.cpu.clone()),
        ]
    }
}

/// Measures, and prints a table.
///
/// # Errors
/// Something does not start, or the run is interrupted.
pub fn run(
    setup: &Setup,
    services: &Services,
    progress: &mut Progress,
    report: &mut Report,
) -> Result<()> {
    let mut table = Table::new(&[
        "agent beside",
        "resident, MiB",
        "eBPF maps, MiB",
        "CPU, % of a core",
    ]);
    for &count in processes(setup.quick) {
        let what = format!("{count} idle processes");
        progress.step(
            &format!("memory, {what}"),
            look(setup) + Duration::from_secs(5),
        )?;
        let seen = idle(setup, services, count, progress)?;
        let [rss, maps, cpu] = seen.note(&format!("memory/processes/{count}"), report);
        table.row([what, rss, maps, cpu]);
    }
    for &count in connections(setup.quick) {
        let what = format!("{count} connections");
        progress.step(
            &format!("memory, {what}"),
            look(setup) + Duration::from_secs(5),
        )?;
        match connected(setup, services, count, progress)? {
            Ok(seen) => {
                let [rss, maps, cpu] = seen.note(&format!("memory/connections/{count}"), report);
                table.row([what, rss, maps, cpu]);
            }
            Err(why) => report.skipped.push(format!("{what}: {why}")),
        }
    }
    for &rate in rates(setup.quick) {
        let what = format!("{rate} requests/s");
        progress.step(
            &format!("memory, {what}"),
            look(setup) + Duration::from_secs(5),
        )?;
        let (seen, reached) = at_rate(setup, services, rate, look(setup), progress)?;
        let [rss, maps, cpu] = seen.note(&format!("memory/rate/{rate}"), report);
        let short = if reached < 0.95 {
            format!(", only {:.0} % of them reached", 100.0 * reached)
        } else {
            String::new()
        };
        table.row([what + &short, rss, maps, cpu]);
    }
    let minutes = setup.growth.as_secs_f64() / 60.0;
    progress.step(
        &format!("memory, growth over {minutes:.1} min"),
        setup.growth,
    )?;
    let (seen, _) = at_rate(setup, services, 1000, setup.growth, progress)?;
    // What is allocated once, as the load begins, is not growth.
    let settled = &seen.rss[seen.rss.len() / 3..];
    let growth = slope(settled).map(|mib_per_second| mib_per_second * 60.0 * 1024.0);
    let shown = report.note("memory/growth", "KiB/min", growth.into_iter().collect());
    progress.clear();
    let growth = format!("growth over {minutes:.1} min at 1,000 requests/s: {shown} KiB/min");
    report.section("memory: run --pid, its defaults", &growth, &table);
    for skipped in &report.skipped {
        println!("SKIPPED: {skipped}");
    }
    Ok(())
}

fn agent(setup: &Setup, pid: u32) -> Result<Tool> {
    let args: Vec<_> = std::iter::once("run")
        .chain(ARGS)
        .map(str::to_owned)
        .chain([pid.to_string()])
        .collect();
    Tool::agent(&setup.agent, &args)
}

/// Beside so many processes of Python that do nothing.
fn idle(setup: &Setup, services: &Services, count: usize, progress: &Progress) -> Result<Seen> {
    let folder = Folder::new()?;
    let mut command = Command::new(services.venv.program("python"));
    command.arg(asset("idle.py")).arg(count.to_string());
    let mut family = Process::start(&mut command, &folder.path().join("log"))?;
    family.wait_for(Duration::from_secs(60), |log| {
        log.contains("ready").then_some(())
    })?;
    let mut agent = agent(setup, family.pid())?;
    agent
        .says(
            &format!(" {count} processes traced"),
            Duration::from_secs(20),
        )
        .context("the agent does not trace all of them")?;
    // Until all of them have been looked into.
    settle(&agent, progress)?;
    Seen::of(&agent, look(setup), progress)
}

/// Waits until the agent has nothing more to do with its targets.
fn settle(agent: &Tool, progress: &Progress) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let before = agent.cpu()?;
        progress.sleep(Duration::from_millis(500))?;
        if agent.cpu()? - before < Duration::from_millis(25) || Instant::now() > end {
            return Ok(());
        }
    }
}

/// Beside a server with so many connections, on each of which requests are made. An inner error: this
/// system does not allow so many.
fn connected(
    setup: &Setup,
    services: &Services,
    count: usize,
    progress: &Progress,
) -> Result<Result<Seen, String>> {
    if let Err(why) = allow_files(count as u64 + 1000) {
        return Ok(Err(format!("{why:#}")));
    }
    let hosts: Vec<_> = (0..count.div_ceil(PER_HOST))
        .map(|n| format!("127.0.0.{}", n + 1))
        .collect();
    let server = services
        .cpus
        .on_service(|| Bare::start(&services.venv, &hosts))??;
    let agent = agent(setup, server.pid())?;
    let stop = Arc::new(AtomicBool::new(false));
    thread::scope(|scope| {
        let share = count.div_ceil(hosts.len());
        let loads: Vec<_> = server
            .addrs
            .iter()
            .map(|&addr| {
                let load = load(addr).connections(share).stop_on(&stop);
                scope.spawn(move || load.run())
            })
            .collect();
        let seen = loaded(&server, count, &loads, progress)
            .and_then(|()| Seen::of(&agent, look(setup), progress));
        stop.store(true, Ordering::Relaxed);
        for load in loads {
            match load.join() {
                Ok(truths) => drop(truths?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        seen.map(Ok)
    })
}

/// Waits until a server holds so many connections, and each had a request.
fn loaded<T>(
    server: &Bare,
    count: usize,
    loads: &[thread::ScopedJoinHandle<'_, T>],
    progress: &Progress,
) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        progress.sleep(Duration::from_millis(300))?;
        let open = std::fs::read_dir(format!("/proc/{}/fd", server.pid()))
            .context("the server is gone")?
            .count();
        if open >= count {
            break;
        }
        if loads.iter().any(thread::ScopedJoinHandle::is_finished) || Instant::now() > end {
            bail!("only {open} of {count} connections could be made");
        }
    }
    // At 20,000 requests a second.
    progress.sleep(Duration::from_secs_f64(0.5 + count as f64 / 20_000.0))
}

/// Beside a server that gets so many requests a second; also which share of them it was.
fn at_rate(
    setup: &Setup,
    services: &Services,
    rate: u32,
    time: Duration,
    progress: &Progress,
) -> Result<(Seen, f64)> {
    let service = services.service(None)?;
    let Target::Tcp(addr) = service.target else {
        bail!("the service listens on no port");
    };
    let agent = agent(setup, service.pid)?;
    let stop = Arc::new(AtomicBool::new(false));
    thread::scope(|scope| {
        // In pieces: the truth about each request takes memory of its own.
        let stopping = &stop;
        let load = scope.spawn(move || {
            let (mut sent, begun) = (0, Instant::now());
            while !stopping.load(Ordering::Relaxed) {
                sent += Load::new(Target::Tcp(addr), [Request::get("/plain")])
                    .connections(16)
                    .rate(rate.into())
                    .duration(Duration::from_secs(2))
                    .stop_on(stopping)
                    .run()?
                    .len();
            }
            #[expect(clippy::cast_precision_loss, reason = "below 2^52")]
            anyhow::Ok(sent as f64 / begun.elapsed().as_secs_f64())
        });
        let warm = progress.sleep(Duration::from_secs(1));
        let seen = warm.and_then(|()| Seen::of(&agent, time, progress));
        stop.store(true, Ordering::Relaxed);
        let reached = match load.join() {
            Ok(reached) => reached?,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        Ok((seen?, reached / f64::from(rate)))
    })
}

fn load(addr: SocketAddr) -> Load {
    // Its end is set by the flag; the limit is for the case that nobody sets it.
    Load::new(Target::Tcp(addr), [Request::get("/")]).duration(Duration::from_secs(600))
}

/// Lets this process and those that it starts open so many files.
fn allow_files(count: u64) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= count) {
        return Ok(());
    }
    let maximum = limit.maximum.map(|maximum| maximum.max(count));
    let wanted = Rlimit {
        current: Some(count),
        maximum,
    };
    setrlimit(Resource::Nofile, wanted)
        .with_context(|| format!("no process may open {count} files here"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The middle of a state's memory is what its row shows.
    #[test]
    fn rows() {
        let seen = Seen {
            rss: vec![(0.0, 10.0), (1.0, 12.0), (2.0, 11.0)],
            maps: 3.0,
            cpu: vec![1.0, 1.0, 1.0],
        };
        let mut report = Report::new(
            String::new(),
            String::new(),
            true,
            super::super::machine::Machine::for_tests(),
        );
        let [rss, ..] = seen.note("memory/x", &mut report);
        assert!(rss.starts_with("11.0 "), "{rss}");
        assert_eq!(report.figures.len(), 3);
    }
}
