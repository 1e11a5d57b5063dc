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
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{UnshareFlags, unshare_unsafe},
};

use super::{
    Setup,
    agent::Tool,
    machine::{BpfUse, rss_kib},
    progress::Progress,
    report::{Report, number},
    services::{Bare, Services, asset},
    stats::slope,
    table::Table,
};
use crate::bed::{
    load::{Load, Request, Target, monotonic_ns},
    process::{Folder, Process},
};

/// How many connections one address of the loopback network gets: it has 28,232 ports for them, and a process
/// often may open no more than 20,000 files.
const PER_HOST: usize = 16_700;

/// What starting and ending the agent and what it looks at takes, about.
const BETWEEN: Duration = Duration::from_secs(5);

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

/// What a sample of the agent's CPU time is of, at least: it stores once a second, and a sample holds the like of
/// any other.
const SAMPLE: Duration = Duration::from_secs(3);

/// How long a state is looked at. What the agent may take is said of `goal`s.
fn look(setup: &Setup, goal: bool) -> Duration {
    let look = 3 * setup.window;
    match (setup.quick, goal) {
        (true, _) => look,
        (false, true) => look.max(10 * SAMPLE),
        (false, false) => look.max(3 * SAMPLE),
    }
}

/// Whether there is a goal for that many processes.
fn is_goal_of_processes(count: usize) -> bool {
    count == 50
}

/// Whether there is a goal for that many requests a second.
fn is_goal_of_rate(rate: u32) -> bool {
    rate == 1000
}

/// How long it takes.
pub fn plan(setup: &Setup) -> Duration {
    let goals = (processes(setup.quick).iter().copied()).map(is_goal_of_processes);
    let goals = goals.chain(rates(setup.quick).iter().copied().map(is_goal_of_rate));
    let goals = goals.chain(connections(setup.quick).iter().map(|_| false));
    let states = goals.map(|goal| look(setup, goal) + BETWEEN);
    let resting = u32::try_from(processes(setup.quick).len()).unwrap_or(0) * rest(setup);
    states.sum::<Duration>() + resting + setup.growth
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
        let sample = SAMPLE.min(time);
        let mut last = (Instant::now(), agent.cpu()?);
        while start.elapsed() < time {
            progress.sleep(step)?;
            let now = (Instant::now(), agent.cpu()?);
            if now.0 - last.0 >= sample {
                let burnt = now.1.saturating_sub(last.1).as_secs_f64();
                let share = burnt / (now.0 - last.0).as_secs_f64();
                seen.cpu.push(100.0 * share);
                last = now;
            }
            #[expect(clippy::cast_precision_loss, reason = "below 2^52")]
            let rss = rss_kib(agent.pid())? as f64 / 1024.0;
            seen.rss.push((start.elapsed().as_secs_f64(), rss));
        }
        #[expect(clippy::cast_precision_loss, reason = "below 2^52")]
        let maps = BpfUse::of(agent.pid())?.map_bytes as f64 / f64::from(1 << 20);
        seen.maps = maps;
        Ok(seen)
    }

    /// How resident memory grows, in KiB a minute, in three stretches one after the other. What is allocated once, as
    /// the load begins, is not growth: the first third of the time is none of them.
    fn growth(&self) -> Vec<f64> {
        let settled = &self.rss[self.rss.len() / 3..];
        let stretches = settled.chunks(settled.len().div_ceil(3).max(2));
        let slopes = stretches.filter_map(slope);
        slopes.map(|mib| mib * 60.0 * 1024.0).collect()
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
        "requests/s",
        "resident, MiB",
        "eBPF maps, MiB",
        "CPU, % of a core",
    ]);
    for &count in processes(setup.quick) {
        let what = format!("{count} idle processes");
        progress.step(
            &format!("memory, {what}"),
            look(setup, is_goal_of_processes(count)) + BETWEEN + rest(setup),
        )?;
        let seen = idle(setup, services, count, progress)?;
        let [rss, maps, cpu] = seen.note(&format!("memory/processes/{count}"), report);
        table.row([what, "0".to_owned(), rss, maps, cpu]);
    }
    for &count in connections(setup.quick) {
        let what = format!("{count} connections");
        progress.step(&format!("memory, {what}"), look(setup, false) + BETWEEN)?;
        match connected(setup, services, count, progress)? {
            Ok((seen, reached)) => {
                let id = format!("memory/connections/{count}");
                let [rss, maps, cpu] = seen.note(&id, report);
                let rate = report.note(format!("{id}/rate"), "requests/s", vec![reached]);
                table.row([what, rate, rss, maps, cpu]);
            }
            Err(why) => report.skipped.push(format!("{what}: {why}")),
        }
    }
    for &rate in rates(setup.quick) {
        let what = format!("{rate} requests/s");
        let look = look(setup, is_goal_of_rate(rate));
        progress.step(&format!("memory, {what}"), look + BETWEEN)?;
        let (seen, reached) = at_rate(setup, services, rate, look, progress)?;
        let id = format!("memory/rate/{rate}");
        let [rss, maps, cpu] = seen.note(&id, report);
        let reached = report.note(format!("{id}/rate"), "requests/s", vec![reached]);
        table.row(["a service".to_owned(), reached, rss, maps, cpu]);
    }
    let minutes = setup.growth.as_secs_f64() / 60.0;
    progress.step(
        &format!("memory, growth over {minutes:.1} min"),
        setup.growth,
    )?;
    let (seen, _) = at_rate(setup, services, 1000, setup.growth, progress)?;
    let stretches = seen.growth();
    let shown: Vec<_> = stretches.iter().map(|growth| number(*growth)).collect();
    // What is filled once, like the store's cache, takes minutes.
    report.note(
        "memory/growth",
        "KiB/min",
        stretches.last().copied().into_iter().collect(),
    );
    progress.clear();
    let growth = format!(
        "growth at 1,000 requests/s over {minutes:.1} min, in three stretches after the first third of them: {} KiB/min",
        shown.join(", ")
    );
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
    progress.sleep(rest(setup))?;
    Seen::of(&agent, look(setup, is_goal_of_processes(count)), progress)
}

/// How long the agent rests before its idling is looked at: what may yet load SQLite is looked at ever less often.
const fn rest(setup: &Setup) -> Duration {
    Duration::from_secs(if setup.quick { 0 } else { 10 })
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

/// Beside a server with so many connections, on each of which requests are made; also how many requests a second
/// there were. An inner error: this system does not allow so many.
fn connected(
    setup: &Setup,
    services: &Services,
    count: usize,
    progress: &Progress,
) -> Result<Result<(Seen, f64), String>> {
    let hosts: Vec<_> = (0..count.div_ceil(PER_HOST))
        .map(|n| format!("127.0.0.{}", n + 1))
        .collect();
    let share = count.div_ceil(hosts.len());
    if let Err(why) = allow_files(share as u64 + 1000) {
        return Ok(Err(format!("{why:#}")));
    }
    let server = services
        .cpus
        .on_service(|| Bare::start(&services.venv, &hosts))??;
    let agent = agent(setup, server.pid())?;
    let stop = Arc::new(AtomicBool::new(false));
    thread::scope(|scope| {
        let loads: Vec<_> = server
            .addrs
            .iter()
            .map(|&addr| {
                let load = load(addr).connections(share).stop_on(&stop);
                scope.spawn(move || {
                    own_files()?;
                    load.run()
                })
            })
            .collect();
        let seen = loaded(&server, count, &loads, progress).and_then(|()| {
            let begun = monotonic_ns();
            let seen = Seen::of(&agent, look(setup, false), progress)?;
            Ok((seen, begun..monotonic_ns()))
        });
        stop.store(true, Ordering::Relaxed);
        let mut ends = Vec::new();
        for load in loads {
            match load.join() {
                Ok(truths) => ends.extend(truths?.iter().map(|truth| truth.end)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        let (seen, time) = seen?;
        let answered = ends.iter().filter(|end| time.contains(end)).count();
        #[expect(clippy::cast_precision_loss, reason = "below 2^52")]
        let rate = answered as f64 * 1e9 / (time.end - time.start).max(1) as f64;
        Ok(Ok((seen, rate)))
    })
}

/// Gives this thread a table of open files of its own, so that each thread that connects may have as many open as
/// a process may.
fn own_files() -> Result<()> {
    // SAFETY: what this thread opens from now on, it alone knows of, and what was open stays open in its copy.
    unsafe { unshare_unsafe(UnshareFlags::FILES) }.context("cannot have files of one's own")
}

/// Waits until a server's processes, one for each address, hold so many connections, and each had a request.
fn loaded<T>(
    server: &Bare,
    count: usize,
    loads: &[thread::ScopedJoinHandle<'_, T>],
    progress: &Progress,
) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        progress.sleep(Duration::from_millis(300))?;
        let open: usize = server.pids.iter().map(|pid| open_files(*pid)).sum();
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

fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Beside a server that gets so many requests a second; also how many it really were.
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
        Ok((seen?, reached))
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

    /// What is allocated as the load begins is not growth; what goes on is, in each of three stretches.
    #[test]
    fn growth() {
        let seen = |after: f64| Seen {
            rss: (0..30)
                .map(f64::from)
                .map(|n| (10.0 * n, 50.0 + n.min(8.0) + after * (n - 8.0).max(0.0)))
                .collect(),
            ..Seen::default()
        };
        assert_eq!(seen(0.0).growth(), [0.0; 3]);
        let growing = seen(1.0 / 1024.0).growth();
        assert!(growing.len() == 3, "{growing:?}");
        assert!(
            growing.iter().all(|kib| (kib - 6.0).abs() < 1e-6),
            "{growing:?}"
        );
    }
}
